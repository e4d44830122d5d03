//! Answers other nodes from this node's own shards. Blocking: called outside of the async runtime.
//!
//! Answers stay below `cluster.max_answer`. A shard that does not fit is reported as too large,
//! because an oversized frame would end the session for everybody.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::wire::{
    self, AccountingBody, AccountingRequest, CatalogueBody, CatalogueRequest, DeltaRow, LiveBody,
    LiveRequest, NodeAnnouncement, PeerReply, PeerRequest, ShardAnnouncement, ShardAnswer,
    ShardCheckpoint, ShardFailure, WireFreshness,
};
use crate::actors::catalogue::CatalogueGrowth;
use crate::actors::live::{LiveError, LiveReader, ShardFreshness, ShardRead, ShardResults};
use crate::actors::shard_table::ShardTable;
use crate::clock::Clock;
use crate::model::CodecError;
use crate::model::flush::SeriesInfo;
use crate::model::matcher::Matcher;
use crate::model::offset::ShardId;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::shards::state::{AccountingQuery, LiveQuery};

/// Limits of one request, above what any shard count or query parameter allows.
const MAX_CHECKPOINTS: usize = 4_096;
const MAX_MATCHERS: usize = 64;
/// How many (metric, hour) pairs an announcement lists; a node that holds more announces none.
const MAX_WINDOWS: usize = 16_384;

/// Serves the requests of other nodes.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct MeshServer {
    pub table: Arc<ShardTable>,
    pub clock: Arc<dyn Clock>,
    /// Maximum size of an answer, `cluster.max_answer` in bytes.
    pub max_answer: usize,
    /// Encodes this node's status for heartbeats.
    pub node_status: StatusEncoder,
}

/// Encodes a node's status; only the reader of `/v1/status` interprets the bytes.
pub type StatusEncoder = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// The answer of one shard, under construction.
#[derive(Default)]
struct BodyBuilder {
    series: Vec<ByteBuf>,
    index_of: HashMap<SeriesId, u32>,
    rows: Vec<DeltaRow>,
    too_large: bool,
}

impl MeshServer {
    /// Answers an encoded request.
    ///
    /// # Errors
    /// If the answer cannot be serialised, which is a bug.
    pub fn answer(&self, request: &[u8]) -> Result<Vec<u8>, CodecError> {
        let reply = match wire::decode(request) {
            Ok(PeerRequest::Beat) => Ok(PeerReply::Beat(self.announcement())),
            Ok(PeerRequest::Live(request)) => self.live(request),
            Ok(PeerRequest::Accounting(request)) => self.accounting(&request),
            Ok(PeerRequest::Catalogue(request)) => self.catalogue(&request),
            Err(why) => Err(why),
        };
        wire::encode(&reply.unwrap_or_else(|why| PeerReply::Refused(why.to_string())))
    }

    fn live(&self, request: LiveRequest) -> Result<PeerReply, CodecError> {
        let reads = shard_reads(&request.places)?;
        if request.matchers.len() > MAX_MATCHERS {
            return Err(CodecError::new(
                "question",
                format!("it has more than {MAX_MATCHERS} matchers"),
            ));
        }
        let (tenant, metric) = (request.tenant.as_str(), request.metric.as_str());
        let (distinct, quantiles, overflow) =
            (request.distinct, request.quantiles, request.overflow);
        let served = request.served()?;
        let question = LiveQuery {
            tenant,
            metric,
            from: Hour(request.from),
            to: Hour(request.to),
            served: &served,
            distinct,
            quantiles,
            overflow,
        };
        let matchers: Vec<Matcher> =
            request.matchers.into_iter().map(|text| text.compile()).collect::<Result<_, _>>()?;
        let mut building: HashMap<ShardId, BodyBuilder> = HashMap::new();
        // One budget for all shards, because the answer is one frame.
        let mut left = self.max_answer;
        let mut visit = |shard: ShardId, info: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| {
            let shard = building.entry(shard).or_default();
            if !shard.too_large {
                shard.add(info, DeltaRow::of(0, hour, rollup, distinct, quantiles), &mut left);
            }
        };
        let reports = self.table.read(&reads, &question, &matchers, &mut visit);
        Ok(PeerReply::Live(answers(&request.places, &reports, |shard, report| {
            let BodyBuilder { series, rows, too_large, .. } =
                building.remove(&shard).unwrap_or_default();
            let reach = wire_freshness(report);
            if too_large {
                Err(ShardFailure::TooLarge)
            } else {
                Ok(LiveBody { reach, series, rows })
            }
        })))
    }

    fn accounting(&self, request: &AccountingRequest) -> Result<PeerReply, CodecError> {
        let question = AccountingQuery {
            tenant: &request.tenant,
            from: Hour(request.from),
            to: Hour(request.to),
        };
        let mut hours: HashMap<ShardId, Vec<(i32, [u64; 3])>> = HashMap::new();
        let reports =
            self.table.accounting(&shard_reads(&request.places)?, &question, &mut |shard, row| {
                let counts = [row.aggregated, row.deduplicated, row.quarantined];
                hours.entry(shard).or_default().push((row.hour.0, counts));
            });
        Ok(PeerReply::Accounting(answers(&request.places, &reports, |shard, report| {
            let hours = hours.remove(&shard).unwrap_or_default();
            Ok(AccountingBody { reach: wire_freshness(report), hours })
        })))
    }

    fn catalogue(&self, request: &CatalogueRequest) -> Result<PeerReply, CodecError> {
        let others = request.others()?;
        let question = request.query(&others)?;
        let mut left = self.max_answer;
        // One shard at a time: an answer that does not fit is dropped before the next shard is
        // read.
        let answers =
            shard_reads(&request.places)?.into_iter().zip(&request.places).map(|(one, place)| {
                let mut found = CatalogueGrowth::default();
                let reports =
                    self.table.catalogue(&[one], &question, &mut |growth| found = growth.clone());
                let outcome = match reports
                    .first()
                    .map_or(Err(LiveError::Unavailable), |(_, report)| *report)
                {
                    Ok(_) if found.bytes() > left => Err(ShardFailure::TooLarge),
                    Ok(report) => {
                        left -= found.bytes();
                        Ok(CatalogueBody::of(wire_freshness(report), found))
                    }
                    Err(error) => Err(error.into()),
                };
                ShardAnswer { place: *place, outcome }
            });
        Ok(PeerReply::Catalogue(answers.collect()))
    }

    /// This node's current announcement. The windows of a shard are read together with its
    /// freshness, so that the windows cover exactly the records up to there.
    fn announcement(&self) -> NodeAnnouncement {
        let (mut shards, mut stopped) = (Vec::new(), Vec::new());
        let mut windows: HashMap<u64, BTreeSet<i32>> = HashMap::new();
        let mut count = 0;
        for (shard, slot) in self.table.iter() {
            let position = self.table.position(shard, &mut |metric, hour| {
                if count < MAX_WINDOWS {
                    count += usize::from(windows.entry(metric).or_default().insert(hour.0));
                }
            });
            let Ok((from, report)) = position else {
                stopped.extend(slot.stop_reason().map(|_| shard.0));
                continue;
            };
            shards.push(ShardAnnouncement {
                from: ShardCheckpoint::of(shard, &from),
                reach: wire_freshness(report),
            });
        }
        let windows =
            windows.into_iter().map(|(metric, hours)| (metric, hours.into_iter().collect()));
        let windows = (count < MAX_WINDOWS).then(|| windows.collect());
        NodeAnnouncement { shards, stopped, windows, card: ByteBuf::from((self.node_status)()) }
    }
}

impl BodyBuilder {
    fn add(&mut self, info: &Arc<SeriesInfo>, mut row: DeltaRow, left: &mut usize) {
        let known = self.index_of.get(&info.id).copied();
        let key = if known.is_none() { info.series.key() } else { Vec::new() };
        let bytes = row.bytes() + key.len();
        if bytes > *left {
            // Returns what the shard has used so far: shards that fit are not lost with it.
            *left += self.bytes();
            *self = Self { too_large: true, ..Self::default() };
            return;
        }
        *left -= bytes;
        row.series = known.unwrap_or_else(|| {
            self.series.push(ByteBuf::from(key));
            let index = (self.series.len() - 1) as u32;
            self.index_of.insert(info.id, index);
            index
        });
        self.rows.push(row);
    }

    fn bytes(&self) -> usize {
        self.rows.iter().map(DeltaRow::bytes).sum::<usize>()
            + self.series.iter().map(|key| key.len()).sum::<usize>()
    }
}

fn shard_reads(places: &[ShardCheckpoint]) -> Result<Vec<ShardRead>, CodecError> {
    if places.len() > MAX_CHECKPOINTS {
        return Err(CodecError::new(
            "question",
            format!("it names more than {MAX_CHECKPOINTS} shards"),
        ));
    }
    Ok(places.iter().map(|place| (ShardId(place.shard), Some(place.checkpoint()))).collect())
}

/// One answer per position reads for. The shards answer from exactly there or not at all.
fn answers<B>(
    places: &[ShardCheckpoint],
    reports: &ShardResults,
    mut body: impl FnMut(ShardId, ShardFreshness) -> Result<B, ShardFailure>,
) -> Vec<ShardAnswer<B>> {
    let outcome = |place: &ShardCheckpoint| {
        reports.iter().find(|(shard, _)| shard.0 == place.shard).map(|(_, report)| *report)
    };
    let answer = |place: &ShardCheckpoint| {
        let outcome = match outcome(place).unwrap_or(Err(LiveError::Unavailable)) {
            Ok(report) => body(ShardId(place.shard), report),
            Err(error) => Err(error.into()),
        };
        ShardAnswer { place: *place, outcome }
    };
    places.iter().map(answer).collect()
}

fn wire_freshness(report: ShardFreshness) -> WireFreshness {
    let ShardFreshness { behind, recovering, stopped, .. } = report;
    WireFreshness { age_ms: report.age_ms.max(0), behind, recovering, stopped }
}

//! Answering another node out of this node's own slots. Blocks: called off the event loop.
//!
//! An answer stays below the limit of its size: a shard that does not fit says so, instead of
//! cutting the session of all.

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

/// Places and matchers of one question: more than any shard count or query parameter allows.
const MAX_CHECKPOINTS: usize = 4_096;
const MAX_MATCHERS: usize = 64;
/// Hours of metrics that are announced one by one; a node that holds more says nothing about
/// windows.
const MAX_WINDOWS: usize = 16_384;

/// Answers from the slots of this node.
#[derive(Clone)]
pub struct MeshServer {
    /// What it reads.
    pub table: Arc<ShardTable>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// `cluster.max_answer` in bytes.
    pub max_answer: usize,
    /// What this node says of itself to people.
    pub node_status: StatusEncoder,
}

/// Writes what a node says of itself to people: bytes that whoever shows them understands.
pub type StatusEncoder = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// The body of one shard, while it is being read.
#[derive(Default)]
struct BodyBuilder {
    series: Vec<ByteBuf>,
    index_of: HashMap<SeriesId, u32>,
    rows: Vec<DeltaRow>,
    too_large: bool,
}

impl MeshServer {
    /// The answer to a request, in bytes.
    ///
    /// # Errors
    /// If the answer cannot be written down, which is a bug.
    pub fn answer(&self, request: &[u8]) -> Result<Vec<u8>, CodecError> {
        let reply = match wire::decode(request) {
            Ok(PeerRequest::Beat) => Ok(PeerReply::Beat(self.announcement())),
            Ok(PeerRequest::Live(ask)) => self.live(ask),
            Ok(PeerRequest::Accounting(ask)) => self.accounting(&ask),
            Ok(PeerRequest::Catalogue(ask)) => self.catalogue(&ask),
            Err(why) => Err(why),
        };
        wire::encode(&reply.unwrap_or_else(|why| PeerReply::Refused(why.to_string())))
    }

    fn live(&self, ask: LiveRequest) -> Result<PeerReply, CodecError> {
        let asked = shard_reads(&ask.places)?;
        if ask.matchers.len() > MAX_MATCHERS {
            return Err(CodecError::new(
                "question",
                format!("it has more than {MAX_MATCHERS} matchers"),
            ));
        }
        let (tenant, metric) = (ask.tenant.as_str(), ask.metric.as_str());
        let (distinct, quantiles, overflow) = (ask.distinct, ask.quantiles, ask.overflow);
        let question = LiveQuery {
            tenant,
            metric,
            from: Hour(ask.from),
            to: Hour(ask.to),
            distinct,
            quantiles,
            overflow,
        };
        let matchers: Vec<Matcher> =
            ask.matchers.into_iter().map(|text| text.compile()).collect::<Result<_, _>>()?;
        let mut building: HashMap<ShardId, BodyBuilder> = HashMap::new();
        let mut left = self.max_answer;
        let mut visit = |shard: ShardId, info: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| {
            let shard = building.entry(shard).or_default();
            if !shard.too_large {
                shard.add(info, DeltaRow::of(0, hour, rollup, distinct, quantiles), &mut left);
            }
        };
        let reports = self.table.read(&asked, &question, &matchers, &mut visit);
        Ok(PeerReply::Live(answers(&ask.places, &reports, |shard, report| {
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

    fn accounting(&self, ask: &AccountingRequest) -> Result<PeerReply, CodecError> {
        let question =
            AccountingQuery { tenant: &ask.tenant, from: Hour(ask.from), to: Hour(ask.to) };
        let mut hours: HashMap<ShardId, Vec<(i32, [u64; 3])>> = HashMap::new();
        let reports =
            self.table.accounting(&shard_reads(&ask.places)?, &question, &mut |shard, row| {
                let counts = [row.aggregated, row.deduplicated, row.quarantined];
                hours.entry(shard).or_default().push((row.hour.0, counts));
            });
        Ok(PeerReply::Accounting(answers(&ask.places, &reports, |shard, report| {
            let hours = hours.remove(&shard).unwrap_or_default();
            Ok(AccountingBody { reach: wire_freshness(report), hours })
        })))
    }

    fn catalogue(&self, ask: &CatalogueRequest) -> Result<PeerReply, CodecError> {
        let question = ask.query()?;
        let mut left = self.max_answer;
        // One shard after the other: what does not fit is forgotten before the next is read.
        let answers = shard_reads(&ask.places)?.into_iter().zip(&ask.places).map(|(one, place)| {
            let mut found = CatalogueGrowth::default();
            let reports =
                self.table.catalogue(&[one], &question, &mut |growth| found = growth.clone());
            let outcome =
                match reports.first().map_or(Err(LiveError::Unavailable), |(_, report)| *report) {
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

    /// What this node owns now. The windows of a shard are read in one step with how far it
    /// reaches.
    fn announcement(&self) -> NodeAnnouncement {
        let (mut shards, mut stopped) = (Vec::new(), Vec::new());
        let mut windows: HashMap<u64, BTreeSet<i32>> = HashMap::new();
        let mut count = 0;
        for (shard, slot) in self.table.iter() {
            let stood = self.table.position(shard, &mut |metric, hour| {
                if count < MAX_WINDOWS {
                    count += usize::from(windows.entry(metric).or_default().insert(hour.0));
                }
            });
            let Ok((from, report)) = stood else {
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

/// The answers, each with the place that it was asked for: the slots answer from exactly there or
/// not at all.
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

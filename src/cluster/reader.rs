//! Live reads across all nodes: local shards are read directly, remote ones with one call per node.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::directory::PeerDirectory;
use super::peer::{CallOutcome, CallWaiter, MeshPeer, PeerAnswer};
use super::wire::{
    self, AccountingBody, AccountingRequest, CatalogueBody, CatalogueRequest, LiveBody,
    LiveRequest, MatcherText, PeerReply, PeerRequest, ShardAnswer, ShardCheckpoint, WireFreshness,
};
use crate::actors::catalogue::{CatalogueGrowth, CatalogueQuery};
use crate::actors::live::{LiveError, LiveReader, ShardFreshness, ShardRead, ShardResults};
use crate::actors::shard_table::ShardTable;
use crate::clock::{Clock, Stopwatch};
use crate::model::CodecError;
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::matcher::Matcher;
use crate::model::offset::ShardId;
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::{Hour, Millis};
use crate::shards::state::{AccountingQuery, LiveQuery};
use crate::telemetry;

/// Reads this node's own shards and asks its peers for the others.
#[allow(missing_docs, reason = "the names say it")]
pub struct MeshReader {
    /// The shards that this node owns.
    pub table: Arc<ShardTable>,
    /// The owners of the other shards.
    pub directory: Arc<PeerDirectory>,
    pub clock: Arc<dyn Clock>,
    /// Deadline of a call, `cluster.call_timeout`.
    pub call_timeout: Duration,
}

/// One call: a peer and the shards to ask it for.
struct PeerCall {
    peer: Arc<MeshPeer>,
    checkpoints: Vec<ShardCheckpoint>,
}

/// Extracts the shard answers of one kind from a reply, and the freshness from the body of one.
type ReplyPart<B> = (fn(&PeerReply) -> Option<&Vec<ShardAnswer<B>>>, fn(&B) -> WireFreshness);

fn live_part(reply: &PeerReply) -> Option<&Vec<ShardAnswer<LiveBody>>> {
    if let PeerReply::Live(answers) = reply { Some(answers) } else { None }
}

fn accounting_part(reply: &PeerReply) -> Option<&Vec<ShardAnswer<AccountingBody>>> {
    if let PeerReply::Accounting(answers) = reply { Some(answers) } else { None }
}

fn catalogue_part(reply: &PeerReply) -> Option<&Vec<ShardAnswer<CatalogueBody>>> {
    if let PeerReply::Catalogue(answers) = reply { Some(answers) } else { None }
}

/// A validated delta of another node.
type RemoteDelta = (Arc<SeriesInfo>, Hour, Rollup);

/// Calls in flight; a call is identified by its index.
struct PendingCalls {
    calls: Vec<PeerCall>,
    outcomes: Receiver<CallOutcome>,
    watch: Stopwatch,
}

impl MeshReader {
    /// Divides the shards into those to read here and those to ask peers for. Shards without an
    /// available owner are reported at once.
    fn route(
        &self,
        asked: &[ShardRead],
        reports: &mut ShardResults,
    ) -> (Vec<ShardRead>, Vec<PeerCall>) {
        let peers = self.directory.peers();
        let (mut here, mut calls) = (Vec::new(), Vec::<PeerCall>::new());
        for &(shard, checkpoint) in asked {
            let owned = self.table.epoch(shard);
            let elsewhere = match checkpoint {
                Some(at) if owned != Some(at.epoch) => {
                    PeerDirectory::owner(&peers, shard, at.epoch).map(|peer| (peer, at))
                }
                _ => None,
            };
            match elsewhere {
                None => {
                    // Announcements are up to a heartbeat old: the current owner may announce
                    // itself soon.
                    if checkpoint.is_some_and(|at| owned != Some(at.epoch)) {
                        peers.iter().for_each(|peer| peer.poke.notify_one());
                    }
                    let stops = |peer: &Arc<MeshPeer>| {
                        peer.announcement().is_some_and(|announced| announced.has_stopped(shard))
                    };
                    if owned.is_none()
                        && peers.iter().any(|peer| peer.is_available() && stops(peer))
                    {
                        reports.push((shard, Err(LiveError::Stopped)));
                    } else {
                        here.push((shard, checkpoint));
                    }
                }
                Some((peer, _)) if !peer.is_available() => {
                    reports.push((shard, Err(LiveError::Unreachable)))
                }
                Some((peer, at)) => {
                    let place = ShardCheckpoint::of(shard, &at);
                    match calls.iter_mut().find(|call| Arc::ptr_eq(&call.peer, peer)) {
                        Some(call) => call.checkpoints.push(place),
                        None => {
                            calls.push(PeerCall { peer: peer.clone(), checkpoints: vec![place] })
                        }
                    }
                }
            }
        }
        (here, calls)
    }

    /// Starts all calls without waiting.
    fn send(
        &self,
        calls: Vec<PeerCall>,
        request: impl Fn(Vec<ShardCheckpoint>) -> PeerRequest,
    ) -> PendingCalls {
        // One slot per call, so that a peer's task never blocks on it, even after the deadline.
        let (to, outcomes) = sync_channel(calls.len().max(1));
        for (number, call) in calls.iter().enumerate() {
            match wire::encode(&request(call.checkpoints.clone())) {
                Ok(question) => call.peer.send(
                    question,
                    CallWaiter { number, to: to.clone() },
                    self.call_timeout,
                ),
                // No outcome will arrive, so its shards are reported as unreachable.
                Err(why) => tracing::error!(%why, "a question cannot be asked"),
            }
        }
        PendingCalls { calls, outcomes, watch: Stopwatch::start() }
    }

    /// Waits for the calls until the deadline; `take` receives the answer of each shard.
    fn receive<B>(
        &self,
        PendingCalls { calls, outcomes, watch }: PendingCalls,
        reports: &mut ShardResults,
        part: ReplyPart<B>,
        mut take: impl FnMut(ShardId, &B) -> Result<(), CodecError>,
    ) {
        let mut waiting: HashMap<usize, PeerCall> = calls.into_iter().enumerate().collect();
        while !waiting.is_empty() {
            let Ok((number, outcome)) =
                outcomes.recv_timeout(self.call_timeout.saturating_sub(watch.elapsed()))
            else {
                break;
            };
            let Some(call) = waiting.remove(&number) else { continue };
            match outcome {
                Ok(answer) => report_answers(&call, &answer, reports, part, &mut take),
                Err(error) => report_failure(&call, error, reports),
            }
        }
        waiting.values().for_each(|call| report_failure(call, LiveError::Unreachable, reports));
    }

    /// Drops calls to peers that hold nothing the query matches: the store has all of it. Only for
    /// windows that are closed, because announcements are up to a heartbeat old and current
    /// windows must not be.
    ///
    /// Announced windows are of all generations together: rules change neither the metric nor the
    /// time of an event, so whatever a generation holds of a window is announced under that window.
    /// A shard that holds nothing of it has no batch that could lack a generation there either.
    fn skip_empty_calls(
        &self,
        calls: &mut Vec<PeerCall>,
        question: &LiveQuery<'_>,
        reports: &mut ShardResults,
    ) {
        let now = self.clock.reading();
        if question.to > Hour::of(now.wall) {
            return;
        }
        calls.retain_mut(|call| {
            let Some(announced) = call.peer.announcement() else { return true };
            call.checkpoints.retain(|place| {
                let at = (place.shard, &place.checkpoint());
                let nothing = announced.holds_nothing(
                    at,
                    (question.tenant, question.metric),
                    (question.from, question.to),
                );
                if let Some(reach) = nothing {
                    // The freshness was announced some time ago and has aged since.
                    let age_ms = reach.age_ms.max(0)
                        + now.uptime.saturating_sub(announced.requested_at).max(0);
                    reports.push((
                        ShardId(place.shard),
                        Ok(freshness(WireFreshness { age_ms, ..reach }, now.wall)),
                    ));
                }
                nothing.is_none()
            });
            if call.checkpoints.is_empty() {
                metrics::counter!(telemetry::MESH_CALLS, "outcome" => "left_out").increment(1);
            }
            !call.checkpoints.is_empty()
        });
    }
}

fn report_failure(call: &PeerCall, error: LiveError, reports: &mut ShardResults) {
    reports.extend(call.checkpoints.iter().map(|place| (ShardId(place.shard), Err(error))));
}

/// Reports a peer's answers. An answer counts only if it is for exactly the position asked for.
fn report_answers<B>(
    call: &PeerCall,
    received: &PeerAnswer,
    reports: &mut ShardResults,
    (part, reach): ReplyPart<B>,
    take: &mut impl FnMut(ShardId, &B) -> Result<(), CodecError>,
) {
    let refused = |why: &str| {
        metrics::counter!(telemetry::MESH_REFUSED).increment(1);
        tracing::warn!(peer = %call.peer.name, why, "an answer of another node is refused");
    };
    let answers = match received.reply() {
        Ok(PeerReply::Overloaded) => return report_failure(call, LiveError::Overloaded, reports),
        Ok(PeerReply::Refused(why)) => {
            refused(why);
            return report_failure(call, LiveError::Unreachable, reports);
        }
        Ok(reply) => part(reply),
        Err(why) => {
            refused(&why.to_string());
            None
        }
    };
    for place in &call.checkpoints {
        let answer = answers
            .and_then(|answers| answers.iter().find(|answer| answer.place.shard == place.shard));
        let outcome = match answer {
            None => Err(LiveError::Unreachable),
            Some(answer) if answer.place != *place => {
                refused("it is of another epoch or place than the question");
                Err(LiveError::StaleCheckpoint)
            }
            Some(answer) => match &answer.outcome {
                Err(failure) => Err((*failure).into()),
                Ok(body) => take(ShardId(place.shard), body)
                    .map(|()| freshness(reach(body), received.sent_at))
                    .map_err(|why| refused(&why.to_string()))
                    .map_err(|()| LiveError::Unreachable),
            },
        };
        reports.push((ShardId(place.shard), outcome));
    }
}

/// Counts the age back from the time of the request: the owner read its clock later than that.
fn freshness(reach: WireFreshness, sent_at: Millis) -> ShardFreshness {
    let age_ms = reach.age_ms.max(0);
    let WireFreshness { behind, recovering, stopped, .. } = reach;
    ShardFreshness { as_of: sent_at.saturating_sub(age_ms), age_ms, behind, recovering, stopped }
}

/// Validates the deltas of an answer. Anything that was not asked for rejects all of it: no node
/// may put another tenant's numbers into an answer.
fn deltas(body: &LiveBody, question: &LiveQuery<'_>) -> Result<Vec<RemoteDelta>, CodecError> {
    let foreign = |what: String| {
        CodecError::new("live answer", format!("it holds {what}, which was not asked for"))
    };
    let infos: Vec<Arc<SeriesInfo>> = body
        .series
        .iter()
        .map(|key| {
            let series = Series::from_key(key)?;
            if series.tenant != question.tenant || series.metric != question.metric {
                return Err(foreign(format!("metric {:?}", series.metric)));
            }
            Ok(Arc::new(SeriesInfo { id: SeriesId::of_key(key), series }))
        })
        .collect::<Result<_, CodecError>>()?;
    let delta = |row: &super::wire::DeltaRow| {
        let hour = Hour(row.hour);
        if hour < question.from || question.to <= hour {
            return Err(foreign(format!("hour {}", row.hour)));
        }
        let info = infos
            .get(row.series as usize)
            .ok_or_else(|| foreign("a series without a key".to_owned()))?;
        Ok((info.clone(), hour, row.rollup()?))
    };
    body.rows.iter().map(delta).collect()
}

fn accounting_rows<'b>(
    body: &'b AccountingBody,
    question: &AccountingQuery<'b>,
) -> Result<Vec<AccountingDelta>, CodecError> {
    let rows: Vec<_> = body.rows(question.tenant).collect();
    match rows.iter().find(|row| row.hour < question.from || question.to <= row.hour) {
        Some(row) => Err(CodecError::new(
            "accounting",
            format!("it holds hour {}, which was not asked for", row.hour.0),
        )),
        None => Ok(rows),
    }
}

impl LiveReader for MeshReader {
    fn shard_count(&self) -> u32 {
        self.table.shard_count()
    }

    fn read(
        &self,
        asked: &[ShardRead],
        question: &LiveQuery<'_>,
        matchers: &[Matcher],
        visit: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> ShardResults {
        let mut reports = Vec::with_capacity(asked.len());
        let (here, mut calls) = self.route(asked, &mut reports);
        self.skip_empty_calls(&mut calls, question, &mut reports);
        let request = |places| {
            PeerRequest::Live(LiveRequest {
                tenant: question.tenant.to_owned(),
                metric: question.metric.to_owned(),
                from: question.from.0,
                to: question.to.0,
                distinct: question.distinct,
                quantiles: question.quantiles,
                overflow: question.overflow,
                matchers: matchers.iter().map(MatcherText::from).collect(),
                places,
                generations: LiveRequest::generations_of(question.served),
            })
        };
        // Sent first, so that the peers work while this node reads its own shards.
        let sent = self.send(calls, request);
        reports.extend(self.table.read(&here, question, matchers, visit));
        self.receive(sent, &mut reports, (live_part, |body| body.reach), |shard, body| {
            // All of a shard's deltas are checked before the first is visited.
            deltas(body, question)?
                .iter()
                .for_each(|(info, hour, rollup)| visit(shard, info, *hour, rollup));
            Ok(())
        });
        reports
    }

    fn catalogue(
        &self,
        asked: &[ShardRead],
        question: &CatalogueQuery<'_>,
        visit: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults {
        let mut reports = Vec::with_capacity(asked.len());
        let (here, calls) = self.route(asked, &mut reports);
        let sent = self
            .send(calls, |places| PeerRequest::Catalogue(CatalogueRequest::of(question, places)));
        reports.extend(self.table.catalogue(&here, question, visit));
        self.receive(sent, &mut reports, (catalogue_part, |body| body.reach), |_, body| {
            visit(&body.growth(question)?);
            Ok(())
        });
        reports
    }

    fn accounting(
        &self,
        asked: &[ShardRead],
        question: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults {
        let mut reports = Vec::with_capacity(asked.len());
        let (here, calls) = self.route(asked, &mut reports);
        let request = |places| {
            let tenant = question.tenant.to_owned();
            PeerRequest::Accounting(AccountingRequest {
                tenant,
                from: question.from.0,
                to: question.to.0,
                places,
            })
        };
        let sent = self.send(calls, request);
        reports.extend(self.table.accounting(&here, question, visit));
        self.receive(sent, &mut reports, (accounting_part, |body| body.reach), |shard, body| {
            accounting_rows(body, question)?.iter().for_each(|row| visit(shard, row));
            Ok(())
        });
        reports
    }
}

//! Live reads over all nodes: local shards are read here, those of other nodes are asked for in one
//! call per node.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::directory::Directory;
use super::peer::{Heard, Outcome, Peer, Waiting};
use super::wire::{
    self, AccountingAsk, AccountingBody, CatalogueAsk, CatalogueBody, LiveAsk, LiveBody,
    MatcherText, Place, Reach, Reply, Request, ShardAnswer,
};
use crate::actors::catalogue::{CatalogueQuestion, Growth};
use crate::actors::live::{Asked, LiveError, LiveReader, Reports, ShardReport};
use crate::actors::slots::Slots;
use crate::clock::{Clock, Stopwatch};
use crate::model::CodecError;
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::matcher::Matcher;
use crate::model::offset::ShardId;
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::{Hour, Millis};
use crate::shards::state::{AccountingQuestion, LiveQuestion};
use crate::telemetry;

/// Reads this node's slots and asks its peers.
pub struct MeshReader {
    /// The shards owned here.
    pub slots: Arc<Slots>,
    /// Who owns the others.
    pub directory: Arc<Directory>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// `cluster.call_timeout`.
    pub call_timeout: Duration,
}

/// What is to be asked of one peer.
struct Call {
    peer: Arc<Peer>,
    places: Vec<Place>,
}

/// The part of a reply that answers a question, and how far the body of a shard in it reaches.
type Part<B> = (fn(&Reply) -> Option<&Vec<ShardAnswer<B>>>, fn(&B) -> Reach);

fn live_part(reply: &Reply) -> Option<&Vec<ShardAnswer<LiveBody>>> {
    if let Reply::Live(answers) = reply { Some(answers) } else { None }
}

fn accounting_part(reply: &Reply) -> Option<&Vec<ShardAnswer<AccountingBody>>> {
    if let Reply::Accounting(answers) = reply { Some(answers) } else { None }
}

fn catalogue_part(reply: &Reply) -> Option<&Vec<ShardAnswer<CatalogueBody>>> {
    if let Reply::Catalogue(answers) = reply { Some(answers) } else { None }
}

/// A delta of another node, checked.
type Delta = (Arc<SeriesInfo>, Hour, Rollup);

/// The calls on their way.
struct Calls {
    calls: Vec<Call>,
    heard: Receiver<Outcome>,
    watch: Stopwatch,
}

impl MeshReader {
    /// Divides the shards: those to read here, and those to ask for. What nobody answers for is
    /// reported at once.
    fn divide(&self, asked: &[Asked], reports: &mut Reports) -> (Vec<Asked>, Vec<Call>) {
        let peers = self.directory.peers();
        let (mut here, mut calls) = (Vec::new(), Vec::<Call>::new());
        for &(shard, checkpoint) in asked {
            let owned = self.slots.epoch(shard);
            let elsewhere = match checkpoint {
                Some(at) if owned != Some(at.epoch) => {
                    Directory::owner(&peers, shard, at.epoch).map(|peer| (peer, at))
                }
                _ => None,
            };
            match elsewhere {
                None => {
                    // What was announced is up to a heartbeat old: whoever owns it now may say so
                    // soon.
                    if checkpoint.is_some_and(|at| owned != Some(at.epoch)) {
                        peers.iter().for_each(|peer| peer.nudged.notify_one());
                    }
                    let stops = |peer: &Arc<Peer>| {
                        peer.announced().is_some_and(|announced| announced.stops(shard))
                    };
                    if owned.is_none() && peers.iter().any(|peer| peer.answers() && stops(peer)) {
                        reports.push((shard, Err(LiveError::Stopped)));
                    } else {
                        here.push((shard, checkpoint));
                    }
                }
                Some((peer, _)) if !peer.answers() => {
                    reports.push((shard, Err(LiveError::Unreachable)))
                }
                Some((peer, at)) => {
                    let place = Place::of(shard, &at);
                    match calls.iter_mut().find(|call| Arc::ptr_eq(&call.peer, peer)) {
                        Some(call) => call.places.push(place),
                        None => calls.push(Call { peer: peer.clone(), places: vec![place] }),
                    }
                }
            }
        }
        (here, calls)
    }

    /// Sends every call on its way.
    fn send(&self, calls: Vec<Call>, request: impl Fn(Vec<Place>) -> Request) -> Calls {
        let (to, heard) = sync_channel(calls.len().max(1));
        for (number, call) in calls.iter().enumerate() {
            match wire::encode(&request(call.places.clone())) {
                Ok(question) => {
                    call.peer.ask(question, Waiting { number, to: to.clone() }, self.call_timeout)
                }
                // Nobody answers it: its shards are reported as such.
                Err(why) => tracing::error!(%why, "a question cannot be asked"),
            }
        }
        Calls { calls, heard, watch: Stopwatch::start() }
    }

    /// Waits for the calls, until the deadline; `take` is given each place with its answer.
    fn receive<B>(
        &self,
        Calls { calls, heard, watch }: Calls,
        reports: &mut Reports,
        part: Part<B>,
        mut take: impl FnMut(ShardId, &B) -> Result<(), CodecError>,
    ) {
        let mut waiting: HashMap<usize, Call> = calls.into_iter().enumerate().collect();
        while !waiting.is_empty() {
            let Ok((number, outcome)) =
                heard.recv_timeout(self.call_timeout.saturating_sub(watch.elapsed()))
            else {
                break;
            };
            let Some(call) = waiting.remove(&number) else { continue };
            match outcome {
                Ok(heard) => answered(&call, &heard, reports, part, &mut take),
                Err(error) => failed(&call, error, reports),
            }
        }
        waiting.values().for_each(|call| failed(call, LiveError::Unreachable, reports));
    }

    /// Leaves out the calls to peers that hold nothing of what is asked: the store has it all.
    /// Closed windows only, because what was announced is up to a heartbeat old, and the
    /// present should not be.
    fn leave_out(&self, calls: &mut Vec<Call>, question: &LiveQuestion<'_>, reports: &mut Reports) {
        let now = self.clock.reading();
        if question.to > Hour::of(now.wall) {
            return;
        }
        calls.retain_mut(|call| {
            let Some(announced) = call.peer.announced() else { return true };
            call.places.retain(|place| {
                let at = (place.shard, &place.checkpoint());
                let nothing = announced.holds_nothing(
                    at,
                    (question.tenant, question.metric),
                    (question.from, question.to),
                );
                if let Some(reach) = nothing {
                    // It has grown older since it was announced.
                    let age_ms =
                        reach.age_ms.max(0) + now.uptime.saturating_sub(announced.asked_at).max(0);
                    reports.push((
                        ShardId(place.shard),
                        Ok(report(Reach { age_ms, ..reach }, now.wall)),
                    ));
                }
                nothing.is_none()
            });
            if call.places.is_empty() {
                metrics::counter!(telemetry::MESH_CALLS, "outcome" => "left_out").increment(1);
            }
            !call.places.is_empty()
        });
    }
}

fn failed(call: &Call, error: LiveError, reports: &mut Reports) {
    reports.extend(call.places.iter().map(|place| (ShardId(place.shard), Err(error))));
}

/// Takes over what a peer has answered: for each place that was asked, exactly that place, or
/// nothing.
fn answered<B>(
    call: &Call,
    heard: &Heard,
    reports: &mut Reports,
    (part, reach): Part<B>,
    take: &mut impl FnMut(ShardId, &B) -> Result<(), CodecError>,
) {
    let refused = |why: &str| {
        metrics::counter!(telemetry::MESH_REFUSED).increment(1);
        tracing::warn!(peer = %call.peer.name, why, "an answer of another node is refused");
    };
    let answers = match heard.reply() {
        Ok(Reply::Overloaded) => return failed(call, LiveError::Overloaded, reports),
        Ok(Reply::Refused(why)) => {
            refused(why);
            return failed(call, LiveError::Unreachable, reports);
        }
        Ok(reply) => part(reply),
        Err(why) => {
            refused(&why.to_string());
            None
        }
    };
    for place in &call.places {
        let answer = answers
            .and_then(|answers| answers.iter().find(|answer| answer.place.shard == place.shard));
        let outcome = match answer {
            None => Err(LiveError::Unreachable),
            Some(answer) if answer.place != *place => {
                refused("it is of another epoch or place than the question");
                Err(LiveError::Moved)
            }
            Some(answer) => match &answer.outcome {
                Err(failure) => Err((*failure).into()),
                Ok(body) => take(ShardId(place.shard), body)
                    .map(|()| report(reach(body), heard.sent_at))
                    .map_err(|why| refused(&why.to_string()))
                    .map_err(|()| LiveError::Unreachable),
            },
        };
        reports.push((ShardId(place.shard), outcome));
    }
}

/// The age counts back from the moment of asking: the owner has read its clock later.
fn report(reach: Reach, sent_at: Millis) -> ShardReport {
    let age_ms = reach.age_ms.max(0);
    let Reach { behind, recovering, stopped, .. } = reach;
    ShardReport { as_of: sent_at.saturating_sub(age_ms), age_ms, behind, recovering, stopped }
}

/// The deltas of a body, if all of them belong to the question: no node puts another tenant's
/// numbers into an answer.
fn deltas(body: &LiveBody, question: &LiveQuestion<'_>) -> Result<Vec<Delta>, CodecError> {
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
    let delta = |row: &super::wire::Row| {
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

fn books<'b>(
    body: &'b AccountingBody,
    question: &AccountingQuestion<'b>,
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
        self.slots.shard_count()
    }

    fn read(
        &self,
        asked: &[Asked],
        question: &LiveQuestion<'_>,
        matchers: &[Matcher],
        visit: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Reports {
        let mut reports = Vec::with_capacity(asked.len());
        let (here, mut calls) = self.divide(asked, &mut reports);
        self.leave_out(&mut calls, question, &mut reports);
        let request = |places| {
            Request::Live(LiveAsk {
                tenant: question.tenant.to_owned(),
                metric: question.metric.to_owned(),
                from: question.from.0,
                to: question.to.0,
                distinct: question.distinct,
                quantiles: question.quantiles,
                overflow: question.overflow,
                matchers: matchers.iter().map(MatcherText::from).collect(),
                places,
            })
        };
        let sent = self.send(calls, request);
        reports.extend(self.slots.read(&here, question, matchers, visit));
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
        asked: &[Asked],
        question: &CatalogueQuestion<'_>,
        visit: &mut dyn FnMut(&Growth),
    ) -> Reports {
        let mut reports = Vec::with_capacity(asked.len());
        let (here, calls) = self.divide(asked, &mut reports);
        let sent =
            self.send(calls, |places| Request::Catalogue(CatalogueAsk::of(question, places)));
        reports.extend(self.slots.catalogue(&here, question, visit));
        self.receive(sent, &mut reports, (catalogue_part, |body| body.reach), |_, body| {
            visit(&body.growth(question)?);
            Ok(())
        });
        reports
    }

    fn accounting(
        &self,
        asked: &[Asked],
        question: &AccountingQuestion<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> Reports {
        let mut reports = Vec::with_capacity(asked.len());
        let (here, calls) = self.divide(asked, &mut reports);
        let request = |places| {
            let tenant = question.tenant.to_owned();
            Request::Accounting(AccountingAsk {
                tenant,
                from: question.from.0,
                to: question.to.0,
                places,
            })
        };
        let sent = self.send(calls, request);
        reports.extend(self.slots.accounting(&here, question, visit));
        self.receive(sent, &mut reports, (accounting_part, |body| body.reach), |shard, body| {
            books(body, question)?.iter().for_each(|row| visit(shard, row));
            Ok(())
        });
        reports
    }
}

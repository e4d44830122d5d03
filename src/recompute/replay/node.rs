//! What a node fills, and the gate that its replays pass before each step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::pace::{FillClaim, FillTurns, FlushWatch, ReplayPace};
use super::shard_replay::{ReplayProgress, ReplaySources, ReplayWait};
use crate::actors::shard_table::ShardTable;
use crate::clock::Clock;
use crate::model::generation::{GenerationId, ReplayKey};
use crate::model::offset::{Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::LogReader;
use crate::persistence::store::StoreError;
use crate::telemetry::{self, RepeatedLog};

/// When replays stand aside, and when they take over.
#[derive(Debug, Clone, Copy)]
pub struct ReplayTiming {
    /// A flush is late if its shard has had records to flush for longer, in milliseconds.
    pub late_after_ms: i64,
    /// A shard of another node is filled here if its cursor has not moved for so long.
    pub idle_after_ms: i64,
    /// `replay.max_rate`: events per second of the node; 0 is no limit.
    pub max_rate: u64,
    /// Replays that read at a time. Each holds an object, so this bounds their memory.
    pub at_once: usize,
}

/// What a replay of this node does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayActivity {
    /// It waits for its turn.
    Queued,
    /// It reads.
    Reading,
    /// It waits for something outside.
    Waiting(ReplayWait),
}

/// A replay of this node, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ReplayReport {
    pub activity: ReplayActivity,
    /// `None` until it has read the store.
    pub progress: Option<ReplayProgress>,
}

struct Shared {
    pace: ReplayPace,
    flushes: FlushWatch,
    turns: FillTurns<ReplayKey>,
    late: Vec<ShardId>,
    reports: BTreeMap<ReplayKey, ReplayReport>,
}

/// A flush that is late is late for a while.
static LATE_LOG: RepeatedLog = RepeatedLog::new();

fn log_late(late: &[ShardId]) {
    let Some(first) = late.first() else { return };
    if let Some(silent) = LATE_LOG.due("late") {
        tracing::warn!(
            shard = first.0,
            late = late.len(),
            silent,
            "flushes of shards are late, the first is named: replays stand aside (told once a \
             minute)"
        );
    }
}

/// What a replay waits for, in words; `late` are the shards for whose flushes all stand aside.
fn wait_text(report: &ReplayReport, late: &[ShardId]) -> Option<String> {
    match (&report.activity, late) {
        // It is still so when flushes are in time again, and somebody may have to do something.
        (ReplayActivity::Waiting(wait), _) => Some(wait.to_string()),
        (_, []) => None,
        (_, [first, others @ ..]) => {
            let others = match others.len() {
                0 => String::new(),
                1 => " and of one other shard".to_owned(),
                more => format!(" and of {more} other shards"),
            };
            Some(format!(
                "ingest comes first: the flush of shard {first}{others} is late, see `rollmill \
                 status`. The replay goes on by itself"
            ))
        }
    }
}

/// How many replays wait, by reason; reasons that none has are there with 0.
fn waits_by_reason<'a>(
    reports: impl Iterator<Item = &'a ReplayReport>,
) -> [(&'static str, usize); ReplayWait::REASONS.len()] {
    let mut waits = ReplayWait::REASONS.map(|reason| (reason, 0));
    for report in reports {
        let ReplayActivity::Waiting(wait) = &report.activity else { continue };
        for (reason, count) in &mut waits {
            *count += usize::from(*reason == wait.reason());
        }
    }
    waits
}

/// The replays of a node.
pub struct ReplayNode {
    pub(super) sources: ReplaySources,
    log: Arc<dyn LogReader>,
    table: Arc<ShardTable>,
    pub(super) clock: Arc<dyn Clock>,
    timing: ReplayTiming,
    pub(super) permits: Arc<Semaphore>,
    shared: Mutex<Shared>,
}

impl ReplayNode {
    /// A node that fills from these sources.
    pub fn new(
        sources: ReplaySources,
        log: Arc<dyn LogReader>,
        table: Arc<ShardTable>,
        clock: Arc<dyn Clock>,
        timing: ReplayTiming,
    ) -> Arc<Self> {
        let shared = Shared {
            pace: ReplayPace::new(timing.max_rate),
            flushes: FlushWatch::default(),
            turns: FillTurns::default(),
            late: Vec::new(),
            reports: BTreeMap::new(),
        };
        Arc::new(Self {
            sources,
            log,
            table,
            clock,
            timing,
            permits: Arc::new(Semaphore::new(timing.at_once.max(1))),
            shared: Mutex::new(shared),
        })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Each part is consistent after every change, so a poisoned lock can be used.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replays that this node should run now. Also notes whether flushes are late. Called about
    /// once a second; blocks.
    ///
    /// # Errors
    /// If the store does not answer.
    pub fn wanted(&self) -> Result<BTreeSet<ReplayKey>, StoreError> {
        let mut snapshot = self.sources.store.snapshot()?;
        let book = snapshot.generation_book()?;
        let (mut unfilled, mut left) = (Vec::new(), 0);
        // One that is served, or kept for an undo, was complete before it was applied.
        for id in book.generations().keys().filter(|id| book.is_built(**id)) {
            for (shard, at) in snapshot.fill_progress(*id)? {
                if !at.is_complete() {
                    left += at.cut - at.cursor;
                    unfilled.push(((*id, shard), at.cursor));
                }
            }
        }
        let checkpoints = if unfilled.is_empty() { Vec::new() } else { snapshot.checkpoints()? };
        drop(snapshot);
        let now = self.clock.uptime();
        let mut shared = self.shared();
        let late_after = self.timing.late_after_ms;
        shared.late =
            shared.flushes.late(&checkpoints, |shard| self.log_end(shard), now, late_after);
        log_late(&shared.late);
        let claims: Vec<_> = unfilled
            .into_iter()
            .map(|(key, cursor)| (key, cursor, self.claim(&shared, key, cursor)))
            .collect();
        let chosen = shared.turns.choose(&claims, now, self.timing.idle_after_ms);
        let wanted: BTreeSet<ReplayKey> = chosen.into_iter().collect();
        shared.reports.retain(|key, _| wanted.contains(key));
        metrics::gauge!(telemetry::REPLAY_RECORDS_LEFT).set(left as f64);
        metrics::gauge!(telemetry::REPLAYS_RUNNING).set(wanted.len() as f64);
        for (reason, waiting) in waits_by_reason(shared.reports.values()) {
            metrics::gauge!(telemetry::REPLAYS_WAITING, "reason" => reason).set(waiting as f64);
        }
        metrics::gauge!(telemetry::REPLAYS_PAUSED).set(f64::from(!shared.late.is_empty()));
        Ok(wanted)
    }

    /// The end of a shard's log; none that this node's log does not have is ever late.
    fn log_end(&self, shard: ShardId) -> Offset {
        if shard.0 < self.log.shard_count() { self.log.end(shard) } else { 0 }
    }

    /// `cursor` is the stored one, read before the reports. If somebody else has moved it, this
    /// node is not the one that fills the shard.
    fn claim(&self, shared: &Shared, key: ReplayKey, cursor: Offset) -> FillClaim {
        if self.owns(key.1) {
            return FillClaim::Owner;
        }
        let is_mine = |report: &ReplayReport| {
            report.progress.is_none_or(|progress| progress.stored.cursor >= cursor)
        };
        match shared.reports.get(&key) {
            Some(report) if is_mine(report) => FillClaim::Filler,
            _ => FillClaim::Other,
        }
    }

    /// The shards for whose late flushes the replays of this node stand aside.
    pub fn late_shards(&self) -> Vec<ShardId> {
        self.shared().late.clone()
    }

    /// What the replays of a generation wait for, of those that run here; by shard, for people.
    pub fn waits(&self, id: GenerationId) -> BTreeMap<ShardId, String> {
        let shared = self.shared();
        let of_generation = shared.reports.iter().filter(|((of, _), _)| *of == id);
        let waits = of_generation
            .filter_map(|((_, shard), report)| Some((*shard, wait_text(report, &shared.late)?)));
        waits.collect()
    }

    /// Whether this node owns the shard now.
    pub(super) fn owns(&self, shard: ShardId) -> bool {
        self.table.epoch(shard).is_some()
    }

    /// Nothing of this replay runs here any more.
    pub(super) fn forget(&self, key: ReplayKey) {
        self.shared().reports.remove(&key);
    }

    pub(super) fn report(&self, key: ReplayKey, report: ReplayReport) {
        self.shared().reports.insert(key, report);
    }

    /// For how many milliseconds a replay may not read, because of the rate.
    pub(super) fn wait_ms(&self, now: Millis) -> i64 {
        self.shared().pace.wait_ms(now)
    }

    /// Notes events that were read; returns for how long nothing more may be read.
    pub(super) fn take(&self, events: u64, now: Millis) -> i64 {
        metrics::counter!(telemetry::REPLAY_EVENTS).increment(events);
        self.shared().pace.take(events, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_unless_the_replay_waits_for_something_of_its_own() {
        let told = |activity, late: &[u32]| {
            let late: Vec<_> = late.iter().copied().map(ShardId).collect();
            wait_text(&ReplayReport { activity, progress: None }, &late)
        };
        for activity in [ReplayActivity::Queued, ReplayActivity::Reading] {
            assert_eq!(told(activity.clone(), &[]), None);
            let of = |late| told(activity.clone(), late).unwrap_or_default();
            assert!(of(&[7]).contains("the flush of shard 7 is late"), "{}", of(&[7]));
            assert!(of(&[7, 9]).contains("shard 7 and of one other shard is late"));
            assert!(of(&[7, 9, 4]).contains("shard 7 and of 2 other shards is late"));
        }
        let waiting = ReplayActivity::Waiting(ReplayWait::Object("gone".to_owned()));
        assert_eq!(told(waiting, &[7]), Some("gone".to_owned()));
    }

    #[test]
    fn waits_are_counted_by_the_reasons_that_the_metric_has() {
        let reported = |activity| ReplayReport { activity, progress: None };
        let waits = [
            ReplayWait::Cut,
            ReplayWait::Archive(7),
            ReplayWait::Object("gone".to_owned()),
            ReplayWait::Object("damaged".to_owned()),
            ReplayWait::Store("full".to_owned()),
            ReplayWait::Expired(7),
            ReplayWait::Undecidable { path: "a".to_owned() },
            ReplayWait::Rules("new".to_owned()),
        ];
        let mut reports: Vec<_> =
            waits.map(|wait| reported(ReplayActivity::Waiting(wait))).into_iter().collect();
        reports.extend([reported(ReplayActivity::Queued), reported(ReplayActivity::Reading)]);
        let counted = waits_by_reason(reports.iter());
        assert_eq!(counted.map(|(_, count)| count), [1, 1, 2, 1, 1, 1, 1]);
        let metric = telemetry::METRICS.iter().find(|one| one.name == telemetry::REPLAYS_WAITING);
        let known = metric.and_then(|metric| metric.label).expect("by reason");
        assert_eq!(counted.map(|(reason, _)| reason), known.1);
        assert!(waits_by_reason([].iter()).iter().all(|(_, count)| *count == 0));
    }
}

//! What a shard does after it has died repeatedly at the same checkpoint: it takes smaller steps,
//! then one event at a time.

use crate::model::flush::SuspectEvent;
use crate::model::offset::Offset;

/// Starts at one checkpoint that count as bad luck.
const PATIENCE: u32 = 3;
/// Records between two flushes in the first careful start; 64 and 1 in the next two.
const FIRST_STEP: usize = 4096;
/// Bits by which the step shrinks per start.
const SHRINK_BITS: u32 = 6;

/// Deaths while applying one event that are no coincidence. A process killed from outside dies over
/// whatever event is marked at that moment, and one that is killed every 60 ms spends perhaps a
/// third of its life between a mark and the flush that clears it. With two deaths, one in ten test
/// runs of 300 kills on a busy machine quarantined an innocent event. Eight such deaths in a row
/// have a probability of one in 15,000.
const DEATHS: u32 = 8;

/// How a shard works through its log.
#[allow(missing_docs, reason = "the name says it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplyMode {
    /// As fast as it can.
    Normal,
    /// At most `step` records between two flushes, so that the checkpoint moves close
    /// to the poison event.
    Careful { step: usize },
    /// One record, event by event; each is recorded in the store before it is applied.
    Isolating,
}

impl ApplyMode {
    /// Most records between two flushes; `None` means no limit.
    pub fn max_records(self) -> Option<usize> {
        match self {
            ApplyMode::Normal => None,
            ApplyMode::Careful { step } => Some(step),
            ApplyMode::Isolating => Some(1),
        }
    }
}

/// Mode of the start number `attempts` at one checkpoint, counted from 1.
pub fn mode_for(attempts: u32) -> ApplyMode {
    if attempts <= PATIENCE {
        return ApplyMode::Normal;
    }
    // A shift by 64 bits or more would overflow.
    match FIRST_STEP >> (attempts - PATIENCE - 1).saturating_mul(SHRINK_BITS).min(63) {
        0 => ApplyMode::Isolating,
        step => ApplyMode::Careful { step },
    }
}

/// What to do with an event that is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoisonStep {
    /// Apply it.
    Apply,
    /// Apply it to what is served, and not to the generations that take it in and are only built:
    /// their rules may be what the shard dies of.
    ApplyToServed,
    /// Quarantine it.
    SetAside,
}

/// Decides about an event. `can_lighten` says whether it can be applied with less than the shard
/// has died with: without generations that take it in and that nobody reads. It is asked only where
/// that decides.
///
/// A shard that flushes without them has not shown that they were the reason, unless the flush is
/// of an event that it was sure to die of. So this start comes where the event would be set aside,
/// and not before the shard closes in: a few kills from outside cost no replay (ADR 41).
pub fn poison_step(
    suspects: &[SuspectEvent],
    offset: Offset,
    index: u32,
    can_lighten: impl FnOnce() -> bool,
) -> PoisonStep {
    let suspect = suspects.iter().find(|s| (s.offset, s.index) == (offset, index));
    match suspect.map_or(0, |suspect| suspect.deaths) {
        0..DEATHS => PoisonStep::Apply,
        DEATHS if can_lighten() => PoisonStep::ApplyToServed,
        _ => PoisonStep::SetAside,
    }
}

/// Whether the shard died at least [`DEATHS`] times while an event was applied alone.
pub fn is_poison(suspects: &[SuspectEvent], offset: Offset, index: u32) -> bool {
    poison_step(suspects, offset, index, || false) == PoisonStep::SetAside
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::flush::{Claim, FlushBatch, LogRecord};
    use crate::model::offset::{Checkpoint, Epoch, LogId, ShardId};
    use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
    use crate::model::rollup::Rollup;
    use crate::model::series::{Series, SeriesId};
    use crate::model::served::ServedHours;
    use crate::model::window::Hour;
    use crate::shards::series::SeriesAdmission;
    use crate::shards::state::{LiveQuery, ShardEffect, ShardInput, ShardLimits, ShardState};

    #[test]
    fn steps_shrink_to_a_single_event() {
        let modes: Vec<_> = [1, 3, 4, 5, 6, 7, u32::MAX].into_iter().map(mode_for).collect();
        let careful = |step| ApplyMode::Careful { step };
        assert_eq!(
            modes,
            [
                ApplyMode::Normal,
                ApplyMode::Normal,
                careful(4096),
                careful(64),
                careful(1),
                ApplyMode::Isolating,
                ApplyMode::Isolating
            ]
        );
    }

    #[test]
    fn what_nobody_reads_is_left_out_once_before_an_event_is_set_aside() {
        let step = |deaths, unserved| {
            let suspects = [SuspectEvent { offset: 5, index: 1, deaths }];
            assert_eq!(poison_step(&suspects, 5, 2, || unserved), PoisonStep::Apply);
            poison_step(&suspects, 5, 1, || unserved)
        };
        for unserved in [false, true] {
            assert_eq!(step(DEATHS - 1, unserved), PoisonStep::Apply);
            assert_eq!(step(DEATHS + 1, unserved), PoisonStep::SetAside);
            assert_eq!(step(u32::MAX, unserved), PoisonStep::SetAside, "as it was recorded");
        }
        assert_eq!(step(DEATHS, true), PoisonStep::ApplyToServed);
        assert_eq!(step(DEATHS, false), PoisonStep::SetAside);
    }

    const LOG: LogId = LogId([1; 16]);
    const POISON: [&str; 2] = ["p-1", "p-2"];

    fn record() -> LogRecord {
        let series = Series::new("t", "m", []);
        let key = series.key();
        let id = SeriesId::of_key(&key);
        let users = ["a", POISON[0], "b", POISON[1], "c"];
        let event = |user| RecordEvent {
            series: 0,
            timestamp: 0,
            value: None,
            user: Some(user),
            id: None,
            raw: b"{}",
        };
        let events = users.into_iter().map(event).collect();
        let series = vec![SeriesEntry { id: &id.0, key: &key }];
        let mut payload = Vec::new();
        record::encode(
            &Record {
                version: record::VERSION,
                tenant: "t",
                gateway: 0,
                series,
                events,
                stamp: Some(1),
            },
            &mut payload,
        );
        LogRecord { offset: 0, appended: 0, received: 0, payload: payload.into() }
    }

    fn limits() -> ShardLimits {
        ShardLimits {
            dedup_horizon_ms: 1,
            dedup_max_ids: 1,
            flush_interval_ms: 1,
            max_delta_bytes: 1 << 20,
            keep_flushed_ms: 1,
            shard_count: 1,
            panic_on_user: None,
        }
    }

    /// What the store keeps of a shard across its starts.
    #[derive(Default)]
    struct Kept {
        attempts: u32,
        marked: Option<(Offset, u32)>,
        suspects: Vec<SuspectEvent>,
        flushed: Option<Arc<FlushBatch>>,
    }

    impl Kept {
        fn claim(&mut self) -> Claim {
            self.attempts += 1;
            if let Some((offset, index)) = self.marked.take() {
                match self.suspects.iter_mut().find(|s| (s.offset, s.index) == (offset, index)) {
                    Some(suspect) => suspect.deaths += 1,
                    None => self.suspects.push(SuspectEvent { offset, index, deaths: 1 }),
                }
            }
            let checkpoint = Checkpoint {
                log: LOG,
                next: 0,
                archived: 0,
                epoch: Epoch { counter: 1, nonce: 1 },
                appended: None,
            };
            Claim {
                checkpoint,
                attempts: self.attempts,
                suspects: self.suspects.clone(),
                set: Default::default(),
            }
        }

        /// One life of the shard; returns whether it got through. It dies where a poison
        /// event would be applied.
        fn live(&mut self, record: &LogRecord) -> bool {
            self.live_beside(record, &[1, 3])
        }

        fn live_beside(&mut self, record: &LogRecord, deadly: &[u32]) -> bool {
            let claim = self.claim();
            let mut state = ShardState::new(
                limits(),
                ShardId(0),
                &claim,
                vec![],
                SeriesAdmission::limited(9, vec![]),
                1,
            );
            if mode_for(self.attempts) != ApplyMode::Isolating {
                return false;
            }
            let mut effects = Vec::new();
            state.step(ShardInput::Records(std::slice::from_ref(record)), &mut effects);
            while let Some(ShardEffect::MarkSuspect { offset, index }) = effects.pop() {
                self.marked = Some((offset, index));
                if deadly.contains(&index) && !is_poison(&self.suspects, offset, index) {
                    return false;
                }
                state.step(ShardInput::Records(&[]), &mut effects);
            }
            state.step(ShardInput::Tick { now: 0, drain: true }, &mut effects);
            let Some(ShardEffect::Commit { batch, .. }) = effects.pop() else {
                panic!("no commit")
            };
            self.flushed = Some(batch);
            true
        }
    }

    #[test]
    fn a_part_of_a_record_answers_no_query() {
        let (mut kept, record) = (Kept::default(), record());
        (0..6).for_each(|_| assert!(!kept.live(&record)));
        let claim = kept.claim();
        let mut state = ShardState::new(
            limits(),
            ShardId(0),
            &claim,
            vec![],
            SeriesAdmission::limited(9, vec![]),
            1,
        );
        let (mut effects, mut answers) = (Vec::new(), Vec::new());
        state.step(ShardInput::Records(std::slice::from_ref(&record)), &mut effects);
        for _ in 0..=5 {
            let question = LiveQuery {
                tenant: "t",
                metric: "m",
                from: Hour(0),
                to: Hour(1),
                served: &[ServedHours::ingest(Hour(0), Hour(1))],
                distinct: false,
                quantiles: false,
                overflow: false,
            };
            let mut count = 0;
            let mut visit = |_: &_, _, rollup: &Rollup| count += rollup.figures.count;
            let live = state.live(&claim.checkpoint, &question, &mut |_| true, &mut visit).ok();
            answers.push(live.map(|_| count));
            state.step(ShardInput::Records(&[]), &mut effects);
        }
        assert_eq!(answers, [Some(0), None, None, None, None, Some(5)]);
    }

    #[test]
    fn an_event_that_was_marked_when_the_process_was_killed_seven_times_is_no_poison() {
        let (mut kept, record) = (Kept::default(), record());
        let alone = (1..=40)
            .find(|_| kept.live_beside(&record, &[2]) || !kept.suspects.is_empty())
            .expect("alone");
        assert_eq!(alone, 8, "the eighth start finds the mark of the seventh");
        (0..5).for_each(|_| assert!(!kept.live_beside(&record, &[2])));
        assert!(kept.live_beside(&record, &[]), "nobody kills it this time");
        assert_eq!(kept.suspects[0].deaths, 7);
        let batch = kept.flushed.expect("flushed");
        assert_eq!((batch.quarantined.len(), batch.deltas[0].rollup.figures.count), (0, 5));
    }

    #[test]
    fn two_poison_events_of_one_record_are_both_set_aside_and_their_neighbours_count() {
        let (mut kept, record) = (Kept::default(), record());
        let lives = (1..=40).find(|_| kept.live(&record)).expect("the shard gets through");
        assert_eq!(
            lives, 23,
            "six starts to be alone, eight deaths for each poison event, one life to pass"
        );
        let batch = kept.flushed.expect("flushed");
        assert_eq!(batch.quarantined.iter().map(|row| row.index).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(batch.deltas[0].rollup.figures.count, 3);
        assert_eq!((batch.accounting[0].aggregated, batch.accounting[0].quarantined), (3, 2));
    }
}

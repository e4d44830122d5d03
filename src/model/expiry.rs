//! What expires, and when it may be deleted. A wrong clock alone never deletes anything.
//!
//! Received times and the wall clock say what is due; that is recorded as a deletion mark. The
//! state accumulates the time that passes under observation, on the boot clock, across restarts and
//! changes of owner. A marked range may be deleted once a day of observed time has accumulated and
//! it is still due. If much becomes due at once, or the wall clock leaps while something is due,
//! deletion stops until an operator approves, or until nothing is due any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clock::ClockReading;
use super::window::Millis;

/// The grace period is divided into this many parts; what becomes due within one shares a mark.
const PARTS: i64 = 24;
/// More than one in this many of all rows is a bulk deletion.
const BULK_DIVISOR: u64 = 20;
/// Most orphans recorded at a time; the others wait until these are gone. The state is written to
/// the store, so its size is bounded.
const MAX_ORPHANS: usize = 1_000;

/// When a marked range may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiryRules {
    /// Grace period: observed milliseconds between the mark and the deletion.
    pub grace_ms: i64,
    /// `expiry.max_at_once`: if more than this, and more than a twentieth of everything, becomes
    /// due at once, an operator has to approve.
    pub max_at_once: u64,
}

impl ExpiryRules {
    /// One day, in milliseconds.
    pub const DEFAULT_GRACE_MS: i64 = 24 * 3_600_000;

    /// When something marked at `gathered_ms` may be deleted, in observed time. Rounded up to the
    /// end of a part, so that the list of marks stays short.
    fn due_at(&self, gathered_ms: i64) -> i64 {
        let part = (self.grace_ms / PARTS).max(1);
        gathered_ms.saturating_add(self.grace_ms).saturating_add(part - 1) / part * part
    }
}

/// Why deletion is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiryStop {
    /// Too much became due at once.
    AtOnce {
        /// Rows that became due.
        due: u64,
        /// Rows in total, due or not.
        of: u64,
    },
    /// The wall clock leapt while something was due.
    Leapt {
        /// Signed size of the leap.
        by_ms: i64,
    },
}

impl std::fmt::Display for ExpiryStop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExpiryStop::AtOnce { due, of } => write!(f, "{due} of {of} became due at once"),
            ExpiryStop::Leapt { by_ms } => write!(f, "the wall clock leapt by {} s", by_ms / 1_000),
        }
    }
}

/// Everything below `to` may be deleted once the observed time reaches `at_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct DeletionMark {
    to: i64,
    at_ms: i64,
}

/// The last observer and its clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LastSample {
    run: u64,
    wall: Millis,
    uptime: Millis,
    boot: u64,
}

impl LastSample {
    fn reading(&self) -> ClockReading {
        ClockReading { wall: self.wall, uptime: self.uptime, boot: self.boot }
    }
}

/// The expiry state of one shard, or of the weekly rollup partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryState {
    gathered_ms: i64,
    marks: Vec<DeletionMark>,
    stopped: Option<ExpiryStop>,
    /// The number of approvals at the last update.
    said: i64,
    seen: Option<LastSample>,
    /// Orphaned objects by path, each with the observed time at which it may be removed.
    #[serde(default)]
    orphans: BTreeMap<String, i64>,
}

/// One observation of a shard, or of the weeks of rollups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpirySample {
    /// Identifies one run of the observer. The time between two observations is known
    /// only within one run.
    pub run_id: u64,
    /// The clocks of the observer.
    pub now: ClockReading,
    /// Start of the existing data: everything below is deleted already.
    pub floor: i64,
    /// Exclusive end of what is due; `None` if nothing is.
    pub due_to: Option<i64>,
    /// The number of due rows that are not marked yet.
    pub newly_due: u64,
    /// The number of rows in total.
    pub total: u64,
    /// How often an operator has approved, counted since ever.
    pub approvals: i64,
}

/// The result of an observation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpiryDecision {
    /// Everything below may be deleted now.
    pub delete_below: Option<i64>,
    /// Set if this observation stopped the deletion.
    pub new_stop: Option<ExpiryStop>,
}

impl ExpiryState {
    /// Exclusive end of what is marked.
    pub fn recorded_to(&self) -> Option<i64> {
        self.marks.last().map(|mark| mark.to)
    }

    /// Why deletion is stopped, or `None`.
    pub fn stop(&self) -> Option<ExpiryStop> {
        self.stopped
    }

    /// Whether the last observation is at most `ms` milliseconds old.
    pub fn is_recent(&self, now: &ClockReading, ms: i64) -> bool {
        self.seen
            .and_then(|seen| now.elapsed_since(&seen.reading()))
            .is_some_and(|since| since <= ms)
    }

    /// The run of the last observer.
    pub fn run_id(&self) -> Option<u64> {
        self.seen.map(|seen| seen.run)
    }

    /// Observed time that is missing until the first mark may be deleted.
    pub fn remaining_ms(&self) -> Option<i64> {
        self.marks.first().map(|mark| mark.at_ms.saturating_sub(self.gathered_ms).max(0))
    }

    /// Whether nothing is marked, orphaned or stopped: an observation then only adds time.
    pub fn is_idle(&self) -> bool {
        self.marks.is_empty() && self.orphans.is_empty() && self.stopped.is_none()
    }

    /// Takes one observation into account.
    pub fn update(&mut self, rules: &ExpiryRules, sample: &ExpirySample) -> ExpiryDecision {
        let leapt = self.add_elapsed(sample);
        self.retain_due(sample);
        let mut stop = None;
        let new = sample.due_to.filter(|to| self.recorded_to().unwrap_or(sample.floor) < *to);
        if let Some(to) = new {
            let at_ms = rules.due_at(self.gathered_ms);
            match self.marks.last_mut().filter(|mark| mark.at_ms == at_ms) {
                Some(mark) => mark.to = to,
                None => self.marks.push(DeletionMark { to, at_ms }),
            }
            // Both limits: the absolute one lets small stores expire freely, the share lets large
            // ones.
            let is_bulk = sample.newly_due > rules.max_at_once
                && sample.newly_due.saturating_mul(BULK_DIVISOR) > sample.total;
            stop =
                is_bulk.then_some(ExpiryStop::AtOnce { due: sample.newly_due, of: sample.total });
        }
        // A leap counts only while something is marked: otherwise there is nothing to protect.
        if !self.marks.is_empty() {
            stop = stop.or(leapt.map(|by_ms| ExpiryStop::Leapt { by_ms }));
        }
        let stopped = stop.filter(|_| self.stopped.is_none());
        self.stopped = self.stopped.or(stop);
        // Last, so that one approval covers whatever stopped the deletion in this very update.
        if sample.approvals > self.said {
            (self.said, self.stopped) = (sample.approvals, None);
        }
        let deletable =
            self.marks.iter().rfind(|mark| mark.at_ms <= self.gathered_ms).map(|mark| mark.to);
        ExpiryDecision {
            delete_below: deletable.filter(|_| self.stopped.is_none()),
            new_stop: stopped.filter(|_| self.stopped.is_some()),
        }
    }

    /// Adds the time since the last observation of the same run. Returns by how much the wall clock
    /// leapt since the last observation of any run.
    fn add_elapsed(&mut self, sample: &ExpirySample) -> Option<i64> {
        let ClockReading { wall, uptime, boot } = sample.now;
        let before = self.seen.replace(LastSample { run: sample.run_id, wall, uptime, boot })?;
        if before.run == sample.run_id {
            let passed = sample.now.elapsed_since(&before.reading()).unwrap_or(0);
            self.gathered_ms = self.gathered_ms.saturating_add(passed);
        }
        sample.now.leap_since(&before.reading())
    }

    /// Drops marks of what is deleted, and of what is not due any more.
    fn retain_due(&mut self, sample: &ExpirySample) {
        let due_to = sample.due_to.unwrap_or(sample.floor);
        let mut from = sample.floor;
        self.marks.retain_mut(|mark| {
            mark.to = mark.to.min(due_to);
            let holds = mark.to > from;
            from = from.max(mark.to);
            holds
        });
        // Nothing is due any more, so there is nothing left to approve.
        if self.marks.is_empty() {
            self.stopped = None;
        }
    }

    /// Records the objects that nothing refers to and forgets the rest. Returns those
    /// that may be removed.
    pub fn record_orphans(&mut self, rules: &ExpiryRules, needless: &[&str]) -> Vec<String> {
        self.orphans.retain(|path, _| needless.contains(&path.as_str()));
        for path in needless {
            if self.orphans.len() < MAX_ORPHANS && !self.orphans.contains_key(*path) {
                self.orphans.insert((*path).to_owned(), rules.due_at(self.gathered_ms));
            }
        }
        self.orphans
            .iter()
            .filter(|(_, at_ms)| **at_ms <= self.gathered_ms)
            .map(|(path, _)| path.clone())
            .collect()
    }
}

/// Counts the leading rows that are due. A row is its exclusive end and the latest received time in
/// it; rows come in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DueRows {
    /// The number of due rows.
    pub rows: u64,
    /// Exclusive end of the last due row.
    pub to: Option<i64>,
    /// Rows behind them that are undecided: later rows may make them due.
    pub undecided: u64,
}

impl DueRows {
    /// Continues with further rows, and returns whether the rows after them may be due too. Rows
    /// received before `before` are due. A received time in the future says nothing about a row's
    /// age, because the clock that wrote it was ahead: the row was received before the next one.
    pub fn add(&mut self, rows: &[(i64, Millis)], before: Millis, now: Millis) -> bool {
        for (to, received) in rows {
            if *received > now {
                self.undecided += 1;
            } else if *received < before {
                (self.rows, self.to, self.undecided) =
                    (self.rows + self.undecided + 1, Some(*to), 0);
            } else {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;
    const RULES: ExpiryRules = ExpiryRules { grace_ms: DAY, max_at_once: 100 };

    /// A shard with one object an hour, observed every five minutes.
    struct Shard {
        note: ExpiryState,
        wall: i64,
        uptime: i64,
        run: u64,
        boot: u64,
        said: i64,
        floor: i64,
        of: i64,
        keep: i64,
        stops: Vec<ExpiryStop>,
    }

    impl Shard {
        /// Objects 0 to `of` were received an hour apart, the last one now; those older than
        /// `keep` hours are due.
        fn new(of: i64, keep: i64) -> Self {
            let wall = of * HOUR;
            let (note, stops) = (ExpiryState::default(), Vec::new());
            Self { note, wall, uptime: 1, run: 1, boot: 9, said: 0, floor: 0, of, keep, stops }
        }

        fn look(&mut self) {
            let due_to =
                Some((self.wall / HOUR - self.keep).min(self.of)).filter(|to| *to > self.floor);
            let noted = self.note.recorded_to().unwrap_or(self.floor);
            let new = due_to.map_or(0, |to| (to - noted).max(0)).unsigned_abs();
            let now = ClockReading { wall: self.wall, uptime: self.uptime, boot: self.boot };
            let of = (self.of - self.floor).unsigned_abs();
            let look = ExpirySample {
                run_id: self.run,
                now,
                floor: self.floor,
                due_to,
                newly_due: new,
                total: of,
                approvals: self.said,
            };
            let text = serde_json::to_string(&self.note).expect("written");
            self.note = serde_json::from_str(&text).expect("read back");
            let verdict = self.note.update(&RULES, &look);
            self.stops.extend(verdict.new_stop);
            self.floor = verdict.delete_below.unwrap_or(self.floor);
        }

        /// Lets hours pass in which objects are written.
        fn pass(&mut self, hours: i64) {
            for _ in 0..hours * 12 {
                self.wall += HOUR / 12;
                self.uptime += HOUR / 12;
                self.look();
            }
            self.of += hours;
        }
    }

    #[test]
    fn what_is_due_goes_a_day_of_gathered_time_later_and_no_sooner() {
        let mut shard = Shard::new(1_000, 1_000);
        shard.pass(10);
        assert_eq!((shard.floor, shard.note.recorded_to()), (0, Some(10)));
        // Restarts and changes of owner lose nothing, but the time between them is not counted.
        for run in 2..=5 {
            shard.run = run;
            (shard.wall, shard.uptime) = (shard.wall + 9 * HOUR, shard.uptime + 9 * HOUR);
            shard.look();
            shard.pass(3);
        }
        assert_eq!(shard.floor, 0, "22 hours were seen to pass, 58 have");
        shard.pass(5);
        assert!(shard.floor > 0 && shard.floor < 10, "{}", shard.floor);
        shard.pass(200);
        let due = shard.wall / HOUR - 1_000;
        assert!(
            (due - 26..=due - 24).contains(&shard.floor),
            "a day behind what is due, {} of {due}",
            shard.floor
        );
        assert!(shard.note.marks.len() <= 26, "{}", shard.note.marks.len());
        assert_eq!(shard.stops, []);
    }

    #[test]
    fn a_start_with_a_clock_ahead_deletes_nothing_within_a_day_and_its_correction_forgets_it() {
        let mut shard = Shard::new(8_000, 8_760);
        shard.pass(5);
        // The machine reboots: nobody knows how long it was off.
        (shard.run, shard.boot, shard.uptime) = (2, 10, 1);
        shard.wall += 400 * DAY;
        shard.look();
        assert_eq!(shard.stops.len(), 1, "all of it at once");
        assert!(matches!(shard.stops[0], ExpiryStop::AtOnce { due: 8_000.., of: 8_000.. }));
        shard.pass(100);
        assert_eq!(shard.floor, 0, "for as long as nobody says yes");
        shard.wall -= 400 * DAY;
        shard.look();
        assert!(shard.note.is_idle(), "nothing is due: {:?}", shard.note);
    }

    #[test]
    fn few_objects_expire_after_a_day_whatever_share_they_are() {
        let mut shard = Shard::new(90, 8_760);
        (shard.wall, shard.boot) = (shard.wall + 400 * DAY, 10);
        shard.pass(24);
        assert_eq!((shard.floor, shard.stops.len()), (0, 0));
        shard.pass(2);
        assert_eq!(shard.floor, 90);
    }

    #[test]
    fn a_leap_while_something_is_due_stops_it_until_a_person_says_yes() {
        for leap in [10 * DAY, -LEAP_BACK, 61_000] {
            let mut shard = Shard::new(10_000, 9_990);
            shard.pass(12);
            shard.wall += leap;
            shard.pass(40);
            assert_eq!((shard.floor, shard.stops.len()), (0, 1), "leap {leap}");
            assert!(matches!(shard.stops[0], ExpiryStop::Leapt { .. }), "{:?}", shard.stops);
            shard.said += 1;
            shard.look();
            assert!(shard.floor > 0, "leap {leap}: a day has gathered meanwhile");
            assert_eq!(shard.note.stop(), None);
        }
    }

    /// Less than what was due before.
    const LEAP_BACK: i64 = 3 * HOUR;

    #[test]
    fn much_at_once_stops_also_without_a_leap() {
        let mut shard = Shard::new(1_000, 1_000);
        shard.pass(1);
        shard.keep = 800;
        shard.pass(30);
        assert_eq!(
            (shard.floor, &shard.stops[..]),
            (0, &[ExpiryStop::AtOnce { due: 200, of: 1_001 }][..])
        );
        shard.said = 1;
        shard.look();
        assert!(shard.floor >= 200, "{}", shard.floor);
        assert_eq!(shard.stops[0].to_string(), "200 of 1001 became due at once");
    }

    #[test]
    fn orphans_go_by_gathered_time_too() {
        let mut note = ExpiryState::default();
        let look = |note: &mut ExpiryState, hours: i64, paths: &[&str]| {
            let now = ClockReading { wall: 400 * DAY * hours, uptime: 1 + hours * HOUR, boot: 1 };
            note.update(
                &RULES,
                &ExpirySample {
                    run_id: 1,
                    now,
                    floor: 0,
                    due_to: None,
                    newly_due: 0,
                    total: 0,
                    approvals: 0,
                },
            );
            note.record_orphans(&RULES, paths)
        };
        assert!(
            look(&mut note, 0, &["a"]).is_empty() && look(&mut note, 10, &["a", "b"]).is_empty()
        );
        assert!(look(&mut note, 23, &["a", "b"]).is_empty());
        assert_eq!(look(&mut note, 24, &["a", "b"]), ["a"]);
        assert_eq!(look(&mut note, 40, &["b"]), ["b"], "one that is gone is forgotten");
        assert!(look(&mut note, 41, &["a"]).is_empty(), "one that comes again begins anew");
    }

    #[test]
    fn rows_of_a_clock_that_was_ahead_are_as_old_as_those_behind_them() {
        let judge = |rows: &[i64]| {
            let rows: Vec<(i64, i64)> = (1..).zip(rows.iter().copied()).collect();
            let mut due = DueRows::default();
            let more = due.add(&rows, 100, 1_000);
            (due.rows, due.to, more)
        };
        assert_eq!(
            judge(&[10, 99, 100, 5]),
            (2, Some(2), false),
            "the first that is not due ends it"
        );
        assert_eq!(judge(&[10, 9_999, 99, 100]), (3, Some(3), false));
        assert_eq!(judge(&[10, 9_999, 100]), (1, Some(1), false));
        assert_eq!(judge(&[9_999, 9_999]), (0, None, true), "those that come may decide");
        assert_eq!(judge(&[]), (0, None, true));
        let mut due = DueRows::default();
        assert!(due.add(&[(1, 9_999)], 100, 1_000) && due.add(&[(2, 50)], 100, 1_000));
        assert_eq!((due.rows, due.to), (2, Some(2)));
    }

    proptest! {
        /// Whatever the clocks do, whoever observes: nothing is deleted before a day has passed
        /// since it was first due, and nothing that is not due.
        #[test]
        fn nothing_goes_before_a_day_of_elapsed_time(
            steps in prop::collection::vec(
                (
                    0i64..4 * HOUR,
                    prop_oneof![6 => Just(0i64), 1 => -500 * DAY..500 * DAY],
                    any::<bool>(),
                    0u8..20,
                ),
                1..150,
            ),
        ) {
            let mut shard = Shard::new(2_000, 1_900);
            let mut first_due: BTreeMap<i64, i64> = BTreeMap::new();
            for (passed, leap, restart, said) in steps {
                shard.run += u64::from(restart);
                (shard.wall, shard.uptime) = (shard.wall + passed + leap, shard.uptime + passed);
                shard.said += i64::from(said == 0);
                let due = (shard.wall / HOUR - shard.keep).min(shard.of);
                first_due.retain(|object, _| *object < due);
                for object in shard.floor..due {
                    first_due.entry(object).or_insert(shard.uptime);
                }
                let before = shard.floor;
                shard.look();
                for object in before..shard.floor {
                    let since = first_due.get(&object).copied();
                    prop_assert!(
                        since.is_some_and(|since| shard.uptime - since >= DAY),
                        "{object}: {since:?} at {}",
                        shard.uptime
                    );
                }
            }
        }
    }
}

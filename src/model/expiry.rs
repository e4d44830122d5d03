//! What expires, and when it may be deleted. Nothing is deleted because a clock says so.
//!
//! Something is due by received times beside the wall clock, and that is noted. The note gathers
//! the time that passes while somebody looks, on the boot clock, across restarts and moves; what
//! was noted may be deleted when a day of it has gathered, if it is due still. If much becomes due
//! at once, or the wall clock leaps while something is due, the note stops until a person says yes,
//! or nothing is due any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clock::ClockReading;
use super::window::Millis;

/// Parts of the time to gather: what becomes due within one of them is noted together.
const PARTS: i64 = 24;
/// More than this share of everything, as a divisor, is much.
const BULK_DIVISOR: u64 = 20;
/// Orphans noted at once; others wait until these are gone.
const MAX_ORPHANS: usize = 1_000;

/// When something noted may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiryRules {
    /// Time to gather before a deletion.
    pub grace_ms: i64,
    /// `expiry.max_at_once`: more than this, and more than a twentieth of everything, does not
    /// become due at once without a person's yes.
    pub max_at_once: u64,
}

impl ExpiryRules {
    /// A day.
    pub const DEFAULT_GRACE_MS: i64 = 24 * 3_600_000;

    /// What is noted now may be deleted when so much has gathered: at the end of a part, so that
    /// notes stay short.
    fn due_at(&self, gathered_ms: i64) -> i64 {
        let part = (self.grace_ms / PARTS).max(1);
        gathered_ms.saturating_add(self.grace_ms).saturating_add(part - 1) / part * part
    }
}

/// Why nothing is deleted for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiryStop {
    /// Much became due at once.
    AtOnce {
        /// So many,
        due: u64,
        /// of so many.
        of: u64,
    },
    /// The wall clock leapt while something was due.
    Leapt {
        /// By so much.
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

/// Everything below a place that may be deleted when so much has gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct DeletionMark {
    to: i64,
    at_ms: i64,
}

/// Who looked last, and what the clocks showed.
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

/// What is noted of one shard, or of the weeks of rollups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiryState {
    gathered_ms: i64,
    marks: Vec<DeletionMark>,
    stopped: Option<ExpiryStop>,
    /// How often a person had said yes when it was heard last.
    said: i64,
    seen: Option<LastSample>,
    /// Orphans, each with the gathered time at which it may be removed.
    #[serde(default)]
    orphans: BTreeMap<String, i64>,
}

/// What somebody sees who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpirySample {
    /// Tells the life of who looks from every other: only within one is the time known that passes
    /// between two looks.
    pub run_id: u64,
    /// The clocks.
    pub now: ClockReading,
    /// Where what there is begins: everything below is gone.
    pub floor: i64,
    /// Everything below is due.
    pub due_to: Option<i64>,
    /// How many of it are not noted yet.
    pub newly_due: u64,
    /// How many there are in all.
    pub total: u64,
    /// How often a person has said yes.
    pub approvals: i64,
}

/// What follows from a look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExpiryDecision {
    /// Everything below may be deleted now.
    pub delete_below: Option<i64>,
    /// It stopped in this look.
    pub new_stop: Option<ExpiryStop>,
}

impl ExpiryState {
    /// Everything below is noted.
    pub fn recorded_to(&self) -> Option<i64> {
        self.marks.last().map(|mark| mark.to)
    }

    /// Why nothing is deleted.
    pub fn stop(&self) -> Option<ExpiryStop> {
        self.stopped
    }

    /// Whether somebody looked within the last so many milliseconds.
    pub fn is_recent(&self, now: &ClockReading, ms: i64) -> bool {
        self.seen
            .and_then(|seen| now.elapsed_since(&seen.reading()))
            .is_some_and(|since| since <= ms)
    }

    /// Who looked last.
    pub fn run_id(&self) -> Option<u64> {
        self.seen.map(|seen| seen.run)
    }

    /// How much has still to gather until something of what is noted may be deleted.
    pub fn remaining_ms(&self) -> Option<i64> {
        self.marks.first().map(|mark| mark.at_ms.saturating_sub(self.gathered_ms).max(0))
    }

    /// Whether a look may change more than the time that has gathered.
    pub fn is_idle(&self) -> bool {
        self.marks.is_empty() && self.orphans.is_empty() && self.stopped.is_none()
    }

    /// Looks once more.
    pub fn update(&mut self, rules: &ExpiryRules, look: &ExpirySample) -> ExpiryDecision {
        let leapt = self.add_elapsed(look);
        self.retain_due(look);
        let mut stop = None;
        let new = look.due_to.filter(|to| self.recorded_to().unwrap_or(look.floor) < *to);
        if let Some(to) = new {
            let at_ms = rules.due_at(self.gathered_ms);
            match self.marks.last_mut().filter(|mark| mark.at_ms == at_ms) {
                Some(mark) => mark.to = to,
                None => self.marks.push(DeletionMark { to, at_ms }),
            }
            let much = look.newly_due > rules.max_at_once
                && look.newly_due.saturating_mul(BULK_DIVISOR) > look.total;
            stop = much.then_some(ExpiryStop::AtOnce { due: look.newly_due, of: look.total });
        }
        if !self.marks.is_empty() {
            stop = stop.or(leapt.map(|by_ms| ExpiryStop::Leapt { by_ms }));
        }
        let stopped = stop.filter(|_| self.stopped.is_none());
        self.stopped = self.stopped.or(stop);
        if look.approvals > self.said {
            (self.said, self.stopped) = (look.approvals, None);
        }
        let ripe =
            self.marks.iter().rfind(|mark| mark.at_ms <= self.gathered_ms).map(|mark| mark.to);
        ExpiryDecision {
            delete_below: ripe.filter(|_| self.stopped.is_none()),
            new_stop: stopped.filter(|_| self.stopped.is_some()),
        }
    }

    /// Gathers what has passed since the last look of this life; by how much the wall clock has
    /// leapt since the last one of any.
    fn add_elapsed(&mut self, look: &ExpirySample) -> Option<i64> {
        let ClockReading { wall, uptime, boot } = look.now;
        let before = self.seen.replace(LastSample { run: look.run_id, wall, uptime, boot })?;
        if before.run == look.run_id {
            let passed = look.now.elapsed_since(&before.reading()).unwrap_or(0);
            self.gathered_ms = self.gathered_ms.saturating_add(passed);
        }
        look.now.leap_since(&before.reading())
    }

    /// Forgets what is gone, and what is not due any more.
    fn retain_due(&mut self, look: &ExpirySample) {
        let due_to = look.due_to.unwrap_or(look.floor);
        let mut from = look.floor;
        self.marks.retain_mut(|mark| {
            mark.to = mark.to.min(due_to);
            let holds = mark.to > from;
            from = from.max(mark.to);
            holds
        });
        if self.marks.is_empty() {
            self.stopped = None;
        }
    }

    /// Notes the objects that nothing needs, and forgets the others; those that may be removed.
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

/// Which of the first rows are due, each being where it ends and when the last of it was received,
/// in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DueRows {
    /// How many.
    pub rows: u64,
    /// Where the last of them ends.
    pub to: Option<i64>,
    /// Rows behind them that are not decided: those that come may make them due.
    pub undecided: u64,
}

impl DueRows {
    /// Goes on with further rows; whether those behind may be due as well. What was received before
    /// `before` is due. A row that was received in the future says nothing of its age, because
    /// its clock was ahead: it was received before the row behind it.
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

    /// A shard of objects, one an hour, that is looked at every five minutes.
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
        /// Objects 0 to `of` were received an hour after each other, the last one now; those older
        /// than `keep` hours are due.
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

        /// Hours pass, in which objects are written.
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
        // Restarts and moves take nothing away, and nobody counts what passes between.
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
        // The machine starts again: how long it was off, nobody knows.
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
        /// Whatever the clocks do, whoever looks: nothing goes before a day has passed since it was first due, and nothing that is not due.
        #[test]
        fn nothing_goes_before_a_day_of_elapsed_time(
            steps in prop::collection::vec((0i64..4 * HOUR, prop_oneof![6 => Just(0i64), 1 => -500 * DAY..500 * DAY], any::<bool>(), 0u8..20), 1..150),
        ) {
            let mut shard = Shard::new(2_000, 1_900);
            let mut first_due: BTreeMap<i64, i64> = BTreeMap::new();
            for (passed, leap, restart, said) in steps {
                shard.run += u64::from(restart);
                (shard.wall, shard.uptime) = (shard.wall + passed + leap, shard.uptime + passed);
                shard.said += i64::from(said == 0);
                let due = (shard.wall / HOUR - shard.keep).min(shard.of);
                first_due.retain(|object, _| *object < due);
                (shard.floor..due).for_each(|object| _ = first_due.entry(object).or_insert(shard.uptime));
                let before = shard.floor;
                shard.look();
                for object in before..shard.floor {
                    let since = first_due.get(&object).copied();
                    prop_assert!(since.is_some_and(|since| shard.uptime - since >= DAY), "{object}: {since:?} at {}", shard.uptime);
                }
            }
        }
    }
}

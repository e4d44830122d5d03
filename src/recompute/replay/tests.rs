//! Replays over the doubles: what is filled equals what a live writer would have written.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::shard_replay::{
    FillLimits, FoldStep, ReplaySources, ReplayStep, ReplayWait, ShardReplay,
};
use super::undecided::{hidden_objects, undecidable_days};
use crate::model::decimal::Decimal;
use crate::model::flush::{FlushBatch, FlushGuard, LogRecord, SetAdoption, SuspectEvent};
use crate::model::generation::{DayRange, GenerationId, Writer, WriterPart};
use crate::model::generation_book::{GenerationBook, NewGeneration};
use crate::model::manifest::{ManifestRow, Tier};
use crate::model::offset::{Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::release::{ReleaseBasis, ReleasedEvent};
use crate::model::series::{Series, SeriesId};
use crate::model::window::{HOUR_MS, Hour};
use crate::persistence::archive::Archive;
use crate::persistence::archive::memory::MemoryArchive;
use crate::persistence::store::memory::{MemoryStore, StoreFault, StoreWrite};
use crate::persistence::store::{
    GenerationStore, ManifestStore, QuarantineStore, ShardStore, SnapshotSource, StoreError,
};
use crate::recompute::fold::{self, FoldRules};
use crate::rules::{RuleSet, RulesFormat};
use crate::shards::driver::ShardDriver;
use crate::shards::generations::{ActiveSet, AdoptedGenerations};
use crate::shards::release::{self, ReleaseGenerations};
use crate::shards::series::SeriesAdmission;
use crate::shards::state::ShardState;

const LOG: LogId = LogId([4; 16]);
const SHARD: ShardId = ShardId(0);
const ONE: GenerationId = GenerationId(1);
const RECORDS: u64 = 48;
const PER_OBJECT: u64 = 6;
/// Fewer than there are series, so that some go to the overflow series.
const MAX_SERIES: u64 = 5;
const RULES: FoldRules = FoldRules {
    dedup_horizon_ms: 40,
    dedup_max_ids: 100,
    max_delta_bytes: 1 << 20,
    shard_count: 1,
};
const NONE: &str = r#"{"rule": []}"#;
const NO_BOTS: &str =
    r#"{"rule": [{"name": "bots", "where": {"labels": "{page=\"p3\"}"}, "drop": true}]}"#;
const PLAN: &str = r#"{"rule": [
    {"name": "page", "remove_label": "page"},
    {"name": "plan", "set_label": {"label": "plan", "property": "/plan"}}
]}"#;

/// What one event in the quarantine would be: poison.
const SET_ASIDE: (Offset, u32) = (10, 1);

fn record(offset: Offset) -> LogRecord {
    let appended = offset as i64 * 10;
    let at = |payload: Vec<u8>| LogRecord {
        offset,
        appended,
        received: appended,
        payload: payload.into(),
    };
    if offset == 13 {
        return at(b"garbage".to_vec());
    }
    let metric = |n: u64| if n.is_multiple_of(5) { "other" } else { "m" };
    let series: Vec<Series> = (0..3)
        .map(|n| Series::new("t", metric(offset + n), [("page".to_owned(), page(offset, n))]))
        .collect();
    let mut keys: Vec<(Vec<u8>, SeriesId)> =
        series.iter().map(|s| (s.key(), SeriesId::of_key(&s.key()))).collect();
    if offset == 20 {
        // Set aside by ingest: the id is not the hash of the key.
        keys[1].1 = SeriesId([1; 16]);
    }
    // Every other record repeats an id of the one before.
    let ids: Vec<String> = (0..3).map(|n| format!("{}/{n}", offset / 2)).collect();
    let raws: Vec<String> =
        (0..3).map(|n| format!(r#"{{"properties":{{"plan":"{}"}}}}"#, (offset + n) % 4)).collect();
    let event = |n: usize| RecordEvent {
        series: n as u32,
        timestamp: (offset as i64 / 8 * 24 + n as i64) * HOUR_MS,
        value: Some(Decimal::from_units(i128::from(offset) * 1_000_000_000)),
        user: Some(&ids[2 - n]),
        id: (n == 0).then_some(&ids[n]),
        raw: raws[n].as_bytes(),
    };
    let mut bytes = Vec::new();
    record::encode(
        &Record {
            version: record::VERSION,
            tenant: "t",
            gateway: 0,
            series: keys.iter().map(|(key, id)| SeriesEntry { id: &id.0, key }).collect(),
            events: (0..3).map(event).collect(),
            stamp: Some(1),
        },
        &mut bytes,
    );
    at(bytes)
}

fn page(offset: Offset, n: u64) -> String {
    // The first event of both records of a pair is of one series: its id repeats there.
    if n == 0 { format!("p{}", offset / 2 % 4) } else { format!("p{}", (offset * 3 + n) % 7) }
}

fn book(rules: &str, days: DayRange) -> GenerationBook {
    let parsed = RuleSet::parse(rules, RulesFormat::Json);
    let parsed = parsed.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let mut book = GenerationBook::default();
    let new = NewGeneration {
        tenant: "t".to_owned(),
        metrics: vec!["m".to_owned()],
        days,
        rules: parsed.canonical_json().into(),
        started: (1, "k".to_owned()),
    };
    assert_eq!(book.start(new, 3, 1), Ok(ONE));
    book
}

fn days(from: i32, to: i32) -> DayRange {
    DayRange::new(from, Some(to)).expect("a range")
}

/// Whether archive objects carry outcomes, as those of this release do.
#[derive(Clone, Copy, PartialEq)]
enum Objects {
    OfThisRelease,
    Older,
}

struct World {
    store: Arc<MemoryStore>,
    archive: Arc<MemoryArchive>,
    epoch: Epoch,
    limits: FillLimits,
}

impl World {
    /// A shard that folds and archives all records. A book that is there first is written live.
    fn new(live: Option<&GenerationBook>, objects: Objects) -> Self {
        Self::archived_to(RECORDS, live, objects)
    }

    /// The same, but records from here on are not archived.
    fn archived_to(end: Offset, live: Option<&GenerationBook>, objects: Objects) -> Self {
        let store = MemoryStore::new();
        if let Some(book) = live {
            assert_eq!(store.swap_generations(0, book, None), Ok(true));
        }
        let mut claim = store.claim(SHARD, LOG, 1).expect("claimed");
        claim.suspects = vec![SuspectEvent::quarantined(SET_ASIDE.0, SET_ASIDE.1)];
        let set = Arc::new(ActiveSet::compile(&claim.set).expect("compiles"));
        let admitted = set.generations().into_iter().map(|id| (id, Vec::new())).collect();
        let admission = SeriesAdmission::limited(1_000, Vec::new()).for_shard(SHARD);
        let state = ShardState::new(RULES.limits(), SHARD, &claim, Vec::new(), admission, 0);
        let state = state.with_generations(AdoptedGenerations { set, admitted }, MAX_SERIES);
        let mut driver = ShardDriver::from(state);
        let archive = Arc::new(MemoryArchive::with_cold());
        let limits = FillLimits {
            max_delta_bytes: usize::MAX,
            max_records: 7,
            max_series: MAX_SERIES,
            fold: RULES,
        };
        let epoch = claim.checkpoint.epoch;
        let world = Self { store, archive, epoch, limits };
        for from in (0..RECORDS).step_by(PER_OBJECT as usize) {
            let records: Vec<LogRecord> = (from..from + PER_OBJECT).map(record).collect();
            fold::apply(&mut driver, &records, true, &mut |guard, batch, forget| {
                world.store.flush(guard, batch, forget)
            })
            .unwrap_or_else(|error| panic!("{error}"));
            if from < end {
                world.put(&records, objects);
            }
        }
        world
    }

    fn put(&self, records: &[LogRecord], objects: Objects) {
        let range = OffsetRange { from: records[0].offset, to: records[0].offset + PER_OBJECT };
        let mut snapshot = self.store.snapshot().expect("a snapshot");
        let mut decisions = snapshot.decisions(SHARD, range).expect("decisions");
        drop(snapshot);
        assert!(decisions.outcomes.is_some());
        if objects == Objects::Older {
            decisions.outcomes = None;
        }
        let row = self.archive.write(LOG, SHARD, self.epoch, records, &decisions).expect("put");
        self.store.insert_manifest_row(self.epoch, &row).expect("inserted");
    }

    /// Starts the generation, which the shard adopts behind all its records.
    fn start(&self, book: &GenerationBook) {
        assert_eq!(self.store.swap_generations(0, book, None), Ok(true));
        let range = OffsetRange { from: RECORDS, to: RECORDS };
        let guard = FlushGuard { shard: SHARD, log: LOG, range, epoch: self.epoch };
        let version = book.newest_set().version;
        let adopts = Some(SetAdoption { version, begun: vec![ONE] });
        self.store
            .flush(guard, &FlushBatch { adopts, ..FlushBatch::default() }, 0)
            .expect("flushed");
    }

    fn replay(&self, nonce: u64) -> ShardReplay {
        let (store, archive) = (self.store.clone(), self.archive.clone());
        let sources = ReplaySources { store, archive, limits: self.limits };
        ShardReplay::new(sources, ONE, SHARD, nonce)
    }

    /// Steps until nothing more can be done.
    fn run(&self) -> ReplayStep {
        let mut replay = self.replay(7);
        loop {
            match replay.step().expect("the store answers") {
                ReplayStep::Read(_) => {}
                end => return end,
            }
        }
    }

    /// What a release of the event that was set aside adds, as of now.
    fn release(&self) -> ReleasedEvent {
        let mut snapshot = self.store.snapshot().expect("a snapshot");
        let rows = snapshot.quarantine().expect("read");
        let row = rows.iter().find(|row| (row.offset, row.index) == SET_ASIDE).expect("waits");
        let version = snapshot.set_versions().expect("read")[0].1;
        let set = snapshot.generation_book().expect("read").set(version).expect("known");
        let fills = snapshot.shard_fills(SHARD).expect("read");
        let basis = ReleaseBasis::new(version, &fills, row.offset);
        let mut generations = ReleaseGenerations { set, basis, ..ReleaseGenerations::default() };
        if let Some(part) = generations.basis.writer(ONE) {
            let admitted = snapshot.generation_admissions(ONE, Writer { shard: SHARD, part });
            generations.admissions.insert(ONE, admitted.expect("read"));
        }
        let admissions = snapshot.admissions(SHARD).expect("read");
        release::fold(&RULES.limits(), row, admissions, generations).expect("folds")
    }

    fn settle(&self, event: Option<&ReleasedEvent>) -> Result<bool, StoreError> {
        self.store.settle_quarantine(SHARD, SET_ASIDE.0, SET_ASIDE.1, event, None)
    }

    /// Events counted in the generation.
    fn count(&self) -> u64 {
        let mut count = 0;
        let hours = (Hour(i32::MIN), Hour(i32::MAX));
        let mut snapshot = self.store.snapshot().expect("a snapshot");
        let rows = snapshot.generation_rows(ONE, ("t", "m"), hours, &mut |_, _, _, rollup, _| {
            count += rollup.figures.count;
            Ok(())
        });
        rows.expect("read");
        count
    }

    fn rows(&self) -> Vec<ManifestRow> {
        self.store.snapshot().expect("a snapshot").manifest(Some(SHARD)).expect("rows")
    }

    fn cursor(&self) -> Offset {
        let progress = self.store.snapshot().expect("a snapshot").fill_progress(ONE);
        progress.expect("read")[0].1.cursor
    }

    fn written(&self) -> Written {
        let mut written = Written::default();
        let mut snapshot = self.store.snapshot().expect("a snapshot");
        let hours = (Hour(i32::MIN), Hour(i32::MAX));
        snapshot
            .generation_rows(ONE, ("t", "m"), hours, &mut |writer, info, hour, _, bytes| {
                written.parts.push(writer.part);
                written.rows.insert((hour, info.series.clone()), bytes.to_vec());
                Ok(())
            })
            .expect("read");
        for (_, dropped) in snapshot.dropped_events(ONE).expect("read") {
            *written.dropped.entry(dropped.day).or_default() += dropped.events;
        }
        written.parts.dedup();
        written
    }
}

#[derive(Debug, Default)]
struct Written {
    parts: Vec<WriterPart>,
    rows: BTreeMap<(Hour, Series), Vec<u8>>,
    dropped: BTreeMap<i32, u64>,
}

/// What a live writer writes that has the generation from the first record on.
fn live(book: &GenerationBook) -> Written {
    let written = World::new(Some(book), Objects::OfThisRelease).written();
    assert_eq!(written.parts, [WriterPart::Live]);
    written
}

fn equal(world: &World, live: &Written) {
    let filled = world.written();
    assert_eq!(filled.parts, [WriterPart::Fill]);
    assert_eq!((&filled.rows, &filled.dropped), (&live.rows, &live.dropped));
}

#[test]
fn what_is_filled_equals_what_a_live_writer_writes() {
    for rules in [NONE, NO_BOTS, PLAN] {
        for (days, rows) in [(days(0, 9), 10), (days(2, 4), 4), (DayRange::ALWAYS, 10)] {
            let book = book(rules, days);
            let live = live(&book);
            assert!(live.rows.len() >= rows, "{} rows", live.rows.len());
            assert_eq!(live.dropped.is_empty(), rules != NO_BOTS);
            for objects in [Objects::OfThisRelease, Objects::Older] {
                let world = World::new(None, objects);
                world.start(&book);
                assert_eq!(world.run(), ReplayStep::Complete);
                assert_eq!(world.cursor(), RECORDS);
                equal(&world, &live);
                assert_eq!(world.run(), ReplayStep::Complete, "once more");
            }
        }
    }
}

#[test]
fn crashes_double_starts_and_lost_answers_change_no_row() {
    let book = book(PLAN, days(0, 9));
    let live = live(&book);
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for turn in 0..60 {
        let mut world = World::new(None, Objects::OfThisRelease);
        world.limits.max_records = 1 + next(20);
        world.start(&book);
        let mut replays = [world.replay(1_000), world.replay(2_000)];
        let mut complete = false;
        for steps in 0.. {
            assert!(steps < 10_000, "it never ends, turn {turn}");
            match next(9) {
                0 => replays[next(2) as usize] = world.replay(3_000 + steps * 100),
                1 => world.store.fail_next(
                    StoreWrite::Fill,
                    match next(3) {
                        0 => StoreFault::Before,
                        1 => StoreFault::AppliedReplyLost,
                        _ => StoreFault::NotAppliedReplyLost,
                    },
                ),
                _ => {}
            }
            match replays[next(2) as usize].step() {
                Ok(ReplayStep::Complete) if complete => break,
                Ok(ReplayStep::Complete) => complete = true,
                Ok(ReplayStep::Read(_) | ReplayStep::Overtaken)
                | Err(StoreError::Failed(_) | StoreError::Unknown(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        equal(&world, &live);
    }
}

#[test]
fn objects_are_read_where_they_are_also_if_they_move_meanwhile() {
    let book = book(NO_BOTS, days(0, 9));
    let live = live(&book);
    let world = World::new(None, Objects::OfThisRelease);
    world.start(&book);
    let rows = world.rows();
    let cool = |row: &ManifestRow| {
        world.archive.copy_to_cold(row).expect("copied");
        world.store.set_tier(row, Tier::Cold).expect("noted");
        world.archive.remove(&row.path, Tier::Hot).expect("removed");
    };
    rows[..3].iter().for_each(cool);
    let mut replay = world.replay(1);
    assert_eq!(replay.step(), Ok(ReplayStep::Read(0)));
    // The manifest that the replay has read says that they are hot.
    rows[3..].iter().for_each(cool);
    while replay.step().expect("answered") != ReplayStep::Complete {}
    equal(&world, &live);
    let hot = rows.iter().filter(|row| world.archive.bytes(&row.path, Tier::Hot).is_some());
    assert_eq!(hot.count(), 0, "nothing was moved back");
}

#[test]
fn a_missing_or_damaged_object_is_waited_for_and_never_passed_over() {
    let book = book(PLAN, days(0, 9));
    let live = live(&book);
    for damaged in [false, true] {
        let world = World::new(None, Objects::OfThisRelease);
        world.start(&book);
        let row = &world.rows()[4];
        let kept = world.archive.bytes(&row.path, Tier::Hot).expect("there");
        world.archive.remove(&row.path, Tier::Hot).expect("removed");
        if damaged {
            let mut bytes = kept.to_vec();
            bytes[100] ^= 1;
            world.archive.put(&row.path, Tier::Hot, bytes.into());
        }
        for _ in 0..3 {
            let ReplayStep::Waiting(ReplayWait::Object(why)) = world.run() else {
                panic!("it waits")
            };
            assert!(why.contains(&row.path), "{why}");
            assert_eq!(world.cursor(), row.range.from, "what lies before is in the store");
        }
        world.archive.put(&row.path, Tier::Hot, kept);
        assert_eq!(world.run(), ReplayStep::Complete);
        equal(&world, &live);
    }
}

/// Events of the generation without the one that was set aside.
fn without_it(book: &GenerationBook) -> u64 {
    let world = World::new(None, Objects::OfThisRelease);
    assert_eq!(world.settle(None), Ok(true), "discarded");
    world.start(book);
    assert_eq!(world.run(), ReplayStep::Complete);
    world.count()
}

#[test]
fn a_released_event_is_filled_and_one_that_was_given_up_is_not() {
    let book = book(NONE, days(0, 9));
    for objects in [Objects::OfThisRelease, Objects::Older] {
        let world = World::new(None, objects);
        assert_eq!(world.settle(Some(&world.release())), Ok(true));
        world.start(&book);
        assert_eq!(world.run(), ReplayStep::Complete);
        assert_eq!(world.count(), without_it(&book) + 1);
    }
}

#[test]
fn a_release_at_any_moment_of_a_fill_counts_once() {
    let book = book(NONE, days(0, 9));
    let expected = without_it(&book) + 1;
    // What the first attempt of a release came to, and the step of the fill beside it.
    let (mut overtaken, mut refused) = (0, 0);
    for moment in 0.. {
        let world = World::new(None, Objects::OfThisRelease);
        world.start(&book);
        let (mut replay, mut steps) = (world.replay(1), 0);
        let mut stale = None;
        loop {
            let commits = match replay.fold().expect("answered") {
                FoldStep::Done(ReplayStep::Complete) => break,
                FoldStep::Done(_) => false,
                FoldStep::Commit => true,
            };
            steps += 1;
            // Decided before the commit, and stored behind it in every other run.
            if steps == moment / 2 + 1 {
                stale = Some(world.release());
            }
            if let Some(event) = stale.take_if(|_| moment % 2 == 0) {
                assert_eq!(world.settle(Some(&event)), Ok(true), "nothing has moved");
            }
            if commits && replay.commit().expect("answered") == ReplayStep::Overtaken {
                overtaken += 1;
            }
            if let Some(event) = stale.take() {
                match world.settle(Some(&event)) {
                    Ok(true) => {}
                    Err(StoreError::Refused { .. }) => {
                        refused += 1;
                        assert_eq!(world.settle(Some(&world.release())), Ok(true));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        if steps <= moment / 2 {
            break;
        }
        assert_eq!(world.count(), expected, "moment {moment}");
        assert_eq!(world.cursor(), RECORDS);
    }
    assert!(overtaken > 0 && refused > 0, "{overtaken} {refused}");
}

#[test]
fn an_older_object_whose_duplicates_nobody_can_tell_is_not_guessed() {
    let book = book(NONE, days(1, 9));
    let world = World::new(None, Objects::Older);
    let rows = world.rows();
    // Only events of day 0 are gone, but ids of theirs may repeat on day 1.
    assert_eq!(world.store.expire_object(&rows[0]), Ok(true));
    world.start(&book);
    let wait = world.run();
    assert!(matches!(wait, ReplayStep::Waiting(ReplayWait::Undecidable { .. })), "{wait:?}");
    let hidden = |world: &World, days| {
        let mut snapshot = world.store.snapshot().expect("a snapshot");
        hidden_objects(&mut *snapshot, days, RULES.dedup_horizon_ms).expect("read")
    };
    let undecidable = |world: &World, days| {
        undecidable_days(&*world.archive, &hidden(world, days)).expect("read")
    };
    assert_eq!(undecidable(&world, days(1, 9)), [0, 1, 2, 3, 4, 5], "all that is left");
    assert_eq!(hidden(&world, days(9, 12)).len(), 0, "on none of these days");
    assert_eq!(super::undecided::objects_without_outcomes(&*world.archive, &rows[1..]), Ok(7));
    let newer = World::new(None, Objects::OfThisRelease);
    assert_eq!(newer.store.expire_object(&newer.rows()[0]), Ok(true));
    assert_eq!(undecidable(&newer, days(1, 9)), Vec::<i32>::new(), "its objects say it");
    let newer = World::new(None, Objects::OfThisRelease);
    let none = super::undecided::objects_without_outcomes(&*newer.archive, &newer.rows());
    assert_eq!(none, Ok(0));
}

#[test]
fn a_replay_waits_for_the_archive_and_goes_on_where_it_was() {
    let book = book(NONE, days(0, 9));
    let end = RECORDS - PER_OBJECT;
    let world = World::archived_to(end, None, Objects::OfThisRelease);
    world.start(&book);
    let mut replay = world.replay(7);
    let mut run = || loop {
        match replay.step().expect("the store answers") {
            ReplayStep::Read(_) => {}
            end => return end,
        }
    };
    for _ in 0..3 {
        assert_eq!(run(), ReplayStep::Waiting(ReplayWait::Archive(RECORDS)));
        assert_eq!(world.cursor(), end);
    }
    let records: Vec<LogRecord> = (end..RECORDS).map(record).collect();
    world.put(&records, Objects::OfThisRelease);
    assert_eq!(run(), ReplayStep::Complete);
    equal(&world, &live(&book));
}

#[test]
fn records_that_expire_before_they_are_read_are_not_passed_over() {
    // Also if they do so between the start of the replay and the cut.
    for before_cut in [false, true] {
        let book = book(NONE, days(0, 9));
        let world = World::new(None, Objects::OfThisRelease);
        let expire = || assert_eq!(world.store.expire_object(&world.rows()[0]), Ok(true));
        if before_cut {
            expire();
        }
        world.start(&book);
        if !before_cut {
            expire();
        }
        assert_eq!(world.run(), ReplayStep::Waiting(ReplayWait::Expired(0)), "{before_cut}");
        assert_eq!(world.cursor(), 0);
    }
}

#[test]
fn a_cancelled_replay_ends_and_one_without_a_cut_waits() {
    let mut book = book(NONE, days(0, 9));
    let world = World::new(None, Objects::OfThisRelease);
    assert_eq!(world.store.swap_generations(0, &book, None), Ok(true));
    assert_eq!(world.run(), ReplayStep::Waiting(ReplayWait::Cut));
    book.cancel(ONE, None, 2).expect("cancelled");
    assert_eq!(world.store.swap_generations(1, &book, None), Ok(true));
    assert_eq!(world.run(), ReplayStep::Ended);
}

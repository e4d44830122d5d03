//! Generations besides generation 0: adopted in flushes, filled from the archive, read and deleted.

pub(super) mod abandoned;
pub(super) mod leaving;
pub(super) mod released;
pub(super) mod rows;

use super::*;
use crate::model::flush::{DroppedEvents, FillProgress, RuleEvents, SetAdoption};
use crate::model::generation::{DayRange, MaintainedSet, WriterPart};
use crate::model::generation_book::NewGeneration;

fn days(from: i32, to: Option<i32>) -> DayRange {
    DayRange::new(from, to).expect("a range")
}

fn writer(shard: u32, part: WriterPart) -> Writer {
    Writer { shard: ShardId(shard), part }
}

fn book(store: &dyn RollupStore) -> GenerationBook {
    (*store.snapshot().expect("snapshot").generation_book().expect("a book")).clone()
}

/// Changes the book as a node does.
fn change<T>(store: &dyn RollupStore, change: impl FnOnce(&mut GenerationBook) -> T) -> T {
    let mut changed = book(store);
    let before = changed.version();
    let result = change(&mut changed);
    assert_eq!(store.swap_generations(before, &changed, None), Ok(true));
    result
}

fn start(store: &dyn RollupStore, metrics: &[&str], days: DayRange) -> GenerationId {
    let new = NewGeneration {
        tenant: "acme".to_owned(),
        metrics: metrics.iter().map(|metric| (*metric).to_owned()).collect(),
        days,
        rules: "[]".into(),
        started: (1, "k1".to_owned()),
    };
    change(store, |book| book.start(new, 3, 7)).expect("started")
}

/// A shard with its owner, at its checkpoint.
struct Owner<'a> {
    store: &'a dyn RollupStore,
    guard: FlushGuard,
    set: u64,
}

impl<'a> Owner<'a> {
    fn claim(store: &'a dyn RollupStore, shard: u32) -> Self {
        let claim = store.claim(ShardId(shard), LOG, 1).expect("claim");
        let (next, epoch) = (claim.checkpoint.next, claim.checkpoint.epoch);
        let range = OffsetRange { from: next, to: next };
        let guard = FlushGuard { shard: ShardId(shard), log: LOG, range, epoch };
        Self { store, guard, set: claim.set.version }
    }

    fn next(&self, records: u64) -> FlushGuard {
        let from = self.guard.range.to;
        FlushGuard { range: OffsetRange { from, to: from + records }, ..self.guard }
    }

    /// Flushes so many records, and returns the guard.
    fn flush(&mut self, records: u64, batch: FlushBatch) -> FlushGuard {
        let guard = self.next(records);
        let batch = FlushBatch { set: self.set, ..batch };
        self.store.flush(guard, &batch, 0).expect("flushed");
        self.guard = guard;
        self.set = batch.adopts.map_or(self.set, |adopted| adopted.version);
        guard
    }

    /// Adopts the newest set in a flush without records.
    fn adopt(&mut self, begun: &[GenerationId]) {
        let (version, begun) = (book(self.store).newest_set().version, begun.to_vec());
        let adopts = Some(SetAdoption { version, begun });
        self.flush(0, FlushBatch { adopts, ..FlushBatch::default() });
    }

    fn fill_guard(&self, generation: GenerationId, from: u64, to: u64) -> FillGuard {
        let range = OffsetRange { from, to };
        FillGuard { generation, shard: self.guard.shard, log: LOG, range, nonce: 77 }
    }
}

fn deltas(generation: GenerationId, deltas: Vec<Delta>) -> GenerationDeltas {
    GenerationDeltas { generation, deltas, ..GenerationDeltas::default() }
}

fn live(generations: Vec<GenerationDeltas>, ingest: Vec<Delta>) -> FlushBatch {
    FlushBatch { generations, deltas: ingest, ..FlushBatch::default() }
}

/// What the first rule did to events.
fn counted(outcome: &str, events: u64) -> RuleEvents {
    RuleEvents { rule: 0, outcome: outcome.to_owned(), events }
}

fn dropped(day: i32, events: u64) -> DroppedEvents {
    DroppedEvents { tenant: "acme".into(), metric: "views".into(), day, events }
}

/// A row of a generation: its writer, page, hour and figures.
type RowOf = (Writer, String, i32, i128);

fn rows_of(
    snapshot: &mut dyn StoreSnapshot,
    generation: GenerationId,
    metric: &str,
    hours: (i32, i32),
) -> Vec<RowOf> {
    let mut rows = Vec::new();
    let mut visit = |by, info: &Arc<SeriesInfo>, hour: Hour, rollup: Rollup, bytes: &[u8]| {
        let mut encoded = Vec::new();
        rollup.encode(&mut encoded);
        assert_eq!(encoded, bytes);
        rows.push((by, info.series.label("page").to_owned(), hour.0, rollup.figures.sum));
        Ok(())
    };
    let hours = (Hour(hours.0), Hour(hours.1));
    snapshot
        .generation_rows(generation, ("acme", metric), hours, &mut visit)
        .expect("rows of a generation");
    rows
}

fn all_rows(store: &dyn RollupStore, generation: GenerationId) -> Vec<RowOf> {
    let mut snapshot = store.snapshot().expect("snapshot");
    rows_of(&mut *snapshot, generation, "views", (i32::MIN, i32::MAX))
}

/// What a query of one generation visits, by page and hour.
fn visited(
    snapshot: &mut dyn StoreSnapshot,
    query: &RollupQuery<'_>,
) -> Result<Vec<(String, i32, i128)>, StoreError> {
    let mut rows = Vec::new();
    snapshot.rollups(query, &mut |info, hour, rollup| {
        rows.push((info.series.label("page").to_owned(), hour.0, rollup.figures.sum));
    })?;
    rows.sort();
    Ok(rows)
}

fn progress(store: &dyn RollupStore, generation: GenerationId) -> Vec<(ShardId, FillProgress)> {
    store.snapshot().expect("snapshot").fill_progress(generation).expect("progress")
}

fn at(cut: u64, cursor: u64) -> FillProgress {
    FillProgress { log: LOG, cut, cursor }
}

pub(super) fn the_book_is_swapped_by_its_version_and_audited(store: &dyn RollupStore) {
    assert_eq!(book(store), GenerationBook::default());
    assert_eq!(store.snapshot().expect("snapshot").audit_entries("acme", 9), Ok(vec![]));
    let mut before = store.snapshot().expect("snapshot");
    assert_eq!(before.generation_book().expect("a book").version(), 0);
    let entry = |number: u64, action: &str| AuditEntry {
        generation: GenerationId(number),
        tenant: "acme".into(),
        action: action.into(),
        at: 7,
        by: "k1".into(),
        note: format!("{number} rows"),
    };
    let one = start(store, &["views"], days(0, Some(10)));
    let mut applied = book(store);
    applied.apply(one, 5).expect("applied");
    let (version, apply) = (applied.version(), entry(1, "apply"));
    assert_eq!(store.swap_generations(0, &applied, Some(&apply)), Ok(false), "of another version");
    assert_eq!(store.swap_generations(version, &applied, Some(&apply)), Ok(false), "of its own");
    assert!(!book(store).is_served(one), "and nothing happened");
    assert_eq!(store.swap_generations(version - 1, &applied, Some(&apply)), Ok(true));
    assert_eq!(book(store), applied);
    let mut undone = applied.clone();
    undone.undo(one).expect("undone");
    let undo = entry(1, "undo");
    assert_eq!(store.swap_generations(version, &undone, Some(&undo)), Ok(true));
    assert_eq!(book(store), undone);
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.audit_entries("acme", 9), Ok(vec![undo.clone(), apply]), "newest first");
    assert_eq!(snapshot.audit_entries("acme", 1), Ok(vec![undo.clone()]));
    assert_eq!(snapshot.audit_entries("acme", 0), Ok(vec![]));
    // However much others do.
    let foreign = |n: i64| AuditEntry { tenant: "other".into(), at: n, ..entry(2, "start") };
    for n in 0..3 {
        let now = book(store);
        assert_eq!(store.swap_generations(now.version(), &undone, Some(&foreign(n))), Ok(true));
    }
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.audit_entries("acme", 1), Ok(vec![undo]));
    assert_eq!(snapshot.audit_entries("other", 2), Ok(vec![foreign(2), foreign(1)]));
    assert_eq!(before.generation_book().expect("a book").version(), 0, "as of that moment");
    assert_eq!(before.audit_entries("acme", 9), Ok(vec![]));
}

pub(super) fn shards_adopt_a_set_in_a_flush(store: &dyn RollupStore) {
    assert_eq!(store.claim(ShardId(3), LOG, 1).expect("claim").set, MaintainedSet::default());
    let mut owner = Owner::claim(store, 3);
    owner.flush(5, live(vec![], vec![delta("a", 1, 10)]));
    let one = start(store, &["views"], days(0, Some(10)));
    assert_eq!(Owner::claim(store, 3).set, 0, "adopted in a flush, and at no other moment");
    let owner = &mut Owner::claim(store, 3);
    let refused = Err(StoreError::Refused { shard: ShardId(3) });
    let first = book(store).newest_set().version;
    let ahead = FlushBatch { set: first, ..live(vec![], vec![delta("a", 1, 99)]) };
    assert_eq!(store.flush(owner.next(1), &ahead, 0), refused, "of a set that it has not adopted");

    // A store that was rolled back may not have the set that its owner has heard of.
    let lost = Some(SetAdoption { version: first + 1, begun: vec![one] });
    let unknown = FlushBatch { adopts: lost, ..live(vec![], vec![delta("b", 1, 99)]) };
    assert_eq!(store.flush(owner.next(1), &unknown, 0), refused);
    assert_eq!((progress(store, one), Owner::claim(store, 3).set), (vec![], 0));
    let owner = &mut Owner::claim(store, 3);

    // With records, and the cut is behind them.
    let adopts = Some(SetAdoption { version: first, begun: vec![one] });
    owner.flush(2, FlushBatch { adopts, ..live(vec![], vec![delta("b", 1, 20)]) });
    assert_eq!(progress(store, one), [(ShardId(3), at(7, 0))]);
    let behind = live(vec![deltas(one, vec![delta("c", 1, 30)])], vec![]);
    assert_eq!(store.flush(owner.next(1), &behind, 0), refused, "of the set before");
    assert_eq!(all_rows(store, one), []);
    let claim = store.claim(ShardId(3), LOG, 1).expect("claim");
    assert_eq!((claim.set, claim.checkpoint.next), (book(store).newest_set(), 7));

    // A new shard begins with the newest set; another one adopts it without a record.
    let two = start(store, &["sales"], days(3, None));
    let new = store.claim(ShardId(4), LOG, 1).expect("claim").set;
    assert_eq!((new.has(one), new.has(two), &new), (true, true, &book(store).newest_set()));
    assert_eq!(progress(store, one), [(ShardId(3), at(7, 0)), (ShardId(4), at(0, 0))]);
    assert_eq!(progress(store, two), [(ShardId(4), at(0, 0))], "all of its records are live");
    assert!(progress(store, two)[0].1.is_complete());
    let mut owner = Owner::claim(store, 3);
    assert_eq!(owner.set, first);
    owner.adopt(&[two]);
    let both = [(ShardId(3), at(7, 0)), (ShardId(4), at(0, 0))];
    assert_eq!(progress(store, two), both);
    assert_eq!(progress(store, one), both, "which stays");
    // Its rows are there already: a second beginning would count them twice.
    let begun = vec![two];
    let twice = Some(SetAdoption { version: owner.set, begun });
    let twice = FlushBatch { adopts: twice, set: owner.set, ..FlushBatch::default() };
    let refused = store.flush(owner.next(1), &twice, 0);
    let names = |why: &str| why.contains("shard 3") && why.contains(&format!("replay {two}"));
    assert!(matches!(&refused, Err(StoreError::Invalid(why)) if names(why)), "{refused:?}");
    assert_eq!(progress(store, two), both, "nothing applied");
    // Whoever claims a shard again finds its cuts as they are.
    Owner::claim(store, 4).flush(2, FlushBatch::default());
    Owner::claim(store, 4);
    assert_eq!(progress(store, two), both);
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(
        snapshot.set_versions(),
        Ok([3, 4].map(|shard| (ShardId(shard), new.version)).to_vec())
    );
    assert_eq!(snapshot.checkpoints().expect("checkpoints")[0].1.next, 7);
    drop(snapshot);

    change(store, |book| book.forget_sets(new.version));
    let again = store.claim(ShardId(3), LOG, 1).expect("claim").set;
    assert_eq!(again, book(store).newest_set(), "an older one is not needed any more");
}

pub(super) fn a_fill_owns_its_cursor(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    owner.flush(9, live(vec![], vec![delta("a", 1, 1)]));
    // The archive has lost its first records. Whether it needs them is for the fill to say.
    let epoch = owner.guard.epoch;
    for (from, to) in [(0, 3), (3, 9)] {
        store.insert_manifest_row(epoch, &manifest_row(from, to, epoch)).expect("archived");
    }
    assert_eq!(store.expire_object(&manifest_row(0, 3, epoch)), Ok(true));
    let one = start(store, &["views"], days(0, Some(10)));
    let refused = Err(StoreError::Refused { shard: ShardId(3) });
    let of_hour = |units| deltas(one, vec![delta("a", 1, units)]);
    assert_eq!(store.fill(&owner.fill_guard(one, 3, 5), &of_hour(1)), refused, "without a cut");
    owner.adopt(&[one]);
    assert_eq!(progress(store, one), [(ShardId(3), at(9, 0))], "from the first record on");
    assert_eq!(store.fill(&owner.fill_guard(one, 3, 5), &of_hour(1)), refused, "beyond it");
    store.fill(&owner.fill_guard(one, 0, 3), &deltas(one, vec![])).expect("passed over");
    assert_eq!(store.fill(&owner.fill_guard(one, 0, 5), &of_hour(1)), refused, "below it");
    store.fill(&owner.fill_guard(one, 3, 5), &of_hour(10)).expect("filled");
    let beyond = [
        owner.fill_guard(one, 3, 5),
        owner.fill_guard(one, 3, 7),
        owner.fill_guard(one, 5, 10),
        owner.fill_guard(GenerationId(9), 5, 6),
        FillGuard { log: LogId([8; 16]), ..owner.fill_guard(one, 5, 6) },
        FillGuard { shard: ShardId(4), ..owner.fill_guard(one, 5, 6) },
    ];
    for guard in beyond {
        let answer = store.fill(&guard, &of_hour(1000));
        assert_eq!(answer, Err(StoreError::Refused { shard: guard.shard }), "{guard:?}");
    }
    let by = writer(3, WriterPart::Fill);
    assert_eq!(all_rows(store, one), [(by, "a".to_owned(), 1, 10)]);
    assert_eq!(progress(store, one), [(ShardId(3), at(9, 5))]);

    // A second filler that began at the same cursor is refused, and loads the cursor again.
    let mut old = store.snapshot().expect("snapshot");
    let (first, second) = (owner.fill_guard(one, 5, 9), owner.fill_guard(one, 5, 6));
    store.fill(&first, &of_hour(20)).expect("filled");
    assert_eq!(store.fill(&FillGuard { nonce: 78, ..second }, &of_hour(20)), refused);
    assert_eq!(all_rows(store, one), [(by, "a".to_owned(), 1, 30)]);
    let there = progress(store, one)[0].1;
    assert_eq!((there, there.is_complete()), (at(9, 9), true));
    assert_eq!(old.fill_progress(one), Ok(vec![(ShardId(3), at(9, 5))]), "as of that moment");
    assert_eq!(
        rows_of(&mut *old, one, "views", (0, 9)),
        [(by, "a".to_owned(), 1, 10)],
        "and its rows"
    );
    drop(old);
    let revision = store.snapshot().expect("snapshot").revisions("acme", "views", one, 0..1);
    assert_eq!(revision, Ok(vec![first.revision()]));

    // What leaves is filled no more.
    let two = start(store, &["sales"], days(0, Some(10)));
    owner.adopt(&[two]);
    change(store, |book| book.cancel(two, None, 7)).expect("cancelled");
    let of_two = owner.fill_guard(two, 3, 5);
    assert_eq!(store.fill(&of_two, &deltas(two, vec![])), refused, "not in the newest set");
}

pub(super) fn ids_that_collide_are_refused(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    owner.flush(2, FlushBatch::default());
    let one = start(store, &["views"], days(0, Some(10)));
    owner.adopt(&[one]);
    owner.flush(1, live(vec![deltas(one, vec![delta("a", 1, 1)])], vec![]));
    let liar = Arc::new(SeriesInfo { id: info("a").id, series: info("z").series.clone() });
    let of_liar = || Delta { series: liar.clone(), ..delta("a", 1, 5) };
    for of in [
        deltas(one, vec![delta("b", 1, 1), of_liar()]),
        GenerationDeltas {
            admitted: vec![(liar.clone(), 3)],
            ..deltas(one, vec![delta("b", 1, 1)])
        },
    ] {
        let batch = FlushBatch { set: owner.set, ..live(vec![of], vec![delta("b", 1, 1)]) };
        let refused = store.flush(owner.next(1), &batch, 0);
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
    let by = writer(3, WriterPart::Live);
    assert_eq!(all_rows(store, one), [(by, "a".to_owned(), 1, 1)], "nothing applied");
    assert_eq!(all_rows(store, GenerationId::INGEST), []);

    // Another writer has not admitted that id, and no other generation.
    let fill = owner.fill_guard(one, 0, 1);
    store.fill(&fill, &deltas(one, vec![of_liar()])).expect("filled");
    let next = owner.fill_guard(one, 1, 2);
    let refused = store.fill(&next, &deltas(one, vec![delta("b", 1, 1), delta("a", 1, 1)]));
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    assert_eq!(progress(store, one), [(ShardId(3), at(2, 1))], "nothing applied");
    assert_eq!(all_rows(store, one).len(), 2);
}

pub(super) fn a_snapshot_shows_pointer_and_rows_of_one_moment(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    let one = start(store, &["views"], days(0, None));
    owner.adopt(&[one]);
    owner.flush(1, live(vec![deltas(one, vec![delta("a", 1, 1)])], vec![]));
    let budget = QueryBudget::default();
    let mut before = store.query_snapshot(&budget).expect("snapshot");
    let rows = |snapshot: &mut dyn QuerySnapshot| {
        let of_one = RollupQuery { generation: one, ..query(&[]) };
        let mut sums = Vec::new();
        let mut visit = |_: &Arc<SeriesInfo>, _, rollup: Rollup| sums.push(rollup.figures.sum);
        snapshot.rollups(&of_one, &mut visit).expect("rollups");
        let book = snapshot.generation_book().expect("a book");
        (sums, book.is_served(one))
    };
    assert_eq!(rows(&mut *before), (vec![1], false));
    change(store, |book| book.apply(one, 1).map(|_| ())).expect("applied");
    owner.flush(1, live(vec![deltas(one, vec![delta("a", 1, 1), delta("b", 1, 5)])], vec![]));
    assert_eq!(rows(&mut *before), (vec![1], false));
    let mut after = store.query_snapshot(&budget).expect("snapshot");
    let (mut sums, served) = rows(&mut *after);
    sums.sort();
    assert_eq!((sums, served), (vec![2, 5], true));
    assert_eq!(rows(&mut *before), (vec![1], false), "a newer book that was read is not its own");
}

#[test]
fn sqlite_keeps_generations_over_a_restart_and_shows_them_to_other_processes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let store = sqlite::SqliteStore::open(&path).expect("a store");
    let other = sqlite::SqliteStore::open_read_only(&path).expect("a reader");
    assert_eq!(book(&*other).version(), 0);
    let mut owner = Owner::claim(&*store, 3);
    owner.flush(2, FlushBatch::default());
    let one = start(&*store, &["views"], days(0, Some(10)));
    assert_eq!(book(&*other), book(&*store));
    owner.adopt(&[one]);
    owner.flush(1, live(vec![deltas(one, vec![delta("a", 1, 1)])], vec![]));
    let (kept, rows) = (book(&*store), all_rows(&*store, one));
    drop(store);
    let store = sqlite::SqliteStore::open(&path).expect("a store");
    let mut owner = Owner::claim(&*store, 3);
    let set = kept.newest_set().version;
    assert_eq!((owner.set, book(&*store), all_rows(&*store, one)), (set, kept, rows));
    owner.flush(1, live(vec![deltas(one, vec![delta("a", 1, 1)])], vec![]));
    let by = writer(3, WriterPart::Live);
    assert_eq!(all_rows(&*other, one), [(by, "a".to_owned(), 1, 2)], "under the same number");

    drop((store, other));
    let raw = rusqlite::Connection::open(&path).expect("opens");
    raw.execute("UPDATE generation_book SET document = document || ' '", []).expect("changed");
    let store = sqlite::SqliteStore::open(&path).expect("a store");
    let read = store.snapshot().expect("snapshot").generation_book();
    assert!(matches!(&read, Err(StoreError::Invalid(why)) if why.contains("checksum")), "{read:?}");
}

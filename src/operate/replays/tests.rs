//! Replays from start to undo on the double of the store, filled by hand.

use super::*;
use crate::clock::ManualClock;
use crate::model::decimal::Decimal;
use crate::model::flush::{
    Delta, DroppedEvents, FillGuard, FlushBatch, FlushGuard, GenerationDeltas, RuleEvents,
    SeriesInfo, SetAdoption,
};
use crate::model::manifest::{ManifestRow, Tier};
use crate::model::offset::{Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;
use crate::operate::replays::count::count;
use crate::persistence::store::memory::{MemoryStore, StoreFault, StoreWrite};
use crate::persistence::store::{ManifestStore, ShardStore, SnapshotSource};

const LOG: LogId = LogId([7; 16]);
const SHARDS: u32 = 2;
pub(crate) const NOW: i64 = 1_767_225_600_000;

/// A store with two shards, whose owners and fillers are the test.
pub(crate) struct World {
    pub store: Arc<MemoryStore>,
    pub replays: Arc<StoreReplays>,
    pub clock: Arc<ManualClock>,
    epochs: Vec<Epoch>,
    next: Vec<Offset>,
}

/// A node that fills shard 1 and waits there.
struct OfShard1;

impl FillWaits for OfShard1 {
    fn waits(&self, id: GenerationId) -> BTreeMap<ShardId, String> {
        [(ShardId(1), format!("replay {id} lacks an object"))].into()
    }
}

fn delta(page: &str, hour: i32, values: &[i64]) -> Delta {
    let labels = [("page".to_owned(), page.to_owned())];
    let series = Series::new("acme", "views", labels);
    let mut rollup = Rollup::default();
    for value in values {
        rollup.add(Some(Decimal::from_units(i128::from(*value) * 1_000_000_000)), None);
    }
    let info = SeriesInfo { id: SeriesId::of_key(&series.key()), series };
    Delta { series: Arc::new(info), hour: Hour(hour), rollup }
}

fn admitted(deltas: &[Delta]) -> Vec<(Arc<SeriesInfo>, Offset)> {
    deltas.iter().map(|delta| (delta.series.clone(), 0)).collect()
}

pub(crate) fn budget() -> QueryBudget {
    QueryBudget::default()
}

pub(crate) fn acme() -> ReplayActor {
    ReplayActor { tenant: "acme".into(), by: "rm_12345678".to_owned() }
}

fn request(from: &str, to: Option<&str>) -> StartReplay {
    let (metrics, to) = (vec!["views".to_owned()], to.map(str::to_owned));
    StartReplay { metrics, from: from.to_owned(), to, rules: None }
}

const LIMITS: ReplayLimits =
    ReplayLimits { shard_count: SHARDS, max_maintained: 2, keep_ms: 1_000 };

impl World {
    /// Every shard has flushed the pages `a` and `b` in the hours 1 and 25.
    pub(crate) fn new() -> Self {
        let (store, clock) = (MemoryStore::new(), ManualClock::at(NOW));
        let replays =
            StoreReplays::new(store.clone(), None, clock.clone(), LIMITS, Arc::new(OfShard1));
        let claim = |shard| store.claim(ShardId(shard), LOG, 5).expect("claimed").checkpoint.epoch;
        let epochs = (0..SHARDS).map(claim).collect();
        let next = vec![0; SHARDS as usize];
        let mut world = Self { store, replays, clock, epochs, next };
        for shard in 0..SHARDS {
            let deltas = [("a", 1), ("b", 1), ("a", 25)].map(|(page, h)| delta(page, h, &[2, 4]));
            world.flush(shard, FlushBatch { deltas: deltas.to_vec(), ..FlushBatch::default() });
        }
        world
    }

    /// Flushes ten records of a shard.
    fn flush(&mut self, shard: u32, mut batch: FlushBatch) {
        let at = self.next[shard as usize];
        self.next[shard as usize] = at + 10;
        let (range, epoch) = (OffsetRange { from: at, to: at + 10 }, self.epochs[shard as usize]);
        batch.admitted = admitted(&batch.deltas);
        let mut snapshot = self.store.snapshot().expect("snapshot");
        let versions = snapshot.set_versions().expect("versions");
        batch.set = versions.iter().find(|(id, _)| id.0 == shard).expect("claimed").1;
        drop(snapshot);
        let guard = FlushGuard { shard: ShardId(shard), log: LOG, range, epoch };
        self.store.flush(guard, &batch, 0).expect("flushed");
    }

    pub(crate) fn book(&self) -> Arc<GenerationBook> {
        self.store.snapshot().expect("snapshot").generation_book().expect("book")
    }

    /// The shard adopts the newest set, with the generation as a new one.
    pub(crate) fn adopt(&mut self, shard: u32, begun: &[u64]) {
        let version = self.book().newest_set().version;
        let begun = begun.iter().copied().map(GenerationId).collect();
        let adopts = Some(SetAdoption { version, begun });
        self.flush(shard, FlushBatch { adopts, ..FlushBatch::default() });
    }

    /// Fills the next `records` records of a shard.
    pub(crate) fn fill(&self, shard: u32, id: u64, records: u64, deltas: Vec<Delta>) {
        let generation = GenerationId(id);
        let mut snapshot = self.store.snapshot().expect("snapshot");
        let all = snapshot.fill_progress(generation).expect("progress");
        drop(snapshot);
        let at = all.iter().find(|(at, _)| at.0 == shard).expect("a cut").1.cursor;
        let range = OffsetRange { from: at, to: at + records };
        let guard = FillGuard {
            generation,
            shard: ShardId(shard),
            log: LOG,
            range,
            nonce: u64::from(shard),
        };
        let dropped = DroppedEvents {
            tenant: "acme".to_owned(),
            metric: "views".to_owned(),
            day: 0,
            events: 3,
        };
        let admitted = admitted(&deltas);
        let batch = GenerationDeltas {
            generation,
            deltas,
            admitted,
            dropped: vec![dropped],
            rules: vec![RuleEvents { rule: 0, outcome: "dropped".to_owned(), events: 3 }],
            released: Vec::new(),
        };
        self.store.fill(&guard, &batch).expect("filled");
    }

    /// A replay of the first two days that is ready, with these rows.
    fn ready(&mut self, rows: &[(&str, i32, &[i64])]) -> u64 {
        let started =
            self.replays.start(&acme(), &request("1970-01-01", Some("1970-01-03")), &budget());
        let id = started.expect("started").id;
        for shard in 0..SHARDS {
            self.adopt(shard, &[id]);
            let deltas = rows.iter().map(|(page, hour, values)| delta(page, *hour, values));
            self.fill(shard, id, 10, deltas.collect());
            let left = self.next[shard as usize] - 10;
            if left > 0 {
                self.fill(shard, id, left, Vec::new());
            }
        }
        id
    }

    fn state(&self, id: u64) -> crate::api::replays::ReplayState {
        self.replays.show("acme", id, &budget()).expect("shown").state
    }

    fn diff(&self, id: u64, request: &DiffRequest) -> ReplayDiff {
        self.replays.diff("acme", id, request, &budget()).expect("compared")
    }
}

use crate::api::replays::ReplayState;

const SAME: &[(&str, i32, &[i64])] = &[("a", 1, &[4, 2]), ("b", 1, &[2, 4]), ("a", 25, &[2, 4])];

#[test]
fn a_replay_is_built_ready_applied_undone_and_cancelled() {
    let mut world = World::new();
    let started = world.replays.start(&acme(), &request("1970-01-01", None), &budget());
    let started = started.expect("started");
    let rules = started.rules.expect("of one replay");
    assert_eq!(rules.get(), crate::rules::RuleSet::default().canonical_json());
    assert_eq!((started.id, started.state, started.to), (1, ReplayState::Building, None));
    let waiting = started.progress.expect("being built").waits_for;
    assert_eq!(waiting.iter().map(|w| &*w.reason).collect::<Vec<_>>(), ["adopting"; 2]);
    world.adopt(0, &[1]);
    world.adopt(1, &[1]);
    world.fill(0, 1, 20, Vec::new());
    world.fill(1, 1, 15, Vec::new());
    let refused = world.replays.apply(&acme(), 1, &budget()).expect_err("not ready");
    let OperateError::NotReady(why) = &refused else { panic!("{refused}") };
    assert!(why.contains("shard 1 (5 records left)"), "{why}");
    let shown = world.replays.show("acme", 1, &budget()).expect("shown");
    let progress = shown.progress.expect("being built");
    let detail = progress.waits_for[0].detail.as_deref();
    assert_eq!(detail, Some("replay 1 lacks an object"), "shard 0 is not waited for");
    assert_eq!((progress.done, progress.left, shown.dropped), (35, 5, 6));
    assert_eq!(shown.rule_counts.iter().map(|of| of.dropped).collect::<Vec<_>>(), [6]);
    let listed = world.replays.list("acme", &budget()).expect("listed").replays;
    assert_eq!(listed[0].rule_counts, [], "left out there");
    world.fill(1, 1, 5, Vec::new());
    assert_eq!(world.state(1), ReplayState::Ready);
    let applied = world.replays.apply(&acme(), 1, &budget()).expect("applied");
    assert_eq!((applied.state, applied.undo_left_ms), (ReplayState::Applied, Some(1_000)));
    for refused in
        [world.replays.apply(&acme(), 1, &budget()), world.replays.cancel(&acme(), 1, &budget())]
    {
        assert!(matches!(refused, Err(OperateError::ReplayRefused(_))), "{refused:?}");
    }
    let undone = world.replays.undo(&acme(), 1, &budget()).expect("undone");
    assert_eq!(undone.state, ReplayState::Undone);
    let cancelled = world.replays.cancel(&acme(), 1, &budget()).expect("cancelled");
    assert_eq!(cancelled.state, ReplayState::Leaving);
    let audit = world.replays.list("acme", &budget()).expect("listed").audit;
    let done = audit.iter().filter(|entry| entry.action != "counted").rev();
    let done: Vec<_> = done.map(|entry| (&*entry.action, &*entry.by)).collect();
    let by = "rm_12345678";
    assert_eq!(done, [("start", by), ("apply", by), ("undo", by), ("cancel", by)]);
    assert_eq!(audit.last().expect("an entry").note, "views from 1970-01-01 to open");
}

#[test]
fn nobody_reaches_the_replays_of_another_tenant() {
    let mut world = World::new();
    let id = world.ready(SAME);
    let other = ReplayActor { tenant: "shop".into(), by: "k".to_owned() };
    let all = &world.replays;
    for answer in [
        all.show("shop", id, &budget()),
        all.apply(&other, id, &budget()),
        all.undo(&other, id, &budget()),
        all.cancel(&other, id, &budget()),
        all.diff("shop", id, &DiffRequest::default(), &budget()).map(|_| unreachable!()),
    ] {
        let refused = answer.expect_err("not theirs");
        assert!(matches!(refused, OperateError::NoReplay(_)), "{refused}");
    }
    let listed = all.list("shop", &budget()).expect("listed");
    assert_eq!((listed.replays.len(), listed.audit.len()), (0, 0));
    assert_eq!(world.state(id), ReplayState::Ready);
}

#[test]
fn what_cannot_be_replayed_is_refused_with_a_way_out() {
    let mut world = World::new();
    let start = |world: &World, metric: &str, from: &str| {
        let request = StartReplay { metrics: vec![metric.to_owned()], ..request(from, None) };
        world.replays.start(&acme(), &request, &budget()).map(|replay| replay.id)
    };
    let unknown = start(&world, "view", "1970-01-01").expect_err("no such metric").to_string();
    assert!(unknown.contains("\"view\"") && unknown.contains("rollmill metrics"), "{unknown}");
    expire(&world, 30);
    let expired = start(&world, "views", "1970-01-02").expect_err("expired").to_string();
    assert!(expired.contains("first day that can be replayed is 1970-01-03"), "{expired}");
    assert_eq!(start(&world, "views", "1970-01-03"), Ok(1));
    let other = start(&world, "views", "1970-01-04").expect_err("in the way").to_string();
    assert!(other.contains("replay 1 is being built"), "{other}");
    for shard in 0..SHARDS {
        world.adopt(shard, &[1]);
        world.fill(shard, 1, 20, Vec::new());
    }
    world.replays.apply(&acme(), 1, &budget()).expect("applied");
    assert_eq!(start(&world, "views", "1970-01-03"), Ok(2));
    for shard in 0..SHARDS {
        world.adopt(shard, &[2]);
        let cut = world.next[shard as usize];
        world.fill(shard, 2, cut, Vec::new());
    }
    world.replays.apply(&acme(), 2, &budget()).expect("applied");
    assert_eq!(world.state(1), ReplayState::Replaced);
    for refused in
        [world.replays.apply(&acme(), 1, &budget()), world.replays.cancel(&acme(), 1, &budget())]
    {
        let why = refused.expect_err("replaced").to_string();
        assert!(why.contains("undo 2 first"), "{why}");
    }
    let last_first = world.replays.undo(&acme(), 1, &budget()).expect_err("not the last");
    assert!(last_first.to_string().contains("undo the last apply first"), "{last_first}");
}

/// Expires an object of shard 0 whose last hour is `hour`.
#[test]
fn days_of_older_objects_that_nobody_can_decide_are_refused() {
    let world = World::new();
    let found: UndecidableDays = Arc::new(|days, _| match days.from() {
        9.. => Err(OperateError::ReplayRefused("an-object is gone".to_owned())),
        _ => Ok(vec![2, 4]),
    });
    let (store, clock) = (world.store.clone(), world.clock.clone());
    let replays = StoreReplays::new(store, Some(found), clock, LIMITS, Arc::new(OfShard1));
    let start = |from: &str, to: Option<&str>| {
        replays.start(&acme(), &request(from, to), &budget()).map(|replay| replay.id)
    };
    for from in ["1970-01-01", "1970-01-05"] {
        let refused = start(from, None).expect_err("day 4 is in it").to_string();
        assert!(refused.contains("older release"), "{refused}");
        assert!(refused.contains("first day that can be replayed is 1970-01-06"), "{refused}");
    }
    assert_eq!(start("1970-01-04", Some("1970-01-05")), Ok(1), "between them");
    assert_eq!(start("1970-01-06", None), Ok(2), "behind them");
    let unread = start("1970-01-10", None).expect_err("unread").to_string();
    assert!(unread.contains("an-object"), "{unread}");
}

fn expire(world: &World, hour: i32) {
    let row = ManifestRow {
        log: LOG,
        shard: ShardId(0),
        range: OffsetRange { from: 0, to: 10 },
        epoch: world.epochs[0],
        path: "an-object".to_owned(),
        appended: (1, 2),
        received: (1, 2),
        windows: vec![(Hour(hour), 1)],
        rows: 1,
        raw_bytes: 1,
        bytes: 1,
        crc32c: 1,
        tier: Tier::Hot,
    };
    assert_eq!(world.store.insert_manifest_row(world.epochs[0], &row), Ok(()));
    assert_eq!(world.store.expire_object(&row), Ok(true));
}

#[test]
fn nothing_differs_when_nothing_changed_and_writers_do_not_matter() {
    let mut world = World::new();
    let id = world.ready(SAME);
    let diff = world.diff(id, &DiffRequest { largest: Some(5), after: None });
    assert_eq!((diff.rows.len(), diff.next, diff.totals.equal), (0, None, 3));
    assert_eq!(diff.totals.before, diff.totals.after);
    assert_eq!((diff.totals.after.count, &*diff.totals.after.sum), (12, "36"));
}

#[test]
fn a_diff_names_every_row_and_keeps_its_side_after_the_apply() {
    let mut world = World::new();
    let id = world.ready(&[("a", 1, &[2, 4]), ("b", 1, &[2]), ("new", 26, &[1, 1, 1])]);
    let compare = |world: &World| {
        let diff = world.diff(id, &DiffRequest::default());
        let row = |row: &crate::api::replays::DiffRow| {
            let count = |side: &Option<crate::api::replays::DiffFigures>| {
                side.as_ref().map(|figures| figures.count)
            };
            (row.change.clone(), row.labels["page"].clone(), count(&row.before), count(&row.after))
        };
        let totals = (diff.totals.added, diff.totals.removed, diff.totals.changed);
        (diff.rows.iter().map(row).collect::<Vec<_>>(), totals)
    };
    let row = |change: &str, page: &str, before, after| {
        (change.to_owned(), page.to_owned(), before, after)
    };
    let expected = (
        vec![
            row("changed", "b", Some(4), Some(2)),
            row("removed", "a", Some(4), None),
            row("added", "new", None, Some(6)),
        ],
        (1, 1, 1),
    );
    assert_eq!(compare(&world), expected);
    let largest = world.diff(id, &DiffRequest { largest: Some(1), after: None });
    assert_eq!(largest.rows[0].labels["page"], "new");
    world.replays.apply(&acme(), id, &budget()).expect("applied");
    assert_eq!(compare(&world), expected, "with what it replaced");
    let job = CountJob { who: acme(), id: GenerationId(id), action: "undo" };
    count(&*world.store, &*world.clock, &job).expect("counted");
    let noted = world.replays.list("acme", &budget()).expect("listed").audit;
    let note = "undo: 3 rows changed (1 added, 1 removed, 1 with other figures)";
    assert!(noted.iter().any(|entry| entry.action == "counted" && entry.note == note), "{noted:?}");
}

#[test]
fn a_replay_is_compared_when_it_is_ready_and_until_it_leaves() {
    let mut world = World::new();
    let started = world.replays.start(&acme(), &request("1970-01-01", None), &budget());
    assert_eq!(started.map(|replay| replay.id), Ok(1));
    let refused = |world: &World| {
        let asked = DiffRequest::default();
        world.replays.diff("acme", 1, &asked, &budget()).expect_err("in no state to be compared")
    };
    let not_ready = |world: &World, counted: &str, shard: &str| {
        let OperateError::NotReady(why) = refused(world) else { panic!("another refusal") };
        assert!(why.contains(counted) && why.contains(shard), "{why}");
        assert!(why.contains("`rollmill replay show 1`"), "{why}");
    };
    not_ready(&world, "nothing yet", "shard 0 (until its next flush)");
    world.adopt(0, &[1]);
    world.fill(0, 1, 15, Vec::new());
    not_ready(&world, "15 of at least 20 records", "shard 0 (5 records left)");
    world.adopt(1, &[1]);
    world.fill(0, 1, 5, Vec::new());
    not_ready(&world, "20 of 40 records", "shard 1 (20 records left)");
    world.fill(1, 1, 20, Vec::new());
    assert_eq!(world.diff(1, &DiffRequest::default()).totals.removed, 3);
    world.replays.cancel(&acme(), 1, &budget()).expect("cancelled");
    let leaves = refused(&world);
    assert!(matches!(&leaves, OperateError::ReplayRefused(why) if why.contains("being deleted")));
    // Nor is it counted any more what an apply before that has changed.
    let job = CountJob { who: acme(), id: GenerationId(1), action: "undo" };
    let uncounted = count(&*world.store, &*world.clock, &job);
    assert!(matches!(uncounted, Err(OperateError::ReplayRefused(_))), "{uncounted:?}");
    let mut book = world.book().as_ref().clone();
    let (before, leaving) = (book.version(), book.leaving().to_vec());
    leaving.iter().for_each(|range| assert!(book.left(range)));
    assert_eq!(world.store.swap_generations(before, &book, None), Ok(true));
    assert!(matches!(refused(&world), OperateError::NoReplay(_)), "it is gone");
}

#[test]
fn days_on_which_a_replay_leaves_are_on_neither_side() {
    let mut world = World::new();
    let id = world.ready(&[("a", 1, &[7]), ("a", 25, &[7])]);
    world.replays.apply(&acme(), id, &budget()).expect("applied");
    let day = |world: &World, request: &StartReplay| {
        world.replays.start(&acme(), request, &budget()).expect("started").id
    };
    let later = day(&world, &request("1970-01-01", Some("1970-01-02")));
    for shard in 0..SHARDS {
        world.adopt(shard, &[later]);
        let cut = world.next[shard as usize];
        world.fill(shard, later, cut, vec![delta("a", 1, &[9])]);
    }
    world.replays.apply(&acme(), later, &budget()).expect("applied");
    let both = world.diff(id, &DiffRequest::default());
    assert_eq!((both.totals.after.count, &*both.totals.after.sum), (4, "28"), "both days");
    let mut book = world.book().as_ref().clone();
    let before = book.version();
    assert!(book.gather(LIMITS.keep_ms, LIMITS.keep_ms, 9), "the first day cannot come back");
    assert_eq!(book.leaving().len(), 1);
    assert_eq!(world.store.swap_generations(before, &book, None), Ok(true));
    let rest = world.diff(id, &DiffRequest::default());
    assert_eq!((rest.totals.before.count, rest.totals.after.count), (4, 2), "the second day");
    assert!(rest.rows.iter().all(|row| row.time > crate::api::timestamp(86_399_999)));
    assert_eq!(world.state(id), ReplayState::Applied);
}

#[test]
fn an_hour_of_more_rows_than_a_step_holds_takes_no_more_memory() {
    use crate::model::share::SharePool;
    let mut world = World::new();
    let pages: Vec<String> = (0..5_000).map(|n| format!("p{n}")).collect();
    // Some only of the replay, some only of what is served, and some equal.
    let served = pages[..4_000].iter().map(|page| delta(page, 1, &[1])).collect();
    world.flush(0, FlushBatch { deltas: served, ..FlushBatch::default() });
    let id = world
        .replays
        .start(&acme(), &request("1970-01-01", Some("1970-01-02")), &budget())
        .expect("started")
        .id;
    for shard in 0..SHARDS {
        world.adopt(shard, &[id]);
        let filled = pages[2_500..].iter().filter(|_| shard == 0);
        let filled = filled.map(|page| delta(page, 1, &[1])).collect();
        let cut = world.next[shard as usize];
        world.fill(shard, id, cut, filled);
    }
    // A quarter of it is the tenant's: fewer bytes than the rows of the hour.
    let pool = SharePool::new("query_memory", 4 * 256 * 1024, Arc::default());
    let (mut after, mut rows, mut equal, mut parts) = (None, Vec::new(), 0, 0);
    loop {
        let lease = pool.take(&"acme".into(), 0).expect("nothing is always there");
        let budget = QueryBudget::from_share(lease);
        let request = DiffRequest { after, largest: None };
        let part = world.replays.diff("acme", id, &request, &budget);
        assert_eq!((budget.abort_reason(), budget.charged_bytes()), (None, 0));
        let part = part.expect("compared");
        equal += part.totals.equal;
        rows.extend(part.rows.into_iter().map(|row| row.labels["page"].clone()));
        (after, parts) = (part.next, parts + 1);
        if after.is_none() {
            break;
        }
    }
    let all = rows.len();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!((all, rows.len(), equal), (3_502, 3_502, 1_500), "in {parts} parts");
}

#[test]
fn parts_of_a_diff_join_without_a_row_twice_or_missing() {
    let mut world = World::new();
    let pages: Vec<String> = (0..10_300).map(|n| format!("p{n}")).collect();
    let rows: Vec<(&str, i32, &[i64])> =
        pages.iter().enumerate().map(|(n, page)| (&**page, (n % 3) as i32, &[1][..])).collect();
    let id = world.ready(&rows);
    let (mut seen, mut after, mut parts) = (Vec::new(), None, 0);
    loop {
        let diff = world.diff(id, &DiffRequest { after, largest: None });
        parts += 1;
        seen.extend(diff.rows.iter().map(|row| (row.time, row.labels["page"].clone())));
        after = diff.next;
        if after.is_none() {
            break;
        }
    }
    assert!(parts > 1, "{parts}");
    let all = seen.len();
    assert_eq!(all, 10_300 + 3);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[test]
fn a_change_that_is_lost_to_another_is_made_again_and_an_unknown_one_is_not() {
    let world = World::new();
    world.store.fail_next(StoreWrite::Generations, StoreFault::AppliedReplyLost);
    let start = || world.replays.start(&acme(), &request("1970-01-01", None), &budget());
    let unknown = start().expect_err("nobody knows");
    assert!(matches!(unknown, OperateError::StoreUnavailable(_)), "{unknown}");
    // Whoever repeats it is told that it is there.
    let again = start().expect_err("it was started");
    assert!(again.to_string().contains("replay 1 is being built"), "{again}");
    let slower = std::cell::Cell::new(true);
    let change = |_: &mut dyn StoreSnapshot, book: &GenerationBook| {
        if slower.replace(false) {
            world.replays.cancel(&acme(), 1, &budget()).expect("cancelled by somebody faster");
        }
        let (mut book, id) = (book.clone(), GenerationId(1));
        book.cancel(id, None, 2)?;
        Ok(BookChange { book, id, action: "cancel", note: String::new() })
    };
    let refused = world.replays.change(&acme(), &budget(), &change).expect_err("decided anew");
    assert!(matches!(refused, OperateError::ReplayRefused(_)), "{refused}");
}

#[test]
fn a_comparison_is_not_continued_with_another_side() {
    let mut world = World::new();
    let id = world.ready(SAME);
    let rows: Vec<String> = (0..5_100).map(|n| format!("p{n}")).collect();
    let rows: Vec<(&str, i32, &[i64])> = rows.iter().map(|page| (&**page, 1, &[1][..])).collect();
    world.replays.apply(&acme(), id, &budget()).expect("applied");
    let later = world.ready(&rows);
    let first = world.diff(later, &DiffRequest::default());
    let rest = DiffRequest { after: first.next, largest: None };
    assert!(rest.after.is_some(), "there is a second part");
    // Its own apply changes nothing of what it is compared with.
    world.replays.apply(&acme(), later, &budget()).expect("applied");
    world.diff(later, &rest);
    world.replays.undo(&acme(), later, &budget()).expect("undone");
    world.replays.undo(&acme(), id, &budget()).expect("undone");
    let refused = world.replays.diff("acme", later, &rest, &budget()).expect_err("another side");
    assert!(matches!(&refused, OperateError::ReplayRefused(why) if why.contains("begin again")));
}

#[test]
fn a_change_that_cannot_be_read_back_is_told_as_done() {
    let ended = OperateError::from(StoreError::QueryEnded);
    let told = done_but_unseen("apply", 3, &ended).to_string();
    assert!(told.contains("apply is done") && !told.contains("nothing was written"), "{told}");
}

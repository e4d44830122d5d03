//! Two shards with a log, an archive and a store, whose records are replayed into generations: for
//! the tests of verifying and rebuilding them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fold::{self, FoldRules};
use super::replay::shard_replay::{FillLimits, ReplaySources, ReplayStep, ShardReplay};
use super::verify::{VerifyReport, VerifySources, verify};
use crate::clock::ManualClock;
use crate::model::decimal::Decimal;
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::generation::{DayRange, GenerationId, Writer};
use crate::model::generation_book::{GenerationBook, NewGeneration};
use crate::model::offset::{Checkpoint, LogId, Offset, OffsetRange, ShardId};
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::series::{Series, SeriesId};
use crate::model::window::{HOUR_MS, Hour};
use crate::persistence::archive::Archive;
use crate::persistence::archive::memory::MemoryArchive;
use crate::persistence::log::memory::MemoryLog;
use crate::persistence::log::{AppendRequest, LogAppender, LogReader};
use crate::persistence::store::memory::MemoryStore;
use crate::persistence::store::{GenerationStore, ManifestStore, ShardStore, SnapshotSource};
use crate::rules::{RuleSet, RulesFormat};
use crate::shards::driver::ShardDriver;
use crate::shards::generations::{ActiveSet, AdoptedGenerations};
use crate::shards::series::SeriesAdmission;
use crate::shards::state::ShardState;

pub(super) const LOG: LogId = LogId([4; 16]);
pub(super) const SHARDS: u32 = 2;
pub(super) const RULES: FoldRules = FoldRules {
    dedup_horizon_ms: 50_000,
    dedup_max_ids: 100,
    max_delta_bytes: 1 << 20,
    shard_count: SHARDS,
};
/// Fewer than there are series, so that some go to overflow series.
pub(super) const MAX_SERIES: u64 = 3;
pub(super) const RECORDS: u64 = 48;
pub(super) const NONE: &str = r#"{"rule": []}"#;
/// Drops some events, and makes other series of the rest.
pub(super) const PLAN: &str = r#"{"rule": [
    {"name": "bots", "where": {"labels": "{page=\"p2\"}"}, "drop": true},
    {"name": "plan", "set_label": {"label": "plan", "property": "/plan"}}
]}"#;

/// A record of two events; series and ids repeat.
fn payload(shard: u32, n: u64) -> bytes::Bytes {
    let here = |page: u64| {
        let mut all = (0..).map(|turn| {
            let labels = [("page", format!("p{page}")), ("turn", format!("{turn}"))];
            Series::new("t", "m", labels.map(|(name, value)| (name.to_owned(), value)))
        });
        let is_here =
            |series: &Series| SeriesId::of_key(&series.key()).shard(SHARDS) == ShardId(shard);
        all.find(is_here).expect("one of them")
    };
    let series: Vec<Series> = [(n / 2) % 5, (n / 3) % 4].map(here).into();
    let keys: Vec<(Vec<u8>, SeriesId)> =
        series.iter().map(|s| (s.key(), SeriesId::of_key(&s.key()))).collect();
    let ids = [format!("a{}", n / 2), format!("b{n}")];
    let raw = format!(r#"{{"properties":{{"plan":"{}"}}}}"#, n % 3);
    let event = |at: usize| RecordEvent {
        series: at as u32,
        // A few events of each day are late.
        timestamp: (n as i64 * 7 % 5 * 24 + n as i64 % 3) * HOUR_MS,
        value: Some(Decimal::from_units(i128::from(n) * 1_000_000_000)),
        user: Some(&ids[1 - at]),
        id: Some(&ids[at]),
        raw: raw.as_bytes(),
    };
    let series = keys.iter().map(|(key, id)| SeriesEntry { id: &id.0, key }).collect();
    let record = Record {
        version: record::VERSION,
        tenant: "t",
        gateway: 0,
        series,
        events: vec![event(0), event(1)],
        stamp: Some(1),
    };
    let mut bytes = Vec::new();
    record::encode(&record, &mut bytes);
    bytes.into()
}

pub(super) fn days(from: i32, to: i32) -> DayRange {
    DayRange::new(from, Some(to)).expect("a range")
}

/// Bytes of the rows of a generation, and what its rules dropped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) rows: BTreeMap<(Hour, Series, Writer), Vec<u8>>,
    pub(super) dropped: BTreeMap<(Writer, i32), u64>,
}

pub(super) struct World {
    pub(super) log: Arc<MemoryLog>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) archive: Arc<MemoryArchive>,
}

impl World {
    /// A log with records that nothing was made of yet.
    pub(super) fn new() -> Self {
        let clock = ManualClock::at(0);
        let log = MemoryLog::new(LOG, SHARDS, clock.clone());
        for n in 0..RECORDS {
            clock.set(10_000 * n as i64);
            let records = (0..SHARDS).map(|shard| (ShardId(shard), payload(shard, n))).collect();
            log.append(AppendRequest { records }).expect("appended");
        }
        Self { log, store: MemoryStore::new(), archive: Arc::new(MemoryArchive::new()) }
    }

    fn checkpoint(&self, shard: ShardId) -> Option<Checkpoint> {
        let mut snapshot = self.store.snapshot().expect("a snapshot");
        let all = snapshot.checkpoints().expect("checkpoints");
        all.into_iter().find(|(id, _)| *id == shard).map(|(_, at)| at)
    }

    /// A new owner of the shard folds its records up to `to`, and then adopts the newest set.
    pub(super) fn work(&self, shard: u32, to: Offset) {
        let shard = ShardId(shard);
        let claim = self.store.claim(shard, LOG, to).expect("claimed");
        let from = claim.checkpoint.next;
        let limited = |admitted| SeriesAdmission::limited(MAX_SERIES, admitted).for_shard(shard);
        let set = Arc::new(ActiveSet::compile(&claim.set).expect("compiles"));
        let live = Writer { shard, part: crate::model::generation::WriterPart::Live };
        let admitted = set
            .generations()
            .into_iter()
            .map(|id| (id, self.store.generation_series(id, live).expect("what it has admitted")));
        let adopted = AdoptedGenerations { admitted: admitted.collect(), set };
        let recent = self.store.recent_ids(shard, i64::MIN).expect("ids");
        let admission = limited(self.store.admitted_series(shard).expect("series"));
        let state = ShardState::new(RULES.limits(), shard, &claim, recent, admission, from)
            .with_generations(adopted, MAX_SERIES);
        let mut driver = ShardDriver::from(state);
        let mut records = self.log.read(shard, from, usize::MAX).expect("records");
        records.truncate((to - from) as usize);
        let commit =
            &mut |guard, batch: &FlushBatch, forget| self.store.flush(guard, batch, forget);
        for part in records.chunks(5) {
            fold::apply(&mut driver, part, true, commit).expect("flushed");
        }
        let newest = self.book().newest_set();
        if newest.version > driver.state().set().version() {
            let newest = Arc::new(ActiveSet::compile(&newest).expect("compiles"));
            fold::adopt(&mut driver, newest, commit).expect("adopted");
        }
    }

    /// Archives what is flushed.
    pub(super) fn archive(&self, shard: u32) {
        let shard = ShardId(shard);
        let at = self.checkpoint(shard).expect("a checkpoint");
        let range = OffsetRange { from: at.archived, to: at.next };
        if range.is_empty() {
            return;
        }
        let decisions = self.store.snapshot().expect("a snapshot").decisions(shard, range);
        let mut records = self.log.read(shard, range.from, usize::MAX).expect("records");
        records.truncate(range.len() as usize);
        let decisions = decisions.expect("decisions");
        let row = self.archive.write(LOG, shard, at.epoch, &records, &decisions).expect("written");
        self.store.insert_manifest_row(at.epoch, &row).expect("archived");
    }

    pub(super) fn book(&self) -> GenerationBook {
        let book = self.store.snapshot().expect("a snapshot").generation_book().expect("a book");
        book.as_ref().clone()
    }

    /// Changes the book.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut GenerationBook) -> T) -> T {
        let mut book = self.book();
        let before = book.version();
        let done = change(&mut book);
        assert_eq!(self.store.swap_generations(before, &book, None), Ok(true));
        done
    }

    pub(super) fn start(&self, rules: &str, days: DayRange) -> GenerationId {
        let parsed = RuleSet::parse(rules, RulesFormat::Json);
        let parsed = parsed.unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let new = NewGeneration {
            tenant: "t".to_owned(),
            metrics: vec!["m".to_owned()],
            days,
            rules: parsed.canonical_json().into(),
            started: (1, "k".to_owned()),
        };
        self.change(|book| book.start(new, 3, 1)).expect("started")
    }

    pub(super) fn sources(&self) -> ReplaySources {
        let limits = FillLimits {
            max_delta_bytes: usize::MAX,
            max_records: 4,
            max_series: MAX_SERIES,
            fold: RULES,
        };
        ReplaySources { store: self.store.clone(), archive: self.archive.clone(), limits }
    }

    /// Fills a generation from a shard, at most so many steps.
    pub(super) fn fill(&self, id: GenerationId, shard: u32, steps: usize) -> ReplayStep {
        let mut replay = ShardReplay::new(self.sources(), id, ShardId(shard), 7);
        let mut last = ReplayStep::Read(0);
        for _ in 0..steps {
            last = replay.step().expect("the store answers");
            if !matches!(last, ReplayStep::Read(_)) {
                break;
            }
        }
        last
    }

    /// A world in which a generation was started, filled and served while records came in: shard 0
    /// adopted it at 17, shard 1 at 23. Everything is archived up to 36, and in the store.
    pub(super) fn served(rules: &str, days: DayRange) -> (Self, GenerationId) {
        let world = Self::new();
        [(0, 12), (1, 19)].iter().for_each(|&(shard, to)| world.work(shard, to));
        (0..SHARDS).for_each(|shard| world.archive(shard));
        let id = world.start(rules, days);
        [(0, 17), (1, 23)].iter().for_each(|&(shard, to)| world.work(shard, to));
        (0..SHARDS).for_each(|shard| world.archive(shard));
        for shard in [0, 1] {
            assert_eq!(world.fill(id, shard, 1_000), ReplayStep::Complete);
        }
        world.change(|book| book.apply(id, 5).map(|_| ())).expect("applied");
        (0..SHARDS).for_each(|shard| world.work(shard, 36));
        (0..SHARDS).for_each(|shard| world.archive(shard));
        (0..SHARDS).for_each(|shard| world.work(shard, RECORDS));
        (world, id)
    }

    /// Writes something that no record accounts for, by way of a flush.
    pub(super) fn plant(&self, shard: u32, batch: &FlushBatch) {
        let shard = ShardId(shard);
        let at = self.checkpoint(shard).expect("a checkpoint");
        let range = OffsetRange { from: at.next, to: at.next };
        let guard = FlushGuard { shard, log: LOG, range, epoch: at.epoch };
        let set = self.book().newest_set().version;
        let batch = FlushBatch { set, ..batch.clone() };
        self.store.flush(guard, &batch, i64::MIN).expect("flushed");
    }

    pub(super) fn verify(&self) -> VerifyReport {
        let sources = VerifySources {
            store: &*self.store,
            archive: &*self.archive,
            open_log: &|| Ok(self.log.clone()),
            dedup_horizon_ms: RULES.dedup_horizon_ms,
            dedup_max_ids: RULES.dedup_max_ids,
            only: None,
        };
        verify(&sources, Hour(i32::MIN)..Hour(i32::MAX), &mut |_, _| ()).expect("verified")
    }

    pub(super) fn written(store: &MemoryStore, id: GenerationId, on: DayRange) -> Written {
        let mut written = Written::default();
        let mut snapshot = store.snapshot().expect("a snapshot");
        snapshot
            .generation_rows(id, ("t", "m"), on.hours(), &mut |writer, info, hour, _, bytes| {
                written.rows.insert((hour, info.series.clone(), writer), bytes.to_vec());
                Ok(())
            })
            .expect("read");
        for (writer, dropped) in snapshot.dropped_events(id).expect("read") {
            if on.contains(dropped.day) {
                written.dropped.insert((writer, dropped.day), dropped.events);
            }
        }
        written
    }
}

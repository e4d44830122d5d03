//! Replay from archive objects: what is read by column, what is folded, and what of it bare
//! decompression would take. Measured in CPU time of the thread, so that other work on the machine
//! hardly shows.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use parquet::file::reader::{FileReader, SerializedFileReader};
use rollmill::model::decimal::Decimal;
use rollmill::model::flush::{FlushBatch, FlushGuard, LogRecord, SetAdoption};
use rollmill::model::generation::{DayRange, GenerationId};
use rollmill::model::generation_book::{GenerationBook, NewGeneration};
use rollmill::model::manifest::{ManifestRow, RangeDecisions};
use rollmill::model::offset::{Epoch, LogId, OffsetRange, ShardId};
use rollmill::model::outcome::OutcomeNote;
use rollmill::model::record::{self, Record, RecordEvent, SeriesEntry};
use rollmill::model::series::{Series, SeriesId};
use rollmill::persistence::archive::columns::RawEvents;
use rollmill::persistence::archive::memory::MemoryArchive;
use rollmill::persistence::archive::parquet as objects;
use rollmill::persistence::store::memory::{MemoryStore, StoreBackup};
use rollmill::persistence::store::{GenerationStore, ManifestStore, ShardStore};
use rollmill::recompute::fold::FoldRules;
use rollmill::recompute::replay::shard_replay::{
    FillLimits, ReplaySources, ReplayStep, ShardReplay,
};
use rollmill::rules::{RuleSet, RulesFormat};

/// That of the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// CPU time of the thread that measures.
struct CpuTime;

static WALL: WallTime = WallTime;

fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu_time()
    }
    fn end(&self, started: Duration) -> Duration {
        cpu_time() - started
    }
    fn add(&self, left: &Duration, right: &Duration) -> Duration {
        *left + *right
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        WALL.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        WALL.formatter()
    }
}

const LOG: LogId = LogId([1; 16]);
const SHARD: ShardId = ShardId(0);
const PER_RECORD: u64 = 100;
const SERIES: u64 = 500;

/// An object of records of 100 events, each of `raw_bytes`.
fn object(records: u64, raw_bytes: usize) -> (Bytes, ManifestRow) {
    let series: Vec<Series> = (0..SERIES)
        .map(|n| {
            let labels =
                [("page".to_owned(), format!("/{n}")), ("host".to_owned(), "w1".to_owned())];
            Series::new("bench", "page_view", labels)
        })
        .collect();
    let keys: Vec<(Vec<u8>, SeriesId)> =
        series.iter().map(|s| (s.key(), SeriesId::of_key(&s.key()))).collect();
    let mut state = 1u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % below
    };
    let records: Vec<LogRecord> = (0..records)
        .map(|offset| {
            let picks: Vec<usize> = (0..10).map(|_| random(SERIES) as usize).collect();
            let events: Vec<[u64; 4]> = (0..PER_RECORD)
                .map(|_| [random(10), random(20_000), random(10_000), random(3)])
                .collect();
            let texts: Vec<[String; 3]> = (0..)
                .zip(&events)
                .map(|(n, event): (u64, _)| {
                    let head = format!(r#"{{"properties":{{"n":{n},"id":"{}","#, random(1 << 30));
                    let mut raw = head;
                    while raw.len() + 40 < raw_bytes {
                        raw.push_str(&format!(
                            r#""{:x}":"{:08x} and some text","#,
                            raw.len(),
                            random(1 << 20)
                        ));
                    }
                    raw.push_str(&format!(r#""plan":"p{}"}}}}"#, event[3]));
                    [format!("user-{}", event[1]), format!("{offset:012x}-{n}"), raw]
                })
                .collect();
            let event = |n: usize| RecordEvent {
                series: events[n][0] as u32,
                timestamp: 1_790_000_000_000 + (offset / 200) as i64 * 3_600_000,
                value: Some(Decimal::from_units(i128::from(events[n][2]) * 10_000_000)),
                user: Some(&texts[n][0]),
                id: Some(&texts[n][1]),
                raw: texts[n][2].as_bytes(),
            };
            let mut payload = Vec::new();
            record::encode(
                &Record {
                    version: record::VERSION,
                    tenant: "bench",
                    gateway: 1,
                    series: picks
                        .iter()
                        .map(|at| SeriesEntry { id: &keys[*at].1.0, key: &keys[*at].0 })
                        .collect(),
                    events: (0..PER_RECORD as usize).map(event).collect(),
                    stamp: Some(1),
                },
                &mut payload,
            );
            let appended = offset as i64;
            LogRecord { offset, appended, received: appended, payload: payload.into() }
        })
        .collect();
    let outcomes = Some(OutcomeNote::default());
    let decisions = RangeDecisions { outcomes, ..RangeDecisions::default() };
    let epoch = Epoch { counter: 1, nonce: 1 };
    let (bytes, row) = objects::encode(LOG, SHARD, epoch, &records, &decisions).expect("encodes");
    (bytes.into(), row)
}

fn canonical(text: &str) -> Arc<str> {
    let parsed = RuleSet::parse(text, RulesFormat::Json);
    parsed.unwrap_or_else(|mistakes| panic!("{mistakes}")).canonical_json().into()
}

/// A shard whose records are in one object, and a generation of them that is not filled.
struct Replay {
    store: Arc<MemoryStore>,
    archive: Arc<MemoryArchive>,
    unfilled: StoreBackup,
}

const ONE: GenerationId = GenerationId(1);

impl Replay {
    fn new(bytes: &Bytes, row: &ManifestRow, rules: &str) -> Self {
        let (store, archive) = (MemoryStore::new(), Arc::new(MemoryArchive::new()));
        let epoch = store.claim(SHARD, LOG, 1).expect("claimed").checkpoint.epoch;
        let flush = |from, to, batch: FlushBatch| {
            let range = OffsetRange { from, to };
            let guard = FlushGuard { shard: SHARD, log: LOG, range, epoch };
            store.flush(guard, &batch, 0).expect("flushed");
        };
        flush(0, row.range.to, FlushBatch::default());
        archive.put(&row.path, row.tier, bytes.clone());
        store.insert_manifest_row(epoch, row).expect("inserted");
        let mut book = GenerationBook::default();
        let new = NewGeneration {
            tenant: "bench".to_owned(),
            metrics: vec!["page_view".to_owned()],
            days: DayRange::ALWAYS,
            rules: canonical(rules),
            started: (1, "bench".to_owned()),
        };
        assert_eq!(book.start(new, 3, 1), Ok(ONE));
        assert_eq!(store.swap_generations(0, &book, None), Ok(true));
        let version = book.newest_set().version;
        let adopts = Some(SetAdoption { version, begun: vec![ONE] });
        flush(row.range.to, row.range.to, FlushBatch { adopts, ..FlushBatch::default() });
        let unfilled = store.backup();
        Self { store, archive, unfilled }
    }

    /// Fills the generation from the object.
    fn run(&self) -> u64 {
        self.store.restore_backup(&self.unfilled);
        let fold =
            FoldRules { dedup_horizon_ms: 1, dedup_max_ids: 1, max_delta_bytes: 1, shard_count: 1 };
        let limits = FillLimits {
            max_delta_bytes: 16 << 20,
            max_records: 100_000,
            max_series: 1_000_000,
            fold,
        };
        let (store, archive) = (self.store.clone(), self.archive.clone());
        let sources = ReplaySources { store, archive, limits };
        let mut replay = ShardReplay::new(sources, ONE, SHARD, 1);
        let mut events = 0;
        loop {
            match replay.step().expect("answered") {
                ReplayStep::Read(more) => events += more,
                ReplayStep::Complete => return events,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Decompresses every page of the object, and does nothing with it.
fn decompress(bytes: &Bytes) -> usize {
    let reader = SerializedFileReader::new(bytes.clone()).expect("a file");
    let mut total = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).expect("a group");
        for column in 0..group.num_columns() {
            let mut pages = group.get_column_page_reader(column).expect("a column");
            while let Some(page) = pages.get_next_page().expect("a page") {
                total += page.buffer().len();
            }
        }
    }
    total
}

fn key_columns(c: &mut Criterion<CpuTime>) {
    let (bytes, row) = object(2_000, 300);
    let mut group = c.benchmark_group("replay of key columns");
    group.sample_size(20).throughput(Throughput::Elements(row.rows));
    group.bench_function("read", |b| {
        b.iter(|| {
            let batches = objects::ObjectColumns::open(bytes.clone(), &row, RawEvents::Skip);
            batches.expect("opens").map(|batch| batch.expect("a batch").len()).sum::<usize>()
        });
    });
    let none = r#"{"rule": []}"#;
    let plain = Replay::new(&bytes, &row, none);
    group.bench_function("read, fold and commit", |b| b.iter(|| plain.run()));
    let labels = r#"{"rule": [
        {"name": "bots", "where": {"labels": "{page=\"/3\"}"}, "drop": true},
        {"name": "host", "remove_label": "host"}
    ]}"#;
    let labels = Replay::new(&bytes, &row, labels);
    group.bench_function("the same with two rules on labels", |b| b.iter(|| labels.run()));
    group.finish();
}

fn properties(c: &mut Criterion<CpuTime>) {
    let (bytes, row) = object(160, 4_096);
    let mut group = c.benchmark_group("replay of properties of 4 KB");
    group.sample_size(20).throughput(Throughput::Bytes(row.raw_bytes));
    group.bench_function("bare decompression", |b| b.iter(|| decompress(black_box(&bytes))));
    let plan =
        r#"{"rule": [{"name": "plan", "set_label": {"label": "plan", "property": "/plan"}}]}"#;
    let plan = Replay::new(&bytes, &row, plan);
    group
        .bench_function("read, one rule on a property, fold and commit", |b| b.iter(|| plan.run()));
    group.finish();
}

/// By the clock: whether two shards at once take what one takes. Needs two cores of its own.
fn two_shards(c: &mut Criterion) {
    let (bytes, row) = object(2_000, 300);
    let [one, two] = [1, 2].map(|_| Replay::new(&bytes, &row, r#"{"rule": []}"#));
    let mut group = c.benchmark_group("replay of key columns, by the clock");
    group.sample_size(20).throughput(Throughput::Elements(2 * row.rows));
    group.bench_function("read, fold and commit, two at once", |b| {
        b.iter(|| {
            std::thread::scope(|threads| {
                let both = [&one, &two].map(|one| threads.spawn(|| one.run()));
                both.map(|one| one.join().expect("ended"))
            })
        });
    });
    group.finish();
}

criterion_group!(
    name = cpu;
    config = Criterion::default().with_measurement(CpuTime);
    targets = key_columns, properties
);
criterion_group!(clock, two_shards);
criterion_main!(cpu, clock);

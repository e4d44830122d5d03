//! The hot path in pieces: codec, apply, sketches, the immutable queue against `rpds::Queue`, log
//! append, query.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rollmill::clock::SystemClock;
use rollmill::model::decimal::Decimal;
use rollmill::model::distinct::DistinctSketch;
use rollmill::model::flush::{Claim, Delta, FlushBatch, FlushGuard, LogRecord, SeriesInfo};
use rollmill::model::generation::GenerationId;
use rollmill::model::manifest::RangeDecisions;
use rollmill::model::offset::{Checkpoint, Epoch, LogId, OffsetRange, ShardId};
use rollmill::model::quantiles::QuantileSketch;
use rollmill::model::record::{self, Record, RecordEvent, SeriesEntry};
use rollmill::model::rollup::Rollup;
use rollmill::model::series::{Series, SeriesId};
use rollmill::model::window::Hour;
use rollmill::persistence::archive::parquet;
use rollmill::persistence::log::embedded::{EmbeddedLog, EmbeddedLogOptions};
use rollmill::persistence::log::{AppendRequest, LogAppender, LogReader, LogRetention};
use rollmill::persistence::store::sqlite::SqliteStore;
use rollmill::persistence::store::{RollupQuery, ShardStore, SnapshotSource};
use rollmill::shards::immutable_queue::ImmutableQueue;
use rollmill::shards::series::SeriesAdmission;
use rollmill::shards::state::{ShardInput, ShardLimits, ShardState};

const LOG: LogId = LogId([1; 16]);
const EVENTS: u64 = 100;

fn series(n: u64) -> Series {
    Series::new(
        "bench",
        "page_view",
        [("page".to_owned(), format!("/{n}")), ("host".to_owned(), "web-1".to_owned())],
    )
}

/// A record of 100 events of 300 bytes each, spread over ten series.
fn payload(serial: u64) -> bytes::Bytes {
    let keys: Vec<(Vec<u8>, SeriesId)> =
        (0..10).map(|n| series(n).key()).map(|key| (key.clone(), SeriesId::of_key(&key))).collect();
    let texts: Vec<(String, String)> =
        (0..EVENTS).map(|n| (format!("u{}", n * 7 % 90), format!("{serial:016x}-{n}"))).collect();
    let raw = vec![b'x'; 300];
    let event = |n: usize| RecordEvent {
        series: (n % 10) as u32,
        timestamp: 1_790_000_000_000,
        value: Some(Decimal::from_units(n as i128 * 1_000_000_007)),
        user: Some(&texts[n].0),
        id: Some(&texts[n].1),
        raw: &raw,
    };
    let entries = keys.iter().map(|(key, id)| SeriesEntry { id: &id.0, key }).collect();
    let events = (0..EVENTS as usize).map(event).collect();
    let mut bytes = Vec::new();
    record::encode(
        &Record {
            version: record::VERSION,
            tenant: "bench",
            gateway: 1,
            series: entries,
            events,
            stamp: Some(1),
        },
        &mut bytes,
    );
    bytes.into()
}

fn state() -> ShardState {
    let limits = ShardLimits {
        dedup_horizon_ms: 3_600_000,
        dedup_max_ids: 262_144,
        flush_interval_ms: 10_000,
        max_delta_bytes: 1 << 30,
        keep_flushed_ms: 0,
        shard_count: 1,
        panic_on_user: None,
    };
    let checkpoint = Checkpoint {
        log: LOG,
        next: 0,
        archived: 0,
        epoch: Epoch { counter: 1, nonce: 1 },
        appended: None,
    };
    let claim = Claim { checkpoint, attempts: 1, suspects: Vec::new(), set: Default::default() };
    ShardState::new(
        limits,
        ShardId(0),
        &claim,
        Vec::new(),
        SeriesAdmission::limited(1_000_000, Vec::new()),
        0,
    )
}

fn codec_and_apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("record of 100 events");
    group.throughput(Throughput::Elements(EVENTS));
    let bytes = payload(0);
    let decoded = record::decode(&bytes).expect("decodes");
    group.bench_function("decode", |b| {
        b.iter(|| record::decode(black_box(&bytes)).map(|r| r.events.len()))
    });
    group.bench_function("encode", |b| {
        b.iter_batched_ref(
            || Vec::with_capacity(64 << 10),
            |out| record::encode(&decoded, out),
            BatchSize::SmallInput,
        );
    });
    let records: Vec<LogRecord> = (0..200)
        .map(|n| LogRecord {
            offset: n,
            appended: n as i64,
            received: n as i64,
            payload: payload(n),
        })
        .collect();
    group.throughput(Throughput::Elements(EVENTS * 200));
    group.bench_function("apply 200 of them", |b| {
        b.iter_batched_ref(
            state,
            |state| state.step(ShardInput::Records(&records), &mut Vec::new()),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn sketches(c: &mut Criterion) {
    let mut group = c.benchmark_group("sketches");
    let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for users in [100u64, 1_000, 100_000] {
        group.throughput(Throughput::Elements(users));
        group.bench_function(format!("distinct, {users} users"), |b| {
            b.iter(|| {
                let mut sketch = DistinctSketch::default();
                (0..users).for_each(|n| sketch.insert(hash(n)));
                sketch.estimate()
            });
        });
    }
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("quantiles, 1,000 values", |b| {
        b.iter(|| {
            let mut sketch = QuantileSketch::default();
            (0..1_000i128).for_each(|n| sketch.insert(Decimal::from_units(n * n * 1_000_003)));
            sketch.quantile(0.95)
        });
    });
    group.finish();
}

fn queues(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue of 1,000");
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("immutable_queue", |b| {
        b.iter(|| {
            let mut queue = (0..1_000u64).fold(ImmutableQueue::new(), |queue, n| queue.enqueue(n));
            while let Some((item, rest)) = queue.dequeue() {
                black_box(item);
                queue = rest;
            }
        });
    });
    group.bench_function("rpds::QueueSync", |b| {
        b.iter(|| {
            let mut queue =
                (0..1_000u64).fold(rpds::QueueSync::new_sync(), |queue, n| queue.enqueue(n));
            while let Some(item) = queue.peek() {
                black_box(item);
                queue = queue.dequeue().expect("not empty");
            }
        });
    });
    group.finish();
}

fn log_append(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let options = EmbeddedLogOptions {
        dir: dir.path().join("log"),
        shard_count: 16,
        segment_bytes: 64 << 20,
        max_waiting_bytes: 1 << 30,
        max_commit_bytes: 1 << 20,
        tail_cache_bytes: 16 << 20,
        log_id_if_new: [7; 16],
        clock: Arc::new(SystemClock),
    };
    let (log, _) = EmbeddedLog::open(options).expect("a log");
    let record = payload(0);
    let mut group = c.benchmark_group("log");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(record.len() as u64 * 16 * 8));
    group.bench_function("8 requests at once, durable", |b| {
        b.iter(|| {
            let request = || AppendRequest {
                records: (0..16).map(|shard| (ShardId(shard), record.clone())).collect(),
            };
            let tickets: Vec<_> = (0..8).map(|_| log.append(request()).expect("taken")).collect();
            tickets.into_iter().for_each(|ticket| {
                ticket.blocking_recv().expect("answered").expect("durable");
            });
            let ends: Vec<u64> = (0..16).map(|shard| log.end(ShardId(shard))).collect();
            log.release(&ends).expect("released")
        });
    });
    group.finish();
    log.close();
}

fn archive(c: &mut Criterion) {
    let record = |n: u64| LogRecord {
        offset: n,
        appended: 1_790_000_000_000,
        received: 1_790_000_000_000,
        payload: payload(n),
    };
    let records: Vec<LogRecord> = (0..1_000).map(record).collect();
    let epoch = Epoch { counter: 1, nonce: 1 };
    let mut group = c.benchmark_group("archive");
    group.throughput(Throughput::Elements(records.len() as u64 * EVENTS));
    group.sample_size(10);
    let encode = || {
        parquet::encode(LOG, ShardId(0), epoch, &records, &RangeDecisions::default())
            .expect("encodes")
    };
    group.bench_function("encode 100,000 events", |b| b.iter(encode));
    let (bytes, row) = encode();
    let bytes = bytes::Bytes::from(bytes);
    group.bench_function("decode them", |b| {
        b.iter(|| parquet::decode(bytes.clone(), &row).expect("decodes").records.len())
    });
}

fn store_query(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(dir.path().join("store.sqlite")).expect("a store");
    let claim = store.claim(ShardId(0), LOG, 1).expect("claim");
    let info =
        |n| Arc::new(SeriesInfo { id: SeriesId::of_key(&series(n).key()), series: series(n) });
    let mut rollup = Rollup::default();
    rollup.add(Some(Decimal::from_units(1)), Some(1));
    for day in 0..5u64 {
        let deltas = (0..1_000u64).flat_map(|n| (0..24).map(move |h| (n, h)));
        let deltas = deltas
            .map(|(n, h)| Delta {
                series: info(n),
                hour: Hour(day as i32 * 24 + h),
                rollup: rollup.clone(),
            })
            .collect();
        let guard = FlushGuard {
            shard: ShardId(0),
            log: LOG,
            range: OffsetRange { from: day, to: day + 1 },
            epoch: claim.checkpoint.epoch,
        };
        store.flush(guard, &FlushBatch { deltas, ..FlushBatch::default() }, 0).expect("flush");
    }
    let query = RollupQuery {
        tenant: "bench",
        metric: "page_view",
        matchers: &[],
        from: Hour(0),
        to: Hour(120),
        distinct: false,
        quantiles: false,
        max_series: 10_000,
        budget: None,
        generation: GenerationId::INGEST,
    };
    let mut group = c.benchmark_group("store");
    group.sample_size(20);
    group.throughput(Throughput::Elements(120_000));
    group.bench_function("scan 120,000 rollups", |b| {
        b.iter(|| {
            let mut sum = 0;
            store
                .snapshot()
                .and_then(|mut s| s.rollups(&query, &mut |_, _, r| sum += r.figures.sum))
                .expect("rows");
            sum
        });
    });
    group.finish();
}

criterion_group!(benches, codec_and_apply, sketches, queues, log_append, archive, store_query);
criterion_main!(benches);

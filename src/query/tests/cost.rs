//! The cost of a query is counted while it runs: it is aborted as soon as it is too large, and
//! leaves nothing charged.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::model::budget::AbortReason;
use crate::model::share::SharePool;

const SERIES: usize = 1_000;

/// An engine over 1,000 series in each of the hours.
fn engine(hours: impl Iterator<Item = i32> + Clone, max_points: usize) -> Arc<QueryEngine> {
    let store = MemoryStore::new();
    let mut rollup = Rollup::default();
    rollup.add(None, None);
    let series = (0..SERIES).map(|n| Series::new("t", "m", [("s".to_owned(), format!("{n:05}"))]));
    let deltas = series
        .map(|series| Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series }))
        .flat_map(|info| hours.clone().map(move |hour| (info.clone(), Hour(START + hour))))
        .map(|(series, hour)| Delta { series, hour, rollup: rollup.clone() })
        .collect();
    let claim = store.claim(ShardId(0), LOG, 1).expect("claim");
    let guard = FlushGuard {
        shard: ShardId(0),
        log: LOG,
        range: OffsetRange { from: 0, to: 1 },
        epoch: claim.checkpoint.epoch,
    };
    store.flush(guard, &FlushBatch { deltas, ..FlushBatch::default() }, 0).expect("flush");
    let limits = QueryLimits {
        max_points,
        max_series: SERIES,
        stale_after_ms: 10_000,
        cache_bytes: 1 << 20,
    };
    QueryEngine::new(
        store,
        Arc::new(Idle),
        ManualClock::at(i64::from(START + 24 * 200) * HOUR_MS),
        limits,
    )
}

fn params(step: &str, hours: i32, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let time = |hour: i32| (i64::from(START + hour) * HOUR_MS).to_string();
    let own = [("metric", "m".to_owned()), ("by", "s".to_owned()), ("step", step.to_owned())];
    let range = [("from", time(0)), ("to", time(hours))];
    let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
    own.into_iter().chain(range).chain(more).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A budget out of a pool of `bytes`.
fn budget(bytes: u64) -> (QueryBudget, Arc<SharePool>) {
    let shares = SharePool::new("query.max_memory", bytes, Arc::new(AtomicBool::new(true)));
    (QueryBudget::from_share(shares.take(&"t".into(), 0).expect("nothing is there")), shares)
}

#[test]
fn a_query_of_too_many_points_ends_at_the_limit() {
    // 60,000 points take about 14 MB; the query is aborted long before that.
    let engine = engine(0..60, 5_000);
    let (budget, shares) = budget(4 << 20);
    let refused = read_routes::query(&*engine, "t", &params("1h", 60, &[]), 0, &budget)
        .expect_err("too many");
    assert_eq!((refused.code, refused.status.as_u16()), ("too_many_points", 422), "{refused}");
    assert!(refused.message.contains("query.max_points"), "{refused}");
    // Only the list of series is still charged, until the query is dropped.
    assert!(
        budget.charged_bytes() < 300_000,
        "what was counted is given back: {}",
        budget.charged_bytes()
    );
    drop(budget);
    assert_eq!(shares.usage("t").held, 0);
}

#[test]
fn a_query_that_needs_too_much_memory_ends_there() {
    let engine = engine(0..60, 1_000_000);
    let (small, _shares) = budget(4 << 20);
    let refused = read_routes::query(&*engine, "t", &params("1h", 60, &[]), 0, &small)
        .expect_err("too large");
    assert_eq!((refused.code, refused.status.as_u16()), ("query_too_large", 422), "{refused}");
    let (large, _shares) = budget(64 << 20);
    assert!(read_routes::query(&*engine, "t", &params("1h", 60, &[]), 0, &large).is_ok());
}

#[test]
fn days_of_many_groups_do_not_lie_in_memory_together() {
    // 1,000 points in the answer but 150,000 in the cached days, which would take more than 100 MB.
    let engine = engine((0..150).map(|day| day * 24 + 1), 10_000);
    let (budget, _shares) = budget(56 << 20);
    let answer = read_routes::query(&*engine, "t", &params("all", 150 * 24, &[]), 0, &budget)
        .unwrap_or_else(|e| panic!("{e}"));
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let series = answer["series"].as_array().expect("series");
    assert_eq!(series.len(), SERIES);
    assert!(series.iter().all(|one| one["points"][0]["count"] == 150));
}

#[test]
fn an_ended_query_reads_no_further() {
    let engine = engine(0..60, 1_000_000);
    for (why, code) in [
        (AbortReason::Abandoned, "query_abandoned"),
        (AbortReason::TimedOut, "query_timeout"),
        (AbortReason::TenantBusy, "tenant_overloaded"),
    ] {
        let budget = QueryBudget::default();
        budget.abort(why);
        let refused = read_routes::query(&*engine, "t", &params("1h", 60, &[]), 0, &budget)
            .expect_err("ended");
        assert_eq!(refused.code, code);
    }
}

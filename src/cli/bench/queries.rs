//! Query latency: thousands of small queries, and one that reads much.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;

use super::BenchFigures;
use super::client::HttpClient;
use super::load::{self, LoadTarget, percentile_ms};
use super::shape::EventShape;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::model::window::HOUR_MS;

pub(super) const SERIES: u64 = 1_000;
const DAYS: i64 = 30;
const QUERY_TIME: Duration = Duration::from_secs(5);
/// How often the large query is repeated; the median is reported.
const REPEATS: usize = 9;

pub(super) async fn measure(
    target: &LoadTarget,
    shape: &EventShape,
    connections: u32,
) -> anyhow::Result<BenchFigures> {
    let now = SystemClock.now();
    let to = now - now.rem_euclid(24 * HOUR_MS);
    let from = to - DAYS * 24 * HOUR_MS;
    fill(target, shape, &FillPlan { from, hours: DAYS * 24, per_hour: 1 }).await?;
    // Waits for more than two flush intervals of ten seconds, so that queries read from the store.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let metric = shape.metric();
    let day = format!("metric={metric}&from={}&to={to}&step=1h&agg=count,sum", to - 24 * HOUR_MS);
    let small = |n: u64| format!("/v1/query?{day}&where=%7Bseries=%22s{n:08}%22%7D");
    let large = format!("/v1/query?metric={metric}&from={from}&to={to}&step=1d&agg=sum&by=series");
    let mut client = target.connect().await?;
    let cold = query_once(&mut client, &large).await?;
    let mut warm = Vec::new();
    for _ in 0..REPEATS {
        warm.push(query_once(&mut client, &large).await?);
    }
    warm.sort_by(f64::total_cmp);
    let asked = query_concurrently(target, connections, QUERY_TIME, small).await?;
    Ok(vec![
        ("stored_rollups", (SERIES as i64 * DAYS * 24) as f64, "rows"),
        (
            "small_queries_per_second",
            asked.per_second(),
            "/s, 24 hourly points of one series, different ones",
        ),
        ("small_query_p50", asked.percentile_ms(0.5), "ms"),
        ("small_query_p99", asked.percentile_ms(0.99), "ms"),
        ("large_query_first", cold, "ms, daily sum of 1,000 series over 30 days"),
        ("large_query_median", warm[warm.len() / 2], "ms"),
    ])
}

/// The hours to fill, and the events of each series per hour.
pub(super) struct FillPlan {
    pub(super) from: i64,
    pub(super) hours: i64,
    /// At most 11: events of an hour are five minutes apart.
    pub(super) per_hour: i64,
}

/// Sends the events, one of every series per request, and waits until they are counted.
pub(super) async fn fill(
    target: &LoadTarget,
    shape: &EventShape,
    filling: &FillPlan,
) -> anyhow::Result<()> {
    let shape = EventShape { series: SERIES, batch: SERIES as usize, ..*shape };
    let mut line = target.open().await?;
    let mut body = line.body(&shape);
    let requests = filling.hours * filling.per_hour;
    let bar = indicatif::ProgressBar::new(requests.unsigned_abs())
        .with_style(super::super::bar_style("requests of a filling"));
    for request in 0..requests {
        let (hour, minute) = (request / filling.per_hour, 1 + 5 * (request % filling.per_hour));
        body.patch(
            &shape,
            request.unsigned_abs() * SERIES,
            filling.from + hour * HOUR_MS + minute * 60_000,
        );
        // `patch` spreads events over the series unevenly; here every series gets the same number.
        body.one_of_each_series(&shape, 0);
        line.send(&body.bytes).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let expected = SERIES * requests.unsigned_abs();
    let counted = load::count_between(
        target,
        &shape,
        filling.from,
        filling.from + filling.hours * HOUR_MS,
        expected,
    )
    .await?;
    if counted != expected {
        bail!("{expected} events were sent, {counted} are counted");
    }
    Ok(())
}

/// Runs one query and returns its latency in milliseconds.
async fn query_once(client: &mut HttpClient, path: &str) -> anyhow::Result<f64> {
    let watch = Stopwatch::start();
    let (status, answer) = client.get(path).await?;
    let time = watch.elapsed().as_secs_f64() * 1e3;
    if status != 200 {
        bail!("{path} was answered {status}: {}", String::from_utf8_lossy(&answer));
    }
    Ok(time)
}

/// Latencies of the queries of one or more rounds.
#[derive(Debug, Default)]
pub(super) struct QueryLatencies {
    pub(super) seconds: f64,
    sorted_us: Vec<u32>,
}

impl QueryLatencies {
    pub(super) fn questions(&self) -> usize {
        self.sorted_us.len()
    }

    pub(super) fn per_second(&self) -> f64 {
        self.sorted_us.len() as f64 / self.seconds
    }

    pub(super) fn percentile_ms(&self, share: f64) -> f64 {
        percentile_ms(&self.sorted_us, share)
    }

    /// Merges the results of a further round.
    pub(super) fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.sorted_us.extend(other.sorted_us);
        self.sorted_us.sort_unstable();
    }
}

/// Queries on all connections at once, a different series each time.
pub(super) async fn query_concurrently(
    target: &LoadTarget,
    connections: u32,
    time: Duration,
    path: impl Fn(u64) -> String,
) -> anyhow::Result<QueryLatencies> {
    let next = Rc::new(Cell::new(0u64));
    let times = Rc::new(RefCell::new(Vec::new()));
    let paths: Rc<Vec<String>> = Rc::new((0..SERIES).map(path).collect());
    let watch = Rc::new(Stopwatch::start());
    let tasks = tokio::task::LocalSet::new();
    let mut handles = Vec::new();
    for _ in 0..connections {
        let (next, times, paths, watch) =
            (next.clone(), times.clone(), paths.clone(), watch.clone());
        let mut client = target.connect().await?;
        handles.push(tasks.spawn_local(async move {
            while watch.elapsed() < time {
                next.set(next.get() + 1);
                let milliseconds =
                    query_once(&mut client, &paths[(next.get() % SERIES) as usize]).await?;
                times.borrow_mut().push((milliseconds * 1e3) as u32);
            }
            anyhow::Ok(())
        }));
    }
    for ended in tasks.run_until(futures::future::join_all(handles)).await {
        ended??;
    }
    let mut asked =
        QueryLatencies { seconds: watch.elapsed().as_secs_f64(), sorted_us: times.take() };
    asked.sorted_us.sort_unstable();
    Ok(asked)
}

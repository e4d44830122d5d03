//! How fast questions are answered: small ones by the thousand, and one that reads much.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;

use super::Figures;
use super::client::Client;
use super::events::{Body, Shape};
use super::load::{self, Target};
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::model::window::HOUR_MS;

const SERIES: u64 = 1_000;
const DAYS: i64 = 30;
const ASKING: Duration = Duration::from_secs(5);
/// A question is asked so many times, and the median counts.
const REPEATS: usize = 9;

pub(super) async fn measure(target: &Target, shape: &Shape, connections: u32) -> anyhow::Result<Figures> {
    let now = SystemClock.now();
    let to = now - now.rem_euclid(24 * HOUR_MS);
    let from = to - DAYS * 24 * HOUR_MS;
    fill(target, shape, from).await?;
    let metric = shape.metric();
    let day = format!("metric={metric}&from={}&to={to}&step=1h&agg=count,sum", to - 24 * HOUR_MS);
    let small = |n: u64| format!("/v1/query?{day}&where=%7Bseries=%22s{n:08}%22%7D");
    let large = format!("/v1/query?metric={metric}&from={from}&to={to}&step=1d&agg=sum&by=series");
    let mut client = target.connect().await?;
    let cold = once(&mut client, &large).await?;
    let mut warm = Vec::new();
    for _ in 0..REPEATS {
        warm.push(once(&mut client, &large).await?);
    }
    warm.sort_by(f64::total_cmp);
    let per_second = many(target, connections, small).await?;
    Ok(vec![
        ("stored_rollups", (SERIES as i64 * DAYS * 24) as f64, "rows"),
        ("small_queries_per_second", per_second, "/s, 24 hourly points of one series, different ones"),
        ("large_query_first", cold, "ms, daily sum of 1,000 series over 30 days"),
        ("large_query_median", warm[warm.len() / 2], "ms"),
    ])
}

/// One event for every series and hour.
async fn fill(target: &Target, shape: &Shape, from: i64) -> anyhow::Result<()> {
    let shape = Shape { series: SERIES, batch: SERIES as usize, ..*shape };
    let mut client = target.connect().await?;
    let mut body = Body::new(&shape, |length| client.post_head(length));
    let bar = indicatif::ProgressBar::new((DAYS * 24).unsigned_abs()).with_style(super::super::bar_style("hours filled"));
    for hour in 0..DAYS * 24 {
        body.patch(&shape, hour.unsigned_abs() * SERIES, from + hour * HOUR_MS);
        body.every_series_once(&shape);
        loop {
            let (status, answer) = client.exchange(&body.bytes).await?;
            match status {
                202 => break,
                429 | 503 => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => bail!("the server answered {status}: {}", String::from_utf8_lossy(&answer)),
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let expected = SERIES * (DAYS * 24).unsigned_abs();
    let query = Shape { series: SERIES, ..shape };
    let counted = load::count_between(target, &query, from, from + DAYS * 24 * HOUR_MS, expected).await?;
    if counted != expected {
        bail!("{expected} events were sent, {counted} are in the rollups");
    }
    // What is asked about is what lies in the store: flushes come every ten seconds.
    tokio::time::sleep(Duration::from_secs(25)).await;
    Ok(())
}

/// Milliseconds of one question.
async fn once(client: &mut Client, path: &str) -> anyhow::Result<f64> {
    let watch = Stopwatch::start();
    let (status, answer) = client.get(path).await?;
    let time = watch.elapsed().as_secs_f64() * 1e3;
    if status != 200 {
        bail!("{path} was answered {status}: {}", String::from_utf8_lossy(&answer));
    }
    Ok(time)
}

async fn many(target: &Target, connections: u32, path: impl Fn(u64) -> String) -> anyhow::Result<f64> {
    let asked = Rc::new(Cell::new(0u64));
    let paths: Rc<Vec<String>> = Rc::new((0..SERIES).map(path).collect());
    let watch = Rc::new(Stopwatch::start());
    let tasks = tokio::task::LocalSet::new();
    let mut handles = Vec::new();
    for _ in 0..connections {
        let (asked, paths, watch, mut client) = (asked.clone(), paths.clone(), watch.clone(), target.connect().await?);
        handles.push(tasks.spawn_local(async move {
            while watch.elapsed() < ASKING {
                asked.set(asked.get() + 1);
                once(&mut client, &paths[(asked.get() % SERIES) as usize]).await?;
            }
            anyhow::Ok(())
        }));
    }
    for ended in tasks.run_until(futures::future::join_all(handles)).await {
        ended??;
    }
    Ok(asked.get() as f64 / watch.elapsed().as_secs_f64())
}

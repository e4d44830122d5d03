//! Sending as fast as the server takes it, counting what was acknowledged, and how soon it shows in a query.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;

use super::Figures;
use super::client::Client;
use super::events::{Body, Shape};
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::model::window::HOUR_MS;

/// Between two measurements of freshness.
const PROBE_EVERY: Duration = Duration::from_millis(50);

/// Where the load goes.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) key: Option<String>,
}

impl Target {
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        Client::connect(self.address, self.key.as_deref()).await
    }
}

pub(super) struct Plan {
    pub(super) shape: Shape,
    pub(super) connections: u32,
    pub(super) seconds: u32,
    pub(super) rate: Option<u64>,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) acked: u64,
    pub(super) seconds: f64,
    refusals: u64,
    ack_us: Vec<u32>,
    fresh_us: Vec<u32>,
}

#[derive(Default)]
struct Tally {
    next: Cell<u64>,
    acked: Cell<u64>,
    refusals: Cell<u64>,
    ack_us: RefCell<Vec<u32>>,
    fresh_us: RefCell<Vec<u32>>,
}

pub(super) async fn run(target: &Target, plan: &Plan) -> anyhow::Result<Outcome> {
    let tally = Rc::new(Tally::default());
    let watch = Rc::new(Stopwatch::start());
    let bar = indicatif::ProgressBar::new(u64::from(plan.seconds)).with_style(super::super::bar_style("s"));
    let tasks = tokio::task::LocalSet::new();
    let mut handles = Vec::new();
    for _ in 0..plan.connections {
        let (tally, watch, client) = (tally.clone(), watch.clone(), target.connect().await?);
        handles.push(tasks.spawn_local(connection(client, plan.shape, plan.seconds, plan.rate, tally, watch)));
    }
    let probe = (target.connect().await?, target.connect().await?);
    handles.push(tasks.spawn_local(freshness(probe, plan.shape.run, plan.seconds, tally.clone(), watch.clone())));
    let ended = tasks
        .run_until(async {
            for second in 1..=plan.seconds {
                let left = Duration::from_secs(u64::from(second)).saturating_sub(watch.elapsed());
                tokio::time::sleep(left).await;
                bar.set_position(u64::from(second));
            }
            futures::future::join_all(handles).await
        })
        .await;
    bar.finish_and_clear();
    let seconds = watch.elapsed().as_secs_f64();
    for ended in ended {
        ended??;
    }
    let mut outcome = Outcome {
        acked: tally.acked.get(),
        seconds,
        refusals: tally.refusals.get(),
        ack_us: tally.ack_us.take(),
        fresh_us: tally.fresh_us.take(),
    };
    outcome.ack_us.sort_unstable();
    outcome.fresh_us.sort_unstable();
    Ok(outcome)
}

async fn connection(
    mut client: Client,
    shape: Shape,
    seconds: u32,
    rate: Option<u64>,
    tally: Rc<Tally>,
    watch: Rc<Stopwatch>,
) -> anyhow::Result<()> {
    let until = Duration::from_secs(u64::from(seconds));
    let mut body = Body::new(&shape, |length| client.post_head(length));
    while watch.elapsed() < until {
        let first = tally.next.get();
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(first as f64 / rate as f64);
            tokio::time::sleep(due.saturating_sub(watch.elapsed())).await;
        }
        tally.next.set(first + shape.batch as u64);
        body.patch(&shape, first, SystemClock.now());
        let asked = watch.elapsed();
        loop {
            let (status, answer) = client.exchange(&body.bytes).await?;
            match status {
                202 => break,
                // The same events again: whatever was taken is not counted twice.
                429 | 503 => {
                    tally.refusals.set(tally.refusals.get() + 1);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                _ => bail!("the server answered {status}: {}", String::from_utf8_lossy(&answer)),
            }
        }
        tally.ack_us.borrow_mut().push(micros(watch.elapsed() - asked));
        tally.acked.set(tally.acked.get() + shape.batch as u64);
    }
    Ok(())
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// From the 202 of an event until a query counts it.
async fn freshness(
    probe: (Client, Client),
    run: u32,
    seconds: u32,
    tally: Rc<Tally>,
    watch: Rc<Stopwatch>,
) -> anyhow::Result<()> {
    let (mut writer, mut reader) = probe;
    let metric = format!("fresh_{run:08x}");
    let query = format!("/v1/query?metric={metric}&step=all");
    let mut written = 0;
    while watch.elapsed() < Duration::from_secs(u64::from(seconds)) {
        let body = format!(r#"{{"metric":"{metric}","id":"{written}"}}"#);
        let request = [writer.post_head(body.len()), body.into_bytes()].concat();
        let (status, _) = writer.exchange(&request).await?;
        if status != 202 {
            tokio::time::sleep(PROBE_EVERY).await;
            continue;
        }
        written += 1;
        let acked = watch.elapsed();
        loop {
            let (status, answer) = reader.get(&query).await?;
            if status == 200 && count(&answer)? >= written {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tally.fresh_us.borrow_mut().push(micros(watch.elapsed() - acked));
        tokio::time::sleep(PROBE_EVERY).await;
    }
    Ok(())
}

fn count(answer: &[u8]) -> anyhow::Result<u64> {
    let answer: serde_json::Value = serde_json::from_slice(answer)?;
    let points = answer["series"].as_array().into_iter().flatten().filter_map(|series| series["points"].as_array()).flatten();
    Ok(points.filter_map(|point| point["count"].as_u64()).sum())
}

/// What the server counted of the run, as soon as it is `expected`, or after a minute.
pub(super) async fn count_of(target: &Target, shape: &Shape, expected: u64) -> anyhow::Result<u64> {
    let now = SystemClock.now();
    count_between(target, shape, now - 24 * HOUR_MS, now + HOUR_MS, expected).await
}

/// The same, between two times.
pub(super) async fn count_between(target: &Target, shape: &Shape, from: i64, to: i64, expected: u64) -> anyhow::Result<u64> {
    let mut client = target.connect().await?;
    let watch = Stopwatch::start();
    let path = format!("/v1/query?metric={}&from={from}&to={to}&step=all", shape.metric());
    loop {
        let (status, answer) = client.get(&path).await?;
        if (400..500).contains(&status) && status != 429 {
            bail!("the server refused to count: {status}: {}", String::from_utf8_lossy(&answer));
        }
        let counted = if status == 200 { count(&answer)? } else { 0 };
        if counted == expected || watch.elapsed() > Duration::from_secs(60) {
            return Ok(counted);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Outcome {
    pub(super) fn figures(&self, shape: &Shape) -> Figures {
        let rate = self.acked as f64 / self.seconds;
        let at = |sorted: &[u32], share: f64| match sorted.len() {
            0 => 0.0,
            n => f64::from(sorted[((n - 1) as f64 * share) as usize]) / 1_000.0,
        };
        vec![
            ("events", self.acked as f64, "acknowledged, all counted exactly once"),
            ("events_per_second", rate, "/s"),
            ("megabytes_per_second", rate * shape.bytes as f64 / 1e6, "MB/s"),
            ("ack_p50", at(&self.ack_us, 0.5), "ms"),
            ("ack_p99", at(&self.ack_us, 0.99), "ms"),
            ("fresh_p50", at(&self.fresh_us, 0.5), "ms from 202 to being in an answer"),
            ("fresh_p99", at(&self.fresh_us, 0.99), "ms"),
            ("overload_answers", self.refusals as f64, "429 or 503, repeated"),
        ]
    }
}

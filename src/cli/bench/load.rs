//! The load generator: sends as fast as the server accepts, counts what was acknowledged, and
//! measures how soon an event shows in a query.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;

use super::BenchFigures;
use super::client::HttpClient;
use super::events::BenchBody;
use super::shape::EventShape;
use super::wire::WireProtocol;
use crate::cli::client::HttpAnswer;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::model::window::HOUR_MS;

/// Pause between two measurements of freshness.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Pause before a refused or unanswered request is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a server may be unreachable before its requests count as unanswered.
const MAX_OUTAGE: Duration = Duration::from_secs(60);

/// The server to load.
#[derive(Clone)]
pub(super) struct LoadTarget {
    pub(super) address: SocketAddr,
    pub(super) key: Option<String>,
    pub(super) wire: WireProtocol,
}

impl LoadTarget {
    pub(super) async fn connect(&self) -> anyhow::Result<HttpClient> {
        HttpClient::connect(self.address, self.key.as_deref()).await
    }

    pub(super) async fn open(&self) -> anyhow::Result<LoadConnection> {
        Ok(LoadConnection { client: self.connect().await?, wire: self.wire })
    }
}

/// One round of load.
pub(super) struct LoadPlan {
    pub(super) shape: EventShape,
    pub(super) connections: u32,
    pub(super) seconds: u32,
    pub(super) rate: Option<u64>,
    pub(super) begin: LoadPosition,
}

/// How much of the run has been sent, so that the next round sends different events.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LoadPosition {
    pub(super) events: u64,
    pub(super) probes: u64,
}

/// Results of one or more rounds.
#[derive(Debug, Default)]
pub(super) struct LoadResult {
    pub(super) acked: u64,
    pub(super) seconds: f64,
    pub(super) next: LoadPosition,
    /// Events of requests that never got an answer: they may be counted or not.
    pub(super) unanswered: u64,
    refusals: u64,
    lost: u64,
    ack_us: Vec<u32>,
    fresh_us: Vec<u32>,
}

#[derive(Default)]
struct LoadTally {
    next: Cell<u64>,
    probes: Cell<u64>,
    acked: Cell<u64>,
    unanswered: Cell<u64>,
    refusals: Cell<u64>,
    lost: Cell<u64>,
    ack_us: RefCell<Vec<u32>>,
    fresh_us: RefCell<Vec<u32>>,
}

pub(super) async fn run(target: &LoadTarget, plan: &LoadPlan) -> anyhow::Result<LoadResult> {
    let tally = LoadTally {
        next: Cell::new(plan.begin.events),
        probes: Cell::new(plan.begin.probes),
        ..LoadTally::default()
    };
    let tally = Rc::new(tally);
    let watch = Rc::new(Stopwatch::start());
    let bar = indicatif::ProgressBar::new(u64::from(plan.seconds))
        .with_style(super::super::bar_style("s"));
    let tasks = tokio::task::LocalSet::new();
    let mut handles = Vec::new();
    for _ in 0..plan.connections {
        let (tally, watch, line) = (tally.clone(), watch.clone(), target.open().await?);
        let pace = RateLimit { rate: plan.rate, begin: plan.begin.events };
        handles.push(tasks.spawn_local(connection(
            line,
            plan.shape,
            plan.seconds,
            pace,
            tally,
            watch,
        )));
    }
    // On connections of its own, so that it does not wait behind the load.
    let probe = (target.open().await?, target.connect().await?);
    handles.push(tasks.spawn_local(freshness(
        probe,
        plan.shape.run,
        plan.seconds,
        tally.clone(),
        watch.clone(),
    )));
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
    let mut outcome = LoadResult {
        acked: tally.acked.get(),
        seconds,
        next: LoadPosition { events: tally.next.get(), probes: tally.probes.get() },
        unanswered: tally.unanswered.get(),
        refusals: tally.refusals.get(),
        lost: tally.lost.get(),
        ack_us: tally.ack_us.take(),
        fresh_us: tally.fresh_us.take(),
    };
    outcome.ack_us.sort_unstable();
    outcome.fresh_us.sort_unstable();
    Ok(outcome)
}

/// A connection, and the protocol spoken on it.
pub(super) struct LoadConnection {
    client: HttpClient,
    wire: WireProtocol,
}

impl LoadConnection {
    /// A request for events of this shape: head and body in one buffer.
    pub(super) fn body(&self, shape: &EventShape) -> BenchBody {
        BenchBody::new(shape, self.wire, |length| self.client.post_head(self.wire, length))
    }

    /// Sends a request until it is accepted. It repeats the same event ids, so that no
    /// event is counted twice.
    pub(super) async fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        match self.try_to_send(request).await? {
            SendAttempts { unanswered: Some(why), .. } => Err(why),
            _ => Ok(()),
        }
    }

    /// Like [`Self::send`], but reports a server that is away for too long as a
    /// result, not an error.
    async fn try_to_send(&mut self, request: &[u8]) -> anyhow::Result<SendAttempts> {
        let mut tries = SendAttempts::default();
        let mut away: Option<Stopwatch> = None;
        loop {
            match self.client.exchange(request).await {
                Ok((status, _)) if self.wire.takes(status) => return Ok(tries),
                Ok((429 | 503, _)) => {
                    away = None;
                    // The outage is over: the server answers, if only to refuse.
                    tries.refusals += 1;
                }
                Ok((status, answer)) => {
                    bail!("the server refused events: {}", sentence(status, &answer))
                }
                Err(why) => {
                    tries.lost += u64::from(away.is_none());
                    if away.get_or_insert_with(Stopwatch::start).elapsed() > MAX_OUTAGE {
                        return Ok(SendAttempts { unanswered: Some(why), ..tries });
                    }
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// What it took to send a request.
#[derive(Default)]
struct SendAttempts {
    refusals: u64,
    /// Connections that broke without an answer; failed attempts to reopen one are not counted.
    lost: u64,
    /// The last error, if the request never got an answer.
    unanswered: Option<anyhow::Error>,
}

/// Limits the events per second, counted from the start of the round.
struct RateLimit {
    rate: Option<u64>,
    begin: u64,
}

async fn connection(
    mut line: LoadConnection,
    shape: EventShape,
    seconds: u32,
    pace: RateLimit,
    tally: Rc<LoadTally>,
    watch: Rc<Stopwatch>,
) -> anyhow::Result<()> {
    let until = Duration::from_secs(u64::from(seconds));
    let mut body = line.body(&shape);
    while watch.elapsed() < until {
        let first = tally.next.get();
        // Reserved before the wait: other connections must not send the same events.
        tally.next.set(first + shape.batch as u64);
        if let Some(rate) = pace.rate {
            let due = Duration::from_secs_f64((first - pace.begin) as f64 / rate as f64);
            tokio::time::sleep(due.saturating_sub(watch.elapsed())).await;
        }
        body.patch(&shape, first, SystemClock.now());
        let asked = watch.elapsed();
        let tries = line.try_to_send(&body.bytes).await?;
        tally.refusals.set(tally.refusals.get() + tries.refusals);
        tally.lost.set(tally.lost.get() + tries.lost);
        if tries.unanswered.is_some() {
            tally.unanswered.set(tally.unanswered.get() + shape.batch as u64);
            return Ok(());
        }
        tally.ack_us.borrow_mut().push(micros(watch.elapsed() - asked));
        tally.acked.set(tally.acked.get() + shape.batch as u64);
    }
    Ok(())
}

/// The server's error as a sentence.
fn sentence(status: u16, answer: &[u8]) -> String {
    HttpAnswer {
        status,
        retry_after: None,
        text: String::from_utf8_lossy(answer).into_owned(),
        completeness: None,
    }
    .sentence()
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// The metric of the events whose freshness is measured.
pub(super) fn probe_metric(run: u32) -> String {
    format!("fresh_{run:08x}")
}

/// Measures the time from the acknowledgement of an event until a query counts it.
async fn freshness(
    probe: (LoadConnection, HttpClient),
    run: u32,
    seconds: u32,
    tally: Rc<LoadTally>,
    watch: Rc<Stopwatch>,
) -> anyhow::Result<()> {
    let (LoadConnection { client: mut writer, wire }, mut reader) = probe;
    let metric = probe_metric(run);
    let until = Duration::from_secs(u64::from(seconds));
    while watch.elapsed() < until {
        let body = wire.probe(&metric, tally.probes.get(), SystemClock.now());
        let request = [writer.post_head(wire, body.len()), body.into_bytes()].concat();
        let taken = writer.exchange(&request).await.is_ok_and(|(status, _)| wire.takes(status));
        if !taken {
            tokio::time::sleep(PROBE_EVERY).await;
            continue;
        }
        tally.probes.set(tally.probes.get() + 1);
        let acked = watch.elapsed();
        // A failed query counts as not visible: the server may be restarting.
        while !is_visible(&mut reader, wire, &metric, tally.probes.get()).await.unwrap_or(false) {
            // Rollmill is given time after the round. A server that takes seconds to show an event
            // is not: waiting would make the round longer than its load.
            if watch.elapsed() >= until
                && (wire != WireProtocol::Rollmill || watch.elapsed() - acked > MAX_OUTAGE)
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tally.fresh_us.borrow_mut().push(micros(watch.elapsed() - acked));
        tokio::time::sleep(PROBE_EVERY).await;
    }
    Ok(())
}

/// Whether a query counts at least this many events of the metric.
pub(super) async fn is_visible(
    reader: &mut HttpClient,
    wire: WireProtocol,
    metric: &str,
    events: u64,
) -> anyhow::Result<bool> {
    let now = SystemClock.now();
    let (status, answer) =
        reader.get(&wire.count_path(metric, now - 24 * HOUR_MS, now + HOUR_MS)).await?;
    Ok(status == 200 && wire.count(&answer)? >= events)
}

/// The number of the run's events that the server counts, as soon as it is `expected`
/// or after a minute.
pub(super) async fn count_of(
    target: &LoadTarget,
    shape: &EventShape,
    expected: u64,
) -> anyhow::Result<u64> {
    let now = SystemClock.now();
    count_between(target, shape, now - 24 * HOUR_MS, now + HOUR_MS, expected).await
}

/// Like [`count_of`], for events between two times.
pub(super) async fn count_between(
    target: &LoadTarget,
    shape: &EventShape,
    from: i64,
    to: i64,
    expected: u64,
) -> anyhow::Result<u64> {
    let mut client = target.connect().await?;
    let watch = Stopwatch::start();
    let path = target.wire.count_path(&shape.metric(), from, to);
    loop {
        let (status, answer) = match client.get(&path).await {
            Ok(answer) => answer,
            Err(why) if watch.elapsed() > MAX_OUTAGE => {
                return Err(why.context("the server was not there to count"));
            }
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if (400..500).contains(&status) && status != 429 {
            bail!("the server refused to count: {}", sentence(status, &answer));
        }
        let counted = if status == 200 { target.wire.count(&answer)? } else { 0 };
        if counted == expected || watch.elapsed() > Duration::from_secs(60) {
            return Ok(counted);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A percentile of sorted microseconds, in milliseconds; `share` is between 0 and 1.
pub(super) fn percentile_ms(sorted: &[u32], share: f64) -> f64 {
    match sorted.len() {
        0 => 0.0,
        n => f64::from(sorted[((n - 1) as f64 * share) as usize]) / 1_000.0,
    }
}

impl LoadResult {
    /// Merges the results of a further round.
    pub(super) fn add(&mut self, other: Self) {
        self.acked += other.acked;
        self.seconds += other.seconds;
        self.next = other.next;
        self.refusals += other.refusals;
        self.unanswered += other.unanswered;
        self.lost += other.lost;
        self.ack_us.extend(other.ack_us);
        self.fresh_us.extend(other.fresh_us);
        self.ack_us.sort_unstable();
        self.fresh_us.sort_unstable();
    }

    /// Latencies of acknowledgements in microseconds, sorted.
    pub(super) fn ack_us(&self) -> &[u32] {
        &self.ack_us
    }

    /// Times until events showed in a query, in microseconds, sorted.
    pub(super) fn fresh_us(&self) -> &[u32] {
        &self.fresh_us
    }

    /// Number of answers with status 429 or 503.
    pub(super) fn refusals(&self) -> u64 {
        self.refusals
    }

    pub(super) fn figures(&self, shape: &EventShape) -> BenchFigures {
        let rate = self.acked as f64 / self.seconds;
        vec![
            ("events", self.acked as f64, "acknowledged"),
            ("events_per_second", rate, "/s"),
            ("megabytes_per_second", rate * shape.bytes as f64 / 1e6, "MB/s"),
            ("ack_p50", percentile_ms(&self.ack_us, 0.5), "ms"),
            ("ack_p99", percentile_ms(&self.ack_us, 0.99), "ms"),
            ("fresh_p50", percentile_ms(&self.fresh_us, 0.5), "ms from 202 to being in an answer"),
            ("fresh_p99", percentile_ms(&self.fresh_us, 0.99), "ms"),
            ("overload_answers", self.refusals as f64, "429 or 503, repeated"),
            ("connections_lost", self.lost as f64, "made again, and the same events sent again"),
        ]
    }
}

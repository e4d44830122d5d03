//! `rollmill bench --compare`: the same events and queries for Rollmill and a peer, in one run.
//!
//! Rounds are short and alternate (A B C, A B C, ...), so that other load on the machine affects
//! all servers alike. After each round there is a pause for background work (flushes, merges). It
//! is counted as that server's CPU, and does not disturb the next one.

mod table;

use std::time::Duration;

use anyhow::{Context, bail};

use self::table::{Comparison, ServerColumn, ServerFigure};
use super::BenchArgs;
use super::load::{self, LoadPlan, LoadPosition, LoadResult, LoadTarget, percentile_ms};
use super::queries::{self, FillPlan, QueryLatencies, SERIES};
use super::server::BenchServer;
use super::shape::EventShape;
use super::victoria;
use super::wire::WireProtocol;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::model::window::HOUR_MS;

/// The server to compare Rollmill with.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum PeerServer {
    /// VictoriaMetrics, from Debian's package victoria-metrics
    VictoriaMetrics,
}

/// Longest round, in seconds.
const MAX_ROUND_SECONDS: u32 = 5;
/// Longest pause: Rollmill flushes every ten seconds and the peer within five, so a longer one
/// would catch no further work.
const MAX_PAUSE: Duration = Duration::from_secs(11);
/// Longest wait for a new series to show; the peer needs about ten seconds.
const MAX_WARM_UP: Duration = Duration::from_secs(30);
/// The queried data set: two days, with ten events per hour and series.
const FILLED_HOURS: i64 = 48;
const FILLED_PER_HOUR: i64 = 10;

/// One server in the comparison, with its results so far.
struct Contender {
    name: &'static str,
    durable: &'static str,
    kept: &'static str,
    server: BenchServer,
    target: LoadTarget,
    cpu_before: f64,
    sum: LoadResult,
    rates: Vec<f64>,
}

impl Contender {
    fn new(
        name: &'static str,
        wire: WireProtocol,
        server: BenchServer,
        [durable, kept]: [&'static str; 2],
    ) -> anyhow::Result<Self> {
        let target = LoadTarget { address: server.address, key: None, wire };
        let (cpu_before, sum, rates) = (server.cpu_seconds()?, LoadResult::default(), Vec::new());
        Ok(Self { name, durable, kept, server, target, cpu_before, sum, rates })
    }

    fn is_ours(&self) -> bool {
        self.target.wire == WireProtocol::Rollmill
    }
}

/// Number and length of the rounds of each server.
struct RoundPlan {
    count: u32,
    seconds: u32,
}

impl RoundPlan {
    /// At least two rounds if `seconds` allows it, none longer than [`MAX_ROUND_SECONDS`].
    fn of(seconds: u32) -> Self {
        let count = seconds.div_ceil(MAX_ROUND_SECONDS).max(2).min(seconds);
        Self { count, seconds: seconds / count }
    }

    fn pause(&self) -> Duration {
        Duration::from_secs(2 * u64::from(self.seconds)).min(MAX_PAUSE)
    }
}

/// Runs the comparison that the arguments select. Fails if a server cannot be started or refuses
/// requests, the peer's binary is missing, or Rollmill counted anything wrongly.
pub(super) async fn measure(args: &BenchArgs, peer: PeerServer) -> anyhow::Result<Comparison> {
    let PeerServer::VictoriaMetrics = peer;
    let binary = victoria::binary(args.victoria_binary.as_deref())?;
    let version = victoria::version(&binary)?;
    let run =
        getrandom::u32().map_err(|e| anyhow::anyhow!("no randomness for the run's name: {e}"))?;
    let shape = EventShape {
        bytes: args.bytes as usize,
        batch: args.batch as usize,
        series: args.series,
        users: args.users,
        run,
    };
    let rounds = RoundPlan::of(args.seconds);
    let mut contenders = start(args, &binary).await?;
    for contender in &mut contenders {
        warm_up(contender, run).await?;
    }
    for _ in 0..rounds.count {
        for contender in &mut contenders {
            load_once(contender, args, &shape, &rounds).await?;
        }
    }
    let mut ingest = Vec::new();
    for contender in &contenders {
        ingest.push(ingest_column(contender, &shape).await?);
    }
    // The third server differs in its ingest protocol only; queries are the same for both peers.
    contenders.truncate(2);
    let questions =
        query_rounds(&contenders, args.connections, &EventShape { run: run ^ 1, ..shape }, &rounds)
            .await?;
    Ok(Comparison {
        peer: version,
        rounds: rounds.count,
        seconds: rounds.seconds,
        ingest,
        questions,
    })
}

async fn start(args: &BenchArgs, binary: &std::path::Path) -> anyhow::Result<Vec<Contender>> {
    let ours = BenchServer::start(None, args.config.as_deref(), args.series).await?;
    let import = victoria::start(binary, "import").await?;
    let influx = victoria::start(binary, "influx").await?;
    let theirs = ["no", "value and time"];
    Ok(vec![
        Contender::new("rollmill", WireProtocol::Rollmill, ours, ["yes", "events and rollups"])?,
        Contender::new("VM JSON import", WireProtocol::JsonImport, import, theirs)?,
        Contender::new("VM Influx line", WireProtocol::InfluxLine, influx, theirs)?,
    ])
}

/// Sends the first event of the freshness probe's series, and waits until a query shows it.
async fn warm_up(contender: &mut Contender, run: u32) -> anyhow::Result<()> {
    let (wire, metric) = (contender.target.wire, load::probe_metric(run));
    let mut client = contender.target.connect().await?;
    let body = wire.probe(&metric, 0, SystemClock.now());
    let request = [client.post_head(wire, body.len()), body.into_bytes()].concat();
    let (status, answer) = client.exchange(&request).await?;
    if !wire.takes(status) {
        bail!("{} answered {status}: {}", contender.name, String::from_utf8_lossy(&answer));
    }
    contender.sum.next = LoadPosition { events: 0, probes: 1 };
    let watch = Stopwatch::start();
    while !load::is_visible(&mut client, wire, &metric, 1).await? {
        if watch.elapsed() > MAX_WARM_UP {
            bail!(
                "{} does not show an event {} s after it took it",
                contender.name,
                MAX_WARM_UP.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn load_once(
    contender: &mut Contender,
    args: &BenchArgs,
    shape: &EventShape,
    rounds: &RoundPlan,
) -> anyhow::Result<()> {
    let plan = LoadPlan {
        shape: *shape,
        connections: args.connections,
        seconds: rounds.seconds,
        rate: args.rate,
        begin: contender.sum.next,
    };
    let outcome = load::run(&contender.target, &plan)
        .await
        .with_context(|| format!("loading {}", contender.name))?;
    contender.rates.push(outcome.acked as f64 / outcome.seconds);
    contender.sum.add(outcome);
    tokio::time::sleep(rounds.pause()).await;
    Ok(())
}

async fn ingest_column(contender: &Contender, shape: &EventShape) -> anyhow::Result<ServerColumn> {
    let (sum, server) = (&contender.sum, &contender.server);
    if !contender.is_ours() {
        // Otherwise part of its data would still be in memory, and missing in its disk usage.
        victoria::flush(server).await?;
    }
    let (cpu, disk) = (server.cpu_seconds()? - contender.cpu_before, server.disk_total()?);
    let counted = load::count_of(&contender.target, shape, sum.acked).await?;
    if contender.is_ours() && counted != sum.acked {
        bail!(
            "{} events were acknowledged, {counted} are in the rollups: this must never be",
            sum.acked
        );
    }
    let events = sum.acked as f64;
    let figures = vec![
        ServerFigure::number("events", events, "acknowledged"),
        ServerFigure::number("events_counted", counted as f64, "afterwards"),
        ServerFigure::number("events_per_second", events / sum.seconds, "/s"),
        ServerFigure::number(
            "slowest_round",
            contender.rates.iter().copied().fold(f64::INFINITY, f64::min),
            "/s",
        ),
        ServerFigure::number(
            "fastest_round",
            contender.rates.iter().copied().fold(0.0, f64::max),
            "/s",
        ),
        ServerFigure::number("server_cpu_per_million_events", cpu / events * 1e6, "s"),
        ServerFigure::number("server_peak_memory", server.peak_memory()? as f64 / 1e6, "MB"),
        ServerFigure::number("disk_per_event", disk as f64 / events, "bytes"),
        ServerFigure::number("ack_p50", percentile_ms(sum.ack_us(), 0.5), "ms"),
        ServerFigure::number("ack_p99", percentile_ms(sum.ack_us(), 0.99), "ms"),
        ServerFigure::number(
            "fresh_p50",
            percentile_ms(sum.fresh_us(), 0.5),
            "ms from the acknowledgement to an answer",
        ),
        ServerFigure::number("overload_answers", sum.refusals() as f64, "429 or 503, repeated"),
        ServerFigure::text("acknowledged_is_durable", contender.durable),
        ServerFigure::text("kept", contender.kept),
    ];
    Ok(ServerColumn { name: contender.name, figures })
}

/// Queries the 24 hourly sums of a different series each time, in alternating rounds, after
/// checking that both servers return the same numbers.
async fn query_rounds(
    contenders: &[Contender],
    connections: u32,
    shape: &EventShape,
    rounds: &RoundPlan,
) -> anyhow::Result<Vec<ServerColumn>> {
    let (now, metric) = (SystemClock.now(), shape.metric());
    let to = now - now.rem_euclid(24 * HOUR_MS);
    let filling = FillPlan {
        from: to - FILLED_HOURS * HOUR_MS,
        hours: FILLED_HOURS,
        per_hour: FILLED_PER_HOUR,
    };
    for contender in contenders {
        queries::fill(&contender.target, shape, &filling)
            .await
            .with_context(|| format!("filling {}", contender.name))?;
    }
    // Waits for a flush, so that queries read from the store and not from memory.
    tokio::time::sleep(MAX_PAUSE).await;
    same_answers(contenders, &metric, to).await?;
    let mut asked: Vec<(QueryLatencies, f64)> =
        contenders.iter().map(|_| (QueryLatencies::default(), 0.0)).collect();
    for _ in 0..rounds.count {
        for (contender, (sum, cpu)) in contenders.iter().zip(&mut asked) {
            let before = contender.server.cpu_seconds()?;
            let time = Duration::from_secs(u64::from(rounds.seconds));
            let path = |n| contender.target.wire.day_path(&metric, n, to);
            sum.add(queries::query_concurrently(&contender.target, connections, time, path).await?);
            *cpu += contender.server.cpu_seconds()? - before;
        }
    }
    let column = |(contender, (asked, cpu)): (&Contender, &(QueryLatencies, f64))| ServerColumn {
        name: contender.name,
        figures: vec![
            ServerFigure::number(
                "queries_per_second",
                asked.per_second(),
                "/s, 24 hourly sums of one series",
            ),
            ServerFigure::number("query_p50", asked.percentile_ms(0.5), "ms"),
            ServerFigure::number("query_p99", asked.percentile_ms(0.99), "ms"),
            ServerFigure::number(
                "server_cpu_per_query",
                cpu * 1e3 / asked.questions() as f64,
                "ms",
            ),
        ],
    };
    Ok(contenders.iter().zip(&asked).map(column).collect())
}

async fn same_answers(contenders: &[Contender], metric: &str, to: i64) -> anyhow::Result<()> {
    for n in [0, SERIES / 2, SERIES - 1] {
        let mut answers = Vec::new();
        for contender in contenders {
            let path = contender.target.wire.day_path(metric, n, to);
            let (status, answer) = contender.target.connect().await?.get(&path).await?;
            if status != 200 {
                bail!(
                    "{} answered {path} with {status}: {}",
                    contender.name,
                    String::from_utf8_lossy(&answer)
                );
            }
            answers.push((contender.name, contender.target.wire.day_sums(&answer)?));
        }
        let [(_, first), rest @ ..] = answers.as_slice() else { bail!("there is nobody to ask") };
        if first.len() != 24 || rest.iter().any(|(_, sums)| sums != first) {
            bail!("the servers do not agree on the hourly sums of series {n}: {answers:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_short_and_at_least_two() {
        let of = |seconds| {
            let rounds = RoundPlan::of(seconds);
            (rounds.count, rounds.seconds, rounds.pause().as_secs())
        };
        assert_eq!([of(1), of(2), of(3)], [(1, 1, 2), (2, 1, 2), (2, 1, 2)]);
        assert_eq!([of(20), of(60)], [(4, 5, 10), (12, 5, 10)]);
    }
}

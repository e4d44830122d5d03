//! `rollmill bench`: a load generator that keeps a ledger. Every result includes the proof that
//! nothing was lost or counted twice.

mod client;
mod compare;
mod events;
mod load;
mod queries;
mod server;
mod shape;
mod victoria;
mod warm_up;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use self::server::BenchServer;
use self::shape::EventShape;
use super::client::key_or_env;

/// Numbers of series and users that fit into the eight digits of their names.
const COUNTS: std::ops::RangeInclusive<u64> = 1..=99_999_999;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill bench                                     300-byte events, 1,000 series, batches of 100
  rollmill bench --bytes 4096 --seconds 30
  rollmill bench --series 1000000 --warm-up          a million series that exist already
  rollmill bench --batch 1 --connections 64          one event per request
  rollmill bench --queries                           single series, and sums of 1,000 series
  rollmill bench --compare victoria-metrics          the same events and queries for both
  rollmill bench --url 127.0.0.1:8080 --json

A lost connection is reopened, and the same events are sent again with the same ids, for up to a
minute: a server may be killed meanwhile. Exit code 0: exactly the acknowledged events are
counted. 1: they are not, or some requests had no answer.

Without --url it starts a server of its own on a temporary directory, and also measures its CPU,
memory and disk. Load generator and server share this machine, so CPU seconds per million events
are more reliable than events per second.")]
pub(super) struct BenchArgs {
    /// Size of one event in bytes
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(200..=8_192))]
    bytes: u32,
    /// Number of distinct series
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(COUNTS))]
    series: u64,
    /// Number of distinct users
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(COUNTS))]
    users: u64,
    /// Events per request
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Concurrent connections
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    connections: u32,
    /// How long to send, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Send one event of each series before measuring, so that none is new
    #[arg(long, conflicts_with_all = ["queries", "compare"])]
    warm_up: bool,
    /// Most events per second [default: as many as the server takes]
    #[arg(long)]
    rate: Option<u64>,
    /// Measure queries instead
    #[arg(long)]
    queries: bool,
    /// Load another server, too, in alternating rounds, and print both side by side
    #[arg(long, value_name = "PEER", conflicts_with_all = ["queries", "url", "data"])]
    compare: Option<compare::PeerServer>,
    /// Binary of the other server [default: victoria-metrics in PATH]
    #[arg(long, value_name = "PATH", requires = "compare")]
    victoria_binary: Option<PathBuf>,
    /// Load a running server instead of starting one
    #[arg(long, value_name = "HOST:PORT")]
    url: Option<SocketAddr>,
    /// API key for the running server [env: ROLLMILL_KEY]
    #[arg(long)]
    key: Option<String>,
    /// Configuration file of the server to start
    #[arg(long)]
    config: Option<PathBuf>,
    /// Data directory of the server to start, kept afterwards [default: a temporary one]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Results as name, value and unit, in the order in which they are printed.
pub(super) type BenchFigures = Vec<(&'static str, f64, &'static str)>;

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    // One thread, because the other cores belong to the server under test.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if let Some(peer) = args.compare {
        let comparison = runtime.block_on(compare::measure(args, peer))?;
        println!("{}", if args.json { comparison.json().to_string() } else { comparison.table() });
        return Ok(());
    }
    let (figures, verdict) = runtime.block_on(measure(args))?;
    if args.json {
        let object: serde_json::Map<String, serde_json::Value> =
            figures.iter().map(|(n, v, _)| ((*n).to_owned(), (*v).into())).collect();
        println!("{}", serde_json::Value::Object(object));
        return verdict;
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    for (name, value, unit) in &figures {
        table.add_row([name.replace('_', " "), readable(*value), (*unit).to_owned()]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    println!("{table}");
    verdict
}

fn readable(value: f64) -> String {
    if value.fract() != 0.0 && value.abs() < 1_000.0 {
        return format!("{value:.2}");
    }
    super::number_format::grouped(&format!("{value:.0}"))
}

/// Checks that exactly the acknowledged events are counted. Events of requests without an answer
/// may be counted or not.
fn verdict(acked: u64, unanswered: u64, counted: u64) -> anyhow::Result<()> {
    let [acked, unanswered, counted, most] = [acked, unanswered, counted, acked + unanswered]
        .map(|n| (n, super::number_format::grouped(&n.to_string())));
    if counted.0 < acked.0 || counted.0 > most.0 {
        bail!(
            "{} events were acknowledged, {} are in the rollups: this must never be",
            acked.1,
            counted.1
        );
    }
    if unanswered.0 > 0 {
        bail!(
            "{} events had no answer until the end: {} were acknowledged, and all of them are \
             counted, {} in all",
            unanswered.1,
            acked.1,
            counted.1
        );
    }
    Ok(())
}

async fn measure(args: &BenchArgs) -> anyhow::Result<(BenchFigures, anyhow::Result<()>)> {
    let own = match args.url {
        Some(_) => None,
        None => Some(
            BenchServer::start(args.data.as_deref(), args.config.as_deref(), args.series).await?,
        ),
    };
    let address = args.url.or(own.as_ref().map(|server| server.address)).context("no server")?;
    let run =
        getrandom::u32().map_err(|e| anyhow::anyhow!("no randomness for the run's name: {e}"))?;
    let shape = EventShape {
        bytes: args.bytes as usize,
        batch: args.batch as usize,
        series: args.series,
        users: args.users,
        run,
    };
    let target = load::LoadTarget {
        address,
        key: key_or_env(args.key.as_deref()),
        wire: wire::WireProtocol::Rollmill,
    };
    if args.queries {
        return queries::measure(&target, &shape, args.connections)
            .await
            .map(|figures| (figures, Ok(())));
    }
    let (mut warm_events, mut admitted) = (0, None);
    if args.warm_up {
        warm_events = args.series;
        admitted =
            Some(warm_up::each_series(&target, &shape, args.connections, own.as_ref()).await?);
    }
    let plan = load::LoadPlan {
        shape,
        connections: args.connections,
        seconds: args.seconds,
        rate: args.rate,
        begin: load::LoadPosition { events: warm_events, probes: 0 },
    };
    // Taken after the warm-up, which is not part of the measurement.
    let cpu_before = own.as_ref().map(BenchServer::cpu_seconds).transpose()?;
    let outcome = load::run(&target, &plan).await?;
    let cpu = own
        .as_ref()
        .map(BenchServer::cpu_seconds)
        .transpose()?
        .zip(cpu_before)
        .map(|(after, before)| after - before);
    let sent = warm_events + outcome.acked;
    let counted = load::count_of(&target, &shape, sent).await?;
    let verdict = verdict(sent, outcome.unanswered, counted);
    let mut figures = outcome.figures(&shape);
    figures.insert(1, ("events_counted", counted as f64, "in the rollups"));
    figures.extend(
        admitted.map(|rate| ("new_series_per_second", rate, "/s, before the rest was measured")),
    );
    if let (Some(server), Some(cpu)) = (&own, cpu) {
        let [log, store, archive] = server.disk()?.map(|bytes| bytes as f64 / sent as f64);
        figures.extend([
            ("server_cpu_per_million_events", cpu / outcome.acked as f64 * 1e6, "s"),
            ("server_cores_used", cpu / outcome.seconds, ""),
            ("server_peak_memory", server.peak_memory()? as f64 / 1e6, "MB"),
            ("disk_log_per_event", log, "bytes"),
            ("disk_store_per_event", store, "bytes"),
            ("disk_archive_per_event", archive, "bytes"),
        ]);
    }
    Ok((figures, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_is_balanced_or_says_why_not() {
        assert!(verdict(1_000, 0, 1_000).is_ok());
        for (acked, unanswered, counted, word) in [
            (1_000, 0, 999, "must never be"),
            (1_000, 0, 1_001, "must never be"),
            (1_000, 100, 1_101, "must never be"),
            (1_000, 100, 1_050, "had no answer"),
        ] {
            let why = verdict(acked, unanswered, counted).expect_err(word).to_string();
            assert!(why.contains(word), "{why}");
        }
    }
}

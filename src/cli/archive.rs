//! `rollmill archive`: lists the archive's objects by the manifest, flushes it, and shows what
//! expires.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::client::{ServerArgs, decode_answer};
use crate::api::archive::{ArchiveFlushAnswer, ExpiryAnswer, ExpiryGoesOnAnswer, ExpiryRequest};
use crate::api::status::StatusAnswer;
use crate::clock::Stopwatch;
use crate::config::{Config, key};
use crate::model::manifest::ManifestRow;
use crate::model::offset::{Checkpoint, ShardId};
use crate::node::{DataDir, offline};

/// How often the status is polled while a flush runs.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct ArchiveArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the archive's objects
    #[command(after_help = "Examples:
  rollmill archive ls --data ./data
  rollmill archive ls --data ./data --json")]
    Ls {
        /// Data directory [default: data.dir of the configuration]
        #[arg(long)]
        data: Option<String>,
        /// The server's configuration file, if it has one
        #[arg(long)]
        config: Option<PathBuf>,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Archive now what a node has applied so far, and wait until it is done
    #[command(after_help = "Examples:
  rollmill archive flush
  rollmill archive flush --url http://node-2:8080 --timeout 300

A node archives its own shards: in a cluster, run this against every node. Records that are not
in the store yet are flushed first, within flush.interval.")]
    Flush {
        /// Longest wait, in seconds
        #[arg(long, default_value_t = 120)]
        timeout: u64,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show what is due to expire, and why it waits
    #[command(after_help = "Examples:
  rollmill archive expire
  rollmill archive expire --yes")]
    Expire {
        /// Approve expiries that were stopped because much became due at once or the clock jumped
        #[arg(long)]
        yes: bool,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &ArchiveArgs) -> anyhow::Result<()> {
    let (data, config, json) = match &args.command {
        Command::Ls { data, config, json } => (data, config, json),
        Command::Expire { yes, json, server } => return expire(server, *yes, *json),
        Command::Flush { timeout, server } => return flush(server, Duration::from_secs(*timeout)),
    };
    let flags: Vec<(&str, String)> =
        data.iter().map(|data| (key!(data.dir), data.clone())).collect();
    let config = Config::load(config.as_deref(), std::env::vars(), &flags)?;
    let store = offline::store(&config, &DataDir::new(&config.data.dir))?;
    let mut snapshot = store.snapshot()?;
    let (rows, checkpoints) = (snapshot.manifest(None)?, snapshot.checkpoints()?);
    if *json {
        println!("{}", as_json(&rows));
    } else {
        println!("{}\n{}", table(&rows), complete_to(&rows, &checkpoints));
    }
    Ok(())
}

/// A sentence on up to which time the archive holds everything that the store has.
fn complete_to(rows: &[ManifestRow], checkpoints: &[(ShardId, Checkpoint)]) -> String {
    let behind = |(_, at): &&(ShardId, Checkpoint)| at.archived < at.next;
    let missing: u64 = checkpoints.iter().filter(behind).map(|(_, at)| at.next - at.archived).sum();
    if missing == 0 {
        return "complete: everything that the store has is in the archive".to_owned();
    }
    let newest = |shard: ShardId| {
        rows.iter().filter(|row| row.shard == shard).map(|row| row.received.1).max()
    };
    // The shard that is furthest behind decides.
    let since = checkpoints.iter().filter(behind).map(|(shard, _)| newest(*shard)).min().flatten();
    let to = since.map_or("not complete from the beginning on".to_owned(), |at| {
        format!("complete up to {}", time(at))
    });
    format!(
        "{to}: {missing} records are in the store and not in the archive yet; `rollmill archive \
         flush` writes them"
    )
}

/// Requests a flush, and waits until every shard has archived what it had at the request.
#[allow(clippy::print_stdout)] // the output of the command
fn flush(server: &ServerArgs, timeout: Duration) -> anyhow::Result<()> {
    let wanted = decode_answer::<ArchiveFlushAnswer>(
        &server.post("/v1/archive/flush", &serde_json::json!({}))?,
    )?
    .shards;
    let watch = Stopwatch::start();
    loop {
        let status: StatusAnswer = decode_answer(&server.get("/v1/status", &[])?)?;
        let archived = |shard: u32| {
            status
                .shards
                .iter()
                .find(|one| one.shard == shard)
                .and_then(|one| one.archived)
                .unwrap_or(0)
        };
        let left = wanted.iter().filter(|one| archived(one.shard) < one.below).count();
        if left == 0 {
            println!("archived what {} shards had", wanted.len());
            return Ok(());
        }
        anyhow::ensure!(
            watch.elapsed() < timeout,
            "{left} of {} shards have not archived what they had within {timeout:?}: `rollmill \
             status` and the node's log say why",
            wanted.len()
        );
        // The server sends no notification, so the status is polled.
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

#[allow(clippy::print_stdout)] // the output of the command
fn expire(server: &ServerArgs, yes: bool, json: bool) -> anyhow::Result<()> {
    let answer = match yes {
        true => server.post("/v1/archive/expiry", &serde_json::to_value(ExpiryRequest { yes })?)?,
        false => server.get("/v1/archive/expiry", &[])?,
    };
    match (json, yes) {
        (true, _) => println!("{answer}"),
        (false, true) => println!(
            "{} of those that had stopped go on",
            decode_answer::<ExpiryGoesOnAnswer>(&answer)?.going_on
        ),
        (false, false) => println!("{}", due(&decode_answer(&answer)?)),
    }
    Ok(())
}

fn due(answer: &ExpiryAnswer) -> String {
    if answer.due.is_empty() {
        return "nothing is due".to_owned();
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["of", "shard", "below", "first goes in", "stopped"]);
    for row in &answer.due {
        let hours = row.left_ms.unwrap_or_default() as f64 / 3_600_000.0;
        let shard = row.expiring.shard.map_or_else(String::new, |shard| shard.to_string());
        let below = row.below.map_or_else(|| "-".to_owned(), |below| below.to_string());
        let stopped = row.stopped.clone().unwrap_or_default();
        table.add_row([row.expiring.of.clone(), shard, below, format!("{hours:.1} h"), stopped]);
    }
    let way_out = "if the clock is right, `rollmill archive expire --yes` lets it go on";
    match answer.stopped {
        0 => table.to_string(),
        stopped => format!("{table}\n{stopped} stopped: {way_out}"),
    }
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string())
}

fn as_json(rows: &[ManifestRow]) -> String {
    let object = |row: &ManifestRow| {
        let windows: Vec<_> = row
            .windows
            .iter()
            .map(|(hour, events)| serde_json::json!({"hour": time(hour.start()), "events": events}))
            .collect();
        serde_json::json!({
            "path": row.path,
            "shard": row.shard.0,
            "from": row.range.from,
            "to": row.range.to,
            "events": row.rows,
            "appended": [time(row.appended.0), time(row.appended.1)],
            "received": [time(row.received.0), time(row.received.1)],
            "raw_bytes": row.raw_bytes,
            "bytes": row.bytes,
            "crc32c": format!("{:08x}", row.crc32c),
            "tier": row.tier.name(),
            "windows": windows,
        })
    };
    serde_json::Value::from(rows.iter().map(object).collect::<Vec<_>>()).to_string()
}

fn table(rows: &[ManifestRow]) -> String {
    if rows.is_empty() {
        return "no objects yet".to_owned();
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "shard", "offsets", "received", "events", "windows", "raw", "size", "tier", "path",
    ]);
    let size = |bytes: u64| indicatif::BinaryBytes(bytes).to_string();
    for row in rows {
        table.add_row([
            row.shard.to_string(),
            format!("{}..{}", row.range.from, row.range.to),
            time(row.received.0),
            row.rows.to_string(),
            row.windows.len().to_string(),
            size(row.raw_bytes),
            size(row.bytes),
            row.tier.name().to_owned(),
            row.path.clone(),
        ]);
    }
    let sum = |of: fn(&ManifestRow) -> u64| rows.iter().map(of).sum::<u64>();
    let (events, raw, bytes) = (sum(|r| r.rows), sum(|r| r.raw_bytes), sum(|r| r.bytes));
    let ratio = if bytes == 0 { 0.0 } else { raw as f64 / bytes as f64 };
    format!(
        "{table}\n{} objects, {events} events, {} raw in {} ({ratio:.1} to 1)",
        rows.len(),
        size(raw),
        size(bytes)
    )
}

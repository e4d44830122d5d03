//! `rollmill archive ls`: the archive's objects, as the manifest has them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::Config;
use crate::model::manifest::ManifestRow;
use crate::node::{DataDir, offline};

#[derive(Debug, Args)]
pub(super) struct ArchiveArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the objects
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
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &ArchiveArgs) -> anyhow::Result<()> {
    let Command::Ls { data, config, json } = &args.command;
    let flags: Vec<(&str, String)> = data.iter().map(|data| ("data.dir", data.clone())).collect();
    let config = Config::load(config.as_deref(), std::env::vars(), &flags)?;
    let rows = offline::store(&config, &DataDir::new(config.text("data.dir")))?.snapshot()?.manifest(None)?;
    println!("{}", if *json { as_json(&rows) } else { table(&rows) });
    Ok(())
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string())
}

fn as_json(rows: &[ManifestRow]) -> String {
    let object = |row: &ManifestRow| {
        let windows: Vec<_> =
            row.windows.iter().map(|(hour, events)| serde_json::json!({"hour": time(hour.start()), "events": events})).collect();
        serde_json::json!({"path": row.path, "shard": row.shard.0, "from": row.range.from, "to": row.range.to, "events": row.rows,
            "appended": [time(row.appended.0), time(row.appended.1)], "raw_bytes": row.raw_bytes, "bytes": row.bytes,
            "crc32c": format!("{:08x}", row.crc32c), "tier": row.tier.name(), "windows": windows})
    };
    serde_json::Value::from(rows.iter().map(object).collect::<Vec<_>>()).to_string()
}

fn table(rows: &[ManifestRow]) -> String {
    if rows.is_empty() {
        return "no objects yet".to_owned();
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["shard", "offsets", "appended", "events", "windows", "raw", "size", "tier", "path"]);
    let size = |bytes: u64| indicatif::BinaryBytes(bytes).to_string();
    for row in rows {
        table.add_row([
            row.shard.to_string(),
            format!("{}..{}", row.range.from, row.range.to),
            time(row.appended.0),
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
    format!("{table}\n{} objects, {events} events, {} raw in {} ({ratio:.1} to 1)", rows.len(), size(raw), size(bytes))
}

//! `rollmill quarantine`: events that were set aside because they crashed their shard.

use anyhow::bail;
use clap::{Args, Subcommand};

use super::http::Api;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill quarantine list
  rollmill quarantine release --shard 3 --offset 1200 --index 0
  rollmill quarantine discard --shard 3 --offset 1200 --index 0

A released event is folded into its rollup; a discarded one is left out for good, also when rollups are recomputed.")]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    api: Api,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The events that wait
    List {
        /// Print the answer as it came
        #[arg(long)]
        json: bool,
    },
    /// Fold one into its rollup
    Release(Place),
    /// Leave one out for good
    Discard(Place),
}

#[derive(Debug, Args)]
struct Place {
    /// Its shard
    #[arg(long)]
    shard: u32,
    /// Offset of its record
    #[arg(long)]
    offset: u64,
    /// Index in its record
    #[arg(long)]
    index: u32,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &QuarantineArgs) -> anyhow::Result<()> {
    let settle = |verb: &str, place: &Place| {
        let body = serde_json::json!({"shard": place.shard, "offset": place.offset, "index": place.index});
        args.api.post(&format!("/v1/quarantine/{verb}"), &body.to_string())
    };
    match &args.command {
        Command::List { json } => {
            let text = args.api.get("/v1/quarantine")?;
            println!("{}", if *json { text } else { table(&text)? });
        }
        Command::Release(place) => println!("released: {}", settle("release", place)?),
        Command::Discard(place) => println!("discarded: {}", settle("discard", place)?),
    }
    Ok(())
}

fn table(text: &str) -> anyhow::Result<String> {
    let answer: serde_json::Value = serde_json::from_str(text)?;
    let Some(rows) = answer["quarantine"].as_array() else { bail!("the answer is not what this version understands: {text}") };
    if rows.is_empty() {
        return Ok("nothing is set aside".to_owned());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["shard", "offset", "index", "reason", "event"]);
    for row in rows {
        let number = |name: &str| row[name].to_string();
        let text = |name: &str| row[name].as_str().unwrap_or("-").chars().take(120).collect::<String>();
        table.add_row([number("shard"), number("offset"), number("index"), text("reason"), text("event")]);
    }
    Ok(table.to_string())
}

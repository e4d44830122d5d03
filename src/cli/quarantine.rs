//! `rollmill quarantine`: what was set aside, and what becomes of it.

use std::str::FromStr;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::ServerArgs;

#[derive(Debug, Args)]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    command: QuarantineCommand,
}

#[derive(Debug, Subcommand)]
enum QuarantineCommand {
    /// Print the events that are set aside
    #[command(after_help = "Examples:
  rollmill quarantine list
  rollmill quarantine list --all --json --url http://10.0.0.5:8080 --key $KEY")]
    List {
        /// Discarded events too
        #[arg(long)]
        all: bool,
        /// Print the answer as it came, with the events' raw bytes
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Count events after all, when what made them crash is fixed
    #[command(after_help = "Examples:
  rollmill quarantine release 12/3456/0
  rollmill quarantine release --all

An event that still crashes stays in the quarantine. Exit code 0: all were released. 1: some were not.")]
    Release {
        /// The events, as `list` names them
        #[arg(value_name = "SHARD/OFFSET/INDEX", required_unless_present = "all", conflicts_with = "all")]
        events: Vec<Place>,
        /// Every event that waits
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Give events up for good: they are kept, but never counted
    #[command(after_help = "Example:
  rollmill quarantine discard 12/3456/0 12/3460/7")]
    Discard {
        /// The events, as `list` names them
        #[arg(value_name = "SHARD/OFFSET/INDEX", required = true)]
        events: Vec<Place>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// Where an event stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    shard: u32,
    offset: u64,
    index: u32,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no event: write SHARD/OFFSET/INDEX, as `rollmill quarantine list` prints it");
        let mut parts = text.split('/');
        let mut part = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or_else(wrong);
        let (shard, offset, index) = (part()?, part()?, part()?);
        match (u32::try_from(shard), u32::try_from(index), parts.next()) {
            (Ok(shard), Ok(index), None) => Ok(Self { shard, offset, index }),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.shard, self.offset, self.index)
    }
}

pub(super) fn run(args: &QuarantineArgs) -> anyhow::Result<()> {
    match &args.command {
        QuarantineCommand::List { all, json, server } => list(server, *all, *json),
        QuarantineCommand::Release { events, all: false, server } => each(server, "release", "released", events),
        QuarantineCommand::Release { all: true, server, .. } => release_all(server),
        QuarantineCommand::Discard { events, server } => each(server, "discard", "discarded", events),
    }
}

#[allow(clippy::print_stdout)] // the output of the command
fn list(server: &ServerArgs, all: bool, json: bool) -> anyhow::Result<()> {
    let answer = server.get(if all { "/v1/quarantine?all=true" } else { "/v1/quarantine" }, &[])?;
    println!("{}", if json { answer.to_string() } else { table(&answer) });
    Ok(())
}

fn events(answer: &Value) -> &[Value] {
    answer["events"].as_array().map_or(&[], Vec::as_slice)
}

fn table(answer: &Value) -> String {
    if events(answer).is_empty() {
        return "nothing is set aside".to_owned();
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["event", "tenant", "received", "metric", "labels", "id", "reason"]);
    for row in events(answer) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let series = &row["event"]["series"];
        let labels = series["labels"].as_object().into_iter().flatten().map(|(name, value)| format!("{name}={}", text(value)));
        let reason = match row["discarded"].as_bool() {
            Some(true) => format!("discarded; {}", text(&row["reason"])),
            _ => text(&row["reason"]),
        };
        table.add_row([
            format!("{}/{}/{}", row["shard"], row["offset"], row["index"]),
            text(&row["tenant"]),
            text(&row["received"]),
            text(&series["metric"]),
            labels.collect::<Vec<_>>().join(" "),
            text(&row["event"]["id"]),
            reason,
        ]);
    }
    match answer["more"].as_u64() {
        Some(more) if more > 0 => format!("{table}\nand {more} more"),
        _ => table.to_string(),
    }
}

/// The events that wait. The answer is bounded, so whoever wants all asks again.
fn waiting(server: &ServerArgs) -> anyhow::Result<(Vec<Place>, bool)> {
    let answer = server.get("/v1/quarantine", &[])?;
    let place = |row: &Value| format!("{}/{}/{}", row["shard"], row["offset"], row["index"]).parse::<Place>();
    let places = events(&answer).iter().map(place).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
    Ok((places, answer["more"].as_u64().is_some_and(|more| more > 0)))
}

fn release_all(server: &ServerArgs) -> anyhow::Result<()> {
    loop {
        let (places, more) = waiting(server)?;
        each(server, "release", "released", &places)?;
        if !more {
            return Ok(());
        }
    }
}

/// Does it to each event; goes on after a refusal, so that one event does not hold up the others.
#[allow(clippy::print_stdout)] // the output of the command
fn each(server: &ServerArgs, what: &str, done: &str, places: &[Place]) -> anyhow::Result<()> {
    let mut refused = 0;
    for place in places {
        let body = json!({ "shard": place.shard, "offset": place.offset, "index": place.index });
        match server.post(&format!("/v1/quarantine/{what}"), &body) {
            Ok(_) => println!("{place} {done}"),
            Err(error) => {
                eprintln!("{place}: {error:#}");
                refused += 1;
            }
        }
    }
    if refused > 0 {
        bail!("{refused} of {} events were not {done}", places.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_they_print() {
        assert_eq!("12/3456/7".parse::<Place>().map(|p| p.to_string()), Ok("12/3456/7".to_owned()));
        for wrong in ["", "1", "1/2", "1/2/3/4", "a/2/3", "1/2/-3", "4294967296/2/3"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}

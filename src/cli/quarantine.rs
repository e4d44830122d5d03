//! `rollmill quarantine`: lists, releases and discards quarantined events.

use anyhow::bail;
use clap::{Args, Subcommand};

use super::client::{PATIENCE, ServerArgs, decode_answer};
use crate::api::quarantine::{EventPlace, QuarantineAnswer, QuarantinedEvent};

#[derive(Debug, Args)]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    command: QuarantineCommand,
}

#[derive(Debug, Subcommand)]
enum QuarantineCommand {
    /// List the quarantined events
    #[command(after_help = "Examples:
  rollmill quarantine list
  rollmill quarantine list --all --json --url http://10.0.0.5:8080 --key $KEY")]
    List {
        /// List discarded events, too
        #[arg(long)]
        all: bool,
        /// Print the answer of the server unchanged, with the events' raw bytes
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Count events after all, once the cause of their crash is fixed
    #[command(after_help = "Examples:
  rollmill quarantine release 12/3456/0
  rollmill quarantine release --all

An event that still crashes stays in the quarantine. Exit code 0: all were released. 1: some were
not.")]
    Release {
        /// Events to release, as `list` names them
        #[arg(
            value_name = "SHARD/OFFSET/INDEX",
            required_unless_present = "all",
            conflicts_with = "all"
        )]
        events: Vec<EventPlace>,
        /// Release every event in the quarantine
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Discard events for good: they are kept, but never counted
    #[command(after_help = "Example:
  rollmill quarantine discard 12/3456/0 12/3460/7")]
    Discard {
        /// Events to discard, as `list` names them
        #[arg(value_name = "SHARD/OFFSET/INDEX", required = true)]
        events: Vec<EventPlace>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

pub(super) fn run(args: &QuarantineArgs) -> anyhow::Result<()> {
    match &args.command {
        QuarantineCommand::List { all, json, server } => list(server, *all, *json),
        QuarantineCommand::Release { events, all: false, server } => {
            apply_to_each(server, "release", "released", events)
        }
        QuarantineCommand::Release { all: true, server, .. } => release_all(server),
        QuarantineCommand::Discard { events, server } => {
            apply_to_each(server, "discard", "discarded", events)
        }
    }
}

#[allow(clippy::print_stdout)] // the output of the command
fn list(server: &ServerArgs, all: bool, json: bool) -> anyhow::Result<()> {
    let answer = server.get(if all { "/v1/quarantine?all=true" } else { "/v1/quarantine" }, &[])?;
    println!("{}", if json { answer.to_string() } else { table(&decode_answer(&answer)?) });
    Ok(())
}

fn table(answer: &QuarantineAnswer) -> String {
    if answer.events.is_empty() {
        return "nothing is set aside".to_owned();
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["event", "tenant", "received", "metric", "labels", "id", "reason"]);
    for row in &answer.events {
        let event = row.event.as_ref();
        let series = event.and_then(|event| event.series.as_ref());
        let labels = series
            .iter()
            .flat_map(|series| &series.labels)
            .map(|(name, value)| format!("{name}={value}"));
        table.add_row([
            row.place().to_string(),
            row.tenant.clone(),
            row.received.map_or_else(String::new, |at| at.to_string()),
            series.map_or_else(String::new, |series| series.metric.clone()),
            labels.collect::<Vec<_>>().join(" "),
            event.and_then(|event| event.id.clone()).unwrap_or_default(),
            if row.discarded { format!("discarded; {}", row.reason) } else { row.reason.clone() },
        ]);
    }
    match answer.more {
        0 => table.to_string(),
        more => format!("{table}\nand {more} more"),
    }
}

/// One page of the quarantined events, and whether more remain.
fn pending_events(server: &ServerArgs) -> anyhow::Result<(Vec<EventPlace>, bool)> {
    let answer: QuarantineAnswer = decode_answer(&server.get("/v1/quarantine", &[])?)?;
    Ok((answer.events.iter().map(QuarantinedEvent::place).collect(), answer.more > 0))
}

fn release_all(server: &ServerArgs) -> anyhow::Result<()> {
    loop {
        // Released events leave the list, so the first page is a new one each time.
        let (places, more) = pending_events(server)?;
        apply_to_each(server, "release", "released", &places)?;
        if !more {
            return Ok(());
        }
    }
}

/// Applies an operation to each event. Continues after a refusal, so that one event does
/// not block the others, but not while the server cannot tell: each would wait as long.
#[allow(clippy::print_stdout)] // the output of the command
fn apply_to_each(
    server: &ServerArgs,
    what: &str,
    done: &str,
    places: &[EventPlace],
) -> anyhow::Result<()> {
    let (client, path) = (server.server(PATIENCE)?, format!("/v1/quarantine/{what}"));
    let mut refused = 0;
    for (at, place) in places.iter().enumerate() {
        let body = serde_json::to_vec(place)?;
        let answer = client.post(&path, "application/json", &body).map_err(anyhow::Error::msg)?;
        if answer.status == 503 {
            let left = places.len() - at;
            bail!("{place}: {}; {left} of {} events are left", answer.sentence(), places.len());
        }
        match client.success_text(answer) {
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

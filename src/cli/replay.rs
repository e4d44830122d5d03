//! `rollmill replay`: counts archived events again under other rules, compares, applies, undoes.

mod difference;
mod follow;
mod lists;
mod request;

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};

use self::difference::Difference;
use self::follow::Outcome;
use self::request::WhatArgs;
use super::UsageError;
use super::client::{PATIENCE, ServerArgs, ServerClient, decode_answer};
use super::send::stop_signal::StopSignal;
use crate::api::replays::{Replay, ReplaysAnswer};
use crate::clock::{Clock, SystemClock};

/// Exit code if a comparison found rows that differ.
const DIFFERS: u8 = 3;
/// Exit code if a person stopped to wait, as shells have it for Ctrl-C.
const STOPPED: u8 = 130;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  rollmill replay --metric page_view --from -365d --set-label plan=/plan --apply
  rollmill replay --metric page_view --from 2026-01-30 --to 2026-01-31 --rules rules.toml --dry-run
  rollmill replay --metric sales --metric refunds --from 2026-01-01 --rules rules.toml

Starts a replay, waits until it is ready, and shows what differs; then --apply serves it and
--dry-run cancels it. With neither it stays ready, to be applied later. Days are those of UTC.
Ctrl-C leaves it running and says how to go on. docs/how-to/reprocess.md has recipes.

Exit code 0: done; with --dry-run: nothing differs. 1: it failed or was refused. 2: wrong usage.
3: --dry-run found rows that differ. 130: stopped by Ctrl-C, the replay goes on."
)]
pub(super) struct ReplayArgs {
    #[command(subcommand)]
    command: Option<ReplayCommand>,
    #[command(flatten)]
    what: WhatArgs,
    /// Cancel it after the comparison
    #[arg(long, conflicts_with = "apply")]
    dry_run: bool,
    /// Serve it after the comparison
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    print: PrintArgs,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
struct PrintArgs {
    /// How to print what differs
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Rows in the table, those with the largest changes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Totals, and the rows with the largest changes
    Table,
    /// All rows, as CSV
    Csv,
    /// All rows, one JSON object in each line; the last line has the totals
    Json,
}

#[derive(Debug, Args)]
struct OneArgs {
    /// Number of the replay, as `rollmill replay ls` shows it
    id: u64,
    /// Print the answer of the server unchanged, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum ReplayCommand {
    /// Start a replay, and do not wait for it
    #[command(after_help = "Examples:
  rollmill replay start --metric page_view --from 2026-01-30 --to 2026-01-31 --rules rules.toml
  rollmill replay start --metric page_view --from -365d --set-label plan=/plan")]
    Start {
        #[command(flatten)]
        what: WhatArgs,
        /// Print the answer of the server unchanged, as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List the replays
    #[command(after_help = "Examples:
  rollmill replay ls
  rollmill replay ls --audit")]
    Ls {
        /// List what was done to replays, by whom and when
        #[arg(long)]
        audit: bool,
        /// Print the answer of the server unchanged, as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show how far a replay is, and what it waits for
    #[command(after_help = "Example:
  rollmill replay show 3")]
    Show(OneArgs),
    /// Compare a replay with what is served on its days
    #[command(after_help = "Examples:
  rollmill replay diff 3
  rollmill replay diff 3 --output csv > rows.csv

What is not in the store yet, a second of live events, is on neither side. A replay that is served
is compared with what it replaced. One that is not ready, or is being deleted, is not compared.

Exit code 0: nothing differs. 1: it failed or was refused. 3: rows differ.")]
    Diff {
        /// Number of the replay
        id: u64,
        #[command(flatten)]
        print: PrintArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Serve a replay that is ready, from one moment to the next
    #[command(after_help = "Example:
  rollmill replay apply 3

Exit code 0: it is served. 1: it is not ready, or another one is in the way.")]
    Apply(OneArgs),
    /// Put back what the apply of a replay replaced
    #[command(after_help = "Example:
  rollmill replay undo 3

The last apply first, for replay.keep (7 days). No event that came meanwhile is lost.")]
    Undo(OneArgs),
    /// Give up a replay that is not served, and delete its rows
    #[command(after_help = "Example:
  rollmill replay cancel 3")]
    Cancel(OneArgs),
}

pub(super) fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        None => return whole(args),
        Some(ReplayCommand::Start { what, json, server }) => {
            let replay = start(&server.server(PATIENCE)?, what)?;
            print_replay(&replay, *json)?;
        }
        Some(ReplayCommand::Ls { audit, json, server }) => list(server, *audit, *json)?,
        Some(ReplayCommand::Show(one)) => {
            let answer = one.server.get(&format!("/v1/replays/{}", one.id), &[])?;
            print_replay(&decode_answer(&answer)?, one.json)?;
        }
        Some(ReplayCommand::Diff { id, print, server }) => {
            // Nothing has to be said when a signal ends it.
            let differs = compare(&server.server(PATIENCE)?, *id, print, &|| false)?;
            return Ok(if differs == Some(true) {
                ExitCode::from(DIFFERS)
            } else {
                ExitCode::SUCCESS
            });
        }
        Some(ReplayCommand::Apply(one)) => change(one, "apply")?,
        Some(ReplayCommand::Undo(one)) => change(one, "undo")?,
        Some(ReplayCommand::Cancel(one)) => change(one, "cancel")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn start(server: &ServerClient, what: &WhatArgs) -> anyhow::Result<Replay> {
    let body = serde_json::to_vec(&what.request(SystemClock.now())?)?;
    let answer = server.post("/v1/replays", "application/json", &body);
    decode_answer(&server.json(answer.map_err(anyhow::Error::msg)?)?)
}

fn post_change(server: &ServerClient, id: u64, what: &str) -> anyhow::Result<Replay> {
    let path = format!("/v1/replays/{id}/{what}");
    let answer = server.post(&path, "application/json", b"{}").map_err(anyhow::Error::msg)?;
    decode_answer(&server.json(answer)?)
}

fn change(one: &OneArgs, what: &str) -> anyhow::Result<()> {
    let replay = post_change(&one.server.server(PATIENCE)?, one.id, what)?;
    print_replay(&replay, one.json)
}

#[allow(clippy::print_stdout)] // the output of the command
fn print_replay(replay: &Replay, json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string(replay)? } else { lists::details(replay) };
    println!("{text}");
    Ok(())
}

#[allow(clippy::print_stdout)] // the output of the command
fn list(server: &ServerArgs, audit: bool, json: bool) -> anyhow::Result<()> {
    let answer = server.get("/v1/replays", &[])?;
    let replays: ReplaysAnswer = decode_answer(&answer)?;
    println!(
        "{}",
        match (json, audit) {
            (true, _) => answer.to_string(),
            (false, true) => lists::audit(&replays.audit),
            (false, false) => lists::replays(&replays.replays),
        }
    );
    Ok(())
}

/// Prints what differs. Returns whether anything does; `None` if `stop` has ended it.
#[allow(clippy::print_stdout)] // the output of the command
fn compare(
    server: &ServerClient,
    id: u64,
    print: &PrintArgs,
    stop: &dyn Fn() -> bool,
) -> anyhow::Result<Option<bool>> {
    let mut difference = Difference::new(usize::from(print.limit));
    if !difference.read(server, id, print.output, stop)? {
        return Ok(None);
    }
    match print.output {
        Output::Table => println!("{}", difference.table()),
        Output::Json => println!("{}", serde_json::json!({ "totals": difference.totals() })),
        Output::Csv => {}
    }
    Ok(Some(difference.differs()))
}

/// Starts, waits, compares, and applies or cancels. Ctrl-C ends it between two steps.
fn whole(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let server = args.server.server(PATIENCE)?;
    // First, so that whoever presses Ctrl-C is told of the replay that goes on.
    let stop = StopSignal::listen()?;
    let id = start(&server, &args.what)?.id;
    eprintln!("replay {id} has started");
    let compared = match follow::until_ready(&server, id, &stop)? {
        Outcome::Ready => {
            let compared = compare(&server, id, &args.print, &|| stop.is_requested());
            compared.map_err(|why| anyhow!("{why}; replay {id} was ready: {}", next_steps(id)))?
        }
        Outcome::Stopped => None,
    };
    let Some(differs) = compared.filter(|_| !stop.is_requested()) else {
        eprintln!(
            "replay {id} goes on: `rollmill replay show {id}` says how far it is, then {}",
            next_steps(id)
        );
        return Ok(ExitCode::from(STOPPED));
    };
    if args.dry_run {
        post_change(&server, id, "cancel")?;
        eprintln!("replay {id} is cancelled (--dry-run)");
        return Ok(if differs { ExitCode::from(DIFFERS) } else { ExitCode::SUCCESS });
    }
    if args.apply {
        post_change(&server, id, "apply")?;
        eprintln!("replay {id} is served; `rollmill replay undo {id}` puts back what was before");
    } else {
        eprintln!("replay {id} is ready: {}", next_steps(id));
    }
    Ok(ExitCode::SUCCESS)
}

/// What can be done with a replay that is ready.
fn next_steps(id: u64) -> String {
    format!(
        "`rollmill replay diff {id}`, then `rollmill replay apply {id}` or `rollmill replay \
         cancel {id}`"
    )
}

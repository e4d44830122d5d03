//! `rollmill rebuild`: rebuilds a lost store from the archive and the log.

use std::path::PathBuf;

use clap::Args;

use super::UsageError;
use crate::clock::Stopwatch;
use crate::config::{Config, key};
use crate::model::offset::LogId;
use crate::model::window::Hour;
use crate::node::DataDir;
use crate::node::rebuild::{RebuildJob, ReplayChoice, prepare};
use crate::recompute::rebuild::RebuildReport;
use crate::recompute::rebuild::settled::SettledAgain;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill rebuild --data ./data --dry-run
  rollmill rebuild --data ./data && rollmill verify --data ./data
  ROLLMILL_STORE_URL=postgres://rollmill_owner:SECRET@db/rollmill \
                        rollmill rebuild --config rollmill.toml

Stop the servers and move the old store away first. An interrupted rebuild continues when it
is run again; until it is done, no server starts on its store. Use the servers' configuration:
the limits of de-duplication and series decide again about records that were not archived yet.

Replays that were served are served again. Lost are those that were being built, the way back of
those that were applied, and the list of who did what.

Events that were released or discarded are so again. What has expired is lost with its records.

Exit code 0: the store is rebuilt. 1: it is not, and no server starts on what exists so far.")]
pub(super) struct RebuildArgs {
    /// Data directory [default: data.dir of the configuration]
    #[arg(long)]
    data: Option<String>,
    /// The servers' configuration file, if they have one
    #[arg(long)]
    config: Option<PathBuf>,
    /// Say what would be done, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// Rebuild even if the first records of a shard have expired
    #[arg(long)]
    allow_expired: bool,
    /// Id of a log that this one continues, as after a migration: its objects are used, too
    #[arg(long, value_name = "ID")]
    former_log: Vec<String>,
    /// Leave replays out: what ingest made is then served on their days
    #[arg(long)]
    without_replays: bool,
    /// Read the archive only; the server applies the rest of the log when it starts
    #[arg(long)]
    archive_only: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &RebuildArgs) -> anyhow::Result<()> {
    let flags: Vec<(&str, String)> =
        args.data.iter().map(|data| (key!(data.dir), data.clone())).collect();
    let config = Config::load(args.config.as_deref(), std::env::vars(), &flags)?;
    let former = args.former_log.iter().map(|id| log_id(id)).collect::<anyhow::Result<Vec<_>>>()?;
    let replays = if args.without_replays { ReplayChoice::LeaveOut } else { ReplayChoice::Restore };
    let data = DataDir::new(&config.data.dir);
    let prepared = prepare(&config, &data, &former, args.allow_expired, replays)?;
    if args.dry_run {
        println!("{}", if args.json { planned_json(&prepared) } else { planned(&prepared) });
        return Ok(());
    }
    let watch = Stopwatch::start();
    let bar = indicatif::ProgressBar::new(prepared.records());
    let bar = bar.with_style(super::bar_style("records"));
    let report = prepared.run(&config, args.archive_only, &mut |done| bar.set_position(done))?;
    bar.finish_and_clear();
    let seconds = watch.elapsed().as_secs_f64();
    println!(
        "{}",
        if args.json {
            json(&report, &prepared, seconds)
        } else {
            text(&report, &prepared, seconds)
        }
    );
    Ok(())
}

fn log_id(text: &str) -> anyhow::Result<LogId> {
    let id = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32);
    let why = || {
        UsageError(format!(
            "{text:?} is no id of a log: the archive's folders `log=…` have 32 hexadecimal digits"
        ))
    };
    let id = id.ok_or_else(why)?;
    Ok(LogId(id.to_be_bytes()))
}

fn planned(prepared: &RebuildJob) -> String {
    let size = |bytes: u64| indicatif::BinaryBytes(bytes).to_string();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "shard",
        "first record",
        "objects",
        "size",
        "archived",
        "in the log only",
        "left aside",
    ]);
    for plan in prepared.plans.iter().filter(|plan| plan.records() > 0 || plan.unused > 0) {
        table.add_row([
            plan.shard.to_string(),
            plan.start.to_string(),
            plan.chain.len().to_string(),
            size(plan.chain.iter().map(|link| link.object.bytes).sum()),
            (plan.archived - plan.start).to_string(),
            (plan.end - plan.archived).to_string(),
            plan.unused.to_string(),
        ]);
    }
    let records: u64 = prepared.plans.iter().map(|plan| plan.records()).sum();
    let objects: usize = prepared.plans.iter().map(|plan| plan.chain.len()).sum();
    let goes_on =
        if prepared.resumes { ", going on where an earlier attempt was ended" } else { "" };
    let shards = prepared.plans.len();
    format!(
        "{table}\nwould rebuild {} of {shards} shards from {objects} objects and {records} \
         records{goes_on}{}",
        prepared.location(),
        replays_line(prepared).map_or(String::new(), |line| format!("\n{line}"))
    )
}

fn planned_json(prepared: &RebuildJob) -> String {
    let shard = |plan: &crate::recompute::rebuild::plan::ShardPlan| {
        serde_json::json!({
            "shard": plan.shard.0,
            "start": plan.start,
            "archived": plan.archived,
            "end": plan.end,
            "objects": plan.chain.iter().map(|link| &link.object.path).collect::<Vec<_>>(),
            "unused": plan.unused,
        })
    };
    serde_json::json!({"dry_run": true, "place": prepared.location(), "goes_on": prepared.resumes,
        "replays": replay_numbers(prepared), "replays_lost": lost_numbers(prepared),
        "shards": prepared.plans.iter().map(shard).collect::<Vec<_>>()})
    .to_string()
}

fn replay_numbers(prepared: &RebuildJob) -> Vec<u64> {
    prepared.replays.generations().map(|id| id.0).collect()
}

fn lost_numbers(prepared: &RebuildJob) -> Vec<u64> {
    prepared.replays.lost.iter().map(|id| id.0).collect()
}

/// What becomes of replays; `None` if there were none.
fn replays_line(prepared: &RebuildJob) -> Option<String> {
    let list =
        |numbers: Vec<u64>| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let (served, lost) = (replay_numbers(prepared), lost_numbers(prepared));
    let mut parts = Vec::new();
    if !served.is_empty() {
        parts.push(format!(
            "served as before: replays {}, without the way back of their applies",
            list(served)
        ));
    }
    if !lost.is_empty() {
        parts.push(format!(
            "lost: replays {}, which were being built, or kept for an undo",
            list(lost)
        ));
    }
    (!parts.is_empty()).then(|| parts.join("\n"))
}

fn json(report: &RebuildReport, prepared: &RebuildJob, seconds: f64) -> String {
    let [aggregated, deduplicated, quarantined] = report.events;
    serde_json::json!({
        "place": prepared.location(),
        "went_on": prepared.resumes,
        "shards": report.shards,
        "objects": report.objects,
        "records": {"archive": report.records.0, "log": report.records.1},
        "events": {
            "aggregated": aggregated,
            "deduplicated": deduplicated,
            "quarantined": quarantined,
            "released": report.settled.released,
            "discarded": report.settled.discarded,
        },
        "objects_without_decisions": report.undecided,
        "objects_without_checksum": report.unsealed,
        "objects_left_aside": report.unused,
        "damaged": report.damaged,
        "replays": replay_numbers(prepared),
        "replays_lost": lost_numbers(prepared),
        "incomplete_before": report.incomplete_before.map(time),
        "seconds": seconds,
    })
    .to_string()
}

fn text(report: &RebuildReport, prepared: &RebuildJob, seconds: f64) -> String {
    let [aggregated, deduplicated, quarantined] = report.events;
    let (archive, log) = report.records;
    let mut lines = vec![
        format!(
            "rebuilt {}: {} shards, {archive} records of {} objects and {log} of the log, in \
             {seconds:.1} s",
            prepared.location(),
            report.shards,
            report.objects
        ),
        format!(
            "events: {aggregated} aggregated, {deduplicated} de-duplicated, {quarantined} set \
             aside"
        ),
    ];
    let SettledAgain { released, discarded, .. } = report.settled;
    if quarantined + released + discarded > 0 {
        lines.push(format!(
            "of those set aside, {released} are released and {discarded} discarded as before; the \
             others wait, see `rollmill quarantine list --all`"
        ));
    }
    lines.extend(report.settled.refused.iter().map(|event| {
        format!("was released, and waits again because this build cannot count it: {event}")
    }));
    lines.extend(replays_line(prepared));
    if let Some(before) = report.incomplete_before {
        lines.push(format!(
            "not complete: windows before {}, because records that may have touched them have \
             expired",
            time(before)
        ));
    }
    if report.undecided > 0 {
        lines.push(format!(
            "{} objects of an older release do not say which series were admitted: \
             tenants.max_series has decided again",
            report.undecided
        ));
    }
    if report.unsealed > 0 {
        lines.push(format!(
            "{} objects of an older release carry no checksum: they were taken as they are",
            report.unsealed
        ));
    }
    if report.unused > 0 {
        lines.push(format!(
            "{} objects were left aside: others hold their records, or the log does",
            report.unused
        ));
    }
    if !report.damaged.is_empty() {
        lines.push(format!("damaged, and left aside: {}", report.damaged.join(", ")));
    }
    lines.push("compare it with its records: `rollmill verify`".to_owned());
    lines.join("\n")
}

fn time(hour: Hour) -> String {
    jiff::Timestamp::from_millisecond(hour.start())
        .map_or_else(|_| hour.0.to_string(), |time| time.to_string())
}

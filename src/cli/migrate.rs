//! `rollmill migrate`: moves the data of an embedded node into a cluster.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};

use crate::clock::Stopwatch;
use crate::config::Config;
use crate::migrate::{
    MigrationOutcome, MigrationReport, MigrationSource, MigrationStep, run as migrate,
};

/// Estimated rate at which empty records are appended, to tell minutes from hours in advance.
const FILL_PER_SECOND: u64 = 500_000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill migrate --data ./data --config new.toml --dry-run
  rollmill migrate --data ./data --config new.toml
  rollmill migrate --data ./data --from-config old.toml --config new.toml --json

Stop the node first, and send no events until the cluster accepts them; the cluster recognises
retries of its clients. --config (with the environment) is the cluster's configuration:
kafka.brokers, store.url, archive.url and the node's shards.count. --from-config is the node's
own, required if it had one, because it locates the archive and sets the limits of
de-duplication. The database must be empty, and the topic must not exist: migrate creates it.

It may be interrupted at any time: run the same command again. No node of the cluster starts
before it is done. The directory stays unchanged, but no server starts on it any more. Replays go
along as they are: what is served stays served, what is being filled in goes on in the cluster.

Exit code 0: done, now or earlier. 1: not done; the message says what to do.")]
pub(super) struct MigrateArgs {
    /// Data directory of the embedded node
    #[arg(long)]
    data: String,
    /// Configuration file of the cluster [default: environment variables only]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Configuration file of the embedded node, if it had one
    #[arg(long)]
    from_config: Option<PathBuf>,
    /// Check both sides and say what would be done; the node may be running
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &MigrateArgs) -> anyhow::Result<()> {
    let source = MigrationSource::open(&args.data, args.from_config.as_deref())?;
    let target = Config::load(args.config.as_deref(), std::env::vars(), &[])?;
    let watch = Stopwatch::start();
    let mut shown = ProgressDisplay::default();
    let report = migrate(&source, &target, args.dry_run, &mut |step, done, all| {
        shown.update(step, done, all)
    });
    shown.finish();
    let (report, seconds) = (report?, watch.elapsed().as_secs_f64());
    println!("{}", if args.json { json(&report, seconds) } else { text(&report, seconds) });
    Ok(())
}

/// Prints a line for each step, and a progress bar on a terminal.
#[derive(Default)]
struct ProgressDisplay {
    step: Option<MigrationStep>,
    bar: Option<ProgressBar>,
}

impl ProgressDisplay {
    fn update(&mut self, step: MigrationStep, done: u64, all: u64) {
        if self.step != Some(step) {
            self.finish();
            self.step = Some(step);
            let (words, unit) = step.labels();
            let number =
                MigrationStep::ALL.iter().position(|known| *known == step).map_or(0, |at| at + 1);
            eprintln!("{number}/{} {words}", MigrationStep::ALL.len());
            let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
            self.bar = Some(bar.with_style(super::bar_style(unit)));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(all);
            bar.set_position(done);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn outcome(report: &MigrationReport) -> &'static str {
    match report.outcome {
        MigrationOutcome::Planned => "planned",
        MigrationOutcome::Done => "done",
        MigrationOutcome::AlreadyDone => "was done before",
    }
}

fn json(report: &MigrationReport, seconds: f64) -> String {
    serde_json::json!({
    "outcome": outcome(report), "seconds": seconds, "shards": report.shards,
            "from": {
                "data": report.source,
                "log": report.source_log.to_string(),
                "unflushed": report.unflushed,
                "unarchived": report.unarchived,
            },
            "to": {
                "topic": report.topic,
                "cluster": report.cluster,
                "log": report.log,
                "store": report.store,
                "archive": report.archive,
            },
            "offsets": report.offsets,
    "objects": report.objects,
    "object_bytes": report.object_bytes,
            "series": report.extent.series,
            "rollups": report.extent.rollups,
            "replays": report.replays,
            "replay_rollups": report.extent.replayed,
            "rows": report.extent.rows,
        })
    .to_string()
}

fn text(report: &MigrationReport, seconds: f64) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["what", "how much", "from", "to"]);
    let size = indicatif::BinaryBytes(report.object_bytes);
    let log = report.log.clone().unwrap_or_else(|| "its id is made when migrate begins".to_owned());
    let extent = report.extent;
    table.add_row([
        "store".to_owned(),
        format!(
            "{} series, {} rollups, {} rows in all",
            extent.series, extent.rollups, extent.rows
        ),
        format!("{}/store.sqlite", report.source),
        report.store.clone(),
    ]);
    if !report.replays.is_empty() {
        table.add_row([
            "replays".to_owned(),
            format!("{} replays, {} rollups", report.replays.len(), extent.replayed),
            format!("{}/store.sqlite", report.source),
            report.store.clone(),
        ]);
    }
    table.add_row([
        "archive".to_owned(),
        format!("{} objects, {size}", report.objects),
        "where the node has it".to_owned(),
        report.archive.clone(),
    ]);
    table.add_row([
        "log".to_owned(),
        format!("{} shards, {} offsets", report.shards, report.offsets),
        report.source_log.to_string(),
        format!("topic {} on cluster {}: {log}", report.topic, report.cluster),
    ]);
    let last = match report.outcome {
        MigrationOutcome::Planned => format!(
            "nothing was changed. To be flushed first: {} records; to be archived first: {}. \
             Filling the topic takes some {} s and nothing that stays",
            report.unflushed,
            report.unarchived,
            report.offsets / FILL_PER_SECOND + 1
        ),
        MigrationOutcome::Done => format!(
            "done in {seconds:.1} s; every rollup is the same, byte by byte. Start the nodes of \
             the cluster, send events there, and keep {} until `rollmill verify` with the \
             cluster's configuration says equal",
            report.source
        ),
        MigrationOutcome::AlreadyDone => "this was done before; nothing was changed".to_owned(),
    };
    format!("{table}\n{last}")
}

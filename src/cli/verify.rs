//! `rollmill verify`: recomputes rollups from archive and log, and compares their bytes with the
//! store, while the server runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::tz::TimeZone;

use super::{UsageError, time_arg};
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::{Config, key, millis};
use crate::model::decimal::Decimal;
use crate::model::offset::ShardId;
use crate::model::rollup::RollupFigures;
use crate::model::window::{HOUR_MS, Hour};
use crate::node::{DataDir, offline};
use crate::recompute::verify::{
    DroppedWindows, GenerationCheck, RowDifference, UnverifiableWindows, VerifyError, VerifyReport,
    VerifySources, verify,
};

/// Attempts, because the server may release log records that it has archived during one.
const ATTEMPTS: u32 = 5;
/// Exit code if there are rows but none could be compared.
const NOTHING_COMPARED: u8 = 3;
/// Most differences printed one by one.
const PRINTED: usize = 50;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill verify --data ./data
  rollmill verify --data ./data --from 2026-01-01T00:00:00Z --to 2026-02-01T00:00:00Z --json

Exit code 0: every row equals its records, to the bit, and the rest of the store is consistent.
1: something differs, is damaged, or could not be read. 3: there are rows, but none could be
compared.

Replays are recomputed under their rules, those that are being filled as far as they are.
Shards whose records cannot all be read are named; the others are verified. Windows whose raw
events have expired (archive.keep), or whose rollups the store has dropped (rollups.keep), are
reported as not verifiable, not as a difference.")]
pub(super) struct VerifyArgs {
    /// Data directory [default: data.dir of the configuration]
    #[arg(long)]
    data: Option<String>,
    /// The server's configuration file, if it has one
    #[arg(long)]
    config: Option<PathBuf>,
    /// First window, inclusive: 2026-01-01, RFC 3339, milliseconds, or -7d [default: the first]
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    from: Option<String>,
    /// Last window, exclusive [default: the last]
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    to: Option<String>,
    /// Verify this shard only; overflow series, which shards share, are left out
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let flags: Vec<(&str, String)> =
        args.data.iter().map(|data| (key!(data.dir), data.clone())).collect();
    let config = Config::load(args.config.as_deref(), std::env::vars(), &flags)?;
    let data = DataDir::new(&config.data.dir);
    let hours =
        hour(args.from.as_deref(), Hour(i32::MIN))?..hour(args.to.as_deref(), Hour(i32::MAX))?;
    let (store, archive) = (offline::store(&config, &data)?, offline::archive(&config, &data)?);
    let sources = VerifySources {
        store: store.as_ref(),
        archive: archive.as_ref(),
        open_log: &|| offline::log(&config, &data),
        dedup_horizon_ms: millis(config.dedup.horizon),
        dedup_max_ids: config.dedup.max_ids,
        only: args.shard.map(ShardId),
    };
    let watch = Stopwatch::start();
    let bar = indicatif::ProgressBar::new(0).with_style(super::bar_style("shards"));
    let mut attempts = 1..=ATTEMPTS;
    let report = loop {
        // A record may move from the log to the archive during an attempt; the next one finds it
        // there.
        attempts.next();
        let progress = &mut |done, all| {
            bar.set_length(all);
            bar.set_position(done);
        };
        match verify(&sources, hours.clone(), progress) {
            Err(VerifyError::Released) if !attempts.is_empty() => {}
            ended => break ended?,
        }
    };
    bar.finish_and_clear();
    let seconds = watch.elapsed().as_secs_f64();
    println!("{}", if args.json { json(&report, seconds) } else { text(&report, seconds) });
    Ok(match (report.is_equal(), report.compared_nothing()) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(NOTHING_COMPARED),
        (true, false) => ExitCode::SUCCESS,
    })
}

fn hour(text: Option<&str>, default: Hour) -> anyhow::Result<Hour> {
    let Some(text) = text else { return Ok(default) };
    let time = time_arg::parse(text, SystemClock.now(), &TimeZone::UTC).map_err(UsageError)?;
    // A relative time rarely falls on an hour, so it is rounded. An absolute one off the hour is a
    // mistake.
    if time % HOUR_MS != 0 && !text.starts_with('-') && text != "now" {
        return Err(UsageError(format!("{text} is not the start of an hour")).into());
    }
    Ok(Hour::of(time))
}

fn sum(figures: &RollupFigures) -> String {
    Decimal::from_units(figures.sum).to_string()
}

fn json(report: &VerifyReport, seconds: f64) -> String {
    let figures = |f: &Option<RollupFigures>| {
        f.map(|f| serde_json::json!({"count": f.count, "sum": sum(&f)}))
    };
    let difference = |d: &RowDifference| {
        serde_json::json!({
            "tenant": d.series.series.tenant,
            "metric": d.series.series.metric,
            "labels": d.series.series.labels,
            "replay": d.written_by.map_or(0, |(generation, _)| generation.0),
            "writer": d.written_by.map(|(_, writer)| writer.to_string()),
            "hour": time(d.hour),
            "stored": figures(&d.stored),
            "recomputed": figures(&d.recomputed),
        })
    };
    let differences: Vec<_> = report.differences.iter().map(difference).collect();
    let damages: Vec<_> = report
        .damages
        .iter()
        .map(|d| serde_json::json!({"place": d.location, "why": d.reason}))
        .collect();
    let unverified: Vec<_> = report
        .unverified
        .iter()
        .map(|(shard, why)| serde_json::json!({"shard": shard.0, "why": why}))
        .collect();
    let not_verifiable =
        report.unverifiable.map(|n| serde_json::json!({"before": time(n.before), "rows": n.rows}));
    let dropped =
        report.dropped.map(|n| serde_json::json!({"before": time(n.before), "rows": n.rows}));
    serde_json::json!({
        "equal": report.is_equal(),
        "damages": damages,
        "accounting_compared": report.accounting_compared,
        "rows": report.rows,
        "replays": report.generations.iter().map(json_of_check).collect::<Vec<_>>(),
        "records": report.records,
        "shards": report.shards,
        "seconds": seconds,
        "differences": differences,
        "set_aside": report.quarantined,
        "unverified": unverified,
        "not_verifiable": not_verifiable,
        "dropped": dropped,
    })
    .to_string()
}

fn json_of_check(check: &GenerationCheck) -> serde_json::Value {
    let unfilled = check.unfilled.iter().map(|of| {
        serde_json::json!({
            "shard": of.shard.0,
            "cursor": of.progress.map(|at| at.cursor),
            "cut": of.progress.map(|at| at.cut),
        })
    });
    serde_json::json!({
        "replay": check.generation.0,
        "rows": check.rows,
        "unfilled": unfilled.collect::<Vec<_>>(),
    })
}

/// What was compared of replays, one line for each.
fn text_of_checks(checks: &[GenerationCheck], leaving: u64) -> String {
    let line = |check: &GenerationCheck| {
        let mut line = format!("\nreplay {}: {} rows of its writers", check.generation, check.rows);
        if !check.unfilled.is_empty() {
            let (first, shards) = (&check.unfilled[0], check.unfilled.len());
            let at = first.progress.map_or("has not begun".to_owned(), |at| {
                format!("is filled up to record {} of {}", at.cursor, at.cut)
            });
            line += &format!(
                "; NOT COMPLETE in {shards} shards, compared as far as it is there (shard {} {at})",
                first.shard
            );
        }
        line
    };
    let mut lines: String = checks.iter().map(line).collect();
    if leaving > 0 {
        lines += "\nnot compared: rows of replays that are being deleted";
    }
    lines
}

/// What was not compared, and why, one line for each.
fn text_of_gaps(report: &VerifyReport) -> String {
    let mut lines = String::new();
    if !report.accounting_compared {
        lines += "\nnot compared: the accounting, because not all records from the first one on \
                  were read";
    }
    if let Some(UnverifiableWindows { before, rows }) = report.unverifiable {
        lines += &format!(
            "\nNOT VERIFIABLE: {rows} rows of windows before {}, whose raw events are older than \
             archive.keep",
            time(before)
        );
    }
    if let Some(DroppedWindows { before, rows }) = report.dropped {
        lines += &format!(
            "\nNOT VERIFIABLE: {rows} rows of windows before {}, whose rollups the store has \
             dropped (rollups.keep)",
            time(before)
        );
    }
    if report.quarantined > 0 {
        lines += &format!(
            "\nset aside, and in no row: {} events or whole records: `rollmill quarantine list`",
            report.quarantined
        );
    }
    for (shard, why) in &report.unverified {
        lines += &format!(
            "\nNOT verified: {why} (the rows of shard {shard}, and overflow series, were not \
             compared)"
        );
    }
    lines
}

fn text(report: &VerifyReport, seconds: f64) -> String {
    let VerifyReport { rows, records, shards, differences, damages, .. } = report;
    let mut summary =
        format!("{rows} rows of {shards} shards against {records} records in {seconds:.1} s");
    summary += &text_of_checks(&report.generations, report.leaving);
    summary += &text_of_gaps(report);
    let mut parts = Vec::new();
    if !damages.is_empty() {
        parts.push("the store is damaged, or contradicts the records:".to_owned());
        parts.extend(
            damages
                .iter()
                .take(PRINTED)
                .map(|damage| format!("  {}: {}", damage.location, damage.reason)),
        );
    }
    if differences.is_empty() {
        let what = match (
            report.compared_nothing(),
            report.unverified.is_empty()
                && report.unverifiable.is_none()
                && report.dropped.is_none()
                && damages.is_empty(),
        ) {
            (true, _) => "NOTHING was verified",
            _ if *rows == 0 && !damages.is_empty() => "no row was compared",
            (false, true) => "equal, to the bit",
            (false, false) => "rows are equal, to the bit, as far as it could be verified",
        };
        parts.push(format!("{what}: {summary}"));
    } else {
        parts.push(format!(
            "{} rows differ: {summary}\n{}",
            differences.len(),
            rows_that_differ(differences)
        ));
    }
    parts.join("\n")
}

fn rows_that_differ(differences: &[RowDifference]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["hour", "tenant", "metric", "labels", "stored", "recomputed", "", ""]);
    for d in differences.iter().take(PRINTED) {
        let series = &d.series.series;
        let labels: Vec<String> =
            series.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let shown = |f: &Option<RollupFigures>| {
            f.map_or("nothing".to_owned(), |f| format!("count {} sum {}", f.count, sum(&f)))
        };
        let what = if d.stored == d.recomputed { "only sketches differ" } else { "" };
        let by = d
            .written_by
            .map_or(String::new(), |(generation, writer)| format!("replay {generation}, {writer}"));
        let cells = [shown(&d.stored), shown(&d.recomputed), what.to_owned(), by];
        let row = [time(d.hour), series.tenant.clone(), series.metric.clone(), labels.join(" ")]
            .into_iter()
            .chain(cells);
        table.add_row(row);
    }
    table
}

fn time(hour: Hour) -> String {
    jiff::Timestamp::from_millisecond(hour.start())
        .map_or_else(|_| hour.0.to_string(), |time| time.to_string())
}

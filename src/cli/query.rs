//! `rollmill query`: queries a metric and prints a table, a plot, CSV, JSON, or Parquet.

mod parquet;
mod plot;
mod windows;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;

use self::windows::AnswerWindows;
use super::UsageError;
use super::client::{PATIENCE, ServerArgs, ServerClient};
use super::number_format::{grouped, short};
use super::time_arg::{self, NamedZone};
use crate::api::completeness::{Completeness, ServedGeneration};
use crate::api::query::QueryAnswer;
use crate::clock::{Clock, Millis, SystemClock};
use crate::model::suggest::nearest_name;

/// Most shards, and most parts of replays, named in a warning about an answer.
const NAMED: usize = 5;
/// Most series drawn by `--plot`.
const PLOTS: usize = 8;
/// Line width if no terminal tells it, in characters.
const WIDTH: u16 = 80;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people
    Table,
    /// CSV with all digits, for spreadsheets
    Csv,
    /// The answer of the server, unchanged
    Json,
    /// Parquet with exact types, for DuckDB, pandas and the like; redirect it to a file
    Parquet,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill query page_view
  rollmill query page_view --agg count,p95 --by country --step 1d --from 2026-01-01 --plot
  rollmill query page_view --from -7d --step 1d --tz Europe/Berlin
  rollmill query page_view --by page --step all --order desc --limit 10
  rollmill query page_view --where '{page=~\"/blog/.*\"}' --output csv
  rollmill query page_view --by country --output parquet > page_view.parquet")]
pub(super) struct QueryArgs {
    /// Name of the metric
    metric: String,
    /// Start, inclusive: 2026-01-01, RFC 3339, milliseconds, or -7d [default: a day ago]
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    from: Option<String>,
    /// End, exclusive [default: now]
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    to: Option<String>,
    /// Length of a bucket [default: 1h]
    #[arg(long, value_parser = ["1h", "6h", "1d", "1w", "1mo", "all"])]
    step: Option<String>,
    /// Time zone of the steps, of dates without one, and of the output [default: UTC]
    #[arg(long, value_name = "ZONE", value_parser = time_arg::zone)]
    tz: Option<NamedZone>,
    /// Aggregates, separated by commas [default: count]
    #[arg(long, value_delimiter = ',', value_parser = AGGS)]
    agg: Vec<String>,
    /// Labels to group by, separated by commas
    #[arg(long, value_name = "LABELS")]
    by: Option<String>,
    /// Label matchers, such as '{country="ch"}'
    #[arg(long = "where", value_name = "MATCHERS")]
    matchers: Option<String>,
    /// Order of the series: by labels, or by the first aggregate [default: labels]
    #[arg(long, value_parser = ["labels", "desc", "asc"])]
    order: Option<String>,
    /// Return at most this many series, the first in the order
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Same as --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Draw the first aggregate over time
    #[arg(long, conflicts_with = "json")]
    plot: bool,
    #[command(flatten)]
    server: ServerArgs,
}

const AGGS: [&str; 12] =
    ["count", "sum", "avg", "min", "max", "distinct", "rate", "p50", "p90", "p95", "p99", "p99.9"];

pub(super) fn run(args: &QueryArgs) -> anyhow::Result<ExitCode> {
    let output = if args.json { Output::Json } else { args.output };
    if args.plot && output != Output::Table {
        bail!(UsageError("--plot draws for people: it goes with --output table alone".to_owned()));
    }
    if output == Output::Parquet && std::io::stdout().is_terminal() {
        let why = "Parquet is not for a terminal: redirect it, as in > answer.parquet";
        bail!(UsageError(why.to_owned()));
    }
    let server = args.server.server(PATIENCE)?;
    let mut parameters = parameters(args, SystemClock.now())?;
    if output == Output::Csv {
        // Rendered by the server, which has the numbers with all their digits.
        parameters.push(("format", "csv".to_owned()));
    }
    let answer = server.get("/v1/query", &parameters).map_err(anyhow::Error::msg)?;
    let completeness = answer.completeness.clone();
    let text = server.success_text(answer)?;
    let incompatible = "the answer is not what this version understands";
    let print_warnings = |completeness: &Completeness| {
        warnings(completeness).iter().for_each(|warning| eprintln!("{warning}"))
    };
    match output {
        Output::Json => {
            print(&text);
            return Ok(ExitCode::SUCCESS);
        }
        Output::Csv => {
            print_warnings(
                &serde_json::from_str(&completeness.context(incompatible)?)
                    .context(incompatible)?,
            );
            // Replacing every CRLF is safe: a label value holds no line feed.
            print(text.replace("\r\n", "\n").trim_end());
            return Ok(ExitCode::SUCCESS);
        }
        Output::Table | Output::Parquet => {}
    }
    let answer: QueryAnswer = serde_json::from_str(&text).context(incompatible)?;
    print_warnings(&answer.completeness);
    if output == Output::Parquet {
        let bytes = parquet::encode(&labels(args), &aggs(args), &answer)?;
        std::io::stdout().write_all(&bytes).context("cannot write the output")?;
        return Ok(ExitCode::SUCCESS);
    }
    if answer.series.is_empty() {
        // An empty result is no failure, so the exit code is 0.
        print(&empty_reason(args, &server));
    } else {
        print(&table(args, &answer));
    }
    if args.plot && !answer.series.is_empty() {
        print(&drawing(args, &answer)?);
    }
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout)] // the output of the command
fn print(text: &str) {
    println!("{text}");
}

fn parameters(args: &QueryArgs, now: Millis) -> anyhow::Result<Vec<(&'static str, String)>> {
    let tz = args.tz.as_ref().map_or(TimeZone::UTC, |NamedZone(_, tz)| tz.clone());
    let time = |name: &str, text: &Option<String>| {
        let parsed = text.as_ref().map(|text| time_arg::parse(text, now, &tz)).transpose();
        parsed
            .map(|time| time.map(|time| time.to_string()))
            .map_err(|why| UsageError(format!("--{name}: {why}")))
    };
    let optional = [
        ("from", time("from", &args.from)?),
        ("to", time("to", &args.to)?),
        ("step", args.step.clone()),
        ("tz", args.tz.as_ref().map(|NamedZone(name, _)| name.clone())),
        ("agg", (!args.agg.is_empty()).then(|| args.agg.join(","))),
        ("by", args.by.clone()),
        ("where", args.matchers.clone()),
        ("order", args.order.clone()),
        ("limit", args.limit.map(|limit| limit.to_string())),
    ];
    let given = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
    Ok(std::iter::once(("metric", args.metric.clone())).chain(given).collect())
}

fn aggs(args: &QueryArgs) -> Vec<&str> {
    if args.agg.is_empty() { vec!["count"] } else { args.agg.iter().map(String::as_str).collect() }
}

fn labels(args: &QueryArgs) -> Vec<&str> {
    args.by
        .as_deref()
        .map(|by| by.split(',').map(str::trim).filter(|name| !name.is_empty()).collect())
        .unwrap_or_default()
}

fn time(args: &QueryArgs, text: &str) -> String {
    time_arg::format_time(text, args.tz.as_ref().map(|NamedZone(_, tz)| tz))
}

fn table(args: &QueryArgs, answer: &QueryAnswer) -> String {
    let by = labels(args);
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(std::iter::once("time").chain(by.iter().copied()).chain(aggs(args)));
    for series in &answer.series {
        for point in &series.points {
            let labels =
                by.iter().map(|name| series.labels.get(*name).cloned().unwrap_or_default());
            let values = aggs(args).into_iter().map(|agg| {
                point.figure(agg).map_or_else(|| "-".to_owned(), |v| format_figure(agg, v))
            });
            table.add_row(std::iter::once(time(args, point.text("t"))).chain(labels).chain(values));
        }
    }
    for column in table.column_iter_mut().skip(1 + by.len()) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table.to_string()
}

/// Exact values with all their digits; averages and quantiles, which are approximate, with six.
fn format_figure(agg: &str, value: &str) -> String {
    match (agg, value.parse::<f64>()) {
        ("count" | "sum" | "min" | "max" | "distinct", _) | (_, Err(_)) => grouped(value),
        (_, Ok(number)) => short(number),
    }
}

/// One line for each thing to know about an answer: that it is incomplete, or corrected.
fn warnings(completeness: &Completeness) -> Vec<String> {
    let missing = &completeness.missing;
    let named: Vec<String> =
        missing.iter().take(NAMED).map(|m| format!("{} ({})", m.shard, m.reason)).collect();
    let more = missing.len().saturating_sub(NAMED) + completeness.more as usize;
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let partial = completeness.partial.then(|| {
        format!(
            "partial: shards {}{more} are missing or behind; ask again, or see --output json",
            named.join(", ")
        )
    });
    let overflow = completeness.overflow.filter(|events| *events > 0).map(|events| {
        let events = grouped(&events.to_string());
        format!(
            "{events} events of this metric have lost their labels (tenants.max_series): they are \
             in none of the groups"
        )
    });
    partial.into_iter().chain(overflow).chain(replays(completeness)).collect()
}

/// The parts of the range whose figures are those of replays, in one line.
fn replays(completeness: &Completeness) -> Option<String> {
    let time = |at: Option<jiff::Timestamp>| at.map_or_else(|| "?".to_owned(), |at| at.to_string());
    let part = |part: &ServedGeneration| {
        format!("{} ({} to {})", part.generation, time(part.from), time(part.to))
    };
    let parts = &completeness.generations;
    let named: Vec<String> = parts.iter().take(NAMED).map(part).collect();
    let more = parts.len().saturating_sub(NAMED) + completeness.more_generations as usize;
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let noun = if parts.len() == 1 && more.is_empty() { "replay" } else { "replays" };
    (!named.is_empty()).then(|| format!("corrected by {noun} {}{more}", named.join(", ")))
}

/// A sentence on why an answer is empty: no data in the range, or no such metric.
fn empty_reason(args: &QueryArgs, server: &ServerClient) -> String {
    let metric = &args.metric;
    let here = format!("no data for {metric} in this range");
    // Only a hint: without the list, the plain sentence has to do.
    let Ok(known) = server.get_json("/v1/metrics", &[]) else { return here };
    let rows = known["metrics"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |row: &serde_json::Value| row["metric"].as_str().unwrap_or_default().to_owned();
    if let Some(row) = rows.iter().find(|row| name(row) == *metric) {
        let end = |field: &str| row[field].as_str().map(|text| time(args, text));
        let known = match (end("first"), end("last")) {
            (Some(first), Some(last)) => {
                format!(": it has data from the window of {first} to that of {last}")
            }
            _ => String::new(),
        };
        return format!("{here}{known}");
    }
    // A truncated or partial list does not prove that a name is unknown.
    if known.get("next").is_some() || known["completeness"]["partial"] == true {
        return here;
    }
    let hint = nearest_name(metric, rows.iter().map(name))
        .map(|name| format!("; did you mean {name}?"))
        .unwrap_or_default();
    format!("there is no metric {metric}{hint} (`rollmill metrics` lists them)")
}

fn drawing(args: &QueryArgs, answer: &QueryAnswer) -> anyhow::Result<String> {
    let agg = aggs(args)[0];
    let windows = AnswerWindows::of(
        answer,
        args.tz.as_ref().map_or(TimeZone::UTC, |NamedZone(_, tz)| tz.clone()),
    )?;
    let mut lines = Vec::new();
    for series in answer.series.iter().take(PLOTS) {
        let labels: Vec<String> =
            series.labels.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let mut values = vec![None; windows.count];
        for point in &series.points {
            let at = windows.index(point.text("t"))?;
            let figure = point.figure(agg).map(str::parse::<f64>).transpose();
            values[at] = figure.with_context(|| {
                format!("the server sent {:?} as {agg}, which is no number", point.text(agg))
            })?;
        }
        let title = format!("{}: {agg}{}", args.metric, labels.concat());
        lines.push(plot::PlotLine { title, values });
    }
    let width = comfy_table::Table::new()
        .width()
        .or_else(|| std::env::var("COLUMNS").ok()?.parse().ok())
        .unwrap_or(WIDTH);
    let mut out = plot::draw(
        &lines,
        &time(args, &answer.from),
        &time(args, &answer.to),
        usize::from(width.max(40)),
    );
    if answer.series.len() > PLOTS {
        out += &format!(
            "\n{} more series are not drawn: narrow down with --where or --limit\n",
            answer.series.len() - PLOTS
        );
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::completeness::MissingShard;

    #[test]
    fn exact_figures_keep_all_digits_and_others_say_something() {
        for (agg, value, text) in [
            ("sum", "123456789012345678.423456789", "123,456,789,012,345,678.423456789"),
            ("count", "1234", "1,234"),
            ("avg", "0.0004", "0.0004"),
            ("p99.9", "1022.25000001", "1,022.25"),
        ] {
            assert_eq!(format_figure(agg, value), text);
        }
    }

    #[test]
    fn what_an_answer_lacks_is_said() {
        let missing = (0..7)
            .map(|shard| MissingShard { shard, reason: "behind".to_owned(), behind_ms: None })
            .collect();
        let time = |text: &str| text.parse().ok();
        let (from, to) = (time("2026-01-01T00:00:00Z"), time("2026-01-02T00:00:00Z"));
        let part = |generation| ServedGeneration { generation, from, to };
        let said = warnings(&Completeness {
            partial: true,
            shards: 37,
            missing,
            more: 30,
            overflow: Some(1456),
            generations: (1..8).map(part).collect(),
            more_generations: 4,
            as_of: None,
        });
        assert!(
            said[0].contains("0 (behind), 1 (behind)") && said[0].contains("and 32 more"),
            "{said:?}"
        );
        assert!(said[1].starts_with("1,456 events"), "{said:?}");
        let first = "corrected by replays 1 (2026-01-01T00:00:00Z to 2026-01-02T00:00:00Z), 2 (";
        assert!(said[2].starts_with(first) && said[2].ends_with(" and 6 more"), "{said:?}");
    }
}

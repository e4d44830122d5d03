//! `rollmill metrics`, `labels`, `limits` and `accounting`: read-only views of a server, for people
//! without an HTTP client.

use anyhow::bail;
use clap::Args;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;

use super::UsageError;
use super::client::{ServerArgs, decode_answer};
use super::number_format::grouped;
use super::time_arg::{self, NamedZone};
use crate::api::accounting::AccountingAnswer;
use crate::api::completeness::Completeness;
use crate::clock::{Clock, SystemClock};
use crate::model::suggest::nearest_name;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill metrics
  rollmill metrics --json --url http://10.0.0.5:8080 --key $KEY")]
pub(super) struct MetricsArgs {
    /// Print the answer of the server unchanged, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill labels page_view
  rollmill labels page_view country")]
pub(super) struct LabelsArgs {
    /// Name of the metric
    metric: String,
    /// Label whose values to list [default: list the label names]
    name: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill limits
  rollmill limits --json")]
pub(super) struct LimitsArgs {
    /// Print the answer of the server unchanged, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill accounting
  rollmill accounting --from -7d --tz Europe/Berlin
  rollmill accounting --from 2026-01-01 --to 2026-01-02 --json

accepted = aggregated + deduplicated + quarantined (in the store) + pending (not in the store yet),
by hour of receipt.")]
pub(super) struct AccountingArgs {
    /// First hour: 2026-01-01, RFC 3339, milliseconds, or -7d [default: a day ago]
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    from: Option<String>,
    /// Last hour, exclusive [default: now]
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    to: Option<String>,
    /// Time zone of dates without one, and of the output [default: UTC]
    #[arg(long, value_name = "ZONE", value_parser = time_arg::zone)]
    tz: Option<NamedZone>,
    /// Print the answer of the server unchanged, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Most shards named in the warning about a partial answer.
const NAMED: usize = 5;

#[allow(clippy::print_stdout)] // the output of the commands
fn print(text: &str) {
    println!("{text}");
}

fn table(header: &[&str], figures: std::ops::Range<usize>) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    for column in figures {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    table
}

fn rows<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer[name].as_array().map_or(&[], Vec::as_slice)
}

/// A value for people; null is a dash.
fn value_or_dash(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(value_or_dash).collect::<Vec<_>>().join(","),
        other => grouped(&other.to_string()),
    }
}

pub(super) fn metrics(args: &MetricsArgs) -> anyhow::Result<()> {
    let answer = args.server.get("/v1/metrics", &[])?;
    print(&if args.json { answer.to_string() } else { metrics_table(&answer) });
    warn_partial(&answer);
    Ok(())
}

/// Warns on standard error if shards are missing from an answer.
fn warn_partial(answer: &Value) {
    // An older release does not report completeness.
    let Ok(completeness) = Completeness::deserialize(&answer["completeness"]) else { return };
    if completeness.partial {
        let named: Vec<String> = completeness
            .missing
            .iter()
            .take(NAMED)
            .map(|missing| missing.shard.to_string())
            .collect();
        eprintln!(
            "partial: what shards {} hold is missing; ask again, or see --json",
            named.join(", ")
        );
    }
}

fn metrics_table(answer: &Value) -> String {
    let metrics = rows(answer, "metrics");
    if metrics.is_empty() {
        return "no metric yet".to_owned();
    }
    let mut table = table(&["metric", "series", "first", "last", "labels"], 1..2);
    for row in metrics {
        table.add_row(
            ["metric", "series", "first", "last", "labels"].map(|name| value_or_dash(&row[name])),
        );
    }
    // The answer is a page; `next` says where the following page continues.
    match answer.get("next") {
        Some(next) => format!("{table}\nnext: {}", value_or_dash(next)),
        None => table.to_string(),
    }
}

pub(super) fn labels(args: &LabelsArgs) -> anyhow::Result<()> {
    let metric = &args.metric;
    let Some(name) = &args.name else {
        let answer = args.server.get("/v1/metrics", &[])?;
        warn_partial(&answer);
        let row = row_of(&answer, metric)?;
        let names: Vec<String> = rows(row, "labels").iter().map(value_or_dash).collect();
        print(&match (args.json, names.is_empty()) {
            (true, _) => row["labels"].to_string(),
            (false, true) => format!("{metric} has no labels"),
            (false, false) => names.join("\n"),
        });
        return Ok(());
    };
    let path = format!("/v1/labels/{}/values", encoded(name));
    let answer = args.server.get(&path, &[("metric", metric.clone())])?;
    warn_partial(&answer);
    let values: Vec<String> = rows(&answer, "values").iter().map(value_or_dash).collect();
    if args.json {
        print(&answer.to_string());
    } else if values.is_empty() {
        let known = args.server.get("/v1/metrics", &[])?;
        let names =
            rows(row_of(&known, metric)?, "labels").iter().map(value_or_dash).collect::<Vec<_>>();
        bail!(
            "{metric} has no label {name}; it has {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        );
    } else {
        print(&values.join("\n"));
    }
    Ok(())
}

fn row_of<'a>(answer: &'a Value, metric: &str) -> anyhow::Result<&'a Value> {
    let metrics = rows(answer, "metrics");
    if let Some(row) = metrics.iter().find(|row| row["metric"] == metric) {
        return Ok(row);
    }
    let hint = nearest_name(metric, metrics.iter().map(|row| value_or_dash(&row["metric"])))
        .map(|name| format!("; did you mean {name}?"));
    bail!("there is no metric {metric}{}", hint.unwrap_or_default())
}

/// Percent-encodes a name as one path segment.
fn encoded(name: &str) -> String {
    let part = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    name.bytes().map(part).collect()
}

pub(super) fn limits(args: &LimitsArgs) -> anyhow::Result<()> {
    let answer = args.server.get("/v1/limits", &[])?;
    if args.json {
        print(&answer.to_string());
        return Ok(());
    }
    let mut table = table(&["limit", "value"], 1..2);
    let mut flat = Vec::new();
    flatten("", &answer, &mut flat);
    for (name, value) in flat {
        table.add_row([name.clone(), limit(&name, value)]);
    }
    print(&table.to_string());
    Ok(())
}

fn flatten<'a>(prefix: &str, value: &'a Value, out: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(
                    &if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") },
                    value,
                    out,
                );
            }
        }
        other => out.push((prefix.to_owned(), other)),
    }
}

/// A limit for people: durations and sizes in the largest unit that leaves a whole number.
fn limit(name: &str, value: &Value) -> String {
    let units: &[(&str, u64)] = match name.rsplit('_').next() {
        Some("ms") => &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)],
        Some("bytes") => &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)],
        _ => &[],
    };
    let whole = |number: u64| {
        units
            .iter()
            .find(|(_, unit)| number > 0 && number.is_multiple_of(*unit))
            .map(|(name, unit)| format!("{} {name}", number / unit))
    };
    match (value.as_u64().and_then(whole), name.ends_with("_ms")) {
        (Some(text), _) => text,
        (None, true) if value.is_u64() => format!("{} ms", value_or_dash(value)),
        _ => value_or_dash(value),
    }
}

pub(super) fn accounting(args: &AccountingArgs) -> anyhow::Result<()> {
    let now = SystemClock.now();
    let tz = args.tz.as_ref().map(|NamedZone(_, tz)| tz);
    let mut parameters = Vec::new();
    for (name, text) in [("from", &args.from), ("to", &args.to)] {
        let Some(text) = text else { continue };
        let millis = time_arg::parse(text, now, tz.unwrap_or(&TimeZone::UTC))
            .map_err(|why| UsageError(format!("--{name}: {why}")))?;
        parameters.push((name, millis.to_string()));
    }
    let answer = args.server.get("/v1/accounting", &parameters)?;
    if args.json {
        print(&answer.to_string());
        return Ok(());
    }
    let books: AccountingAnswer = decode_answer(&answer)?;
    let mut table =
        table(&["hour", "accepted", "aggregated", "deduplicated", "quarantined", "pending"], 1..6);
    for row in &books.hours {
        let shown = |hour: jiff::Timestamp| time_arg::format_time(&hour.to_string(), tz);
        let hour = row.hour.map_or_else(|| "-".to_owned(), shown);
        let figures =
            [row.accepted, row.aggregated, row.deduplicated, row.quarantined, row.pending];
        table.add_row(
            std::iter::once(hour).chain(figures.map(|figure| grouped(&figure.to_string()))),
        );
    }
    print(&if books.hours.is_empty() {
        "no events in this range".to_owned()
    } else {
        table.to_string()
    });
    warn_partial(&answer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_readable() {
        let answer = json!({
            "accept": {"max_age_ms": 31_536_000_000u64, "max_event_bytes": 8192},
            "query": {"max_points": 100_000, "x_ms": 1_500},
        });
        let mut flat = Vec::new();
        flatten("", &answer, &mut flat);
        let shown: Vec<(String, String)> =
            flat.into_iter().map(|(name, value)| (name.clone(), limit(&name, value))).collect();
        let text = |name: &str| {
            shown.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
        };
        assert_eq!(text("accept.max_age_ms"), Some("365 d"));
        assert_eq!(text("accept.max_event_bytes"), Some("8 KiB"));
        assert_eq!(text("query.max_points"), Some("100,000"));
        assert_eq!(text("query.x_ms"), Some("1,500 ms"));
    }

    #[test]
    fn metrics_are_a_table_and_a_missing_one_is_named() {
        let labels = ["country", "page"];
        let answer = json!({"metrics": [
            {"metric": "page_view", "labels": labels, "series": 1_234, "first": null, "last": null},
        ]});
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            metrics_table(&answer).lines().nth(1).map(words),
            Some(words("page_view 1,234 - - country,page"))
        );
        let why = row_of(&answer, "page_views").expect_err("missing").to_string();
        assert!(why.contains("did you mean page_view?"), "{why}");
        assert!(!row_of(&answer, "sales").expect_err("missing").to_string().contains("mean"));
    }

    #[test]
    fn a_label_is_one_part_of_a_path() {
        assert_eq!(encoded("a/b c"), "a%2Fb%20c");
    }
}

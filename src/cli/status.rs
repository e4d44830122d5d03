//! `rollmill status`: nodes, and where every shard stands.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::client::ServerArgs;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill status
  rollmill status --json --url http://10.0.0.5:8080 --key $KEY

Exit code 0: every shard has an owner that keeps up. 1: one has none or is stale, or the node cannot tell.")]
pub(super) struct StatusArgs {
    /// Print the answer as it came
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let answer = args.server.get("/v1/status", &[])?;
    let Some(healthy) = answer["healthy"].as_bool() else { bail!("the answer is not what this version understands: {answer}") };
    if args.json {
        println!("{answer}");
    } else {
        println!("{}\n\n{}", nodes(&answer), shards(&answer));
        if let Some(problem) = problem(&answer) {
            eprintln!("{problem}");
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value as people read it; what is not known is a dash.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Milliseconds in the largest unit that leaves a figure above one.
fn duration(value: &Value) -> String {
    match value.as_u64() {
        None => "-".to_owned(),
        Some(ms) if ms < 1_000 => format!("{ms}ms"),
        Some(ms) if ms < 60_000 => format!("{:.1}s", ms as f64 / 1_000.0),
        Some(ms) if ms < 3_600_000 => format!("{}m{:02}s", ms / 60_000, ms / 1_000 % 60),
        Some(ms) if ms < 86_400_000 => format!("{}h{:02}m", ms / 3_600_000, ms / 60_000 % 60),
        Some(ms) => format!("{}d{:02}h", ms / 86_400_000, ms / 3_600_000 % 24),
    }
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

fn nodes(answer: &Value) -> String {
    let mut table = table(&["node", "roles", "version", "up", "shards", "ready"], 3..5);
    for node in rows(&answer["nodes"]) {
        let ready = node["not_ready"].as_str().unwrap_or("yes").to_owned();
        let texts = ["name", "roles", "version"].map(|name| shown(&node[name]));
        table.add_row(texts.into_iter().chain([duration(&node["uptime_ms"]), shown(&node["shards"]), ready]));
    }
    table.to_string()
}

fn shards(answer: &Value) -> String {
    if rows(&answer["shards"]).is_empty() {
        return "this node knows nothing of shards: ask one with the role shards or query".to_owned();
    }
    let header = ["shard", "owner", "epoch", "next", "end", "lag", "age", "archived", "unarchived", "attempts", "problem"];
    let mut table = table(&header, 2..10);
    for shard in rows(&answer["shards"]) {
        let owner = if shard["node"].is_null() { shown(&shard["owner"]) } else { shown(&shard["node"]) };
        let figures = ["epoch", "next", "end", "lag"].map(|name| shown(&shard[name]));
        let behind = ["archived", "archive_lag", "attempts"].map(|name| shown(&shard[name]));
        let problem = shard["problem"].as_str().unwrap_or_default().to_owned();
        let row = [shown(&shard["shard"]), owner].into_iter().chain(figures).chain([duration(&shard["age_ms"])]);
        table.add_row(row.chain(behind).chain([problem]));
    }
    table.to_string()
}

/// What is wrong, in a line or two.
fn problem(answer: &Value) -> Option<String> {
    let count = |kind: &str| rows(&answer["shards"]).iter().filter(|shard| shard["problem"] == kind).count();
    let mut lines = Vec::new();
    match (count("no_owner"), count("stale")) {
        (0, 0) => {}
        (without, stale) => lines.push(format!("{without} shards have no owner, {stale} are stale")),
    }
    for shard in rows(&answer["shards"]).iter().filter(|shard| shard["problem"] == "stopped") {
        lines.push(format!("shard {} stands still: {}", shown(&shard["shard"]), shown(&shard["why"])));
    }
    let failing = count("flush_failing");
    if failing > 0 {
        let why = rows(&answer["shards"]).iter().find_map(|shard| shard["flush_failure"].as_str());
        lines.push(format!("flushes of {failing} shards fail again and again ({})", why.unwrap_or("their nodes' logs say why")));
    }
    match answer["store"].as_str() {
        None | Some("reachable") => {}
        Some(why) => lines.push(format!("the store does not answer ({why}): shards of other nodes are not known")),
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_short() {
        let cases = [(json!(0), "0ms"), (json!(1_500), "1.5s"), (json!(61_000), "1m01s"), (json!(3_660_000), "1h01m")];
        for (value, text) in cases.into_iter().chain([(json!(90_000_000), "1d01h"), (Value::Null, "-")]) {
            assert_eq!(duration(&value), text);
        }
    }

    #[test]
    fn a_table_names_owner_and_problem() {
        let answer = json!({
            "healthy": false, "store": "the store failed",
            "nodes": [{"name": "a", "roles": ["gateway", "shards"], "version": "1", "uptime_ms": 1_000, "not_ready": null, "shards": 1}],
            "shards": [
                {"shard": 0, "owner": "here", "node": "a", "epoch": 3, "next": 9, "end": 10, "lag": 1, "age_ms": 12_000,
                 "archived": 4, "archive_lag": 5, "attempts": 0, "problem": "stale"},
                {"shard": 1, "owner": "none", "node": null, "problem": "no_owner"},
                {"shard": 2, "owner": "here", "node": "a", "problem": "stopped", "why": "the log is corrupt"}],
        });
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<_> = shards(&answer).lines().map(words).collect();
        assert_eq!(lines[1], ["0", "a", "3", "9", "10", "1", "12.0s", "4", "5", "0", "stale"]);
        assert_eq!(lines[2].first().zip(lines[2].last()), Some((&"1".to_owned(), &"no_owner".to_owned())));
        assert!(nodes(&answer).contains("gateway,shards"));
        let problem = problem(&answer).expect("a problem");
        assert!(problem.contains("1 shards have no owner, 1 are stale") && problem.contains("the store failed"), "{problem}");
        assert!(problem.contains("shard 2 stands still: the log is corrupt"), "{problem}");
    }
}

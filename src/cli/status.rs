//! `rollmill status`: the nodes, and the state of every shard.

use std::process::ExitCode;

use clap::Args;

use super::client::{ServerArgs, decode_answer};
use crate::api::status::StatusAnswer;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill status
  rollmill status --json --url http://10.0.0.5:8080 --key $KEY

Exit code 0: every shard has an owner that keeps up. 1: one has none or is stale, or the node
cannot tell.")]
pub(super) struct StatusArgs {
    /// Print the answer of the server unchanged, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let answer = args.server.get("/v1/status", &[])?;
    let status: StatusAnswer = decode_answer(&answer)?;
    if args.json {
        println!("{answer}");
    } else {
        println!("{}\n\n{}", nodes(&status), shards(&status));
        if let Some(problem) = problem(&status) {
            eprintln!("{problem}");
        }
    }
    Ok(if status.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A value for people; `None` is a dash.
fn value_or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A duration in the largest unit in which it is at least one; `None` is a dash.
fn duration(ms: Option<u64>) -> String {
    match ms {
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

fn nodes(answer: &StatusAnswer) -> String {
    let mut table = table(&["node", "roles", "version", "up", "shards", "ready"], 3..5);
    for node in &answer.nodes {
        let ready = node.not_ready.clone().unwrap_or_else(|| "yes".to_owned());
        let up = duration(Some(node.uptime_ms));
        table.add_row([
            node.name.clone(),
            node.roles.join(","),
            node.version.clone(),
            up,
            node.shards.to_string(),
            ready,
        ]);
    }
    table.to_string()
}

fn shards(answer: &StatusAnswer) -> String {
    if answer.shards.is_empty() {
        return "this node knows nothing of shards: ask one with the role shards or query"
            .to_owned();
    }
    let header = [
        "shard",
        "owner",
        "epoch",
        "next",
        "end",
        "lag",
        "age",
        "archived",
        "unarchived",
        "attempts",
        "problem",
    ];
    let mut table = table(&header, 2..10);
    for shard in &answer.shards {
        table.add_row([
            shard.shard.to_string(),
            shard.node.clone().unwrap_or_else(|| shard.owner.clone()),
            value_or_dash(shard.epoch),
            value_or_dash(shard.next),
            value_or_dash(shard.end),
            value_or_dash(shard.lag),
            duration(shard.age_ms.and_then(|ms| u64::try_from(ms).ok())),
            value_or_dash(shard.archived),
            value_or_dash(shard.archive_lag),
            value_or_dash(shard.attempts),
            shard.problem.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

/// What is wrong, one line per problem; `None` if nothing is.
fn problem(answer: &StatusAnswer) -> Option<String> {
    let count = |kind: &str| {
        answer.shards.iter().filter(|shard| shard.problem.as_deref() == Some(kind)).count()
    };
    let mut lines = Vec::new();
    match (count("no_owner"), count("stale")) {
        (0, 0) => {}
        (without, stale) => {
            lines.push(format!("{without} shards have no owner, {stale} are stale"))
        }
    }
    for shard in answer.shards.iter().filter(|shard| shard.problem.as_deref() == Some("stopped")) {
        lines.push(format!(
            "shard {} stands still: {}",
            shard.shard,
            value_or_dash(shard.why.as_ref())
        ));
    }
    let failing = count("flush_failing");
    if failing > 0 {
        let why = answer.shards.iter().find_map(|shard| shard.flush_failure.as_deref());
        lines.push(format!(
            "flushes of {failing} shards fail again and again ({})",
            why.unwrap_or("their nodes' logs say why")
        ));
    }
    match answer.store.as_deref() {
        None | Some("reachable") => {}
        Some(why) => lines.push(format!(
            "the store does not answer ({why}): shards of other nodes are not known"
        )),
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_short() {
        let cases = [
            (0, "0ms"),
            (1_500, "1.5s"),
            (61_000, "1m01s"),
            (3_660_000, "1h01m"),
            (90_000_000, "1d01h"),
        ];
        for (ms, text) in cases {
            assert_eq!(duration(Some(ms)), text);
        }
        assert_eq!(duration(None), "-");
    }

    #[test]
    fn a_table_names_owner_and_problem() {
        let answer = StatusAnswer::deserialize(json!({
            "healthy": false, "store": "the store failed",
            "nodes": [{
                "name": "a", "roles": ["gateway", "shards"], "version": "1",
                "uptime_ms": 1_000, "not_ready": null, "shards": 1,
            }],
            "shards": [
                {"shard": 0, "owner": "here", "node": "a", "epoch": 3, "next": 9, "end": 10,
                 "lag": 1, "age_ms": 12_000, "archived": 4, "archive_lag": 5, "attempts": 0,
                 "problem": "stale"},
                {"shard": 1, "owner": "none", "node": null, "problem": "no_owner"},
                {"shard": 2, "owner": "here", "node": "a", "problem": "stopped",
                 "why": "the log is corrupt"}],
        }));
        let answer = answer.expect("an answer of an older release");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<_> = shards(&answer).lines().map(words).collect();
        assert_eq!(lines[1], ["0", "a", "3", "9", "10", "1", "12.0s", "4", "5", "0", "stale"]);
        assert_eq!(
            lines[2].first().zip(lines[2].last()),
            Some((&"1".to_owned(), &"no_owner".to_owned()))
        );
        assert!(nodes(&answer).contains("gateway,shards"));
        let problem = problem(&answer).expect("a problem");
        assert!(
            problem.contains("1 shards have no owner, 1 are stale")
                && problem.contains("the store failed"),
            "{problem}"
        );
        assert!(problem.contains("shard 2 stands still: the log is corrupt"), "{problem}");
    }
}

//! Purity, sizes, module docs, and no leftover to-do notes.

use crate::source::product;

/// Code in these rooms depends only on its arguments.
const PURE_ROOMS: &[&str] = &["api", "model", "promql", "rules", "collect", "shards"];

/// So does code in these files. Every file that calls itself pure is listed here.
const PURE_FILES: &[&str] = &[
    "src/actors/archive_maintenance/replay_hold.rs",
    "src/actors/catalogue.rs",
    "src/cluster/wire.rs",
    "src/cluster/wire/accounting.rs",
    "src/cluster/wire/catalogue.rs",
    "src/cluster/wire/live.rs",
    "src/gateway/diff_csv.rs",
    "src/gateway/frame_tracker.rs",
    "src/gateway/params.rs",
    "src/operate/replays/answer.rs",
    "src/operate/replays/diff.rs",
    "src/operate/replays/refusals.rs",
    "src/operate/replays/request.rs",
    "src/operate/replays/share.rs",
    "src/persistence/archive/chain.rs",
    "src/persistence/archive/columns.rs",
    "src/persistence/cache/breaker.rs",
    "src/query/answer.rs",
    "src/query/catalogue.rs",
    "src/query/completeness.rs",
    "src/query/error.rs",
    "src/query/groups.rs",
    "src/query/part.rs",
    "src/query/rank.rs",
    "src/query/request.rs",
    "src/query/steps.rs",
    "src/recompute/replay/pace.rs",
    "src/recompute/replay/plan.rs",
    "src/recompute/replay/set_aside.rs",
    "src/recompute/verify/ledger.rs",
    "src/recompute/verify/outcomes.rs",
    "src/supervision/ownership.rs",
    "src/supervision/policy.rs",
];

/// Exceptions: words that a pure file may use, and why.
const EXCUSED: &[(&str, &[&str], &str)] = &[
    (
        "src/query/groups.rs",
        &["std::collections::HashMap", "RandomState"],
        "clients choose the labels, so the table's seed is random; what it holds is sorted before \
         anybody sees it",
    ),
    (
        "src/promql/selector.rs",
        &["std::time"],
        "the parser gives the time behind @ as that of the standard library; no clock is read",
    ),
];

const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    "std::net",
    "std::thread",
    "std::time",
    "std::env",
    "crate::clock",
    "SystemTime",
    "getrandom",
    "async fn",
    ".await",
    "std::collections::HashMap",
    "RandomState",
];

/// The current maxima; they may only decrease.
const MAX_FILE_LINES: usize = 536;
const MAX_FUNCTION_LINES: usize = 70;

#[test]
fn pure_code_does_no_io() {
    let missing: Vec<_> = PURE_FILES
        .iter()
        .filter(|file| product().iter().all(|source| source.shown() != **file))
        .collect();
    assert!(missing.is_empty(), "no such files: {missing:?}");
    let mut wrong = Vec::new();
    for source in product() {
        let docs: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        let listed =
            PURE_ROOMS.contains(&source.room()) || PURE_FILES.contains(&source.shown().as_str());
        if listed {
            let excused = EXCUSED
                .iter()
                .find(|(file, ..)| *file == source.shown())
                .map_or(&[][..], |(_, words, _)| words);
            let impure =
                IMPURE.iter().filter(|word| source.code.contains(*word) && !excused.contains(word));
            wrong.extend(impure.map(|w| format!("{}: {w}", source.shown())));
        } else if ["Pure.", "Pure:", "pure function"].iter().any(|claim| docs.contains(claim)) {
            wrong.push(format!("{}: calls itself pure; list it in PURE_FILES", source.shown()));
        }
    }
    assert!(
        wrong.is_empty(),
        "pure code takes time, randomness and bytes as arguments:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn files_and_functions_stay_small() {
    let mut wrong = Vec::new();
    for source in product() {
        if source.lines > MAX_FILE_LINES {
            wrong.push(format!(
                "{}: {} lines, at most {MAX_FILE_LINES}: split it",
                source.shown(),
                source.lines
            ));
        }
        let long = source.functions.iter().filter(|function| function.lines > MAX_FUNCTION_LINES);
        wrong.extend(
            long.map(|f| {
                format!("{}:{}: {} has {} lines", source.shown(), f.line, f.name, f.lines)
            }),
        );
    }
    assert!(
        wrong.is_empty(),
        "functions have at most {MAX_FUNCTION_LINES} lines:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> = product()
        .iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|s| s.shown())
        .collect();
    assert!(silent.is_empty(), "begin with `//!`: {silent:?}");
}

#[test]
fn nothing_is_left_for_later() {
    let marks = ["todo!(", "unimplemented!(", "FIXME", "XXX", "for now", "To be written"];
    let mut wrong = Vec::new();
    for source in product() {
        wrong.extend(
            marks
                .iter()
                .filter(|m| source.text.contains(*m))
                .map(|m| format!("{}: {m}", source.shown())),
        );
    }
    assert!(wrong.is_empty(), "finish it or write an ADR:\n{}", wrong.join("\n"));
}

#[test]
fn metrics_are_named_by_the_table_alone() {
    let by_text = |source: &&crate::source::Source| {
        source.room() != "telemetry" && source.code.contains("!(\"rollmill_")
    };
    let wrong: Vec<_> = product().iter().filter(by_text).map(|source| source.shown()).collect();
    assert!(
        wrong.is_empty(),
        "name metrics by the constants of src/telemetry.rs, which docs and /metrics are made of: \
         {wrong:?}"
    );
}

//! `rollmill rules`: checks files of rules, and tries them on examples of events.

mod report;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};

use self::report::Trial;
use super::UsageError;
use crate::clock::{Clock, SystemClock};
use crate::gateway::parse;
use crate::rules::{MAX_FILE_BYTES, RuleSet, RulesFormat};

/// Most examples. What becomes of each is in memory, with what each rule did to it.
const MAX_EVENTS: usize = 10_000;
/// Most bytes of examples.
const MAX_INPUT_BYTES: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct RulesArgs {
    #[command(subcommand)]
    command: RulesCommand,
}

#[derive(Debug, Subcommand)]
enum RulesCommand {
    /// Check a file of rules: every mistake at once, with its line
    #[command(after_help = "Examples:
  rollmill rules check rules.toml
  rollmill rules check rules.json --output json

The hash is the same for all files that say the same, in TOML or JSON. docs/reference/rules.md says
what rules can do.

Exit code 0: the file is valid. 1: it cannot be read. 2: it has mistakes.")]
    Check {
        /// File of rules, TOML or JSON
        file: PathBuf,
        /// How to print the result
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Show what becomes of events from standard input; nothing is sent or stored
    #[command(after_help = "Examples:
  cat events.ndjson | rollmill rules try rules.toml
  head -n 1000 events.ndjson | rollmill rules try rules.toml --output json

Reads what POST /v1/events takes as JSON or NDJSON, at most 10,000 events. How old or large an event
may be depends on a server, and is not checked.

Exit code 0: every event is valid, whatever became of it. 1: an event is not, or something cannot be
read. 2: the rules have mistakes.")]
    Try {
        /// File of rules, TOML or JSON
        file: PathBuf,
        /// How to print the result
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people
    Table,
    /// One JSON object
    Json,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &RulesArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        RulesCommand::Check { file, output } => {
            let rules = load(file)?;
            println!("{}", checked(file, &rules, *output)?);
            Ok(ExitCode::SUCCESS)
        }
        RulesCommand::Try { file, output } => {
            let rules = load(file)?;
            let body = standard_input()?;
            let trial = try_rules(&rules, &body)?;
            match output {
                Output::Table => println!("{}", trial.table()),
                Output::Json => println!("{}", trial.json()),
            }
            Ok(if trial.invalid() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Reads a file of rules. Fails with all of its mistakes, which is wrong usage.
pub(super) fn load(file: &Path) -> anyhow::Result<RuleSet> {
    let shown = file.display();
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read {shown}"))?;
    let mut bytes = Vec::new();
    // One byte more than a file may have, so that the reader sees that there are too many.
    opened
        .take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {shown}"))?;
    ensure!(
        bytes.len() <= MAX_FILE_BYTES,
        UsageError(format!("{shown}: more than {MAX_FILE_BYTES} bytes"))
    );
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|b| **b == b'\n').count();
        UsageError(format!("{shown}:{line}: not UTF-8"))
    })?;
    let extension = file.extension().and_then(|extension| extension.to_str());
    RuleSet::parse(&text, RulesFormat::of(extension, &text)).map_err(|mistakes| {
        let listed = mistakes.listed.iter().map(|mistake| format!("{shown}:{mistake}"));
        let more = (mistakes.hidden > 0).then(|| format!("and {} more", mistakes.hidden));
        let lines: Vec<String> = listed.chain(more).collect();
        UsageError(format!("{mistakes}:\n{}", lines.join("\n"))).into()
    })
}

fn checked(file: &Path, rules: &RuleSet, output: Output) -> anyhow::Result<String> {
    let (count, hash) = (rules.len(), rules.hash());
    if output == Output::Json {
        let canonical: serde_json::Value = serde_json::from_str(&rules.canonical_json())?;
        let checked = serde_json::json!({
            "hash": hash.to_string(),
            "needs_properties": rules.needs_properties(),
            "rule": canonical["rule"],
        });
        return Ok(checked.to_string());
    }
    let reads =
        if rules.needs_properties() { "they read properties" } else { "no properties read" };
    let plural = if count == 1 { "rule" } else { "rules" };
    Ok(format!("{}: {count} {plural}, {reads}, hash {hash}", file.display()))
}

fn standard_input() -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    std::io::stdin()
        .take(MAX_INPUT_BYTES + 1)
        .read_to_end(&mut body)
        .context("cannot read standard input")?;
    ensure!(
        body.len() as u64 <= MAX_INPUT_BYTES,
        "more than {MAX_INPUT_BYTES} bytes of events: take some of them, as `head -n 1000` does"
    );
    Ok(body)
}

/// Applies the rules to each event of a body: one event, an array of them, or one a line.
fn try_rules(rules: &RuleSet, body: &[u8]) -> anyhow::Result<Trial> {
    let whole = parse::split_json(body, usize::MAX);
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    // What is neither one event nor an array is lines. An array that is broken is not.
    let events = if whole.is_err() && text.trim_ascii_start().first() != Some(&b'[') {
        parse::split_ndjson(body, usize::MAX)
    } else {
        whole
    };
    let events = events.map_err(|broken| anyhow::anyhow!("standard input: {}", broken.message))?;
    ensure!(!events.is_empty(), "no events on standard input");
    ensure!(
        events.len() <= MAX_EVENTS,
        "{} events, at most {MAX_EVENTS}: take some of them, as `head -n 1000` does",
        events.len()
    );
    let now = SystemClock.now();
    let mut trial = Trial::of(rules);
    for event in events {
        trial.add(rules, &body[event], now);
    }
    Ok(trial)
}

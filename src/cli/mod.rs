//! The command line: one module per subcommand.

mod archive;
mod bench;
mod broken_pipe;
mod client;
mod health;
mod inspect;
mod keys;
mod log;
mod logging;
mod manual;
mod migrate;
mod number_format;
mod quarantine;
mod query;
mod rebuild;
mod replay;
mod rules;
mod send;
mod status;
mod store;
mod time_arg;
mod topic;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{Config, ConfigErrors, key};
use crate::node::permissions;

/// Exact metrics from billions of events: takes events over HTTP, answers time
/// series a second later.
#[derive(Debug, Parser)]
#[command(
    name = "rollmill",
    version,
    after_help = "Examples:
  rollmill serve
  rollmill send events.ndjson
  rollmill query page_view --agg count,p95 --by country --plot"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    #[command(after_help = "Examples:
  rollmill serve
  rollmill serve --config config/demo.toml --data ./data --listen 127.0.0.1:8080")]
    Serve(ServeArgs),
    /// Send events from files or standard input
    Send(send::SendArgs),
    /// Query a metric
    Query(query::QueryArgs),
    /// List metrics, with their labels and number of series
    Metrics(inspect::MetricsArgs),
    /// List the labels of a metric, or the values of a label
    Labels(inspect::LabelsArgs),
    /// Show every limit of a server
    Limits(inspect::LimitsArgs),
    /// Count events by outcome and hour of receipt
    Accounting(inspect::AccountingArgs),
    /// Recompute rollups from the raw events and compare them with the store, to the bit
    Verify(verify::VerifyArgs),
    /// Rebuild a lost store from the archive and the log
    Rebuild(rebuild::RebuildArgs),
    /// List, flush and expire the archive of raw events
    Archive(archive::ArchiveArgs),
    /// Measure a server under load, and check that it counted everything exactly once
    Bench(bench::BenchArgs),
    /// Check whether a node is ready, where no HTTP client is at hand
    Health(health::HealthArgs),
    /// Show the nodes, and the state of every shard
    Status(status::StatusArgs),
    /// List, release and discard quarantined events
    Quarantine(quarantine::QuarantineArgs),
    /// Count archived events again under other rules: compare, apply, undo
    Replay(replay::ReplayArgs),
    /// Check rules for events, and try them on examples
    Rules(rules::RulesArgs),
    /// Create, list and revoke API keys
    Keys(keys::KeysArgs),
    /// Inspect the log of an embedded node
    Log(log::LogArgs),
    /// Manage the roles and tables of a PostgreSQL store
    Store(store::StoreArgs),
    /// Create and check the Kafka topic of the log
    Topic(topic::TopicArgs),
    /// Move the data of an embedded node into a cluster
    Migrate(migrate::MigrateArgs),
    /// Check a configuration and print it with every default, as a usable file
    #[command(after_help = "Examples:
  rollmill check-config config/rollmill.toml
  ROLLMILL_ACCEPT_MAX_AGE=30d rollmill check-config > rollmill.toml")]
    CheckConfig {
        /// Configuration file (TOML) [default: environment variables only]
        file: Option<PathBuf>,
    },
    /// Print a script that completes the commands and options of rollmill in a shell
    #[command(after_help = "Examples:
  rollmill completions bash > ~/.local/share/bash-completion/completions/rollmill
  rollmill completions zsh > ~/.zfunc/_rollmill
  rollmill completions fish > ~/.config/fish/completions/rollmill.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages, one for each command
    Man(manual::ManArgs),
    /// Print the version, the commit and the features of the build
    #[command(after_help = "Example:
  rollmill version")]
    Version,
}

/// A usage error that clap cannot detect; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

#[derive(Debug, Args)]
struct ServeArgs {
    /// Configuration file (TOML); docs/reference/configuration.md lists the keys
    #[arg(long)]
    config: Option<PathBuf>,
    /// Data directory [default: ./data]
    #[arg(long)]
    data: Option<String>,
    /// Address to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Roles of this node, out of gateway,shards,query,replay [default: all]
    #[arg(long)]
    roles: Option<String>,
    /// Log as JSON
    #[arg(long)]
    log_json: bool,
}

/// Parses a command line without running it, for tests of files that contain commands.
///
/// # Errors
/// The error of clap, as text.
pub fn check(args: &[&str]) -> Result<(), String> {
    Cli::try_parse_from(std::iter::once("rollmill").chain(args.iter().copied()))
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Runs a command line, for tests that have a server.
#[cfg(test)]
pub(crate) fn run_line(line: &[&str]) -> anyhow::Result<ExitCode> {
    run(Cli::try_parse_from(line)?.command)
}

/// Every command that can be run, and its help.
pub fn help() -> Vec<(String, String)> {
    let mut whole = Cli::command().term_width(100);
    whole.build();
    let (mut found, mut pending) = (Vec::new(), vec![("rollmill".to_owned(), &mut whole)]);
    while let Some((path, command)) = pending.pop() {
        // Some commands can be run though others are below them.
        if !command.has_subcommands() || !command.is_subcommand_required_set() {
            found.push((path.clone(), command.render_help().to_string()));
        }
        let below = command.get_subcommands_mut().filter(|below| below.get_name() != "help");
        let below: Vec<_> =
            below.map(|below| (format!("{path} {}", below.get_name()), below)).collect();
        pending.extend(below.into_iter().rev());
    }
    found
}

/// Runs the command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 141 if
/// standard output was closed.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // Before anything is written: files of the node are private to its user.
    permissions::set_umask();
    broken_pipe::run_quietly(|| match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rollmill: {error:#}");
            let wrong_usage = error.is::<ConfigErrors>() || error.is::<UsageError>();
            if wrong_usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    })
}

#[allow(clippy::print_stdout)] // the command line talks to people
fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve(args)?,
        Command::Send(args) => send::run(&args)?,
        Command::Query(args) => return query::run(&args),
        Command::Metrics(args) => inspect::metrics(&args)?,
        Command::Labels(args) => inspect::labels(&args)?,
        Command::Limits(args) => inspect::limits(&args)?,
        Command::Accounting(args) => inspect::accounting(&args)?,
        Command::Rebuild(args) => rebuild::run(&args)?,
        Command::Archive(args) => archive::run(&args)?,
        Command::Bench(args) => bench::run(&args)?,
        Command::Verify(args) => return verify::run(&args),
        Command::Health(args) => health::run(&args)?,
        Command::Status(args) => return status::run(&args),
        Command::Quarantine(args) => quarantine::run(&args)?,
        Command::Replay(args) => return replay::run(&args),
        Command::Rules(args) => return rules::run(&args),
        Command::Keys(args) => keys::run(&args)?,
        Command::Log(args) => log::run(&args)?,
        Command::Store(args) => store::run(&args)?,
        Command::Topic(args) => return topic::run(&args),
        Command::Migrate(args) => {
            // Parts of a node run here, and their warnings must show.
            logging::start_quietly();
            migrate::run(&args)?;
        }
        Command::CheckConfig { file } => {
            let config = Config::load(file.as_deref(), std::env::vars(), &[])?;
            // Printed even if a node would refuse it, so that the cause can be seen in it.
            print!("{}", config.to_toml());
            let refused = crate::node::refusals(&config);
            anyhow::ensure!(
                refused.is_empty(),
                "`rollmill serve` refuses this configuration:\n  {}",
                refused.join("\n  ")
            );
        }
        Command::Completions { shell } => manual::print_completions(shell, Cli::command()),
        Command::Man(args) => manual::write_pages(&args, Cli::command())?,
        Command::Version => {
            println!(
                "rollmill {}\ncommit: {}\nfeatures: {}",
                env!("CARGO_PKG_VERSION"),
                commit(),
                features()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The commit of the build, as `build.rs` was told or has found it.
fn commit() -> &'static str {
    option_env!("BUILD_COMMIT").filter(|commit| !commit.is_empty()).unwrap_or("unknown")
}

/// The optional features of this build.
fn features() -> String {
    let all =
        [("kafka-tls", cfg!(feature = "kafka-tls")), ("failpoints", cfg!(feature = "failpoints"))];
    let built: Vec<&str> =
        all.into_iter().filter_map(|(name, built)| built.then_some(name)).collect();
    if built.is_empty() { "none".to_owned() } else { built.join(", ") }
}

/// Style of a progress bar; indicatif draws it on a terminal only.
fn bar_style(unit: &str) -> indicatif::ProgressStyle {
    let template = format!("{{bar:40}} {{pos}}/{{len}} {unit} {{eta}}");
    indicatif::ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar())
}

fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let flags: Vec<(&str, String)> = [
        (key!(data.dir), args.data),
        (key!(server.listen), args.listen),
        (key!(node.roles), args.roles),
    ]
    .into_iter()
    .filter_map(|(k, v)| v.map(|v| (k, v)))
    .collect();
    let config = Config::load(args.config.as_deref(), std::env::vars(), &flags)?;
    logging::start(args.log_json);
    crate::node::serve(&config)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects every command that can be run, as its path and help.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
            .for_each(|sub| leaves(sub, &path, found));
        if !command.is_subcommand_required_set() {
            found.push((path, help));
        }
    }

    /// Splits a command line into words, removing shell quotes.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (None, ' ') => words.extend(word.take()),
                (_, c) => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }

    #[test]
    fn every_command_has_examples_and_they_are_right() {
        let mut found = Vec::new();
        leaves(&Cli::command(), "", &mut found);
        assert!(found.len() > 20, "{found:?}");
        for (path, help) in found {
            let lines: Vec<&str> =
                help.lines().map(str::trim).filter(|line| line.contains("rollmill ")).collect();
            assert!(
                help.starts_with("Example") && lines.iter().any(|line| line.contains(&path)),
                "{path} has no example:\n{help}"
            );
            for line in lines {
                let Some(at) = line.find(&path) else { continue };
                // Cuts off pipes, redirections and remarks, which are not part of the command.
                let own = [" | ", " > ", " && ", "   "]
                    .iter()
                    .fold(&line[at..], |own, end| own.split(end).next().unwrap_or_default());
                let own = own.trim_end_matches(')');
                if let Err(error) = Cli::try_parse_from(words(own)) {
                    assert_eq!(error.exit_code(), 0, "{own}: {error}");
                }
            }
        }
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}

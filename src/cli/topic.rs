//! `rollmill topic`: creates, checks and moves the Kafka topic of the log.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::config::{Config, key};
use crate::migrate::move_topic;
use crate::node::backends::{self, TopicDescription, TopicDrift};

#[derive(Debug, Args)]
pub(super) struct TopicArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the topic: one partition per shard, unlimited retention, LogAppendTime, and a log id
    #[command(after_help = "Examples:
  rollmill topic create --config rollmill.toml
  ROLLMILL_KAFKA_BROKERS=kafka-1:9092,kafka-2:9092 ROLLMILL_KAFKA_REPLICATION=3 \
                            rollmill topic create --if-missing

Exit code 1: the topic exists, but a node would refuse it. The output says how to fix it.")]
    Create {
        /// If the topic exists, show and check it as describe does
        #[arg(long)]
        if_missing: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Show the topic, and which settings are wrong
    #[command(after_help = "Examples:
  rollmill topic describe --config rollmill.toml
  rollmill topic describe --config rollmill.toml --json

Exit code 1: a setting is not as a node expects it. The output says how to fix it.")]
    Describe(Options),
    /// Move the cluster from another topic to the configured one; all nodes must be stopped
    #[command(after_help = "Example:
  rollmill topic move --config rollmill.toml --from rollmill --dry-run

kafka.topic of the configuration is the new topic, which must not exist yet. Everything in the
old topic is flushed and archived first. Offsets continue, so that retries are recognised and
`rollmill verify` covers old and new records. It may be killed at any time: run it again. No node
starts before it is done. The old topic is not deleted, but no node opens it any more. For
`rollmill rebuild`, the old log is a --former-log.")]
    Move {
        /// Topic that the cluster uses now
        #[arg(long, value_name = "TOPIC")]
        from: String,
        /// Check both sides and say what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, Args)]
struct Options {
    /// The server's configuration file [default: environment variables only]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &TopicArgs) -> anyhow::Result<ExitCode> {
    let (Command::Create { options, .. }
    | Command::Describe(options)
    | Command::Move { options, .. }) = &args.command;
    if let Command::Move { from, dry_run, .. } = &args.command {
        return move_from(from, *dry_run, options);
    }
    let config = Config::load_part(options.config.as_deref(), std::env::vars(), &[])?;
    let description = match &args.command {
        Command::Create { if_missing: true, .. } if backends::topic_exists(&config)? => {
            backends::describe_topic(&config)?
        }
        Command::Create { .. } => backends::create_topic(&config)?,
        Command::Describe(_) | Command::Move { .. } => backends::describe_topic(&config)?,
    };
    if options.json {
        println!("{}", json(&description));
    } else {
        println!("{}", table(&description));
        if let Some(refusal) =
            description.refusal(config.kafka.brokers.as_deref().unwrap_or_default())
        {
            println!("{refusal}");
        }
        description.warnings().for_each(|note| println!("{note}"));
    }
    let wrong = match &args.command {
        // Drift that nodes tolerate must not fail the set-up of a cluster.
        Command::Create { .. } => description.drift.iter().any(|d| !d.is_harmless),
        Command::Describe(_) | Command::Move { .. } => !description.drift.is_empty(),
    };
    Ok(if wrong { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

#[allow(clippy::print_stdout)] // the output of the command
fn move_from(old: &str, dry: bool, options: &Options) -> anyhow::Result<ExitCode> {
    let load =
        |flags: &[(&str, String)]| Config::load(options.config.as_deref(), std::env::vars(), flags);
    let (old, new) = (load(&[(key!(kafka.topic), old.to_owned())])?, load(&[])?);
    let mut printed = None;
    let moved = move_topic::run(
        &move_topic::TopicPair { old: &old, new: &new },
        dry,
        &mut |step, _, _| {
            if printed.replace(step) != Some(step) && !options.json {
                eprintln!("{}", step.labels().0);
            }
        },
    )?;
    let to = moved.to.map(|log| log.to_string());
    if options.json {
        let (unflushed, unarchived) = moved.pending;
        let outcome = if dry {
            "planned"
        } else if moved.already_done {
            "was done before"
        } else {
            "done"
        };
        let shown = serde_json::json!({
            "outcome": outcome,
            "from": moved.from.to_string(),
            "to": to,
            "offsets": moved.offsets,
            "unflushed": unflushed,
            "unarchived": unarchived,
        });
        println!("{shown}");
    } else if let Some(to) = to {
        println!(
            "the cluster goes on in topic {} (log {to}); its log was {}",
            new.kafka.topic, moved.from
        );
    } else {
        let (unflushed, unarchived) = moved.pending;
        println!(
            "nothing was changed. To be flushed first: {unflushed} records; to be archived first: \
             {unarchived}. The new topic will begin behind {} records",
            moved.offsets
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn table(topic: &TopicDescription) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let health = |shards: &[crate::model::offset::ShardId]| match shards.len() {
        0 => "none".to_owned(),
        n => format!(
            "{n}: {}",
            shards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
    };
    let log = topic.log.map_or_else(|| "none".to_owned(), |log| log.to_string());
    let rows = [
        ("name", topic.topic.clone()),
        ("cluster", topic.cluster.clone()),
        ("log id", log),
        ("partitions", topic.partitions.to_string()),
        ("replicas", topic.replication.to_string()),
        ("lack in-sync replicas", health(&topic.under_replicated)),
        ("without a leader", health(&topic.leaderless)),
    ];
    rows.into_iter().for_each(|(name, value)| _ = table.add_row([name.to_owned(), value]));
    topic.settings.iter().for_each(|(name, value)| _ = table.add_row([name, value]));
    table
}

fn json(topic: &TopicDescription) -> serde_json::Value {
    let difference = |d: &TopicDrift| {
        serde_json::json!({
            "what": d.setting,
            "found": d.found,
            "wanted": d.expected,
            "why": d.why,
            "nodes_serve": d.is_harmless,
        })
    };
    let numbers = |shards: &[crate::model::offset::ShardId]| {
        shards.iter().map(|shard| shard.0).collect::<Vec<_>>()
    };
    let surplus: Vec<_> = topic
        .surplus
        .iter()
        .map(|(shard, records)| serde_json::json!({"partition": shard.0, "records": records}))
        .collect();
    serde_json::json!({
        "topic": topic.topic,
        "cluster": topic.cluster,
        "log": topic.log.map(|log| log.to_string()),
        "partitions": topic.partitions,
        "surplus_partitions": surplus,
        "replication": topic.replication,
        "under_replicated": numbers(&topic.under_replicated),
        "leaderless": numbers(&topic.leaderless),
        "settings": topic.settings,
        "differences": topic.drift.iter().map(difference).collect::<Vec<_>>(),
    })
}

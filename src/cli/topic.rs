//! `rollmill topic`: makes and checks the topic of the log on Kafka.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::config::Config;
use crate::node::backends;
use crate::persistence::log::kafka::topic::Description;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill topic create --config rollmill.toml
  ROLLMILL_KAFKA_BROKERS=kafka-1:9092,kafka-2:9092 ROLLMILL_KAFKA_REPLICATION=3 rollmill topic create
  rollmill topic describe --config rollmill.toml --json

describe, and create of a topic that is there, exit with 1 if something is not as a node wants it, and say how to mend it.")]
pub(super) struct TopicArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the topic: as many partitions as shards, unlimited retention, the log's own append times, an identity
    Create {
        /// One that is there already is shown, and checked as describe does
        #[arg(long)]
        if_missing: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Show the topic, and what is not as it must be
    Describe(Options),
}

#[derive(Debug, Args)]
struct Options {
    /// The server's configuration file [default: environment variables only]
    #[arg(long)]
    config: Option<PathBuf>,
    /// For machines
    #[arg(long)]
    json: bool,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &TopicArgs) -> anyhow::Result<ExitCode> {
    let (Command::Create { options, .. } | Command::Describe(options)) = &args.command;
    let config = Config::load_part(options.config.as_deref(), std::env::vars(), &[])?;
    let description = match &args.command {
        Command::Create { if_missing: true, .. } if backends::topic_exists(&config)? => backends::describe_topic(&config)?,
        Command::Create { .. } => backends::create_topic(&config)?,
        Command::Describe(_) => backends::describe_topic(&config)?,
    };
    if options.json {
        println!("{}", json(&description));
    } else {
        println!("{}", table(&description));
        if let Some(refusal) = description.refusal(config.text("kafka.brokers")) {
            println!("{refusal}");
        }
    }
    Ok(if description.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn table(topic: &Description) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let health = |shards: &[crate::model::offset::ShardId]| match shards.len() {
        0 => "none".to_owned(),
        n => format!("{n}: {}", shards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
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

fn json(topic: &Description) -> serde_json::Value {
    let difference = |d: &crate::persistence::log::kafka::topic::Difference| serde_json::json!({ "what": d.what, "found": d.found, "wanted": d.wanted, "why": d.why });
    let numbers = |shards: &[crate::model::offset::ShardId]| shards.iter().map(|shard| shard.0).collect::<Vec<_>>();
    serde_json::json!({
        "topic": topic.topic,
        "cluster": topic.cluster,
        "log": topic.log.map(|log| log.to_string()),
        "partitions": topic.partitions,
        "replication": topic.replication,
        "under_replicated": numbers(&topic.under_replicated),
        "leaderless": numbers(&topic.leaderless),
        "settings": topic.settings,
        "differences": topic.differences.iter().map(difference).collect::<Vec<_>>(),
    })
}

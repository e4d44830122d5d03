//! `rollmill log`: manual repair of a damaged embedded log.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{Config, key};
use crate::node::{DataDir, offline};

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Cut off the damaged last commit of a log while no node runs; its bytes are kept in a file
    /// next to the log
    #[command(after_help = "Example:
  rollmill log cut --data ./data")]
    Cut {
        /// Data directory [default: data.dir of the configuration]
        #[arg(long)]
        data: Option<String>,
        /// The server's configuration file, if it has one
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &LogArgs) -> anyhow::Result<()> {
    let Command::Cut { data, config } = &args.command;
    let flags: Vec<(&str, String)> =
        data.iter().map(|data| (key!(data.dir), data.clone())).collect();
    let config = Config::load(config.as_deref(), std::env::vars(), &flags)?;
    match offline::cut_log(&config, &DataDir::new(&config.data.dir))? {
        Some((kept, bytes)) => println!(
            "cut the last commit of {bytes} bytes off; they are kept in {}",
            kept.display()
        ),
        None => println!("the last commit is whole: nothing was changed"),
    }
    Ok(())
}

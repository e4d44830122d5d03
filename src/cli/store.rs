//! `rollmill store`: what an administrator of PostgreSQL does once, and at an upgrade.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::Config;
use crate::node::backends;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill store roles | psql rollmill
  ROLLMILL_STORE_URL=postgres://rollmill_owner:SECRET@db/rollmill rollmill store migrate")]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the statements that create rollmill_owner, rollmill_writer and rollmill_reader
    Roles,
    /// Lay or migrate the tables, as the role that owns them
    Migrate {
        /// URL of the database, without a password in it if others see this machine's processes [default: store.url]
        #[arg(long)]
        url: Option<String>,
        /// The server's configuration file, if it has one
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &StoreArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Roles => print!("{}", backends::roles()),
        Command::Migrate { url, config } => {
            let flags: Vec<(&str, String)> = url.iter().map(|url| ("store.url", url.clone())).collect();
            let config = Config::load(config.as_deref(), std::env::vars(), &flags)?;
            println!("the tables are of this version: {}", backends::migrate(&config)?);
        }
    }
    Ok(())
}

//! `rollmill store`: roles and migrations of a PostgreSQL store, for its administrator, and backups
//! of an embedded store.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{Config, key};
use crate::node::{DataDir, backends, offline};

#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy the embedded store as of one moment, while the server runs
    #[command(after_help = "Example:
  rollmill store backup /backups/store-2026-01-01.sqlite --data ./data")]
    Backup {
        /// Path of the copy, which must not exist yet
        to: PathBuf,
        /// Data directory [default: data.dir of the configuration]
        #[arg(long)]
        data: Option<String>,
        /// The server's configuration file, if it has one
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print the statements that create rollmill_owner, rollmill_writer and rollmill_reader
    #[command(after_help = "Example:
  rollmill store roles | psql rollmill")]
    Roles,
    /// Create or migrate the tables, as the role that owns them
    #[command(after_help = "Example:
  ROLLMILL_STORE_URL=postgres://rollmill_owner:SECRET@db/rollmill rollmill store migrate")]
    Migrate {
        /// URL of the database; leave the password out if others see this
        /// machine's processes [default: store.url]
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
        Command::Backup { to, data, config } => {
            let flags: Vec<(&str, String)> =
                data.iter().map(|data| (key!(data.dir), data.clone())).collect();
            let config = Config::load(config.as_deref(), std::env::vars(), &flags)?;
            offline::back_up(&config, &DataDir::new(&config.data.dir), to)?;
            println!("{} is a copy of the store", to.display());
        }
        Command::Roles => print!("{}", backends::roles()),
        Command::Migrate { url, config } => {
            let flags: Vec<(&str, String)> =
                url.iter().map(|url| (key!(store.url), url.clone())).collect();
            let config = Config::load(config.as_deref(), std::env::vars(), &flags)?;
            println!("the tables are of this version: {}", backends::migrate(&config)?);
        }
    }
    Ok(())
}

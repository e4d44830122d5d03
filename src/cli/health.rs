//! `rollmill health`: the answer of `/readyz` as an exit code.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::client::ServerArgs;

/// A node that takes longer counts as not ready. Shorter than the health check timeout
/// of the container image.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill health
  rollmill health --role gateway --url http://10.0.0.5:8080

Exit code 0: the node is ready. 1: it is not, or does not answer within 2 s. It needs no API key.")]
pub(super) struct HealthArgs {
    /// Check one role of the node [default: all roles that it has]
    #[arg(long, value_parser = ["gateway", "shards", "query"])]
    role: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let role: Vec<_> = args.role.iter().map(|role| ("role", role.clone())).collect();
    let answer = args.server.server(PATIENCE)?.get("/readyz", &role).map_err(anyhow::Error::msg)?;
    if answer.status == 200 {
        println!("ready");
        return Ok(());
    }
    bail!("not ready: {}", answer.error().map_or(answer.sentence(), |(_, message)| message))
}

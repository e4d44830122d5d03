//! `rollmill health`: what `/readyz` says, as an exit code.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

/// A node that needs longer is not ready. Below the patience of the image's health check.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill health
  rollmill health --role gateway --url http://10.0.0.5:8080

Exit code 0: the node is ready. 1: it is not, or does not answer within 2 s. It takes no API key.")]
pub(super) struct HealthArgs {
    /// The server
    #[arg(long, env = "ROLLMILL_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// One role of the node [default: all that it has]
    #[arg(long, value_parser = ["gateway", "shards", "query", "replay"])]
    role: Option<String>,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build().into();
    let role = args.role.as_ref().map(|role| format!("?role={role}")).unwrap_or_default();
    let mut answer = agent
        .get(format!("{}/readyz{role}", args.url))
        .call()
        .with_context(|| format!("cannot reach {}: is `rollmill serve` running?", args.url))?;
    let text = answer.body_mut().read_to_string().context("the answer ended early")?;
    if answer.status() == 200 {
        println!("ready");
        return Ok(());
    }
    let error: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    bail!("not ready: {}", error["error"]["message"].as_str().unwrap_or(&text))
}

//! Small questions of commands to a running server.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

/// Which server, and with which key.
#[derive(Debug, Args)]
pub(super) struct Api {
    /// The server
    #[arg(long, global = true, env = "ROLLMILL_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// API key
    #[arg(long, global = true, env = "ROLLMILL_KEY", hide_env_values = true)]
    key: Option<String>,
}

impl Api {
    pub(super) fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut request = agent().get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.read(request.call())
    }

    pub(super) fn post(&self, path: &str, body: &str) -> anyhow::Result<String> {
        let mut request = agent().post(format!("{}{path}", self.url)).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.read(request.send(body))
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<String> {
        let mut answer = answer.with_context(|| format!("cannot reach {}: is `rollmill serve` running?", self.url))?;
        let text = answer.body_mut().read_to_string().context("the answer ended early")?;
        if answer.status() != 200 {
            bail!("{} answered {}: {text}", self.url, answer.status());
        }
        Ok(text)
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(60))).build().into()
}

//! A small client of the server's operator routes.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

/// Which server, and with which key.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// The server
    #[arg(long, env = "ROLLMILL_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// API key
    #[arg(long, env = "ROLLMILL_KEY", hide_env_values = true)]
    key: Option<String>,
}

impl ServerArgs {
    pub(super) fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        self.answer(self.agent().get(format!("{}{path}", self.url)).header("authorization", self.bearer()).call())
    }

    pub(super) fn post(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        let request = self.agent().post(format!("{}{path}", self.url)).header("authorization", self.bearer());
        self.answer(request.header("content-type", "application/json").send(body.to_string()))
    }

    fn agent(&self) -> ureq::Agent {
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(60))).build().into()
    }

    /// A server without keys does not look at it.
    fn bearer(&self) -> String {
        format!("Bearer {}", self.key.as_deref().unwrap_or_default())
    }

    fn answer(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<serde_json::Value> {
        let mut answer = answer.with_context(|| format!("cannot reach {}: is `rollmill serve` running?", self.url))?;
        let text = answer.body_mut().with_config().limit(1 << 30).read_to_string().context("the answer ended early")?;
        let status = answer.status().as_u16();
        let parsed = serde_json::from_str::<serde_json::Value>(&text);
        match parsed {
            Ok(parsed) if status == 200 => Ok(parsed),
            Ok(error) if error["error"]["message"].is_string() => {
                bail!("{} ({status})", error["error"]["message"].as_str().unwrap_or_default())
            }
            _ => bail!("{} answered {status}: {text}", self.url),
        }
    }
}

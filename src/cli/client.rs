//! A small HTTP client for the server: lenient addresses, proxies, and errors as sentences.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use ureq::http::Uri;

use super::UsageError;

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Largest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1 << 30;

/// The server to use, and its key. Environment variables are not read by clap, which would print
/// their values, keys included, in every usage error.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct ServerArgs {
    /// Address of the server [env: ROLLMILL_URL] [default: http://127.0.0.1:8080]
    #[arg(long)]
    url: Option<ServerUrl>,
    /// API key [env: ROLLMILL_KEY]
    #[arg(long)]
    key: Option<String>,
}

/// The base URL of a server, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerUrl(String);

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address of a server: write http://HOST:PORT");
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let whole = whole.trim_end_matches('/');
        let uri: Uri = whole.parse().map_err(|_| wrong())?;
        let named = uri.host().is_some_and(|host| !host.is_empty());
        match uri.scheme_str() {
            Some("http" | "https") if named && uri.query().is_none() => Ok(Self(whole.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// An environment variable; an empty one counts as unset.
fn env_var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The given API key, or the one in the environment.
pub(super) fn key_or_env(given: Option<&str>) -> Option<String> {
    given.filter(|key| !key.is_empty()).map(str::to_owned).or_else(|| env_var("ROLLMILL_KEY"))
}

impl ServerArgs {
    /// A client for the selected server; `patience` limits a whole request.
    pub(super) fn server(&self, patience: Duration) -> anyhow::Result<ServerClient> {
        let address = match (&self.url, env_var("ROLLMILL_URL")) {
            (Some(url), _) => url.clone(),
            (None, Some(text)) => {
                text.parse().map_err(|why| UsageError(format!("ROLLMILL_URL: {why}")))?
            }
            (None, None) => ServerUrl(DEFAULT_URL.to_owned()),
        };
        let key = key_or_env(self.key.as_deref());
        Ok(ServerClient::new(address, key, patience))
    }

    pub(super) fn get(
        &self,
        path: &str,
        parameters: &[(&str, String)],
    ) -> anyhow::Result<serde_json::Value> {
        self.server(PATIENCE)?.get_json(path, parameters)
    }

    pub(super) fn post(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> anyhow::Result<serde_json::Value> {
        let server = self.server(PATIENCE)?;
        let answer = server
            .post(path, "application/json", body.to_string().as_bytes())
            .map_err(anyhow::Error::msg)?;
        server.json(answer)
    }
}

/// Decodes an answer into its API type. Fails if the server is of a release
/// whose answers are incompatible.
pub(super) fn decode_answer<T: serde::de::DeserializeOwned>(
    answer: &serde_json::Value,
) -> anyhow::Result<T> {
    T::deserialize(answer)
        .with_context(|| format!("the answer is not what this version understands: {answer:.200}"))
}

/// Request timeout of commands that send one request.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A client of one server.
pub(super) struct ServerClient {
    pub(super) address: ServerUrl,
    key: Option<String>,
    agent: ureq::Agent,
    /// The proxy in use as HOST:PORT, for error messages.
    proxy: Option<String>,
}

/// An answer of the server, whatever its status.
pub(super) struct HttpAnswer {
    pub(super) status: u16,
    /// `Retry-After`, in seconds.
    pub(super) retry_after: Option<u64>,
    pub(super) text: String,
    /// Completeness of a CSV answer, as JSON.
    pub(super) completeness: Option<String>,
}

impl HttpAnswer {
    /// Code and message, if the answer is an error of Rollmill.
    pub(super) fn error(&self) -> Option<(String, String)> {
        let parsed: serde_json::Value = serde_json::from_str(&self.text).ok()?;
        let part = |name: &str| parsed["error"][name].as_str().map(str::to_owned);
        Some((part("code")?, part("message")?))
    }

    /// The error of an answer, as a sentence for people.
    pub(super) fn sentence(&self) -> String {
        match self.error() {
            Some((code, message)) => format!("{message} ({} {code})", self.status),
            None => {
                let text: String = self.text.trim().chars().take(200).collect();
                format!("the server answered {} and not as Rollmill does: {text}", self.status)
            }
        }
    }
}

impl ServerClient {
    fn new(address: ServerUrl, key: Option<String>, patience: Duration) -> Self {
        let uri: Option<Uri> = address.0.parse().ok();
        // A proxy cannot reach the loopback address of this machine.
        let here = uri.as_ref().and_then(Uri::host).is_some_and(is_loopback);
        let proxy = if here { None } else { ureq::Proxy::try_from_env() };
        let used =
            proxy.as_ref().filter(|proxy| uri.as_ref().is_some_and(|uri| !proxy.is_no_proxy(uri)));
        let named = used.map(|proxy| format!("{}:{}", proxy.host(), proxy.port()));
        let config = ureq::Agent::config_builder()
            // The body of an error says what is wrong, so it has to be read.
            .http_status_as_error(false)
            .timeout_global(Some(patience))
            .proxy(proxy)
            .build();
        Self { address, key, agent: config.into(), proxy: named }
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// A sentence that says why there is no answer.
    pub(super) fn get(
        &self,
        path: &str,
        parameters: &[(&str, String)],
    ) -> Result<HttpAnswer, String> {
        let mut request = self.agent.get(format!("{}{path}", self.address));
        for (name, value) in parameters {
            request = request.query(*name, value);
        }
        if let Some(bearer) = self.bearer() {
            request = request.header("authorization", bearer);
        }
        self.answer(request.call())
    }

    /// Sends a POST request. Fails as [`Self::get`] does.
    pub(super) fn post(&self, path: &str, kind: &str, body: &[u8]) -> Result<HttpAnswer, String> {
        let mut request =
            self.agent.post(format!("{}{path}", self.address)).header("content-type", kind);
        if let Some(bearer) = self.bearer() {
            request = request.header("authorization", bearer);
        }
        self.answer(request.send(body))
    }

    fn bearer(&self) -> Option<String> {
        self.key.as_ref().map(|key| format!("Bearer {key}"))
    }

    fn answer(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<HttpAnswer, String> {
        let mut answer = answer.map_err(|error| match &self.proxy {
            None => format!(
                "cannot reach {}: is `rollmill serve` running there? ({error})",
                self.address
            ),
            Some(proxy) => format!(
                "cannot reach {} through the proxy {proxy}, which HTTPS_PROXY, HTTP_PROXY or \
                 ALL_PROXY names (NO_PROXY names hosts without one): {error}",
                self.address
            ),
        })?;
        let retry_after = answer
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|v| v.parse().ok());
        let completeness = answer
            .headers()
            .get("rollmill-completeness")
            .and_then(|value| Some(value.to_str().ok()?.to_owned()));
        let text = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
        let text =
            text.map_err(|error| format!("the answer of {} ended early: {error}", self.address))?;
        Ok(HttpAnswer { status: answer.status().as_u16(), retry_after, text, completeness })
    }

    /// The body of a successful answer.
    ///
    /// # Errors
    /// The server's error as a sentence; a 400 becomes a usage error.
    pub(super) fn success_text(&self, answer: HttpAnswer) -> anyhow::Result<String> {
        match answer.status {
            200 => Ok(answer.text),
            400 => Err(UsageError(answer.sentence()).into()),
            _ => Err(anyhow::Error::msg(answer.sentence())),
        }
    }

    pub(super) fn json(&self, answer: HttpAnswer) -> anyhow::Result<serde_json::Value> {
        let text = self.success_text(answer)?;
        serde_json::from_str(&text)
            .with_context(|| format!("the answer of {} is not JSON", self.address))
    }

    pub(super) fn get_json(
        &self,
        path: &str,
        parameters: &[(&str, String)],
    ) -> anyhow::Result<serde_json::Value> {
        self.json(self.get(path, parameters).map_err(anyhow::Error::msg)?)
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let named =
        bare.eq_ignore_ascii_case("localhost") || bare.to_ascii_lowercase().ends_with(".localhost");
    named || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (text, url) in [
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("localhost", "http://localhost"),
            ("https://mill.example/metrics//", "https://mill.example/metrics"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(
                text.parse::<ServerUrl>().map(|address| address.0),
                Ok(url.to_owned()),
                "{text}"
            );
        }
        for text in ["", "http://", "ftp://a", "http://a b", "http://a/?x=1"] {
            assert!(text.parse::<ServerUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn loopback_is_this_machine() {
        for (host, is) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("[::1]", true),
            ("localhost", true),
            ("LocalHost", true),
        ] {
            assert_eq!(is_loopback(host), is, "{host}");
        }
        for host in ["10.0.0.1", "localhost.example", "example", "[::2]", "0.0.0.0"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn errors_are_sentences() {
        let answer = |text: &str| HttpAnswer {
            status: 503,
            retry_after: None,
            text: text.to_owned(),
            completeness: None,
        };
        let ours = answer(
            "{\"error\":{\"code\":\"disk_full\",\"message\":\"the disk is full: make \
             room\",\"details\":{}}}",
        );
        assert_eq!(ours.sentence(), "the disk is full: make room (503 disk_full)");
        assert!(answer("<html>").sentence().contains("503 and not as Rollmill does: <html>"));
    }
}

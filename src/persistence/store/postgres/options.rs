//! How the store is reached: URL, pools, deadlines.
//!
//! A URL may hold a password. It is parsed once; messages show [`StoreAddress`], which holds hosts,
//! database and user, never the URL.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::StoreError;

/// How a [`super::PostgresStore`] is reached.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://USER:PASSWORD@HOST:PORT,HOST2:PORT/DATABASE`.
    pub url: String,
    /// The same, of a role that may only read; `None` reads as the writer.
    pub read_url: Option<String>,
    /// Name of this node, for `application_name`.
    pub node: String,
    /// Connections for writes.
    pub flush_connections: usize,
    /// Connections for snapshots.
    pub read_connections: usize,
    /// Time to connect, and to find a host that takes writes.
    pub connect_timeout: Duration,
    /// Time of one transaction, waiting for a connection included; each part of a large flush has
    /// it anew.
    pub timeout: Duration,
    /// Time to compress one chunk of TimescaleDB.
    pub compress_timeout: Duration,
    /// Time to wait for a lock.
    pub lock_timeout: Duration,
    /// Silence inside a transaction after which the server ends it, and after which a connection
    /// counts as broken.
    pub idle_timeout: Duration,
    /// PEM file of the authorities that may have signed the server's certificate; `None` takes
    /// those of the system.
    pub tls_ca: Option<PathBuf>,
    /// Bytes for the series that queries match.
    pub match_cache: u64,
}

impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Hosts, database and user, for messages.
#[derive(Debug, Clone)]
pub(super) struct StoreAddress(String);

impl std::fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl StoreAddress {
    pub(super) fn of(config: &Config) -> Self {
        let port = |at: usize| {
            config.get_ports().get(at).or(config.get_ports().first()).copied().unwrap_or(5432)
        };
        let host = |(at, host): (usize, &Host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(at)),
            Host::Unix(path) => format!("{}:{}", path.display(), port(at)),
        };
        let hosts: Vec<String> = config.get_hosts().iter().enumerate().map(host).collect();
        let user = config.get_user().unwrap_or("(nobody)");
        Self(format!(
            "database {} on {} as {user}",
            config.get_dbname().unwrap_or(user),
            hosts.join(",")
        ))
    }
}

impl PostgresOptions {
    /// The parsed URL with what every connection of ours has.
    ///
    /// # Errors
    /// If it is no URL of PostgreSQL. The text is not repeated.
    pub(super) fn config(&self, key: &str, url: &str, role: &str) -> Result<Config, StoreError> {
        let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
        // Where a password may stand is known, so that nothing shows it: before the @.
        let parsed: Option<Config> =
            url.parse().ok().filter(|_| is_url && !url.contains("password="));
        let mut config = parsed.ok_or_else(|| {
            StoreError::Invalid(format!(
                "{key} is not read as a URL of PostgreSQL (its text is not shown, because it may \
                 hold a password): write postgres://USER:PASSWORD@HOST:PORT,HOST2:PORT/DATABASE, \
                 with sslmode=require for TLS, and escape special characters of the password as \
                 %40"
            ))
        })?;
        if config.get_hosts().is_empty() {
            return Err(StoreError::Invalid(format!(
                "{key} names no host: write postgres://USER:PASSWORD@HOST:PORT/DATABASE"
            )));
        }
        config
            .application_name(application_name(&self.node, role))
            .connect_timeout(self.connect_timeout)
            .tcp_user_timeout(self.idle_timeout)
            .keepalives_idle(self.idle_timeout)
            // After a failover the URL's other host takes the writes; a standby is passed over.
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        // A role of which all transactions are read-only looks like a standby. What the role may do
        // is the business of its grants.
        let options = format!(
            "{} -c default_transaction_read_only=off",
            config.get_options().unwrap_or_default()
        );
        config.options(options.trim_start());
        // TLS is asked for, not tried: what falls back to plain text when someone interferes
        // protects nothing.
        if config.get_ssl_mode() != SslMode::Require {
            config.ssl_mode(SslMode::Disable);
        }
        Ok(config)
    }

    /// Hosts, database and user, for messages.
    ///
    /// # Errors
    /// If it is no URL of PostgreSQL.
    pub fn address(&self) -> Result<String, StoreError> {
        Ok(StoreAddress::of(&self.config("store.url", &self.url, "writer")?).to_string())
    }

    /// What a session is told first. Plans are made for the hours that a statement names: one for
    /// all hours locks every week there is.
    pub(super) fn settings(&self, silence: Duration) -> String {
        format!(
            "SET search_path = rollmill, pg_temp; SET statement_timeout = {statement}; SET \
             lock_timeout = {lock}; SET idle_in_transaction_session_timeout = {silence}; SET \
             tcp_user_timeout = {broken}; SET client_connection_check_interval = {broken}; SET \
             enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; SET \
             plan_cache_mode = force_custom_plan;",
            statement = self.timeout.as_millis(),
            lock = self.lock_timeout.as_millis(),
            silence = silence.as_millis(),
            broken = self.idle_timeout.as_millis(),
        )
    }
}

/// `rollmill:ROLE:NODE`, cut to what PostgreSQL keeps of an application name.
pub(super) fn application_name(node: &str, role: &str) -> String {
    let node =
        node.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':'));
    format!("rollmill:{role}:{}", node.take(36).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> PostgresOptions {
        PostgresOptions {
            url: url.to_owned(),
            read_url: None,
            node: "n1'; DROP".to_owned(),
            flush_connections: 1,
            read_connections: 1,
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            compress_timeout: Duration::from_secs(1),
            lock_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
            tls_ca: None,
            match_cache: 0,
        }
    }

    #[test]
    fn no_message_holds_the_password() {
        for url in [
            "postgres://u:s3cret@h:70000/db",
            "postgres://u:s3cret@h/db?nosuch=1",
            "host=h password=s3cret nosuch",
            "postgres://u:s3cret@/db?sslmode=verify-full",
            "postgres://u:s3cret@",
        ] {
            let options = options(url);
            let shown = match options.config("store.url", url, "writer") {
                Ok(config) => StoreAddress::of(&config).to_string(),
                Err(error) => error.to_string(),
            };
            assert!(!shown.contains("s3cret"), "{shown}");
            assert!(!format!("{options:?}").contains("s3cret"));
        }
    }

    #[test]
    fn places_name_hosts_database_and_user() {
        let url = "postgres://u:s3cret@a:1,b:2/db";
        let config = options(url).config("store.url", url, "writer").expect("a URL");
        assert_eq!(StoreAddress::of(&config).to_string(), "database db on a:1,b:2 as u");
        assert_eq!(config.get_application_name(), Some("rollmill:writer:n1DROP"));
    }
}

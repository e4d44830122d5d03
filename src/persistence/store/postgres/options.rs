//! How the store is reached: URLs, pools and time limits.
//!
//! A URL may hold a password. It is parsed once; messages show a [`StoreAddress`] (hosts, database
//! and user), never the URL.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::StoreError;

/// How a [`super::PostgresStore`] is reached.
#[derive(Clone)]
pub struct PostgresOptions {
    /// The primary to write to: `postgres://USER:PASSWORD@HOST:PORT,HOST2:PORT/DATABASE`.
    pub url: String,
    /// The same for a role that may only read. `None` reads with `url`.
    pub read_url: Option<String>,
    /// Name of this node, shown in `application_name`.
    pub node: String,
    /// Size of the pool for writes.
    pub flush_connections: usize,
    /// Size of the pool for snapshots.
    pub read_connections: usize,
    /// Time to connect to one host, including the check that it accepts writes.
    pub connect_timeout: Duration,
    /// Time limit of a transaction, including the wait for a connection. Each part of a large
    /// flush starts it again.
    pub timeout: Duration,
    /// Time limit for compressing one chunk of TimescaleDB.
    pub compress_timeout: Duration,
    /// Time to wait for a lock of another transaction.
    pub lock_timeout: Duration,
    /// After this much silence the server ends an open transaction, and a connection without
    /// acknowledgements counts as broken.
    pub idle_timeout: Duration,
    /// PEM file of the authorities for the server's certificate; `None` uses those of the system.
    pub tls_ca: Option<PathBuf>,
    /// Size in bytes of the cache of matching series.
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
    /// Parses a URL and adds what all our connections have in common. Fails if it is not a
    /// PostgreSQL URL; the message does not repeat it.
    pub(super) fn config(&self, key: &str, url: &str, role: &str) -> Result<Config, StoreError> {
        let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
        // Only passwords before the `@` are masked everywhere, so `password=` is refused.
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
            // After a failover the URL's other host accepts the writes; standbys are skipped.
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        // A role whose transactions are read-only by default looks like a standby. Its grants
        // decide what it may do, not this default.
        let options = format!(
            "{} -c default_transaction_read_only=off",
            config.get_options().unwrap_or_default()
        );
        config.options(options.trim_start());
        // TLS is required, never just preferred: a fallback to plain text protects nothing from an
        // attacker who interferes.
        if config.get_ssl_mode() != SslMode::Require {
            config.ssl_mode(SslMode::Disable);
        }
        Ok(config)
    }

    /// Hosts, database and user of `url`, for messages. Fails if that is not a PostgreSQL URL.
    pub fn address(&self) -> Result<String, StoreError> {
        Ok(StoreAddress::of(&self.config("store.url", &self.url, "writer")?).to_string())
    }

    /// The settings of every session. Plans are made for the actual hours of a statement: a generic
    /// plan for all hours would lock the partitions of all weeks.
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

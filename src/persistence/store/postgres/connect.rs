//! Opens sessions: connects to the host that accepts writes, with TLS if configured, and applies
//! the session settings.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, Error, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;
use super::errors::SessionError;
use super::options::StoreAddress;
use super::runtime::{RuntimeHandle, WaitError};
use super::session::{ConnectionTask, PostgresSession, ServerBackend};
use crate::model::budget::CancelFlag;

/// The oldest server that knows all settings of our sessions (`client_connection_check_interval`).
const MIN_SERVER_VERSION: i32 = 140_000;

/// Identifies the session's backend, and the server start that it belongs to.
const BACKEND_SQL: &str =
    "SELECT pg_backend_pid(), (SELECT backend_start FROM pg_stat_activity WHERE \
                       pid = pg_backend_pid()),
    pg_postmaster_start_time(), current_setting('server_version_num')::integer,
    EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')";

/// What the sessions of a pool have in common.
#[derive(Clone)]
pub(super) struct SessionConnector {
    pub(super) config: Config,
    tls: Option<MakeRustlsConnect>,
    setup: String,
    runtime: RuntimeHandle,
    limit: Duration,
    pub(super) address: StoreAddress,
}

impl SessionConnector {
    /// `setup` is the first SQL that every session runs. Fails if TLS is configured and the
    /// certificate authorities cannot be read.
    pub(super) fn new(
        config: Config,
        tls_ca: Option<&Path>,
        setup: String,
        runtime: RuntimeHandle,
    ) -> Result<Self, StoreError> {
        let tls = (config.get_ssl_mode() == SslMode::Require)
            .then(|| tls_connector(tls_ca))
            .transpose()?;
        let each = config.get_connect_timeout().copied().unwrap_or(Duration::from_secs(5));
        // One share of time per host, so that a dead host does not use up the time of the next one.
        let limit = each.saturating_mul(config.get_hosts().len().max(1) as u32 + 1);
        Ok(Self { address: StoreAddress::of(&config), config, tls, setup, runtime, limit })
    }

    /// Opens a session. Fails with [`StoreError::Failed`] if no host accepts it, with
    /// [`StoreError::Invalid`] if the server is too old.
    pub(super) fn connect(&self) -> Result<PostgresSession, StoreError> {
        self.connect_for(None)
    }

    /// Like [`SessionConnector::connect`], but gives up when the query that it is for is
    /// aborted. That is [`StoreError::QueryEnded`].
    pub(super) fn connect_for(
        &self,
        query: Option<&CancelFlag>,
    ) -> Result<PostgresSession, StoreError> {
        let (config, tls, setup) = (self.config.clone(), self.tls.clone(), self.setup.clone());
        let connecting = async move {
            let (client, connection) = match tls {
                Some(tls) => open_connection(&config, tls).await?,
                None => open_connection(&config, NoTls).await?,
            };
            let guard = ConnectionTask(connection);
            client.batch_execute(&setup).await?;
            let row = client.query_one(BACKEND_SQL, &[]).await?;
            let started: SystemTime = row.try_get(2)?;
            let (pid, began, timescale) = (row.try_get(0)?, row.try_get(1)?, row.try_get(4)?);
            let backend =
                ServerBackend { pid, started: began, server_started: micros(started), timescale };
            Ok::<_, Error>((client, guard, backend, row.try_get::<_, i32>(3)?))
        };
        let failure = match self.runtime.run(self.limit, query, connecting) {
            Ok(Ok((client, connection, backend, version))) if version >= MIN_SERVER_VERSION => {
                return Ok(PostgresSession::new(
                    client,
                    connection,
                    backend,
                    self.runtime.clone(),
                    self.tls.clone(),
                ));
            }
            Ok(Ok((.., version))) => {
                return Err(StoreError::Invalid(format!(
                    "{} runs PostgreSQL {}, Rollmill needs {} or newer: upgrade the server",
                    self.address,
                    version / 10_000,
                    MIN_SERVER_VERSION / 10_000
                )));
            }
            Ok(Err(error)) => StoreError::from(SessionError::Postgres(error)),
            Err(WaitError::QueryEnded) => StoreError::QueryEnded,
            Err(WaitError::TimedOut) => StoreError::Unavailable(format!(
                "no answer within {:?}, see store.connect_timeout",
                self.limit
            )),
        };
        Err(match failure {
            StoreError::Failed(why) => {
                StoreError::Failed(format!("cannot connect to {}: {why}", self.address))
            }
            StoreError::Unavailable(why) => {
                StoreError::Unavailable(format!("cannot connect to {}: {why}", self.address))
            }
            other => other,
        })
    }
}

async fn open_connection<T>(config: &Config, tls: T) -> Result<(Client, JoinHandle<()>), Error>
where
    T: MakeTlsConnect<Socket> + Send,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let (client, connection) = config.connect(tls).await?;
    let task = tokio::spawn(async move {
        // The next statement of a session reports the loss; idle sessions are replaced.
        if let Err(why) = connection.await {
            tracing::debug!(%why, "a connection to the store ended");
        }
    });
    Ok((client, task))
}

fn tls_connector(authorities: Option<&Path>) -> Result<MakeRustlsConnect, StoreError> {
    let mut roots = rustls::RootCertStore::empty();
    match authorities {
        Some(path) => {
            let unreadable = |why: String| {
                StoreError::Invalid(format!(
                    "store.tls_ca: cannot read {}: {why}: name a PEM file of certificates",
                    path.display()
                ))
            };
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|e| unreadable(e.to_string()))?
            {
                let certificate = certificate.map_err(|e| unreadable(e.to_string()))?;
                roots.add(certificate).map_err(|e| unreadable(e.to_string()))?;
            }
        }
        None => {
            // One unreadable certificate of the system must not disable all others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(StoreError::Invalid(
            "sslmode=require, but no certificate authority is known: name a PEM file with \
             store.tls_ca"
                .to_owned(),
        ));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| StoreError::Invalid(format!("TLS cannot be set up: {e}")))?;
    Ok(MakeRustlsConnect::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

//! One connection, used by one caller at a time. Every statement runs within what is left of the
//! transaction's time.
//!
//! A session that is inside a transaction, or that still expects an answer, never serves another
//! caller.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, NoTls, Row, RowStream, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;
use super::errors::SessionError;
use super::runtime::{RuntimeHandle, WaitError};
use crate::clock::Stopwatch;
use crate::model::budget::CancelFlag;

/// An owned parameter: statements run on the store's runtime and outlive the caller's borrow.
pub(super) type Param = Box<dyn ToSql + Sync + Send>;

/// Builds the parameters of a statement.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        vec![$(Box::new($value) as $crate::persistence::store::postgres::session::Param),*]
    };
}
pub(super) use params;

/// Rows fetched at a time.
const FETCH_ROWS: usize = 1024;
/// A session whose rollback takes longer is discarded.
const ROLLBACK: Duration = Duration::from_secs(2);
/// A cancel request that takes longer is given up; the server's own time limits then end the
/// statement.
const CANCEL: Duration = Duration::from_secs(5);

/// The server's side of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerBackend {
    /// Process id of the backend.
    pub(super) pid: i32,
    /// When the backend was started. With the process id it identifies the backend.
    pub(super) started: SystemTime,
    /// When the server was started, in microseconds. Cached numbers stay valid until the server
    /// restarts or another one takes its place: then this value differs.
    pub(super) server_started: i64,
    /// Whether the database has the TimescaleDB extension.
    pub(super) timescale: bool,
}

/// Closes the connection when dropped, whatever it is waiting for.
#[derive(Debug)]
pub(super) struct ConnectionTask(pub(super) JoinHandle<()>);

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection to the server.
pub(super) struct PostgresSession {
    client: Arc<Client>,
    _connection: ConnectionTask,
    pub(super) backend: ServerBackend,
    runtime: RuntimeHandle,
    statements: HashMap<String, Statement>,
    watch: Stopwatch,
    limit: Duration,
    in_transaction: bool,
    is_usable: bool,
    /// The query that the session works for; its end aborts the current statement.
    query: Option<CancelFlag>,
    tls: Option<MakeRustlsConnect>,
}

/// A result that is still being fetched; `None` after the last row.
pub(super) struct PendingRows(Option<Pin<Box<RowStream>>>);

impl PostgresSession {
    pub(super) fn new(
        client: Client,
        connection: ConnectionTask,
        backend: ServerBackend,
        runtime: RuntimeHandle,
        tls: Option<MakeRustlsConnect>,
    ) -> Self {
        Self {
            client: Arc::new(client),
            _connection: connection,
            backend,
            runtime,
            statements: HashMap::new(),
            watch: Stopwatch::start(),
            limit: Duration::ZERO,
            in_transaction: false,
            is_usable: true,
            query: None,
            tls,
        }
    }

    /// Starts a time limit for the following statements together.
    pub(super) fn set_time_limit(&mut self, limit: Duration) {
        (self.watch, self.limit) = (Stopwatch::start(), limit);
    }

    /// Ties the session to a query: its end aborts whatever the session does, until the rollback.
    pub(super) fn set_query(&mut self, query: Option<&CancelFlag>) {
        self.query = query.cloned();
    }

    /// Starts the same time limit again, for work that makes progress in parts.
    pub(super) fn restart_time_limit(&mut self) {
        self.watch = Stopwatch::start();
    }

    /// Whether the time is up, or nearly so that a statement was not started or was cut.
    pub(super) fn is_timed_out(&self) -> bool {
        self.watch.elapsed() >= self.limit
    }

    /// Whether the session can go back to the pool.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_usable && !self.in_transaction && !self.client.is_closed()
    }

    /// Begins a transaction; `begin_sql` is SQL that starts with BEGIN.
    pub(super) fn begin(&mut self, begin_sql: String) -> Result<(), SessionError> {
        self.in_transaction = true;
        self.batch_execute(begin_sql)
    }

    /// Commits. A failure here has an unknown outcome, unless the server reports a rollback.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        // Out of time: rolling back is certain, whereas a COMMIT sent now might be left unknown.
        if self.limit <= self.watch.elapsed() {
            self.rollback();
            return Err(SessionError::TimedOut.into());
        }
        let committed =
            self.batch_execute("COMMIT".to_owned()).map_err(SessionError::into_commit_error);
        self.in_transaction = false;
        self.is_usable &= committed.is_ok();
        committed
    }

    /// Rolls back if a transaction is open. A session that cannot is discarded, and the end of
    /// its connection rolls back.
    pub(super) fn rollback(&mut self) {
        // Unset first: an aborted query must not abort its own rollback.
        self.query = None;
        if self.in_transaction && self.is_usable {
            self.set_time_limit(ROLLBACK);
            self.in_transaction = self.batch_execute("ROLLBACK".to_owned()).is_err();
        }
    }

    fn run_step<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, SessionError> {
        let left = self.limit.saturating_sub(self.watch.elapsed());
        if left.is_zero() || !self.is_usable {
            self.is_usable = false;
            return Err(SessionError::TimedOut);
        }
        let failure = match self.runtime.run(left, self.query.as_ref(), work) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => SessionError::Postgres(error),
            Err(WaitError::TimedOut) => SessionError::TimedOut,
            Err(WaitError::QueryEnded) => {
                self.cancel();
                SessionError::QueryEnded
            }
        };
        // Only a plain error of the statement leaves the session in a known state.
        self.is_usable = failure.session_survives();
        Err(failure)
    }

    /// Asks the server to stop the current statement of this session, which is
    /// discarded. Does not wait.
    fn cancel(&self) {
        let (token, tls) = (self.client.cancel_token(), self.tls.clone());
        self.runtime.spawn(async move {
            let asked = async {
                match tls {
                    Some(tls) => token.cancel_query(tls).await,
                    None => token.cancel_query(NoTls).await,
                }
            };
            if let Ok(Err(why)) = tokio::time::timeout(CANCEL, asked).await {
                tracing::debug!(
                    %why,
                    "what the server does for a query that has ended could not be cancelled"
                );
            }
        });
    }

    /// Runs statements without parameters.
    pub(super) fn batch_execute(&mut self, sql: String) -> Result<(), SessionError> {
        let client = Arc::clone(&self.client);
        self.run_step(async move { client.batch_execute(&sql).await })
    }

    fn prepare(&mut self, sql: &str) -> Result<Statement, SessionError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let (client, text) = (Arc::clone(&self.client), sql.to_owned());
        let statement = self.run_step(async move { client.prepare(&text).await })?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Runs a statement with few rows and returns them all.
    pub(super) fn query(
        &mut self,
        sql: &str,
        params: Vec<Param>,
    ) -> Result<Vec<Row>, SessionError> {
        let (client, statement) = (Arc::clone(&self.client), self.prepare(sql)?);
        self.run_step(async move {
            let mut stream = Box::pin(client.query_raw(&statement, params).await?);
            let mut rows = Vec::new();
            while let Some(row) = stream.next().await {
                rows.push(row?);
            }
            Ok(rows)
        })
    }

    /// Runs a statement and returns the number of rows changed.
    pub(super) fn execute(&mut self, sql: &str, params: Vec<Param>) -> Result<u64, SessionError> {
        let (client, statement) = (Arc::clone(&self.client), self.prepare(sql)?);
        self.run_step(async move { client.execute_raw(&statement, params).await })
    }

    /// Sends all statements without waiting for answers in between; they run in this order.
    pub(super) fn execute_all(
        &mut self,
        statements: Vec<(&str, Vec<Param>)>,
    ) -> Result<(), SessionError> {
        let mut prepared = Vec::with_capacity(statements.len());
        for (sql, params) in statements {
            prepared.push((self.prepare(sql)?, params));
        }
        let client = Arc::clone(&self.client);
        self.run_step(async move {
            let sent = prepared
                .iter_mut()
                .map(|(statement, params)| client.execute_raw(&*statement, std::mem::take(params)));
            futures::future::try_join_all(sent).await.map(|_| ())
        })
    }

    /// Runs a COPY from the client with these rows.
    pub(super) fn copy_in(&mut self, sql: &str, chunks: Vec<Bytes>) -> Result<u64, SessionError> {
        let (client, statement) = (Arc::clone(&self.client), self.prepare(sql)?);
        self.run_step(async move {
            let mut sink = Box::pin(client.copy_in::<_, Bytes>(&statement).await?);
            for chunk in chunks {
                sink.feed(chunk).await?;
            }
            sink.as_mut().finish().await
        })
    }

    /// Starts a statement whose rows are fetched in parts. The session serves nothing else until
    /// the last row was fetched.
    pub(super) fn stream(
        &mut self,
        sql: &str,
        params: Vec<Param>,
    ) -> Result<PendingRows, SessionError> {
        let (client, statement) = (Arc::clone(&self.client), self.prepare(sql)?);
        let stream =
            self.run_step(async move { client.query_raw(&statement, params).await.map(Box::pin) })?;
        Ok(PendingRows(Some(stream)))
    }

    /// The next rows; an empty result means that there are no more.
    pub(super) fn next_rows(&mut self, rows: &mut PendingRows) -> Result<Vec<Row>, SessionError> {
        let Some(mut stream) = rows.0.take() else { return Ok(Vec::new()) };
        let (fetched, rest) = self.run_step(async move {
            let mut fetched = Vec::with_capacity(FETCH_ROWS);
            while let Some(row) = stream.next().await {
                fetched.push(row?);
                if fetched.len() == FETCH_ROWS {
                    return Ok((fetched, Some(stream)));
                }
            }
            Ok((fetched, None))
        })?;
        rows.0 = rest;
        Ok(fetched)
    }

    /// Visits all rows of a statement, fetching them in parts.
    pub(super) fn for_each_row(
        &mut self,
        sql: &str,
        params: Vec<Param>,
        mut visit: impl FnMut(&Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut rows = self.stream(sql, params)?;
        loop {
            let part = self.next_rows(&mut rows)?;
            if part.is_empty() {
                return Ok(());
            }
            for row in &part {
                // Rows left unread would block the next statement of the session.
                visit(row).inspect_err(|_| self.is_usable &= rows.0.is_none())?;
            }
        }
    }
}

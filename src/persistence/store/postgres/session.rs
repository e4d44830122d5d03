//! One connection, used by one caller at a time, statement by statement, each within what is left
//! of the transaction's time.
//!
//! What always holds: a session inside a transaction, or of which an answer is missing, never
//! serves another caller.

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

/// A parameter that outlives its caller's borrow.
pub(super) type Param = Box<dyn ToSql + Sync + Send>;

/// Parameters of a statement.
macro_rules! params {
    ($($value:expr),* $(,)?) => { vec![$(Box::new($value) as $crate::persistence::store::postgres::session::Param),*] };
}
pub(super) use params;

/// Rows fetched at once.
const FETCH_ROWS: usize = 1024;
/// A rollback that takes longer costs the session.
const ROLLBACK: Duration = Duration::from_secs(2);
/// What takes longer to reach the server is left to the server's own limits.
const CANCEL: Duration = Duration::from_secs(5);

/// The server's side of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerBackend {
    /// Its process.
    pub(super) pid: i32,
    /// When that was started.
    pub(super) started: SystemTime,
    /// When the server was started, in microseconds. What is committed stays true until the server
    /// is started again or another takes its place: then this number differs.
    pub(super) server_started: i64,
    /// Whether the database has the extension.
    pub(super) timescale: bool,
}

/// Ends the connection when dropped, whatever it is waiting for.
#[derive(Debug)]
pub(super) struct ConnectionTask(pub(super) JoinHandle<()>);

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection.
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
    /// The query that it works for.
    query: Option<CancelFlag>,
    tls: Option<MakeRustlsConnect>,
}

/// Rows that are still coming.
pub(super) struct PendingRows(Option<Pin<Box<RowStream>>>);

impl PostgresSession {
    pub(super) fn new(
        client: Client,
        connection: ConnectionTask,
        backend: ServerBackend,
        hands: RuntimeHandle,
        tls: Option<MakeRustlsConnect>,
    ) -> Self {
        Self {
            client: Arc::new(client),
            _connection: connection,
            backend,
            runtime: hands,
            statements: HashMap::new(),
            watch: Stopwatch::start(),
            limit: Duration::ZERO,
            in_transaction: false,
            is_usable: true,
            query: None,
            tls,
        }
    }

    /// Gives the next statements, together, this much time.
    pub(super) fn set_time_limit(&mut self, limit: Duration) {
        (self.watch, self.limit) = (Stopwatch::start(), limit);
    }

    /// What it does from now on ends with this query, until it is rolled back.
    pub(super) fn set_query(&mut self, query: Option<&CancelFlag>) {
        self.query = query.cloned();
    }

    /// Gives the next statements the same time again: what makes progress may take longer than one
    /// part of it.
    pub(super) fn restart_time_limit(&mut self) {
        self.watch = Stopwatch::start();
    }

    /// Whether the time is over, or so nearly that a statement was not begun or was cut for it.
    pub(super) fn is_timed_out(&self) -> bool {
        self.watch.elapsed() >= self.limit
    }

    /// Whether the next caller may have it.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_usable && !self.in_transaction && !self.client.is_closed()
    }

    /// Begins a transaction with these words, which begin with BEGIN.
    pub(super) fn begin(&mut self, words: String) -> Result<(), SessionError> {
        self.in_transaction = true;
        self.batch_execute(words)
    }

    /// Commits. What fails here is unknown, unless the server says that it rolled back.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
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

    /// Rolls back, if a transaction is open. A session that cannot is not used again, and its end
    /// rolls back.
    pub(super) fn rollback(&mut self) {
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
        self.is_usable = failure.session_survives();
        Err(failure)
    }

    /// Asks the server to stop what it does for this session, which is not used again. Nobody waits
    /// for it.
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
                tracing::debug!(%why, "what the server does for a query that has ended could not be cancelled");
            }
        });
    }

    /// Statements without parameters.
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

    /// The rows of a statement that has few.
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

    /// The number of rows changed.
    pub(super) fn execute(&mut self, sql: &str, params: Vec<Param>) -> Result<u64, SessionError> {
        let (client, statement) = (Arc::clone(&self.client), self.prepare(sql)?);
        self.run_step(async move { client.execute_raw(&statement, params).await })
    }

    /// Sends all statements at once; they run in this order.
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

    /// Sends the rows of a COPY.
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

    /// Begins a statement whose rows are fetched in parts. Until the last was fetched the session
    /// serves nothing else.
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

    /// The next rows; none after the last.
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

    /// Visits every row, in parts.
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
                // Rows that nobody reads to their end would stand in the way of the next statement.
                visit(row).inspect_err(|_| self.is_usable &= rows.0.is_none())?;
            }
        }
    }
}

//! The port `QueryService`: what the edge asks of the query engine. Blocking: the edge calls it outside of its event loop.
//!
//! Every answer is a finished JSON body. The tenant comes from the API key alone, never from the parameters.

use crate::model::budget::Budget;

/// What went wrong, from which the edge chooses the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryErrorKind {
    /// The question breaks a rule: 400.
    Bad,
    /// What is asked for is not there: 404.
    NotFound,
    /// The answer would break a limit, or what is asked for cannot be done: 422.
    TooLarge,
    /// The tenant asks too much at once: 429.
    Busy,
    /// The store cannot answer at the moment: 503.
    Unavailable,
    /// A bug or damaged data: 500.
    Internal,
}

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct QueryError {
    /// The code in the answer.
    pub code: &'static str,
    /// What is wrong and the way out.
    pub message: String,
    /// What kind of mistake it is.
    pub kind: QueryErrorKind,
}

impl QueryError {
    /// An error.
    pub fn new(kind: QueryErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), kind }
    }
}

/// An answer as CSV, and beside it what a table has no place for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The rows.
    pub csv: String,
    /// How complete they are, as JSON that fits into a header.
    pub completeness: String,
}

/// Answers questions about one tenant's metrics. A question ends early when its budget has ended.
pub trait QueryService: Send + Sync {
    /// `GET /v1/query`.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn query(&self, tenant: &str, params: &[(String, String)], budget: &Budget) -> Result<String, QueryError>;
    /// The same as a table.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn table(&self, tenant: &str, params: &[(String, String)], budget: &Budget) -> Result<Table, QueryError>;
    /// `GET /v1/metrics`.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn metrics(&self, tenant: &str, params: &[(String, String)], budget: &Budget) -> Result<String, QueryError>;
    /// `GET /v1/labels/{name}/values`.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn label_values(&self, tenant: &str, name: &str, params: &[(String, String)], budget: &Budget) -> Result<String, QueryError>;
    /// `GET /v1/accounting`.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn accounting(&self, tenant: &str, params: &[(String, String)], budget: &Budget) -> Result<String, QueryError>;
}

/// Where an event stands: the record's shard and offset, and the event's index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventPlace {
    /// Its shard.
    pub shard: u32,
    /// Offset of its record.
    pub offset: u64,
    /// Index in its record.
    pub index: u32,
}

/// Whose events in the quarantine a key reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReach {
    /// Those of this tenant.
    pub tenant: std::sync::Arc<str>,
    /// And the records that no build could read, which are nobody's.
    pub unowned: bool,
}

/// The events that were set aside. A tenant's key sees and moves that tenant's events alone.
pub trait QuarantineService: Send + Sync {
    /// `GET /v1/quarantine`; `all` shows discarded events too.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn list(&self, reach: &KeyReach, all: bool, budget: &Budget) -> Result<String, QueryError>;
    /// `POST /v1/quarantine/release`: the event is counted after all.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn release(&self, reach: &KeyReach, place: EventPlace) -> Result<String, QueryError>;
    /// `POST /v1/quarantine/discard`: the event is given up.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn discard(&self, reach: &KeyReach, place: EventPlace) -> Result<String, QueryError>;
}

/// What is noted before anything expires. It is for operators, of all tenants.
pub trait ExpiryService: Send + Sync {
    /// `GET /v1/archive/expiry`.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn list(&self, budget: &Budget) -> Result<String, QueryError>;
    /// `POST /v1/archive/expiry`: what has stopped goes on.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn say_yes(&self) -> Result<String, QueryError>;
}

/// Where nodes and shards stand.
pub trait StatusService: Send + Sync {
    /// `GET /v1/status`.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn status(&self) -> Result<String, QueryError>;
    /// For how long, in milliseconds, each node that owns shards knows event ids for certain. May block for as long as one call to the
    /// other nodes takes.
    fn dedup_horizons(&self) -> Vec<(String, i64)>;
    /// `POST /v1/archive/flush`: what this node's shards have applied until now goes to the archive as soon as it is in the store.
    ///
    /// # Errors
    /// See [`QueryErrorKind`].
    fn archive_now(&self) -> Result<String, QueryError>;
}

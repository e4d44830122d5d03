//! What the edge asks on behalf of operators. Blocking: the edge calls it outside of its event
//! loop.

use crate::api::archive::{ArchiveFlushAnswer, ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::api::quarantine::{DiscardAnswer, EventPlace, QuarantineAnswer, ReleaseAnswer};
use crate::api::status::StatusAnswer;
use crate::model::budget::QueryBudget;
use crate::persistence::store::StoreError;

/// Why something was not done. Which code and status a client sees is the edge's business.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// The node does not reach the store.
    #[error("this node has no query role (node.roles): ask a node that has")]
    NoQueryRole,
    /// The event does not wait in the quarantine.
    #[error("event {place} {why}")]
    NotQuarantined {
        /// The event.
        place: EventPlace,
        /// What became of it.
        why: &'static str,
    },
    /// The event cannot be counted by this release.
    #[error("{0}")]
    NotReleasable(String),
    /// The store cannot be reached, or the outcome is unknown: a repetition that finds it done says
    /// so.
    #[error("{0}")]
    StoreUnavailable(String),
    /// The store holds what no release writes.
    #[error("{0}")]
    StoreInvalid(String),
}

impl From<StoreError> for OperateError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid(why) => Self::StoreInvalid(why),
            other => Self::StoreUnavailable(other.to_string()),
        }
    }
}

/// Whose events in the quarantine a key reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineScope {
    /// Those of this tenant.
    pub tenant: std::sync::Arc<str>,
    /// And the records that no build could read, which are nobody's.
    pub unowned: bool,
}

/// The events that were set aside. A tenant's key sees and moves that tenant's events alone.
pub trait QuarantineService: Send + Sync {
    /// The events that wait; `all` shows discarded ones too. Ends with its budget.
    ///
    /// # Errors
    /// See [`OperateError`].
    fn list(
        &self,
        reach: &QuarantineScope,
        all: bool,
        budget: &QueryBudget,
    ) -> Result<QuarantineAnswer, OperateError>;
    /// The event is counted after all.
    ///
    /// # Errors
    /// See [`OperateError`].
    fn release(
        &self,
        reach: &QuarantineScope,
        place: EventPlace,
    ) -> Result<ReleaseAnswer, OperateError>;
    /// The event is given up.
    ///
    /// # Errors
    /// See [`OperateError`].
    fn discard(
        &self,
        reach: &QuarantineScope,
        place: EventPlace,
    ) -> Result<DiscardAnswer, OperateError>;
}

/// What is noted before anything expires. It is for operators, of all tenants.
pub trait ExpiryService: Send + Sync {
    /// What is due. Ends with its budget.
    ///
    /// # Errors
    /// See [`OperateError`].
    fn list(&self, budget: &QueryBudget) -> Result<ExpiryAnswer, OperateError>;
    /// What has stopped goes on.
    ///
    /// # Errors
    /// See [`OperateError`].
    fn approve(&self) -> Result<ExpiryGoesOnAnswer, OperateError>;
}

/// Where nodes and shards stand.
pub trait StatusService: Send + Sync {
    /// Nodes and shards. May block for as long as one call to the other nodes takes.
    fn status(&self) -> StatusAnswer;
    /// For how long, in milliseconds, each node that owns shards knows event ids for certain. May
    /// block for as long as one call to the other nodes takes.
    fn dedup_horizons(&self) -> Vec<(String, i64)>;
    /// What this node's shards have applied until now goes to the archive as soon as it is in the
    /// store.
    fn archive_now(&self) -> ArchiveFlushAnswer;
}

//! Services that the gateway calls on behalf of operators. They block, so the gateway calls them
//! outside its event loop.

use crate::api::archive::{ArchiveFlushAnswer, ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::api::quarantine::{DiscardAnswer, EventPlace, QuarantineAnswer, ReleaseAnswer};
use crate::api::status::StatusAnswer;
use crate::model::budget::QueryBudget;
use crate::persistence::store::StoreError;

/// Why a call failed. The gateway maps it to a code and a status.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// The node has no role that opens the store.
    #[error("this node has no query role (node.roles): ask a node that has")]
    NoQueryRole,
    /// The event is not waiting in the quarantine.
    #[error("event {place} {why}")]
    NotQuarantined {
        place: EventPlace,
        /// What happened to it instead.
        why: &'static str,
    },
    /// This release cannot count the event.
    #[error("{0}")]
    NotReleasable(String),
    /// The store cannot be reached, or the outcome is unknown. Repeating the call is safe: it
    /// reports if the work is done already.
    #[error("{0}")]
    StoreUnavailable(String),
    /// The store holds data that no release writes.
    #[error("{0}")]
    StoreInvalid(String),
}

/// What is said of a store that did not answer before the request ended.
pub const NO_ANSWER: &str =
    "the store did not answer within query.timeout, nothing was written: is its server alive?";

impl From<StoreError> for OperateError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid(why) => Self::StoreInvalid(why),
            StoreError::QueryEnded => Self::StoreUnavailable(NO_ANSWER.to_owned()),
            other => Self::StoreUnavailable(other.to_string()),
        }
    }
}

/// Which events of the quarantine a key reaches.
#[allow(missing_docs, reason = "the name says it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineScope {
    pub tenant: std::sync::Arc<str>,
    /// Whether records that no build could read, which belong to no tenant, are included.
    pub unowned: bool,
}

/// The quarantine. A tenant's key sees and settles that tenant's events only.
pub trait QuarantineService: Send + Sync {
    /// Lists the waiting events; `all` includes discarded ones.
    ///
    /// # Errors
    /// Fails without the query role, if the store fails, or when the budget is used up.
    fn list(
        &self,
        scope: &QuarantineScope,
        all: bool,
        budget: &QueryBudget,
    ) -> Result<QuarantineAnswer, OperateError>;
    /// Counts the event after all and removes it from the quarantine.
    ///
    /// # Errors
    /// Fails without the query role, if the event is not waiting, if it cannot be folded, if
    /// the store fails, or when the budget is used up.
    fn release(
        &self,
        scope: &QuarantineScope,
        place: EventPlace,
        budget: &QueryBudget,
    ) -> Result<ReleaseAnswer, OperateError>;
    /// Gives the event up for good; its row stays, marked as discarded.
    ///
    /// # Errors
    /// Fails without the query role, if the event is not waiting, if the store fails, or when
    /// the budget is used up.
    fn discard(
        &self,
        scope: &QuarantineScope,
        place: EventPlace,
        budget: &QueryBudget,
    ) -> Result<DiscardAnswer, OperateError>;
}

/// Expiry of archives and weeks. It is for operators and covers all tenants.
pub trait ExpiryService: Send + Sync {
    /// Lists what is due to be deleted.
    ///
    /// # Errors
    /// Fails without the query role, if the store fails, or when the budget is used up.
    fn list(&self, budget: &QueryBudget) -> Result<ExpiryAnswer, OperateError>;
    /// Approves every expiry that is stopped.
    ///
    /// # Errors
    /// Fails without the query role, if the store fails, or when the budget is used up.
    fn approve(&self, budget: &QueryBudget) -> Result<ExpiryGoesOnAnswer, OperateError>;
}

/// Status of nodes and shards.
pub trait StatusService: Send + Sync {
    /// Status of all known nodes and shards. May block for as long as one call to the other nodes
    /// takes, and until the budget is used up while the store does not answer. The nodes' own
    /// reports are there even then.
    fn status(&self, budget: &QueryBudget) -> StatusAnswer;
    /// For how long, in milliseconds, each node that owns shards is certain to know event ids. May
    /// block for as long as one call to the other nodes takes.
    fn dedup_horizons(&self) -> Vec<(String, i64)>;
    /// Requests that everything applied so far by this node's shards is archived as soon
    /// as it is committed.
    fn archive_now(&self) -> ArchiveFlushAnswer;
}

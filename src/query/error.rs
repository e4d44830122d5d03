//! Why a query has no answer. Which code and status a client sees is the edge's business. Pure.

use crate::model::budget::AbortReason;
use crate::persistence::store::StoreError;

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The node does not answer queries.
    #[error("this node has no query role (node.roles): ask a node that has")]
    NoQueryRole,
    /// The answer has more points than `query.max_points`.
    #[error("the answer has more than {max} points")]
    TooManyPoints {
        /// `query.max_points`.
        max: usize,
    },
    /// More series match than `query.max_series`; in the store's words.
    #[error("{0}")]
    TooManySeries(String),
    /// One figure of the answer is larger than one can be.
    #[error("{0}")]
    FigureTooLarge(String),
    /// It needs more memory than one tenant may use for queries.
    #[error("the query needs more memory than one tenant may use for queries")]
    TooMuchMemory,
    /// Other queries of the tenant use its memory.
    #[error("the tenant's other queries use its part of query.max_memory")]
    TenantBusy,
    /// Other queries use the memory for all.
    #[error("other queries use all of query.max_memory")]
    Busy,
    /// It took longer than `query.timeout`.
    #[error("the query took longer than query.timeout")]
    TimedOut,
    /// Nobody waits for the answer.
    #[error("nobody waits for the answer")]
    Abandoned,
    /// The store did not finish within `store.timeout`.
    #[error("the store did not finish this question within store.timeout ({0})")]
    StoreTooSlow(String),
    /// The store cannot be reached.
    #[error("{0}")]
    StoreUnavailable(String),
    /// The store holds what no release writes.
    #[error("{0}")]
    StoreInvalid(String),
}

impl QueryError {
    /// Of a query that ended before it had an answer.
    pub fn ended(why: AbortReason, max_points: usize) -> Self {
        match why {
            AbortReason::TooManyPoints => Self::TooManyPoints { max: max_points },
            AbortReason::TooMuchMemory => Self::TooMuchMemory,
            AbortReason::TenantBusy => Self::TenantBusy,
            AbortReason::Busy => Self::Busy,
            AbortReason::TimedOut => Self::TimedOut,
            AbortReason::Abandoned => Self::Abandoned,
        }
    }
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> Self {
        match error {
            error @ StoreError::TooManySeries { .. } => Self::TooManySeries(error.to_string()),
            StoreError::Invalid(why) => Self::StoreInvalid(why),
            StoreError::TooLong(why) => Self::StoreTooSlow(why),
            other => Self::StoreUnavailable(other.to_string()),
        }
    }
}

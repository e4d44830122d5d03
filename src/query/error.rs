//! Why a query failed. The edges map these to codes and statuses. Pure.

use crate::model::budget::AbortReason;
use crate::persistence::store::StoreError;

/// Why a query failed. The messages are for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// This node does not have the query role.
    #[error("this node has no query role (node.roles): ask a node that has")]
    NoQueryRole,
    /// The answer has more points than `query.max_points`.
    #[error("the answer has more than {max} points")]
    TooManyPoints {
        /// The configured limit, `query.max_points`.
        max: usize,
    },
    /// More series match than `query.max_series`; the message is the store's.
    #[error("{0}")]
    TooManySeries(String),
    /// A sum or a bucket of the answer is out of range.
    #[error("{0}")]
    FigureTooLarge(String),
    /// The query alone exceeds a tenant's share of `query.max_memory`.
    #[error("the query needs more memory than one tenant may use for queries")]
    TooMuchMemory,
    /// The tenant's other queries use up its share of `query.max_memory`.
    #[error("the tenant's other queries use its part of query.max_memory")]
    TenantBusy,
    /// Other tenants' queries use up `query.max_memory`.
    #[error("other queries use all of query.max_memory")]
    Busy,
    /// The query took longer than `query.timeout`.
    #[error("the query took longer than query.timeout")]
    TimedOut,
    /// The client has disconnected.
    #[error("nobody waits for the answer")]
    Abandoned,
    /// The store did not finish within `store.timeout`.
    #[error("the store did not finish this question within store.timeout ({0})")]
    StoreTooSlow(String),
    /// The store is unreachable or failed; retrying may help.
    #[error("{0}")]
    StoreUnavailable(String),
    /// The store holds data that no release of Rollmill writes.
    #[error("{0}")]
    StoreInvalid(String),
}

impl QueryError {
    /// The error of a query that its budget aborted.
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

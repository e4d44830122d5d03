//! What the edge hands validated requests to.

use crate::model::batch::ValidBatch;
use crate::persistence::log::{AppendError, AppendTicket};

/// Accepts validated requests: the pool of gateway actors, or a test double.
pub trait BatchSink: Send + Sync + 'static {
    /// Hands over one request without blocking. The ticket resolves once every event is durable; a
    /// dropped ticket means that the outcome is unknown.
    ///
    /// # Errors
    /// Fails only if nothing of the request was or will be written.
    fn submit(&self, batch: ValidBatch) -> Result<AppendTicket, AppendError>;
}

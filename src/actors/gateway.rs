//! Gateway actors: take validated events, group them by shard, append, answer.

use crate::model::batch::ValidBatch;
use crate::persistence::log::{AppendError, AppendTicket};

/// Takes validated requests: the pool of gateway actors, or a double.
pub trait BatchSink: Send + Sync + 'static {
    /// Hands one request over without blocking. The ticket resolves when every event is durable; a
    /// dropped ticket means that the outcome is unknown.
    ///
    /// # Errors
    /// If nothing of the request was or will be written.
    fn submit(&self, batch: ValidBatch) -> Result<AppendTicket, AppendError>;
}

//! Gateway actors: take validated events, group them by shard, append, answer.

use std::sync::Arc;

use bytes::Bytes;

use crate::model::decimal::Decimal;
use crate::model::offset::ShardId;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Millis;
use crate::persistence::log::{AppendError, AppendTicket};

/// A series as the gateway's interner keeps it: checked, hashed and routed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedSeries {
    /// Its id.
    pub id: SeriesId,
    /// Its canonical bytes.
    pub key: Box<[u8]>,
    /// Its shard.
    pub shard: ShardId,
}

impl RoutedSeries {
    /// A series among so many shards.
    pub fn new(series: &Series, shard_count: u32) -> Self {
        let key = series.key().into_boxed_slice();
        let id = SeriesId::of_key(&key);
        Self { id, key, shard: id.shard(shard_count) }
    }
}

/// A valid event of a request. Ranges point into the body, so that nothing is copied before the
/// record is encoded.
#[derive(Debug, Clone)]
pub struct ValidEvent {
    /// Its series.
    pub series: Arc<RoutedSeries>,
    /// Event time.
    pub timestamp: Millis,
    /// Its value.
    pub value: Option<Decimal>,
    /// Whom to count as distinct.
    pub user: Option<String>,
    /// For de-duplication.
    pub id: Option<String>,
    /// Where the event stands in the body.
    pub raw: std::ops::Range<usize>,
}

/// The valid events of one request.
#[derive(Debug)]
pub struct ValidBatch {
    /// Whose.
    pub tenant: Arc<str>,
    /// The decompressed body.
    pub body: Bytes,
    /// The events, in order.
    pub events: Vec<ValidEvent>,
}

/// Takes validated requests: the pool of gateway actors, or a double.
pub trait Submit: Send + Sync + 'static {
    /// Hands one request over without blocking. The ticket resolves when every event is durable; a
    /// dropped ticket means that the outcome is unknown.
    ///
    /// # Errors
    /// If nothing of the request was or will be written.
    fn submit(&self, batch: ValidBatch) -> Result<AppendTicket, AppendError>;
}

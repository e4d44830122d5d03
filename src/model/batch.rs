//! What a gateway hands over: the valid events of one request, each with its series.

use std::sync::Arc;

use bytes::Bytes;

use super::decimal::Decimal;
use super::offset::ShardId;
use super::series::{Series, SeriesId};
use super::window::Millis;

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

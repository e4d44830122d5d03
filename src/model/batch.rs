//! The output of a gateway: the valid events of one request, each with its series.

use std::sync::Arc;

use bytes::Bytes;

use super::decimal::Decimal;
use super::offset::ShardId;
use super::series::{Series, SeriesId};
use super::window::Millis;

/// An entry of the gateway's series interner: validated, hashed and routed once.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedSeries {
    pub id: SeriesId,
    /// The canonical bytes of the series.
    pub key: Box<[u8]>,
    pub shard: ShardId,
}

impl RoutedSeries {
    /// Routes a series among `shard_count` shards.
    pub fn new(series: &Series, shard_count: u32) -> Self {
        let key = series.key().into_boxed_slice();
        let id = SeriesId::of_key(&key);
        Self { id, key, shard: id.shard(shard_count) }
    }
}

/// A valid event of a request. Ranges point into the body, so nothing is copied before
/// the record is encoded.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct ValidEvent {
    pub series: Arc<RoutedSeries>,
    pub timestamp: Millis,
    pub value: Option<Decimal>,
    /// Whom to count as distinct.
    pub user: Option<String>,
    pub id: Option<String>,
    /// The event's bytes, as a range of [`ValidBatch::body`].
    pub raw: std::ops::Range<usize>,
}

/// The valid events of one request.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug)]
pub struct ValidBatch {
    pub tenant: Arc<str>,
    /// The request body, decompressed.
    pub body: Bytes,
    /// In the order of the request.
    pub events: Vec<ValidEvent>,
}

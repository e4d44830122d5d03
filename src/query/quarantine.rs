//! Events that were set aside: listed, released into the rollups after all, or given up.

use std::sync::Arc;

use super::service::{QueryError, QueryErrorKind};
use crate::model::flush::{Delta, FlushBatch, QuarantineRow, SeriesInfo};
use crate::model::offset::{Offset, ShardId};
use crate::model::record;
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;
use crate::persistence::store::{RollupStore, StoreError};

/// Where an event was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Its shard.
    pub shard: u32,
    /// Offset of its record.
    pub offset: Offset,
    /// Index in its record.
    pub index: u32,
}

/// What is to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Fold it into its rollup.
    Release,
    /// Leave it out for good.
    Discard,
}

/// The tenant's events that wait, as JSON. The event of each stands in `event` as the client sent it.
///
/// # Errors
/// If the store cannot be read.
pub fn list(store: &dyn RollupStore, tenant: &str) -> Result<String, StoreError> {
    let rows = store.snapshot()?.quarantine()?;
    let shown = |row: &QuarantineRow| {
        let event =
            record::decode(&row.record).ok().and_then(|r| r.events.first().map(|e| String::from_utf8_lossy(e.raw).into_owned()));
        serde_json::json!({"shard": row.shard.0, "offset": row.offset, "index": row.index, "appended_ms": row.appended,
            "reason": row.reason, "event": event})
    };
    let waiting: Vec<_> = rows.iter().filter(|row| !row.discarded && row.tenant == tenant).map(shown).collect();
    Ok(serde_json::json!({"quarantine": waiting}).to_string())
}

/// Settles one event.
///
/// # Errors
/// If no such event of the tenant waits, or it cannot be folded.
pub fn settle(store: &dyn RollupStore, tenant: &str, place: Place, verdict: Verdict) -> Result<String, QueryError> {
    let not_found = || {
        let message = format!("no event of yours waits at shard {}, offset {}, index {}", place.shard, place.offset, place.index);
        QueryError::new(QueryErrorKind::Bad, "not_in_quarantine", message)
    };
    let failed = |error: StoreError| QueryError::new(QueryErrorKind::Unavailable, "store_unavailable", error.to_string());
    let shard = ShardId(place.shard);
    let mut snapshot = store.snapshot().map_err(failed)?;
    let rows = snapshot.quarantine().map_err(failed)?;
    let here =
        |row: &&QuarantineRow| (row.shard, row.offset, row.index, row.discarded) == (shard, place.offset, place.index, false);
    let row = rows.iter().find(here).filter(|row| row.tenant == tenant).ok_or_else(not_found)?;
    let batch = match verdict {
        Verdict::Discard => None,
        Verdict::Release => {
            let admissions = snapshot.admissions(shard).map_err(failed)?;
            let admitted = |id: SeriesId| admissions.iter().any(|(known, from)| *known == id && *from <= place.offset);
            Some(fold(row, admitted).map_err(|why| QueryError::new(QueryErrorKind::TooLarge, "not_releasable", why))?)
        }
    };
    drop(snapshot);
    if store.settle_quarantine(shard, place.offset, place.index, batch.as_ref()).map_err(failed)? {
        return Ok("{\"settled\":1}".to_owned());
    }
    Err(not_found())
}

/// The growth that the event would have brought at its place; a series that was not admitted there goes to its overflow series.
fn fold(row: &QuarantineRow, admitted: impl Fn(SeriesId) -> bool) -> Result<FlushBatch, String> {
    let unreadable = |why: String| format!("the event cannot be read, so it can only be discarded: {why}");
    let record = record::decode(&row.record).map_err(|e| unreadable(e.to_string()))?;
    let event = record.events.first().ok_or_else(|| unreadable("it is not there".to_owned()))?;
    let mut series = Series::from_key(record.series[event.series as usize].key).map_err(|e| unreadable(e.to_string()))?;
    if !admitted(SeriesId::of_key(&series.key())) {
        series = series.overflow();
    }
    let mut rollup = Rollup::default();
    rollup.add(event.value, event.user_hash());
    let id = SeriesId::of_key(&series.key());
    let delta = Delta { series: Arc::new(SeriesInfo { id, series }), hour: Hour::of(event.timestamp), rollup };
    Ok(FlushBatch { deltas: vec![delta], ..FlushBatch::default() })
}

//! The quarantine: what was set aside, and its release or discard.
//!
//! What always holds: an event is counted or set aside, never both, because merging its growth and deleting its row are one
//! transaction of the store, which also moves accounting and revisions. Its ids stay in de-duplication: a client's retry does not
//! count beside a release. A tenant's key reaches that tenant's events alone; records that no build could read belong to nobody, and
//! operators see that they are there, not what they hold. On failure nothing was changed, or, if the outcome is unknown, the
//! list tells.

use std::sync::Arc;

use serde_json::{Value, json};

use super::service::{EventPlace, KeyReach, QuarantineService, QueryError, QueryErrorKind};
use crate::model::budget::Budget;
use crate::model::flush::QuarantineRow;
use crate::model::offset::ShardId;
use crate::model::record;
use crate::model::series::Series;
use crate::persistence::store::{RollupStore, StoreError, StoreSnapshot};
use crate::shards::release;
use crate::shards::state::ShardLimits;

/// Events in one answer; the rest is counted.
const MAX_LISTED: usize = 1_000;

/// The quarantine of a store.
pub struct Quarantine {
    store: Arc<dyn RollupStore>,
    limits: ShardLimits,
}

impl Quarantine {
    /// The quarantine of this store. A release folds under the limits of the shards.
    pub fn new(store: Arc<dyn RollupStore>, limits: ShardLimits) -> Arc<Self> {
        Arc::new(Self { store, limits })
    }

    fn rows(
        &self,
        reach: &KeyReach,
        view: Result<Box<dyn StoreSnapshot + '_>, StoreError>,
    ) -> Result<Vec<QuarantineRow>, QueryError> {
        let mut rows = view.and_then(|mut view| view.quarantine()).map_err(failed)?;
        rows.retain(|row| if row.tenant.is_empty() { reach.unowned } else { row.tenant == *reach.tenant });
        Ok(rows)
    }

    /// The row of an event that waits.
    fn waiting(&self, reach: &KeyReach, place: EventPlace) -> Result<QuarantineRow, QueryError> {
        let found = self.rows(reach, self.store.snapshot())?.into_iter().find(|row| place_of(row) == place);
        match found {
            Some(row) if row.discarded => Err(gone(place, "was discarded, which is for good")),
            Some(row) => Ok(row),
            None => Err(gone(place, "is not in the quarantine (any more)")),
        }
    }
}

fn place_of(row: &QuarantineRow) -> EventPlace {
    EventPlace { shard: row.shard.0, offset: row.offset, index: row.index }
}

fn gone(place: EventPlace, how: &str) -> QueryError {
    let EventPlace { shard, offset, index } = place;
    let message = format!("event {shard}/{offset}/{index} {how}: see GET /v1/quarantine");
    QueryError::new(QueryErrorKind::NotFound, "not_quarantined", message)
}

fn failed(error: StoreError) -> QueryError {
    match error {
        StoreError::Invalid(why) => QueryError::new(QueryErrorKind::Internal, "store_invalid", why),
        // A repetition that finds the row gone says so, so nothing is counted twice.
        other => QueryError::new(QueryErrorKind::Unavailable, "store_unavailable", format!("{other}; try again")),
    }
}

impl QuarantineService for Quarantine {
    fn list(&self, reach: &KeyReach, all: bool, budget: &Budget) -> Result<String, QueryError> {
        let mut rows = self.rows(reach, self.store.snapshot_for(budget))?;
        rows.retain(|row| all || !row.discarded);
        let events: Vec<Value> = rows.iter().take(MAX_LISTED).map(shown).collect();
        Ok(json!({ "events": events, "more": rows.len() - events.len() }).to_string())
    }

    fn release(&self, reach: &KeyReach, place: EventPlace) -> Result<String, QueryError> {
        let row = self.waiting(reach, place)?;
        // Whatever was admitted at or below the event's offset was committed before the event's own row was.
        let admissions = self.store.snapshot().and_then(|mut s| s.admissions(row.shard)).map_err(failed)?;
        let batch = release::fold(&self.limits, &row, admissions).map_err(|why| {
            let message = format!("the event stays in the quarantine: {why}");
            QueryError::new(QueryErrorKind::TooLarge, "not_releasable", message)
        })?;
        if !self.store.settle_quarantine(row.shard, row.offset, row.index, Some(&batch)).map_err(failed)? {
            return Err(gone(place, "was settled meanwhile"));
        }
        let series = batch.deltas.first().map(|delta| series(&delta.series.series));
        Ok(json!({ "released": place, "counted_in": series }).to_string())
    }

    fn discard(&self, reach: &KeyReach, place: EventPlace) -> Result<String, QueryError> {
        let row = self.waiting(reach, place)?;
        if !self.store.settle_quarantine(ShardId(place.shard), row.offset, row.index, None).map_err(failed)? {
            return Err(gone(place, "was settled meanwhile"));
        }
        Ok(json!({ "discarded": place }).to_string())
    }
}

fn series(series: &Series) -> Value {
    let labels: serde_json::Map<String, Value> = series.labels.iter().map(|(n, v)| (n.clone(), v.clone().into())).collect();
    json!({ "metric": series.metric, "labels": labels })
}

fn time(millis: i64) -> Value {
    jiff::Timestamp::from_millisecond(millis).map_or(Value::Null, |at| at.to_string().into())
}

fn shown(row: &QuarantineRow) -> Value {
    let mut shown = json!({
        "shard": row.shard.0, "offset": row.offset, "index": row.index, "tenant": row.tenant,
        "received": time(row.received), "reason": row.reason, "discarded": row.discarded, "event": event(row),
    });
    if row.tenant.is_empty() {
        shown["bytes"] = row.record.len().into();
    }
    shown
}

/// The event as it was understood; null if the record cannot be read, or is nobody's.
fn event(row: &QuarantineRow) -> Value {
    let Ok(record) = record::decode(&row.record) else { return Value::Null };
    let [event] = &record.events[..] else { return Value::Null };
    if row.tenant.is_empty() {
        return Value::Null;
    }
    let series = Series::from_key(record.series[event.series as usize].key).map_or(Value::Null, |s| series(&s));
    json!({
        "series": series, "timestamp": time(event.timestamp), "value": event.value.map(|v| v.to_string()),
        "user": event.user, "id": event.id, "raw": std::str::from_utf8(event.raw).ok(),
    })
}

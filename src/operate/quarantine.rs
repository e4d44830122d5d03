//! The quarantine: listing, releasing and discarding events.
//!
//! An event is either counted or quarantined, never both, because merging its delta and deleting
//! its row are one transaction of the store, which also moves accounting and revisions. Its id
//! stays in de-duplication, so a client's retry does not count in addition to a release. A tenant's
//! key reaches the events of that tenant only. Records that no build could read belong to no
//! tenant; operators see that they exist, not what they contain. A call that fails has changed
//! nothing; if its outcome is unknown, the list shows it.

use std::sync::Arc;

use super::service::{OperateError, QuarantineScope, QuarantineService};
use crate::api::quarantine::{
    DiscardAnswer, EventPlace, QuarantineAnswer, QuarantinedEvent, ReleaseAnswer, SeriesName,
    UnderstoodEvent,
};
use crate::api::timestamp;
use crate::model::budget::QueryBudget;
use crate::model::flush::QuarantineRow;
use crate::model::offset::ShardId;
use crate::model::record;
use crate::model::series::Series;
use crate::persistence::store::{AuditSnapshot, QuarantineStore};
use crate::shards::release;
use crate::shards::state::ShardLimits;

/// Most events in one answer; the rest is only counted.
const MAX_LISTED: usize = 1_000;

/// Quarantine of a store.
pub struct StoreQuarantine {
    store: Arc<dyn QuarantineStore>,
    limits: ShardLimits,
}

impl StoreQuarantine {
    /// Creates the service on this store. A release folds under the limits of the shards.
    pub fn new(store: Arc<dyn QuarantineStore>, limits: ShardLimits) -> Arc<Self> {
        Arc::new(Self { store, limits })
    }

    fn rows(
        scope: &QuarantineScope,
        snapshot: &mut dyn AuditSnapshot,
    ) -> Result<Vec<QuarantineRow>, OperateError> {
        let mut rows = snapshot.quarantine()?;
        // Records that no build could read have no tenant.
        rows.retain(|row| {
            if row.tenant.is_empty() { scope.unowned } else { row.tenant == *scope.tenant }
        });
        Ok(rows)
    }

    /// The row of an event that can be settled: it is there and not discarded.
    fn pending_row(
        &self,
        scope: &QuarantineScope,
        place: EventPlace,
        budget: &QueryBudget,
    ) -> Result<QuarantineRow, OperateError> {
        let found = Self::rows(scope, &mut *self.store.snapshot_for(budget)?)?
            .into_iter()
            .find(|row| place_of(row) == place);
        match found {
            Some(row) if row.discarded => {
                Err(not_quarantined(place, "was discarded, which is for good"))
            }
            Some(row) => Ok(row),
            None => Err(not_quarantined(place, "is not in the quarantine (any more)")),
        }
    }
}

fn place_of(row: &QuarantineRow) -> EventPlace {
    EventPlace { shard: row.shard.0, offset: row.offset, index: row.index }
}

fn not_quarantined(place: EventPlace, why: &'static str) -> OperateError {
    OperateError::NotQuarantined { place, why }
}

impl QuarantineService for StoreQuarantine {
    fn list(
        &self,
        scope: &QuarantineScope,
        all: bool,
        budget: &QueryBudget,
    ) -> Result<QuarantineAnswer, OperateError> {
        let mut rows = Self::rows(scope, &mut *self.store.snapshot_for(budget)?)?;
        rows.retain(|row| all || !row.discarded);
        let events: Vec<QuarantinedEvent> = rows.iter().take(MAX_LISTED).map(listed).collect();
        Ok(QuarantineAnswer { more: (rows.len() - events.len()) as u64, events })
    }

    fn release(
        &self,
        scope: &QuarantineScope,
        place: EventPlace,
        budget: &QueryBudget,
    ) -> Result<ReleaseAnswer, OperateError> {
        let row = self.pending_row(scope, place, budget)?;
        // The snapshot is complete for this event: everything admitted at or below its offset was
        // committed before its own row, or with it.
        let admissions = self.store.snapshot_for(budget)?.admissions(row.shard)?;
        let batch = release::fold(&self.limits, &row, admissions)
            .map_err(|why| OperateError::NotReleasable(why.to_string()))?;
        // The store settles an event once; of two operators at the same time
        // the second gets `false`.
        let at = (row.shard, row.offset, row.index);
        if !self.store.settle_quarantine(at.0, at.1, at.2, Some(&batch), Some(budget))? {
            return Err(not_quarantined(place, "was settled meanwhile"));
        }
        let counted_in = batch.deltas.first().map(|delta| name_of(&delta.series.series));
        Ok(ReleaseAnswer { released: place, counted_in })
    }

    fn discard(
        &self,
        scope: &QuarantineScope,
        place: EventPlace,
        budget: &QueryBudget,
    ) -> Result<DiscardAnswer, OperateError> {
        let row = self.pending_row(scope, place, budget)?;
        let shard = ShardId(place.shard);
        if !self.store.settle_quarantine(shard, row.offset, row.index, None, Some(budget))? {
            return Err(not_quarantined(place, "was settled meanwhile"));
        }
        Ok(DiscardAnswer { discarded: place })
    }
}

fn name_of(series: &Series) -> SeriesName {
    SeriesName { metric: series.metric.clone(), labels: series.labels.iter().cloned().collect() }
}

fn listed(row: &QuarantineRow) -> QuarantinedEvent {
    QuarantinedEvent {
        shard: row.shard.0,
        offset: row.offset,
        index: row.index,
        tenant: row.tenant.clone(),
        received: timestamp(row.received),
        reason: row.reason.clone(),
        discarded: row.discarded,
        event: understood(row),
        bytes: row.tenant.is_empty().then_some(row.record.len() as u64),
    }
}

/// The decoded event; `None` if the record cannot be read or belongs to no tenant.
fn understood(row: &QuarantineRow) -> Option<UnderstoodEvent> {
    if row.tenant.is_empty() {
        return None;
    }
    let record = record::decode(&row.record).ok()?;
    let [event] = &record.events[..] else { return None };
    Some(UnderstoodEvent {
        series: Series::from_key(record.series[event.series as usize].key)
            .ok()
            .map(|series| name_of(&series)),
        timestamp: timestamp(event.timestamp),
        value: event.value.map(|value| value.to_string()),
        user: event.user.map(str::to_owned),
        id: event.id.map(str::to_owned),
        raw: std::str::from_utf8(event.raw).ok().map(str::to_owned),
    })
}

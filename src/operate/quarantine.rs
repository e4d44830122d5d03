//! The quarantine: listing, releasing and discarding events.
//!
//! An event is either counted or quarantined, never both, because merging it and marking its row
//! are one transaction of the store, which also moves accounting and revisions. Its id
//! stays in de-duplication, so a client's retry does not count in addition to a release. A tenant's
//! key reaches the events of that tenant only. Records that no build could read belong to no
//! tenant; operators see that they exist, not what they contain. A call that fails has changed
//! nothing; if its outcome is unknown, the list shows it.

use std::sync::Arc;

use super::service::{OperateError, QuarantineScope, QuarantineService};
use crate::actors::release_fold::{ReleaseFoldError, fold_release};
use crate::api::quarantine::{
    DiscardAnswer, EventPlace, QuarantineAnswer, QuarantinedEvent, ReleaseAnswer, SeriesName,
    UnderstoodEvent,
};
use crate::api::timestamp;
use crate::model::budget::QueryBudget;
use crate::model::flush::QuarantineRow;
use crate::model::offset::ShardId;
use crate::model::record;
use crate::model::release::ReleasedEvent;
use crate::model::series::Series;
use crate::persistence::store::{AuditSnapshot, QuarantineStore, StoreError};
use crate::shards::state::ShardLimits;

/// Most events in one answer; the rest is only counted.
const MAX_LISTED: usize = 1_000;
/// How often a release is decided anew because a fill has passed its event meanwhile. Each
/// generation of the shard can do so once, and few are filled at a time.
const MAX_TURNS: u32 = 16;

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

    /// What the event adds to generation 0, and to each generation whose writer has passed it.
    fn fold(
        &self,
        row: &QuarantineRow,
        budget: &QueryBudget,
    ) -> Result<ReleasedEvent, OperateError> {
        let mut snapshot = self.store.snapshot_for(budget)?;
        fold_release(&mut *snapshot, &self.limits, row).map_err(|why| match why {
            ReleaseFoldError::Store(why) => why.into(),
            ReleaseFoldError::Event(why) => OperateError::NotReleasable(why.to_string()),
        })
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
        for turn in 1.. {
            let event = self.fold(&row, budget)?;
            // The store settles an event once; of two operators at the same time
            // the second gets `false`.
            let at = (row.shard, row.offset, row.index);
            match self.store.settle_quarantine(at.0, at.1, at.2, Some(&event), Some(budget)) {
                // A fill has passed the event, or the shard has adopted another set.
                Err(StoreError::Refused { .. }) if turn < MAX_TURNS => {}
                Err(why) => return Err(why.into()),
                Ok(false) => return Err(not_quarantined(place, "was settled meanwhile")),
                Ok(true) => {
                    let counted_in = event.deltas.first().map(|d| name_of(&d.series.series));
                    return Ok(ReleaseAnswer { released: place, counted_in });
                }
            }
        }
        Err(StoreError::Refused { shard: row.shard }.into())
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

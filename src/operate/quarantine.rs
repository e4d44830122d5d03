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
        for _ in 0..MAX_TURNS {
            let event = self.fold(&row, budget)?;
            // The store settles an event once; of two operators at the same time
            // the second gets `false`.
            let at = (row.shard, row.offset, row.index);
            match self.store.settle_quarantine(at.0, at.1, at.2, Some(&event), Some(budget)) {
                // A fill has passed the event, or the shard has adopted another set.
                Err(StoreError::Refused { .. }) => {}
                Err(why) => return Err(why.into()),
                Ok(false) => return Err(not_quarantined(place, "was settled meanwhile")),
                Ok(true) => {
                    let counted_in = event.deltas.first().map(|d| name_of(&d.series.series));
                    return Ok(ReleaseAnswer { released: place, counted_in });
                }
            }
        }
        Err(OperateError::ReleaseOvertaken { shard: row.shard, turns: MAX_TURNS })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flush::{FlushBatch, FlushGuard};
    use crate::model::offset::{LogId, Offset, OffsetRange};
    use crate::model::record::{Record, RecordEvent, SeriesEntry};
    use crate::model::series::SeriesId;
    use crate::persistence::store::memory::MemoryStore;
    use crate::persistence::store::{ShardStore, SnapshotSource, StoreSnapshot};

    const LOG: LogId = LogId([7; 16]);

    /// A store whose replays are always ahead.
    struct Overtaken(Arc<MemoryStore>);

    impl SnapshotSource for Overtaken {
        fn snapshot(&self) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
            self.0.snapshot()
        }

        fn snapshot_for(
            &self,
            query: &QueryBudget,
        ) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
            self.0.snapshot_for(query)
        }
    }

    impl QuarantineStore for Overtaken {
        fn settle_quarantine(
            &self,
            shard: ShardId,
            _: Offset,
            _: u32,
            _: Option<&ReleasedEvent>,
            _: Option<&QueryBudget>,
        ) -> Result<bool, StoreError> {
            Err(StoreError::Refused { shard })
        }
    }

    fn set_aside() -> QuarantineRow {
        let key = Series::new("acme", "views", []).key();
        let id = SeriesId::of_key(&key);
        let event =
            RecordEvent { series: 0, timestamp: 0, value: None, user: None, id: None, raw: b"{}" };
        let one = Record {
            version: record::VERSION,
            tenant: "acme",
            gateway: 0,
            series: vec![SeriesEntry { id: &id.0, key: &key }],
            events: vec![event],
            stamp: Some(1),
        };
        let mut bytes = Vec::new();
        record::encode(&one, &mut bytes);
        QuarantineRow {
            shard: ShardId(0),
            offset: 0,
            index: 0,
            tenant: "acme".to_owned(),
            received: 0,
            reason: "it died".to_owned(),
            discarded: false,
            record: bytes,
        }
    }

    #[test]
    fn a_release_that_replays_overtake_says_so_and_blames_no_owner() {
        let store = MemoryStore::new();
        let epoch = store.claim(ShardId(0), LOG, 1).expect("claim").checkpoint.epoch;
        let range = OffsetRange { from: 0, to: 1 };
        let guard = FlushGuard { shard: ShardId(0), log: LOG, range, epoch };
        let batch = FlushBatch { quarantined: vec![set_aside()], ..FlushBatch::default() };
        store.flush(guard, &batch, 0).expect("flush");
        let limits = ShardLimits {
            dedup_horizon_ms: 1,
            dedup_max_ids: 1,
            flush_interval_ms: 1,
            max_delta_bytes: 1,
            keep_flushed_ms: 1,
            shard_count: 1,
            panic_on_user: None,
        };
        let scope = QuarantineScope { tenant: "acme".into(), unowned: false };
        let place = EventPlace { shard: 0, offset: 0, index: 0 };
        let release = |store: Arc<dyn QuarantineStore>| {
            StoreQuarantine::new(store, limits.clone()).release(
                &scope,
                place,
                &QueryBudget::default(),
            )
        };
        let refused = release(Arc::new(Overtaken(store.clone()))).map(drop);
        let expected = OperateError::ReleaseOvertaken { shard: ShardId(0), turns: MAX_TURNS };
        assert_eq!(refused, Err(expected));
        assert!(release(store).is_ok(), "it can be counted");
    }
}

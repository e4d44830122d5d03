//! Quarantined events: settled, and forgotten with their records.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MemoryStore, State, StoreWrite};
use crate::model::budget::QueryBudget;
use crate::model::flush::{FillProgress, QuarantineRow, revision_after_release};
use crate::model::generation::{GenerationId, Writer};
use crate::model::offset::{LogId, Offset, OffsetRange, ShardId};
use crate::model::release::{ReleaseBasis, ReleasedEvent};
use crate::model::settled_document::{SettledEvent, Settlement};
use crate::model::window::Hour;
use crate::persistence::store::{QuarantineStore, StoreError};

impl State {
    /// The cuts of a shard, by generation.
    pub(super) fn shard_fills(&self, shard: ShardId) -> Vec<(GenerationId, FillProgress)> {
        let fill = |(id, rows): (&GenerationId, &super::GenerationRows)| {
            rows.fills.get(&shard).map(|at| (*id, *at))
        };
        self.generations.iter().filter_map(fill).collect()
    }

    /// The released events of a range of a shard.
    pub(super) fn released(&self, shard: ShardId, range: OffsetRange) -> Vec<(Offset, u32)> {
        let within = self.released.range((shard, range.from, 0)..(shard, range.to, 0));
        within.map(|(_, offset, index)| (*offset, *index)).collect()
    }

    /// What was decided about events of all shards, by place.
    pub(super) fn settled(&self) -> Vec<(ShardId, SettledEvent)> {
        let discarded = self.quarantine.iter().filter(|(_, row)| row.discarded);
        let discarded = discarded.map(|(place, _)| (*place, Settlement::Discarded));
        let released = self.released.iter().map(|place| (*place, Settlement::Released));
        let all: BTreeMap<_, _> = discarded.chain(released).collect();
        let event = |((shard, offset, index), settlement)| {
            (shard, SettledEvent { offset, index, settlement })
        };
        all.into_iter().map(event).collect()
    }

    /// Forgets what was decided about events whose records have expired.
    pub(super) fn forget_settled(&mut self, shard: ShardId, below: Offset) {
        let gone = |of: ShardId, offset: Offset| of == shard && offset < below;
        self.released.retain(|(of, offset, _)| !gone(*of, *offset));
        self.quarantine.retain(|(of, offset, _), row| !row.discarded || !gone(*of, *offset));
    }

    fn check_release(&self, shard: ShardId, release: &ReleasedEvent) -> Result<(), StoreError> {
        self.check_catalogue(release.deltas.iter().map(|delta| &delta.series))?;
        for (part, deltas) in &release.generations {
            self.check_writer_catalogue(Writer { shard, part: *part }, deltas)?;
        }
        Ok(())
    }

    fn release(&mut self, row: &QuarantineRow, release: &ReleasedEvent) {
        let (shard, offset, index) = (row.shard, row.offset, row.index);
        let log = self.shards.get(&shard).map_or(LogId([0; 16]), |row| row.checkpoint.log);
        let revise = |before| revision_after_release(before, log, shard, offset, index);
        self.merge(&release.deltas, shard, offset, revise);
        for (part, deltas) in &release.generations {
            let rows = self.generations.entry(deltas.generation).or_default();
            rows.add(Writer { shard, part: *part }, deltas, offset, revise);
        }
        self.quarantine.remove(&(shard, offset, index));
        self.released.insert((shard, offset, index));
        let account = self.account(&row.tenant, Hour::of(row.received));
        account.quarantined = account.quarantined.saturating_sub(1);
        account.aggregated += 1;
    }
}

impl QuarantineStore for MemoryStore {
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        release: Option<&ReleasedEvent>,
        _: Option<&QueryBudget>,
    ) -> Result<bool, StoreError> {
        self.write(StoreWrite::SettleQuarantine, |state| {
            let place = (shard, offset, index);
            let waiting = state.quarantine.get(&place).filter(|row| !row.discarded).cloned();
            let Some(row) = waiting else { return Ok(false) };
            let Some(release) = release else {
                let discarded = QuarantineRow { discarded: true, ..row };
                Arc::make_mut(state).quarantine.insert(place, discarded);
                return Ok(true);
            };
            let set = state.shards.get(&shard).map_or(0, |row| row.set);
            if ReleaseBasis::new(set, &state.shard_fills(shard), offset) != release.basis {
                return Err(StoreError::Refused { shard });
            }
            state.check_release(shard, release)?;
            Arc::make_mut(state).release(&row, release);
            Ok(true)
        })
    }
}

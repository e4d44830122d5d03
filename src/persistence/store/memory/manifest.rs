//! The manifest of the archive, its floors, and the states by which its objects expire.

use std::sync::Arc;

use super::{MemoryStore, StoreWrite};
use crate::model::budget::QueryBudget;
use crate::model::manifest::{ArchiveFloor, ManifestRow, Tier};
use crate::model::offset::{Epoch, Offset};
use crate::persistence::store::{ExpiryRow, ExpiryTarget, ManifestStore, StoreError};

impl ManifestStore for MemoryStore {
    fn insert_manifest_row(&self, owner: Epoch, row: &ManifestRow) -> Result<(), StoreError> {
        self.write(StoreWrite::InsertManifestRow, |state| {
            let at = state.owned(row.shard, owner)?.checkpoint;
            if at.archived != row.range.from || at.log != row.log {
                return Err(StoreError::Refused { shard: row.shard });
            }
            let state = Arc::make_mut(state);
            state.manifest.insert((row.shard, row.range.from), row.clone());
            state.forget_notes(row.shard, row.range.to);
            if let Some(shard) = state.shards.get_mut(&row.shard) {
                shard.checkpoint.archived = row.range.to;
            }
            Ok(())
        })
    }

    fn set_tier(&self, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError> {
        self.write(StoreWrite::SetTier, |state| {
            let place = (row.shard, row.range.from);
            match Arc::make_mut(state)
                .manifest
                .get_mut(&place)
                .filter(|there| there.path == row.path)
            {
                Some(there) => there.tier = tier,
                None => return Ok(false),
            }
            Ok(true)
        })
    }

    fn expire_object(&self, row: &ManifestRow) -> Result<bool, StoreError> {
        self.write(StoreWrite::ExpireObject, |state| {
            let first = state.manifest.range((row.shard, 0)..=(row.shard, Offset::MAX)).next();
            if first.is_none_or(|(_, first)| first.path != row.path) {
                return Ok(false);
            }
            let state = Arc::make_mut(state);
            state.manifest.remove(&(row.shard, row.range.from));
            let floor = ArchiveFloor::after_expiry(state.floors.get(&row.shard).copied(), row);
            state.floors.insert(row.shard, floor);
            state.forget_settled(row.shard, floor.offset);
            Ok(true)
        })
    }

    fn swap_expiry(
        &self,
        of: ExpiryTarget,
        before: Option<&str>,
        after: &str,
    ) -> Result<bool, StoreError> {
        self.write(StoreWrite::Expiry, |state| {
            let there = state.expiry.get(&of);
            if there.map(|there| there.note.as_str()) != before {
                return Ok(false);
            }
            let said = there.map_or(0, |there| there.approvals);
            Arc::make_mut(state)
                .expiry
                .insert(of, ExpiryRow { note: after.to_owned(), approvals: said });
            Ok(true)
        })
    }

    fn approve_expiry(
        &self,
        of: &[ExpiryTarget],
        _: Option<&QueryBudget>,
    ) -> Result<u64, StoreError> {
        self.write(StoreWrite::Expiry, |state| {
            let noted = Arc::make_mut(state).expiry.iter_mut().filter(|(one, _)| of.contains(one));
            Ok(noted.map(|(_, note)| note.approvals += 1).count() as u64)
        })
    }
}

//! Takes snapshots from the read pool, for jobs and for queries.

use super::super::{PostgresStore, StoreError};
use super::{BEGIN_SNAPSHOT, PostgresSnapshot};
use crate::model::budget::QueryBudget;
use crate::persistence::store::{QuerySnapshot, QuerySource, SnapshotSource, StoreSnapshot};

impl SnapshotSource for PostgresStore {
    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        let lease = self.readers.begin(BEGIN_SNAPSHOT)?;
        Ok(Box::new(PostgresSnapshot::new(lease, self)?))
    }

    fn snapshot_for(&self, query: &QueryBudget) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        let lease = self.readers.begin_for(BEGIN_SNAPSHOT, Some(&query.cancel_flag()))?;
        Ok(Box::new(PostgresSnapshot::new(lease, self)?))
    }
}

impl QuerySource for PostgresStore {
    fn query_snapshot(
        &self,
        query: &QueryBudget,
    ) -> Result<Box<dyn QuerySnapshot + '_>, StoreError> {
        Ok(self.snapshot_for(query)?)
    }

    fn query_snapshot_at_once(
        &self,
        query: &QueryBudget,
    ) -> Result<Option<Box<dyn QuerySnapshot + '_>>, StoreError> {
        let flag = query.cancel_flag();
        let Some(lease) = self.readers.begin_at_once(BEGIN_SNAPSHOT, Some(&flag), self.limit)?
        else {
            return Ok(None);
        };
        Ok(Some(Box::new(PostgresSnapshot::new(lease, self)?)))
    }
}

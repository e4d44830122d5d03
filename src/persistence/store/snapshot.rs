//! What a snapshot of the store shows, by what it is read for.

use std::sync::Arc;

use super::{AuditEntry, ExpiryRow, ExpiryTarget, MetricInfo, NameRange, RollupQuery, StoreError};
use crate::model::flush::{
    AccountingDelta, DedupRules, DroppedEvents, FillProgress, QuarantineRow, RuleEvents, SeriesInfo,
};
use crate::model::generation::{GenerationId, Writer};
use crate::model::generation_book::GenerationBook;
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, Tier};
use crate::model::offset::{Checkpoint, Offset, OffsetRange, ShardId};
use crate::model::outcome::UncountedEvent;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::settled_document::SettledEvent;
use crate::model::window::{Hour, Millis};

/// Called with each rollup and its stored bytes.
pub type RollupBytesVisitor<'a> = &'a mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]);

/// The checkpoints of a snapshot. Whatever else is read of it is as of these.
///
/// Every method of a snapshot fails if the store does not answer, or if what it holds does not
/// decode.
pub trait CheckpointSnapshot {
    /// Checkpoints of all shards that were ever claimed.
    fn checkpoints(&mut self) -> Result<Vec<(ShardId, Checkpoint)>, StoreError>;
    /// The book of generations, which says what is served. Parsed once for each version.
    fn generation_book(&mut self) -> Result<Arc<GenerationBook>, StoreError>;
}

/// Called with each row of a generation: its writer, series and hour, and its stored bytes.
pub type GenerationRowVisitor<'a> =
    &'a mut dyn FnMut(Writer, &Arc<SeriesInfo>, Hour, Rollup, &[u8]) -> Result<(), StoreError>;

/// How far generations are, and what they hold.
pub trait GenerationSnapshot: CheckpointSnapshot {
    /// The version of the set that each shard has adopted, of all shards that were ever claimed.
    fn set_versions(&mut self) -> Result<Vec<(ShardId, u64)>, StoreError>;
    /// The shards that have a cut for the generation, and how far each is filled.
    fn fill_progress(
        &mut self,
        generation: GenerationId,
    ) -> Result<Vec<(ShardId, FillProgress)>, StoreError>;
    /// The cuts of one shard, by generation, and how far each is filled.
    fn shard_fills(
        &mut self,
        shard: ShardId,
    ) -> Result<Vec<(GenerationId, FillProgress)>, StoreError>;
    /// Every stored row of a metric in a generation, ascending by hour, series id and writer. Rows
    /// of generation 0 have the live writer of shard 0, whoever wrote them. `to` is exclusive.
    fn generation_rows(
        &mut self,
        generation: GenerationId,
        of: (&str, &str),
        hours: (Hour, Hour),
        visit: GenerationRowVisitor<'_>,
    ) -> Result<(), StoreError> {
        self.generation_rows_after(generation, of, hours, None, visit)
    }
    /// The same, but of the first hour only the series after this one: for a reader that has
    /// stopped within it.
    fn generation_rows_after(
        &mut self,
        generation: GenerationId,
        of: (&str, &str),
        hours: (Hour, Hour),
        after: Option<SeriesId>,
        visit: GenerationRowVisitor<'_>,
    ) -> Result<(), StoreError>;
    /// The series that a writer admitted, each with the offset of its first event.
    fn generation_admissions(
        &mut self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<(SeriesId, Offset)>, StoreError>;
    /// Events that the rules of a generation dropped, by writer, metric and day.
    fn dropped_events(
        &mut self,
        generation: GenerationId,
    ) -> Result<Vec<(Writer, DroppedEvents)>, StoreError>;
    /// What the rules of a generation did and could not do, summed over its writers: ascending by
    /// rule and outcome.
    fn rule_counts(&mut self, generation: GenerationId) -> Result<Vec<RuleEvents>, StoreError>;
    /// The last entries of a tenant in the audit list, newest first.
    fn audit_entries(&mut self, tenant: &str, limit: usize) -> Result<Vec<AuditEntry>, StoreError>;
}

/// What answers to queries are made of.
pub trait QuerySnapshot: CheckpointSnapshot {
    /// Revision of (tenant, metric, generation, UTC day) for each day of the half-open range; 0 where nothing
    /// was written. It is [`FlushGuard::revision`] of the last flush that wrote to the day, or
    /// [`revision_after_release`] after a release. A number never repeats for different rows, not
    /// even after a restore, so that caches may outlive the process.
    ///
    /// [`FlushGuard::revision`]: crate::model::flush::FlushGuard::revision
    /// [`revision_after_release`]: crate::model::flush::revision_after_release
    fn revisions(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
        days: std::ops::Range<i32>,
    ) -> Result<Vec<u64>, StoreError>;
    /// Visits the matching rollups. Those of one series come in ascending or in descending hours;
    /// no other order is promised.
    fn rollups(
        &mut self,
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError>;
    /// One page of the tenant's metrics in generation 0, ascending.
    fn metrics(
        &mut self,
        tenant: &str,
        page: &NameRange<'_>,
    ) -> Result<Vec<MetricInfo>, StoreError>;
    /// The tenant's metric as a generation besides generation 0 has it; `None` if it has no rows.
    fn generation_metric(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
    ) -> Result<Option<MetricInfo>, StoreError>;
    /// One page of the values of a label, ascending: of one metric, or of all, in generation 0,
    /// and of these metrics in these other generations.
    fn label_values(
        &mut self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        others: &[(&str, GenerationId)],
        page: &NameRange<'_>,
    ) -> Result<Vec<String>, StoreError>;
    /// Accounting rows of the tenant, by hour of receipt. `to` is exclusive.
    fn accounting(
        &mut self,
        tenant: &str,
        from: Hour,
        to: Hour,
    ) -> Result<Vec<AccountingDelta>, StoreError>;
}

/// What the archive holds, and what of it expires.
pub trait ArchiveSnapshot: CheckpointSnapshot {
    /// The manifest rows of one shard, or of all, by range.
    fn manifest(&mut self, shard: Option<ShardId>) -> Result<Vec<ManifestRow>, StoreError>;
    /// The oldest manifest rows of a shard, by range: of one tier, or of both. Append times never
    /// decrease, so the first by range are the oldest.
    fn manifest_first(
        &mut self,
        shard: ShardId,
        tier: Option<Tier>,
        limit: usize,
    ) -> Result<Vec<ManifestRow>, StoreError>;
    /// Append time of the shard's last archived record; none if nothing was archived yet.
    fn last_archived(&mut self, shard: ShardId) -> Result<Option<Millis>, StoreError>;
    /// The exclusive end of each object that begins at `from` or later, and when its last record
    /// was received, by range.
    fn receipts(
        &mut self,
        shard: ShardId,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<(Offset, Millis)>, StoreError>;
    /// The number of a shard's objects, and where the first begins.
    fn archive_extent(&mut self, shard: ShardId) -> Result<(u64, Option<Offset>), StoreError>;
    /// Archive floors of the shards that have expired objects.
    fn archive_floors(&mut self) -> Result<Vec<(ShardId, ArchiveFloor)>, StoreError>;
    /// The expiry note of one target, if it has one.
    fn expiry(&mut self, of: ExpiryTarget) -> Result<Option<ExpiryRow>, StoreError>;
    /// The expiry notes of all targets.
    fn expiries(&mut self) -> Result<Vec<(ExpiryTarget, ExpiryRow)>, StoreError>;
    /// What the shard decided about the records of a range: the series it admitted there, by offset
    /// and id, the events it quarantined, and all that it did not count. Archived with the records.
    fn decisions(
        &mut self,
        shard: ShardId,
        range: OffsetRange,
    ) -> Result<RangeDecisions, StoreError>;
}

/// What recomputing and repairing totals needs.
pub trait AuditSnapshot: CheckpointSnapshot {
    /// Every stored rollup in the range, all tenants, with its bytes (encoded figures, then
    /// sketches). Ascending by tenant, metric, hour and series id; `to` is exclusive.
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: RollupBytesVisitor<'_>,
    ) -> Result<(), StoreError>;
    /// The de-duplication rules of a shard, each with the offset from which on it applies.
    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError>;
    /// The series that a shard admitted, each with the offset of its first event.
    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError>;
    /// Accounting rows of all tenants, by tenant and hour.
    fn ledger(&mut self) -> Result<Vec<AccountingDelta>, StoreError>;
    /// The quarantined events of all tenants: those that wait, and those that were discarded.
    fn quarantine(&mut self) -> Result<Vec<QuarantineRow>, StoreError>;
    /// Where the quarantined events of a shard are, ascending: those that wait, and those that were
    /// discarded. Their records, which may be large, are not read.
    fn quarantined_events(&mut self, shard: ShardId) -> Result<Vec<UncountedEvent>, StoreError>;
    /// The events of a shard, as (offset, index), that were quarantined and then released, until
    /// their records expire. Older releases did not keep them: an event that was quarantined, and
    /// is in neither list, was released as well.
    fn released_events(&mut self, shard: ShardId) -> Result<Vec<(Offset, u32)>, StoreError>;
    /// The hour below which rollups of all generations are dropped by age; `None` if none ever
    /// were. What was written there since is a part of what the records give.
    fn retention_floor(&mut self) -> Result<Option<Hour>, StoreError>;
    /// The events of all shards that people have released or discarded and whose records have not
    /// expired, by shard and place.
    fn settled_events(&mut self) -> Result<Vec<(ShardId, SettledEvent)>, StoreError>;
}

/// One consistent view of everything in the store.
pub trait StoreSnapshot:
    QuerySnapshot + ArchiveSnapshot + AuditSnapshot + GenerationSnapshot
{
}

impl<T: QuerySnapshot + ArchiveSnapshot + AuditSnapshot + GenerationSnapshot> StoreSnapshot for T {}

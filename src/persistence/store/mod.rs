//! The port `RollupStore`: rollups, catalogue, checkpoints, manifest, accounting and quarantine,
//! all changed in the same transactions; split by capability.
//!
//! [`ShardStore`] is the shard owner's, [`ManifestStore`] the archiver's, [`QuarantineStore`] the
//! operator's, [`BoardStore`] the dashboard's, [`RebuildStore`] and [`StoreInspection`]
//! recompute's, [`QuerySource`] the query engine's. [`SnapshotSource`] is what they all read by,
//! [`RollupStore`] their sum.
//!
//! Implementations: [`sqlite`], [`postgres`] (TimescaleDB, or PostgreSQL without it) and [`memory`]
//! (the test double). All methods block.

mod abandon;
mod boards;
mod byte_columns;
mod check;
#[cfg(test)]
mod conformance;
mod error;
mod hour_sort;
mod matched_series;
pub mod memory;
pub mod postgres;
mod series_scope;
mod snapshot;
pub mod sqlite;
pub mod transfer;

pub use boards::BoardStore;
pub use error::{StoreError, random_nonce};
pub use series_scope::SeriesScope;
pub use snapshot::{
    ArchiveSnapshot, AuditSnapshot, CheckpointSnapshot, GenerationRowVisitor, GenerationSnapshot,
    QuerySnapshot, RollupBytesVisitor, StoreSnapshot,
};

use crate::model::budget::QueryBudget;
use crate::model::flush::{
    Claim, DedupBlock, DedupRule, FillGuard, FlushBatch, FlushGuard, GenerationDeltas, SeriesInfo,
    SetAdoption,
};
use crate::model::generation::{GenerationId, Writer};
use crate::model::generation_book::{GenerationBook, LeavingRange};
use crate::model::manifest::{ManifestRow, ShardRestore, Tier};
use crate::model::matcher::Matcher;
use crate::model::offset::{Epoch, LogId, Offset, ShardId};
use crate::model::release::ReleasedEvent;
use crate::model::series::{AdmittedSeries, SeriesId};
use crate::model::window::{Hour, Millis};

/// Which rollups a query reads.
#[derive(Debug, Clone)]
pub struct RollupQuery<'a> {
    /// The tenant of the API key.
    pub tenant: &'a str,
    /// The metric to read; a query reads one.
    pub metric: &'a str,
    /// The generation to read. Rows of several writers of one series are visited one by one.
    pub generation: GenerationId,
    /// A series must satisfy all of them.
    pub matchers: &'a [Matcher],
    /// First hour to read.
    pub from: Hour,
    /// Exclusive end of the hours.
    pub to: Hour,
    /// Whether to read the sketches of distinct users; they stay empty otherwise.
    pub distinct: bool,
    /// Whether to read the quantile sketches; they stay empty otherwise.
    pub quantiles: bool,
    /// Limit of matching series: with more, the result is [`StoreError::TooManySeries`]. At most
    /// one series beyond the limit is looked at.
    pub max_series: usize,
    /// The budget to charge. Once it is aborted, reading ends with [`StoreError::QueryEnded`].
    pub budget: Option<&'a QueryBudget>,
}

impl RollupQuery<'_> {
    /// Whether reading may continue.
    ///
    /// # Errors
    /// [`StoreError::QueryEnded`] if the query was aborted.
    pub fn check_budget(&self) -> Result<(), StoreError> {
        match self.budget.and_then(QueryBudget::abort_reason) {
            None => Ok(()),
            Some(_) => Err(StoreError::QueryEnded),
        }
    }

    /// Charges memory that the query holds until it ends.
    fn charge(&self, bytes: usize) {
        if let Some(budget) = self.budget {
            budget.charge(bytes);
        }
    }
}

/// One page of an ascending list of names.
#[derive(Debug, Clone, Copy)]
pub struct NameRange<'a> {
    /// Only names with this prefix.
    pub prefix: &'a str,
    /// Only names greater than this one, exclusive.
    pub after: &'a str,
    /// The page holds at most this many names.
    pub limit: usize,
    /// The budget of the query. Once it is aborted, reading ends with [`StoreError::QueryEnded`].
    pub budget: Option<&'a QueryBudget>,
}

impl NameRange<'_> {
    /// The whole list as one page.
    pub const ALL: NameRange<'static> =
        NameRange { prefix: "", after: "", limit: usize::MAX, budget: None };

    /// Bounds for a range scan: the prefix itself, and a string above all names that begin with it.
    fn bounds(&self) -> (&str, String) {
        (self.prefix, format!("{}{}", self.prefix, char::MAX))
    }

    /// Whether a name belongs to the page, its limit aside.
    pub fn contains(&self, name: &str) -> bool {
        name > self.after && name.starts_with(self.prefix)
    }

    /// The limit as an SQL parameter.
    fn rows(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX)
    }

    fn check_budget(&self) -> Result<(), StoreError> {
        match self.budget.and_then(QueryBudget::abort_reason) {
            None => Ok(()),
            Some(_) => Err(StoreError::QueryEnded),
        }
    }
}

/// A metric of a tenant.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricInfo {
    pub metric: String,
    /// Label names of its series, ascending.
    pub labels: Vec<String>,
    /// The number of series.
    pub series: u64,
    /// First hour with data.
    pub first: Option<Hour>,
    /// Last hour with data, inclusive.
    pub last: Option<Hour>,
}

/// Sizes of the store and of the archive, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreSizes {
    /// Size of the store: the file with its journal, or the tables. 0 if nothing is on disk, or if
    /// it was not measured yet.
    pub store: u64,
    /// Total size of the objects in the manifest.
    pub archive: u64,
}

/// A contradiction in the store, or a row whose checksum does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreDamage {
    /// The name of the table, or the file.
    pub location: String,
    /// For people: which row, and what is wrong with it.
    pub reason: String,
}

/// A unit that expiry is decided for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExpiryTarget {
    /// The weekly partitions of rollups, of all shards together.
    Weeks,
    /// The archive objects of one shard.
    Archive(ShardId),
}

impl ExpiryTarget {
    /// The key of the target in the expiry table: the shard's number, or -1.
    fn code(self) -> i32 {
        match self {
            ExpiryTarget::Archive(shard) => shard.0.cast_signed(),
            ExpiryTarget::Weeks => -1,
        }
    }

    fn from_code(number: i32) -> Self {
        if number == ExpiryTarget::Weeks.code() {
            ExpiryTarget::Weeks
        } else {
            ExpiryTarget::Archive(ShardId(number.cast_unsigned()))
        }
    }
}

/// The stored expiry state of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiryRow {
    /// An [`ExpiryState`](crate::model::expiry::ExpiryState) as JSON; the store
    /// compares it as text.
    pub note: String,
    /// How often an operator has approved.
    pub approvals: i64,
}

/// Size in bytes of the cache of matching series, unless the configuration sets another.
pub const DEFAULT_MATCH_CACHE: u64 = 32 << 20;

/// Opens snapshots for whatever is not a query.
pub trait SnapshotSource: Send + Sync + 'static {
    /// A snapshot as of now.
    ///
    /// # Errors
    /// If the store does not answer.
    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot + '_>, StoreError>;
    /// A snapshot for a request. Waiting for it, and every read of it, ends with
    /// [`StoreError::QueryEnded`] soon after the request has ended, even while the store does not
    /// answer.
    ///
    /// # Errors
    /// If the store does not answer, or the request has ended.
    fn snapshot_for(&self, query: &QueryBudget) -> Result<Box<dyn StoreSnapshot + '_>, StoreError>;
}

/// Opens snapshots for queries, which see nothing but what answers are made of.
pub trait QuerySource: Send + Sync + 'static {
    /// A snapshot for a query; it ends as [`SnapshotSource::snapshot_for`] does.
    ///
    /// # Errors
    /// If the store does not answer, or the query has ended.
    fn query_snapshot(
        &self,
        query: &QueryBudget,
    ) -> Result<Box<dyn QuerySnapshot + '_>, StoreError>;
    /// Another snapshot for the same query, to read in parallel; `None` if it would have to wait
    /// until another snapshot is closed.
    ///
    /// # Errors
    /// If the store does not answer, or the query has ended.
    fn query_snapshot_at_once(
        &self,
        query: &QueryBudget,
    ) -> Result<Option<Box<dyn QuerySnapshot + '_>>, StoreError>;
}

/// What the owner of a shard reads and writes.
pub trait ShardStore: SnapshotSource {
    /// Takes the shard over: mints an epoch from the next counter and the nonce, and counts an
    /// attempt. A shard without a checkpoint begins at offset 0 of `log`.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the checkpoint belongs to another log, or any failure to write.
    fn claim(&self, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError>;
    /// The blocks of ids appended at or after `since`, in log order.
    ///
    /// # Errors
    /// If the store does not answer, or a block does not decode.
    fn recent_ids(&self, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError>;
    /// Sets the de-duplication rule from an offset on, replacing those that begin there or later.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the epoch is not the owner's, or if records above the offset are
    /// committed that another rule has decided, unless there was no rule before.
    fn set_dedup_rule(
        &self,
        shard: ShardId,
        epoch: Epoch,
        from: Offset,
        rule: DedupRule,
    ) -> Result<(), StoreError>;
    /// Writes one flush in one transaction: compare-and-set on (log, `range.from`, epoch, set),
    /// then rows, catalogue, ids, accounting, quarantine, the note of what is not counted, revisions,
    /// and what the flush adds to generations. The checkpoint moves to `range.to`, the set to the one that is adopted;
    /// attempts and suspect are cleared. Blocks of ids appended before
    /// `forget_ids_before` are deleted. The book gives up what the flush abandons.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the compare-and-set fails, or if what it abandons is served by now, [`StoreError::Invalid`] if two series
    /// share an id, or any failure to write.
    fn flush(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Result<(), StoreError>;
    /// Records the event that is about to be applied alone, so that the next owner knows which one
    /// it was if this one dies of it.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the epoch is not the owner's, or any failure to write.
    fn mark_suspect(
        &self,
        shard: ShardId,
        epoch: Epoch,
        offset: Offset,
        index: u32,
    ) -> Result<(), StoreError>;
    /// The shard's admitted series by tenant, for the cardinality limit.
    ///
    /// # Errors
    /// If the store does not answer.
    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, AdmittedSeries)>, StoreError>;
    /// The ids of the series that a writer of a generation has admitted, for the cardinality limit.
    ///
    /// # Errors
    /// If the store does not answer.
    fn generation_series(
        &self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<SeriesId>, StoreError>;
    /// Tenant and name of every metric, for the limit of names.
    ///
    /// # Errors
    /// If the store does not answer.
    fn metric_names(&self) -> Result<Vec<(String, String)>, StoreError>;
}

/// The manifest of the archive, and the notes by which its objects expire.
pub trait ManifestStore: SnapshotSource {
    /// Inserts a manifest row: compare-and-set on (epoch of the owner, archived offset =
    /// `row.range.from`), which moves to `row.range.to`. Outcome notes that lie below that are
    /// deleted. The object itself may have been written by a former owner.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the compare-and-set fails, or any failure to write.
    fn insert_manifest_row(&self, owner: Epoch, row: &ManifestRow) -> Result<(), StoreError>;
    /// Sets the tier of a manifest row. `false` if the manifest no longer has a row of that path.
    ///
    /// # Errors
    /// Any failure to write.
    fn set_tier(&self, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError>;
    /// Removes the manifest row and raises the archive floor of its shard
    /// ([`ArchiveFloor::after_expiry`](crate::model::manifest::ArchiveFloor::after_expiry)).
    /// `false`, and nothing happens, if it is not the first row of its shard.
    ///
    /// # Errors
    /// Any failure to write.
    fn expire_object(&self, row: &ManifestRow) -> Result<bool, StoreError>;
    /// Replaces the expiry note `before` by `after`: compare-and-set on the text. `false`, and
    /// nothing happens, if another note is stored.
    ///
    /// # Errors
    /// Any failure to write.
    fn swap_expiry(
        &self,
        of: ExpiryTarget,
        before: Option<&str>,
        after: &str,
    ) -> Result<bool, StoreError>;
    /// Counts an operator's approval of what these targets have noted. Returns how many of them
    /// have a note. The end of `request` ends it as in [`QuarantineStore::settle_quarantine`].
    ///
    /// # Errors
    /// Any failure to write.
    fn approve_expiry(
        &self,
        of: &[ExpiryTarget],
        request: Option<&QueryBudget>,
    ) -> Result<u64, StoreError>;
}

/// Settles quarantined events.
pub trait QuarantineStore: SnapshotSource {
    /// Merges a quarantined event and marks its row as released, or as discarded if `release` is
    /// `None`. `false` if no such row waits. The row stays until the record of the event expires,
    /// for fills that come to it later.
    ///
    /// The transaction holds the shard's checkpoint and cursors, and compares them with the basis
    /// of the release, so that each generation counts the event once, whatever commits first.
    ///
    /// Even while the store does not answer, it fails soon after `request` has ended: with
    /// [`StoreError::QueryEnded`] if nothing was written, with [`StoreError::Unknown`] if the
    /// commit was under way.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if writers have moved since the basis was read,
    /// [`StoreError::Invalid`] if two series share an id, or any failure to write.
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        release: Option<&ReleasedEvent>,
        request: Option<&QueryBudget>,
    ) -> Result<bool, StoreError>;
}

/// Changes generations and fills them. What shards write to them is part of
/// [`ShardStore::flush`].
pub trait GenerationStore: SnapshotSource {
    /// Replaces the book of generations: compare-and-set on its version. `entry` joins the audit
    /// list in the same transaction. `false`, and nothing happens, if the stored book is not of
    /// version `before`.
    ///
    /// # Errors
    /// Any failure to write.
    fn swap_generations(
        &self,
        before: u64,
        book: &GenerationBook,
        entry: Option<&AuditEntry>,
    ) -> Result<bool, StoreError>;
    /// Merges archived records below the cut into the rows of the writer (shard, fill): compare-
    /// and-set on the cursor, which moves to `guard.range.to`.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the cursor is elsewhere, the range lies beyond the cut, other
    /// events of the range are released than the batch counts, or the shard does not write the
    /// generation any more; or any failure to write.
    fn fill(&self, guard: &FillGuard, batch: &GenerationDeltas) -> Result<(), StoreError>;
    /// Deletes at most `max` rows of days that leave, of whatever table: rollups, then the counts,
    /// the catalogue and the cursors that nothing needs any more. Returns how many; 0 if none are
    /// left. What another node deletes at the same time is no error.
    ///
    /// # Errors
    /// Any failure to write.
    fn delete_generation_rows(&self, of: &LeavingRange, max: usize) -> Result<u64, StoreError>;
}

/// An entry of the audit list of generations: what was done, by whom and when.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct AuditEntry {
    pub generation: GenerationId,
    pub tenant: String,
    /// `start`, `apply`, `undo`, `cancel` or `give_up`.
    pub action: String,
    /// By the wall clock.
    pub at: Millis,
    /// The id of a key, or a name of a local command.
    pub by: String,
    /// For people: rows changed, or why it was given up.
    pub note: String,
}

/// A store that is being rebuilt, which nothing else may use.
pub trait RebuildStore: ShardStore + QuarantineStore + GenerationStore {
    /// Writes what a rebuild knows of a shard besides its flushes, over what is stored. The
    /// checkpoint's `next` stays where flushes moved it.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the store is not being rebuilt, or any failure to write.
    fn restore(&self, shard: &ShardRestore) -> Result<(), StoreError>;
}

/// Looks at a store as a whole.
pub trait StoreInspection: SnapshotSource {
    /// Reports what contradicts itself: the file, the catalogue, checksums. `verify` recomputes the
    /// totals in addition. Reads everything.
    ///
    /// # Errors
    /// If the check cannot run. Damage is reported to `found` and is no error.
    fn check(&self, found: &mut dyn FnMut(StoreDamage)) -> Result<(), StoreError>;
    /// Sizes of store and archive, up to a minute old. Cheap enough to be called every few seconds.
    ///
    /// # Errors
    /// If the store does not answer.
    fn sizes(&self) -> Result<StoreSizes, StoreError>;
}

/// The whole port: for the composition root and the conformance suite. Everything else takes the
/// part that it uses.
pub trait RollupStore:
    ManifestStore + RebuildStore + StoreInspection + QuerySource + GenerationStore + BoardStore
{
}

impl<T> RollupStore for T where
    T: ManifestStore + RebuildStore + StoreInspection + QuerySource + GenerationStore + BoardStore
{
}

/// A rebuild overwrites what is stored, so it never runs on a store that others may be using.
fn not_being_rebuilt() -> StoreError {
    StoreError::Invalid("it is not being rebuilt: `rollmill rebuild` makes a store anew".to_owned())
}

/// Two series with one id: a hash collision, or a damaged catalogue.
fn collision(known: &SeriesInfo, new: &SeriesInfo) -> StoreError {
    StoreError::Invalid(format!(
        "series id {} already belongs to {:?}, so {:?} cannot be stored: rename a label of the \
         new series",
        known.id, known.series, new.series
    ))
}

fn other_log(shard: ShardId, expected: LogId, found: LogId) -> StoreError {
    StoreError::Invalid(format!(
        "the checkpoint of shard {shard} belongs to log {expected}, but the log is {found}: start \
         with the log of this store, or with an empty store"
    ))
}

/// The book of generations does not have the set that a shard has adopted.
pub(crate) fn unknown_set(shard: ShardId, version: u64) -> StoreError {
    StoreError::Invalid(format!(
        "shard {shard} writes under set {version} of generations, which the store does not have \
         any more: restore the store from a backup, or rebuild it from the archive"
    ))
}

/// A generation begins once in a shard: from then on there are rows behind its cursor.
pub(crate) fn begun_twice(shard: ShardId, generation: GenerationId) -> StoreError {
    StoreError::Invalid(format!(
        "shard {shard} begins replay {generation} a second time, and would count its events twice: \
         nothing was written. Cancel the replay and start it again"
    ))
}

/// Refuses a flush that adopts a set that the book does not have: the store was rolled back since
/// the owner of the shard heard of it.
pub(crate) fn check_adoption(
    book: &GenerationBook,
    shard: ShardId,
    adopts: Option<&SetAdoption>,
) -> Result<(), StoreError> {
    match adopts.is_none_or(|adopted| book.set(adopted.version).is_some()) {
        true => Ok(()),
        false => Err(StoreError::Refused { shard }),
    }
}

fn too_many_series(query: &RollupQuery<'_>) -> StoreError {
    StoreError::TooManySeries { metric: query.metric.to_owned(), max: query.max_series }
}

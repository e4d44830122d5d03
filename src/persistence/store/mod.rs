//! The port `RollupStore`: rollups, catalogue, checkpoints, manifest, accounting and quarantine,
//! all changed in the same transactions; split by capability.
//!
//! [`ShardStore`] is the shard owner's, [`ManifestStore`] the archiver's, [`QuarantineStore`] the
//! operator's, [`RebuildStore`] and [`StoreInspection`] recompute's, [`QuerySource`] the query
//! engine's. [`SnapshotSource`] is what they all read by, [`RollupStore`] their sum.
//!
//! Implementations: [`sqlite`], [`postgres`] (TimescaleDB, or PostgreSQL without it) and [`memory`]
//! (the test double). All methods block.

mod byte_columns;
mod check;
#[cfg(test)]
mod conformance;
mod matched_series;
pub mod memory;
pub mod postgres;
mod snapshot;
pub mod sqlite;
pub mod transfer;

pub use snapshot::{
    ArchiveSnapshot, AuditSnapshot, CheckpointSnapshot, QuerySnapshot, RollupBytesVisitor,
    StoreSnapshot,
};

use crate::model::budget::QueryBudget;
use crate::model::flush::{Claim, DedupBlock, DedupRule, FlushBatch, FlushGuard, SeriesInfo};
use crate::model::manifest::{ManifestRow, ShardRestore, Tier};
use crate::model::matcher::Matcher;
use crate::model::offset::{Epoch, LogId, Offset, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};

/// Why a call to the store failed. Callers first ask [`StoreError::outcome_unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The compare-and-set matched no row: another owner has the shard. Nothing was written.
    #[error("refused: shard {shard} is not at the expected checkpoint and epoch any more")]
    Refused {
        /// The shard that the caller no longer owns.
        shard: ShardId,
    },
    /// Certainly not applied. A retry may succeed.
    #[error("the store failed, nothing was written: {0}")]
    Failed(String),
    /// Certainly not applied: the server is unreachable, or reports that it cannot serve
    /// now. Recovers without intervention.
    #[error("the store is away, nothing was written: {0}")]
    Unavailable(String),
    /// Certainly not applied: the statement exceeded its time limit. The server is up, and the same
    /// statement would exceed it again.
    #[error("it takes longer than it may, nothing was written: {0}")]
    TooLong(String),
    /// The transaction may or may not have been applied.
    #[error("the outcome of the transaction is unknown: {0}")]
    Unknown(String),
    /// What is stored contradicts itself or this build. The message names it and says what to do.
    #[error("the store is unusable: {0}")]
    Invalid(String),
    /// More series match than one query may read.
    #[error(
        "more than {max} series of metric {metric} match, the limit query.max_series: add label \
         matchers or raise the limit"
    )]
    TooManySeries {
        /// The metric of the query.
        metric: String,
        /// The limit that applies, `query.max_series`.
        max: usize,
    },
    /// The query was aborted while it was being read; its [`QueryBudget`] says why.
    #[error("the query has ended")]
    QueryEnded,
}

impl StoreError {
    /// Whether the transaction may have been applied. The shard then discards its state in memory
    /// and reloads from the checkpoint.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, StoreError::Unknown(_))
    }
}

/// Which rollups a query reads.
#[derive(Debug, Clone)]
pub struct RollupQuery<'a> {
    /// The tenant of the API key.
    pub tenant: &'a str,
    /// The metric to read; a query reads one.
    pub metric: &'a str,
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
    /// Writes one flush in one transaction: compare-and-set on (log, `range.from`, epoch), then
    /// rows, catalogue, ids, accounting, quarantine, the note of what is not counted, and revisions.
    /// The checkpoint moves to `range.to`; attempts and suspect are cleared. Blocks of ids appended before
    /// `forget_ids_before` are deleted.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the compare-and-set fails, [`StoreError::Invalid`] if two series
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
    /// The ids of the shard's admitted series by tenant, for the cardinality limit.
    ///
    /// # Errors
    /// If the store does not answer.
    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, Vec<SeriesId>)>, StoreError>;
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
    /// Merges the delta of a quarantined event and deletes its row, or marks the row as discarded
    /// if `delta` is `None`. `false` if no such row waits.
    ///
    /// Even while the store does not answer, it fails soon after `request` has ended: with
    /// [`StoreError::QueryEnded`] if nothing was written, with [`StoreError::Unknown`] if the
    /// commit was under way.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if two series share an id, or any failure to write.
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        delta: Option<&FlushBatch>,
        request: Option<&QueryBudget>,
    ) -> Result<bool, StoreError>;
}

/// A store that is being rebuilt, which nothing else may use.
pub trait RebuildStore: ShardStore + QuarantineStore {
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
pub trait RollupStore: ManifestStore + RebuildStore + StoreInspection + QuerySource {}

impl<T: ManifestStore + RebuildStore + StoreInspection + QuerySource> RollupStore for T {}

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

fn too_many_series(query: &RollupQuery<'_>) -> StoreError {
    StoreError::TooManySeries { metric: query.metric.to_owned(), max: query.max_series }
}

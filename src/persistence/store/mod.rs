//! The port `RollupStore`: rollups, catalogue, checkpoints, manifest, accounting and quarantine,
//! all changed in the same transactions.
//!
//! Implementations: [`sqlite`], [`postgres`] (TimescaleDB, or PostgreSQL without it) and [`memory`]
//! (the test double). All methods block.

mod blocks;
mod check;
#[cfg(test)]
mod conformance;
mod matched_series;
pub mod memory;
pub mod postgres;
pub mod sqlite;
pub mod transfer;

use std::sync::Arc;

use crate::model::budget::QueryBudget;
use crate::model::flush::{
    AccountingDelta, Claim, DedupBlock, DedupRule, DedupRules, FlushBatch, FlushGuard,
    QuarantineRow, SeriesInfo,
};
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, ShardRestore, Tier};
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::rollup::Rollup;
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

/// Called with each rollup and its stored bytes.
pub type RollupBytesVisitor<'a> = &'a mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]);

/// Size in bytes of the cache of matching series, unless the configuration sets another.
pub const DEFAULT_MATCH_CACHE: u64 = 32 << 20;

/// One consistent view of everything in the store.
pub trait StoreSnapshot {
    /// Checkpoints of all shards that were ever claimed.
    fn checkpoints(&mut self) -> Result<Vec<(ShardId, Checkpoint)>, StoreError>;
    /// Revision of (tenant, metric, UTC day) for each day of the half-open range of days; 0 where
    /// nothing was written. It is [`FlushGuard::revision`] of the last flush that wrote to the
    /// day, or [`revision_after_release`](crate::model::flush::revision_after_release) after a release: no
    /// number comes twice with other rows, also not after a restore, so that caches outlive the
    /// process.
    fn revisions(
        &mut self,
        tenant: &str,
        metric: &str,
        days: std::ops::Range<i32>,
    ) -> Result<Vec<u64>, StoreError>;
    /// Visits the matching rollups, of one series in ascending hours or the other way round, in no
    /// other promised order.
    fn rollups(
        &mut self,
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError>;
    /// The stored bytes of every rollup of the shard count's every tenant in the hours, for
    /// `verify`: tenant, metric, hour, series id, encoded figures and sketches, ascending.
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: RollupBytesVisitor<'_>,
    ) -> Result<(), StoreError>;
    /// The rules of de-duplication of a shard.
    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError>;
    /// The series admitted by a shard, each with the offset from which on it is.
    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError>;
    /// What the shard decided about the records of a range: the series that it admitted there, by
    /// offset and id, and the events that are set aside.
    fn decisions(
        &mut self,
        shard: ShardId,
        range: OffsetRange,
    ) -> Result<RangeDecisions, StoreError>;
    /// The tenant's metrics of the page, ascending.
    fn metrics(
        &mut self,
        tenant: &str,
        page: &NameRange<'_>,
    ) -> Result<Vec<MetricInfo>, StoreError>;
    /// Values of a label of the page, of one metric or of all, ascending.
    fn label_values(
        &mut self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        page: &NameRange<'_>,
    ) -> Result<Vec<String>, StoreError>;
    /// Accounting rows of the tenant in the hours of receipt.
    fn accounting(
        &mut self,
        tenant: &str,
        from: Hour,
        to: Hour,
    ) -> Result<Vec<AccountingDelta>, StoreError>;
    /// Accounting rows of all tenants, by tenant and hour.
    fn books(&mut self) -> Result<Vec<AccountingDelta>, StoreError>;
    /// The manifest rows of one shard, or of all, by range.
    fn manifest(&mut self, shard: Option<ShardId>) -> Result<Vec<ManifestRow>, StoreError>;
    /// The first manifest rows of a shard, by range: of one tier, or of both. Append times never
    /// decrease, so they are the oldest.
    fn manifest_first(
        &mut self,
        shard: ShardId,
        tier: Option<Tier>,
        limit: usize,
    ) -> Result<Vec<ManifestRow>, StoreError>;
    /// Append time of the last record that was archived of a shard; none if none was.
    fn last_archived(&mut self, shard: ShardId) -> Result<Option<Millis>, StoreError>;
    /// Where the objects of a shard end and when the last record of each was received, by range, of
    /// those that begin at `from` or behind.
    fn receipts(
        &mut self,
        shard: ShardId,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<(Offset, Millis)>, StoreError>;
    /// How many objects a shard has, and where the first begins.
    fn extent_of_archive(&mut self, shard: ShardId) -> Result<(u64, Option<Offset>), StoreError>;
    /// What is noted of expiry.
    fn expiry(&mut self, of: ExpiryTarget) -> Result<Option<ExpiryRow>, StoreError>;
    /// Everything that is noted of expiry.
    fn expiries(&mut self) -> Result<Vec<(ExpiryTarget, ExpiryRow)>, StoreError>;
    /// Where the archives of those shards begin of which something expired.
    fn archive_floors(&mut self) -> Result<Vec<(ShardId, ArchiveFloor)>, StoreError>;
    /// Quarantined events.
    fn quarantine(&mut self) -> Result<Vec<QuarantineRow>, StoreError>;
}

/// Rollups, catalogue, checkpoints, manifest, accounting and quarantine.
pub trait RollupStore: Send + Sync + 'static {
    /// Takes the shard: mints an epoch of the next counter and the given nonce and counts an
    /// attempt. A shard without a checkpoint begins at offset 0 of `log`.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the checkpoint speaks of another log.
    fn claim(&self, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError>;
    /// The blocks of ids appended at or after `since`, in log order.
    fn recent_ids(&self, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError>;
    /// Notes the rule of de-duplication from an offset on, instead of those from there on.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the epoch is not the owner's, or records above the offset are
    /// committed that another rule has decided, unless no rule was noted before.
    fn note_dedup_rule(
        &self,
        shard: ShardId,
        epoch: Epoch,
        from: Offset,
        rule: DedupRule,
    ) -> Result<(), StoreError>;
    /// Writes one flush: compare-and-set on (log, `range.from`, epoch) first, then rows, catalogue,
    /// ids, accounting, quarantine, revisions; the checkpoint moves to `range.to`, attempts and
    /// suspect are cleared. Blocks of ids appended before `forget_ids_before` are deleted.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn flush(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Result<(), StoreError>;
    /// Notes the event about to be applied alone, so that the next start knows it.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn mark_suspect(
        &self,
        shard: ShardId,
        epoch: Epoch,
        offset: Offset,
        index: u32,
    ) -> Result<(), StoreError>;
    /// Inserts a manifest row: compare-and-set on (epoch of the owner, archived offset =
    /// `row.range.from`), which moves to `row.range.to`. The object itself may be a former
    /// owner's.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn archived(&self, owner: Epoch, row: &ManifestRow) -> Result<(), StoreError>;
    /// Notes that the object of a manifest row is in this tier from now on. `false` if the manifest
    /// has no row of its path any more.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn moved(&self, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError>;
    /// Removes the manifest row and raises the archive floor of its shard
    /// ([`ArchiveFloor::after_expiry`]). `false`, and nothing happens, if it is not the first row of
    /// its shard.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn expired(&self, row: &ManifestRow) -> Result<bool, StoreError>;
    /// Notes `after` in the place of `before`: compare-and-set on the text. `false`, and nothing
    /// happens, if another note stands there.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn swap_expiry(
        &self,
        of: ExpiryTarget,
        before: Option<&str>,
        after: &str,
    ) -> Result<bool, StoreError>;
    /// A person says yes to what is noted of these; how many there are.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn say_yes(&self, of: &[ExpiryTarget]) -> Result<u64, StoreError>;
    /// Merges a quarantined event's delta and deletes its row, or marks the row as discarded if
    /// `delta` is `None`. `false` if no such row waits.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        delta: Option<&FlushBatch>,
    ) -> Result<bool, StoreError>;
    /// One consistent view.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot + '_>, StoreError>;
    /// A view for a query: waiting for it, and whatever is read in it, ends with
    /// [`StoreError::QueryEnded`] soon after the query has ended, also while the store does not
    /// answer.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn snapshot_for(&self, query: &QueryBudget) -> Result<Box<dyn StoreSnapshot + '_>, StoreError>;
    /// A further view for a query, if one can be had without waiting until another ends.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn snapshot_at_once(
        &self,
        query: &QueryBudget,
    ) -> Result<Option<Box<dyn StoreSnapshot + '_>>, StoreError>;
    /// Writes what a rebuild knows of a shard beside its flushes, over what is there; the
    /// checkpoint's `next` stays where flushes moved it. Only of a store that is being rebuilt,
    /// which nothing else may use.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the store is not being rebuilt.
    fn restore(&self, shard: &ShardRestore) -> Result<(), StoreError>;
    /// Looks for what contradicts itself, beside what `verify` recomputes: the file, the catalogue,
    /// checksums. Reads everything.
    ///
    /// # Errors
    /// If it cannot look at all; what is damaged is found, and no error.
    fn check(&self, found: &mut dyn FnMut(StoreDamage)) -> Result<(), StoreError>;
    /// How large the store and the archive are, perhaps a minute ago. Cheap enough to be asked
    /// every few seconds.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn sizes(&self) -> Result<StoreSizes, StoreError>;
    /// The ids of the shard's admitted series by tenant, for the cardinality limit.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, Vec<SeriesId>)>, StoreError>;
    /// Tenant and name of every metric, for the limit of names.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn metric_names(&self) -> Result<Vec<(String, String)>, StoreError>;
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

fn too_many_series(query: &RollupQuery<'_>) -> StoreError {
    StoreError::TooManySeries { metric: query.metric.to_owned(), max: query.max_series }
}

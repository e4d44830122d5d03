//! The port `RollupStore`: rollups, catalogue, checkpoints, manifest, accounting and quarantine,
//! moved in one transaction.
//!
//! Implementations: [`sqlite`], [`postgres`] (TimescaleDB, or PostgreSQL without it), [`memory`]
//! (the double). All methods block.

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

/// Why the store failed. Ask one question of it: [`StoreError::outcome_unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The compare-and-set touched no row: the shard is someone else's. Nothing was written.
    #[error("refused: shard {shard} is not at the expected checkpoint and epoch any more")]
    Refused {
        /// The shard.
        shard: ShardId,
    },
    /// Certainly not applied; may work later.
    #[error("the store failed, nothing was written: {0}")]
    Failed(String),
    /// Certainly not applied: nobody answers, or the server says that it cannot now. Works again by
    /// itself.
    #[error("the store is away, nothing was written: {0}")]
    Unavailable(String),
    /// Certainly not applied: it takes longer than it may. The store is there; the same question
    /// has the same answer later.
    #[error("it takes longer than it may, nothing was written: {0}")]
    TooLong(String),
    /// May have been applied.
    #[error("the outcome of the transaction is unknown: {0}")]
    Unknown(String),
    /// What is stored contradicts itself or this build; names the thing and the way out.
    #[error("the store is unusable: {0}")]
    Invalid(String),
    /// More series match than a query may read.
    #[error(
        "more than {max} series of metric {metric} match, the limit query.max_series: add label \
         matchers or raise the limit"
    )]
    TooManySeries {
        /// Of which metric.
        metric: String,
        /// The limit.
        max: usize,
    },
    /// The query that was being read for has ended: its [`QueryBudget`] says why.
    #[error("the query has ended")]
    QueryEnded,
}

impl StoreError {
    /// Whether the transaction may have been applied. The shard then forgets its memory and reloads
    /// the checkpoint.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, StoreError::Unknown(_))
    }
}

/// What a query reads of the rollups.
#[derive(Debug, Clone)]
pub struct RollupQuery<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// Which metric.
    pub metric: &'a str,
    /// All must match.
    pub matchers: &'a [Matcher],
    /// First hour.
    pub from: Hour,
    /// First hour behind.
    pub to: Hour,
    /// Whether distinct users are wanted; otherwise the sketch is left empty.
    pub distinct: bool,
    /// Whether quantiles are wanted; otherwise the sketch is left empty.
    pub quantiles: bool,
    /// More matching series than this is [`StoreError::TooManySeries`]; no more than one beyond it
    /// are looked at.
    pub max_series: usize,
    /// What the query may cost; once it has ended, reading ends with [`StoreError::QueryEnded`].
    pub budget: Option<&'a QueryBudget>,
}

impl RollupQuery<'_> {
    /// Whether reading may go on.
    ///
    /// # Errors
    /// [`StoreError::QueryEnded`].
    pub fn check_budget(&self) -> Result<(), StoreError> {
        match self.budget.and_then(QueryBudget::abort_reason) {
            None => Ok(()),
            Some(_) => Err(StoreError::QueryEnded),
        }
    }

    /// Charges memory that is held until the query ends.
    fn charge(&self, bytes: usize) {
        if let Some(budget) = self.budget {
            budget.charge(bytes);
        }
    }
}

/// A part of an ascending list of names.
#[derive(Debug, Clone, Copy)]
pub struct NameRange<'a> {
    /// They begin with this.
    pub prefix: &'a str,
    /// They come after this one.
    pub after: &'a str,
    /// At most so many.
    pub limit: usize,
    /// What the query may cost; once it has ended, reading ends with [`StoreError::QueryEnded`].
    pub budget: Option<&'a QueryBudget>,
}

impl NameRange<'_> {
    /// Everything.
    pub const ALL: NameRange<'static> =
        NameRange { prefix: "", after: "", limit: usize::MAX, budget: None };

    /// The first name that may be of the page, and one behind all that begin with its prefix.
    fn bounds(&self) -> (&str, String) {
        (self.prefix, format!("{}{}", self.prefix, char::MAX))
    }

    /// Whether a name is of the page, but for its limit.
    pub fn contains(&self, name: &str) -> bool {
        name > self.after && name.starts_with(self.prefix)
    }

    /// The limit as a number of rows.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricInfo {
    /// Its name.
    pub metric: String,
    /// The label names of its series, ascending.
    pub labels: Vec<String>,
    /// Number of series.
    pub series: u64,
    /// First window with data.
    pub first: Option<Hour>,
    /// Last window with data.
    pub last: Option<Hour>,
}

/// How large things are, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreSizes {
    /// The store: the file with its journal, or the tables; 0 if nothing of it is on disk, or it
    /// was not measured yet.
    pub store: u64,
    /// The objects that the manifest lists.
    pub archive: u64,
}

/// Something in the store that contradicts the rest of it, or its own checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreDamage {
    /// The table, or the file.
    pub location: String,
    /// What is wrong there.
    pub reason: String,
}

/// What expires as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExpiryTarget {
    /// The weeks of rollups, of all shards.
    Weeks,
    /// The archive objects of a shard.
    Archive(ShardId),
}

impl ExpiryTarget {
    /// Its number in the tables.
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

/// What is noted of expiry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiryRow {
    /// The note ([`crate::model::expiry::ExpiryState`]), as text.
    pub note: String,
    /// How often a person has said yes.
    pub approvals: i64,
}

/// Shown each rollup with its stored bytes.
pub type RollupBytesVisitor<'a> = &'a mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]);

/// Memory for the series that queries match, unless the configuration says otherwise.
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

/// A rebuild writes over what is there: never into a store that others may use.
fn not_being_rebuilt() -> StoreError {
    StoreError::Invalid("it is not being rebuilt: `rollmill rebuild` makes a store anew".to_owned())
}

/// Two series of one id: a hash collision, or a damaged catalogue.
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

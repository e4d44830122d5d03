//! Recomputes rollups from the archive and the log with the shards' own code, and compares them
//! byte by byte with the store.
//!
//! It is the oracle of promise 6 and of the tests. One snapshot of the store says up to which
//! offset, which series were admitted when, and which events were set aside; nothing written later
//! matters, so it may run beside a working server. What always holds: it starts where no event id
//! from before can matter any more (a gap in the append times longer than the de-duplication
//! horizon, or the beginning), because a chain of repeated ids reaches back further than one
//! horizon. A shard that cannot be read does not end it: the others are verified, and it is named.
//! What the store holds beside rollups is compared too ([`ledger`]): the accounting with what the
//! fold counts, and by [`RollupStore::check`] the catalogue, counts and checksums.
//! Below the archive floor records have expired: windows that they touched, and those touched
//! within one horizon behind them, where an id may repeat one that is gone, are not verifiable, and
//! are reported so.

mod ledger;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use super::fold::{self, FoldRules};
use crate::model::flush::{
    AccountingDelta, Claim, DedupRules, LogRecord, QuarantineRow, RecentIds, SeriesInfo,
    SuspectEvent,
};
use crate::model::manifest::{self, ArchiveFloor, ManifestRow};
use crate::model::offset::{Checkpoint, Offset, ShardId};
use crate::model::rollup::{Rollup, RollupFigures};
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::log::{LogError, LogReader};
use crate::persistence::store::{MetricInfo, NameRange, RollupStore, StoreDamage, StoreError};
use crate::shards::driver::ShardDriver;
use crate::shards::series::SeriesAdmission;
use crate::shards::state::{ShardLimits, ShardState};

/// Payload bytes read from the log at once.
const READ_BYTES: usize = 4 << 20;

/// Why nothing could be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An archive object is gone or damaged.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The log was released meanwhile, or an object expired: a new attempt finds the records in the
    /// archive, or a higher floor.
    #[error("the log was released, or archive objects expired, while they were being read")]
    Released,
    /// The log.
    #[error("{0}")]
    Log(String),
    /// Archive and log do not hold every record below the checkpoint.
    #[error("shard {shard} cannot be verified: {why}")]
    Incomplete {
        /// The shard.
        shard: ShardId,
        /// What is missing.
        why: String,
    },
}

impl VerifyError {
    /// Whether the other shards can be verified all the same.
    fn is_shard_error(&self) -> bool {
        match self {
            VerifyError::Incomplete { .. } => true,
            VerifyError::Archive(error) => {
                matches!(error, ArchiveError::Corrupt { .. } | ArchiveError::Missing(_))
            }
            VerifyError::Store(_) | VerifyError::Released | VerifyError::Log(_) => false,
        }
    }
}

/// What is read.
pub struct VerifySources<'a> {
    /// The totals.
    pub store: &'a dyn RollupStore,
    /// The records below the archived offsets.
    pub archive: &'a dyn Archive,
    /// Opens the log as it is now: called after the snapshot was taken, so that everything below
    /// its checkpoints is in it.
    pub open_log: &'a dyn Fn() -> Result<Arc<dyn LogReader>, String>,
    /// `dedup.horizon` in milliseconds, as the server has it: for shards whose store has noted no
    /// rule yet.
    pub dedup_horizon_ms: i64,
    /// `dedup.max_ids`, likewise.
    pub dedup_max_ids: usize,
    /// This shard and no other.
    pub only: Option<ShardId>,
}

/// A row that is not what the records say.
#[derive(Debug, Clone)]
pub struct RowDifference {
    /// Its series.
    pub series: Arc<SeriesInfo>,
    /// Its window.
    pub hour: Hour,
    /// What the store has.
    pub stored: Option<RollupFigures>,
    /// What the records give. Equal to `stored` if only sketches differ.
    pub recomputed: Option<RollupFigures>,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Rows of the store in the range.
    pub rows: u64,
    /// Records folded.
    pub records: u64,
    /// Shards with a checkpoint.
    pub shards: u64,
    /// The rows that differ, by shard.
    pub differences: Vec<RowDifference>,
    /// The windows of the range that lie below the archive floor.
    pub unverifiable: Option<UnverifiableWindows>,
    /// Shards whose records could not all be read, with the reason: their rows were not compared,
    /// nor were overflow series, which shards share.
    pub unverified: Vec<(ShardId, String)>,
    /// Events, and whole records, that are set aside: they are in no row, and recomputing leaves
    /// them out, too.
    pub quarantined: u64,
    /// What the store contradicts itself in, or the records in other things than rollups.
    pub damages: Vec<StoreDamage>,
    /// Whether the accounting could be compared: all records of all shards were folded.
    pub accounting_compared: bool,
}

impl VerifyReport {
    fn is_verified(&self, shard: ShardId) -> bool {
        self.unverified.iter().all(|(unverified, _)| *unverified != shard)
    }

    /// Whether every row that was asked for equals its records, and the rest of the store holds
    /// together.
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty() && self.damages.is_empty() && self.unverified.is_empty()
    }

    /// Whether there are rows, and not one of them could be compared.
    pub fn compared_nothing(&self) -> bool {
        self.rows == 0 && self.unverifiable.is_some_and(|not| not.rows > 0)
    }
}

/// Windows whose records have expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnverifiableWindows {
    /// The first window that was verified.
    pub before: Hour,
    /// Rows of the store in the windows before.
    pub rows: u64,
}

struct StoredRow {
    info: Arc<SeriesInfo>,
    figures: RollupFigures,
    digest: u128,
}

/// Everything of one snapshot that counts.
struct StoreView {
    checkpoints: Vec<(ShardId, Checkpoint)>,
    manifest: Vec<ManifestRow>,
    floors: HashMap<ShardId, ArchiveFloor>,
    quarantine: Vec<QuarantineRow>,
    admissions: Vec<Vec<(SeriesId, Offset)>>,
    rules: Vec<DedupRules>,
    rows: HashMap<(SeriesId, Hour), StoredRow>,
    accounting: Vec<AccountingDelta>,
    metrics: Vec<(String, MetricInfo)>,
    damages: Vec<StoreDamage>,
    /// Nothing can be said of rows that could not be read.
    rows_unread: bool,
}

/// Verifies the windows of the range. `progress` is told how many of how many shards are done.
///
/// # Errors
/// See [`VerifyError`]; after [`VerifyError::Released`] another attempt is worth it.
pub fn verify(
    sources: &VerifySources<'_>,
    hours: Range<Hour>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, VerifyError> {
    let mut damages = Vec::new();
    sources.store.check(&mut |damage| damages.push(damage))?;
    let mut stand = match store_view(sources.store, &hours) {
        // Nothing can be compared, but what is damaged has been found.
        Err(why @ (StoreError::Failed(_) | StoreError::Invalid(_))) => {
            damages.push(StoreDamage { location: "the store".to_owned(), reason: why.to_string() });
            return Ok(VerifyReport { damages, ..VerifyReport::default() });
        }
        stand => stand?,
    };
    let log = (sources.open_log)().map_err(VerifyError::Log)?;
    let shard_count = log.shard_count();
    let asked: Vec<(usize, ShardId, Checkpoint)> = (0..)
        .zip(&stand.checkpoints)
        .map(|(at, (shard, checkpoint))| (at, *shard, *checkpoint))
        .filter(|(_, shard, _)| sources.only.is_none_or(|only| only == *shard))
        .collect();
    let shards = asked.len() as u64;
    // As far back as any rule may have looked.
    let longest = stand
        .rules
        .iter()
        .filter_map(DedupRules::longest_horizon_ms)
        .fold(sources.dedup_horizon_ms, i64::max);
    let (hours, not_verifiable) = stand.above_floors(hours, log.as_ref(), longest)?;
    let set_aside = stand
        .quarantine
        .iter()
        .filter(|row| sources.only.is_none_or(|only| only == row.shard))
        .count() as u64;
    damages.append(&mut stand.damages);
    let mut report = VerifyReport {
        shards,
        unverifiable: not_verifiable,
        quarantined: set_aside,
        damages,
        ..VerifyReport::default()
    };
    let mut missing = std::mem::take(&mut stand.rows);
    let mut books = ledger::RecomputedLedger::default();
    // Several shards may write to one overflow series: those rows are compared when all shards are
    // folded.
    let mut shared = RecomputedRows::default();
    for (done, (at, shard, checkpoint)) in (1..).zip(&asked) {
        let of_shard = |row: &&QuarantineRow| row.shard == *shard;
        let suspects = stand
            .quarantine
            .iter()
            .filter(of_shard)
            .map(|row| SuspectEvent::quarantined(row.offset, row.index))
            .collect();
        let decided = (stand.admissions[*at].clone(), stand.rules[*at].clone());
        let mut fold = ShardFold::new(
            sources,
            *shard,
            checkpoint,
            suspects,
            decided,
            hours.clone(),
            shard_count,
        );
        let rows: Vec<&ManifestRow> =
            stand.manifest.iter().filter(|row| row.shard == *shard).collect();
        let floor = stand.floors.get(shard);
        match fold.run(sources, log.as_ref(), floor, &rows) {
            Ok(()) => {}
            Err(why) if why.is_shard_error() => {
                report.unverified.push((*shard, why.to_string()));
                books.add(false, &[]);
                progress(done, shards);
                continue;
            }
            Err(why) => return Err(why),
        }
        report.rows += missing
            .values()
            .filter(|row| {
                !row.info.series.is_overflow() && row.info.id.shard(shard_count) == *shard
            })
            .count() as u64;
        report.records += fold.records;
        books.add(fold.from_start && sources.only.is_none(), &fold.accounting);
        for (key, (info, rollup)) in fold.rows {
            if info.series.is_overflow() {
                shared.entry(key).or_insert_with(|| (info, Rollup::default())).1.merge(&rollup);
            } else {
                report.differences.extend(compare(missing.remove(&key), info, key.1, &rollup));
            }
        }
        progress(done, shards);
    }
    let all = sources.only.is_none() && report.unverified.is_empty();
    let left_out = |row: &StoredRow| match row.info.series.is_overflow() {
        true => !all,
        false => !asked.iter().any(|(_, shard, _)| {
            *shard == row.info.id.shard(shard_count) && report.is_verified(*shard)
        }),
    };
    missing.retain(|_, row| !left_out(row));
    if !all {
        shared.clear();
    }
    report.rows += missing.values().filter(|row| row.info.series.is_overflow()).count() as u64;
    for (key, (info, rollup)) in shared {
        report.differences.extend(compare(missing.remove(&key), info, key.1, &rollup));
    }
    let extra = missing.into_iter().map(|((_, hour), row)| RowDifference {
        series: row.info,
        hour,
        stored: Some(row.figures),
        recomputed: None,
    });
    report.differences.extend(extra);
    if stand.rows_unread {
        report.differences.clear();
    }
    report.accounting_compared = books.is_whole();
    report.damages.extend(books.compare(&stand.accounting));
    report.differences.sort_by(|a, b| (&a.series.series, a.hour).cmp(&(&b.series.series, b.hour)));
    Ok(report)
}

impl StoreView {
    /// Metrics of which the catalogue says that there are rollups, and there are none: those of the
    /// last window are missing. Old windows may have been dropped, so a metric that is older
    /// than everything that is there says nothing, unless there is nothing at all.
    fn missing_metrics(&self, hours: &Range<Hour>) -> Vec<StoreDamage> {
        let oldest = self.rows.keys().map(|(_, hour)| *hour).min();
        let there: HashSet<(&str, &str, Hour)> = self
            .rows
            .values()
            .zip(self.rows.keys())
            .map(|(row, (_, hour))| (&*row.info.series.tenant, &*row.info.series.metric, *hour))
            .collect();
        let lacks = |(tenant, metric): &&(String, MetricInfo)| {
            let Some(last) = metric.last.filter(|last| hours.contains(last)) else { return false };
            oldest.is_none_or(|oldest| last >= oldest)
                && !there.contains(&(&**tenant, &*metric.metric, last))
        };
        let damage = |(tenant, metric): &(String, MetricInfo)| StoreDamage {
            location: "rollups".to_owned(),
            reason: format!(
                "{tenant}/{}: the catalogue says that there are some, of its last window at \
                 least, and there are none",
                metric.metric
            ),
        };
        self.metrics.iter().filter(lacks).map(damage).collect()
    }

    /// The part of the range that can be recomputed, to which the rows are cut, and what is below.
    fn above_floors(
        &mut self,
        hours: Range<Hour>,
        log: &dyn LogReader,
        horizon_ms: i64,
    ) -> Result<(Range<Hour>, Option<UnverifiableWindows>), VerifyError> {
        let mut before = hours.start;
        for (shard, floor) in &self.floors {
            let rows = self.manifest.iter().filter(|row| row.shard == *shard);
            before = before.max(first_verifiable(floor, rows, horizon_ms));
            let checkpoint = self
                .checkpoints
                .iter()
                .find(|(id, _)| id == shard)
                .map(|(_, checkpoint)| checkpoint);
            let Some(at) = checkpoint.filter(|at| at.archived < at.next) else { continue };
            let first = match log.read(*shard, at.archived, 1) {
                Err(LogError::Released { .. }) => return Err(VerifyError::Released),
                // The fold of the shard says it.
                first => first.unwrap_or_default(),
            };
            let log_begins = first.first().map(|record| record.appended);
            if log_begins.is_some_and(|begin| begin.saturating_sub(floor.appended) <= horizon_ms) {
                before = Hour(i32::MAX);
            }
        }
        if before == hours.start {
            return Ok((hours, None));
        }
        let all = self.rows.len();
        self.rows.retain(|(_, hour), _| *hour >= before);
        let rows = (all - self.rows.len()) as u64;
        Ok((before..hours.end.max(before), Some(UnverifiableWindows { before, rows })))
    }
}

/// The first window that nothing below the floor touched, nor any object behind it that may repeat
/// an id from below.
fn first_verifiable<'a>(
    floor: &ArchiveFloor,
    rows: impl Iterator<Item = &'a ManifestRow>,
    horizon_ms: i64,
) -> Hour {
    let near = rows.take_while(|row| row.appended.0.saturating_sub(floor.appended) <= horizon_ms);
    let touched =
        near.filter_map(|row| row.windows.last()).map(|(hour, _)| Hour(hour.0.saturating_add(1)));
    touched.fold(floor.hour, Hour::max)
}

type RecomputedRows = HashMap<(SeriesId, Hour), (Arc<SeriesInfo>, Rollup)>;

fn store_view(store: &dyn RollupStore, hours: &Range<Hour>) -> Result<StoreView, StoreError> {
    let mut damages = Vec::new();
    let mut snapshot = store.snapshot()?;
    let checkpoints = snapshot.checkpoints()?;
    let manifest = snapshot.manifest(None)?;
    let floors = snapshot.archive_floors()?.into_iter().collect();
    let quarantine = snapshot.quarantine()?;
    let admissions = checkpoints
        .iter()
        .map(|(shard, _)| snapshot.admissions(*shard))
        .collect::<Result<_, _>>()?;
    let rules = checkpoints
        .iter()
        .map(|(shard, _)| snapshot.dedup_rules(*shard))
        .collect::<Result<_, _>>()?;
    let mut rows = HashMap::new();
    let read = snapshot.rollup_bytes(hours.start, hours.end, &mut |info, hour, rollup, bytes| {
        rows.insert(
            (info.id, hour),
            StoredRow { info: info.clone(), figures: rollup.figures, digest: digest(bytes) },
        );
    });
    let rows_unread = read.is_err();
    if let Err(why) = read {
        // What else is wrong is worth knowing, and a store that is away is told by its name.
        if let StoreError::Unavailable(_) = why {
            return Err(why);
        }
        damages.push(StoreDamage { location: "rollups".to_owned(), reason: why.to_string() });
        rows.clear();
    }
    let accounting = snapshot.books()?;
    let mut metrics = Vec::new();
    let tenants: BTreeSet<&String> = accounting.iter().map(|row| &row.tenant).collect();
    for tenant in tenants {
        metrics.extend(
            snapshot
                .metrics(tenant, &NameRange::ALL)?
                .into_iter()
                .map(|metric| (tenant.clone(), metric)),
        );
    }
    let mut stand = StoreView {
        checkpoints,
        manifest,
        floors,
        quarantine,
        admissions,
        rules,
        rows,
        accounting,
        metrics,
        damages,
        rows_unread,
    };
    if !rows_unread {
        stand.damages.extend(stand.missing_metrics(hours));
    }
    Ok(stand)
}

fn digest(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

fn compare(
    stored: Option<StoredRow>,
    series: Arc<SeriesInfo>,
    hour: Hour,
    rollup: &Rollup,
) -> Option<RowDifference> {
    let mut bytes = Vec::new();
    rollup.encode(&mut bytes);
    if stored.as_ref().is_some_and(|row| row.digest == digest(&bytes)) {
        return None;
    }
    Some(RowDifference {
        series,
        hour,
        stored: stored.map(|row| row.figures),
        recomputed: Some(rollup.figures),
    })
}

/// The fold of one shard's records below its checkpoint.
struct ShardFold {
    shard: ShardId,
    until: Offset,
    archived: Offset,
    horizon_ms: i64,
    rules: DedupRules,
    claim: Claim,
    limits: ShardLimits,
    admissions: Vec<(SeriesId, Offset)>,
    hours: Range<Hour>,
    rows: RecomputedRows,
    records: u64,
    accounting: Vec<AccountingDelta>,
    from_start: bool,
}

impl ShardFold {
    fn new(
        sources: &VerifySources<'_>,
        shard: ShardId,
        checkpoint: &Checkpoint,
        suspects: Vec<SuspectEvent>,
        (admissions, rules): (Vec<(SeriesId, Offset)>, DedupRules),
        hours: Range<Hour>,
        shard_count: u32,
    ) -> Self {
        let (dedup_horizon_ms, dedup_max_ids) = (sources.dedup_horizon_ms, sources.dedup_max_ids);
        let limits =
            FoldRules { dedup_horizon_ms, dedup_max_ids, max_delta_bytes: usize::MAX, shard_count }
                .limits();
        Self {
            shard,
            until: checkpoint.next,
            archived: checkpoint.archived,
            horizon_ms: rules.longest_horizon_ms().unwrap_or(sources.dedup_horizon_ms),
            rules,
            claim: Claim { checkpoint: *checkpoint, attempts: 1, suspects },
            limits,
            admissions,
            hours,
            rows: RecomputedRows::default(),
            records: 0,
            accounting: Vec::new(),
            from_start: false,
        }
    }

    fn run(
        &mut self,
        sources: &VerifySources<'_>,
        log: &dyn LogReader,
        floor: Option<&ArchiveFloor>,
        manifest: &[&ManifestRow],
    ) -> Result<(), VerifyError> {
        let incomplete = |why: String| VerifyError::Incomplete { shard: self.shard, why };
        let shards = log.shard_count();
        if self.shard.0 >= shards {
            return Err(incomplete(format!("the store has it, and the log has {shards} shards")));
        }
        manifest::check_tiling(
            manifest.iter().copied(),
            floor.map_or(0, |floor| floor.offset),
            self.archived,
        )
        .map_err(incomplete)?;
        let below: Vec<&ManifestRow> =
            manifest.iter().copied().filter(|row| row.range.from < self.until).collect();
        let from_log = self.archived.max(log.start(self.shard).min(self.until));
        if from_log > self.archived && self.archived < self.until {
            return Err(VerifyError::Released);
        }
        let log_begins = match self.archived < self.until {
            true => log
                .read(self.shard, self.archived, 1)
                .map_err(|e| self.read_failed(e))?
                .first()
                .map(|record| record.appended),
            false => None,
        };
        let first = first_needed(&below, &self.hours, log_begins, self.horizon_ms);
        let start = below.get(first).map_or(self.archived.min(self.until), |row| row.range.from);
        self.claim.checkpoint.next = start;
        self.from_start = start == 0;
        let before = manifest.iter().rfind(|row| row.range.to <= start).map(|row| row.appended.1);
        self.claim.checkpoint.appended = before.max(floor.map(|floor| floor.appended));
        let admission =
            SeriesAdmission::recorded(std::mem::take(&mut self.admissions)).for_shard(self.shard);
        let recent = RecentIds { rules: std::mem::take(&mut self.rules), blocks: Vec::new() };
        let state =
            ShardState::new(self.limits.clone(), self.shard, &self.claim, recent, admission, 0);
        let mut driver = ShardDriver::from(state);
        for row in &below[first..] {
            let records = read_object(sources, row)?;
            self.apply(&mut driver, &records)?;
        }
        while driver.state().next() < self.until {
            let records = log
                .read(self.shard, driver.state().next(), READ_BYTES)
                .map_err(|e| self.read_failed(e))?;
            if records.is_empty() {
                let (_, end) = log.bounds(self.shard).map_err(|e| self.read_failed(e))?;
                if end > driver.state().next() {
                    return Err(VerifyError::Log(format!(
                        "shard {}: the log does not hand out record {}",
                        self.shard,
                        driver.state().next()
                    )));
                }
                let why = format!(
                    "the log ends at {}, below the checkpoint {}",
                    driver.state().next(),
                    self.until
                );
                return Err(VerifyError::Incomplete { shard: self.shard, why });
            }
            self.apply(&mut driver, &records)?;
        }
        Ok(())
    }

    /// Damage and loss are the shard's; a log that is away is nobody's.
    fn read_failed(&self, error: LogError) -> VerifyError {
        match error {
            LogError::Released { .. } => VerifyError::Released,
            LogError::Io(why) => VerifyError::Log(why),
            LogError::Corrupt(_) | LogError::Replaced(_) | LogError::BeyondEnd { .. } => {
                VerifyError::Incomplete { shard: self.shard, why: error.to_string() }
            }
        }
    }

    fn apply(
        &mut self,
        driver: &mut ShardDriver,
        records: &[LogRecord],
    ) -> Result<(), VerifyError> {
        let below = records.partition_point(|record| record.offset < self.until);
        self.records += below as u64;
        let ended = fold::apply(driver, &records[..below], true, &mut |_, batch, _| {
            self.merge(&batch.deltas);
            self.accounting.extend(batch.accounting.iter().cloned());
            Ok::<(), Infallible>(())
        });
        ended.map_err(|why| VerifyError::Incomplete { shard: self.shard, why: why.to_string() })
    }

    fn merge(&mut self, deltas: &[crate::model::flush::Delta]) {
        for delta in deltas.iter().filter(|delta| self.hours.contains(&delta.hour)) {
            let row = self.rows.entry((delta.series.id, delta.hour));
            row.or_insert_with(|| (delta.series.clone(), Rollup::default())).1.merge(&delta.rollup);
        }
    }
}

/// The first object that has to be folded: the first that touches the windows, then back over every
/// gap in the append times that is not longer than the horizon. `log_begins` is the append time of
/// the first record behind the objects.
fn first_needed(
    rows: &[&ManifestRow],
    hours: &Range<Hour>,
    log_begins: Option<Millis>,
    horizon_ms: i64,
) -> usize {
    let touches = |row: &&ManifestRow| row.windows.iter().any(|(hour, _)| hours.contains(hour));
    let mut first = rows.iter().position(touches).unwrap_or(rows.len());
    let mut begins = rows.get(first).map(|row| row.appended.0).or(log_begins);
    while let Some(begin) = begins {
        let Some(before) = first.checked_sub(1).map(|at| rows[at]) else { break };
        if begin.saturating_sub(before.appended.1) > horizon_ms {
            break;
        }
        first -= 1;
        begins = Some(before.appended.0);
    }
    first
}

/// Reads an object; one that is not there may have expired since the snapshot.
fn read_object(
    sources: &VerifySources<'_>,
    row: &ManifestRow,
) -> Result<Vec<LogRecord>, VerifyError> {
    match sources.archive.read(row) {
        Err(ArchiveError::Missing(path)) => {
            let expired = sources
                .store
                .snapshot()?
                .archive_floors()?
                .iter()
                .any(|(id, f)| *id == row.shard && f.offset > row.range.from);
            Err(if expired { VerifyError::Released } else { ArchiveError::Missing(path).into() })
        }
        read => Ok(read?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::{Epoch, LogId, OffsetRange};

    fn row(from: u64, to: u64, appended: (i64, i64), hour: i32) -> ManifestRow {
        ManifestRow {
            log: LogId([0; 16]),
            shard: ShardId(0),
            range: OffsetRange { from, to },
            epoch: Epoch { counter: 1, nonce: 1 },
            path: String::new(),
            appended,
            received: appended,
            windows: vec![(Hour(hour), 1)],
            rows: 1,
            raw_bytes: 1,
            bytes: 1,
            crc32c: 0,
            tier: crate::model::manifest::Tier::Hot,
        }
    }

    #[test]
    fn windows_near_the_floor_are_not_verifiable() {
        let rows = [row(1, 2, (110, 120), 9), row(2, 3, (200, 230), 3), row(3, 4, (211, 300), 50)];
        let floor = ArchiveFloor { offset: 1, appended: 100, hour: Hour(5) };
        let first = |horizon| first_verifiable(&floor, rows.iter(), horizon);
        assert_eq!(first(9), Hour(5), "no id can repeat one that is gone");
        assert_eq!(first(10), Hour(10));
        assert_eq!(first(110), Hour(10), "window 3 lies below");
        assert_eq!(first(111), Hour(51));
    }

    #[test]
    fn it_starts_behind_a_gap_longer_than_the_horizon() {
        let rows = [row(0, 1, (0, 10), 1), row(1, 2, (111, 120), 2), row(2, 3, (220, 230), 3)];
        let rows: Vec<&ManifestRow> = rows.iter().collect();
        let first = |hours: Range<i32>, log| {
            first_needed(&rows, &(Hour(hours.start)..Hour(hours.end)), log, 100)
        };
        assert_eq!(
            first(3..4, None),
            1,
            "one horizon before the third is the second, before that there is a gap"
        );
        assert_eq!(first(2..4, None), 1);
        assert_eq!(first(1..2, None), 0);
        assert_eq!(first(9..10, Some(330)), 1, "the log's own records may touch any window");
        assert_eq!(first(9..10, Some(331)), 3);
    }
}

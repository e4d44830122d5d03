//! Finds contradictions in a store of tables: the catalogue against the keys of the series,
//! orphaned rows, blocks and objects against their own metadata, and everything against the
//! checkpoints.
//!
//! The statements are the same for every SQL store; [`TableReader`] runs them. All of them read one
//! state, so a node may keep writing meanwhile. A table that cannot be read is reported as damage,
//! and the rest is still checked.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use super::{StoreDamage, StoreError, byte_columns};
use crate::model::expiry::ExpiryState;
use crate::model::manifest::{ManifestRow, ObjectName};
use crate::model::offset::{Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::{Series, SeriesId};

/// Most findings per table that are reported one by one; the rest is reported as a number.
const MAX_REPORTED: usize = 10;

/// Passes findings on, at most [`MAX_REPORTED`] for each table.
pub(super) struct DamageCollector<'a> {
    sink: &'a mut dyn FnMut(StoreDamage),
    counts: BTreeMap<&'static str, usize>,
}

impl<'a> DamageCollector<'a> {
    pub(super) fn new(sink: &'a mut dyn FnMut(StoreDamage)) -> Self {
        Self { sink, counts: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, table: &'static str, why: impl std::fmt::Display) {
        let count = self.counts.entry(table).or_default();
        *count += 1;
        if *count <= MAX_REPORTED {
            (self.sink)(StoreDamage { location: table.to_owned(), reason: why.to_string() });
        }
    }

    pub(super) fn finish(self) {
        for (table, count) in self.counts.into_iter().filter(|(_, count)| *count > MAX_REPORTED) {
            (self.sink)(StoreDamage {
                location: table.to_owned(),
                reason: format!("and {} more", count - MAX_REPORTED),
            });
        }
    }
}

/// One row of a result, by column index.
pub(super) trait TableRow {
    fn int(&self, at: usize) -> Result<Option<i64>, StoreError>;
    fn text(&self, at: usize) -> Result<&str, StoreError>;
    /// A column of bytes, or an id, for which some stores have a type of its own.
    fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError>;
}

/// A column that must not be null.
fn number(row: &dyn TableRow, at: usize) -> Result<i64, StoreError> {
    row.int(at)?.ok_or_else(|| StoreError::Invalid(format!("column {at} is absent")))
}

fn number_32(row: &dyn TableRow, at: usize) -> Result<i32, StoreError> {
    let found = number(row, at)?;
    i32::try_from(found)
        .map_err(|_| StoreError::Invalid(format!("column {at} is {found}, which is too large")))
}

fn offset(row: &dyn TableRow, at: usize) -> Result<Offset, StoreError> {
    Ok(number(row, at)? as Offset)
}

pub(super) type RowVisitor<'v> = dyn FnMut(&dyn TableRow) -> Result<(), StoreError> + 'v;

/// Reads the tables of a store, all in the same state.
pub(super) trait TableReader {
    /// Visits the rows of a statement.
    fn for_each_row(&mut self, sql: &str, visit: &mut RowVisitor<'_>) -> Result<(), StoreError>;
    /// Half-open ranges of hours that together cover all rollups and sketches. Each is as much as
    /// one statement should read.
    fn hour_ranges(&mut self) -> Result<Vec<(i64, i64)>, StoreError>;
    /// Called after a failed statement; fails if no further statement can run.
    fn recover(&mut self) -> Result<(), StoreError>;
}

type TableCheck = fn(&mut dyn TableReader, &mut DamageCollector<'_>) -> Result<(), StoreError>;

/// All checks, each with the table that is named if it cannot be read.
const TABLE_CHECKS: [(&str, TableCheck); 11] = [
    ("series", catalogue),
    ("rollups", orphan_rollups),
    ("sketches", orphan_sketches),
    ("revisions", revisions),
    ("series", admissions),
    ("dedup", dedup),
    ("manifest", manifest),
    ("archive_floors", floors),
    ("quarantine", quarantine),
    ("accounting", accounting),
    ("expiry", expiry),
];

/// Runs all checks. Fails if a failed statement leaves the store unreadable
/// ([`TableReader::recover`]).
pub(super) fn find_contradictions(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    for (table, look) in TABLE_CHECKS {
        if let Err(why) = look(tables, found) {
            // PostgreSQL refuses all further statements of a transaction after a failed one.
            tables.recover()?;
            found.add(table, format!("it cannot be read: {why}"));
        }
    }
    Ok(())
}

#[derive(Default)]
struct MetricTally {
    tenant: String,
    name: String,
    counted: i64,
    hours: (Option<i64>, Option<i64>),
    series: i64,
    seen: (Option<i64>, Option<i64>),
}

/// A digest of the labels of a series, independent of their order: the wrapping sum of their
/// hashes, and their number.
type LabelDigest = (u64, u64);

fn add_label(labels: &mut LabelDigest, metric_no: i64, name: &str, value: &str) {
    // A fixed seed, because both sides of the comparison have to hash alike.
    let hash = FixedState::with_seed(7).hash_one((metric_no, name, value));
    *labels = (labels.0.wrapping_add(hash), labels.1 + 1);
}

/// Compares tenants, metrics and the label index with what the keys of the series say.
fn catalogue(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    // A key names tenant, metric and labels, so the other tables are checked against it.
    let mut metrics = metrics(tables, found)?;
    let mut expected: HashMap<i64, LabelDigest> = HashMap::new();
    tables.for_each_row("SELECT no, metric_no, id, key FROM series", &mut |row| {
        let (no, metric_no) = (number(row, 0)?, number(row, 1)?);
        let (id, key) = (row.bytes(2)?, row.bytes(3)?);
        if SeriesId::of_key(&key).0[..] != id[..] {
            found.add("series", format!("series {no}: its id is not that of its key"));
        }
        let Ok(series) = Series::from_key(&key) else {
            found.add("series", format!("series {no}: its key does not decode"));
            return Ok(());
        };
        match metrics.get_mut(&metric_no) {
            Some(metric) if metric.tenant == series.tenant && metric.name == series.metric => {
                metric.series += 1
            }
            Some(metric) => {
                let (tenant, name) = (&metric.tenant, &metric.name);
                let why = format!(
                    "series {no}: it is of {}/{}, and stands under {tenant}/{name}",
                    series.tenant, series.metric
                );
                found.add("metrics", why);
                metric.series += 1;
            }
            None => found.add("metrics", format!("series {no}: there is no metric {metric_no}")),
        }
        let labels = expected.entry(no).or_default();
        series.labels.iter().for_each(|(name, value)| add_label(labels, metric_no, name, value));
        Ok(())
    })?;
    for metric in metrics.values().filter(|metric| metric.series != metric.counted) {
        let MetricTally { tenant, name, counted, series, .. } = metric;
        found.add(
            "metrics",
            format!("{tenant}/{name}: series_count is {counted}, and there are {series}"),
        );
    }
    for metric in metrics.values().filter(|metric| metric.hours != metric.seen) {
        let MetricTally { tenant, name, hours, seen, .. } = metric;
        let why = match seen.0 {
            None => format!(
                "{tenant}/{name}: it should have rollups from hour {:?} to {:?}, and has none",
                hours.0, hours.1
            ),
            Some(_) => format!(
                "{tenant}/{name}: first_hour and last_hour are {hours:?}, the rollups are of \
                 {seen:?}"
            ),
        };
        found.add("metrics", why);
    }
    labels(tables, expected, found)
}

fn metrics(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<BTreeMap<i64, MetricTally>, StoreError> {
    let mut tenants: HashMap<i64, String> = HashMap::new();
    tables.for_each_row("SELECT no, name FROM tenants", &mut |row| {
        tenants.insert(number(row, 0)?, row.text(1)?.to_owned());
        Ok(())
    })?;
    let mut metrics = BTreeMap::new();
    tables.for_each_row(
        "SELECT no, tenant_no, name, series_count, first_hour, last_hour FROM metrics",
        &mut |row| {
            let (no, tenant_no) = (number(row, 0)?, number(row, 1)?);
            let Some(tenant) = tenants.get(&tenant_no) else {
                found.add("tenants", format!("metric {no}: there is no tenant {tenant_no}"));
                return Ok(());
            };
            let (name, counted, hours) =
                (row.text(2)?.to_owned(), number(row, 3)?, (row.int(4)?, row.int(5)?));
            metrics.insert(
                no,
                MetricTally {
                    tenant: tenant.clone(),
                    name,
                    counted,
                    hours,
                    ..MetricTally::default()
                },
            );
            Ok(())
        },
    )?;
    for_each_hour(tables, &mut |metric_no, hour| match metrics.get_mut(&metric_no) {
        Some(MetricTally { seen, .. }) => {
            *seen = (
                Some(seen.0.map_or(hour, |first| first.min(hour))),
                Some(seen.1.map_or(hour, |last| last.max(hour))),
            );
        }
        None => found.add(
            "metrics",
            format!("there are rollups of metric {metric_no} in hour {hour}, and no such metric"),
        ),
    })?;
    Ok(metrics)
}

/// Visits every metric and hour that has rollups.
fn for_each_hour(
    tables: &mut dyn TableReader,
    visit: &mut dyn FnMut(i64, i64),
) -> Result<(), StoreError> {
    // One statement per range: a DISTINCT over years of rollups would outlast its time limit.
    for (from, to) in tables.hour_ranges()? {
        let sql = format!(
            "SELECT DISTINCT metric_no, hour FROM rollups WHERE hour >= {from} AND hour < {to}"
        );
        tables.for_each_row(&sql, &mut |row| {
            visit(number(row, 0)?, number(row, 1)?);
            Ok(())
        })?;
    }
    Ok(())
}

fn labels(
    tables: &mut dyn TableReader,
    expected: HashMap<i64, LabelDigest>,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let mut indexed: HashMap<i64, LabelDigest> = HashMap::new();
    // LEFT JOIN, so that a label without its pair is reported and not dropped.
    let sql = "SELECT l.series_no, l.pair_no, p.metric_no, coalesce(p.name, ''), \
               coalesce(p.value, '') FROM series_labels l
        LEFT JOIN label_pairs p ON p.no = l.pair_no";
    tables.for_each_row(sql, &mut |row| {
        let series = number(row, 0)?;
        match row.int(2)? {
            None => found.add(
                "label_pairs",
                format!("series {series}: there is no label {}", number(row, 1)?),
            ),
            Some(metric_no) => {
                add_label(indexed.entry(series).or_default(), metric_no, row.text(3)?, row.text(4)?)
            }
        }
        Ok(())
    })?;
    for (series, labels) in &expected {
        if indexed.remove(series).unwrap_or_default() != *labels {
            found.add(
                "label_pairs",
                format!("series {series}: the index of labels has others than its key"),
            );
        }
    }
    for series in indexed.keys() {
        found.add(
            "series_labels",
            format!("there are labels of series {series}, and no such series"),
        );
    }
    let sql = "SELECT p.no FROM label_pairs p WHERE NOT EXISTS (SELECT 1 FROM series_labels l \
               WHERE l.pair_no = p.no)";
    tables.for_each_row(sql, &mut |row| {
        found.add("label_pairs", format!("no series has label {}", number(row, 0)?));
        Ok(())
    })
}

/// Reports the rows of a statement that selects metric, hour and series of orphaned rows.
fn report_orphans(
    tables: &mut dyn TableReader,
    sql: &str,
    table: &'static str,
    lacks: &str,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    tables.for_each_row(sql, &mut |row| {
        let (metric, hour, series) = (number(row, 0)?, number(row, 1)?, number(row, 2)?);
        found.add(
            table,
            format!("metric {metric}, hour {hour}, series {series}: there is no {lacks}"),
        );
        Ok(())
    })
}

fn orphan_rollups(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    for (from, to) in tables.hour_ranges()? {
        let sql = format!(
            "SELECT r.metric_no, r.hour, r.series_no FROM rollups r LEFT JOIN series s ON s.no = \
             r.series_no
             WHERE r.hour >= {from} AND r.hour < {to} AND (s.no IS NULL OR s.metric_no <> \
             r.metric_no)"
        );
        report_orphans(tables, &sql, "rollups", "such series", found)?;
    }
    Ok(())
}

fn orphan_sketches(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    for (from, to) in tables.hour_ranges()? {
        let sql = format!(
            "SELECT k.metric_no, k.hour, k.series_no FROM sketches k LEFT JOIN rollups r ON \
             r.metric_no = k.metric_no
             AND r.hour = k.hour AND r.series_no = k.series_no AND r.hour >= {from} AND r.hour < \
             {to}
             WHERE k.hour >= {from} AND k.hour < {to} AND r.hour IS NULL"
        );
        report_orphans(tables, &sql, "sketches", "such rollup", found)?;
    }
    Ok(())
}

fn revisions(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let mut revised: BTreeSet<(i64, i64)> = BTreeSet::new();
    tables.for_each_row("SELECT metric_no, day, revision FROM revisions", &mut |row| {
        let (metric, day) = (number(row, 0)?, number(row, 1)?);
        if number(row, 2)? == 0 {
            found.add(
                "revisions",
                format!(
                    "metric {metric}, day {day}: its revision is 0, which is that of days without \
                     rollups"
                ),
            );
        }
        revised.insert((metric, day));
        Ok(())
    })?;
    let mut days: BTreeSet<(i64, i64)> = BTreeSet::new();
    for_each_hour(tables, &mut |metric, hour| _ = days.insert((metric, hour.div_euclid(24))))?;
    for (metric, day) in days.difference(&revised) {
        found.add(
            "revisions",
            format!("metric {metric}, day {day}: there are rollups, and no revision"),
        );
    }
    Ok(())
}

/// The offsets of a shard's checkpoint that other rows can contradict.
struct CheckpointOffsets {
    next: Offset,
    archived: Offset,
}

fn checkpoint_offsets(
    tables: &mut dyn TableReader,
) -> Result<BTreeMap<i64, CheckpointOffsets>, StoreError> {
    let mut checkpoints = BTreeMap::new();
    tables.for_each_row("SELECT shard, next, archived FROM shards", &mut |row| {
        checkpoints.insert(
            number(row, 0)?,
            CheckpointOffsets { next: offset(row, 1)?, archived: offset(row, 2)? },
        );
        Ok(())
    })?;
    Ok(checkpoints)
}

/// Checks that a row written by a flush belongs to a record below the checkpoint: both were
/// written in one transaction.
fn below_checkpoint(
    checkpoints: &BTreeMap<i64, CheckpointOffsets>,
    shard: i64,
    at: Offset,
) -> Result<(), String> {
    match checkpoints.get(&shard) {
        None => Err(format!("shard {shard} has no checkpoint")),
        Some(checkpoint) if at >= checkpoint.next => Err(format!(
            "it is of offset {at} of shard {shard}, and everything there is below {}",
            checkpoint.next
        )),
        Some(_) => Ok(()),
    }
}

fn admissions(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    tables.for_each_row(
        "SELECT shard, max(admitted_offset), min(admitted_offset) FROM series GROUP BY shard",
        &mut |row| {
            // Offsets are stored as signed integers with the same bits: negative ones are the
            // greatest.
            let at = match offset(row, 2)? {
                least if (least as i64) < 0 => least,
                _ => offset(row, 1)?,
            };
            if let Err(why) = below_checkpoint(&checkpoints, number(row, 0)?, at) {
                found.add("series", format!("an admission contradicts the checkpoint: {why}"));
            }
            Ok(())
        },
    )
}

fn dedup(tables: &mut dyn TableReader, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    let mut shards = Vec::new();
    tables.for_each_row("SELECT DISTINCT shard FROM dedup", &mut |row| {
        shards.push(number(row, 0)?);
        Ok(())
    })?;
    // Blocks are large, so only those of one shard are read at a time.
    for shard in shards {
        let sql = format!(
            "SELECT from_offset, to_offset, first_appended, last_appended, block FROM dedup WHERE \
             shard = {shard} ORDER BY from_offset"
        );
        let mut previous_end = 0;
        tables.for_each_row(&sql, &mut |row| {
            let (from, to) = (offset(row, 0)?, offset(row, 1)?);
            let mut wrong = |why: &dyn std::fmt::Display| {
                found.add("dedup", format!("shard {shard}, offsets [{from}, {to}): {why}"));
            };
            if from >= to {
                wrong(&"its offsets are no range");
            } else if let Err(why) = below_checkpoint(&checkpoints, shard, to - 1) {
                wrong(&why);
            }
            if from < previous_end {
                wrong(&format!("the block before it ends at {previous_end}"));
            }
            previous_end = to;
            match byte_columns::decode_runs(&row.bytes(4)?) {
                Err(why) => wrong(&why),
                Ok(runs) => {
                    let times =
                        runs.first().zip(runs.last()).map(|(first, last)| (first.0, last.0));
                    if times != Some((number(row, 2)?, number(row, 3)?)) {
                        wrong(&"its append times are not those of its ids");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

const MANIFEST: &str = "SELECT shard, from_offset, to_offset, log, epoch, nonce, path, \
                        first_appended, last_appended, windows, rows, tier
    FROM manifest ORDER BY shard, from_offset";

fn manifest(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    let mut next: BTreeMap<i64, Offset> = BTreeMap::new();
    // The archive of a shard begins at its floor: the objects below have expired.
    tables.for_each_row("SELECT shard, \"offset\" FROM archive_floors", &mut |row| {
        next.insert(number(row, 0)?, offset(row, 1)?);
        Ok(())
    })?;
    tables.for_each_row(MANIFEST, &mut |row| {
        let (shard, range) =
            (number(row, 0)?, OffsetRange { from: offset(row, 1)?, to: offset(row, 2)? });
        let expected = next.insert(shard, range.to).unwrap_or(0);
        let mut wrong = |why: &dyn std::fmt::Display| {
            found.add(
                "manifest",
                format!("shard {shard}, offsets [{}, {}): {why}", range.from, range.to),
            );
        };
        if range.from != expected {
            wrong(&format!("the archive continues here, and {expected} was expected"));
        }
        if let Err(why) = check_object(row, range) {
            wrong(&why);
        }
        Ok(())
    })?;
    for (shard, at) in &next {
        if !checkpoints.contains_key(shard) {
            found.add(
                "manifest",
                format!("there are objects of shard {shard}, which has no checkpoint"),
            );
        } else if let Some(checkpoint) =
            checkpoints.get(shard).filter(|checkpoint| checkpoint.archived != *at)
        {
            found.add(
                "manifest",
                format!(
                    "shard {shard}: the archive ends at {at}, and the checkpoint says {}",
                    checkpoint.archived
                ),
            );
        }
    }
    for (shard, checkpoint) in checkpoints
        .iter()
        .filter(|(shard, checkpoint)| checkpoint.archived > 0 && !next.contains_key(shard))
    {
        found.add(
            "manifest",
            format!(
                "shard {shard}: it is archived up to {}, and there is no object",
                checkpoint.archived
            ),
        );
    }
    Ok(())
}

/// Checks what a manifest row says twice: its path contains log, range and epoch, and its windows
/// add up to its number of events.
fn check_object(row: &dyn TableRow, range: OffsetRange) -> Result<(), String> {
    let unreadable = |why: StoreError| why.to_string();
    let log = <[u8; 16]>::try_from(row.bytes(3).map_err(unreadable)?)
        .map_err(|_| "its log is no id".to_owned())?;
    let (counter, nonce) =
        (offset(row, 4).map_err(unreadable)?, offset(row, 5).map_err(unreadable)?);
    let (path, shard) = (row.text(6).map_err(unreadable)?, number_32(row, 0).map_err(unreadable)?);
    let named = ManifestRow::parse_name(LogId(log), ShardId(shard.cast_unsigned()), path);
    if named != Some(ObjectName { range, epoch: Epoch { counter, nonce } }) {
        return Err(format!("its path is that of another object: {path}"));
    }
    if number(row, 7).map_err(unreadable)? > number(row, 8).map_err(unreadable)? {
        return Err("it ends before it begins".to_owned());
    }
    byte_columns::tier(i16::try_from(number(row, 11).map_err(unreadable)?).unwrap_or(i16::MAX))
        .map_err(|why| why.to_string())?;
    let windows = byte_columns::decode_windows(&row.bytes(9).map_err(unreadable)?)
        .map_err(|why| why.to_string())?;
    let events = windows.iter().fold(0, |sum: u64, window| sum.saturating_add(window.1));
    if events != offset(row, 10).map_err(unreadable)? {
        return Err(format!(
            "its windows have {events} events, and it has {} rows",
            offset(row, 10).map_err(unreadable)?
        ));
    }
    Ok(())
}

fn floors(tables: &mut dyn TableReader, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    tables.for_each_row("SELECT shard, \"offset\", hour FROM archive_floors", &mut |row| {
        let (shard, at) = (number(row, 0)?, offset(row, 1)?);
        // Checks the type only: an hour has 32 bits.
        number_32(row, 2)?;
        match checkpoints.get(&shard) {
            None => found.add("archive_floors", format!("shard {shard} has no checkpoint")),
            Some(checkpoint) if at > checkpoint.archived => {
                let archived = checkpoint.archived;
                found.add(
                    "archive_floors",
                    format!("shard {shard}: the archive begins at {at}, and ends at {archived}"),
                );
            }
            Some(_) => {}
        }
        Ok(())
    })
}

fn quarantine(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    tables.for_each_row("SELECT shard, \"offset\", idx FROM quarantine", &mut |row| {
        if let Err(why) = below_checkpoint(&checkpoints, number(row, 0)?, offset(row, 1)?) {
            found.add("quarantine", format!("event {}: {why}", number(row, 2)?));
        }
        Ok(())
    })
}

fn accounting(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let sql = "SELECT tenant, hour FROM accounting WHERE aggregated < 0 OR deduplicated < 0 OR \
               quarantined < 0";
    tables.for_each_row(sql, &mut |row| {
        found.add(
            "accounting",
            format!(
                "tenant {:?}, hour {}: there are fewer than no events",
                row.text(0)?,
                number(row, 1)?
            ),
        );
        Ok(())
    })
}

fn expiry(tables: &mut dyn TableReader, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    tables.for_each_row("SELECT shard, note FROM expiry", &mut |row| {
        if let Err(why) = serde_json::from_str::<ExpiryState>(row.text(1)?) {
            found.add("expiry", format!("the note of {} does not decode: {why}", number(row, 0)?));
        }
        Ok(())
    })
}

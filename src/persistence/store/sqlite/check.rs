//! Looks for damage: SQLite's own structures, the catalogue against the series' keys, and rows that nothing else gives again against
//! their checksums.
//!
//! Everything is of one read transaction, so a node may be writing meanwhile. What cannot be read is damage too: the rest is still looked at.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use rusqlite::Connection;

use super::catalogue::admission_sum;
use super::{Damage, StoreError, admin, codec, flush};
use crate::model::offset::{Offset, ShardId};
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;

/// Places of one kind that are named; of more, the number is.
const NAMED: usize = 10;

/// Hands over what was found, no more than [`NAMED`] of each table.
struct Found<'a> {
    tell: &'a mut dyn FnMut(Damage),
    counts: HashMap<&'static str, usize>,
}

impl Found<'_> {
    fn damage(&mut self, table: &'static str, why: impl std::fmt::Display) {
        let count = self.counts.entry(table).or_default();
        *count += 1;
        if *count <= NAMED {
            (self.tell)(Damage { place: table.to_owned(), why: why.to_string() });
        }
    }

    fn end(self) {
        for (table, count) in self.counts.into_iter().filter(|(_, count)| *count > NAMED) {
            (self.tell)(Damage { place: table.to_owned(), why: format!("and {} more", count - NAMED) });
        }
    }
}

type Look = fn(&Connection, &mut Found<'_>) -> Result<(), StoreError>;

/// What is looked at, with the table that is named if it cannot be read.
const LOOKS: [(&str, Look); 10] = [
    ("the file", structure),
    ("series", catalogue),
    ("rollups", rollups),
    ("sketches", sketches),
    ("revisions", revisions),
    ("shards", shards),
    ("archive_floors", floors),
    ("dedup", dedup),
    ("manifest", manifest),
    ("quarantine", quarantine),
];

/// Looks at everything.
///
/// # Errors
/// If no transaction can be begun.
pub(super) fn check(connection: &Connection, tell: &mut dyn FnMut(Damage)) -> Result<(), StoreError> {
    // Read only: it ends by being rolled back.
    let tx = connection.unchecked_transaction()?;
    let mut found = Found { tell, counts: HashMap::new() };
    for (table, look) in LOOKS {
        if let Err(why) = look(&tx, &mut found) {
            found.damage(table, format!("it cannot be read: {why}"));
        }
    }
    found.end();
    Ok(())
}

/// Trees, and whether every index has the rows of its table.
fn structure(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("PRAGMA integrity_check(100)")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let line: String = row.get(0)?;
        if line != "ok" {
            found.damage("the file", line);
        }
    }
    Ok(())
}

#[derive(Default)]
struct MetricSeen {
    tenant: String,
    name: String,
    counted: i64,
    hours: (Option<i32>, Option<i32>),
    series: i64,
    seen: (Option<i32>, Option<i32>),
}

/// The labels of a series as the index has them: the wrapping sum of their hashes, and their number.
type Labels = (u64, u64);

fn add(labels: &mut Labels, metric_no: i64, name: &str, value: &str) {
    let hash = FixedState::with_seed(7).hash_one((metric_no, name, value));
    *labels = (labels.0.wrapping_add(hash), labels.1 + 1);
}

/// Keys of series say everything that tenants, metrics and the index of labels say.
fn catalogue(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut metrics = metrics(sql, found)?;
    let mut expected: HashMap<i64, Labels> = HashMap::new();
    let mut statement = sql.prepare("SELECT no, metric_no, id, key, shard, admitted_offset, sum FROM series")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (no, metric_no): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (id, key): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
        if SeriesId::of_key(&key).0[..] != id[..] {
            found.damage("series", format!("series {no}: its id is not that of its key"));
        }
        let admitted = <[u8; 16]>::try_from(&id[..]).map(|id| {
            let (shard, at) = (row.get(4)?, row.get::<_, i64>(5)? as Offset);
            Ok::<_, StoreError>(admission_sum(SeriesId(id), ShardId(shard), at))
        });
        if row.get::<_, Option<i64>>(6)? != admitted.ok().transpose()? {
            found.damage("series", format!("series {no}: damaged (checksum)"));
        }
        let Ok(series) = Series::from_key(&key) else {
            found.damage("series", format!("series {no}: its key does not decode"));
            continue;
        };
        match metrics.get_mut(&metric_no) {
            Some(metric) if metric.tenant == series.tenant && metric.name == series.metric => metric.series += 1,
            Some(metric) => {
                let (tenant, name) = (&metric.tenant, &metric.name);
                let why = format!("series {no}: it is of {}/{}, and stands under {tenant}/{name}", series.tenant, series.metric);
                found.damage("metrics", why);
                metric.series += 1;
            }
            None => found.damage("metrics", format!("series {no}: there is no metric {metric_no}")),
        }
        let labels = expected.entry(no).or_default();
        series.labels.iter().for_each(|(name, value)| add(labels, metric_no, name, value));
    }
    for metric in metrics.values().filter(|metric| metric.series != metric.counted) {
        let MetricSeen { tenant, name, counted, series, .. } = metric;
        found.damage("metrics", format!("{tenant}/{name}: series_count is {counted}, and there are {series}"));
    }
    for metric in metrics.values().filter(|metric| metric.hours != metric.seen) {
        let MetricSeen { tenant, name, hours, seen, .. } = metric;
        let why = match seen.0 {
            None => format!("{tenant}/{name}: it should have rollups from hour {:?} to {:?}, and has none", hours.0, hours.1),
            Some(_) => format!("{tenant}/{name}: first_hour and last_hour are {hours:?}, the rollups are of {seen:?}"),
        };
        found.damage("metrics", why);
    }
    labels(sql, expected, found)
}

fn metrics(sql: &Connection, found: &mut Found<'_>) -> Result<HashMap<i64, MetricSeen>, StoreError> {
    let mut tenants: HashMap<i64, String> = HashMap::new();
    let mut statement = sql.prepare("SELECT no, name FROM tenants")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        tenants.insert(row.get(0)?, row.get(1)?);
    }
    let mut metrics = HashMap::new();
    let mut statement = sql.prepare("SELECT no, tenant_no, name, series_count, first_hour, last_hour FROM metrics")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (no, tenant_no): (i64, i64) = (row.get(0)?, row.get(1)?);
        let Some(tenant) = tenants.get(&tenant_no) else {
            found.damage("tenants", format!("metric {no}: there is no tenant {tenant_no}"));
            continue;
        };
        let (name, counted, hours) = (row.get(2)?, row.get(3)?, (row.get(4)?, row.get(5)?));
        metrics.insert(no, MetricSeen { tenant: tenant.clone(), name, counted, hours, ..MetricSeen::default() });
    }
    let mut statement = sql.prepare("SELECT metric_no, min(hour), max(hour) FROM rollups GROUP BY metric_no")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let no: i64 = row.get(0)?;
        match metrics.get_mut(&no) {
            Some(metric) => metric.seen = (row.get(1)?, row.get(2)?),
            None => found.damage("metrics", format!("there are rollups of metric {no}, and no such metric")),
        }
    }
    Ok(metrics)
}

fn labels(sql: &Connection, expected: HashMap<i64, Labels>, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut indexed: HashMap<i64, Labels> = HashMap::new();
    let mut statement = sql.prepare(
        "SELECT l.series_no, p.metric_no, p.name, p.value, l.pair_no FROM series_labels l LEFT JOIN label_pairs p ON p.no = l.pair_no",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (series, metric_no): (i64, Option<i64>) = (row.get(0)?, row.get(1)?);
        match metric_no {
            None => found.damage("label_pairs", format!("series {series}: there is no label {}", row.get::<_, i64>(4)?)),
            Some(metric_no) => {
                let labels = indexed.entry(series).or_default();
                add(labels, metric_no, &row.get::<_, String>(2)?, &row.get::<_, String>(3)?);
            }
        }
    }
    for (series, labels) in &expected {
        if indexed.remove(series).unwrap_or_default() != *labels {
            found.damage("label_pairs", format!("series {series}: the index of labels has others than its key"));
        }
    }
    for series in indexed.keys() {
        found.damage("series_labels", format!("there are labels of series {series}, and no such series"));
    }
    let mut statement = sql.prepare("SELECT no FROM label_pairs WHERE no NOT IN (SELECT pair_no FROM series_labels)")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        found.damage("label_pairs", format!("no series has label {}", row.get::<_, i64>(0)?));
    }
    Ok(())
}

/// Rows of rollups or sketches that belong to nothing, by a statement that selects their metric, hour and series.
fn strays(sql: &Connection, statement: &str, table: &'static str, lacks: &str, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare(statement)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (metric, hour, series): (i64, i32, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        found.damage(table, format!("metric {metric}, hour {hour}, series {series}: there is no {lacks}"));
    }
    Ok(())
}

fn rollups(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let without = "SELECT r.metric_no, r.hour, r.series_no FROM rollups r LEFT JOIN series s ON s.no = r.series_no
        WHERE s.no IS NULL OR s.metric_no <> r.metric_no";
    strays(sql, without, "rollups", "such series", found)
}

fn sketches(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let without = "SELECT k.metric_no, k.hour, k.series_no FROM sketches k LEFT JOIN rollups r
        ON r.metric_no = k.metric_no AND r.hour = k.hour AND r.series_no = k.series_no WHERE r.hour IS NULL";
    strays(sql, without, "sketches", "such rollup", found)
}

fn revisions(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut revised: BTreeSet<(i64, i32)> = BTreeSet::new();
    let mut statement = sql.prepare("SELECT metric_no, day, revision, sum FROM revisions")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (metric, day, revision): (i64, i32, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        revised.insert((metric, day));
        if row.get::<_, Option<i64>>(3)? != Some(flush::revision_sum(metric, day, revision)) {
            found.damage("revisions", format!("metric {metric}, day {day}: damaged (checksum)"));
        }
    }
    let mut days: BTreeSet<(i64, i32)> = BTreeSet::new();
    let mut statement = sql.prepare("SELECT DISTINCT metric_no, hour FROM rollups")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        days.insert((row.get(0)?, Hour(row.get(1)?).day()));
    }
    for (metric, day) in days.difference(&revised) {
        found.damage("revisions", format!("metric {metric}, day {day}: there are rollups, and no revision"));
    }
    Ok(())
}

fn shards(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT shard, sum FROM shards")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (shard, sum): (u32, Option<i64>) = (row.get(0)?, row.get(1)?);
        if sum != Some(admin::shard_sum(sql, ShardId(shard))?) {
            found.damage("shards", format!("shard {shard}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn floors(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT shard, offset, appended, hour, sum FROM archive_floors")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (shard, sum): (u32, Option<i64>) = (row.get(0)?, row.get(4)?);
        if sum != Some(admin::floor_sum(ShardId(shard), admin::floor(row, 1)?)) {
            found.damage("archive_floors", format!("shard {shard}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn quarantine(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    for (row, sum) in super::snapshot::quarantine_rows(sql)? {
        if sum != Some(admin::quarantine_sum(&row)) {
            found.damage(
                "quarantine",
                format!("shard {}, offset {}, event {}: damaged (checksum)", row.shard, row.offset, row.index),
            );
        }
    }
    Ok(())
}

fn dedup(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    for (shard, range, appended, sum) in admin::blocks(sql)? {
        if sum != Some(admin::block_sum(shard, range, appended)) {
            found.damage("dedup", format!("shard {shard}, offsets [{}, {}): damaged (checksum)", range.from, range.to));
        }
    }
    let mut statement = sql.prepare("SELECT shard, from_offset, to_offset, block FROM dedup")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (shard, from, to): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if let Err(why) = codec::decode_runs(&row.get::<_, Vec<u8>>(3)?) {
            found.damage("dedup", format!("shard {shard}, offsets [{from}, {to}): {why}"));
        }
    }
    Ok(())
}

fn manifest(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    for (row, sum) in super::snapshot::manifest_sums(sql)? {
        match row {
            Err(why) => found.damage("manifest", why),
            Ok(row) if sum != Some(admin::manifest_sum(&row)) => {
                found.damage("manifest", format!("shard {}, {}: damaged (checksum)", row.shard, row.path));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

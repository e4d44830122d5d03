//! One consistent view: a read transaction on a connection of the pool.
//!
//! Matching series are cached per metric and matchers, together with the metric's number of series:
//! series are only ever added, so an equal number means an equal set. Rollups are read by seeks if
//! few series match, otherwise by one scan.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::pool::ReadConnection;
use super::rows::{self, manifest_columns, manifest_rows};
use super::{StoreError, admin, codec, manifest, query_optional};
use crate::model::flush::{AccountingDelta, DedupRules, QuarantineRow, SeriesInfo};
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, Tier};
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};
use crate::persistence::store::matched_series::{MatchCache, MatchedSeries, SeriesCollector};
use crate::persistence::store::{
    ArchiveSnapshot, AuditSnapshot, CheckpointSnapshot, ExpiryRow, ExpiryTarget, MetricInfo,
    NameRange, QuerySnapshot, RollupQuery, too_many_series,
};

/// Keyed by metric number and matchers.
pub(super) type SqliteMatchCache = MatchCache<(i64, String)>;

pub(super) struct SqliteSnapshot<'a> {
    reader: ReadConnection<'a>,
    cache: &'a SqliteMatchCache,
}

/// Receives the number, the id and the key of a series.
type EachSeries<'a> = dyn FnMut(i64, SeriesId, &[u8]) -> Result<(), StoreError> + 'a;

impl<'a> SqliteSnapshot<'a> {
    /// Begins the read transaction; the first read pins the state that it sees.
    pub(super) fn begin(
        reader: ReadConnection<'a>,
        cache: &'a SqliteMatchCache,
    ) -> Result<Self, StoreError> {
        reader.connection()?.execute_batch("BEGIN; SELECT count(*) FROM shards;")?;
        Ok(Self { reader, cache })
    }

    pub(super) fn connection(&self) -> Result<&Connection, StoreError> {
        self.reader.connection()
    }

    fn metric(&self, tenant: &str, metric: &str) -> Result<Option<(i64, i64)>, StoreError> {
        let sql = "SELECT m.no, m.series_count FROM tenants t JOIN metrics m ON m.tenant_no = \
                   t.no WHERE t.name = ? AND m.name = ?";
        query_optional(self.connection()?, sql, [tenant, metric], |r| Ok((r.get(0)?, r.get(1)?)))
    }

    fn matched_series(
        &self,
        query: &RollupQuery<'_>,
        metric_no: i64,
        count: i64,
    ) -> Result<MatchedSeries, StoreError> {
        // Without matchers the count decides, before any series is read.
        if query.matchers.is_empty() && count as usize > query.max_series {
            return Err(too_many_series(query));
        }
        let key = (metric_no, format!("{:?}", query.matchers));
        let matched = self.cache.get(key, count, || self.match_series(query, metric_no))?;
        // The list may have been cached by a query with a higher limit.
        if matched.len() > query.max_series { Err(too_many_series(query)) } else { Ok(matched) }
    }

    fn match_series(
        &self,
        query: &RollupQuery<'_>,
        metric_no: i64,
    ) -> Result<Vec<(i64, Arc<SeriesInfo>)>, StoreError> {
        // An empty value also matches series without the label, which the index does not contain.
        let indexed = query.matchers.iter().find_map(|m| match m {
            Matcher::Equal(name, value) if !value.is_empty() => Some((name, value)),
            _ => None,
        });
        let mut collector = SeriesCollector::new(query);
        let mut offer =
            |no: i64, id: SeriesId, key: &[u8]| collector.offer(no, self.cache.series(id, key)?);
        match indexed {
            Some((name, value)) => {
                let sql = "SELECT s.no, s.id, s.key FROM label_pairs p JOIN series_labels l ON \
                           l.pair_no = p.no
                    JOIN series s ON s.no = l.series_no WHERE p.metric_no = ? AND p.name = ? AND \
                           p.value = ?";
                self.each_series(sql, params![metric_no, name, value], &mut offer)?;
            }
            None => self.each_series(
                "SELECT no, id, key FROM series WHERE metric_no = ?",
                params![metric_no],
                &mut offer,
            )?,
        }
        Ok(collector.finish())
    }

    fn each_series(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        each: &mut EachSeries<'_>,
    ) -> Result<(), StoreError> {
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        while let Some(row) = rows.next()? {
            let key = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            each(row.get(0)?, SeriesId(row.get(1)?), key)?;
        }
        Ok(())
    }

    fn seek(
        &self,
        metric_no: i64,
        series: &[(i64, Arc<SeriesInfo>)],
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError> {
        let sketches = query.distinct || query.quantiles;
        let sql = format!(
            "{} WHERE r.metric_no = ? AND r.hour = ? AND r.series_no = ?",
            select(sketches)
        );
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        for hour in query.from.0..query.to.0 {
            for (no, info) in series {
                query.check_budget()?;
                let mut rows = statement.query(params![metric_no, hour, no])?;
                if let Some(row) = rows.next()? {
                    visit(info, Hour(hour), rollup(row, query.distinct, query.quantiles)?);
                }
            }
        }
        Ok(())
    }

    fn scan(
        &self,
        metric_no: i64,
        series: &[(i64, Arc<SeriesInfo>)],
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError> {
        let sketches = query.distinct || query.quantiles;
        let sql = format!(
            "{} WHERE r.metric_no = ? AND r.hour >= ? AND r.hour < ? ORDER BY r.metric_no, \
             r.hour, r.series_no",
            select(sketches)
        );
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let mut rows = statement.query(params![metric_no, query.from.0, query.to.0])?;
        // Within an hour, rows and series both ascend by number: one merge pass suffices.
        let (mut at, mut current) = (0, None);
        while let Some(row) = rows.next()? {
            query.check_budget()?;
            let hour = Hour(row.get(0)?);
            let no: i64 = row.get(1)?;
            if current != Some(hour) {
                (at, current) = (0, Some(hour));
            }
            while series.get(at).is_some_and(|(other, _)| *other < no) {
                at += 1;
            }
            if let Some((_, info)) = series.get(at).filter(|(other, _)| *other == no) {
                visit(info, hour, rollup(row, query.distinct, query.quantiles)?);
            }
        }
        Ok(())
    }
}

/// Selects hour, series number and figures, and the sketches if wanted.
fn select(sketches: bool) -> &'static str {
    if sketches {
        "SELECT r.hour, r.series_no, r.count, r.value_count, r.sum, r.min, r.max, \
         k.distinct_users, k.quantiles
         FROM rollups r LEFT JOIN sketches k ON k.metric_no = r.metric_no AND k.hour = r.hour AND \
         k.series_no = r.series_no"
    } else {
        "SELECT r.hour, r.series_no, r.count, r.value_count, r.sum, r.min, r.max FROM rollups r"
    }
}

fn rollup(row: &Row<'_>, distinct: bool, quantiles: bool) -> Result<Rollup, StoreError> {
    let figures = codec::figures(row, 2)?;
    if !distinct && !quantiles {
        return Ok(Rollup { figures, ..Rollup::default() });
    }
    let blob = |wanted: bool, column: usize| -> rusqlite::Result<&[u8]> {
        if !wanted {
            return Ok(&[]);
        }
        Ok(row.get_ref(column)?.as_blob_or_null()?.unwrap_or(&[]))
    };
    Ok(Rollup::with_sketches(figures, blob(distinct, 7)?, blob(quantiles, 8)?)?)
}

impl CheckpointSnapshot for SqliteSnapshot<'_> {
    fn checkpoints(&mut self) -> Result<Vec<(ShardId, Checkpoint)>, StoreError> {
        let sql =
            "SELECT shard, log, next, archived, epoch, nonce, appended FROM shards ORDER BY shard";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let rows = statement.query_map([], |r| {
            let checkpoint = Checkpoint {
                log: LogId(r.get(1)?),
                next: r.get::<_, i64>(2)? as Offset,
                archived: r.get::<_, i64>(3)? as Offset,
                epoch: Epoch {
                    counter: r.get::<_, i64>(4)? as u64,
                    nonce: r.get::<_, i64>(5)? as u64,
                },
                appended: r.get(6)?,
            };
            Ok((ShardId(r.get(0)?), checkpoint))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl QuerySnapshot for SqliteSnapshot<'_> {
    fn revisions(
        &mut self,
        tenant: &str,
        metric: &str,
        days: Range<i32>,
    ) -> Result<Vec<u64>, StoreError> {
        let mut revisions = vec![0; days.len()];
        let Some((metric_no, _)) = self.metric(tenant, metric)? else { return Ok(revisions) };
        let sql =
            "SELECT day, revision FROM revisions WHERE metric_no = ? AND day >= ? AND day < ?";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut rows = statement.query(params![metric_no, days.start, days.end])?;
        while let Some(row) = rows.next()? {
            let day: i32 = row.get(0)?;
            revisions[(day - days.start) as usize] = row.get::<_, i64>(1)? as u64;
        }
        Ok(revisions)
    }

    fn rollups(
        &mut self,
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError> {
        let Some((metric_no, count)) = self.metric(query.tenant, query.metric)? else {
            return Ok(());
        };
        let matched = self.matched_series(query, metric_no, count)?;
        if matched.is_empty() || query.from >= query.to {
            return Ok(());
        }
        // A seek costs about as much as eight rows of a scan. For a range much longer than any
        // data, seeks for every hour would cost more than the scan.
        let hours = (i64::from(query.to.0) - i64::from(query.from.0)).max(1);
        let few = (matched.len() as i64) < count / 8
            || (matched.len() as i64).saturating_mul(hours) <= 32;
        if few && hours <= 24 * 366 {
            self.seek(metric_no, &matched, query, visit)
        } else {
            self.scan(metric_no, &matched, query, visit)
        }
    }

    fn metrics(
        &mut self,
        tenant: &str,
        page: &NameRange<'_>,
    ) -> Result<Vec<MetricInfo>, StoreError> {
        let sql = "SELECT m.no, m.name, m.series_count, m.first_hour, m.last_hour FROM tenants t \
                   JOIN metrics m ON m.tenant_no = t.no
            WHERE t.name = ? AND m.name > ? AND m.name >= ? AND m.name < ? ORDER BY m.name LIMIT ?";
        let (from, to) = page.bounds();
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut names = self.connection()?.prepare_cached(
            "SELECT DISTINCT name FROM label_pairs WHERE metric_no = ? ORDER BY name",
        )?;
        let mut rows = statement.query(params![tenant, page.after, from, to, page.rows()])?;
        let mut metrics = Vec::new();
        while let Some(row) = rows.next()? {
            page.check_budget()?;
            let labels = names
                .query_map([row.get::<_, i64>(0)?], |r| r.get(0))?
                .collect::<Result<_, _>>()?;
            metrics.push(MetricInfo {
                metric: row.get(1)?,
                labels,
                series: row.get::<_, i64>(2)? as u64,
                first: row.get::<_, Option<i32>>(3)?.map(Hour),
                last: row.get::<_, Option<i32>>(4)?.map(Hour),
            });
        }
        Ok(metrics)
    }

    fn label_values(
        &mut self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        page: &NameRange<'_>,
    ) -> Result<Vec<String>, StoreError> {
        // Metric by metric, each in the order of its index, so that values beyond the page are
        // never sorted.
        let sql = "SELECT m.no FROM tenants t JOIN metrics m ON m.tenant_no = t.no WHERE t.name = \
                   ?1 AND (?2 IS NULL OR m.name = ?2)";
        let mut metrics = self.connection()?.prepare_cached(sql)?;
        let metrics: Vec<i64> =
            metrics.query_map(params![tenant, metric], |r| r.get(0))?.collect::<Result<_, _>>()?;
        let sql = "SELECT value FROM label_pairs WHERE metric_no = ? AND name = ? AND value > ? \
                   AND value >= ? AND value < ?
            ORDER BY value LIMIT ?";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let (from, to) = page.bounds();
        let mut values: BTreeSet<String> = BTreeSet::new();
        for metric_no in metrics {
            let mut rows =
                statement.query(params![metric_no, name, page.after, from, to, page.rows()])?;
            while let Some(row) = rows.next()? {
                page.check_budget()?;
                let value = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                if values.len() >= page.limit
                    && values.last().is_some_and(|last| last.as_str() <= value)
                {
                    break;
                }
                values.insert(value.to_owned());
                if values.len() > page.limit {
                    values.pop_last();
                }
            }
        }
        Ok(values.into_iter().collect())
    }

    fn accounting(
        &mut self,
        tenant: &str,
        from: Hour,
        to: Hour,
    ) -> Result<Vec<AccountingDelta>, StoreError> {
        let sql = "SELECT hour, aggregated, deduplicated, quarantined FROM accounting
            WHERE tenant = ? AND hour >= ? AND hour < ? ORDER BY hour";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let rows = statement.query_map(params![tenant, from.0, to.0], |r| {
            Ok(AccountingDelta {
                tenant: tenant.to_owned(),
                hour: Hour(r.get(0)?),
                aggregated: r.get::<_, i64>(1)? as u64,
                deduplicated: r.get::<_, i64>(2)? as u64,
                quarantined: r.get::<_, i64>(3)? as u64,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl ArchiveSnapshot for SqliteSnapshot<'_> {
    fn manifest(&mut self, shard: Option<ShardId>) -> Result<Vec<ManifestRow>, StoreError> {
        let sql = concat!(
            manifest_columns!(),
            " WHERE ?1 IS NULL OR shard = ?1 ORDER BY shard, from_offset"
        );
        let mut statement = self.connection()?.prepare_cached(sql)?;
        manifest_rows(statement.query([shard.map(|s| s.0)])?)
    }

    fn manifest_first(
        &mut self,
        shard: ShardId,
        tier: Option<Tier>,
        limit: usize,
    ) -> Result<Vec<ManifestRow>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let of_shard =
            concat!(manifest_columns!(), " WHERE shard = ? ORDER BY from_offset LIMIT ?");
        let of_tier = concat!(
            manifest_columns!(),
            " WHERE shard = ? AND tier = ? ORDER BY from_offset LIMIT ?"
        );
        let connection = self.connection()?;
        match tier {
            None => {
                manifest_rows(connection.prepare_cached(of_shard)?.query(params![shard.0, limit])?)
            }
            Some(tier) => manifest_rows(connection.prepare_cached(of_tier)?.query(params![
                shard.0,
                codec::tier_number(tier),
                limit
            ])?),
        }
    }

    fn last_archived(&mut self, shard: ShardId) -> Result<Option<Millis>, StoreError> {
        let sql = "SELECT max(at) FROM (SELECT last_appended AS at FROM (SELECT last_appended \
                   FROM manifest WHERE shard = ?1
            ORDER BY from_offset DESC LIMIT 1) AS newest UNION ALL SELECT appended FROM \
                   archive_floors WHERE shard = ?1) AS times";
        Ok(self.connection()?.prepare_cached(sql)?.query_row([shard.0], |r| r.get(0))?)
    }

    fn receipts(
        &mut self,
        shard: ShardId,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<(Offset, Millis)>, StoreError> {
        let sql = "SELECT to_offset, last_received FROM manifest WHERE shard = ? AND from_offset \
                   >= ? ORDER BY from_offset LIMIT ?";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![shard.0, from as i64, limit], |r| {
            Ok((r.get::<_, i64>(0)? as Offset, r.get(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn archive_extent(&mut self, shard: ShardId) -> Result<(u64, Option<Offset>), StoreError> {
        let sql = "SELECT count(*), min(from_offset) FROM manifest WHERE shard = ?";
        let read = |r: &rusqlite::Row<'_>| {
            Ok((
                r.get::<_, i64>(0)?.unsigned_abs(),
                r.get::<_, Option<i64>>(1)?.map(|at| at as Offset),
            ))
        };
        Ok(self.connection()?.prepare_cached(sql)?.query_row([shard.0], read)?)
    }

    fn archive_floors(&mut self) -> Result<Vec<(ShardId, ArchiveFloor)>, StoreError> {
        let sql = "SELECT shard, offset, appended, hour FROM archive_floors ORDER BY shard";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let rows = statement.query_map([], |r| Ok((ShardId(r.get(0)?), manifest::floor(r, 1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn expiry(&mut self, of: ExpiryTarget) -> Result<Option<ExpiryRow>, StoreError> {
        let sql = "SELECT note, said FROM expiry WHERE shard = ?";
        super::query_optional(self.connection()?, sql, [of.code()], |r| {
            Ok(ExpiryRow { note: r.get(0)?, approvals: r.get(1)? })
        })
    }

    fn expiries(&mut self) -> Result<Vec<(ExpiryTarget, ExpiryRow)>, StoreError> {
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT shard, note, said FROM expiry ORDER BY shard")?;
        let rows = statement.query_map([], |r| {
            Ok((
                ExpiryTarget::from_code(r.get(0)?),
                ExpiryRow { note: r.get(1)?, approvals: r.get(2)? },
            ))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn decisions(
        &mut self,
        shard: ShardId,
        range: OffsetRange,
    ) -> Result<RangeDecisions, StoreError> {
        let of_range = params![shard.0, range.from as i64, range.to as i64];
        let sql = "SELECT id, admitted_offset FROM series WHERE shard = ? AND admitted_offset >= \
                   ? AND admitted_offset < ?
            ORDER BY admitted_offset, id";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let series = statement
            .query_map(of_range, |r| Ok((SeriesId(r.get(0)?), r.get::<_, i64>(1)? as Offset)))?;
        let admitted = series.collect::<Result<_, _>>()?;
        let sql = "SELECT offset, idx, discarded FROM quarantine WHERE shard = ? AND offset >= ? \
                   AND offset < ? ORDER BY offset, idx";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let events = statement
            .query_map(of_range, |r| Ok((r.get::<_, i64>(0)? as Offset, r.get(1)?, r.get(2)?)))?;
        Ok(RangeDecisions { admitted, quarantined: events.collect::<Result<_, _>>()? })
    }
}

impl AuditSnapshot for SqliteSnapshot<'_> {
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]),
    ) -> Result<(), StoreError> {
        let sql = "SELECT m.no FROM metrics m JOIN tenants t ON t.no = m.tenant_no ORDER BY \
                   t.name, m.name";
        let metrics: Vec<i64> = self
            .connection()?
            .prepare_cached(sql)?
            .query_map([], |r| r.get(0))?
            .collect::<Result<_, _>>()?;
        let mut bytes = Vec::new();
        for metric_no in metrics {
            let mut series: HashMap<i64, Arc<SeriesInfo>> = HashMap::new();
            self.each_series(
                "SELECT no, id, key FROM series WHERE metric_no = ?",
                [metric_no],
                &mut |no, id, key| {
                    series.insert(no, self.cache.series(id, key)?);
                    Ok(())
                },
            )?;
            let sql = format!(
                "{} WHERE r.metric_no = ? AND r.hour >= ? AND r.hour < ? ORDER BY r.metric_no, \
                 r.hour, r.series_no",
                select(true)
            );
            let mut statement = self.connection()?.prepare_cached(&sql)?;
            let mut rows = statement.query(params![metric_no, from.0, to.0])?;
            // Numbers are not in the order of ids, so the rows of one hour at a time are sorted.
            let mut hour: (Hour, BTreeMap<SeriesId, (&Arc<SeriesInfo>, Rollup)>) =
                (from, BTreeMap::new());
            loop {
                let row = rows.next()?;
                let next = row.map(|r| r.get(0).map(Hour)).transpose()?;
                if next != Some(hour.0) {
                    for (info, rollup) in std::mem::take(&mut hour.1).into_values() {
                        bytes.clear();
                        rollup.encode(&mut bytes);
                        visit(info, hour.0, rollup, &bytes);
                    }
                }
                let (Some(row), Some(next)) = (row, next) else { break };
                hour.0 = next;
                let no: i64 = row.get(1)?;
                let info = series.get(&no).ok_or_else(|| {
                    StoreError::Invalid(format!(
                        "series number {no} has rollups but no catalogue row: rebuild the store"
                    ))
                })?;
                hour.1.insert(info.id, (info, rollup(row, true, true)?));
            }
        }
        Ok(())
    }

    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError> {
        admin::dedup_rules(self.connection()?, shard)
    }

    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT id, admitted_offset FROM series WHERE shard = ?")?;
        let rows = statement
            .query_map([shard.0], |r| Ok((SeriesId(r.get(0)?), r.get::<_, i64>(1)? as Offset)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn ledger(&mut self) -> Result<Vec<AccountingDelta>, StoreError> {
        rows::accounting(self.connection()?)
    }

    fn quarantine(&mut self) -> Result<Vec<QuarantineRow>, StoreError> {
        Ok(rows::quarantine_rows(self.connection()?)?.into_iter().map(|(row, _)| row).collect())
    }
}

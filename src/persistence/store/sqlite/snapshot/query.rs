//! What queries read: rollups of the matching series, their revisions, names and the accounting.
//!
//! Matching series are cached per metric and matchers, together with the metric's number of series:
//! series are only ever added, so an equal number means an equal set. Rollups are read by seeks if
//! few series match, otherwise by one scan.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use rusqlite::params;

use super::super::{StoreError, query_optional};
use super::{SqliteSnapshot, rollup, select};
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::generation::GenerationId;
use crate::model::matcher::Matcher;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::store::matched_series::{MatchedSeries, SeriesCollector, prefers_seeks};
use crate::persistence::store::{
    MetricInfo, NameRange, QuerySnapshot, RollupQuery, too_many_series,
};

/// The label names of a metric number.
const LABEL_NAMES: &str = "SELECT DISTINCT name FROM label_pairs WHERE metric_no = ? ORDER BY name";

impl SqliteSnapshot<'_> {
    /// Number of a metric in a generation, and of its series: of all its writers, if it is not
    /// generation 0.
    pub(super) fn metric(
        &self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        let sql = "SELECT m.no, m.series_count FROM tenants t JOIN metrics m ON m.tenant_no = \
                   t.no WHERE t.name = ? AND m.name = ? AND m.generation = ?";
        let of = params![tenant, metric, generation.0 as i64];
        query_optional(self.connection()?, sql, of, |r| Ok((r.get(0)?, r.get(1)?)))
    }

    fn matched_series(
        &self,
        query: &RollupQuery<'_>,
        metric_no: i64,
        count: i64,
    ) -> Result<MatchedSeries, StoreError> {
        // Without matchers the count decides, before any series is read. In other generations it
        // counts a series once for each writer.
        let is_exact = query.generation.is_ingest();
        if is_exact && query.matchers.is_empty() && count as usize > query.max_series {
            return Err(too_many_series(query));
        }
        let key = (metric_no, format!("{:?}", query.matchers));
        let matched = self.cache.get(key, count, || self.match_series(query, metric_no))?;
        // The list may have been cached by a query with a higher limit.
        if matched.len() > query.max_series && distinct(&matched) > query.max_series {
            return Err(too_many_series(query));
        }
        Ok(matched)
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

/// The number of series, each of which may have several writers.
fn distinct(matched: &MatchedSeries) -> usize {
    matched.iter().map(|(_, info)| info.id).collect::<HashSet<_>>().len()
}

impl QuerySnapshot for SqliteSnapshot<'_> {
    fn revisions(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
        days: Range<i32>,
    ) -> Result<Vec<u64>, StoreError> {
        let mut revisions = vec![0; days.len()];
        let Some((metric_no, _)) = self.metric(tenant, metric, generation)? else {
            return Ok(revisions);
        };
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
        let of = (query.tenant, query.metric, query.generation);
        let Some((metric_no, count)) = self.metric(of.0, of.1, of.2)? else { return Ok(()) };
        let matched = self.matched_series(query, metric_no, count)?;
        if matched.is_empty() || query.from >= query.to {
            return Ok(());
        }
        if prefers_seeks(matched.len(), count, query) {
            self.seek(metric_no, &matched, query, visit)
        } else {
            self.scan(metric_no, &matched, query, visit)
        }
    }

    fn generation_metric(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
    ) -> Result<Option<MetricInfo>, StoreError> {
        let sql = "SELECT m.no, m.first_hour, m.last_hour, (SELECT count(DISTINCT s.id) FROM \
                   series s WHERE s.metric_no = m.no)
            FROM tenants t JOIN metrics m ON m.tenant_no = t.no
            WHERE t.name = ? AND m.name = ? AND m.generation = ? AND m.first_hour NOT NULL";
        let of = params![tenant, metric, generation.0 as i64];
        let found = query_optional(self.connection()?, sql, of, |r| {
            let info = MetricInfo {
                metric: metric.to_owned(),
                labels: Vec::new(),
                series: r.get::<_, i64>(3)? as u64,
                first: r.get::<_, Option<i32>>(1)?.map(Hour),
                last: r.get::<_, Option<i32>>(2)?.map(Hour),
            };
            Ok((r.get::<_, i64>(0)?, info))
        })?;
        let Some((metric_no, info)) = found else { return Ok(None) };
        let mut names = self.connection()?.prepare_cached(LABEL_NAMES)?;
        let labels = names.query_map([metric_no], |r| r.get(0))?.collect::<Result<_, _>>()?;
        Ok(Some(MetricInfo { labels, ..info }))
    }

    fn metrics(
        &mut self,
        tenant: &str,
        page: &NameRange<'_>,
    ) -> Result<Vec<MetricInfo>, StoreError> {
        let sql = "SELECT m.no, m.name, m.series_count, m.first_hour, m.last_hour FROM tenants t \
                   JOIN metrics m ON m.tenant_no = t.no
            WHERE t.name = ? AND m.generation = 0 AND m.name > ? AND m.name >= ? AND m.name < ? \
                   ORDER BY m.name LIMIT ?";
        let (from, to) = page.bounds();
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut names = self.connection()?.prepare_cached(LABEL_NAMES)?;
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
        others: &[(&str, GenerationId)],
        page: &NameRange<'_>,
    ) -> Result<Vec<String>, StoreError> {
        // Metric by metric, each in the order of its index, so that values beyond the page are
        // never sorted.
        let sql = "SELECT m.no FROM tenants t JOIN metrics m ON m.tenant_no = t.no WHERE t.name = \
                   ?1 AND m.generation = 0 AND (?2 IS NULL OR m.name = ?2)";
        let mut metrics = self.connection()?.prepare_cached(sql)?;
        let mut metrics: Vec<i64> =
            metrics.query_map(params![tenant, metric], |r| r.get(0))?.collect::<Result<_, _>>()?;
        for (metric, generation) in others {
            metrics.extend(self.metric(tenant, metric, *generation)?.map(|(no, _)| no));
        }
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

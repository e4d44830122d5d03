//! What queries read: rollups of the matching series, their revisions, names and the accounting.
//!
//! Matching series are cached per metric and matchers, together with the metric's number of series.
//! Series are only ever added, in an order in which the number grows, so an equal number on the
//! same start of a server means an equal set. [`super::super::rollups`] describes how rollups are
//! read.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use tokio_postgres::Row;

use super::super::StoreError;
use super::super::codec::get;
use super::super::rollups::RollupScan;
use super::super::session::params;
use super::PostgresSnapshot;
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::generation::GenerationId;
use crate::model::matcher::Matcher;
use crate::model::rollup::Rollup;
use crate::model::window::Hour;
use crate::persistence::store::matched_series::{MatchedSeries, SeriesCollector, prefers_seeks};
use crate::persistence::store::{
    MetricInfo, NameRange, QuerySnapshot, RollupQuery, too_many_series,
};

impl PostgresSnapshot<'_> {
    /// Number of a metric in a generation, and of its series: of all its writers, if it is not
    /// generation 0.
    pub(super) fn metric(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
    ) -> Result<Option<(i32, i64)>, StoreError> {
        let sql = "SELECT m.no, m.series_count FROM tenants t JOIN metrics m ON m.tenant_no = \
                   t.no WHERE t.name = $1 AND m.name = $2 AND m.generation = $3";
        let of = params![tenant.to_owned(), metric.to_owned(), generation.0 as i64];
        let rows = self.session()?.query(sql, of)?;
        rows.first().map(|row| Ok((get(row, 0)?, get(row, 1)?))).transpose()
    }

    fn matched_series(
        &mut self,
        query: &RollupQuery<'_>,
        metric_no: i32,
        count: i64,
    ) -> Result<MatchedSeries, StoreError> {
        // Without matchers the count decides, before any series is read. In generations it counts a
        // series once for each writer.
        let is_exact = query.generation.is_ingest();
        if is_exact && query.matchers.is_empty() && count as usize > query.max_series {
            return Err(too_many_series(query));
        }
        let key =
            (self.session()?.backend.server_started, metric_no, format!("{:?}", query.matchers));
        let cache = self.cache;
        let matched = cache.get(key, count, || self.match_series(query, metric_no))?;
        // The list may have been cached by a query with a higher limit.
        if matched.len() > query.max_series && count_ids(&matched) > query.max_series {
            return Err(too_many_series(query));
        }
        Ok(matched)
    }

    fn match_series(
        &mut self,
        query: &RollupQuery<'_>,
        metric_no: i32,
    ) -> Result<Vec<(i64, Arc<SeriesInfo>)>, StoreError> {
        // An empty value also matches series without the label, which the index does not contain.
        let indexed = query.matchers.iter().find_map(|m| match m {
            Matcher::Equal(name, value) if !value.is_empty() => Some((name.clone(), value.clone())),
            _ => None,
        });
        let mut collector = SeriesCollector::new(query);
        match indexed {
            // PostgreSQL's text cannot hold NUL, so no stored label value contains one.
            Some((_, value)) if value.contains('\0') => {}
            Some((name, value)) => {
                let sql = "SELECT s.no, s.id, s.key FROM label_pairs p JOIN series_labels l ON \
                           l.pair_no = p.no
                    JOIN series s ON s.no = l.series_no WHERE p.metric_no = $1 AND p.name = $2 AND \
                           p.value = $3";
                self.each_series(sql, params![metric_no, name, value], |no, info| {
                    collector.offer(no, info)
                })?;
            }
            None => {
                let sql = "SELECT no, id, key FROM series WHERE metric_no = $1";
                self.each_series(sql, params![metric_no], |no, info| collector.offer(no, info))?;
            }
        }
        Ok(collector.finish())
    }

    /// First and last hour with rows. The span in the catalogue may be wider than they are.
    fn hours_with_rows(
        &mut self,
        metric_no: i32,
        span: (Option<i32>, Option<i32>),
    ) -> Result<Option<(Hour, Hour)>, StoreError> {
        let session = self.session()?;
        let mut end = |order: &str| -> Result<Option<Hour>, StoreError> {
            let sql = format!(
                "SELECT hour FROM rollups WHERE metric_no = $1 AND hour >= $2 AND hour <= $3 ORDER \
                 BY hour {order}, series_no {order} LIMIT 1"
            );
            let rows = session.query(&sql, params![metric_no, span.0, span.1])?;
            rows.first().map(|row| get(row, 0).map(Hour)).transpose()
        };
        Ok(end("ASC")?.zip(end("DESC")?))
    }
}

/// Number of series, each of which may have several writers.
fn count_ids(matched: &MatchedSeries) -> usize {
    matched.iter().map(|(_, info)| info.id).collect::<HashSet<_>>().len()
}

/// The server answered when the snapshot began, so a timeout now is due to the query.
fn too_long(why: StoreError) -> StoreError {
    match why {
        StoreError::Unavailable(why) => StoreError::TooLong(why),
        other => other,
    }
}

impl QuerySnapshot for PostgresSnapshot<'_> {
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
            "SELECT day, revision FROM revisions WHERE metric_no = $1 AND day >= $2 AND day < $3";
        for row in self.session()?.query(sql, params![metric_no, days.start, days.end])? {
            let day: i32 = get(&row, 0)?;
            revisions[(day - days.start) as usize] = get::<i64>(&row, 1)? as u64;
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
        let seeks = prefers_seeks(matched.len(), count, query);
        let nos: Vec<i64> = matched.iter().map(|(no, _)| *no).collect();
        let reading = RollupScan {
            metric_no,
            hours: (query.from, query.to),
            series: count.unsigned_abs(),
            series_nos: seeks.then_some(&*nos),
            distinct: query.distinct,
            quantiles: query.quantiles,
            renews_time_limit: false,
        };
        let compressed = self.compressed_weeks;
        let session = self.session()?;
        let read = reading.run(session, compressed, &mut |hour, no, rollup| {
            query.check_budget()?;
            if let Ok(at) = matched.binary_search_by_key(&no, |(no, _)| *no) {
                visit(&matched[at].1, hour, rollup);
            }
            Ok(())
        });
        read.map_err(|why| if session.is_timed_out() { too_long(why) } else { why })
    }

    fn generation_metric(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
    ) -> Result<Option<MetricInfo>, StoreError> {
        let sql = "SELECT m.no, (SELECT count(DISTINCT s.id) FROM series s WHERE s.metric_no = \
                   m.no), m.first_hour, m.last_hour,
            ARRAY(SELECT DISTINCT p.name FROM label_pairs p WHERE p.metric_no = m.no ORDER BY \
                   p.name)
            FROM tenants t JOIN metrics m ON m.tenant_no = t.no
            WHERE t.name = $1 AND m.name = $2 AND m.generation = $3 AND m.generation > 0";
        let of = params![tenant.to_owned(), metric.to_owned(), generation.0 as i64];
        let rows = self.session()?.query(sql, of)?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (labels, series) = (get(row, 4)?, get::<i64>(row, 1)? as u64);
        let hours = self.hours_with_rows(get(row, 0)?, (get(row, 2)?, get(row, 3)?))?;
        Ok(hours.map(|(first, last)| {
            let (first, last) = (Some(first), Some(last));
            MetricInfo { metric: metric.to_owned(), labels, series, first, last }
        }))
    }

    fn metrics(
        &mut self,
        tenant: &str,
        page: &NameRange<'_>,
    ) -> Result<Vec<MetricInfo>, StoreError> {
        let sql = "SELECT m.name, m.series_count, m.first_hour, m.last_hour,
            ARRAY(SELECT DISTINCT p.name FROM label_pairs p WHERE p.metric_no = m.no ORDER BY \
                   p.name)
            FROM tenants t JOIN metrics m ON m.tenant_no = t.no
            WHERE t.name = $1 AND m.generation = 0 AND m.name > $2 AND m.name >= $3 AND m.name < \
                   $4 ORDER BY m.name LIMIT $5";
        let (from, to) = page.bounds();
        let asked =
            params![tenant.to_owned(), page.after.to_owned(), from.to_owned(), to, page.rows()];
        let metric = |row: &Row| {
            Ok(MetricInfo {
                metric: get(row, 0)?,
                labels: get(row, 4)?,
                series: get::<i64>(row, 1)? as u64,
                first: get::<Option<i32>>(row, 2)?.map(Hour),
                last: get::<Option<i32>>(row, 3)?.map(Hour),
            })
        };
        self.session()?.query(sql, asked)?.iter().map(metric).collect()
    }

    fn label_values(
        &mut self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        others: &[(&str, GenerationId)],
        page: &NameRange<'_>,
    ) -> Result<Vec<String>, StoreError> {
        let of_others = "OR (m.name, m.generation) IN (SELECT * FROM unnest($8::text[], \
                         $9::bigint[]))";
        let sql = format!(
            "SELECT DISTINCT p.value FROM tenants t JOIN metrics m ON m.tenant_no = t.no JOIN \
             label_pairs p ON p.metric_no = m.no
             WHERE t.name = $1 AND p.name = $2 AND (m.generation = 0 AND ($3::text IS NULL OR \
             m.name = $3) {})
             AND p.value > $4 AND p.value >= $5 AND p.value < $6 ORDER BY p.value LIMIT $7",
            if others.is_empty() { "" } else { of_others }
        );
        let ((from, to), metric) = (page.bounds(), metric.map(str::to_owned));
        let after = page.after.to_owned();
        let mut asked = params![
            tenant.to_owned(),
            name.to_owned(),
            metric,
            after,
            from.to_owned(),
            to,
            page.rows()
        ];
        if !others.is_empty() {
            let (metrics, generations): (Vec<String>, Vec<i64>) =
                others.iter().map(|(metric, no)| ((*metric).to_owned(), no.0 as i64)).unzip();
            asked.extend(params![metrics, generations]);
        }
        self.session()?.query(&sql, asked)?.iter().map(|row| get(row, 0)).collect()
    }

    fn accounting(
        &mut self,
        tenant: &str,
        from: Hour,
        to: Hour,
    ) -> Result<Vec<AccountingDelta>, StoreError> {
        let sql = "SELECT hour, aggregated, deduplicated, quarantined FROM accounting
            WHERE tenant = $1 AND hour >= $2 AND hour < $3 ORDER BY hour";
        let account = |row: &Row| {
            Ok(AccountingDelta {
                tenant: tenant.to_owned(),
                hour: Hour(get(row, 0)?),
                aggregated: get::<i64>(row, 1)? as u64,
                deduplicated: get::<i64>(row, 2)? as u64,
                quarantined: get::<i64>(row, 3)? as u64,
            })
        };
        self.session()?
            .query(sql, params![tenant.to_owned(), from.0, to.0])?
            .iter()
            .map(account)
            .collect()
    }
}

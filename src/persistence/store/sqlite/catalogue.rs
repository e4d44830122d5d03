//! The catalogue: numbers of series and metrics.
//!
//! A number is cached only after the transaction that assigned it has committed. An id that belongs
//! to another series is refused, and with it the whole transaction. The cache keeps only what
//! distinguishes a series from another one with the same id: with full keys, a million series would
//! take as much memory here as in the rest of the process.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::quality::RandomState;
use rusqlite::{Connection, params};

use super::{StoreError, codec, query_optional};
use crate::model::flush::SeriesInfo;
use crate::model::offset::{Offset, ShardId};
use crate::model::series::{Series, SeriesId};

/// A series as the cache knows it.
#[derive(Debug, Clone, Copy)]
struct CachedSeries {
    metric_no: i64,
    series_no: i64,
    /// Hash of tenant, metric and labels, valid in this process only. It is not derived from the
    /// id, so that a collision of ids is not also one of fingerprints.
    fingerprint: u64,
}

type CachedNumbers = HashMap<SeriesId, CachedSeries, RandomState>;

/// Committed series that were used recently.
#[derive(Debug, Default)]
pub(super) struct SqliteSeriesCache(CachedNumbers);

/// Series that a transaction looked up or admitted.
#[derive(Debug, Default)]
pub(super) struct UncommittedSeries(CachedNumbers);

/// At this size the cache is emptied and refills with the series in use.
const CACHE_MAX_SERIES: usize = 2_000_000;

impl SqliteSeriesCache {
    pub(super) fn remember(&mut self, fresh: UncommittedSeries) {
        if self.0.len() + fresh.0.len() > CACHE_MAX_SERIES {
            self.0.clear();
        }
        self.0.extend(fresh.0);
    }

    /// The hash that [`CachedSeries::fingerprint`] holds.
    fn fingerprint(&self, info: &SeriesInfo) -> u64 {
        self.0.hasher().hash_one(&info.series)
    }
}

/// The catalogue as seen by one transaction.
pub(super) struct SeriesCatalogue<'a> {
    tx: &'a Connection,
    known: &'a SqliteSeriesCache,
    uncommitted: UncommittedSeries,
    /// Numbers of the metrics and label pairs that this transaction looked up: a flush that admits
    /// many series meets few distinct ones.
    metrics: HashMap<(String, String), i64>,
    pairs: HashMap<(i64, String, String), i64>,
    /// Series admitted per metric, added to the metric's row once at the end.
    growth: BTreeMap<i64, i64>,
}

/// The checksum of an admission. The rest of the row follows from the series' key.
pub(super) fn admission_checksum(id: SeriesId, shard: ShardId, at: Offset) -> i64 {
    codec::row_checksum(&[&id.0, &shard.0.to_be_bytes(), &at.to_be_bytes()])
}

impl<'a> SeriesCatalogue<'a> {
    pub(super) fn new(tx: &'a Connection, known: &'a SqliteSeriesCache) -> Self {
        Self {
            tx,
            known,
            uncommitted: UncommittedSeries::default(),
            metrics: HashMap::new(),
            pairs: HashMap::new(),
            growth: BTreeMap::new(),
        }
    }

    /// Writes the new numbers of series of the metrics. Returns the series to cache after the
    /// commit.
    pub(super) fn finish(self) -> Result<UncommittedSeries, StoreError> {
        for (metric_no, admitted) in self.growth {
            self.tx
                .prepare_cached("UPDATE metrics SET series_count = series_count + ? WHERE no = ?")?
                .execute([admitted, metric_no])?;
        }
        Ok(self.uncommitted)
    }

    /// The numbers of a series, which is admitted if it is new.
    pub(super) fn number_series(
        &mut self,
        info: &Arc<SeriesInfo>,
        shard: ShardId,
        at: Offset,
    ) -> Result<(i64, i64), StoreError> {
        let print = self.known.fingerprint(info);
        let known = self.known.0.get(&info.id).or_else(|| self.uncommitted.0.get(&info.id));
        if let Some(known) = known.filter(|known| known.fingerprint == print) {
            return Ok((known.metric_no, known.series_no));
        }
        // Not cached, or another series with this id is: the stored key decides.
        let sql = "SELECT no, metric_no, key FROM series WHERE id = ?";
        let stored = query_optional(self.tx, sql, [&info.id.0[..]], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get::<_, Vec<u8>>(2)?))
        })?;
        let (series_no, metric_no) = match stored {
            Some((series_no, metric_no, key)) => {
                let series = Series::from_key(&key)?;
                if series != info.series {
                    return Err(super::super::collision(&SeriesInfo { id: info.id, series }, info));
                }
                (series_no, metric_no)
            }
            None => self.admit(info, shard, at)?,
        };
        self.uncommitted
            .0
            .insert(info.id, CachedSeries { metric_no, series_no, fingerprint: print });
        Ok((metric_no, series_no))
    }

    fn admit(
        &mut self,
        info: &SeriesInfo,
        shard: ShardId,
        at: Offset,
    ) -> Result<(i64, i64), StoreError> {
        let series = &info.series;
        let metric_no = self.metric(&series.tenant, &series.metric)?;
        self.tx
            .prepare_cached(
                "INSERT INTO series (metric_no, id, key, shard, admitted_offset, sum) VALUES (?, \
                 ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                metric_no,
                &info.id.0[..],
                series.key(),
                shard.0,
                at as i64,
                admission_checksum(info.id, shard, at)
            ])?;
        let series_no = self.tx.last_insert_rowid();
        *self.growth.entry(metric_no).or_default() += 1;
        for (name, value) in &series.labels {
            let pair_no = self.pair(metric_no, name, value)?;
            self.tx
                .prepare_cached("INSERT INTO series_labels (pair_no, series_no) VALUES (?, ?)")?
                .execute([pair_no, series_no])?;
        }
        Ok((series_no, metric_no))
    }

    fn metric(&mut self, tenant: &str, metric: &str) -> Result<i64, StoreError> {
        let key = (tenant.to_owned(), metric.to_owned());
        if let Some(&no) = self.metrics.get(&key) {
            return Ok(no);
        }
        let tenant_no = self.upsert(
            "SELECT no FROM tenants WHERE name = ?",
            "INSERT INTO tenants (name) VALUES (?)",
            params![tenant],
        )?;
        let no = self.upsert(
            "SELECT no FROM metrics WHERE tenant_no = ? AND name = ?",
            "INSERT INTO metrics (tenant_no, name) VALUES (?, ?)",
            params![tenant_no, metric],
        )?;
        self.metrics.insert(key, no);
        Ok(no)
    }

    fn pair(&mut self, metric_no: i64, name: &str, value: &str) -> Result<i64, StoreError> {
        let key = (metric_no, name.to_owned(), value.to_owned());
        if let Some(&no) = self.pairs.get(&key) {
            return Ok(no);
        }
        let no = self.upsert(
            "SELECT no FROM label_pairs WHERE metric_no = ? AND name = ? AND value = ?",
            "INSERT INTO label_pairs (metric_no, name, value) VALUES (?, ?, ?)",
            params![metric_no, name, value],
        )?;
        self.pairs.insert(key, no);
        Ok(no)
    }

    fn upsert(
        &self,
        select: &str,
        insert: &str,
        params: &[&dyn rusqlite::ToSql],
    ) -> Result<i64, StoreError> {
        if let Some(no) = query_optional(self.tx, select, params, |r| r.get(0))? {
            return Ok(no);
        }
        self.tx.prepare_cached(insert)?.execute(params)?;
        Ok(self.tx.last_insert_rowid())
    }
}

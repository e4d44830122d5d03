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
use rusqlite::{Connection, Row, params};

use super::{StoreError, codec, query_optional};
use crate::model::CodecError;
use crate::model::flush::SeriesInfo;
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::offset::{Offset, ShardId};
use crate::model::series::{Series, SeriesId};
use crate::persistence::store::SeriesScope;

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

/// The columns `generation` and `part` of a scope's metrics and series.
fn columns(scope: SeriesScope) -> (i64, i64) {
    (scope.generation().0 as i64, scope.part().map_or(0, part_number))
}

/// The column `part` of a writer's series.
pub(super) fn part_number(part: WriterPart) -> i64 {
    match part {
        WriterPart::Live => 1,
        WriterPart::Fill => 2,
    }
}

/// The writer that the columns `shard` and `part` name.
pub(super) fn writer(shard: u32, part: i64) -> Result<Writer, StoreError> {
    let part = match part {
        1 => WriterPart::Live,
        2 => WriterPart::Fill,
        other => {
            return Err(CodecError::new("part", format!("{other} is no part of a writer")).into());
        }
    };
    Ok(Writer { shard: ShardId(shard), part })
}

/// Numbers of series by scope.
#[derive(Debug, Default)]
struct ScopedNumbers {
    ingest: CachedNumbers,
    others: HashMap<(GenerationId, Writer), CachedNumbers, RandomState>,
}

impl ScopedNumbers {
    fn get(&self, scope: SeriesScope, id: SeriesId) -> Option<&CachedSeries> {
        match scope {
            SeriesScope::Ingest => self.ingest.get(&id),
            SeriesScope::Writer(generation, writer) => {
                self.others.get(&(generation, writer))?.get(&id)
            }
        }
    }

    fn insert(&mut self, scope: SeriesScope, id: SeriesId, series: CachedSeries) {
        let numbers = match scope {
            SeriesScope::Ingest => &mut self.ingest,
            SeriesScope::Writer(generation, writer) => {
                self.others.entry((generation, writer)).or_default()
            }
        };
        numbers.insert(id, series);
    }

    fn len(&self) -> usize {
        self.ingest.len() + self.others.values().map(HashMap::len).sum::<usize>()
    }
}

/// Committed series that were used recently.
#[derive(Debug, Default)]
pub(super) struct SqliteSeriesCache(ScopedNumbers);

/// Series that a transaction looked up or admitted.
#[derive(Debug, Default)]
pub(super) struct UncommittedSeries(ScopedNumbers);

/// At this size the cache is emptied and refills with the series in use.
const CACHE_MAX_SERIES: usize = 2_000_000;

impl SqliteSeriesCache {
    pub(super) fn remember(&mut self, fresh: UncommittedSeries) {
        if self.0.len() + fresh.0.len() > CACHE_MAX_SERIES {
            self.0 = ScopedNumbers::default();
        }
        self.0.ingest.extend(fresh.0.ingest);
        for (writer, numbers) in fresh.0.others {
            self.0.others.entry(writer).or_default().extend(numbers);
        }
    }

    /// Forgets the series of a generation whose catalogue is about to be deleted.
    pub(super) fn forget(&mut self, generation: GenerationId) {
        self.0.others.retain(|(of, _), _| *of != generation);
    }

    /// The hash that [`CachedSeries::fingerprint`] holds.
    fn fingerprint(&self, info: &SeriesInfo) -> u64 {
        self.0.ingest.hasher().hash_one(&info.series)
    }
}

/// The catalogue as seen by one transaction.
pub(super) struct SeriesCatalogue<'a> {
    tx: &'a Connection,
    known: &'a SqliteSeriesCache,
    uncommitted: UncommittedSeries,
    /// Numbers of the metrics and label pairs that this transaction looked up: a flush that admits
    /// many series meets few distinct ones.
    metrics: HashMap<(String, String, i64), i64>,
    pairs: HashMap<(i64, String, String), i64>,
    /// Series admitted per metric, added to the metric's row once at the end.
    growth: BTreeMap<i64, i64>,
}

/// The checksum of an admission by a writer of a generation. The rest of the row follows from the
/// series' key.
pub(super) fn admission_checksum(
    id: SeriesId,
    (generation, shard, part): (i64, ShardId, i64),
    at: Offset,
) -> i64 {
    codec::row_checksum(&[
        &id.0,
        &shard.0.to_be_bytes(),
        &at.to_be_bytes(),
        &generation.to_be_bytes(),
        &part.to_be_bytes(),
    ])
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
        scope: SeriesScope,
        info: &Arc<SeriesInfo>,
        (shard, at): (ShardId, Offset),
    ) -> Result<(i64, i64), StoreError> {
        let print = self.known.fingerprint(info);
        let known = self.known.0.get(scope, info.id);
        let known = known.or_else(|| self.uncommitted.0.get(scope, info.id));
        if let Some(known) = known.filter(|known| known.fingerprint == print) {
            return Ok((known.metric_no, known.series_no));
        }
        // Not cached, or another series with this id is: the stored key decides.
        let stored = self.stored(scope, info, shard)?;
        let (series_no, metric_no) = match stored {
            Some((series_no, metric_no, key)) => {
                let series = Series::from_key(&key)?;
                if series != info.series {
                    return Err(super::super::collision(&SeriesInfo { id: info.id, series }, info));
                }
                (series_no, metric_no)
            }
            None => self.admit(scope, info, (shard, at))?,
        };
        let series = CachedSeries { metric_no, series_no, fingerprint: print };
        self.uncommitted.0.insert(scope, info.id, series);
        Ok((metric_no, series_no))
    }

    /// Number, metric number and key of the series that has this id in the scope.
    fn stored(
        &mut self,
        scope: SeriesScope,
        info: &SeriesInfo,
        shard: ShardId,
    ) -> Result<Option<(i64, i64, Vec<u8>)>, StoreError> {
        let read = |r: &Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?));
        let (generation, part) = columns(scope);
        if scope == SeriesScope::Ingest {
            let sql = "SELECT no, metric_no, key FROM series WHERE id = ? AND part = 0";
            return query_optional(self.tx, sql, [&info.id.0[..]], read);
        }
        let metric_no = self.metric(&info.series.tenant, &info.series.metric, generation)?;
        let sql = "SELECT no, metric_no, key FROM series WHERE metric_no = ? AND shard = ? AND \
                   part = ? AND id = ? AND part > 0";
        query_optional(self.tx, sql, params![metric_no, shard.0, part, &info.id.0[..]], read)
    }

    fn admit(
        &mut self,
        scope: SeriesScope,
        info: &SeriesInfo,
        (shard, at): (ShardId, Offset),
    ) -> Result<(i64, i64), StoreError> {
        let series = &info.series;
        let (generation, part) = columns(scope);
        let metric_no = self.metric(&series.tenant, &series.metric, generation)?;
        self.tx
            .prepare_cached(
                "INSERT INTO series (metric_no, id, key, shard, admitted_offset, sum, part) VALUES \
                 (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                metric_no,
                &info.id.0[..],
                series.key(),
                shard.0,
                at as i64,
                admission_checksum(info.id, (generation, shard, part), at),
                part
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

    fn metric(&mut self, tenant: &str, metric: &str, generation: i64) -> Result<i64, StoreError> {
        let key = (tenant.to_owned(), metric.to_owned(), generation);
        if let Some(&no) = self.metrics.get(&key) {
            return Ok(no);
        }
        let tenant_no = self.upsert(
            "SELECT no FROM tenants WHERE name = ?",
            "INSERT INTO tenants (name) VALUES (?)",
            params![tenant],
        )?;
        let no = self.upsert(
            "SELECT no FROM metrics WHERE tenant_no = ? AND name = ? AND generation = ?",
            "INSERT INTO metrics (tenant_no, name, generation) VALUES (?, ?, ?)",
            params![tenant_no, metric, generation],
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

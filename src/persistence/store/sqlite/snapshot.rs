//! One consistent view: a read transaction on a connection of the pool.

mod archive;
mod audit;
mod generations;
mod query;

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::generations::BookCache;
use super::pool::ReadConnection;
use super::{SqliteStore, StoreError, codec};
use crate::model::generation_book::GenerationBook;
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::persistence::store::CheckpointSnapshot;
use crate::persistence::store::matched_series::MatchCache;

/// Keyed by metric number and matchers.
pub(super) type SqliteMatchCache = MatchCache<(i64, String)>;

pub(super) struct SqliteSnapshot<'a> {
    reader: ReadConnection<'a>,
    cache: &'a SqliteMatchCache,
    books: &'a BookCache,
}

/// Receives the number, the id and the key of a series.
type EachSeries<'a> = dyn FnMut(i64, SeriesId, &[u8]) -> Result<(), StoreError> + 'a;

impl<'a> SqliteSnapshot<'a> {
    /// Begins the read transaction; the first read pins the state that it sees.
    pub(super) fn begin(
        reader: ReadConnection<'a>,
        store: &'a SqliteStore,
    ) -> Result<Self, StoreError> {
        reader.connection()?.execute_batch("BEGIN; SELECT count(*) FROM shards;")?;
        Ok(Self { reader, cache: &store.match_cache, books: &store.books })
    }

    pub(super) fn connection(&self) -> Result<&Connection, StoreError> {
        self.reader.connection()
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

    fn generation_book(&mut self) -> Result<Arc<GenerationBook>, StoreError> {
        self.books.read(self.connection()?)
    }
}

//! One consistent view: a REPEATABLE READ READ ONLY transaction on a session of the read pool.

mod archive;
mod audit;
mod generations;
mod query;
mod source;

use std::sync::Arc;

use tokio_postgres::Row;

use super::codec::{UuidBytes, get};
use super::compressed_weeks::CompressedWeeks;
use super::generations::{self as books, BookCache};
use super::pool::SessionLease;
use super::session::{Param, PostgresSession, params};
use super::{PostgresStore, StoreError};
use crate::model::flush::SeriesInfo;
use crate::model::generation_book::GenerationBook;
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, ShardId};
use crate::model::series::SeriesId;
use crate::persistence::store::CheckpointSnapshot;
use crate::persistence::store::matched_series::MatchCache;

/// The SQL that begins a snapshot; its first statement pins the state.
pub(super) const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Keyed by start of the server, metric number and matchers.
pub(super) type PostgresMatchCache = MatchCache<(i64, i32, String)>;

/// A consistent view, held until dropped.
pub(super) struct PostgresSnapshot<'a> {
    lease: SessionLease<'a>,
    cache: &'a PostgresMatchCache,
    compressed_weeks: &'a CompressedWeeks,
    books: &'a BookCache,
    /// The version of the book of generations in this snapshot.
    book_version: u64,
}

impl<'a> PostgresSnapshot<'a> {
    /// `lease` must be inside a transaction that began with [`BEGIN_SNAPSHOT`].
    pub(super) fn new(
        mut lease: SessionLease<'a>,
        store: &'a PostgresStore,
    ) -> Result<Self, StoreError> {
        // BEGIN alone takes no snapshot: the first statement does. Every query needs this version,
        // so it costs no round trip of its own.
        let book_version = books::book_version(lease.session()?)?;
        let PostgresStore { match_cache, compressed_weeks, books, .. } = store;
        Ok(Self { lease, cache: match_cache, compressed_weeks, books, book_version })
    }

    fn session(&mut self) -> Result<&mut PostgresSession, StoreError> {
        self.lease.session()
    }

    fn each_series(
        &mut self,
        sql: &str,
        params: Vec<Param>,
        mut each: impl FnMut(i64, Arc<SeriesInfo>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let cache = self.cache;
        self.session()?.for_each_row(sql, params, |row| {
            let info = cache.series(SeriesId(get::<UuidBytes>(row, 1)?.0), get(row, 2)?)?;
            each(get(row, 0)?, info)
        })
    }
}

fn epoch(row: &Row, first: usize) -> Result<Epoch, StoreError> {
    Ok(Epoch { counter: get::<i64>(row, first)? as u64, nonce: get::<i64>(row, first + 1)? as u64 })
}

fn shard(row: &Row, at: usize) -> Result<ShardId, StoreError> {
    Ok(ShardId(get::<i32>(row, at)?.cast_unsigned()))
}

impl CheckpointSnapshot for PostgresSnapshot<'_> {
    fn checkpoints(&mut self) -> Result<Vec<(ShardId, Checkpoint)>, StoreError> {
        let sql =
            "SELECT shard, log, next, archived, epoch, nonce, appended FROM shards ORDER BY shard";
        let checkpoint = |row: &Row| {
            let (next, archived) = (get::<i64>(row, 2)? as Offset, get::<i64>(row, 3)? as Offset);
            let log = LogId(get::<UuidBytes>(row, 1)?.0);
            Ok((
                shard(row, 0)?,
                Checkpoint { log, next, archived, epoch: epoch(row, 4)?, appended: get(row, 6)? },
            ))
        };
        self.session()?.query(sql, params![])?.iter().map(checkpoint).collect()
    }

    fn generation_book(&mut self) -> Result<Arc<GenerationBook>, StoreError> {
        let (books, version) = (self.books, self.book_version);
        books.version(self.session()?, version)
    }
}

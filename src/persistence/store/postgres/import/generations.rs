//! Imports what belongs to generations besides generation 0.

use super::super::codec::UuidBytes;
use super::super::generations;
use super::super::session::{Param, params};
use super::super::{StoreError, flush};
use super::Import;
use crate::model::generation_book::GenerationBook;
use crate::model::offset::LogId;
use crate::persistence::store::transfer::{FillRow, QuarantineEntry};

impl Import<'_> {
    /// The database has the book of version 0, which no store had a generation under.
    pub(super) fn book(&mut self, book: &GenerationBook) -> Result<(), StoreError> {
        match generations::swap(self.session, 0, book, &[])? {
            true => Ok(()),
            false => Err(StoreError::Failed("the store has a book of generations already".into())),
        }
    }

    pub(super) fn quarantine(&mut self, rows: &[QuarantineEntry]) -> Result<(), StoreError> {
        self.write(rows.iter().map(|entry| flush::quarantine_upsert(&entry.row)))?;
        self.write(rows.iter().filter(|entry| entry.released).map(|entry| {
            let (shard, offset) = (entry.row.shard.0.cast_signed(), entry.row.offset as i64);
            let sql = "UPDATE quarantine SET released = true WHERE shard = $1 AND \"offset\" = $2 \
                       AND idx = $3";
            (sql, params![shard, offset, i64::from(entry.row.index)])
        }))
    }
}

/// The cursor of a fill goes on in the log of the store: its offsets are those of the old one.
pub(super) fn fill_insert(log: LogId, row: &FillRow) -> (&'static str, Vec<Param>) {
    let sql = "INSERT INTO generation_fills (generation, shard, log, cut, cursor) VALUES ($1, $2, \
               $3, $4, $5)";
    let by = (row.generation.0 as i64, row.shard.0.cast_signed());
    let at = (row.progress.cut as i64, row.progress.cursor as i64);
    (sql, params![by.0, by.1, UuidBytes(log.0), at.0, at.1])
}

//! The book of generations: one row, parsed once for each version; and the audit list.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, Row, params};

use super::super::checksums::{audit_checksum, book_checksum};
use super::super::{StoreError, query_optional};
use crate::model::CodecError;
use crate::model::generation::GenerationId;
use crate::model::generation_book::GenerationBook;
use crate::persistence::store::AuditEntry;

/// The newest book that was parsed.
#[derive(Debug, Default)]
pub(in super::super) struct BookCache(Mutex<Arc<GenerationBook>>);

impl BookCache {
    /// The book as the connection's transaction sees it. That transaction must not have changed it:
    /// what is cached is committed.
    pub(in super::super) fn read(
        &self,
        connection: &Connection,
    ) -> Result<Arc<GenerationBook>, StoreError> {
        let cached = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        // The document is only read if it is another one.
        let sql = "SELECT version, CASE WHEN version <> ? THEN document END, sum FROM \
                   generation_book";
        let row = query_optional(connection, sql, [cached.version() as i64], |r| {
            Ok((r.get::<_, i64>(0)? as u64, r.get::<_, Option<String>>(1)?, r.get(2)?))
        })?;
        let Some((version, document, sum)) = row else { return Ok(Arc::default()) };
        let Some(document) = document else { return Ok(cached) };
        let book = Arc::new(decode(version, &document, sum)?);
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An older snapshot must not take the place of what most readers see.
        if newest.version() < book.version() {
            *newest = Arc::clone(&book);
        }
        Ok(book)
    }
}

fn decode(version: u64, document: &str, sum: Option<i64>) -> Result<GenerationBook, CodecError> {
    let wrong = |why: &str| CodecError::new("book of generations", why.to_owned());
    if sum != Some(book_checksum(version, document)) {
        return Err(wrong("its checksum does not match"));
    }
    serde_json::from_str(document).map_err(|e| wrong(&e.to_string()))
}

/// Replaces the book of version `before`, and adds to the audit list. `false` if it is of another
/// version.
pub(super) fn swap(
    tx: &Connection,
    before: u64,
    book: &GenerationBook,
    entries: &[AuditEntry],
) -> Result<bool, StoreError> {
    let document = serde_json::to_string(book)
        .map_err(|e| StoreError::Failed(format!("the book of generations: {e}")))?;
    let (version, sum) = (book.version(), book_checksum(book.version(), &document));
    // A store that never had a generation has no row.
    let swapped = match before {
        0 => tx
            .prepare_cached(
                "INSERT INTO generation_book VALUES (1, ?, ?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![version as i64, document, sum])?,
        _ => tx
            .prepare_cached(
                "UPDATE generation_book SET version = ?, document = ?, sum = ? WHERE version = ?",
            )?
            .execute(params![version as i64, document, sum, before as i64])?,
    };
    if swapped != 1 {
        return Ok(false);
    }
    for entry in entries {
        let sql = "INSERT INTO generation_audit (generation, tenant, action, at, by, note, sum) \
                   VALUES (?, ?, ?, ?, ?, ?, ?)";
        let AuditEntry { generation, tenant, action, at, by, note } = entry;
        let (of, sum) = (generation.0 as i64, audit_checksum(entry));
        tx.prepare_cached(sql)?.execute(params![of, tenant, action, at, by, note, sum])?;
    }
    Ok(true)
}

/// Reads an entry of the audit list from the first six columns.
pub(in super::super) fn audit_entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    Ok(AuditEntry {
        generation: GenerationId(row.get::<_, i64>(0)? as u64),
        tenant: row.get(1)?,
        action: row.get(2)?,
        at: row.get(3)?,
        by: row.get(4)?,
        note: row.get(5)?,
    })
}

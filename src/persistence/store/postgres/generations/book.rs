//! The book of generations: one row, parsed once for each version.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::StoreError;
use super::super::codec::get;
use super::super::session::{PostgresSession, params};
use crate::model::CodecError;
use crate::model::generation_book::GenerationBook;

/// The book that was parsed last, for one start of a server: a failover may lose a version, and
/// another book may then get its number.
#[derive(Debug, Default)]
pub(in super::super) struct BookCache(Mutex<(i64, Arc<GenerationBook>)>);

/// The version of the book, as this transaction sees it.
pub(in super::super) fn book_version(session: &mut PostgresSession) -> Result<u64, StoreError> {
    let rows = session.query("SELECT version FROM generation_book", params![])?;
    rows.first().map_or(Ok(0), |row| get::<i64>(row, 0).map(|version| version as u64))
}

impl BookCache {
    /// The book of a version that this transaction sees, and goes on seeing.
    pub(in super::super) fn version(
        &self,
        session: &mut PostgresSession,
        version: u64,
    ) -> Result<Arc<GenerationBook>, StoreError> {
        if version == 0 {
            return Ok(Arc::default());
        }
        match self.cached(session.backend.server_started) {
            Some(book) if book.version() == version => Ok(book),
            _ => self.current(session),
        }
    }

    /// The book as of now.
    pub(in super::super) fn current(
        &self,
        session: &mut PostgresSession,
    ) -> Result<Arc<GenerationBook>, StoreError> {
        let sql = "SELECT version, CASE WHEN version <> $1 THEN document END FROM generation_book";
        self.read(session, sql)
    }

    /// The book as of now. Nobody changes it before this transaction ends.
    pub(in super::super) fn lock(
        &self,
        session: &mut PostgresSession,
    ) -> Result<Arc<GenerationBook>, StoreError> {
        let sql = "SELECT version, CASE WHEN version <> $1 THEN document END FROM \
                   generation_book FOR SHARE";
        self.read(session, sql)
    }

    /// The book as of now, which this transaction is to change.
    pub(in super::super) fn lock_to_change(
        &self,
        session: &mut PostgresSession,
    ) -> Result<Arc<GenerationBook>, StoreError> {
        let sql = "SELECT version, CASE WHEN version <> $1 THEN document END FROM \
                   generation_book FOR UPDATE";
        self.read(session, sql)
    }

    fn read(
        &self,
        session: &mut PostgresSession,
        sql: &str,
    ) -> Result<Arc<GenerationBook>, StoreError> {
        let server = session.backend.server_started;
        let cached = self.cached(server).unwrap_or_default();
        let rows = session.query(sql, params![cached.version() as i64])?;
        let Some(row) = rows.first() else { return Ok(Arc::default()) };
        let Some(document) = get::<Option<&str>>(row, 1)? else { return Ok(cached) };
        if get::<i64>(row, 0)? == 0 {
            return Ok(Arc::default());
        }
        let book: GenerationBook = serde_json::from_str(document)
            .map_err(|e| CodecError::new("book of generations", e.to_string()))?;
        let book = Arc::new(book);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An older snapshot must not take the place of what most readers see.
        if last.0 != server || last.1.version() < book.version() {
            *last = (server, Arc::clone(&book));
        }
        Ok(book)
    }

    fn cached(&self, server: i64) -> Option<Arc<GenerationBook>> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (last.0 == server).then(|| Arc::clone(&last.1))
    }
}

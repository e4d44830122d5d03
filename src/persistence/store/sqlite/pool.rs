//! A few read-only connections; whoever finds none free waits.
//!
//! A connection goes back only after its transaction ended. One that cannot end it is dropped, and opened anew on next use.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use rusqlite::Connection;

use super::{StoreError, schema};

/// The connections that are free; `None` is one not opened yet.
#[derive(Debug)]
pub(super) struct Pool {
    path: PathBuf,
    free: Mutex<Vec<Option<Connection>>>,
    returned: Condvar,
}

/// A connection, until dropped.
pub(super) struct Reader<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl Pool {
    pub(super) fn new(path: &Path, size: usize) -> Self {
        let free = Mutex::new((0..size).map(|_| None).collect());
        Self { path: path.to_owned(), free, returned: Condvar::new() }
    }

    /// A free connection; blocks while there is none.
    pub(super) fn take(&self) -> Result<Reader<'_>, StoreError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = loop {
            match free.pop() {
                Some(slot) => break slot,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        self.open(slot)
    }

    /// A connection that is free now.
    pub(super) fn take_at_once(&self) -> Result<Option<Reader<'_>>, StoreError> {
        let slot = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        slot.map(|slot| self.open(slot)).transpose()
    }

    fn open(&self, slot: Option<Connection>) -> Result<Reader<'_>, StoreError> {
        // From here on dropping `reader` returns the slot, also if opening fails.
        let mut reader = Reader { pool: self, connection: slot };
        if reader.connection.is_none() {
            reader.connection = Some(schema::open_reader(&self.path)?);
        }
        Ok(reader)
    }
}

impl Reader<'_> {
    pub(super) fn connection(&self) -> Result<&Connection, StoreError> {
        self.connection.as_ref().ok_or_else(|| StoreError::Failed("the reader has no connection".to_owned()))
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let connection = self.connection.take().filter(|c| c.is_autocommit() || c.execute_batch("ROLLBACK").is_ok());
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        self.pool.returned.notify_one();
    }
}

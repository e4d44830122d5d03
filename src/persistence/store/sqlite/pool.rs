//! A few read-only connections; whoever finds none free waits.
//!
//! A connection goes back only after its transaction ended. One that cannot end it is dropped, and opened anew on next use.
//!
//! Where a disk takes no writes, SQLite cannot lay the journal that a reader of a file in use needs. While this process does not write
//! either, the file is then read as it stands; such a connection is called frozen, and is gone before anything is written.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use rusqlite::Connection;

use super::{StoreError, schema};

/// The connections that are free; `None` is one not opened yet.
#[derive(Debug)]
pub(super) struct Pool {
    path: PathBuf,
    free: Mutex<Free>,
    returned: Condvar,
}

#[derive(Debug)]
struct Free {
    slots: Vec<Option<Connection>>,
    /// Frozen connections in use.
    frozen: usize,
    /// Whether this process may be writing.
    thawed: bool,
}

/// A connection, until dropped.
pub(super) struct Reader<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
    frozen: bool,
}

impl Pool {
    pub(super) fn new(path: &Path, size: usize) -> Self {
        let free = Mutex::new(Free { slots: (0..size).map(|_| None).collect(), frozen: 0, thawed: false });
        Self { path: path.to_owned(), free, returned: Condvar::new() }
    }

    /// A free connection; blocks while there is none.
    pub(super) fn take(&self) -> Result<Reader<'_>, StoreError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = loop {
            match free.slots.pop() {
                Some(slot) => break slot,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        self.open(slot)
    }

    /// A connection that is free now.
    pub(super) fn take_at_once(&self) -> Result<Option<Reader<'_>>, StoreError> {
        let slot = self.free.lock().unwrap_or_else(PoisonError::into_inner).slots.pop();
        slot.map(|slot| self.open(slot)).transpose()
    }

    fn open(&self, slot: Option<Connection>) -> Result<Reader<'_>, StoreError> {
        // From here on dropping `reader` returns the slot, also if opening fails.
        let mut reader = Reader { pool: self, connection: slot, frozen: false };
        if reader.connection.is_none() {
            match schema::open_reader(&self.path) {
                Ok(connection) => reader.connection = Some(connection),
                Err(why) => reader.freeze(why)?,
            }
        }
        Ok(reader)
    }

    /// From here on the file is written: nobody reads it as it stands any more.
    ///
    /// # Errors
    /// If somebody still does; it may be tried again.
    pub(super) fn thaw(&self) -> Result<(), StoreError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.frozen > 0 {
            return Err(StoreError::Failed(
                "queries still read the file as it stands: it is written when they have ended".to_owned(),
            ));
        }
        free.thawed = true;
        Ok(())
    }
}

impl Reader<'_> {
    /// Reads the file as it stands, if nobody in this process may be writing; what was the matter otherwise.
    fn freeze(&mut self, why: StoreError) -> Result<(), StoreError> {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.thawed {
            return Err(why);
        }
        self.connection = Some(schema::open_frozen(&self.pool.path).map_err(|_| why)?);
        self.frozen = true;
        free.frozen += 1;
        Ok(())
    }

    pub(super) fn connection(&self) -> Result<&Connection, StoreError> {
        self.connection.as_ref().ok_or_else(|| StoreError::Failed("the reader has no connection".to_owned()))
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // A frozen one is opened anew each time, so that there is none between two queries.
        let ended = |c: &Connection| c.is_autocommit() || c.execute_batch("ROLLBACK").is_ok();
        let connection = self.connection.take().filter(|c| !self.frozen && ended(c));
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.frozen -= usize::from(self.frozen);
        free.slots.push(connection);
        drop(free);
        self.pool.returned.notify_one();
    }
}

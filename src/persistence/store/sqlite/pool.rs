//! A few read-only connections; whoever finds none free waits.
//!
//! A connection goes back only after its transaction ended. One that cannot end it is dropped, and
//! opened anew on next use.
//!
//! Where a disk takes no writes, SQLite cannot lay the journal that a reader of a file in use
//! needs. While this process does not write either, the file is then read as it stands (frozen).
//! And what SQLite shares between the connections of a process cannot be written for as long as one
//! of them is open that was opened there. So the writer is opened while no reader is
//! ([`Pool::exclusively`]).

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::{StoreError, schema};

/// How long readers may take to end before the writer is opened.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Connections in use.
    out: usize,
    /// Nobody gets one now.
    held: bool,
    /// Whether this process may be writing.
    written: bool,
}

/// A connection, until dropped.
pub(super) struct Reader<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
    frozen: bool,
}

impl Pool {
    pub(super) fn new(path: &Path, size: usize) -> Self {
        let free = Mutex::new(Free {
            slots: (0..size).map(|_| None).collect(),
            out: 0,
            held: false,
            written: false,
        });
        Self { path: path.to_owned(), free, returned: Condvar::new() }
    }

    /// A free connection; blocks while there is none.
    pub(super) fn take(&self) -> Result<Reader<'_>, StoreError> {
        let mut free = self.lock();
        let slot = loop {
            match free.give() {
                Some(slot) => break slot,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        self.open(slot)
    }

    /// A connection that is free now.
    pub(super) fn take_at_once(&self) -> Result<Option<Reader<'_>>, StoreError> {
        let slot = self.lock().give();
        slot.map(|slot| self.open(slot)).transpose()
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Opens what writes the file, while nobody reads it; if that works, nobody reads it as it
    /// stands any more.
    ///
    /// # Errors
    /// Those of `open`; and if readers do not end in time: it may be tried again.
    pub(super) fn exclusively<T>(
        &self,
        open: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut free = self.lock();
        free.held = true;
        let (waited, timeout) = self
            .returned
            .wait_timeout_while(free, PATIENCE, |free| free.out > 0)
            .unwrap_or_else(PoisonError::into_inner);
        free = waited;
        let opened = if timeout.timed_out() {
            Err(StoreError::Failed(
                "queries still read the store: it is written when they have ended".to_owned(),
            ))
        } else {
            free.slots.iter_mut().for_each(|slot| *slot = None);
            // Nobody gets a connection meanwhile.
            drop(free);
            let opened = open();
            free = self.lock();
            free.written = opened.is_ok();
            opened
        };
        free.held = false;
        drop(free);
        self.returned.notify_all();
        opened
    }
}

impl Free {
    fn give(&mut self) -> Option<Option<Connection>> {
        let slot = if self.held { None } else { self.slots.pop() };
        self.out += usize::from(slot.is_some());
        slot
    }
}

impl Reader<'_> {
    /// Reads the file as it stands, if nobody in this process may be writing; what was the matter
    /// otherwise.
    fn freeze(&mut self, why: StoreError) -> Result<(), StoreError> {
        if self.pool.lock().written {
            return Err(why);
        }
        // While it is in use, nobody begins to write.
        self.connection = Some(schema::open_frozen(&self.pool.path).map_err(|_| why)?);
        self.frozen = true;
        Ok(())
    }

    pub(super) fn connection(&self) -> Result<&Connection, StoreError> {
        self.connection
            .as_ref()
            .ok_or_else(|| StoreError::Failed("the reader has no connection".to_owned()))
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // A frozen one is opened anew each time, so that there is none between two queries.
        let ended = |c: &Connection| c.is_autocommit() || c.execute_batch("ROLLBACK").is_ok();
        let connection = self.connection.take().filter(|c| !self.frozen && ended(c));
        let mut free = self.pool.lock();
        free.out -= 1;
        free.slots.push(connection);
        drop(free);
        // All: one may wait for a connection, another one for all to be back.
        self.pool.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_is_opened_while_nobody_reads() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store.sqlite");
        Connection::open(&path)
            .expect("opens")
            .execute_batch("CREATE TABLE t (x)")
            .expect("a table");
        let pool = Pool::new(&path, 2);
        let reader = pool.take().expect("a reader");
        assert!(pool.exclusively(|| Ok(())).is_err(), "somebody reads");
        drop(reader);
        let opened = pool.exclusively(|| {
            assert!(
                pool.take_at_once().expect("no error").is_none(),
                "nobody gets a connection meanwhile"
            );
            Ok(7)
        });
        assert_eq!(opened, Ok(7));
        let readers = (pool.take().expect("a reader"), pool.take().expect("a reader"));
        assert!(pool.take_at_once().expect("no error").is_none(), "no more than there are");
        drop(readers);
        assert!(pool.take_at_once().expect("no error").is_some());
    }
}

//! A few read-only connections; whoever finds none free waits.
//!
//! A connection goes back only after its transaction ended. One that cannot end it is dropped, and
//! opened anew on next use.
//!
//! Where a disk takes no writes, SQLite cannot lay the journal that a reader of a file in use
//! needs. While this process does not write either, the file is then read as it stands (frozen).
//! And what SQLite shares between the connections of a process cannot be written for as long as one
//! of them is open that was opened there. So the writer is opened while no reader is
//! ([`ReaderPool::exclusively`]).

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::{StoreError, schema};

/// How long readers may take to end before the writer is opened.
const WRITER_WAIT: Duration = Duration::from_secs(1);

/// The connections that are free; `None` is one not opened yet.
#[derive(Debug)]
pub(super) struct ReaderPool {
    path: PathBuf,
    free: Mutex<ReaderSlots>,
    returned: Condvar,
}

#[derive(Debug)]
struct ReaderSlots {
    slots: Vec<Option<Connection>>,
    /// Connections in use.
    in_use: usize,
    /// Nobody gets one now.
    blocked: bool,
    /// Whether this process may be writing.
    has_writer: bool,
}

/// A connection, until dropped.
pub(super) struct ReadConnection<'a> {
    pool: &'a ReaderPool,
    connection: Option<Connection>,
    immutable: bool,
}

impl ReaderPool {
    pub(super) fn new(path: &Path, size: usize) -> Self {
        let free = Mutex::new(ReaderSlots {
            slots: (0..size).map(|_| None).collect(),
            in_use: 0,
            blocked: false,
            has_writer: false,
        });
        Self { path: path.to_owned(), free, returned: Condvar::new() }
    }

    /// A free connection; blocks while there is none.
    pub(super) fn take(&self) -> Result<ReadConnection<'_>, StoreError> {
        let mut free = self.lock();
        let slot = loop {
            match free.take_slot() {
                Some(slot) => break slot,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        self.open(slot)
    }

    /// A connection that is free now.
    pub(super) fn take_at_once(&self) -> Result<Option<ReadConnection<'_>>, StoreError> {
        let slot = self.lock().take_slot();
        slot.map(|slot| self.open(slot)).transpose()
    }

    fn lock(&self) -> MutexGuard<'_, ReaderSlots> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, slot: Option<Connection>) -> Result<ReadConnection<'_>, StoreError> {
        // From here on dropping `reader` returns the slot, also if opening fails.
        let mut reader = ReadConnection { pool: self, connection: slot, immutable: false };
        if reader.connection.is_none() {
            match schema::open_reader(&self.path) {
                Ok(connection) => reader.connection = Some(connection),
                Err(why) => reader.open_immutable(why)?,
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
        free.blocked = true;
        let (waited, timeout) = self
            .returned
            .wait_timeout_while(free, WRITER_WAIT, |free| free.in_use > 0)
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
            free.has_writer = opened.is_ok();
            opened
        };
        free.blocked = false;
        drop(free);
        self.returned.notify_all();
        opened
    }
}

impl ReaderSlots {
    fn take_slot(&mut self) -> Option<Option<Connection>> {
        let slot = if self.blocked { None } else { self.slots.pop() };
        self.in_use += usize::from(slot.is_some());
        slot
    }
}

impl ReadConnection<'_> {
    /// Reads the file as it stands, if nobody in this process may be writing; what was the matter
    /// otherwise.
    fn open_immutable(&mut self, why: StoreError) -> Result<(), StoreError> {
        if self.pool.lock().has_writer {
            return Err(why);
        }
        // While it is in use, nobody begins to write.
        self.connection = Some(schema::open_immutable(&self.pool.path).map_err(|_| why)?);
        self.immutable = true;
        Ok(())
    }

    pub(super) fn connection(&self) -> Result<&Connection, StoreError> {
        self.connection
            .as_ref()
            .ok_or_else(|| StoreError::Failed("the reader has no connection".to_owned()))
    }
}

impl Drop for ReadConnection<'_> {
    fn drop(&mut self) {
        // A frozen one is opened anew each time, so that there is none between two queries.
        let ended = |c: &Connection| c.is_autocommit() || c.execute_batch("ROLLBACK").is_ok();
        let connection = self.connection.take().filter(|c| !self.immutable && ended(c));
        let mut free = self.pool.lock();
        free.in_use -= 1;
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
        let pool = ReaderPool::new(&path, 2);
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

//! A pool of read-only connections; callers wait while none is free.
//!
//! A connection returns to the pool only after its transaction ended. One that cannot end it is
//! closed and reopened on next use.
//!
//! On a disk that refuses writes, SQLite cannot create the journal that readers of a live file
//! need. As long as this process has no writer, the file is then read without a journal
//! (immutable). Also, the shared memory between SQLite's connections stays unwritable for as long
//! as any connection is open that was opened on a read-only disk. The writer is therefore opened
//! while no reader is open ([`ReaderPool::exclusively`]).

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::{StoreError, schema};

/// How long to wait for readers to finish before giving up on opening the writer.
const WRITER_WAIT: Duration = Duration::from_secs(1);

/// The idle connections. A `None` in a slot is a connection that is not open yet.
#[derive(Debug)]
pub(super) struct ReaderPool {
    path: PathBuf,
    free: Mutex<ReaderSlots>,
    returned: Condvar,
}

#[derive(Debug)]
struct ReaderSlots {
    slots: Vec<Option<Connection>>,
    /// The number of connections on loan.
    in_use: usize,
    /// Set while the writer is opened: no connection is handed out.
    blocked: bool,
    /// Whether this process may be writing. If so, the file is never read as immutable.
    has_writer: bool,
}

/// A connection on loan, until dropped.
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

    /// Takes a connection; blocks while none is free.
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

    /// Takes a connection if one is free now.
    pub(super) fn take_at_once(&self) -> Result<Option<ReadConnection<'_>>, StoreError> {
        let slot = self.lock().take_slot();
        slot.map(|slot| self.open(slot)).transpose()
    }

    fn lock(&self) -> MutexGuard<'_, ReaderSlots> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, slot: Option<Connection>) -> Result<ReadConnection<'_>, StoreError> {
        // From here on, dropping `reader` returns the slot, even if opening fails.
        let mut reader = ReadConnection { pool: self, connection: slot, immutable: false };
        if reader.connection.is_none() {
            match schema::open_reader(&self.path) {
                Ok(connection) => reader.connection = Some(connection),
                Err(why) => reader.open_immutable(why)?,
            }
        }
        Ok(reader)
    }

    /// Runs `open`, which opens the writer, while no reader is open. On success the file is no
    /// longer read as immutable. If readers do not finish in time, the error may be retried.
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
            // Also closes idle connections: one opened on the read-only disk would block the
            // writer.
            free.slots.iter_mut().for_each(|slot| *slot = None);
            // The lock is not held while the disk is slow; `blocked` keeps readers out.
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
    /// Opens the file as immutable, unless this process may be writing. On failure returns `why`,
    /// the reason for which the ordinary open failed.
    fn open_immutable(&mut self, why: StoreError) -> Result<(), StoreError> {
        if self.pool.lock().has_writer {
            return Err(why);
        }
        // No writer can be opened while this connection is on loan.
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
        // Immutable connections are not kept: between two queries the writer must be able to open.
        let ended = |c: &Connection| c.is_autocommit() || c.execute_batch("ROLLBACK").is_ok();
        let connection = self.connection.take().filter(|c| !self.immutable && ended(c));
        let mut free = self.pool.lock();
        free.in_use -= 1;
        free.slots.push(connection);
        drop(free);
        // Wakes all: some wait for one connection, another may wait for all of them.
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

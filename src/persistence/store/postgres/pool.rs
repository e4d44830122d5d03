//! A bounded pool of sessions. Callers wait while none is free, but no longer than a transaction
//! may take.
//!
//! A session returns to the pool only without an open transaction or a pending answer. Others are
//! discarded, which ends their transaction on the server, and the next caller connects again, to
//! whichever host accepts writes by then.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::StoreError;
use super::connect::SessionConnector;
use super::errors::SessionError;
use super::session::PostgresSession;
use crate::clock::Stopwatch;
use crate::model::budget::CancelFlag;

/// How often a waiting caller checks whether its query was aborted.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// The sessions of one purpose: writing or reading.
pub(super) struct SessionPool {
    pub(super) connector: SessionConnector,
    free: Mutex<SessionSlots>,
    returned: Condvar,
    size: usize,
    limit: Duration,
    /// The configuration key of the size, for messages.
    key: &'static str,
}

struct SessionSlots {
    idle: Vec<PostgresSession>,
    /// Sessions that are idle or on loan, including slots reserved for connecting.
    open: usize,
}

/// A session on loan, until dropped.
pub(super) struct SessionLease<'a> {
    pool: &'a SessionPool,
    session: Option<PostgresSession>,
    is_new: bool,
}

impl SessionPool {
    pub(super) fn new(
        connector: SessionConnector,
        size: usize,
        limit: Duration,
        key: &'static str,
    ) -> Self {
        let free = Mutex::new(SessionSlots { idle: Vec::new(), open: 0 });
        Self { connector, free, returned: Condvar::new(), size, limit, key }
    }

    /// Takes a session, with the full time limit of a transaction. Fails with
    /// [`StoreError::Failed`] if none becomes free in time or the server refuses, with
    /// [`StoreError::Unavailable`] if the server is unreachable.
    pub(super) fn take(&self) -> Result<SessionLease<'_>, StoreError> {
        self.take_for(None)
    }

    fn take_for(&self, query: Option<&CancelFlag>) -> Result<SessionLease<'_>, StoreError> {
        self.lend(self.wait_for_slot(query)?, query)
    }

    /// Turns a reserved slot into a lease, connecting if the slot has no session.
    fn lend(
        &self,
        idle: Option<PostgresSession>,
        query: Option<&CancelFlag>,
    ) -> Result<SessionLease<'_>, StoreError> {
        // From here on, dropping `lease` returns the slot, even if connecting fails.
        let mut lease = SessionLease { pool: self, is_new: idle.is_none(), session: idle };
        if lease.session.is_none() {
            lease.session = Some(self.connector.connect_for(query)?);
        }
        let session = lease.session()?;
        session.set_time_limit(self.limit);
        session.set_query(query);
        Ok(lease)
    }

    /// Takes a session and begins a transaction with `begin_sql`. Idle sessions may have died
    /// silently, all of them after a failover. Nothing was done in them yet, so the next one is
    /// tried.
    pub(super) fn begin(&self, begin_sql: &str) -> Result<SessionLease<'_>, StoreError> {
        self.begin_for(begin_sql, None)
    }

    /// Like [`SessionPool::begin`], for a query: the wait and everything done with the session end
    /// when the query is aborted. The error is then [`StoreError::QueryEnded`].
    pub(super) fn begin_for(
        &self,
        begin_sql: &str,
        query: Option<&CancelFlag>,
    ) -> Result<SessionLease<'_>, StoreError> {
        loop {
            if let Some(lease) = Self::begin_lease(self.take_for(query)?, begin_sql)? {
                return Ok(lease);
            }
        }
    }

    /// Like [`SessionPool::begin_for`], but `None` instead of waiting for a slot, and with a time
    /// limit of its own.
    pub(super) fn begin_at_once(
        &self,
        begin_sql: &str,
        query: Option<&CancelFlag>,
        limit: Duration,
    ) -> Result<Option<SessionLease<'_>>, StoreError> {
        loop {
            let slot =
                self.reserve_slot(&mut self.free.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(idle) = slot else { return Ok(None) };
            let mut lease = self.lend(idle, query)?;
            lease.session()?.set_time_limit(limit);
            if let Some(lease) = Self::begin_lease(lease, begin_sql)? {
                return Ok(Some(lease));
            }
        }
    }

    /// Begins the transaction; `None` if the session had died while it was idle.
    fn begin_lease<'a>(
        mut lease: SessionLease<'a>,
        begin_sql: &str,
    ) -> Result<Option<SessionLease<'a>>, StoreError> {
        let fresh = lease.is_new;
        match lease.session()?.begin(begin_sql.to_owned()) {
            Ok(()) => Ok(Some(lease)),
            // Only a stale idle session is worth another try: these failures would only repeat.
            Err(failure)
                if fresh
                    || matches!(failure, SessionError::TimedOut | SessionError::QueryEnded)
                    || failure.session_survives() =>
            {
                Err(failure.into())
            }
            Err(_) => Ok(None),
        }
    }

    /// Reserves a free slot: with an idle session, or with `None`, to connect one.
    fn reserve_slot(&self, free: &mut SessionSlots) -> Option<Option<PostgresSession>> {
        while let Some(session) = free.idle.pop() {
            if session.is_reusable() {
                return Some(Some(session));
            }
            free.open -= 1;
        }
        let room = free.open < self.size;
        free.open += usize::from(room);
        room.then_some(None)
    }

    /// Reserves a slot, waiting until one is free or the query is aborted.
    fn wait_for_slot(
        &self,
        query: Option<&CancelFlag>,
    ) -> Result<Option<PostgresSession>, StoreError> {
        let watch = Stopwatch::start();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(slot) = self.reserve_slot(&mut free) {
                return Ok(slot);
            }
            if query.is_some_and(CancelFlag::is_set) {
                return Err(StoreError::QueryEnded);
            }
            let left = self.limit.saturating_sub(watch.elapsed());
            if left.is_zero() {
                return Err(StoreError::Failed(format!(
                    "all {} connections to {} were busy for {:?}: raise {} or store.timeout",
                    self.size, self.connector.address, self.limit, self.key
                )));
            }
            // The pool is not notified when a query is aborted, so the flag is polled.
            let left = query.map_or(left, |_| left.min(POLL_EVERY));
            free = self.returned.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl SessionLease<'_> {
    /// The session on loan.
    pub(super) fn session(&mut self) -> Result<&mut PostgresSession, StoreError> {
        self.session
            .as_mut()
            .ok_or_else(|| StoreError::Failed("the lease has no session".to_owned()))
    }
}

impl Drop for SessionLease<'_> {
    fn drop(&mut self) {
        let mut session = self.session.take();
        if let Some(session) = &mut session {
            session.rollback();
        }
        let session = session.filter(PostgresSession::is_reusable);
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        match session {
            Some(session) => free.idle.push(session),
            None => free.open -= 1,
        }
        drop(free);
        self.pool.returned.notify_one();
    }
}

//! A bounded number of sessions; whoever finds none free waits, not longer than a transaction may
//! take.
//!
//! A session goes back only when no transaction is open and no answer is missing. Others are thrown
//! away, which ends their transaction on the server, and the next caller connects anew: to whatever
//! host takes writes then.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::StoreError;
use super::connect::SessionConnector;
use super::errors::SessionError;
use super::session::PostgresSession;
use crate::clock::Stopwatch;
use crate::model::budget::CancelFlag;

/// How often who waits for a session looks whether the query has ended that it is for.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// The sessions of one purpose.
pub(super) struct SessionPool {
    pub(super) connector: SessionConnector,
    free: Mutex<SessionSlots>,
    returned: Condvar,
    size: usize,
    limit: Duration,
    /// The key that says how many.
    key: &'static str,
}

struct SessionSlots {
    idle: Vec<PostgresSession>,
    /// Idle or lent.
    open: usize,
}

/// A session, until dropped.
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

    /// A session with a full allowance of time.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if none comes free in time, or the server refuses;
    /// [`StoreError::Unavailable`] if it cannot be reached.
    pub(super) fn take(&self) -> Result<SessionLease<'_>, StoreError> {
        self.take_for(None)
    }

    fn take_for(&self, query: Option<&CancelFlag>) -> Result<SessionLease<'_>, StoreError> {
        self.lend(self.wait_for_slot(query)?, query)
    }

    /// Lends a place that was taken.
    fn lend(
        &self,
        idle: Option<PostgresSession>,
        query: Option<&CancelFlag>,
    ) -> Result<SessionLease<'_>, StoreError> {
        // From here on dropping `lease` gives the place back, also if connecting fails.
        let mut lease = SessionLease { pool: self, is_new: idle.is_none(), session: idle };
        if lease.session.is_none() {
            lease.session = Some(self.connector.connect_for(query)?);
        }
        let session = lease.session()?;
        session.set_time_limit(self.limit);
        session.set_query(query);
        Ok(lease)
    }

    /// A session inside a transaction that begins with `words`. Idle sessions may have died without
    /// a word, at a failover all at once; nothing was done yet, so the next one is tried.
    ///
    /// # Errors
    /// As [`SessionPool::take`], and what the server says to `words`.
    pub(super) fn begin(&self, words: &str) -> Result<SessionLease<'_>, StoreError> {
        self.begin_for(words, None)
    }

    /// As [`SessionPool::begin`]: waiting for it and all that is done with it ends with the query that it
    /// is for.
    ///
    /// # Errors
    /// As there, and [`StoreError::QueryEnded`].
    pub(super) fn begin_for(
        &self,
        words: &str,
        query: Option<&CancelFlag>,
    ) -> Result<SessionLease<'_>, StoreError> {
        loop {
            if let Some(lease) = Self::begin_lease(self.take_for(query)?, words)? {
                return Ok(lease);
            }
        }
    }

    /// As [`SessionPool::begin_for`], but none where that would wait for a place.
    pub(super) fn begin_at_once(
        &self,
        words: &str,
        query: Option<&CancelFlag>,
    ) -> Result<Option<SessionLease<'_>>, StoreError> {
        loop {
            let place =
                self.reserve_slot(&mut self.free.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(idle) = place else { return Ok(None) };
            if let Some(lease) = Self::begin_lease(self.lend(idle, query)?, words)? {
                return Ok(Some(lease));
            }
        }
    }

    /// The session inside its transaction; none if it had died while it was idle.
    fn begin_lease<'a>(
        mut lease: SessionLease<'a>,
        words: &str,
    ) -> Result<Option<SessionLease<'a>>, StoreError> {
        let fresh = lease.is_new;
        match lease.session()?.begin(words.to_owned()) {
            Ok(()) => Ok(Some(lease)),
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

    /// Takes a place that is free: with an idle session, or with none, to connect one.
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

    /// Takes a place, and waits until one is free or the query has ended.
    fn wait_for_slot(
        &self,
        query: Option<&CancelFlag>,
    ) -> Result<Option<PostgresSession>, StoreError> {
        let watch = Stopwatch::start();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(place) = self.reserve_slot(&mut free) {
                return Ok(place);
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
            let left = query.map_or(left, |_| left.min(POLL_EVERY));
            free = self.returned.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl SessionLease<'_> {
    /// The session.
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

//! The log's test double: records behind a mutex, with faults for the simulation.
//!
//! It lets simulations run without a disk. It passes the same conformance suite as the real logs
//! and behaves as badly as the port allows: released records are gone at once and exactly up to the
//! floor, and a lost reply leaves the outcome open. A request is still kept whole or not at all,
//! and append times never decrease. Several nodes may share one log; each has its own assignment,
//! which only tests change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use super::{
    AppendError, AppendRequest, AppendTicket, LogAppender, LogError, LogIdentity, LogReader,
    LogRetention, ShardAssignment,
};
use crate::clock::Clock;
use crate::model::clock::AppendClock;
use crate::model::flush::LogRecord;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::window::Millis;

/// How an append fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFault {
    /// Fails with [`AppendError::DiskFull`] and keeps nothing.
    Refused,
    /// Fails with [`AppendError::Unknown`] and keeps nothing.
    Lost,
    /// Fails with [`AppendError::Unknown`], but keeps the records.
    ReplyLost,
}

type FaultHook = Box<dyn FnMut() -> Option<LogFault> + Send>;

#[derive(Debug, Default)]
struct ShardRecords {
    start: Offset,
    records: VecDeque<LogRecord>,
}

impl ShardRecords {
    fn end(&self) -> Offset {
        self.start + self.records.len() as u64
    }
}

#[derive(Debug)]
struct State {
    shards: Vec<ShardRecords>,
    /// By shard: the first offset from which on records cannot be read.
    damaged: BTreeMap<ShardId, Offset>,
    append_clock: Option<AppendClock>,
}

/// A log in memory, as one node sees it.
pub struct MemoryLog {
    id: LogId,
    shard_count: u32,
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
    faults: Mutex<Option<FaultHook>>,
    closed: AtomicBool,
    assigned: watch::Sender<Arc<BTreeSet<ShardId>>>,
    held: watch::Sender<Arc<BTreeSet<ShardId>>>,
}

impl std::fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLog").field("id", &self.id).finish_non_exhaustive()
    }
}

impl MemoryLog {
    /// An empty log whose append times come from `clock`. Its node owns every shard.
    pub fn new(id: LogId, shard_count: u32, clock: Arc<dyn Clock>) -> Arc<Self> {
        let shards = (0..shard_count).map(|_| ShardRecords::default()).collect();
        let state =
            Arc::new(Mutex::new(State { shards, damaged: BTreeMap::new(), append_clock: None }));
        Self::over(id, clock, state, (0..shard_count).map(ShardId).collect())
    }

    /// The same log as seen by another node, which owns no shard yet and is closed separately.
    pub fn join(&self) -> Arc<Self> {
        Self::over(self.id, self.clock.clone(), self.state.clone(), BTreeSet::new())
    }

    fn over(
        id: LogId,
        clock: Arc<dyn Clock>,
        state: Arc<Mutex<State>>,
        shards: BTreeSet<ShardId>,
    ) -> Arc<Self> {
        let shard_count = state.lock().unwrap_or_else(PoisonError::into_inner).shards.len() as u32;
        let shards = Arc::new(shards);
        let (assigned, held) = (watch::Sender::new(shards.clone()), watch::Sender::new(shards));
        let (faults, closed) = (Mutex::new(None), AtomicBool::new(false));
        Arc::new(Self { id, shard_count, clock, state, faults, closed, assigned, held })
    }

    /// Assigns exactly these shards to this node.
    pub fn assign(&self, shards: BTreeSet<ShardId>) {
        self.held.send_modify(|held| Arc::make_mut(held).extend(&shards));
        self.assigned.send_replace(Arc::new(shards));
    }

    /// The shards that were assigned to this node and that it has not relinquished since.
    pub fn held(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>> {
        self.held.subscribe()
    }

    /// Calls `hook` before every append, to decide whether and how it fails.
    pub fn set_faults(&self, hook: impl FnMut() -> Option<LogFault> + Send + 'static) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    /// Makes all further appends succeed.
    pub fn clear_faults(&self) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Drops the records from `end` on, like a log that lost what it had acknowledged.
    pub fn lose_tail(&self, shard: ShardId, end: Offset) {
        if let Some(kept) = self.lock().shards.get_mut(shard.0 as usize) {
            kept.records.truncate(end.saturating_sub(kept.start) as usize);
        }
    }

    /// Makes records from this offset on unreadable, as after a gap; `None` repairs the shard.
    pub fn damage(&self, shard: ShardId, from: Option<Offset>) {
        let mut state = self.lock();
        match from {
            Some(from) => _ = state.damaged.insert(shard, from),
            None => _ = state.damaged.remove(&shard),
        }
    }

    // A poisoned lock is harmless: checks come before changes, so a panic leaves no partial change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_records(&self, request: AppendRequest) -> Millis {
        let mut state = self.lock();
        let now = self.clock.reading();
        let appended =
            state.append_clock.get_or_insert_with(|| AppendClock::start(None, now)).read(now);
        for (shard, payload) in request.records {
            let kept = &mut state.shards[shard.0 as usize];
            let offset = kept.end();
            kept.records.push_back(LogRecord { offset, appended, received: now.wall, payload });
        }
        appended
    }

    fn of_shard<T>(&self, shard: ShardId, read: impl FnOnce(&ShardRecords) -> T) -> Option<T> {
        self.lock().shards.get(shard.0 as usize).map(read)
    }
}

impl LogIdentity for MemoryLog {
    fn id(&self) -> LogId {
        self.id
    }

    fn shard_count(&self) -> u32 {
        self.shard_count
    }
}

impl LogAppender for MemoryLog {
    fn append(&self, request: AppendRequest) -> Result<AppendTicket, AppendError> {
        if let Some((shard, _)) =
            request.records.iter().find(|(shard, _)| shard.0 >= self.shard_count)
        {
            return Err(AppendError::Closed(format!("shard {shard} does not exist")));
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(AppendError::Closed("the log is closing".to_owned()));
        }
        let fault = self
            .faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .and_then(|hook| hook());
        let outcome = match fault {
            None => Ok(self.append_records(request)),
            Some(LogFault::Refused) => Err(AppendError::DiskFull),
            Some(LogFault::Lost) => Err(AppendError::Unknown("injected, not kept".to_owned())),
            Some(LogFault::ReplyLost) => {
                self.append_records(request);
                Err(AppendError::Unknown("injected, kept".to_owned()))
            }
        };
        let (reply, ticket) = oneshot::channel();
        #[expect(
            clippy::let_underscore_must_use,
            reason = "the ticket is in our hands: somebody is there"
        )]
        let _ = reply.send(outcome);
        Ok(ticket)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // A node that has left holds no shards.
        self.held.send_replace(Arc::default());
    }
}

impl LogReader for MemoryLog {
    fn start(&self, shard: ShardId) -> Offset {
        self.of_shard(shard, |kept| kept.start).unwrap_or(0)
    }

    fn end(&self, shard: ShardId) -> Offset {
        self.of_shard(shard, ShardRecords::end).unwrap_or(0)
    }

    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        let state = self.lock();
        let kept = state.shards.get(shard.0 as usize).ok_or(LogError::BeyondEnd {
            shard,
            from,
            end: 0,
        })?;
        if from > kept.end() {
            return Err(LogError::BeyondEnd { shard, from, end: kept.end() });
        }
        if from < kept.start {
            return Err(LogError::Released { shard, from, start: kept.start });
        }
        let damaged = state.damaged.get(&shard).copied().unwrap_or(Offset::MAX);
        if from >= damaged && from < kept.end() {
            return Err(LogError::Corrupt(format!("shard {shard}: offset {from} is not there")));
        }
        let mut left = max_bytes.max(1);
        let wanted = kept.records.iter().skip((from - kept.start) as usize).take_while(|record| {
            let more = left > 0 && record.offset < damaged;
            left = left.saturating_sub(record.payload.len().max(1));
            more
        });
        Ok(wanted.cloned().collect())
    }

    fn append_now(&self) -> Millis {
        let now = self.clock.reading();
        self.lock().append_clock.get_or_insert_with(|| AppendClock::start(None, now)).read(now)
    }
}

impl LogRetention for MemoryLog {
    fn release(&self, floors: &[Offset]) -> Result<u64, LogError> {
        if floors.len() != self.shard_count as usize {
            return Ok(0);
        }
        let mut freed = 0;
        for (kept, &floor) in self.lock().shards.iter_mut().zip(floors) {
            while kept.start < floor
                && let Some(record) = kept.records.pop_front()
            {
                kept.start += 1;
                freed += record.payload.len() as u64;
            }
        }
        Ok(freed)
    }

    fn bytes_on_disk(&self) -> u64 {
        self.lock()
            .shards
            .iter()
            .flat_map(|kept| &kept.records)
            .map(|record| record.payload.len() as u64)
            .sum()
    }
}

impl ShardAssignment for MemoryLog {
    fn assignment(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>> {
        self.assigned.subscribe()
    }

    fn relinquish(&self, shards: &BTreeSet<ShardId>) {
        let assigned = self.assigned.borrow().clone();
        self.held.send_modify(|held| {
            Arc::make_mut(held).retain(|shard| !shards.contains(shard) || assigned.contains(shard))
        });
    }
}

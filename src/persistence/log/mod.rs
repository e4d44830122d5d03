//! The port `EventLog`: the durable, ordered input of each shard, split by capability.
//!
//! [`LogAppender`] is the gateway's, [`LogReader`] the shards' and recompute's, [`LogRetention`]
//! the archiver's and [`ShardAssignment`] supervision's. [`EventLog`] is their sum.
//!
//! Implementations: [`embedded`] (segments on a local disk), [`kafka`] (a topic in which partition
//! n is shard n) and [`memory`] (the test double).

#[cfg(test)]
mod conformance;
pub mod embedded;
pub mod kafka;
pub mod memory;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::model::flush::LogRecord;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::window::Millis;

/// The records of one client request. The embedded log commits all of them or none. Kafka may
/// keep some of a request that ends as [`AppendError::Unknown`]; the client's retry is
/// de-duplicated by event id.
#[derive(Debug, Clone, Default)]
pub struct AppendRequest {
    /// Encoded records, each with its shard.
    pub records: Vec<(ShardId, Bytes)>,
}

/// Why an append failed. Only [`AppendError::Unknown`] leaves open whether the request is durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The queue is full. Nothing was written.
    #[error("the log has {waiting_bytes} bytes waiting, its limit is {limit}: retry later")]
    #[allow(missing_docs, reason = "the names say it")]
    Overloaded {
        waiting_bytes: u64,
        /// In bytes, from `log.max_waiting`.
        limit: u64,
    },
    /// The disk is out of space or inodes, or a quota is exhausted. Nothing was written.
    #[error(
        "the disk of the log is full: free space or lower retention, writes continue by themselves"
    )]
    DiskFull,
    /// The log's file system is read-only. Nothing was written.
    #[error(
        "the file system of the log is read-only: mount it writable, writes continue by themselves"
    )]
    ReadOnly,
    /// The process is out of file descriptors. Nothing was written.
    #[error(
        "no file descriptors are left for the log: raise their limit (ulimit -n, LimitNOFILE), \
         writes continue by themselves"
    )]
    NoDescriptors,
    /// The disk failed in another way. Nothing was written.
    #[error("the disk of the log fails, nothing was written: {0}")]
    DiskFailed(String),
    /// The log is closed or has failed. Nothing of this request was written.
    #[error("the log takes no more appends: {0}")]
    Closed(String),
    /// The request may or may not be durable; only a retry with the same event ids is safe.
    #[error("it is unknown whether the append is durable: {0}")]
    Unknown(String),
}

impl AppendError {
    /// Classifies an I/O error. Only for steps that leave nothing of the request in the log.
    pub fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::DiskFull,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            _ => match rustix::io::Errno::from_io_error(error) {
                Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => Self::NoDescriptors,
                _ => Self::DiskFailed(error.to_string()),
            },
        }
    }

    /// The code in responses and metrics. A read-only file system shares `disk_full`, because
    /// clients react to it in the same way; the message tells the two apart.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Overloaded { .. } => "overloaded",
            Self::DiskFull | Self::ReadOnly => "disk_full",
            Self::NoDescriptors => "no_descriptors",
            Self::DiskFailed(_) => "disk_failed",
            Self::Closed(_) => "log_closed",
            Self::Unknown(_) => "outcome_unknown",
        }
    }
}

/// Why a shared log (Kafka) could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogOpenError {
    /// The log is unreachable or still starting. A retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// Retrying cannot fix it. The message names the cause and the remedy.
    #[error("{0}")]
    Invalid(String),
}

/// Why a read failed. The offsets in it are record offsets of the shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The stored bytes are damaged. The message names the file and the position.
    #[error("the log is corrupt: {0}")]
    Corrupt(String),
    /// `from` is below the first retained record.
    #[error("offset {from} of shard {shard} was released, the log starts at {start}")]
    #[allow(missing_docs, reason = "the names say it")]
    Released {
        shard: ShardId,
        from: Offset,
        /// The first retained offset.
        start: Offset,
    },
    /// `from` is above the end of the log.
    #[error("offset {from} of shard {shard} is above the log's end {end}")]
    #[allow(missing_docs, reason = "the names say it")]
    BeyondEnd {
        shard: ShardId,
        from: Offset,
        /// Exclusive end: the offset that the next record gets.
        end: Offset,
    },
    /// Records that the log once returned are missing at its end. It lost them, or
    /// it is another log.
    #[error("the log lost records or was replaced: {0}")]
    Replaced(String),
    /// The read itself failed. A retry may succeed.
    #[error("the log cannot be read: {0}")]
    Io(String),
}

/// Resolves when the request is durable, with the append time.
pub type AppendTicket = oneshot::Receiver<Result<i64, AppendError>>;

/// Which log this is: fixed when the log is created or opened.
pub trait LogIdentity: Send + Sync + 'static {
    /// Random, minted when the log was created: a checkpoint of another log must not be used here.
    fn id(&self) -> LogId;
    /// Number of shards, fixed when the log was created.
    fn shard_count(&self) -> u32;
    /// Whether only this process can use the log, so that no other process can own
    /// one of its shards.
    fn is_exclusive(&self) -> bool {
        false
    }
}

/// Writes to the log: the gateway's half.
pub trait LogAppender: LogIdentity {
    /// Enqueues one request without blocking. A dropped ticket means [`AppendError::Unknown`].
    ///
    /// # Errors
    /// If nothing of the request was written or will be.
    fn append(&self, request: AppendRequest) -> Result<AppendTicket, AppendError>;
    /// Why the log takes no writes now, if it knows that without an attempt. It retries on its own
    /// and answers `None` once writes work again.
    fn refuses(&self) -> Option<AppendError> {
        None
    }
    /// Makes durable what is enqueued and refuses everything later. May be called more than once.
    fn close(&self);
}

/// Reads the log: what shards, the archiver, `verify` and `rebuild` need.
pub trait LogReader: LogIdentity {
    /// The oldest offset still kept.
    fn start(&self, shard: ShardId) -> Offset;
    /// Exclusive end of the durable records.
    fn end(&self, shard: ShardId) -> Offset;
    /// A lower bound on how fresh a later `end(shard)` is: everything durable at the returned time
    /// is below it. On the boot clock, never after `now`. A log that caches its ends returns when
    /// the cached end was fetched.
    fn end_as_of(&self, _shard: ShardId, now: Millis) -> Millis {
        now
    }
    /// Current start and end, past any cache. Blocking: may ask a server.
    ///
    /// # Errors
    /// If the server does not tell.
    fn bounds(&self, shard: ShardId) -> Result<(Offset, Offset), LogError> {
        Ok((self.start(shard), self.end(shard)))
    }
    /// Durable records from `from` on, in order, about `max_bytes` of payload at most. At least one
    /// record if one exists and its server answers in time; no records if the server does not, so
    /// that an outage delays an actor instead of killing it. Blocking: may read the disk.
    ///
    /// # Errors
    /// If `from` is not within start and end, or if the records are damaged, lost or unreadable.
    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError>;
    /// The greatest append time of the records below `from`, if only the log can tell because the
    /// records do not carry it. For checkpoints written by older releases, which lack that time.
    /// Blocking: may ask a server.
    ///
    /// # Errors
    /// If the server does not tell.
    fn appended_below(&self, _shard: ShardId, _from: Offset) -> Result<Option<Millis>, LogError> {
        Ok(None)
    }
    /// The append clock of this node: the append time that a record appended here now would get.
    fn append_now(&self) -> Millis;
}

/// Frees the space of records that store and archive hold.
pub trait LogRetention: LogIdentity {
    /// Releases the records below `floors[shard]` (0 keeps all of that shard) and returns the bytes
    /// freed. The log may free less, never more.
    ///
    /// # Errors
    /// If the disk or the server refuses.
    fn release(&self, floors: &[Offset]) -> Result<u64, LogError>;
    /// Bytes on this node's disk now; 0 if the log is elsewhere.
    fn bytes_on_disk(&self) -> u64;
}

/// Which shards this node owns.
pub trait ShardAssignment: LogIdentity {
    /// The shards that this node should own now. A shard is included only while its start
    /// and end are known.
    fn assignment(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>>;
    /// Declares that these shards, which are not in the assignment, no longer run here, so that
    /// another node may take them. Idempotent, also for shards that never ran here. Does not block.
    fn relinquish(&self, _shards: &BTreeSet<ShardId>) {}
}

/// The whole port: for the composition root and the conformance suite. Everything else takes the
/// part that it uses.
pub trait EventLog: LogAppender + LogReader + LogRetention + ShardAssignment {}

impl<T: LogAppender + LogReader + LogRetention + ShardAssignment> EventLog for T {}

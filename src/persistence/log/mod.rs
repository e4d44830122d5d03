//! The port `EventLog`: the durable, ordered input of each shard.
//!
//! Implementations: [`embedded`] (segments on local disk), [`kafka`] (a topic, shard n being
//! partition n), [`memory`] (the double).

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

/// One request. The embedded log makes all of its records durable together or none; Kafka may keep
/// some of a request whose outcome is [`AppendError::Unknown`], and the retry is absorbed by id.
#[derive(Debug, Clone, Default)]
pub struct AppendRequest {
    /// The encoded records, each with its shard.
    pub records: Vec<(ShardId, Bytes)>,
}

/// Why an append failed. Only [`AppendError::Unknown`] leaves the outcome open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too much is waiting already; nothing was written.
    #[error("the log has {waiting_bytes} bytes waiting, its limit is {limit}: retry later")]
    Overloaded {
        /// Bytes waiting.
        waiting_bytes: u64,
        /// `log.max_waiting`.
        limit: u64,
    },
    /// The disk has no space or no inodes left, or a quota is used up; nothing was written.
    #[error(
        "the disk of the log is full: free space or lower retention, writes continue by themselves"
    )]
    DiskFull,
    /// The file system of the log is read-only; nothing was written.
    #[error(
        "the file system of the log is read-only: mount it writable, writes continue by themselves"
    )]
    ReadOnly,
    /// The process has no file descriptors left; nothing was written.
    #[error(
        "no file descriptors are left for the log: raise their limit (ulimit -n, LimitNOFILE), \
         writes continue by themselves"
    )]
    NoDescriptors,
    /// The disk refused for another reason; nothing was written.
    #[error("the disk of the log fails, nothing was written: {0}")]
    DiskFailed(String),
    /// The log is closed or failed; nothing of this request was written.
    #[error("the log takes no more appends: {0}")]
    Closed(String),
    /// The request may or may not be durable.
    #[error("it is unknown whether the append is durable: {0}")]
    Unknown(String),
}

impl AppendError {
    /// Why a disk refused a step after which nothing of a request is in the log.
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

    /// Its code in answers and metrics. A client does the same about every disk that takes no
    /// writes; the message says which it is.
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

/// Why a log that nodes share was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogOpenError {
    /// It cannot be reached, or is not whole yet: later it may be.
    #[error("{0}")]
    Unavailable(String),
    /// No waiting mends it; names the thing and the way out.
    #[error("{0}")]
    Invalid(String),
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The bytes on disk are damaged; names file and position.
    #[error("the log is corrupt: {0}")]
    Corrupt(String),
    /// `from` lies below the first record kept.
    #[error("offset {from} of shard {shard} was released, the log starts at {start}")]
    Released {
        /// The shard.
        shard: ShardId,
        /// What was asked for.
        from: Offset,
        /// First offset kept.
        start: Offset,
    },
    /// `from` lies above the end.
    #[error("offset {from} of shard {shard} is above the log's end {end}")]
    BeyondEnd {
        /// The shard.
        shard: ShardId,
        /// What was asked for.
        from: Offset,
        /// The end.
        end: Offset,
    },
    /// Records that the log once showed are gone from its end: it lost them, or another log stands
    /// in its place.
    #[error("the log lost records or was replaced: {0}")]
    Replaced(String),
    /// Reading failed.
    #[error("the log cannot be read: {0}")]
    Io(String),
}

/// Resolves when the request is durable, with the append time.
pub type AppendTicket = oneshot::Receiver<Result<i64, AppendError>>;

/// The durable, ordered input of each shard.
pub trait EventLog: Send + Sync + 'static {
    /// The log's random identity.
    fn id(&self) -> LogId;
    /// Number of shards, fixed when the log was created.
    fn shard_count(&self) -> u32;
    /// Enqueues one request without blocking. A dropped ticket means [`AppendError::Unknown`].
    ///
    /// # Errors
    /// If nothing of the request was or will be written.
    fn append(&self, request: AppendRequest) -> Result<AppendTicket, AppendError>;
    /// Whether this process alone has the log, so that no other can own one of its shards.
    fn is_exclusive(&self) -> bool {
        false
    }
    /// Why the log takes no writes now, if it knows without being asked to append: it looks again
    /// by itself.
    fn refuses(&self) -> Option<AppendError> {
        None
    }
    /// First offset kept.
    fn start(&self, shard: ShardId) -> Offset;
    /// First offset behind the last durable record.
    fn end(&self, shard: ShardId) -> Offset;
    /// What the append clock of this node shows: the append time of a record that were appended
    /// here now.
    fn append_now(&self) -> Millis;
    /// A time on the boot clock, not after `now`, such that every record that was durable then lies
    /// below `end(shard)` as read afterwards: a log whose ends are a little old says here how
    /// old.
    fn known_at(&self, _shard: ShardId, now: Millis) -> Millis {
        now
    }
    /// Start and end as they are now, whatever was known before. Blocking: may ask a server.
    ///
    /// # Errors
    /// If they cannot be learned.
    fn bounds(&self, shard: ShardId) -> Result<(Offset, Offset), LogError> {
        Ok((self.start(shard), self.end(shard)))
    }
    /// The shards that this node is to own now. A shard is in it only while its start and end are
    /// known.
    fn assignment(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>>;
    /// Nothing of these shards, which are not in the assignment, runs here any more: another node
    /// may have them. Repeats itself, also for shards that were never here. Does not block.
    fn let_go(&self, _shards: &BTreeSet<ShardId>) {}
    /// Durable records from `from` on, in order, at least one if there is one and its server
    /// answers in time (a server that does not gives none: the outage waits, no actor dies of
    /// it), about `max_bytes` of payload at most. Blocking: may read the disk.
    ///
    /// # Errors
    /// See [`LogError`].
    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError>;
    /// The greatest append time of a record below `from`, where the log alone can tell and records
    /// do not say it: only for a store whose checkpoint lacks it, because an older release
    /// wrote it. Blocking: may ask a server.
    ///
    /// # Errors
    /// If it cannot be learned.
    fn appended_below(&self, _shard: ShardId, _from: Offset) -> Result<Option<Millis>, LogError> {
        Ok(None)
    }
    /// Releases everything below `floors[shard]`, 0 being nothing of that shard; how much is really
    /// freed is the log's affair. Returns the bytes freed.
    ///
    /// # Errors
    /// If the disk refuses.
    fn release(&self, floors: &[Offset]) -> Result<u64, LogError>;
    /// Changes whenever records become durable.
    fn appended(&self) -> watch::Receiver<u64>;
    /// Bytes on disk now.
    fn bytes_on_disk(&self) -> u64;
    /// Makes durable what is enqueued and refuses everything later.
    fn close(&self);
}

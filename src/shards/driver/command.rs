//! What the driver of a running shard asks for. Commands are performed in order; the answer, if
//! there is one, is an event.

use std::sync::Arc;

use super::failure::{CallError, EndReason};
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::offset::{Epoch, Offset, OffsetRange};
use crate::model::window::Millis;

/// What the driver asks for.
#[derive(Debug)]
pub enum ShardCommand {
    /// Read records of the log; answered by `LogRead`.
    ReadLog {
        /// The first record.
        from: Offset,
        /// About so many payload bytes at most.
        max_bytes: usize,
    },
    /// Read records that the log lost; answered by `ArchiveRead`.
    ReadArchive {
        /// The first record.
        from: Offset,
        /// About so many payload bytes at most.
        max_bytes: usize,
    },
    /// Wait until no other shard of the node isolates events; answered by `IsolationAcquired`. If
    /// the process dies, only this shard's event is under suspicion.
    AcquireIsolation,
    /// Another shard of the node may isolate events.
    ReleaseIsolation,
    /// Note in the store that this event is about to be applied alone; answered by `SuspectMarked`.
    MarkSuspect {
        /// The owner.
        epoch: Epoch,
        /// Its record.
        offset: Offset,
        /// Its index in the record.
        index: u32,
    },
    /// Commit in one store transaction; answered by `CommitEnded`.
    Commit {
        /// Where, and by whom.
        guard: FlushGuard,
        /// What.
        batch: Arc<FlushBatch>,
        /// Ids appended before this are out of every horizon.
        forget_ids_before: Millis,
    },
    /// Claim the shard, which the store could not give before; answered by `Reclaimed`.
    Reclaim,
    /// Read what the archiver of this owner has archived, and after that the stored checkpoint;
    /// answered by `Confirmed`. A flush would find out that the store was rolled back, but
    /// there is nothing to flush.
    Confirm {
        /// Up to here this owner has committed. The answer repeats it.
        next: Offset,
    },
    /// Whoever waits for a drain need not wait any longer.
    Drained,
    /// There is more to read at once.
    WakeAgain,
    /// For logs, metrics and the shard table; nothing depends on it.
    Notify(ShardNotice),
    /// End the shard and drop its memory. No later command counts.
    End(EndReason),
}

/// What happened to a shard, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardNotice {
    /// The store took no claim: the shard answers queries and waits with its flushes.
    Unclaimed(CallError),
    /// The log lost these records, and the archive has them.
    RecoveryStarted(OffsetRange),
    /// All that the log lost was applied.
    RecoveryEnded(OffsetRange),
    /// The archive cannot be reached for what the log lost; it is tried again.
    RecoveryDelayed(CallError),
    /// Records were applied.
    Applied(AppliedRecords),
    /// A commit ended.
    FlushEnded(Result<(), CallError>),
    /// Where the store stands could not be learned; it is tried again.
    Unconfirmed(CallError),
    /// The shard stands still until somebody repairs something: before this record, or at its
    /// start.
    Stopped {
        /// The record.
        before: Option<Offset>,
        /// Why.
        why: String,
    },
}

impl ShardNotice {
    /// That the shard stands still before this record, or at its start, if it ends for a reason
    /// that needs repair.
    pub fn from_end(reason: &EndReason, before: Option<Offset>) -> Option<Self> {
        reason.needs_repair().then(|| ShardNotice::Stopped { before, why: reason.to_string() })
    }
}

/// Records that were applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedRecords {
    /// How many.
    pub records: usize,
    /// Their payload.
    pub bytes: usize,
    /// Append time of the first.
    pub oldest: Option<Millis>,
    /// Whether they came from the archive.
    pub from_archive: bool,
}

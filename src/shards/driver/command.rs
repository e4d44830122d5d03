//! Commands of a running shard's driver. They are performed in order; where a command has an
//! answer, it comes back as an event.

use std::sync::Arc;

use super::failure::{CallError, EndReason};
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::offset::{Epoch, Offset, OffsetRange};
use crate::model::window::Millis;

#[allow(missing_docs, reason = "the names say it")]
/// What the driver asks for. Offsets are inclusive starts; `max_bytes` counts payload bytes, and
/// the last record may exceed it.
#[derive(Debug)]
pub enum ShardCommand {
    /// Read records from the log; answered by `LogRead`.
    ReadLog { from: Offset, max_bytes: usize },
    /// Read records that the log lost from the archive; answered by `ArchiveRead`.
    ReadArchive { from: Offset, max_bytes: usize },
    /// Wait until no other shard of the node isolates events; answered by `IsolationAcquired`.
    /// Only one does at a time, so that a crash incriminates only that shard's event.
    AcquireIsolation,
    /// Let another shard of the node isolate events.
    ReleaseIsolation,
    /// Record in the store that this event is about to be applied in
    /// isolation; answered by `SuspectMarked`.
    MarkSuspect { epoch: Epoch, offset: Offset, index: u32 },
    /// Commit the batch in one store transaction; answered by `CommitEnded`.
    Commit {
        /// Compare-and-set condition: shard, log, range and epoch.
        guard: FlushGuard,
        batch: Arc<FlushBatch>,
        /// Ids appended before this time are outside every horizon and can be deleted.
        forget_ids_before: Millis,
    },
    /// Claim the shard, which failed at its start; answered by `Reclaimed`.
    Reclaim,
    /// Read how far this owner's archiver has got and, after that, the stored checkpoint; answered
    /// by `Confirmed`. It detects a store that was rolled back while there is nothing to flush.
    Confirm {
        /// Exclusive end of what this owner has committed; repeated in the answer.
        next: Offset,
        /// Version of the set of generations that it has committed; repeated, too.
        set: u64,
    },
    /// Answer those who wait for a drain.
    Drained,
    /// There is more to read: send `Wakeup` at once.
    WakeAgain,
    /// Report to logs, metrics and the shard table. No decision depends on it.
    Notify(ShardNotice),
    /// End the shard and drop its memory. Commands after this one are ignored.
    End(EndReason),
}

#[allow(missing_docs, reason = "the names say it")]
/// What happened to a shard, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardNotice {
    /// The store took no claim: the shard answers queries and holds back its flushes.
    Unclaimed(CallError),
    /// The log lost these records; they are read from the archive.
    RecoveryStarted(OffsetRange),
    /// All lost records have been applied.
    RecoveryEnded(OffsetRange),
    /// The archive with the lost records cannot be reached; the read is retried.
    RecoveryDelayed(CallError),
    Applied(AppliedRecords),
    FlushEnded(Result<(), CallError>),
    /// The stored checkpoint could not be read for confirmation; the next idle interval retries.
    Unconfirmed(CallError),
    /// The shard cannot continue until somebody repairs something.
    Stopped {
        /// The record at which the shard stopped; `None` if it could not start.
        before: Option<Offset>,
        why: String,
    },
}

impl ShardNotice {
    /// `Stopped` before this record, or at the start, if the shard ends for a reason that
    /// needs repair; `None` otherwise.
    pub fn from_end(reason: &EndReason, before: Option<Offset>) -> Option<Self> {
        reason.needs_repair().then(|| ShardNotice::Stopped { before, why: reason.to_string() })
    }
}

#[allow(missing_docs, reason = "the names say it")]
/// Records applied in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedRecords {
    pub records: usize,
    /// Sum of the payload sizes.
    pub bytes: usize,
    /// Append time of the first record; `None` if there were no records.
    pub oldest: Option<Millis>,
    pub from_archive: bool,
}

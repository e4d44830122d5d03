//! Why a call that the driver asked for failed, and why a shard ends. The kind is what the driver
//! decides on; the text is for people.

use crate::model::offset::{LogDivergence, Offset, OffsetRange, ShardId};

/// What a failure means for the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Certainly not applied; may be retried.
    NotApplied,
    /// No answer from the other side. Nothing was applied; may be retried.
    Unavailable,
    /// Took longer than allowed. Nothing was applied; may be retried.
    TimedOut,
    /// May or may not have been applied; must not be retried.
    OutcomeUnknown,
    /// Fenced: another owner has claimed the shard.
    Refused,
    /// The data is damaged. The shard can stay up at its position until it is repaired.
    Damaged,
    /// Cannot work on any node until somebody repairs it.
    Unusable,
    /// Anything else: a restart may help.
    Other,
}

/// A call of the driver that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// What it means for the shard; the driver decides on this alone.
    pub kind: FailureKind,
    /// What went wrong, for people; no decision depends on it.
    pub message: String,
}

impl CallError {
    /// Whether the store takes neither claims nor flushes now, but may later. `OutcomeUnknown`
    /// counts, because a claim may be retried.
    pub fn is_store_unavailable(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::NotApplied | FailureKind::Unavailable | FailureKind::OutcomeUnknown
        )
    }

    /// Whether a commit that failed this way may be sent again: nothing of it can be in the store.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::NotApplied | FailureKind::Unavailable | FailureKind::TimedOut
        )
    }
}

/// Why a shard ends. Its memory is dropped; the next start reads the checkpoint.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// The log does not continue at the store's checkpoint.
    #[error(transparent)]
    Diverged(#[from] LogDivergence),
    /// A call failed in a way that ends this life of the shard.
    #[error(transparent)]
    Failed(#[from] CallError),
    /// Another owner claimed the shard while this one was loading.
    #[error("refused: shard {shard} is not at the expected checkpoint and epoch any more")]
    Fenced { shard: ShardId },
    /// The store lacks what this owner or its archiver has committed: it failed over, or was
    /// restored from a backup.
    #[error(
        "refused: the store does not stand where the owner of shard {shard} left it, at {next} or \
         above"
    )]
    RolledBack {
        shard: ShardId,
        /// Exclusive end of what was committed.
        next: Offset,
    },
    /// An owner without a claim has obtained one. It restarts from the checkpoint
    /// under the new epoch.
    #[error("the store takes writes again, and the shard starts anew")]
    Reclaimed,
    /// The performer sent an answer to a command that was not open.
    #[error("shard {shard} was told {event}, which it did not ask for")]
    UnexpectedEvent { shard: ShardId, event: &'static str },
}

impl EndReason {
    /// Whether another owner has the shard, or the store fell behind this one. The next start
    /// then has no urgency.
    pub fn is_refusal(&self) -> bool {
        match self {
            EndReason::Fenced { .. } | EndReason::RolledBack { .. } => true,
            EndReason::Failed(error) => error.kind == FailureKind::Refused,
            EndReason::Diverged(_) | EndReason::Reclaimed | EndReason::UnexpectedEvent { .. } => {
                false
            }
        }
    }

    /// Whether no restart helps, on any node, until somebody repairs the log, the
    /// store or the archive.
    pub fn needs_repair(&self) -> bool {
        match self {
            EndReason::Diverged(_) => true,
            EndReason::Failed(error) => {
                matches!(error.kind, FailureKind::Damaged | FailureKind::Unusable)
            }
            EndReason::Fenced { .. }
            | EndReason::RolledBack { .. }
            | EndReason::Reclaimed
            | EndReason::UnexpectedEvent { .. } => false,
        }
    }

    /// The records that neither the log nor the archive has, if that is the reason.
    pub fn lost_records(&self) -> Option<OffsetRange> {
        match self {
            EndReason::Diverged(LogDivergence::LostRecords { lost, .. }) => Some(*lost),
            _ => None,
        }
    }
}

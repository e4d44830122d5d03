//! Why a call that the driver asked for failed, and why a shard ends. Only what the driver decides
//! on has a kind; the text is for people.

use crate::model::offset::{LogDivergence, Offset, OffsetRange, ShardId};

/// What a failure means for the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Certainly not applied; may be repeated.
    NotApplied,
    /// Nobody answers. Nothing was applied; may be repeated.
    Unavailable,
    /// Took longer than allowed. Nothing was applied; may be repeated.
    TimedOut,
    /// Whether it was applied is not known: it must not be repeated.
    OutcomeUnknown,
    /// Another owner has claimed the shard.
    Refused,
    /// The data is damaged. The shard can wait where it is until somebody repairs it.
    Damaged,
    /// Cannot work, here or on another node, until somebody repairs it.
    Unusable,
    /// Anything else: a new start may help.
    Other,
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// What it means for the shard.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

impl CallError {
    /// Whether the store takes no claim and no flush now, but may later.
    pub fn is_store_unavailable(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::NotApplied | FailureKind::Unavailable | FailureKind::OutcomeUnknown
        )
    }

    /// Whether a commit that failed like this may be sent again: nothing of it can be in the store.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::NotApplied | FailureKind::Unavailable | FailureKind::TimedOut
        )
    }
}

/// Why a shard ends. Its memory is dropped; the next start reads the checkpoint again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// The log does not continue where the store stands.
    #[error(transparent)]
    Diverged(#[from] LogDivergence),
    /// A call failed in a way that this life of the shard cannot survive.
    #[error(transparent)]
    Failed(#[from] CallError),
    /// Another owner claimed the shard while this one was loading.
    #[error("refused: shard {shard} is not at the expected checkpoint and epoch any more")]
    Fenced {
        /// The shard.
        shard: ShardId,
    },
    /// The store lacks what this owner or its archiver committed: it failed over, or was restored
    /// from a backup.
    #[error(
        "refused: the store does not stand where the owner of shard {shard} left it, at {next} or \
         above"
    )]
    RolledBack {
        /// The shard.
        shard: ShardId,
        /// Everything below was committed.
        next: Offset,
    },
    /// An owner that had no claim got one: it starts again from the checkpoint, under the new
    /// epoch.
    #[error("the store takes writes again, and the shard starts anew")]
    Reclaimed,
    /// The performer answered a question that was not asked.
    #[error("shard {shard} was told {event}, which it did not ask for")]
    UnexpectedEvent {
        /// The shard.
        shard: ShardId,
        /// What it was told.
        event: &'static str,
    },
}

impl EndReason {
    /// Whether another owner has the shard, or the store moved below this one: the next start may
    /// wait.
    pub fn is_refusal(&self) -> bool {
        match self {
            EndReason::Fenced { .. } | EndReason::RolledBack { .. } => true,
            EndReason::Failed(error) => error.kind == FailureKind::Refused,
            EndReason::Diverged(_) | EndReason::Reclaimed | EndReason::UnexpectedEvent { .. } => {
                false
            }
        }
    }

    /// Whether no start helps, on this node or another, until somebody repairs log, store or
    /// archive.
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

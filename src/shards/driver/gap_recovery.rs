//! Gap recovery: reads from the archive what the log has lost above the checkpoint.

use crate::model::offset::{Checkpoint, LogDivergence, Offset, OffsetRange, check_continuity};
use crate::model::window::Millis;

/// Back-off after the archive could not be reached.
const RETRY_MS: i64 = 1_000;

/// The range that a log holding `[start, end)` lost above the checkpoint; `None`
/// if it continues there.
///
/// # Errors
/// [`LogDivergence::ShortLog`] if the log ends below the checkpoint.
pub fn lost_range(
    at: &Checkpoint,
    (start, end): (Offset, Offset),
) -> Result<Option<OffsetRange>, LogDivergence> {
    match check_continuity(at.next, start, end) {
        Ok(()) => Ok(None),
        Err(LogDivergence::Gap { .. }) => Ok(Some(OffsetRange { from: at.next, to: start })),
        Err(other) => Err(other),
    }
}

/// The range that the log lost, while it is being read from the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GapRecovery {
    lost: OffsetRange,
    /// Exclusive end of the last object to be read; may lie above the end of `lost`.
    end: Offset,
    failed_at: Option<Millis>,
}

impl GapRecovery {
    /// Plans to read `lost` from objects that end at `to` (exclusive). The log ends at `log_end`.
    ///
    /// # Errors
    /// [`LogDivergence::ShortLog`] if the log ends below `to`: it lost records that it once
    /// gave to the archive.
    pub fn new(lost: OffsetRange, to: Offset, log_end: Offset) -> Result<Self, LogDivergence> {
        if to > log_end {
            return Err(LogDivergence::ShortLog { end: log_end, checkpoint: to });
        }
        Ok(Self { lost, end: to, failed_at: None })
    }

    /// The range that the log lost.
    pub fn lost(&self) -> OffsetRange {
        self.lost
    }

    /// Whether a shard whose next offset is `next` has read every object.
    pub fn is_over(&self, next: Offset) -> bool {
        next >= self.end
    }

    /// Whether the back-off after a failure still runs. A clock that goes back ends it.
    pub(super) fn is_waiting(&self, now: Millis) -> bool {
        self.failed_at.is_some_and(|at| (0..RETRY_MS).contains(&now.saturating_sub(at)))
    }

    pub(super) fn record_failure(&mut self, now: Millis) {
        self.failed_at = Some(now);
    }

    pub(super) fn set_end(&mut self, to: Offset) {
        (self.end, self.failed_at) = (to, None);
    }
}

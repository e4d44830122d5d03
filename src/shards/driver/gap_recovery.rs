//! Gap recovery: a log that begins above the checkpoint lost records; the archive may have them.

use crate::model::offset::{Checkpoint, LogDivergence, Offset, OffsetRange, check_continuity};
use crate::model::window::Millis;

/// An archive that cannot be reached is asked again after this time.
const RETRY_MS: i64 = 1_000;

/// What a log that holds `[start, end)` lost above the checkpoint; none if it continues there.
///
/// # Errors
/// [`LogDivergence::ShortLog`] if it ends below the checkpoint.
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

/// What the log lost, on its way from the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GapRecovery {
    lost: OffsetRange,
    end: Offset,
    failed_at: Option<Millis>,
}

impl GapRecovery {
    /// From objects of which the last ends at `to`, in front of a log that ends at `log_end`.
    ///
    /// # Errors
    /// [`LogDivergence::ShortLog`] if the log ends below what it once gave to the archive.
    pub fn new(lost: OffsetRange, to: Offset, log_end: Offset) -> Result<Self, LogDivergence> {
        if to > log_end {
            return Err(LogDivergence::ShortLog { end: log_end, checkpoint: to });
        }
        Ok(Self { lost, end: to, failed_at: None })
    }

    /// What the log lost.
    pub fn lost(&self) -> OffsetRange {
        self.lost
    }

    /// Whether a shard at `next` has everything that was lost.
    pub fn is_over(&self, next: Offset) -> bool {
        next >= self.end
    }

    /// Whether an archive that could not be reached is left alone still. A clock that went back
    /// ends the wait.
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

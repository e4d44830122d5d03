//! Tells the shards' own driver of records outside of an actor: what `verify` compares and
//! `rebuild` writes is what a shard commits.

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::model::flush::{FlushBatch, FlushGuard, LogRecord};
use crate::model::offset::Offset;
use crate::model::window::Millis;
use crate::shards::driver::{ShardCommand, ShardDriver, ShardEvent, ShardNotice, StepContext};
use crate::shards::state::ShardLimits;

/// Records applied between two looks at what is due.
const CHUNK: usize = 8_192;

/// The rules that decide, as the server has them.
#[derive(Debug, Clone, Copy)]
pub struct FoldRules {
    /// `dedup.horizon` in milliseconds.
    pub dedup_horizon_ms: i64,
    /// `dedup.max_ids`.
    pub dedup_max_ids: usize,
    /// Bytes of deltas at which a batch is due.
    pub max_delta_bytes: usize,
    /// Number of shards.
    pub shard_count: u32,
}

impl FoldRules {
    /// The limits of a shard that nobody queries: only memory makes it commit.
    pub(super) fn limits(&self) -> ShardLimits {
        ShardLimits {
            dedup_horizon_ms: self.dedup_horizon_ms,
            dedup_max_ids: self.dedup_max_ids,
            flush_interval_ms: i64::MAX,
            max_delta_bytes: self.max_delta_bytes,
            keep_flushed_ms: 0,
            shard_count: self.shard_count,
            panic_on_user: None,
        }
    }
}

/// Why a fold ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum FoldError<E> {
    /// The records cannot be folded: they do not continue where the shard stands, or this build
    /// does not read one of them.
    #[error("{0}")]
    Stopped(String),
    /// A commit failed; the shard's memory is of no use any more.
    #[error("{0}")]
    Commit(E),
}

/// Carries out one commit: the guard, the batch, and before when ids are out of every horizon.
pub(super) type CommitFn<'a, E> = dyn FnMut(FlushGuard, &FlushBatch, Millis) -> Result<(), E> + 'a;

/// Applies the records; what is due is committed: everything, if `drain`.
pub(super) fn apply<E>(
    driver: &mut ShardDriver,
    records: &[LogRecord],
    drain: bool,
    commit: &mut CommitFn<'_, E>,
) -> Result<(), FoldError<E>> {
    let end = records.last().map_or(driver.state().next(), |record| record.offset + 1);
    loop {
        let next = driver.state().next();
        let above = &records[records.partition_point(|record| record.offset < next)..];
        if !above.is_empty() {
            let chunk = Cow::Borrowed(&above[..above.len().min(CHUNK)]);
            handle(driver, ShardEvent::LogRead(Ok(chunk)), end, commit)?;
            if driver.state().next() == next {
                return Err(FoldError::Stopped(format!(
                    "the record at offset {next} is not applied"
                )));
            }
        }
        if drain {
            handle(driver, ShardEvent::Drain, end, commit)?;
        }
        if driver.state().next() >= end {
            return Ok(());
        }
    }
}

/// One event, and everything that follows from it.
fn handle<E>(
    driver: &mut ShardDriver,
    event: ShardEvent<'_>,
    log_end: Offset,
    commit: &mut CommitFn<'_, E>,
) -> Result<(), FoldError<E>> {
    let mut commands = VecDeque::new();
    driver.handle(StepContext { now: 0, log_end }, event, &mut commands);
    while let Some(command) = commands.pop_front() {
        match command {
            ShardCommand::Commit { guard, batch, forget_ids_before } => {
                commit(guard, &batch, forget_ids_before).map_err(FoldError::Commit)?;
                // Longer ago than anybody may ask for: the batch is forgotten with the next step.
                driver.handle(
                    StepContext { now: -1, log_end },
                    ShardEvent::CommitEnded(Ok(())),
                    &mut commands,
                );
            }
            ShardCommand::Notify(ShardNotice::Stopped { why, .. }) => {
                return Err(FoldError::Stopped(why));
            }
            ShardCommand::End(reason) => return Err(FoldError::Stopped(reason.to_string())),
            _ => {}
        }
    }
    Ok(())
}

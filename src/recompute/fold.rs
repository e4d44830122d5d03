//! Feeds records to the shards' own driver outside of an actor: what `verify` compares and
//! `rebuild` writes is exactly what a shard would commit.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::model::flush::{FlushBatch, FlushGuard, LogRecord};
use crate::model::offset::Offset;
use crate::model::window::Millis;
use crate::shards::driver::{ShardCommand, ShardDriver, ShardEvent, ShardNotice, StepContext};
use crate::shards::generations::ActiveSet;
use crate::shards::state::ShardLimits;

/// Records applied between two checks for due commits; bounds how far a batch overshoots its limit.
const CHUNK: usize = 8_192;

/// The server's settings that decide the outcome of a fold.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub struct FoldRules {
    /// De-duplication horizon in milliseconds, `dedup.horizon`.
    pub dedup_horizon_ms: i64,
    pub dedup_max_ids: usize,
    /// Bytes of deltas at which a batch is committed.
    pub max_delta_bytes: usize,
    pub shard_count: u32,
}

impl FoldRules {
    /// Shard limits for a fold. Nobody queries it, so only memory triggers a commit.
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

/// Why a fold stopped early.
#[derive(Debug, thiserror::Error)]
pub(super) enum FoldError<E> {
    /// The records cannot be folded: they do not continue at the shard's position, or this build
    /// cannot read one of them.
    #[error("{0}")]
    Stopped(String),
    /// A commit failed; the driver's state is no longer usable.
    #[error("{0}")]
    Commit(E),
}

/// Executes one commit: the guard, the batch, and the time before which ids
/// have left every horizon.
pub(super) type CommitFn<'a, E> = dyn FnMut(FlushGuard, &FlushBatch, Millis) -> Result<(), E> + 'a;

/// Applies the records and commits what is due; with `drain`, commits everything.
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
            // `end` stands in for the log's end, so the driver never reports itself behind.
            handle(driver, ShardEvent::LogRead(Ok(chunk)), end, commit)?;
            // Without progress this loop would never end.
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

/// Commits what is open, in a flush by which the shard adopts a set of generations.
pub(super) fn adopt<E>(
    driver: &mut ShardDriver,
    set: Arc<ActiveSet>,
    commit: &mut CommitFn<'_, E>,
) -> Result<(), FoldError<E>> {
    let (version, end) = (set.version(), driver.state().next());
    handle(driver, ShardEvent::NewestSet(set), end, commit)?;
    handle(driver, ShardEvent::Drain, end, commit)?;
    match driver.state().set().version() == version {
        true => Ok(()),
        false => Err(FoldError::Stopped(format!("set {version} is not adopted at offset {end}"))),
    }
}

/// Handles one event and all commands that follow from it.
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
                // A time before the commit's own, so that `keep_flushed_ms` of 0 lets the driver
                // forget the batch at its next step: nobody queries this fold.
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
            // Other commands concern actors: timers, reads, progress. This loop drives itself.
            _ => {}
        }
    }
    Ok(())
}

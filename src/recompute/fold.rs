//! Tells the shards' own driver of records outside of an actor: what `verify` compares and
//! `rebuild` writes is what a shard commits.

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::model::flush::{FlushBatch, FlushGuard, LogRecord};
use crate::model::offset::Offset;
use crate::model::window::Millis;
use crate::shards::driver::{Command, Event, Moment, Report, ShardDriver};
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
pub(super) enum Ended<E> {
    /// The records cannot be folded: they do not continue where the shard stands, or this build
    /// does not read one of them.
    #[error("{0}")]
    Stopped(String),
    /// A commit failed; the shard's memory is of no use any more.
    #[error("{0}")]
    Commit(E),
}

/// Carries out one commit: the guard, the batch, and before when ids are out of every horizon.
pub(super) type Commit<'a, E> = dyn FnMut(FlushGuard, &FlushBatch, Millis) -> Result<(), E> + 'a;

/// Applies the records; what is due is committed: everything, if `drain`.
pub(super) fn apply<E>(
    driver: &mut ShardDriver,
    records: &[LogRecord],
    drain: bool,
    commit: &mut Commit<'_, E>,
) -> Result<(), Ended<E>> {
    let end = records.last().map_or(driver.state().next(), |record| record.offset + 1);
    loop {
        let next = driver.state().next();
        let above = &records[records.partition_point(|record| record.offset < next)..];
        if !above.is_empty() {
            let chunk = Cow::Borrowed(&above[..above.len().min(CHUNK)]);
            tell(driver, Event::LogRead(Ok(chunk)), end, commit)?;
            if driver.state().next() == next {
                return Err(Ended::Stopped(format!("the record at offset {next} is not applied")));
            }
        }
        if drain {
            tell(driver, Event::Drain, end, commit)?;
        }
        if driver.state().next() >= end {
            return Ok(());
        }
    }
}

/// One event, and everything that follows from it.
fn tell<E>(
    driver: &mut ShardDriver,
    event: Event<'_>,
    log_end: Offset,
    commit: &mut Commit<'_, E>,
) -> Result<(), Ended<E>> {
    let mut commands = VecDeque::new();
    driver.on(Moment { now: 0, log_end }, event, &mut commands);
    while let Some(command) = commands.pop_front() {
        match command {
            Command::Commit { guard, batch, forget_ids_before } => {
                commit(guard, &batch, forget_ids_before).map_err(Ended::Commit)?;
                // Longer ago than anybody may ask for: the batch is forgotten with the next step.
                driver.on(Moment { now: -1, log_end }, Event::CommitEnded(Ok(())), &mut commands);
            }
            Command::Report(Report::StandsStill { why, .. }) => return Err(Ended::Stopped(why)),
            Command::End(reason) => return Err(Ended::Stopped(reason.to_string())),
            _ => {}
        }
    }
    Ok(())
}

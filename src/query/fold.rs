//! Steps the shards' own state machine over records outside of an actor: what `verify` compares and `rebuild` writes is what a shard
//! commits.

use crate::model::flush::{FlushBatch, FlushGuard, LogRecord};
use crate::model::offset::Diverged;
use crate::model::window::Millis;
use crate::shards::state::{Effect, Input, ShardLimits, ShardState};

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
    /// The records do not continue where the state stands.
    #[error("{0}")]
    Diverged(Diverged),
    /// A commit failed; the state is of no use any more.
    #[error("{0}")]
    Commit(E),
}

/// Carries out one commit: the guard, the batch, and before when ids are out of every horizon.
pub(super) type Commit<'a, E> = dyn FnMut(FlushGuard, &FlushBatch, Millis) -> Result<(), E> + 'a;

/// Applies the records; what is due is committed: everything, if `drain`.
pub(super) fn apply<E>(
    state: &mut ShardState,
    records: &[LogRecord],
    drain: bool,
    commit: &mut Commit<'_, E>,
) -> Result<(), Ended<E>> {
    let mut effects = Vec::new();
    let chunks = records.chunks(CHUNK).chain(records.is_empty().then_some(records));
    for chunk in chunks {
        state.step(Input::Records(chunk), &mut effects);
        state.step(Input::Tick { now: 0, drain }, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Commit { guard, batch, forget_ids_before } => {
                    commit(guard, &batch, forget_ids_before).map_err(Ended::Commit)?;
                }
                Effect::Stop(diverged) => return Err(Ended::Diverged(diverged)),
                Effect::MarkSuspect { .. } | Effect::Confirm { .. } => {}
            }
        }
        // Longer ago than anybody may ask for: the batch is forgotten with the next step.
        state.step(Input::Committed { now: -1 }, &mut effects);
    }
    Ok(())
}

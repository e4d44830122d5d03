//! Quarantined events: released, discarded, and forgotten with their records.

use std::collections::BTreeSet;

use super::super::QuarantineStore;
use super::catalogue::{self, PostgresSeriesCache, ScopedNumbers, SeriesGrowth};
use super::codec::{UuidBytes, get};
use super::compressed_weeks::CompressedWeeks;
use super::merge::{self, merge};
use super::session::{PostgresSession, params};
use super::{PostgresStore, StoreError, generations};
use crate::model::budget::QueryBudget;
use crate::model::flush::{Delta, revision_after_release};
use crate::model::generation::Writer;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::release::{ReleaseBasis, ReleasedEvent};
use crate::model::window::Hour;
use crate::persistence::store::SeriesScope;

/// What a release adds to a scope: a generation, and its writer.
type ScopedDeltas<'r> = (SeriesScope, &'r [Delta]);

fn scopes(shard: ShardId, release: &ReleasedEvent) -> Vec<ScopedDeltas<'_>> {
    let others = release.generations.iter().map(|(part, of)| {
        (SeriesScope::Writer(of.generation, Writer { shard, part: *part }), &*of.deltas)
    });
    std::iter::once((SeriesScope::Ingest, &*release.deltas)).chain(others).collect()
}

/// Releases (`Some`) or discards (`None`) a quarantined event. Returns the numbers to cache after
/// the commit, `None` if it does not wait.
fn settle(
    session: &mut PostgresSession,
    (known, compressed): (&PostgresSeriesCache, &CompressedWeeks),
    (shard, offset, index): (ShardId, Offset, u32),
    release: Option<&ReleasedEvent>,
) -> Result<Option<ScopedNumbers>, StoreError> {
    // The shard's row guards its rollups: no flush may merge them at the same time, and none may
    // adopt another set.
    let owned = session.query(
        "SELECT log, set_version FROM shards WHERE shard = $1 FOR UPDATE",
        params![shard.0.cast_signed()],
    )?;
    let (log, set) = match owned.first() {
        Some(row) => (LogId(get::<UuidBytes>(row, 0)?.0), get::<i64>(row, 1)? as u64),
        None => (LogId([0; 16]), 0),
    };
    let key = params![shard.0.cast_signed(), offset as i64, i64::from(index), release.is_some()];
    let waiting = session.query(
        "UPDATE quarantine SET discarded = true, released = $4 WHERE shard = $1 AND \"offset\" = \
         $2 AND idx = $3 AND NOT discarded RETURNING tenant, appended",
        key,
    )?;
    let Some(row) = waiting.first() else { return Ok(None) };
    let Some(release) = release else { return Ok(Some(ScopedNumbers::new())) };
    // No fill moves until the end either. One that waits for the lock sees what was released.
    let fills = generations::lock_shard_fills(session, shard)?;
    if ReleaseBasis::new(set, &fills, offset) != release.basis {
        return Err(StoreError::Refused { shard });
    }
    let (mut numbered, mut growth) = (ScopedNumbers::new(), SeriesGrowth::new());
    let scopes = scopes(shard, release);
    for (scope, deltas) in &scopes {
        let (written, at) = ((&[][..], *deltas), (shard, offset));
        let numbers = catalogue::number_series(session, known, *scope, written, at, &mut growth)?;
        numbered.push((*scope, numbers));
    }
    let numbers = numbered.iter().map(|(_, numbers)| numbers);
    let lists: Vec<_> = scopes.iter().map(|(_, deltas)| *deltas).zip(numbers).collect();
    let touched = merge(session, compressed, &lists)?;
    let sql = "INSERT INTO accounting AS a VALUES ($1, $2, 1, 0, 0) ON CONFLICT (tenant, hour) DO \
               UPDATE SET
        aggregated = a.aggregated + 1, quarantined = greatest(a.quarantined - 1, 0)";
    let hour = Hour::of(get(row, 1)?).0;
    let mut writes = vec![(sql, params![get::<String>(row, 0)?, hour])];
    for (part, of) in &release.generations {
        let writer = Writer { shard, part: *part };
        writes.extend(generations::count_upserts(writer, of));
    }
    let before = touched.revisions(session)?;
    let revise = |day| {
        revision_after_release(before.get(&day).copied().unwrap_or(0), log, shard, offset, index)
    };
    writes.extend(touched.writes(&growth, revise));
    session.execute_all(writes)?;
    Ok(Some(numbered))
}

/// Forgets what was decided about events whose records have expired.
pub(super) fn forget_settled(
    session: &mut PostgresSession,
    shard: ShardId,
    below: Offset,
) -> Result<(), StoreError> {
    let sql = "DELETE FROM quarantine WHERE shard = $1 AND \"offset\" < $2 AND discarded";
    session.execute(sql, params![shard.0.cast_signed(), below as i64])?;
    Ok(())
}

impl QuarantineStore for PostgresStore {
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        release: Option<&ReleasedEvent>,
        request: Option<&QueryBudget>,
    ) -> Result<bool, StoreError> {
        let request = request.map(QueryBudget::cancel_flag);
        if let Some(release) = release {
            let weeks: BTreeSet<i32> = scopes(shard, release)
                .into_iter()
                .flat_map(|(_, deltas)| merge::touched_weeks(deltas))
                .collect();
            self.ensure_weeks(&weeks, request.as_ref())?;
        }
        let settled = self.numbered_transaction(shard, request.as_ref(), |session| {
            let numbered = settle(
                session,
                (&self.series_cache, &self.compressed_weeks),
                (shard, offset, index),
                release,
            )?;
            let settled = numbered.is_some();
            Ok((numbered.unwrap_or_default(), settled))
        });
        self.forget_weeks(settled)
    }
}

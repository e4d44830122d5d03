//! Folds one shard's records up to its checkpoint, as a shard would.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use super::generations::{FoldedGenerations, GenerationFold, StoredGenerations};
use super::outcomes;
use super::sources::{VerifyError, VerifySources};
use super::store_view::ShardHistory;
use crate::model::flush::{AccountingDelta, Claim, Delta, LogRecord, RecentIds, SeriesInfo};
use crate::model::generation::MaintainedSet;
use crate::model::manifest::{self, ManifestRow};
use crate::model::offset::{Offset, ShardId};
use crate::model::outcome::OutcomeNote;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};
use crate::persistence::log::LogReader;
use crate::persistence::store::StoreDamage;
use crate::recompute::fold::{self, FoldRules};
use crate::shards::driver::ShardDriver;
use crate::shards::series::SeriesAdmission;
use crate::shards::state::ShardState;

/// Payload bytes per read of the log.
const READ_BYTES: usize = 4 << 20;

pub(super) type RecomputedRows = HashMap<(SeriesId, Hour), (Arc<SeriesInfo>, Rollup)>;

/// The result of a fold.
#[derive(Default)]
pub(super) struct FoldedShard {
    pub(super) rows: RecomputedRows,
    pub(super) generations: FoldedGenerations,
    pub(super) records: u64,
    pub(super) accounting: Vec<AccountingDelta>,
    /// Events whose outcome in the archive is not that of the fold.
    pub(super) damages: Vec<StoreDamage>,
    /// Whether the fold began at offset 0, so that the accounting is complete.
    pub(super) from_start: bool,
}

struct ShardFold<'a> {
    sources: &'a VerifySources<'a>,
    log: &'a dyn LogReader,
    history: &'a ShardHistory<'a>,
    hours: &'a Range<Hour>,
    folded: FoldedShard,
    generations: GenerationFold<'a>,
}

/// Folds the shard's records below its checkpoint, from the first one that can matter for `hours`.
pub(super) fn fold_shard(
    sources: &VerifySources<'_>,
    log: &dyn LogReader,
    history: &ShardHistory<'_>,
    hours: &Range<Hour>,
    generations: &StoredGenerations,
) -> Result<FoldedShard, VerifyError> {
    let mut fold = ShardFold {
        sources,
        log,
        history,
        hours,
        folded: FoldedShard::default(),
        generations: GenerationFold::new(generations, history.shard, hours),
    };
    fold.check_complete()?;
    let (archived, until) = (history.checkpoint.archived, fold.until());
    let objects: Vec<&ManifestRow> =
        history.manifest.iter().copied().filter(|row| row.range.from < until).collect();
    let first = first_needed(&objects, hours, fold.log_begins()?, fold.horizon_ms());
    let start = objects.get(first).map_or(archived.min(until), |row| row.range.from);
    fold.folded.from_start = start == 0;
    let mut driver = fold.driver(start);
    let before = match first.checked_sub(1) {
        Some(before) => Some(objects[before].appended.1),
        None => history.floor.map(|floor| floor.appended),
    };
    let needed = &objects[first..];
    let certain = outcomes::first_certain(needed, before, fold.horizon_ms());
    for (at, object) in needed.iter().enumerate() {
        let read = sources.read_object(object)?;
        let folded = fold.apply(&mut driver, &read.records)?;
        if let Some(archived) = read.outcomes.filter(|_| at >= certain) {
            let found = outcomes::compare(object, until, &archived, &folded);
            fold.folded.damages.extend(found);
        }
    }
    fold.fold_log(&mut driver)?;
    fold.folded.generations = fold.generations.finish();
    Ok(fold.folded)
}

impl ShardFold<'_> {
    fn shard(&self) -> ShardId {
        self.history.shard
    }

    fn until(&self) -> Offset {
        self.history.checkpoint.next
    }

    fn horizon_ms(&self) -> i64 {
        self.history.rules.longest_horizon_ms().unwrap_or(self.sources.dedup_horizon_ms)
    }

    fn incomplete(&self, why: String) -> VerifyError {
        VerifyError::Incomplete { shard: self.shard(), why }
    }

    /// Checks that the archive tiles the offsets from the floor to the archived offset, and that
    /// the log has the rest.
    fn check_complete(&self) -> Result<(), VerifyError> {
        let shards = self.log.shard_count();
        if self.shard().0 >= shards {
            let why = format!("the store has it, and the log has {shards} shards");
            return Err(self.incomplete(why));
        }
        let archived = self.history.checkpoint.archived;
        let floor = self.history.floor.map_or(0, |floor| floor.offset);
        manifest::check_tiling(self.history.manifest.iter().copied(), floor, archived)
            .map_err(|why| self.incomplete(why))?;
        // The log is released only below archived offsets, so the snapshot is outdated.
        if archived < self.until() && self.log.start(self.shard()) > archived {
            return Err(VerifyError::Released);
        }
        Ok(())
    }

    /// The append time of the first record after the archive, if the fold needs the log.
    fn log_begins(&self) -> Result<Option<Millis>, VerifyError> {
        let archived = self.history.checkpoint.archived;
        if archived >= self.until() {
            return Ok(None);
        }
        Ok(self.read_log(archived, 1)?.first().map(|record| record.appended))
    }

    fn read_log(&self, from: Offset, max_bytes: usize) -> Result<Vec<LogRecord>, VerifyError> {
        let read = self.log.read(self.shard(), from, max_bytes);
        read.map_err(|error| VerifyError::of_log(self.shard(), error))
    }

    /// A driver that starts at `start` and repeats the decisions of the shard's owners.
    fn driver(&self, start: Offset) -> ShardDriver {
        let history = self.history;
        let limits = FoldRules {
            dedup_horizon_ms: self.sources.dedup_horizon_ms,
            dedup_max_ids: self.sources.dedup_max_ids,
            // Nothing is written, so memory alone must not cause a flush.
            max_delta_bytes: usize::MAX,
            shard_count: self.log.shard_count(),
        }
        .limits();
        let before =
            history.manifest.iter().rfind(|row| row.range.to <= start).map(|row| row.appended.1);
        let mut checkpoint = history.checkpoint;
        checkpoint.next = start;
        checkpoint.appended = before.max(history.floor.map(|floor| floor.appended));
        let claim = Claim {
            checkpoint,
            attempts: 1,
            suspects: history.suspects.clone(),
            set: MaintainedSet::default(),
        };
        let admission =
            SeriesAdmission::recorded(history.admissions.to_vec()).for_shard(self.shard());
        let recent = RecentIds { rules: history.rules.clone(), blocks: Vec::new() };
        ShardState::new(limits, self.shard(), &claim, recent, admission, 0).into()
    }

    fn fold_log(&mut self, driver: &mut ShardDriver) -> Result<(), VerifyError> {
        while driver.state().next() < self.until() {
            let next = driver.state().next();
            let records = self.read_log(next, READ_BYTES)?;
            if records.is_empty() {
                return Err(self.log_ends_early(next));
            }
            self.apply(driver, &records)?;
        }
        Ok(())
    }

    /// Why the log returned no records at `next`, below the checkpoint.
    fn log_ends_early(&self, next: Offset) -> VerifyError {
        let shard = self.shard();
        match self.log.bounds(shard) {
            Err(error) => VerifyError::of_log(shard, error),
            Ok((_, end)) if end > next => {
                VerifyError::Log(format!("shard {shard}: the log does not hand out record {next}"))
            }
            Ok(_) => {
                let until = self.until();
                self.incomplete(format!("the log ends at {next}, below the checkpoint {until}"))
            }
        }
    }

    /// Applies the records, and returns which of their events are not counted.
    fn apply(
        &mut self,
        driver: &mut ShardDriver,
        records: &[LogRecord],
    ) -> Result<OutcomeNote, VerifyError> {
        let mut noted = OutcomeNote::default();
        // An object or a read may reach beyond the checkpoint of the snapshot.
        let until = self.until();
        let below = records.partition_point(|record| record.offset < until);
        self.folded.records += below as u64;
        let applied = fold::apply(driver, &records[..below], true, &mut |_, batch, _| {
            self.merge(&batch.deltas);
            self.folded.accounting.extend(batch.accounting.iter().cloned());
            batch.outcomes.iter().for_each(|event| noted.push(event));
            Ok::<(), Infallible>(())
        });
        applied.map_err(|why| self.incomplete(why.to_string()))?;
        let folded = self.generations.fold(&records[..below], &noted);
        folded.map_err(|why| self.incomplete(why))?;
        Ok(noted)
    }

    fn merge(&mut self, deltas: &[Delta]) {
        for delta in deltas.iter().filter(|delta| self.hours.contains(&delta.hour)) {
            let row = self.folded.rows.entry((delta.series.id, delta.hour));
            row.or_insert_with(|| (delta.series.clone(), Rollup::default())).1.merge(&delta.rollup);
        }
    }
}

/// The index of the first object to fold: the first that touches the windows, and then back over
/// every gap in the append times that is not longer than the horizon. `log_begins` is the append
/// time of the first record after the objects.
pub(super) fn first_needed(
    objects: &[&ManifestRow],
    hours: &Range<Hour>,
    log_begins: Option<Millis>,
    horizon_ms: i64,
) -> usize {
    let touches = |row: &&ManifestRow| row.windows.iter().any(|(hour, _)| hours.contains(hour));
    let mut first = objects.iter().position(touches).unwrap_or(objects.len());
    let mut begins = objects.get(first).map(|row| row.appended.0).or(log_begins);
    // One horizon is not enough: an event within it may itself be a duplicate of an older one, and
    // so on. Only a gap longer than the horizon ends such a chain.
    while let Some(begin) = begins {
        let Some(before) = first.checked_sub(1).map(|at| objects[at]) else { break };
        if begin.saturating_sub(before.appended.1) > horizon_ms {
            break;
        }
        first -= 1;
        begins = Some(before.appended.0);
    }
    first
}

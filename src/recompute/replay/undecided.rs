//! What became of the events of objects that do not say it: those of older releases.
//!
//! The shard's own driver folds them once more for their ids, with the admissions and the
//! quarantine as they were recorded, from an object on before which no id can matter.

use std::convert::Infallible;

use super::plan::{self, deciding_start};
use crate::model::flush::{Claim, DedupRules, RecentIds, SuspectEvent};
use crate::model::generation::{DayRange, MaintainedSet};
use crate::model::manifest::{ArchiveFloor, ManifestRow};
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::outcome::{OutcomeNote, UncountedEvent};
use crate::model::series::SeriesId;
use crate::persistence::archive::columns::RawEvents;
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::store::{StoreError, StoreSnapshot};
use crate::recompute::fold::{self, FoldRules};
use crate::shards::driver::ShardDriver;
use crate::shards::series::SeriesAdmission;
use crate::shards::state::ShardState;

/// What the store recorded of the decisions of a shard.
pub(super) struct RecordedDecisions {
    shard: ShardId,
    rules: DedupRules,
    admissions: Vec<(SeriesId, Offset)>,
    suspects: Vec<SuspectEvent>,
    floor: Option<ArchiveFloor>,
}

impl RecordedDecisions {
    pub(super) fn read(
        snapshot: &mut dyn StoreSnapshot,
        shard: ShardId,
        quarantined: &[UncountedEvent],
        floor: Option<ArchiveFloor>,
    ) -> Result<Self, StoreError> {
        let suspect = |event: &UncountedEvent| SuspectEvent::quarantined(event.offset, event.index);
        let suspects = quarantined.iter().map(suspect).collect();
        let (rules, admissions) = (snapshot.dedup_rules(shard)?, snapshot.admissions(shard)?);
        Ok(Self { shard, rules, admissions, suspects, floor })
    }
}

/// Why the outcomes of an object are not known.
#[derive(Debug)]
pub(super) enum UndecidedError {
    /// The archive floor hides what would decide them.
    Hidden,
    /// An object that has to be folded for them cannot be read.
    Archive(ArchiveError),
    /// The records cannot be folded.
    Unfoldable(String),
}

/// The fold of the shard's records for their outcomes, as far as it has come.
pub(super) struct UndecidedFold {
    decisions: RecordedDecisions,
    rules: FoldRules,
    driver: Option<(ShardDriver, usize)>,
}

impl UndecidedFold {
    pub(super) fn new(decisions: RecordedDecisions, rules: FoldRules) -> Self {
        Self { decisions, rules, driver: None }
    }

    /// The outcomes of `rows[at]`. Objects that are asked for in order are each folded once.
    pub(super) fn outcomes(
        &mut self,
        archive: &dyn Archive,
        rows: &[ManifestRow],
        at: usize,
    ) -> Result<OutcomeNote, UndecidedError> {
        let horizon =
            self.decisions.rules.longest_horizon_ms().unwrap_or(self.rules.dedup_horizon_ms);
        let start = deciding_start(rows, at, self.decisions.floor, horizon);
        let start = start.ok_or(UndecidedError::Hidden)?;
        let (mut driver, next) = match self.driver.take() {
            Some((driver, next)) if (start..=at).contains(&next) => (driver, next),
            _ => (self.driver_at(rows, start), start),
        };
        let mut noted = OutcomeNote::default();
        for row in &rows[next..=at] {
            noted = OutcomeNote::default();
            let read = archive.read_all(row).map_err(UndecidedError::Archive)?;
            let applied = fold::apply(&mut driver, &read.records, true, &mut |_, batch, _| {
                batch.outcomes.iter().for_each(|event| noted.push(event));
                Ok::<(), Infallible>(())
            });
            applied.map_err(|why| UndecidedError::Unfoldable(why.to_string()))?;
        }
        self.driver = Some((driver, at + 1));
        Ok(noted)
    }

    fn driver_at(&self, rows: &[ManifestRow], start: usize) -> ShardDriver {
        let RecordedDecisions { shard, rules, admissions, suspects, floor } = &self.decisions;
        let before = start.checked_sub(1).map(|before| rows[before].appended.1);
        let checkpoint = Checkpoint {
            log: rows[start].log,
            next: rows[start].range.from,
            archived: rows[start].range.from,
            epoch: Epoch { counter: 0, nonce: 0 },
            appended: before.or(floor.map(|floor| floor.appended)),
        };
        let claim = Claim {
            checkpoint,
            attempts: 1,
            suspects: suspects.clone(),
            set: MaintainedSet::default(),
        };
        let admission = SeriesAdmission::recorded(admissions.clone()).for_shard(*shard);
        let recent = RecentIds { rules: rules.clone(), blocks: Vec::new() };
        ShardState::new(self.rules.limits(), *shard, &claim, recent, admission, 0).into()
    }
}

/// Objects of a shard about which the archive floor hides what would decide, should they be of an
/// older release.
pub struct HiddenObjects(Vec<ManifestRow>);

/// The hidden objects of each shard that has some with events on these days. `horizon_ms` is the
/// configured one, for shards that have not recorded any.
///
/// # Errors
/// If the store does not answer.
pub fn hidden_objects(
    snapshot: &mut dyn StoreSnapshot,
    days: DayRange,
    horizon_ms: i64,
) -> Result<Vec<HiddenObjects>, StoreError> {
    let mut hidden = Vec::new();
    for (shard, floor) in snapshot.archive_floors()? {
        let mut rows = snapshot.manifest(Some(shard))?;
        let horizon = snapshot.dedup_rules(shard)?.longest_horizon_ms().unwrap_or(horizon_ms);
        rows.truncate(plan::hidden_objects(&rows, Some(floor), horizon));
        if plan::touched_days(&rows).into_iter().any(|day| days.contains(day)) {
            hidden.push(HiddenObjects(rows));
        }
    }
    Ok(hidden)
}

/// The days of which nobody can say any more what became of their events, ascending.
///
/// # Errors
/// If an object cannot be read.
pub fn undecidable_days(
    archive: &dyn Archive,
    hidden: &[HiddenObjects],
) -> Result<Vec<i32>, ArchiveError> {
    let mut days = Vec::new();
    for HiddenObjects(rows) in hidden {
        days.extend(plan::touched_days(&rows[..objects_without_outcomes(archive, rows)?]));
    }
    days.sort_unstable();
    days.dedup();
    Ok(days)
}

/// How many of a shard's objects carry no outcomes: those of older releases, which are the first.
/// Reads the beginning of as many objects as the number has binary digits.
///
/// # Errors
/// If an object cannot be read.
pub fn objects_without_outcomes(
    archive: &dyn Archive,
    rows: &[ManifestRow],
) -> Result<usize, ArchiveError> {
    let (mut low, mut high) = (0, rows.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let first = archive.read_columns(&rows[middle], RawEvents::Skip)?.next().transpose()?;
        match first.is_some_and(|batch| batch.outcomes.is_none()) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    Ok(low)
}

//! Planted bugs: mistakes that people make in systems of this kind. Each must be found within a
//! limited number of seeds.
//!
//! Product code is not changed. A bug of the store, the archive or the log is planted in its
//! double. A bug of a shard is planted at its driver, by altering the events it gets or the
//! commands it gives, so that the real decision and everything behind it still run
//! ([`PlantSite::Driver`]). A bug of what surrounds the shards is planted in the simulated node.

use std::sync::Arc;

use rollmill::model::flush::{Claim, Delta, FlushBatch, FlushGuard};
use rollmill::model::generation::GenerationId;
use rollmill::model::offset::{OffsetRange, ShardId};
use rollmill::model::window::Hour;
use rollmill::persistence::log::LogReader;
use rollmill::shards::driver::startup::{LoadedShard, StartupEvent};
use rollmill::shards::driver::{ShardCommand, ShardEvent};

use crate::doubles::checkpoint;
use crate::world::SimWorld;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantSite {
    /// In the double behind a port.
    Double,
    /// At the driver of a shard: in its events or commands.
    Driver,
    /// In what surrounds the shards: clients, archiver, queries, shard table.
    Node,
}

macro_rules! plants {
    ($($name:ident $place:ident $text:literal),* $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Plant { $($name),* }
        impl Plant {
            pub const ALL: &[Plant] = &[$(Plant::$name),*];
            pub fn place(self) -> PlantSite {
                match self { $(Plant::$name => PlantSite::$place),* }
            }
            pub fn text(self) -> &'static str {
                match self { $(Plant::$name => $text),* }
            }
        }
    };
}

impl Plant {
    /// Whether random schedules hit the bug once in ten thousand times, or never because their logs
    /// lose nothing. A written schedule or the walk shows it instead.
    pub fn is_rare(self) -> bool {
        matches!(
            self,
            Plant::LoadNotChecked
                | Plant::ShortLogAccepted
                | Plant::MovedNotSaid
                | Plant::PointerWithoutRevision
        )
    }
}

plants! {
    NoFence Double "the flush compares neither epoch nor offset",
    NoEpochFence Double "the flush compares the offset, not the epoch",
    OffsetInSecondTransaction Double "rows in one transaction, the checkpoint in a second one",
    IdsInSecondTransaction Double
        "rows and checkpoint in one transaction, the de-duplication block in a second one",
    QuarantineRowLost Double "the quarantine row is not part of the flush",
    OutcomesNotNoted Double "the flush does not note which events it does not count",
    OutcomesDecidedAnew Double
        "the archiver decides which events are duplicates, by the ids of its own object",
    IdsForgottenEarly Double "de-duplication blocks are deleted a horizon too early",
    TornObjectAccepted Double
        "an archive object counts as written without a look at its size and checksum",
    ObjectNameWithoutEpoch Double
        "archive objects are named by their first offset only, and puts overwrite",
    AckBeforeLog Node "the client is told before the log has it",
    RequestTorn Double "the log keeps a part of a request and acknowledges all of it",
    BlindRetry Driver "a commit of unknown outcome is sent again, on top of whatever is stored",
    IdleNotConfirmed Driver "an idle owner does not look whether the store stands where it left it",
    LossNotHealed Driver "what the log lost is not read from the archive",
    ReleasePastArchive Node "the log is released below the checkpoint, archived or not",
    ReleasePastCheckpoint Node
        "the log is released below what was applied, neither committed nor archived",
    RecentIdsNotLoaded Driver "a new owner does not load the recent ids",
    LoadNotChecked Driver
        "a new owner does not look whether another one claimed while it was loading the recent ids",
    AdmissionsNotLoaded Driver "a new owner does not load the admitted series",
    OneRecordEarly Driver "a new owner begins one record below the checkpoint",
    OneRecordLate Driver "a new owner begins one record above the checkpoint",
    SuspectNotMarked Double "the event applied alone is not noted first",
    AttemptsForgotten Driver "the starts at one checkpoint are not counted",
    ShortLogAccepted Driver "a log that ends below the checkpoint is not refused",
    FailedCommitForgotten Driver "what follows from a failed commit is thrown away",
    RecoveringEndedEarly Driver
        "a new owner takes its checkpoint for the end of what the log held at its claim",
    IsolationKept Driver
        "a shard that is done with its suspects keeps others from isolating theirs",
    LateEventsDropped Driver "deltas of past days are dropped at the flush",
    DedupByWallClock Driver "the horizon is measured with the wall clock at the time of applying",
    DeadShardIgnored Node "a query takes a shard that does not answer for an empty one",
    RowsReadAfterLive Node
        "a query reads rows from a later snapshot than the checkpoints it asks the shards with",
    CheckpointsReadAfterRows Node "a query reads checkpoints from a later snapshot than its rows",
    RevisionsStand Double
        "the flush does not move the revisions by which the query cache knows its days",
    CaughtUpRemembered Node "a new owner inherits when its predecessor had caught up with the log",
    RecoveringNotSaid Node
        "a new owner that has not reached what the log held at its claim answers as if it had",
    CutAtFlushStart Double
        "a set is adopted outside the flush, in a transaction before it: the cut is at its start",
    FillCursorFirst Double "the cursor of a fill moves in a transaction before its rows",
    FillNotCompared Double "a fill does not compare the cursor",
    GenerationAdmissionsNotLoaded Driver
        "a new owner does not load what its generations have admitted",
    FillDecidesAnew Double
        "a fill decides which events are duplicates, by the ids of the object that it reads",
    AppliedUnready Node "a generation is applied before all of it is filled in",
    LiveAsksIngest Node "a query asks shards for generation 0, whatever is served",
    MovedNotSaid Node
        "a shard whose batches lack the generation that is asked for answers as if they had nothing",
    PointerWithoutRevision Double
        "an apply puts rows in the place of others, and the query cache knows them by one revision",
    UndoLosesLate Driver "what an apply replaced is not written any more, late events included",
    ReleasedIntoIngestAlone Double "a release adds the event to generation 0 alone",
    ReleaseNotCompared Double
        "a release does not compare which writers have passed its event with what it was decided on",
    FillIgnoresReleases Double
        "a fill does not compare what was released of its records with what it has counted",
    SettlementsNotArchived Node "what people decide about events is not put into the archive",
    RowsLeaveEarly Node "rows are deleted while shards still write them",
    ReadsBehindIgnored Node "a shard that is behind reports now",
}

/// Bugs at the driver.
impl SimWorld {
    /// Alters the answer to a starting shard.
    pub fn plant_in_answer(
        &self,
        s: usize,
        claim: Option<&Claim>,
        mut event: StartupEvent,
    ) -> StartupEvent {
        let end = self.log.end(ShardId(s as u32));
        let next = claim.map_or(0, |claim| claim.checkpoint.next);
        match (self.plant, &mut event) {
            (Some(Plant::AttemptsForgotten), StartupEvent::Claim(Ok(claim))) => claim.attempts = 1,
            (Some(Plant::OneRecordEarly), StartupEvent::Claim(Ok(claim))) => {
                claim.checkpoint.next = claim.checkpoint.next.saturating_sub(1);
            }
            (Some(Plant::OneRecordLate), StartupEvent::Claim(Ok(claim)))
                if claim.checkpoint.next < end =>
            {
                claim.checkpoint.next += 1;
            }
            (Some(Plant::LossNotHealed), StartupEvent::ReadBounds(Ok(bounds))) => {
                bounds.0 = bounds.0.min(next)
            }
            (Some(Plant::ShortLogAccepted), StartupEvent::ReadBounds(Ok(bounds))) => {
                bounds.1 = bounds.1.max(next)
            }
            (Some(Plant::RecoveringEndedEarly), StartupEvent::ReadBounds(Ok((start, end))))
                if *start <= next =>
            {
                *end = next
            }
            (
                Some(Plant::RecentIdsNotLoaded),
                StartupEvent::Load(Ok(LoadedShard { blocks, .. })),
            ) => blocks.clear(),
            (
                Some(Plant::AdmissionsNotLoaded),
                StartupEvent::Load(Ok(LoadedShard { admitted, .. })),
            ) => admitted.clear(),
            (
                Some(Plant::GenerationAdmissionsNotLoaded),
                StartupEvent::Load(Ok(LoadedShard { generations, .. })),
            ) => generations.iter_mut().for_each(|(_, admitted)| admitted.clear()),
            (
                Some(Plant::LoadNotChecked),
                StartupEvent::Load(Ok(LoadedShard { checkpoint: stored, .. })),
            ) => {
                *stored = claim.map(|claim| claim.checkpoint);
            }
            _ => {}
        }
        event
    }

    /// Alters an event of a running shard, or drops it.
    pub fn plant_in_event<'a>(&self, event: ShardEvent<'a>) -> Option<ShardEvent<'a>> {
        match (self.plant, event) {
            (Some(Plant::FailedCommitForgotten), ShardEvent::CommitEnded(Err(error)))
                if error.is_retryable() =>
            {
                None
            }
            (Some(Plant::DedupByWallClock), ShardEvent::LogRead(Ok(mut records))) => {
                records
                    .to_mut()
                    .iter_mut()
                    .for_each(|record| record.appended = self.now.max(record.appended));
                Some(ShardEvent::LogRead(Ok(records)))
            }
            (_, event) => Some(event),
        }
    }

    /// Alters a command of a running shard, or drops it.
    pub fn plant_in_command(&self, command: ShardCommand) -> Option<ShardCommand> {
        match (self.plant, command) {
            (Some(Plant::IdleNotConfirmed), ShardCommand::Confirm { .. })
            | (Some(Plant::IsolationKept), ShardCommand::ReleaseIsolation) => None,
            (_, ShardCommand::Commit { guard, batch, forget_ids_before }) => {
                let (guard, batch) = (self.plant_in_guard(guard), self.plant_in_batch(batch));
                Some(ShardCommand::Commit { guard, batch, forget_ids_before })
            }
            (_, command) => Some(command),
        }
    }

    fn plant_in_guard(&self, guard: FlushGuard) -> FlushGuard {
        let off_by_one = matches!(self.plant, Some(Plant::OneRecordEarly | Plant::OneRecordLate));
        let now = if off_by_one {
            checkpoint(&*self.store, guard.shard).map_or(0, |c| c.next)
        } else {
            guard.range.from
        };
        match now.abs_diff(guard.range.from) {
            1 => FlushGuard {
                range: OffsetRange { from: now, to: guard.range.to.max(now) },
                ..guard
            },
            _ => guard,
        }
    }

    fn plant_in_batch(&self, batch: Arc<FlushBatch>) -> Arc<FlushBatch> {
        let mut dropped = match self.plant {
            Some(Plant::LateEventsDropped | Plant::UndoLosesLate) => (*batch).clone(),
            _ => return batch,
        };
        if self.has_plant(Plant::UndoLosesLate) {
            let book = self.book();
            let replaced = |tenant: &str, metric: &str, hour: Hour, of: GenerationId| {
                let pointer = book.pointer(tenant, metric);
                pointer.is_some_and(|pointer| !pointer.on(hour.day()).is_ingest())
                    && (of.is_ingest() || !book.is_built(of) && !book.is_served(of))
            };
            let keeps = |of: GenerationId, delta: &Delta| {
                let series = &delta.series.series;
                !replaced(&series.tenant, &series.metric, delta.hour, of)
            };
            dropped.deltas.retain(|delta| keeps(GenerationId::INGEST, delta));
            let others = dropped.generations.iter_mut();
            others.for_each(|of| of.deltas.retain(|delta| keeps(of.generation, delta)));
            return Arc::new(dropped);
        }
        let today = Hour::of(self.now).day();
        dropped.deltas.retain(|delta| delta.hour.day() >= today);
        Arc::new(dropped)
    }
}

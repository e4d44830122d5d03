//! Planted bugs: mistakes that people make in systems of this kind. Each must be found within a bounded number of seeds.
//!
//! No product code is changed. A bug of the store, the archive or the log is planted in its double; a bug of the shell in the
//! simulation's shell; a bug of the pure code by altering what goes into `ShardState` or comes out of it ([`Place::Edge`]).

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the double behind a port.
    Double,
    /// In the simulation's mirror of the actors' shells.
    Shell,
    /// At the edge of the pure code: its input or its output is altered.
    Edge,
}

macro_rules! plants {
    ($($name:ident $place:ident $text:literal),* $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Plant { $($name),* }
        impl Plant {
            pub const ALL: &[Plant] = &[$(Plant::$name),*];
            pub fn place(self) -> Place {
                match self { $(Plant::$name => Place::$place),* }
            }
            pub fn text(self) -> &'static str {
                match self { $(Plant::$name => $text),* }
            }
        }
    };
}

impl Plant {
    /// Chance finds it once in ten thousand schedules: a written schedule shows it.
    pub fn is_rare(self) -> bool {
        self == Plant::LoadNotChecked
    }
}

plants! {
    NoFence Double "the flush compares neither epoch nor offset",
    NoEpochFence Double "the flush compares the offset, not the epoch",
    OffsetInSecondTransaction Double "rows in one transaction, the checkpoint in a second one",
    IdsInSecondTransaction Double "rows and checkpoint in one transaction, the de-duplication block in a second one",
    QuarantineRowLost Double "the quarantine row is not part of the flush",
    IdsForgottenEarly Edge "de-duplication blocks are deleted a horizon too early",
    TornObjectAccepted Double "an archive object counts as written without a look at its size and checksum",
    ObjectNameWithoutEpoch Double "archive objects are named by their first offset only, and puts overwrite",
    AckBeforeLog Shell "the client is told before the log has it",
    RequestTorn Double "the log keeps a part of a request and acknowledges all of it",
    BlindRetry Shell "a commit of unknown outcome is sent again, on top of whatever is stored",
    IdleNotConfirmed Shell "an idle owner does not look whether the store stands where it left it",
    LossNotHealed Shell "what the log lost is not read from the archive",
    ReleasePastArchive Shell "the log is released below the checkpoint, archived or not",
    ReleasePastCheckpoint Shell "the log is released below what was applied, neither committed nor archived",
    RecentIdsNotLoaded Edge "a new owner does not load the recent ids",
    LoadNotChecked Shell "a new owner does not look whether another one claimed while it was loading the recent ids",
    AdmissionsNotLoaded Edge "a new owner does not load the admitted series",
    OneRecordEarly Edge "a new owner begins one record below the checkpoint",
    OneRecordLate Edge "a new owner begins one record above the checkpoint",
    SuspectNotMarked Shell "the event applied alone is not noted first",
    AttemptsForgotten Edge "the starts at one checkpoint are not counted",
    LateEventsDropped Edge "deltas of past days are dropped at the flush",
    DedupByWallClock Edge "the horizon is measured with the wall clock at the time of applying",
    DeadShardIgnored Shell "a query takes a shard that does not answer for an empty one",
    RowsReadAfterLive Shell "a query reads rows from a later snapshot than the checkpoints it asks the shards with",
    CheckpointsReadAfterRows Shell "a query reads checkpoints from a later snapshot than its rows",
    RevisionsStand Double "the flush does not move the revisions by which the query cache knows its days",
    CaughtUpRemembered Shell "a new owner inherits when its predecessor had caught up with the log",
    RecoveringNotSaid Shell "a new owner that has not reached what the log held at its claim answers as if it had",
    ReadsBehindIgnored Shell "a shard that is behind reports now",
}

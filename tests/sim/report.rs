//! What happened: counts of faults by kind, and violations by the ids of the invariant catalogue.

use rollmill::invariants::Invariant;

macro_rules! faults {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// What can go wrong, or at least has to happen for a run to mean anything. Counted when
        /// it had an effect.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault { $($name),* }
        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$name),*];
            pub fn text(self) -> &'static str {
                match self { $(Fault::$name => $text),* }
            }
        }
    };
}

faults! {
    ActorCrash = "actor crashed",
    NodeCrash = "node crashed",
    CommitDiedWithNode = "commit died with its node",
    CommitOutlivedOwner = "commit reached the store after its owner died",
    Pause = "node paused",
    ZombieWoke = "paused owner went on after another owner claimed",
    Takeover = "shard claimed from a living owner",
    TakeoverWhileArchiving = "shard claimed while its object was being written",
    AppendRefused = "append refused",
    AppendLost = "append unknown, not kept",
    AppendReplyLost = "append unknown, kept",
    AckLost = "acknowledgement lost on the way to the client",
    Resent = "request sent again",
    Conflict = "request sent again with another body",
    FencedWhileLoading = "another owner claimed while the shard was loading",
    FlushFailed = "flush failed",
    FlushUnknownApplied = "flush unknown, applied",
    FlushUnknownNotApplied = "flush unknown, not applied",
    FlushFenced = "flush refused by the fence",
    ClaimFailed = "claim failed or unknown",
    MarkFailed = "suspect not marked",
    ManifestFailed = "manifest row failed",
    ManifestUnknownApplied = "manifest row unknown, applied",
    ManifestUnknownNotApplied = "manifest row unknown, not applied",
    ManifestFenced = "manifest row refused by the fence",
    ArchiveDown = "archive unreachable",
    ArchiveReplyLost = "archive object written, reply lost",
    ArchiveTorn = "archive object torn",
    IsolationAwaited = "shard waited until another one had isolated its suspects",
    PoisonDeath = "shard died of a poison event",
    Convicted = "event set aside after deaths",
    Undecodable = "undecodable record set aside",
    Deduplicated = "event de-duplicated",
    HorizonExpired = "id counted again beyond the horizon",
    Overflow = "event folded into an overflow series",
    LateEvent = "event of a past day",
    LongPause = "a long time passed",
    ClockForward = "clock leapt forward",
    ClockBack = "clock leapt back",
    Released = "log released",
    QueryComplete = "query complete",
    QueryPartial = "query partial",
    Recovering = "new owner says that it has not reached what the log held at its claim",
    EngineComplete = "complete answer of the real engine and its cache",
    BooksComplete = "complete books of the real engine",
    Verified = "verify run over archive and log",
    StoreRolledBack = "store put back as it was before",
    NotConfirmed = "idle owner found that the store stands elsewhere",
    Healed = "records that the log had released read from the archive",
    EventReleased = "event released in the middle of a schedule",
    EventDiscarded = "event discarded",
    SettlementRefused = "event settled in vain: overtaken, failed, or settled before",
    SettlementsNotPut = "document of settled events not put",
    Rebuilt = "store rebuilt from archive and log",
    ReplayStarted = "replay started",
    SetAdopted = "set of generations adopted",
    AdoptionUnknown = "set of generations adopted or not, unknown",
    FillTwice = "shard filled by two at once",
    FillAwaitsObject = "fill waits for an object",
    FillExpired = "fill lacks what has expired",
    ObjectExpired = "archive object expired",
    BookKept = "book of generations kept in order",
    WayBackEnded = "apply lost its way back",
    QueryServedGeneration = "complete query with another generation",
    Moved = "shard answered that it has moved on from a served generation",
    Filled = "archived records filled into a generation",
    FillFailed = "fill failed or unknown",
    FillFenced = "fill refused by its cursor",
    FillerCrashed = "filler crashed",
    ReplayApplied = "replay applied",
    ReplayUndone = "replay undone",
    ReplayCancelled = "replay cancelled",
    RowsDeleted = "rows of a generation deleted",
    EngineServedGeneration = "complete answer of the real engine with another generation",
    CommitDuringQuery = "commit between a query's snapshot and its live reads",
}

#[derive(Debug, Clone)]
pub struct RunStats {
    pub schedules: u64,
    pub steps: u64,
    pub commits: u64,
    pub events: u64,
    hits: Vec<u64>,
}

impl Default for RunStats {
    fn default() -> Self {
        Self { schedules: 0, steps: 0, commits: 0, events: 0, hits: vec![0; Fault::ALL.len()] }
    }
}

impl RunStats {
    pub fn hit(&mut self, fault: Fault) {
        self.hits[fault as usize] += 1;
    }

    pub fn hits(&self, fault: Fault) -> u64 {
        self.hits[fault as usize]
    }

    pub fn add(&mut self, other: &RunStats) {
        self.schedules += other.schedules;
        self.steps += other.steps;
        self.commits += other.commits;
        self.events += other.events;
        self.hits.iter_mut().zip(&other.hits).for_each(|(mine, theirs)| *mine += theirs);
    }

    pub fn vacuous(&self) -> Vec<&'static str> {
        Fault::ALL.iter().filter(|f| self.hits(**f) == 0).map(|f| f.text()).collect()
    }
}

impl std::fmt::Display for RunStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total: u64 = self.hits.iter().sum();
        writeln!(
            f,
            "{} schedules, {} steps, {} commits, {} events in logs, {total} faults",
            self.schedules, self.steps, self.commits, self.events
        )?;
        Fault::ALL
            .iter()
            .try_for_each(|fault| writeln!(f, "  {:>11}  {}", self.hits(*fault), fault.text()))
    }
}

/// An invariant that was violated.
#[derive(Debug, Clone)]
pub struct Violation {
    pub invariant: Invariant,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}: {}", self.invariant.id(), self.invariant, self.what)
    }
}

pub fn ensure(
    invariant: Invariant,
    holds: bool,
    what: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { invariant, what: what() }) }
}

//! Services that the gateway calls on behalf of operators. They block, so the gateway calls them
//! outside its event loop.

use std::collections::BTreeMap;

use crate::api::archive::{ArchiveFlushAnswer, ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::api::boards::{BoardInfo, BoardsAnswer};
use crate::api::quarantine::{DiscardAnswer, EventPlace, QuarantineAnswer, ReleaseAnswer};
use crate::api::replays::{Replay, ReplayDiff, ReplaysAnswer, StartReplay};
use crate::api::status::StatusAnswer;
use crate::model::board::BoardId;
use crate::model::budget::QueryBudget;
use crate::model::generation::GenerationId;
use crate::model::offset::ShardId;
use crate::persistence::store::StoreError;

/// Why a call failed. The gateway maps it to a code and a status.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// The node has no role that opens the store.
    #[error("this node has no query role (node.roles): ask a node that has")]
    NoQueryRole,
    /// The event is not waiting in the quarantine.
    #[error("event {place} {why}")]
    NotQuarantined {
        place: EventPlace,
        /// What happened to it instead.
        why: &'static str,
    },
    /// Replays have moved each time that the event was about to be released.
    #[error(
        "the event stays in the quarantine: replays are being filled from shard {shard}, and one \
         moved past it each of the {turns} times that it was about to be counted"
    )]
    ReleaseOvertaken {
        /// The shard of the event.
        shard: ShardId,
        /// How often the release was decided.
        turns: u32,
    },
    /// This release cannot count the event.
    #[error("{0}")]
    NotReleasable(String),
    /// The tenant has no such replay.
    #[error("{0}")]
    NoReplay(String),
    /// What is asked of a replay makes no sense: metrics, days, or where a part begins.
    #[error("{0}")]
    ReplayInvalid(String),
    /// The rules have mistakes.
    #[error("{0}")]
    RulesInvalid(String),
    /// It cannot be applied yet; the message says who is waited for.
    #[error("{0}")]
    NotReady(String),
    /// It cannot be done, or not now; the message says until when.
    #[error("{0}")]
    ReplayRefused(String),
    /// The tenant has no such board.
    #[error("{0}")]
    NoBoard(String),
    /// It is no board.
    #[error("{0}")]
    BoardInvalid(String),
    /// It has more panels or bytes than boards may have.
    #[error("{0}")]
    BoardTooLarge(String),
    /// The tenant has as many as it may have.
    #[error("{0}")]
    TooManyBoards(String),
    /// Somebody has changed it meanwhile.
    #[error("{0}")]
    BoardChanged(String),
    /// The store cannot be reached, or the outcome is unknown. Repeating the call is safe: it
    /// reports if the work is done already.
    #[error("{0}")]
    StoreUnavailable(String),
    /// The store holds data that no release writes.
    #[error("{0}")]
    StoreInvalid(String),
}

/// What is said of a store that did not answer before the request ended.
pub const NO_ANSWER: &str =
    "the store did not answer within query.timeout, nothing was written: is its server alive?";

impl From<StoreError> for OperateError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid(why) => Self::StoreInvalid(why),
            StoreError::QueryEnded => Self::StoreUnavailable(NO_ANSWER.to_owned()),
            other => Self::StoreUnavailable(other.to_string()),
        }
    }
}

/// Which events of the quarantine a key reaches.
#[allow(missing_docs, reason = "the name says it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineScope {
    pub tenant: std::sync::Arc<str>,
    /// Whether records that no build could read, which belong to no tenant, are included.
    pub unowned: bool,
}

/// The quarantine. A tenant's key sees and settles that tenant's events only.
pub trait QuarantineService: Send + Sync {
    /// Lists the waiting events; `all` includes discarded ones.
    ///
    /// # Errors
    /// Fails without the query role, if the store fails, or when the budget is used up.
    fn list(
        &self,
        scope: &QuarantineScope,
        all: bool,
        budget: &QueryBudget,
    ) -> Result<QuarantineAnswer, OperateError>;
    /// Counts the event after all and removes it from the quarantine.
    ///
    /// # Errors
    /// Fails without the query role, if the event is not waiting, if it cannot be folded, if
    /// the store fails, or when the budget is used up.
    fn release(
        &self,
        scope: &QuarantineScope,
        place: EventPlace,
        budget: &QueryBudget,
    ) -> Result<ReleaseAnswer, OperateError>;
    /// Gives the event up for good; its row stays, marked as discarded.
    ///
    /// # Errors
    /// Fails without the query role, if the event is not waiting, if the store fails, or when
    /// the budget is used up.
    fn discard(
        &self,
        scope: &QuarantineScope,
        place: EventPlace,
        budget: &QueryBudget,
    ) -> Result<DiscardAnswer, OperateError>;
}

/// Expiry of archives and weeks. It is for operators and covers all tenants.
pub trait ExpiryService: Send + Sync {
    /// Lists what is due to be deleted.
    ///
    /// # Errors
    /// Fails without the query role, if the store fails, or when the budget is used up.
    fn list(&self, budget: &QueryBudget) -> Result<ExpiryAnswer, OperateError>;
    /// Approves every expiry that is stopped.
    ///
    /// # Errors
    /// Fails without the query role, if the store fails, or when the budget is used up.
    fn approve(&self, budget: &QueryBudget) -> Result<ExpiryGoesOnAnswer, OperateError>;
}

/// Who does something to a replay.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayActor {
    pub tenant: std::sync::Arc<str>,
    /// The prefix of a key, for the audit list.
    pub by: String,
}

/// What the fills of this node wait for. Fills of other nodes are known to those only.
pub trait FillWaits: Send + Sync {
    /// By shard, for people; a shard whose fill waits for nothing outside is left out. A fill that
    /// stands aside for a late flush waits for that.
    fn waits(&self, id: GenerationId) -> BTreeMap<ShardId, String>;
}

/// Stands in on nodes that fill nothing.
pub struct NoFills;

impl FillWaits for NoFills {
    fn waits(&self, _: GenerationId) -> BTreeMap<ShardId, String> {
        BTreeMap::new()
    }
}

/// Which part of a difference is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiffRequest {
    /// `next` of the part before; `None` is the first part.
    pub after: Option<String>,
    /// So many rows with the largest changes; `None` is all rows, in order.
    pub largest: Option<usize>,
}

/// Replays. A tenant's key sees and changes that tenant's replays only. Everything fails without
/// the query role, if the store fails, and when the budget is used up.
pub trait ReplayService: Send + Sync {
    /// The tenant's replays, and what was done to them.
    ///
    /// # Errors
    /// See the trait.
    fn list(&self, tenant: &str, budget: &QueryBudget) -> Result<ReplaysAnswer, OperateError>;
    /// One replay.
    ///
    /// # Errors
    /// [`OperateError::NoReplay`], and see the trait.
    fn show(&self, tenant: &str, id: u64, budget: &QueryBudget) -> Result<Replay, OperateError>;
    /// Starts a replay.
    ///
    /// # Errors
    /// If the request is invalid, a day cannot be replayed, or another replay is in the way; and
    /// see the trait.
    fn start(
        &self,
        who: &ReplayActor,
        request: &StartReplay,
        budget: &QueryBudget,
    ) -> Result<Replay, OperateError>;
    /// Serves a replay on its days.
    ///
    /// # Errors
    /// [`OperateError::NotReady`], if it is served or leaves, and see the trait.
    fn apply(
        &self,
        who: &ReplayActor,
        id: u64,
        budget: &QueryBudget,
    ) -> Result<Replay, OperateError>;
    /// Puts back what the apply replaced.
    ///
    /// # Errors
    /// If there is nothing to undo, another one was applied since, and see the trait.
    fn undo(
        &self,
        who: &ReplayActor,
        id: u64,
        budget: &QueryBudget,
    ) -> Result<Replay, OperateError>;
    /// Gives up a replay that is not served.
    ///
    /// # Errors
    /// If it is served or leaves already, and see the trait.
    fn cancel(
        &self,
        who: &ReplayActor,
        id: u64,
        budget: &QueryBudget,
    ) -> Result<Replay, OperateError>;
    /// A part of the difference between a replay and what is served on its days.
    ///
    /// # Errors
    /// [`OperateError::NoReplay`], if `after` is not the `next` of a part, and see the trait.
    fn diff(
        &self,
        tenant: &str,
        id: u64,
        request: &DiffRequest,
        budget: &QueryBudget,
    ) -> Result<ReplayDiff, OperateError>;
}

/// Who changes a board.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardAuthor {
    pub tenant: std::sync::Arc<str>,
    /// The prefix of a key.
    pub by: String,
}

/// Which boards of a list are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardPage {
    /// Those with greater ids.
    pub after: String,
    /// At most so many.
    pub limit: usize,
}

/// Which board a change is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoardVersion {
    /// One that there is not.
    New,
    /// The one of this version.
    Is(u64),
}

/// Boards: saved panels. A tenant's key sees and changes that tenant's boards only. Everything
/// fails without the query role, if the store fails, and when the budget is used up.
pub trait BoardService: Send + Sync {
    /// A page of the tenant's boards, ascending by id.
    ///
    /// # Errors
    /// See the trait.
    fn list(
        &self,
        tenant: &str,
        page: &BoardPage,
        budget: &QueryBudget,
    ) -> Result<BoardsAnswer, OperateError>;
    /// The version and the document of a board.
    ///
    /// # Errors
    /// [`OperateError::NoBoard`], and see the trait.
    fn show(
        &self,
        tenant: &str,
        id: &BoardId,
        budget: &QueryBudget,
    ) -> Result<(u64, String), OperateError>;
    /// Makes or replaces a board by the JSON of a request.
    ///
    /// # Errors
    /// If it is no board or too large, if the tenant has too many,
    /// [`OperateError::BoardChanged`], and see the trait.
    fn put(
        &self,
        author: &BoardAuthor,
        id: &BoardId,
        change: (BoardVersion, &[u8]),
        budget: &QueryBudget,
    ) -> Result<BoardInfo, OperateError>;
    /// Deletes the board of a version.
    ///
    /// # Errors
    /// [`OperateError::NoBoard`], [`OperateError::BoardChanged`], and see the trait.
    fn delete(
        &self,
        tenant: &str,
        id: &BoardId,
        version: u64,
        budget: &QueryBudget,
    ) -> Result<(), OperateError>;
}

/// Status of nodes and shards.
pub trait StatusService: Send + Sync {
    /// Status of all known nodes and shards. May block for as long as one call to the other nodes
    /// takes, and until the budget is used up while the store does not answer. The nodes' own
    /// reports are there even then.
    fn status(&self, budget: &QueryBudget) -> StatusAnswer;
    /// For how long, in milliseconds, each node that owns shards is certain to know event ids. May
    /// block for as long as one call to the other nodes takes.
    fn dedup_horizons(&self) -> Vec<(String, i64)>;
    /// Requests that everything applied so far by this node's shards is archived as soon
    /// as it is committed.
    fn archive_now(&self) -> ArchiveFlushAnswer;
}

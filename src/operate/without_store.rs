//! Operator services of a node without the query role: every call is refused.

use super::service::{
    BoardAuthor, BoardPage, BoardService, BoardVersion, DiffRequest, ExpiryService, OperateError,
    QuarantineScope, QuarantineService, ReplayActor, ReplayService,
};
use crate::api::archive::{ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::api::boards::{BoardInfo, BoardsAnswer};
use crate::api::quarantine::{DiscardAnswer, EventPlace, QuarantineAnswer, ReleaseAnswer};
use crate::api::replays::{Replay, ReplayDiff, ReplaysAnswer, StartReplay};
use crate::model::board::BoardId;
use crate::model::budget::QueryBudget;

/// Refuses every call, because the node has no role that opens a store.
#[derive(Debug, Clone, Copy)]
pub struct NoStore;

impl QuarantineService for NoStore {
    fn list(
        &self,
        _: &QuarantineScope,
        _: bool,
        _: &QueryBudget,
    ) -> Result<QuarantineAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn release(
        &self,
        _: &QuarantineScope,
        _: EventPlace,
        _: &QueryBudget,
    ) -> Result<ReleaseAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn discard(
        &self,
        _: &QuarantineScope,
        _: EventPlace,
        _: &QueryBudget,
    ) -> Result<DiscardAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
}

impl ExpiryService for NoStore {
    fn list(&self, _: &QueryBudget) -> Result<ExpiryAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn approve(&self, _: &QueryBudget) -> Result<ExpiryGoesOnAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
}

impl ReplayService for NoStore {
    fn list(&self, _: &str, _: &QueryBudget) -> Result<ReplaysAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn show(&self, _: &str, _: u64, _: &QueryBudget) -> Result<Replay, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn start(
        &self,
        _: &ReplayActor,
        _: &StartReplay,
        _: &QueryBudget,
    ) -> Result<Replay, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn apply(&self, _: &ReplayActor, _: u64, _: &QueryBudget) -> Result<Replay, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn undo(&self, _: &ReplayActor, _: u64, _: &QueryBudget) -> Result<Replay, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn cancel(&self, _: &ReplayActor, _: u64, _: &QueryBudget) -> Result<Replay, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn diff(
        &self,
        _: &str,
        _: u64,
        _: &DiffRequest,
        _: &QueryBudget,
    ) -> Result<ReplayDiff, OperateError> {
        Err(OperateError::NoQueryRole)
    }
}

impl BoardService for NoStore {
    fn list(&self, _: &str, _: &BoardPage, _: &QueryBudget) -> Result<BoardsAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn show(&self, _: &str, _: &BoardId, _: &QueryBudget) -> Result<(u64, String), OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn put(
        &self,
        _: &BoardAuthor,
        _: &BoardId,
        _: (BoardVersion, &[u8]),
        _: &QueryBudget,
    ) -> Result<BoardInfo, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn delete(&self, _: &str, _: &BoardId, _: u64, _: &QueryBudget) -> Result<(), OperateError> {
        Err(OperateError::NoQueryRole)
    }
}

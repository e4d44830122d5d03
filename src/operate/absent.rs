//! What a node without the query role answers to operators.

use super::service::{ExpiryService, KeyReach, OperateError, QuarantineService};
use crate::api::archive::{ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::api::quarantine::{DiscardAnswer, EventPlace, QuarantineAnswer, ReleaseAnswer};
use crate::model::budget::Budget;

/// Reaches no store: the node has no role for it.
#[derive(Debug, Clone, Copy)]
pub struct NoStore;

impl QuarantineService for NoStore {
    fn list(&self, _: &KeyReach, _: bool, _: &Budget) -> Result<QuarantineAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn release(&self, _: &KeyReach, _: EventPlace) -> Result<ReleaseAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn discard(&self, _: &KeyReach, _: EventPlace) -> Result<DiscardAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
}

impl ExpiryService for NoStore {
    fn list(&self, _: &Budget) -> Result<ExpiryAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
    fn say_yes(&self) -> Result<ExpiryGoesOnAnswer, OperateError> {
        Err(OperateError::NoQueryRole)
    }
}

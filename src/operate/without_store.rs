//! Operator services of a node without the query role: every call is refused.

use super::service::{ExpiryService, OperateError, QuarantineScope, QuarantineService};
use crate::api::archive::{ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::api::quarantine::{DiscardAnswer, EventPlace, QuarantineAnswer, ReleaseAnswer};
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

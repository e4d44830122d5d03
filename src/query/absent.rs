//! What a node without the query role answers.

use std::ops::Range;

use super::accounting::AccountingAnswer;
use super::answer::{LabelValuesAnswer, MetricsAnswer, PageRequest, QueryAnswer};
use super::error::QueryError;
use super::request::QueryRequest;
use super::service::QueryService;
use crate::model::budget::Budget;
use crate::model::window::Hour;

/// Answers no query: the node has no role for it.
#[derive(Debug, Clone, Copy)]
pub struct NoQueries;

impl QueryService for NoQueries {
    fn query<'a>(
        &self,
        _: &str,
        _: &'a QueryRequest,
        _: &'a Budget,
    ) -> Result<QueryAnswer<'a>, QueryError> {
        Err(QueryError::NoQueryRole)
    }
    fn metrics(&self, _: &str, _: &PageRequest, _: &Budget) -> Result<MetricsAnswer, QueryError> {
        Err(QueryError::NoQueryRole)
    }
    fn label_values(
        &self,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: &PageRequest,
        _: &Budget,
    ) -> Result<LabelValuesAnswer, QueryError> {
        Err(QueryError::NoQueryRole)
    }
    fn accounting(
        &self,
        _: &str,
        _: Range<Hour>,
        _: &Budget,
    ) -> Result<AccountingAnswer, QueryError> {
        Err(QueryError::NoQueryRole)
    }
}

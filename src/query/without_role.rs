//! The query service of a node without the query role.

use std::ops::Range;

use super::accounting::AccountingOutput;
use super::answer::{LabelValuesPage, MetricsPage, PageRequest, QueryOutput};
use super::error::QueryError;
use super::request::QueryRequest;
use super::service::QueryService;
use crate::model::budget::QueryBudget;
use crate::model::window::Hour;

/// Fails every query with [`QueryError::NoQueryRole`].
#[derive(Debug, Clone, Copy)]
pub struct NoQueries;

impl QueryService for NoQueries {
    fn query<'a>(
        &self,
        _: &str,
        _: &'a QueryRequest,
        _: &'a QueryBudget,
    ) -> Result<QueryOutput<'a>, QueryError> {
        Err(QueryError::NoQueryRole)
    }
    fn metrics(
        &self,
        _: &str,
        _: &PageRequest,
        _: &QueryBudget,
    ) -> Result<MetricsPage, QueryError> {
        Err(QueryError::NoQueryRole)
    }
    fn label_values(
        &self,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: &PageRequest,
        _: &QueryBudget,
    ) -> Result<LabelValuesPage, QueryError> {
        Err(QueryError::NoQueryRole)
    }
    fn accounting(
        &self,
        _: &str,
        _: Range<Hour>,
        _: &QueryBudget,
    ) -> Result<AccountingOutput, QueryError> {
        Err(QueryError::NoQueryRole)
    }
}

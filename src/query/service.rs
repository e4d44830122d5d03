//! The ports of the query engine and of what operators see. Blocking: the edge calls them outside
//! of its event loop.
//!
//! The tenant comes from the API key alone, never from the question.

use std::ops::Range;

use super::accounting::AccountingOutput;
use super::answer::{LabelValuesPage, MetricsPage, PageRequest, QueryOutput};
use super::error::QueryError;
use super::request::QueryRequest;
use crate::model::budget::QueryBudget;
use crate::model::window::Hour;

/// Answers questions about one tenant's metrics, in data. A question ends early when its budget has
/// ended.
pub trait QueryService: Send + Sync {
    /// Figures of one metric.
    ///
    /// # Errors
    /// See [`QueryError`].
    fn query<'a>(
        &self,
        tenant: &str,
        request: &'a QueryRequest,
        budget: &'a QueryBudget,
    ) -> Result<QueryOutput<'a>, QueryError>;
    /// A page of the metrics.
    ///
    /// # Errors
    /// See [`QueryError`].
    fn metrics(
        &self,
        tenant: &str,
        request: &PageRequest,
        budget: &QueryBudget,
    ) -> Result<MetricsPage, QueryError>;
    /// A page of the values of a label, of one metric or of all.
    ///
    /// # Errors
    /// See [`QueryError`].
    fn label_values(
        &self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        request: &PageRequest,
        budget: &QueryBudget,
    ) -> Result<LabelValuesPage, QueryError>;
    /// What became of the events of these hours of receipt.
    ///
    /// # Errors
    /// See [`QueryError`].
    fn accounting(
        &self,
        tenant: &str,
        hours: Range<Hour>,
        budget: &QueryBudget,
    ) -> Result<AccountingOutput, QueryError>;
}

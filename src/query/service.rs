//! The port of the query engine. Blocking: the edges call it outside of the async runtime.
//!
//! The tenant is that of the API key, never part of the request.

use std::ops::Range;

use super::accounting::AccountingOutput;
use super::answer::{LabelValuesPage, MetricsPage, PageRequest, QueryOutput};
use super::error::QueryError;
use super::request::QueryRequest;
use crate::model::budget::QueryBudget;
use crate::model::window::Hour;

/// Answers queries about one tenant's metrics as data. A query is aborted when its budget is.
pub trait QueryService: Send + Sync {
    /// The series of one metric.
    fn query<'a>(
        &self,
        tenant: &str,
        request: &'a QueryRequest,
        budget: &'a QueryBudget,
    ) -> Result<QueryOutput<'a>, QueryError>;
    /// A page of the tenant's metrics.
    fn metrics(
        &self,
        tenant: &str,
        request: &PageRequest,
        budget: &QueryBudget,
    ) -> Result<MetricsPage, QueryError>;
    /// A page of the values of a label, of one metric or of all.
    fn label_values(
        &self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        request: &PageRequest,
        budget: &QueryBudget,
    ) -> Result<LabelValuesPage, QueryError>;
    /// Event counts by outcome for these hours of append.
    fn accounting(
        &self,
        tenant: &str,
        hours: Range<Hour>,
        budget: &QueryBudget,
    ) -> Result<AccountingOutput, QueryError>;
}

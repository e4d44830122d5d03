//! What a node without the query role answers.

use super::service::{EventPlace, ExpiryService, KeyReach, QuarantineService, QueryError, QueryErrorKind, QueryService, Table};
use crate::model::budget::Budget;

/// Answers no query: the node has no role for it.
#[derive(Debug, Clone, Copy)]
pub struct NoQueries;

fn absent<T>() -> Result<T, QueryError> {
    let message = "this node has no query role (node.roles): ask a node that has";
    Err(QueryError::new(QueryErrorKind::Unavailable, "no_query_role", message))
}

impl QueryService for NoQueries {
    fn query(&self, _: &str, _: &[(String, String)], _: &Budget) -> Result<String, QueryError> {
        absent()
    }
    fn table(&self, _: &str, _: &[(String, String)], _: &Budget) -> Result<Table, QueryError> {
        absent()
    }
    fn metrics(&self, _: &str, _: &[(String, String)], _: &Budget) -> Result<String, QueryError> {
        absent()
    }
    fn label_values(&self, _: &str, _: &str, _: &[(String, String)], _: &Budget) -> Result<String, QueryError> {
        absent()
    }
    fn accounting(&self, _: &str, _: &[(String, String)], _: &Budget) -> Result<String, QueryError> {
        absent()
    }
}

impl QuarantineService for NoQueries {
    fn list(&self, _: &KeyReach, _: bool, _: &Budget) -> Result<String, QueryError> {
        absent()
    }
    fn release(&self, _: &KeyReach, _: EventPlace) -> Result<String, QueryError> {
        absent()
    }
    fn discard(&self, _: &KeyReach, _: EventPlace) -> Result<String, QueryError> {
        absent()
    }
}

impl ExpiryService for NoQueries {
    fn list(&self, _: &Budget) -> Result<String, QueryError> {
        absent()
    }
    fn say_yes(&self) -> Result<String, QueryError> {
        absent()
    }
}

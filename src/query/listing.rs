//! Parts of long lists: names that begin with a prefix, so many at once, and where the next ones begin. Pure.

use super::params::{Params, bad};
use super::service::QueryError;
use crate::actors::catalogue::{CatalogueQuestion, MAX_NAMES, Names};
use crate::model::budget::Budget;
use crate::persistence::store::Page;

/// Names of one answer, unless it is asked for fewer; and at most.
const LIMIT: usize = MAX_NAMES - 1;

/// What is asked of a list.
pub(super) struct Listing<'a> {
    params: &'a [(String, String)],
    limit: usize,
}

impl<'a> Listing<'a> {
    /// Checks the parameters: `prefix`, `after`, `limit`, and those of `more`.
    ///
    /// # Errors
    /// Names the parameter and what it takes.
    pub(super) fn of(params: &'a [(String, String)], more: &[&str]) -> Result<Self, QueryError> {
        let known: Vec<&str> = ["prefix", "after", "limit"].iter().chain(more).copied().collect();
        Params::read(params, &known)?;
        let listing = Self { params, limit: LIMIT };
        let limit = listing.get("limit").map_or(Ok(LIMIT), str::parse);
        match limit {
            Ok(limit @ 1..=LIMIT) => Ok(Self { limit, ..listing }),
            _ => Err(bad(
                "limit_invalid",
                format!("limit is a whole number from 1 to {LIMIT}; the answer's `next` goes on as `after`"),
            )),
        }
    }

    /// A parameter.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.params.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// What is asked of the store: one more than the limit, to know whether there are more.
    pub(super) fn page<'b>(&self, budget: &'b Budget) -> Page<'b>
    where
        'a: 'b,
    {
        let text = |name| self.get(name).unwrap_or("");
        Page { prefix: text("prefix"), after: text("after"), limit: self.limit + 1, budget: Some(budget) }
    }

    /// What is asked of the shards, to go with [`Listing::page`].
    pub(super) fn question<'b>(&'b self, tenant: &'b str, names: Names<'b>) -> CatalogueQuestion<'b> {
        let text = |name| self.get(name).unwrap_or("");
        CatalogueQuestion { tenant, names, prefix: text("prefix"), after: text("after"), limit: self.limit + 1 }
    }

    /// Cuts the list at the limit. If there are more, the last one that is left.
    pub(super) fn cut<'l, T>(&self, list: &'l mut Vec<T>) -> Option<&'l T> {
        if list.len() <= self.limit {
            return None;
        }
        list.truncate(self.limit);
        list.last()
    }
}

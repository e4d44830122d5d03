//! The parameters of requests.

use super::error::PromError;
use crate::gateway::extract::ParamList;
use crate::model::window::Millis;
use crate::promql::{SeriesSelector, parse_selector, parse_time};

/// Maximum number of selectors in one request.
const MAX_SELECTORS: usize = 32;

/// The parameters of one request.
pub(super) struct PromParams {
    given: ParamList,
    /// The time of the request.
    pub(super) now: Millis,
}

impl PromParams {
    pub(super) fn new(given: ParamList, now: Millis) -> Self {
        Self { given, now }
    }

    /// The first value of a parameter; an empty one counts as missing.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.given.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The value of a parameter, which is required.
    pub(super) fn required(&self, name: &str) -> Result<&str, PromError> {
        self.get(name).ok_or_else(|| PromError::bad(format!("the parameter {name} is required")))
    }

    /// A time, if given.
    pub(super) fn time(&self, name: &str) -> Result<Option<Millis>, PromError> {
        Ok(self.get(name).map(parse_time).transpose()?)
    }

    /// The selectors in `match[]`.
    pub(super) fn selectors(&self) -> Result<Vec<SeriesSelector>, PromError> {
        let given = self.given.iter().filter(|(name, _)| name == "match[]");
        let selectors = given
            .take(MAX_SELECTORS + 1)
            .map(|(_, text)| parse_selector(text))
            .collect::<Result<Vec<_>, _>>()?;
        if selectors.len() > MAX_SELECTORS {
            return Err(PromError::bad(format!("more than {MAX_SELECTORS} selectors in match[]")));
        }
        Ok(selectors)
    }

    /// The largest number of items in the answer; 0 and none mean that there is no limit.
    pub(super) fn limit(&self) -> Result<Option<usize>, PromError> {
        let limit = self.get("limit").map(str::parse::<usize>).transpose();
        let limit = limit.map_err(|_| PromError::bad("limit is a whole number from 0 on"))?;
        Ok(limit.filter(|limit| *limit > 0))
    }
}

//! Label matchers, applied alike by the store, the live deltas and the peers.

use super::series::Series;

/// A matcher on one label, as in Prometheus; regular expressions are anchored. A missing
/// label reads as empty.
#[derive(Debug, Clone)]
pub enum Matcher {
    /// `name="value"`: the label equals the value.
    Equal(String, String),
    /// `name!="value"`: the label differs from the value.
    NotEqual(String, String),
    /// `name=~"regex"`: the whole label value matches.
    Regex(String, regex::Regex),
    /// `name!~"regex"`: the whole label value does not match.
    NotRegex(String, regex::Regex),
}

impl Matcher {
    /// The name of the label that is matched.
    pub fn label(&self) -> &str {
        match self {
            Matcher::Equal(name, _)
            | Matcher::NotEqual(name, _)
            | Matcher::Regex(name, _)
            | Matcher::NotRegex(name, _) => name,
        }
    }

    /// Whether the labels of `series` match.
    pub fn matches(&self, series: &Series) -> bool {
        match self {
            Matcher::Equal(name, value) => series.label(name) == value,
            Matcher::NotEqual(name, value) => series.label(name) != value,
            Matcher::Regex(name, regex) => regex.is_match(series.label(name)),
            Matcher::NotRegex(name, regex) => !regex.is_match(series.label(name)),
        }
    }
}

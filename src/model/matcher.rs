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
        self.matches_value(series.label(self.label()))
    }

    /// Whether it has a regular expression.
    pub fn is_regex(&self) -> bool {
        matches!(self, Matcher::Regex(..) | Matcher::NotRegex(..))
    }

    /// Whether the label matches if it has this value; empty if it is missing.
    pub fn matches_value(&self, found: &str) -> bool {
        match self {
            Matcher::Equal(_, value) => found == value,
            Matcher::NotEqual(_, value) => found != value,
            Matcher::Regex(_, regex) => regex.is_match(found),
            Matcher::NotRegex(_, regex) => !regex.is_match(found),
        }
    }

    /// The operator, and the value or expression behind it.
    fn operation(&self) -> (&'static str, &str) {
        match self {
            Matcher::Equal(_, value) => ("=", value),
            Matcher::NotEqual(_, value) => ("!=", value),
            Matcher::Regex(_, regex) => ("=~", unanchored(regex.as_str())),
            Matcher::NotRegex(_, regex) => ("!~", unanchored(regex.as_str())),
        }
    }
}

/// The expression as it was written; [`super::matcher_syntax::anchored`] puts anchors around it.
pub(super) fn unanchored(pattern: &str) -> &str {
    pattern
        .strip_prefix(ANCHORS.0)
        .and_then(|pattern| pattern.strip_suffix(ANCHORS.1))
        .unwrap_or(pattern)
}

/// What stands around an expression that has to match a whole text.
pub(super) const ANCHORS: (&str, &str) = ("^(?:", ")$");

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.label() == other.label() && self.operation() == other.operation()
    }
}

impl Eq for Matcher {}

/// In the syntax that [`super::matcher_syntax::parse`] reads.
impl std::fmt::Display for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (operator, value) = self.operation();
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        write!(f, "{}{operator}\"{value}\"", self.label())
    }
}

//! Selectors: from the parser's form to metric, matchers and times.

use promql_parser::label::MatchOp;
use promql_parser::parser::{AtModifier, Expr, Offset, VectorSelector};

use super::PromqlError;
use super::grid::{Grid, hours_of};
use super::labels::{Labels, METRIC_NAME};
use super::plan::RangeEnd;
use super::scan::check_text;
use crate::model::matcher::Matcher;
use crate::model::matcher_syntax::{MAX_MATCHERS, anchored};

/// Which series are asked for.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesSelector {
    /// None if none is named; every metric that passes `names` then.
    pub metric: Option<String>,
    /// What its name has to be beside that, as in `{__name__=~"page_.*"}`: in `match[]` alone.
    pub names: Vec<Matcher>,
    pub matchers: Vec<Matcher>,
}

/// Reads a selector such as `page_view{country="DE"}`, as in the parameter `match[]`.
///
/// # Errors
/// If it is no selector, or one with an offset or a fixed time.
pub fn parse_selector(text: &str) -> Result<SeriesSelector, PromqlError> {
    check_text(text)?;
    match promql_parser::parser::parse(text).map_err(PromqlError::Syntax)? {
        Expr::VectorSelector(selector) if selector.offset.is_none() && selector.at.is_none() => {
            SeriesSelector::of_any_name(&selector)
        }
        _ => Err(PromqlError::Syntax(
            "match[] is a selector, as page_view{country=\"DE\"}".to_owned(),
        )),
    }
}

impl SeriesSelector {
    /// Converts the parser's form of a selector in a query.
    pub(super) fn of(selector: &VectorSelector) -> Result<Self, PromqlError> {
        let converted = Self::of_any_name(selector)?;
        if converted.names.is_empty() {
            return Ok(converted);
        }
        Err(PromqlError::Unsupported(
            "a selector names one metric, with __name__=\"…\" or before the braces; join several \
             with `or`"
                .to_owned(),
        ))
    }

    /// Whether a metric is one that is asked for.
    pub fn is_of(&self, metric: &str) -> bool {
        self.metric.as_deref().is_none_or(|named| named == metric)
            && self.names.iter().all(|matcher| matcher.matches_value(metric))
    }

    fn of_any_name(selector: &VectorSelector) -> Result<Self, PromqlError> {
        if !selector.matchers.or_matchers.is_empty() {
            return Err(PromqlError::Unsupported(
                "`or` between matchers is not supported: use a regular expression, or `or` between \
                 two selectors"
                    .to_owned(),
            ));
        }
        let given = &selector.matchers.matchers;
        if given.len() > MAX_MATCHERS {
            return Err(PromqlError::Syntax(format!("more than {MAX_MATCHERS} matchers")));
        }
        let mut found =
            Self { metric: selector.name.clone(), names: Vec::new(), matchers: Vec::new() };
        for matcher in given {
            let (name, value) = (matcher.name.clone(), matcher.value.clone());
            let is_name = name == METRIC_NAME;
            let is_free = found.metric.as_ref().is_none_or(|known| *known == value);
            if is_name && is_free && matches!(matcher.op, MatchOp::Equal) {
                found.metric = Some(value);
                continue;
            }
            let all = if is_name { &mut found.names } else { &mut found.matchers };
            all.push(match matcher.op {
                MatchOp::Equal => Matcher::Equal(name, value),
                MatchOp::NotEqual => Matcher::NotEqual(name, value),
                MatchOp::Re(_) => {
                    Matcher::Regex(name, anchored(&value).map_err(PromqlError::Syntax)?)
                }
                MatchOp::NotRe(_) => {
                    Matcher::NotRegex(name, anchored(&value).map_err(PromqlError::Syntax)?)
                }
            });
        }
        Ok(found)
    }

    /// The metric.
    ///
    /// # Errors
    /// If none is named.
    pub(super) fn one_metric(&self) -> Result<&str, PromqlError> {
        self.metric.as_deref().ok_or_else(|| {
            PromqlError::Unsupported(
                "the selector names no metric: write it before the braces, as \
                 page_view{country=\"DE\"}"
                    .to_owned(),
            )
        })
    }

    /// The labels that an absent series would have: of each label its first `=`, unless another
    /// matcher behind it is about the same label, as in Prometheus.
    pub(super) fn absent_labels(&self) -> Labels {
        let mut labels = Labels::default();
        let mut seen: Vec<&str> = Vec::new();
        for matcher in &self.matchers {
            match matcher {
                Matcher::Equal(name, value) if !seen.contains(&name.as_str()) => {
                    labels.set(name, value);
                    seen.push(name);
                }
                other => labels.set(other.label(), ""),
            }
        }
        labels
    }
}

/// Where the ranges of a selector end; `top` is the grid of the whole query.
pub(super) fn range_end(
    offset: Option<&Offset>,
    at: Option<&AtModifier>,
    top: Grid,
) -> Result<RangeEnd, PromqlError> {
    let offset = match offset {
        None => 0,
        Some(Offset::Pos(length)) => hours_of(length.as_millis(), "an offset")?,
        Some(Offset::Neg(length)) => -hours_of(length.as_millis(), "an offset")?,
    };
    let at = match at {
        None => None,
        Some(AtModifier::Start) => Some(top.start),
        Some(AtModifier::End) => Some(top.last()),
        Some(AtModifier::At(time)) => Some(match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => hours_of(after.as_millis(), "the time behind @")?,
            Err(before) => -hours_of(before.duration().as_millis(), "the time behind @")?,
        }),
    };
    Ok(RangeEnd { offset, at })
}

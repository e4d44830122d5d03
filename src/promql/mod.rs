//! PromQL over hourly rollups: a query becomes a checked plan of what to read and what to compute,
//! and the plan is evaluated over what was read.
//!
//! Every event is a sample of its series. Figures exist for whole hours, so times, ranges, offsets
//! and steps are whole hours; everything else is refused, with the way out. ADR 42 says what is
//! meant by what.

mod aggregate;
mod binary;
mod calls;
mod compile;
mod context;
mod evaluate;
mod functions;
mod grid;
mod labels;
mod matching;
mod number;
mod plan;
mod scan;
mod selector;
mod times;
mod value;
mod window;

#[cfg(test)]
mod tests;

pub use compile::compile;
pub use context::EvalError;
pub use evaluate::evaluate;
pub use grid::{Grid, MAX_STEPS, hours_of};
pub use labels::{Labels, METRIC_NAME};
pub use number::format_number;
pub use plan::{CompiledQuery, Fetch, FetchedSeries, Grouping};
pub use selector::{SeriesSelector, parse_selector};
pub use times::{hour_at_or_before, parse_step, parse_time};
pub use value::{Points, Sample, Series, Value};

/// Why a query was not accepted. The messages are for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromqlError {
    /// The text is no PromQL, or is larger than what is taken.
    #[error("{0}")]
    Syntax(String),
    /// It is PromQL that cannot be answered exactly from hourly rollups; the message says what can.
    #[error("{0}")]
    Unsupported(String),
}

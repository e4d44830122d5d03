//! A checked query: what to read, and what to compute from it.

use std::ops::Range;

use super::functions::{
    AggregateOperator, BinaryOperator, CallFunction, SubqueryFunction, WindowFunction,
};
use super::grid::Grid;
use super::labels::Labels;
use crate::model::matcher::Matcher;
use crate::model::rollup::Rollup;
use crate::model::window::Millis;

/// How events of different series are told apart in what is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grouping {
    /// Every series stands for itself.
    Series,
    /// Series with the same values of these labels are one.
    Labels(Vec<String>),
}

impl Grouping {
    /// The labels of a group of an answer of the query engine, from its key.
    pub fn labels(&self, key: Vec<String>) -> Labels {
        match self {
            Grouping::Labels(names) => Labels::new(names.iter().cloned().zip(key)),
            Grouping::Series => {
                let mut labels = Vec::with_capacity(key.len() / 2);
                let mut parts = key.into_iter();
                while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
                    labels.push((name, value));
                }
                Labels::new(labels)
            }
        }
    }
}

/// What has to be read of one metric.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    pub metric: String,
    pub matchers: Vec<Matcher>,
    pub grouping: Grouping,
    /// Hours since the Unix epoch.
    pub hours: Range<i64>,
    /// Into how many hours the range may be cut: all ranges that are computed from it begin and end
    /// at multiples. 1, 6, 24, or None for the whole range at once.
    pub unit: Option<i64>,
    pub quantiles: bool,
    pub distinct: bool,
}

/// One series, or group of series, of what was read.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct FetchedSeries {
    pub labels: Labels,
    /// Ascending by the start of their hours.
    pub points: Vec<(Millis, Rollup)>,
}

/// A query that can be evaluated once its fetches are read.
#[derive(Debug, Clone)]
pub struct CompiledQuery {
    /// What to read. [`super::evaluate()`] takes the results in this order.
    pub fetches: Vec<Fetch>,
    /// The times of the answer.
    pub grid: Grid,
    pub(super) root: Node,
}

impl CompiledQuery {
    /// Whether the answer is a number that is the same at all times.
    pub fn is_constant(&self) -> bool {
        self.root.plan.is_constant()
    }
}

/// A plan and the times at which it is evaluated.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) grid: Grid,
    pub(super) plan: Plan,
}

#[derive(Debug, Clone)]
pub(super) enum Plan {
    Number(f64),
    /// The time of evaluation, in seconds.
    Time,
    Window(Window),
    Subquery(Subquery),
    Aggregate(Aggregate),
    Binary(Binary),
    Negate(Box<Node>),
    Call(Call),
}

impl Plan {
    fn is_constant(&self) -> bool {
        match self {
            Plan::Number(_) => true,
            Plan::Negate(inner) => inner.plan.is_constant(),
            Plan::Binary(binary) => {
                binary.left.plan.is_constant() && binary.right.plan.is_constant()
            }
            _ => false,
        }
    }
}

/// Where a range ends, relative to the time of evaluation.
#[derive(Debug, Clone, Copy)]
pub(super) struct RangeEnd {
    pub(super) offset: i64,
    /// A fixed time instead of that of the evaluation.
    pub(super) at: Option<i64>,
}

impl RangeEnd {
    pub(super) fn of(self, time: i64) -> i64 {
        self.at.unwrap_or(time) - self.offset
    }

    /// The first and the last end on a grid.
    pub(super) fn bounds(self, grid: Grid) -> (i64, i64) {
        (self.of(grid.start), self.of(grid.last()))
    }
}

/// A function of the events in a range before each time.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) fetch: usize,
    pub(super) function: WindowFunction,
    /// The quantile of `quantile_over_time`.
    pub(super) parameter: Option<Box<Node>>,
    pub(super) range: i64,
    pub(super) end: RangeEnd,
    /// The metric, if the result keeps its name.
    pub(super) name: Option<String>,
}

/// A function of the values that an expression has in a range before each time.
#[derive(Debug, Clone)]
pub(super) struct Subquery {
    /// None if the range holds no time.
    pub(super) inner: Option<Box<Node>>,
    pub(super) function: SubqueryFunction,
    pub(super) parameter: Option<Box<Node>>,
    pub(super) range: i64,
    pub(super) end: RangeEnd,
}

/// Which labels make a group.
#[derive(Debug, Clone)]
pub(super) enum LabelSelection {
    Only(Vec<String>),
    Except(Vec<String>),
}

impl LabelSelection {
    pub(super) fn of(&self, labels: &Labels) -> Labels {
        match self {
            LabelSelection::Only(names) => labels.only(names),
            LabelSelection::Except(names) => labels.except(names),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Aggregate {
    pub(super) operator: AggregateOperator,
    pub(super) inner: Box<Node>,
    pub(super) parameter: Option<Box<Node>>,
    /// The label of `count_values`.
    pub(super) label: Option<String>,
    pub(super) groups: LabelSelection,
}

/// Which side of an operator may have several series for one of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cardinality {
    OneToOne,
    /// With the labels that are taken from the right side.
    ManyToOne(Vec<String>),
    /// With the labels that are taken from the left side.
    OneToMany(Vec<String>),
}

#[derive(Debug, Clone)]
pub(super) struct Binary {
    pub(super) operator: BinaryOperator,
    pub(super) left: Box<Node>,
    pub(super) right: Box<Node>,
    /// Comparisons answer 0 or 1 instead of filtering.
    pub(super) to_bool: bool,
    pub(super) matching: LabelSelection,
    pub(super) cardinality: Cardinality,
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) function: CallFunction,
    pub(super) inner: Option<Box<Node>>,
    /// Scalars behind or before the vector, in their order.
    pub(super) numbers: Vec<Node>,
    /// String arguments, in their order.
    pub(super) texts: Vec<String>,
    /// The labels that `absent` takes from the matchers of its selector.
    pub(super) labels: Labels,
}

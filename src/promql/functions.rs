//! The functions that are supported, by name, and the extensions.

use std::sync::LazyLock;

use promql_parser::parser::value::ValueType;
use promql_parser::parser::{Function, register_extra_functions};

/// A function of the events in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowFunction {
    /// The events as a native histogram.
    Increase,
    /// The same per second.
    Rate,
    Count,
    CountPerSecond,
    Sum,
    Avg,
    Min,
    Max,
    Quantile,
    Present,
    Distinct,
}

/// The functions of a range of events.
pub(super) const WINDOW_FUNCTIONS: &[(&str, WindowFunction)] = &[
    ("increase", WindowFunction::Increase),
    ("rate", WindowFunction::Rate),
    ("count_over_time", WindowFunction::Count),
    ("sum_over_time", WindowFunction::Sum),
    ("avg_over_time", WindowFunction::Avg),
    ("min_over_time", WindowFunction::Min),
    ("max_over_time", WindowFunction::Max),
    ("quantile_over_time", WindowFunction::Quantile),
    ("present_over_time", WindowFunction::Present),
    ("distinct_over_time", WindowFunction::Distinct),
];

/// A function of the values of a subquery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubqueryFunction {
    Count,
    Sum,
    Avg,
    Min,
    Max,
    Quantile,
    Present,
    Last,
    Stddev,
    Stdvar,
}

/// The functions of a subquery.
pub(super) const SUBQUERY_FUNCTIONS: &[(&str, SubqueryFunction)] = &[
    ("count_over_time", SubqueryFunction::Count),
    ("sum_over_time", SubqueryFunction::Sum),
    ("avg_over_time", SubqueryFunction::Avg),
    ("min_over_time", SubqueryFunction::Min),
    ("max_over_time", SubqueryFunction::Max),
    ("quantile_over_time", SubqueryFunction::Quantile),
    ("present_over_time", SubqueryFunction::Present),
    ("last_over_time", SubqueryFunction::Last),
    ("stddev_over_time", SubqueryFunction::Stddev),
    ("stdvar_over_time", SubqueryFunction::Stdvar),
];

/// A function of instant vectors and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallFunction {
    Abs,
    Ceil,
    Floor,
    Round,
    Sgn,
    Exp,
    Ln,
    Log2,
    Log10,
    Sqrt,
    Clamp,
    ClampMin,
    ClampMax,
    Sort,
    SortDesc,
    Absent,
    Scalar,
    Vector,
    LabelReplace,
    LabelJoin,
    HistogramQuantile,
    HistogramCount,
    HistogramSum,
    HistogramAvg,
    HistogramDistinct,
}

impl CallFunction {
    /// Whether its vector consists of native histograms.
    pub(super) fn is_of_histograms(self) -> bool {
        matches!(
            self,
            CallFunction::HistogramQuantile
                | CallFunction::HistogramCount
                | CallFunction::HistogramSum
                | CallFunction::HistogramAvg
                | CallFunction::HistogramDistinct
        )
    }
}

/// The functions of instant vectors.
pub(super) const CALL_FUNCTIONS: &[(&str, CallFunction)] = &[
    ("abs", CallFunction::Abs),
    ("ceil", CallFunction::Ceil),
    ("floor", CallFunction::Floor),
    ("round", CallFunction::Round),
    ("sgn", CallFunction::Sgn),
    ("exp", CallFunction::Exp),
    ("ln", CallFunction::Ln),
    ("log2", CallFunction::Log2),
    ("log10", CallFunction::Log10),
    ("sqrt", CallFunction::Sqrt),
    ("clamp", CallFunction::Clamp),
    ("clamp_min", CallFunction::ClampMin),
    ("clamp_max", CallFunction::ClampMax),
    ("sort", CallFunction::Sort),
    ("sort_desc", CallFunction::SortDesc),
    ("absent", CallFunction::Absent),
    ("scalar", CallFunction::Scalar),
    ("vector", CallFunction::Vector),
    ("label_replace", CallFunction::LabelReplace),
    ("label_join", CallFunction::LabelJoin),
    ("histogram_quantile", CallFunction::HistogramQuantile),
    ("histogram_count", CallFunction::HistogramCount),
    ("histogram_sum", CallFunction::HistogramSum),
    ("histogram_avg", CallFunction::HistogramAvg),
    ("histogram_distinct", CallFunction::HistogramDistinct),
];

/// An operator over the series of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AggregateOperator {
    Sum,
    Avg,
    Count,
    Min,
    Max,
    Group,
    Stddev,
    Stdvar,
    Topk,
    Bottomk,
    Quantile,
    CountValues,
}

/// The aggregation operators.
pub(super) const AGGREGATES: &[(&str, AggregateOperator)] = &[
    ("sum", AggregateOperator::Sum),
    ("avg", AggregateOperator::Avg),
    ("count", AggregateOperator::Count),
    ("min", AggregateOperator::Min),
    ("max", AggregateOperator::Max),
    ("group", AggregateOperator::Group),
    ("stddev", AggregateOperator::Stddev),
    ("stdvar", AggregateOperator::Stdvar),
    ("topk", AggregateOperator::Topk),
    ("bottomk", AggregateOperator::Bottomk),
    ("quantile", AggregateOperator::Quantile),
    ("count_values", AggregateOperator::CountValues),
];

/// An operator between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BinaryOperator {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Atan2,
    Equal,
    NotEqual,
    Greater,
    Less,
    GreaterOrEqual,
    LessOrEqual,
    And,
    Or,
    Unless,
}

/// The binary operators.
pub(super) const OPERATORS: &[(&str, BinaryOperator)] = &[
    ("+", BinaryOperator::Add),
    ("-", BinaryOperator::Sub),
    ("*", BinaryOperator::Mul),
    ("/", BinaryOperator::Div),
    ("%", BinaryOperator::Mod),
    ("^", BinaryOperator::Pow),
    ("atan2", BinaryOperator::Atan2),
    ("==", BinaryOperator::Equal),
    ("!=", BinaryOperator::NotEqual),
    (">", BinaryOperator::Greater),
    ("<", BinaryOperator::Less),
    (">=", BinaryOperator::GreaterOrEqual),
    ("<=", BinaryOperator::LessOrEqual),
    ("and", BinaryOperator::And),
    ("or", BinaryOperator::Or),
    ("unless", BinaryOperator::Unless),
];

/// The item of a table.
pub(super) fn named<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, item)| *item)
}

/// The name of an item of a table, for messages.
pub(super) fn name_of<T: PartialEq>(table: &'static [(&'static str, T)], item: T) -> &'static str {
    table.iter().find(|(_, known)| *known == item).map_or("", |(name, _)| *name)
}

/// All names of a table, for messages.
pub(super) fn names<T>(table: &[(&str, T)]) -> String {
    table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// Makes the extensions known to the parser, once.
///
/// # Errors
/// If the parser has got functions of the same names.
pub(super) fn register_extensions() -> Result<(), String> {
    static REGISTERED: LazyLock<Result<(), String>> = LazyLock::new(|| {
        register_extra_functions(vec![
            Function::new(
                "distinct_over_time",
                vec![ValueType::Matrix],
                0,
                ValueType::Vector,
                false,
            ),
            Function::new(
                "histogram_distinct",
                vec![ValueType::Vector],
                0,
                ValueType::Vector,
                false,
            ),
        ])
    });
    REGISTERED.clone()
}

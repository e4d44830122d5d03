//! Functions of instant vectors and numbers.

use super::PromqlError;
use super::context::{EvalContext, EvalError, unique};
use super::functions::{CALL_FUNCTIONS, CallFunction, name_of};
use super::grid::Grid;
use super::labels::Labels;
use super::number::degenerate_quantile;
use super::plan::Call;
use super::value::{Points, Sample, Series, Value};
use super::window::average;
use crate::model::decimal::{Decimal, units_to_f64};
use crate::model::matcher_syntax::anchored;

/// Longest value of a label that a query makes, in bytes. Calls around each other would multiply it
/// without end; those of events have 256.
const MAX_MADE_LABEL: usize = 16 * 1024;

/// Checks the arguments that the parser does not check.
pub(super) fn check(call: &Call) -> Result<(), PromqlError> {
    match (call.function, call.texts.as_slice()) {
        (CallFunction::LabelReplace | CallFunction::LabelJoin, [target, ..])
            if target.is_empty() =>
        {
            Err(PromqlError::Syntax("the label that is set has an empty name".to_owned()))
        }
        (CallFunction::LabelReplace, [_, _, _, pattern]) => {
            anchored(pattern).map(drop).map_err(PromqlError::Syntax)
        }
        (CallFunction::LabelReplace, _) => {
            Err(PromqlError::Syntax("label_replace takes a vector and four strings".to_owned()))
        }
        (CallFunction::LabelJoin, texts) if texts.len() < 2 => Err(PromqlError::Syntax(
            "label_join takes a vector, a label, a separator, and labels".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Evaluates a function without a vector.
///
/// # Errors
/// If it needs one.
pub(super) fn without_vector(call: &Call, numbers: Vec<Vec<f64>>) -> Result<Value, EvalError> {
    match (call.function, numbers.into_iter().next()) {
        (CallFunction::Vector, Some(numbers)) => {
            let points = numbers.into_iter().map(Some).collect();
            Ok(Value::Vector(vec![Series::of_numbers(Labels::default(), points)]))
        }
        _ => Err(EvalError::Failed("a vector is missing".to_owned())),
    }
}

/// Evaluates a function of a vector; `numbers` are its other arguments, at each time.
///
/// # Errors
/// If two series of the result have the same labels, or arguments fail.
pub(super) fn evaluate(
    context: &mut EvalContext<'_>,
    call: &Call,
    series: Vec<Series>,
    numbers: &[Vec<f64>],
    grid: Grid,
) -> Result<Value, EvalError> {
    match call.function {
        CallFunction::Scalar => Ok(Value::Scalar(only_number(&series, grid))),
        CallFunction::Absent => Ok(Value::Vector(absent(call, &series, grid))),
        CallFunction::Sort => Ok(Value::Vector(sorted(series, false))),
        CallFunction::SortDesc => Ok(Value::Vector(sorted(series, true))),
        CallFunction::LabelReplace => label_replace(context, call, series).map(Value::Vector),
        CallFunction::LabelJoin => label_join(context, call, series).map(Value::Vector),
        function if function.is_of_histograms() => {
            let number = |sample: &Sample, at: usize| of_histogram(function, sample, numbers, at);
            let points = |points: Points| match points {
                Points::Histograms(samples) => samples
                    .iter()
                    .enumerate()
                    .map(|(at, sample)| sample.as_ref().and_then(|sample| number(sample, at)))
                    .collect(),
                Points::Numbers(numbers) => vec![None; numbers.len()],
            };
            mapped(series, points)
        }
        function => {
            let points = |points: Points| {
                let found = Series { labels: Labels::default(), points }.numbers();
                let found = found.into_iter().enumerate();
                let argument = |number: usize, at: usize| numbers.get(number).map(|n| n[at]);
                let arguments = |at: usize| (argument(0, at), argument(1, at));
                found.map(|(at, point)| of_number(function, point?, arguments(at))).collect()
            };
            mapped(series, points)
        }
    }
}

/// The negative of a value.
pub(super) fn negate(value: Value) -> Result<Value, EvalError> {
    match value {
        Value::Scalar(numbers) => Ok(Value::Scalar(numbers.into_iter().map(|n| -n).collect())),
        Value::Vector(series) => mapped(series, |points| {
            let numbers = Series { labels: Labels::default(), points }.numbers();
            numbers.into_iter().map(|number| number.map(|number| -number)).collect()
        }),
    }
}

/// Computes new points; they are another quantity, without the name of the metric.
fn mapped(
    series: Vec<Series>,
    points: impl Fn(Points) -> Vec<Option<f64>>,
) -> Result<Value, EvalError> {
    let computed = series
        .into_iter()
        .map(|series| Series::of_numbers(series.labels.without_name(), points(series.points)));
    unique(computed.collect()).map(Value::Vector)
}

fn of_histogram(
    function: CallFunction,
    sample: &Sample,
    numbers: &[Vec<f64>],
    at: usize,
) -> Option<f64> {
    let figures = &sample.rollup.figures;
    match function {
        CallFunction::HistogramCount => Some(figures.count as f64 / sample.per),
        CallFunction::HistogramDistinct => Some(sample.rollup.distinct.estimate() as f64),
        _ if figures.value_count == 0 => None,
        CallFunction::HistogramSum => Some(units_to_f64(figures.sum) / sample.per),
        CallFunction::HistogramAvg => Some(average(figures)),
        CallFunction::HistogramQuantile => {
            let q = numbers.first().and_then(|numbers| numbers.get(at)).copied()?;
            degenerate_quantile(q).or_else(|| sample.rollup.quantile(q).map(Decimal::to_f64))
        }
        _ => None,
    }
}

fn of_number(
    function: CallFunction,
    value: f64,
    arguments: (Option<f64>, Option<f64>),
) -> Option<f64> {
    let first = arguments.0.unwrap_or(f64::NAN);
    let second = arguments.1.unwrap_or(f64::NAN);
    Some(match function {
        CallFunction::Abs => value.abs(),
        CallFunction::Ceil => value.ceil(),
        CallFunction::Floor => value.floor(),
        CallFunction::Round => {
            // As Prometheus: half up, by the inverse, which is exact for 0.1 and the like.
            let inverse = 1.0 / arguments.0.unwrap_or(1.0);
            (value * inverse + 0.5).floor() / inverse
        }
        CallFunction::Sgn if value == 0.0 || value.is_nan() => value,
        CallFunction::Sgn => value.signum(),
        CallFunction::Exp => value.exp(),
        CallFunction::Ln => value.ln(),
        CallFunction::Log2 => value.log2(),
        CallFunction::Log10 => value.log10(),
        CallFunction::Sqrt => value.sqrt(),
        CallFunction::ClampMin => at_least(value, first),
        CallFunction::ClampMax => at_most(value, first),
        // No number is between bounds that are the wrong way round.
        CallFunction::Clamp if first > second => return None,
        CallFunction::Clamp => at_least(at_most(value, second), first),
        _ => value,
    })
}

/// The larger number; none if one is none.
fn at_least(value: f64, bound: f64) -> f64 {
    if bound.is_nan() || value.is_nan() { f64::NAN } else { value.max(bound) }
}

fn at_most(value: f64, bound: f64) -> f64 {
    if bound.is_nan() || value.is_nan() { f64::NAN } else { value.min(bound) }
}

/// The number at each time at which there is exactly one.
fn only_number(series: &[Series], grid: Grid) -> Vec<f64> {
    let columns: Vec<_> = series.iter().map(Series::numbers).collect();
    let only = |at: usize| {
        let mut present = columns.iter().filter_map(|column| column.get(at).copied().flatten());
        match (present.next(), present.next()) {
            (Some(number), None) => number,
            _ => f64::NAN,
        }
    };
    (0..grid.count).map(only).collect()
}

fn absent(call: &Call, series: &[Series], grid: Grid) -> Vec<Series> {
    let columns: Vec<_> = series.iter().map(Series::numbers).collect();
    let is_absent = |at: usize| columns.iter().all(|column| column[at].is_none());
    let points = (0..grid.count).map(|at| is_absent(at).then_some(1.0)).collect();
    vec![Series::of_numbers(call.labels.clone(), points)]
}

/// In the order of the numbers at the first time: only an answer for one time has an order.
fn sorted(series: Vec<Series>, is_descending: bool) -> Vec<Series> {
    let number = |series: &Series| series.numbers().first().copied().flatten();
    let mut numbered: Vec<_> =
        series.into_iter().map(|s| (number(&s).unwrap_or(f64::NAN), s)).collect();
    numbered.sort_by(|(a, _), (b, _)| match (a.is_nan(), b.is_nan()) {
        (false, false) if is_descending => b.total_cmp(a),
        (false, false) => a.total_cmp(b),
        (a_is_none, b_is_none) => a_is_none.cmp(&b_is_none),
    });
    numbered.into_iter().map(|(_, series)| series).collect()
}

fn label_replace(
    context: &mut EvalContext<'_>,
    call: &Call,
    series: Vec<Series>,
) -> Result<Vec<Series>, EvalError> {
    let [target, replacement, source, pattern] = call.texts.as_slice() else {
        return Err(EvalError::Failed("label_replace takes four strings".to_owned()));
    };
    let pattern = anchored(pattern).map_err(EvalError::Failed)?;
    let references = replacement.matches('$').count();
    let mut replaced = Vec::with_capacity(series.len());
    for mut series in series {
        if let Some(found) = pattern.captures(series.labels.get(source)) {
            // No reference stands for more than the whole source.
            let most = replacement.len() + references * series.labels.get(source).len();
            reserve_label(context, call.function, most)?;
            let mut text = String::new();
            found.expand(replacement, &mut text);
            series.labels.set(target, &text);
        }
        replaced.push(series);
    }
    unique(replaced)
}

fn label_join(
    context: &mut EvalContext<'_>,
    call: &Call,
    series: Vec<Series>,
) -> Result<Vec<Series>, EvalError> {
    let [target, separator, sources @ ..] = call.texts.as_slice() else {
        return Err(EvalError::Failed("label_join takes a label and a separator".to_owned()));
    };
    let mut joined = Vec::with_capacity(series.len());
    for mut series in series {
        let values: Vec<_> = sources.iter().map(|source| series.labels.get(source)).collect();
        let bytes = values.iter().map(|value| value.len() + separator.len()).sum();
        reserve_label(context, call.function, bytes)?;
        let text = values.join(separator);
        series.labels.set(target, &text);
        joined.push(series);
    }
    unique(joined)
}

/// Charges the value of a label that is about to be made of at most `bytes`.
fn reserve_label(
    context: &mut EvalContext<'_>,
    function: CallFunction,
    bytes: usize,
) -> Result<(), EvalError> {
    if bytes > MAX_MADE_LABEL {
        let name = name_of(CALL_FUNCTIONS, function);
        return Err(EvalError::Failed(format!(
            "{name} would make a label of up to {bytes} bytes, at most {MAX_MADE_LABEL} are made: \
             name fewer parts"
        )));
    }
    context.reserve(bytes)
}

//! Aggregation operators: `sum by (…)` and the like.

use std::collections::BTreeMap;

use super::context::{EvalContext, EvalError, POINT_BYTES};
use super::functions::AggregateOperator;
use super::labels::Labels;
use super::number::{format_number, mean_and_variance, quantile};
use super::plan::{Aggregate, LabelSelection};
use super::value::{Points, Sample, Series};
use super::window::merge_rollup;

/// Aggregates the series of each group; `parameter` is that of `topk` and the like at each time.
pub(super) fn evaluate(
    context: &mut EvalContext<'_>,
    plan: &Aggregate,
    series: Vec<Series>,
    parameter: Option<&[f64]>,
) -> Result<Vec<Series>, EvalError> {
    let mut groups: BTreeMap<Labels, Vec<Series>> = BTreeMap::new();
    for series in series {
        groups.entry(plan.groups.of(&series.labels)).or_default().push(series);
    }
    let mut result = Vec::new();
    for (labels, members) in groups {
        match plan.operator {
            AggregateOperator::Topk | AggregateOperator::Bottomk => {
                let is_top = plan.operator == AggregateOperator::Topk;
                result.extend(ranked(members, is_top, parameter.unwrap_or_default()));
            }
            AggregateOperator::CountValues => {
                result.extend(count_values(context, plan, &labels, &members)?);
            }
            AggregateOperator::Sum if members.iter().all(is_histogram) => {
                result.push(Series { labels, points: merged(members)? });
            }
            operator => {
                let columns: Vec<_> = members.iter().map(Series::numbers).collect();
                let times = columns.first().map_or(0, Vec::len);
                let q = |at: usize| parameter.and_then(|numbers| numbers.get(at)).copied();
                let numbers = (0..times).map(|at| {
                    let values: Vec<f64> = columns.iter().filter_map(|column| column[at]).collect();
                    combined(operator, values, q(at))
                });
                result.push(Series::of_numbers(labels, numbers.collect()));
            }
        }
    }
    Ok(result)
}

fn is_histogram(series: &Series) -> bool {
    matches!(series.points, Points::Histograms(_))
}

/// The native histogram of several.
fn merged(members: Vec<Series>) -> Result<Points, EvalError> {
    let mut sum: Vec<Option<Sample>> = Vec::new();
    for series in members {
        let Points::Histograms(samples) = series.points else { continue };
        if sum.is_empty() {
            sum = samples;
            continue;
        }
        for (into, sample) in sum.iter_mut().zip(samples) {
            match (into.as_mut(), sample) {
                (_, None) => {}
                (Some(into), Some(sample)) => merge_rollup(&mut into.rollup, &sample.rollup)?,
                (None, sample) => *into = sample,
            }
        }
    }
    Ok(Points::Histograms(sum))
}

fn combined(operator: AggregateOperator, values: Vec<f64>, q: Option<f64>) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let numbers = values.iter().copied();
    Some(match operator {
        AggregateOperator::Count => values.len() as f64,
        AggregateOperator::Avg => mean_and_variance(&values).0,
        AggregateOperator::Min => numbers.fold(f64::NAN, f64::min),
        AggregateOperator::Max => numbers.fold(f64::NAN, f64::max),
        AggregateOperator::Group => 1.0,
        AggregateOperator::Stddev => mean_and_variance(&values).1.sqrt(),
        AggregateOperator::Stdvar => mean_and_variance(&values).1,
        AggregateOperator::Quantile => quantile(q.unwrap_or(f64::NAN), values),
        AggregateOperator::Sum
        | AggregateOperator::Topk
        | AggregateOperator::Bottomk
        | AggregateOperator::CountValues => numbers.sum(),
    })
}

/// The series with the largest, or smallest, numbers at each time; at one time they are in this
/// order.
fn ranked(members: Vec<Series>, is_top: bool, limits: &[f64]) -> Vec<Series> {
    let columns: Vec<_> = members.iter().map(Series::numbers).collect();
    let times = columns.first().map_or(0, Vec::len);
    let mut kept: Vec<Vec<Option<f64>>> = vec![vec![None; times]; columns.len()];
    let mut order: Vec<usize> = (0..columns.len()).collect();
    for at in 0..times {
        let mut present: Vec<(f64, usize)> = columns
            .iter()
            .enumerate()
            .filter_map(|(row, column)| column[at].map(|number| (number, row)))
            .collect();
        // Numbers that are none come last. The sort is stable: ties stay in the order of labels.
        present.sort_by(|(a, _), (b, _)| match (a.is_nan(), b.is_nan()) {
            (false, false) if is_top => b.total_cmp(a),
            (false, false) => a.total_cmp(b),
            (a_is_none, b_is_none) => a_is_none.cmp(&b_is_none),
        });
        let limit = limits.get(at).copied().unwrap_or(0.0).max(0.0) as usize;
        for (number, row) in present.iter().take(limit) {
            kept[*row][at] = Some(*number);
        }
        if times == 1 {
            order = present.iter().map(|(_, row)| *row).collect();
        }
    }
    let mut rows: Vec<_> = members.into_iter().zip(kept).map(Some).collect();
    order
        .into_iter()
        .filter_map(|row| rows[row].take())
        .map(|(series, numbers)| Series::of_numbers(series.labels, numbers))
        .collect()
}

fn count_values(
    context: &mut EvalContext<'_>,
    plan: &Aggregate,
    labels: &Labels,
    members: &[Series],
) -> Result<Vec<Series>, EvalError> {
    let Some(label) = plan.label.as_deref() else {
        return Err(EvalError::Failed("count_values takes the name of a label".to_owned()));
    };
    let mut found: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
    for series in members {
        let numbers = series.numbers();
        let times = numbers.len();
        for (at, number) in numbers.into_iter().enumerate() {
            let Some(number) = number else { continue };
            let text = format_number(number);
            if !found.contains_key(&text) {
                context.reserve(times * POINT_BYTES + text.len())?;
            }
            let counts = found.entry(text).or_insert_with(|| vec![None; times]);
            counts[at] = Some(counts[at].unwrap_or(0.0) + 1.0);
        }
    }
    let is_grouped = match &plan.groups {
        LabelSelection::Only(names) => names.iter().any(|name| name == label),
        LabelSelection::Except(_) => false,
    };
    if is_grouped {
        return Err(EvalError::Failed(format!("count_values: the label {label} is grouped by")));
    }
    let series = |(text, counts): (String, _)| {
        let mut labels = labels.clone();
        labels.set(label, &text);
        Series::of_numbers(labels, counts)
    };
    Ok(found.into_iter().map(series).collect())
}

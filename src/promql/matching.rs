//! Operators between two vectors: which series meets which.

use std::collections::BTreeMap;

use super::context::{EvalContext, EvalError, POINT_BYTES};
use super::functions::BinaryOperator;
use super::labels::Labels;
use super::plan::{Binary, Cardinality, LabelSelection};
use super::value::Series;

type Numbers = Vec<Option<f64>>;

/// Evaluates an operator between vectors.
///
/// # Errors
/// If a series matches more than one, and the operator does not say that it may.
pub(super) fn evaluate(
    context: &mut EvalContext<'_>,
    plan: &Binary,
    left: Vec<Series>,
    right: Vec<Series>,
) -> Result<Vec<Series>, EvalError> {
    match plan.operator {
        BinaryOperator::And => Ok(filtered(plan, left, &right, true)),
        BinaryOperator::Unless => Ok(filtered(plan, left, &right, false)),
        BinaryOperator::Or => union(plan, left, right),
        _ => match &plan.cardinality {
            Cardinality::OneToMany(include) => joined(context, plan, (right, left), include, true),
            Cardinality::ManyToOne(include) => joined(context, plan, (left, right), include, false),
            Cardinality::OneToOne => joined(context, plan, (left, right), &[], false),
        },
    }
}

/// At which times a group of matching series has a point.
fn presence(plan: &Binary, series: &[Series]) -> BTreeMap<Labels, Vec<bool>> {
    let mut found: BTreeMap<Labels, Vec<bool>> = BTreeMap::new();
    for series in series {
        let numbers = series.numbers();
        let times = found
            .entry(plan.matching.of(&series.labels))
            .or_insert_with(|| vec![false; numbers.len()]);
        times.iter_mut().zip(numbers).for_each(|(time, number)| *time |= number.is_some());
    }
    found
}

/// The points of the series at whose times the other side has, or has not, a matching one.
fn filtered(plan: &Binary, series: Vec<Series>, others: &[Series], wanted: bool) -> Vec<Series> {
    let present = presence(plan, others);
    let kept = series.into_iter().map(|series| {
        let times = present.get(&plan.matching.of(&series.labels));
        let is_there = |at: usize| times.is_some_and(|times| times[at]);
        let numbers = series.numbers().into_iter().enumerate();
        let numbers = numbers.map(|(at, number)| number.filter(|_| is_there(at) == wanted));
        let numbers = numbers.collect();
        Series::of_numbers(series.labels, numbers)
    });
    kept.collect()
}

fn union(plan: &Binary, left: Vec<Series>, right: Vec<Series>) -> Result<Vec<Series>, EvalError> {
    let more = filtered(plan, right, &left, false);
    super::context::unique(left.into_iter().map(numbers_only).chain(more).collect())
}

fn numbers_only(series: Series) -> Series {
    let numbers = series.numbers();
    Series::of_numbers(series.labels, numbers)
}

/// The points of the side that has at most one series for each match, and which series they are of.
struct OneSide {
    series: Vec<(Labels, Numbers)>,
    /// The series that has a point, at each time.
    matches: BTreeMap<Labels, Vec<Option<usize>>>,
}

impl OneSide {
    fn of(plan: &Binary, series: Vec<Series>) -> Result<Self, EvalError> {
        let mut side = Self { series: Vec::new(), matches: BTreeMap::new() };
        for (row, series) in series.into_iter().enumerate() {
            let numbers = series.numbers();
            let key = plan.matching.of(&series.labels);
            let times = side.matches.entry(key).or_insert_with(|| vec![None; numbers.len()]);
            for (time, number) in times.iter_mut().zip(&numbers) {
                if number.is_some() && time.replace(row).is_some() {
                    return Err(EvalError::Failed(
                        "several series of one side match each other: match by more labels with \
                         on(…), or aggregate them first"
                            .to_owned(),
                    ));
                }
            }
            side.series.push((series.labels, numbers));
        }
        Ok(side)
    }
}

/// Matches each series of `many` with that of the other side.
fn joined(
    context: &mut EvalContext<'_>,
    plan: &Binary,
    (many, one): (Vec<Series>, Vec<Series>),
    include: &[String],
    is_swapped: bool,
) -> Result<Vec<Series>, EvalError> {
    let one = OneSide::of(plan, one)?;
    let mut result: BTreeMap<Labels, Numbers> = BTreeMap::new();
    for series in many {
        let Some(matches) = one.matches.get(&plan.matching.of(&series.labels)) else { continue };
        let mut labels: Option<(usize, Labels)> = None;
        for (at, number) in series.numbers().into_iter().enumerate() {
            let (Some(number), Some(row)) = (number, matches[at]) else { continue };
            let Some(other) = one.series[row].1[at] else { continue };
            let (left, right) = if is_swapped { (other, number) } else { (number, other) };
            let Some(point) = plan.result(left, right, left) else { continue };
            if labels.as_ref().is_none_or(|(of, _)| *of != row) {
                let other = &one.series[row].0;
                labels = Some((row, result_labels(plan, &series.labels, other, include)));
            }
            let Some((_, labels)) = &labels else { continue };
            let numbers = match result.get_mut(labels) {
                Some(numbers) => numbers,
                None => {
                    context.reserve(matches.len() * POINT_BYTES + labels.bytes())?;
                    result.entry(labels.clone()).or_insert_with(|| vec![None; matches.len()])
                }
            };
            if numbers[at].replace(point).is_some() {
                return Err(EvalError::Failed(
                    "several series match the same one: say which labels stay with \
                     group_left(…) or group_right(…), or aggregate them first"
                        .to_owned(),
                ));
            }
        }
    }
    Ok(result.into_iter().map(|(labels, numbers)| Series::of_numbers(labels, numbers)).collect())
}

fn result_labels(plan: &Binary, many: &Labels, one: &Labels, include: &[String]) -> Labels {
    let mut labels = many.clone();
    if plan.drops_name() {
        labels = labels.without_name();
    }
    if plan.cardinality == Cardinality::OneToOne {
        return match &plan.matching {
            LabelSelection::Only(names) => labels.only(names),
            LabelSelection::Except(names) => {
                names.iter().for_each(|name| labels.set(name, ""));
                labels
            }
        };
    }
    include.iter().for_each(|name| labels.set(name, one.get(name)));
    labels
}

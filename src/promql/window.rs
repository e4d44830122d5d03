//! Functions of the events in a range before each time, from merged rollups.

use super::context::{EvalContext, EvalError, rollup_heap_bytes};
use super::functions::WindowFunction;
use super::grid::Grid;
use super::labels::METRIC_NAME;
use super::number::interpolate;
use super::plan::Window;
use super::value::{Points, Sample, Series};
use crate::model::decimal::{Decimal, divide_half_even, units_to_f64};
use crate::model::distinct::DistinctSketch;
use crate::model::rollup::{Rollup, RollupFigures};
use crate::model::window::{HOUR_MS, Millis};

const SECONDS_PER_HOUR: f64 = 3_600.0;

/// Evaluates a window for every series that was read; `parameter` is the quantile at each time.
pub(super) fn evaluate(
    context: &mut EvalContext<'_>,
    window: &Window,
    grid: Grid,
    parameter: Option<&[f64]>,
) -> Result<Vec<Series>, EvalError> {
    let mut result = Vec::new();
    let data = context.data;
    for fetched in data.get(window.fetch).map_or(&[][..], Vec::as_slice) {
        let points = &fetched.points;
        let points = match window.function {
            WindowFunction::Increase | WindowFunction::Rate => {
                let per = match window.function {
                    WindowFunction::Rate => window.range as f64 * SECONDS_PER_HOUR,
                    _ => 1.0,
                };
                let sample = |events: &[_], _: usize| {
                    histogram(events).map(|rollup| rollup.map(|rollup| Sample { rollup, per }))
                };
                let heap = |sample: &Sample| rollup_heap_bytes(&sample.rollup);
                Points::Histograms(at_all_times(context, window, grid, points, sample, heap)?)
            }
            function => {
                let number = |events: &[_], at: usize| {
                    let q = parameter.and_then(|numbers| numbers.get(at)).copied();
                    number(function, events, q.unwrap_or(f64::NAN), window.range)
                };
                Points::Numbers(at_all_times(context, window, grid, points, number, |_| 0)?)
            }
        };
        let mut labels = fetched.labels.clone();
        labels.set(METRIC_NAME, window.name.as_deref().unwrap_or_default());
        let series = Series { labels, points };
        if !series.is_empty() {
            context.reserve(series.labels.bytes())?;
            result.push(series);
        }
    }
    Ok(result)
}

/// The values at all times. Charges them as they come, with what `heap_bytes` says: sketches at
/// thousands of times are large.
fn at_all_times<T: Clone>(
    context: &mut EvalContext<'_>,
    window: &Window,
    grid: Grid,
    points: &[(Millis, Rollup)],
    value: impl Fn(&[(Millis, Rollup)], usize) -> Result<Option<T>, EvalError>,
    heap_bytes: impl Fn(&T) -> usize,
) -> Result<Vec<Option<T>>, EvalError> {
    context.reserve(grid.count * size_of::<Option<T>>())?;
    let mut values: Vec<Option<T>> = Vec::with_capacity(grid.count);
    for (at, time) in grid.times().enumerate() {
        // A fixed range has one value, unless its parameter changes.
        let found = match (window.end.at, &window.parameter, values.first()) {
            (Some(_), None, Some(first)) => first.clone(),
            _ => {
                let end = window.end.of(time);
                let place =
                    |hour: i64| points.partition_point(|(start, _)| *start < hour * HOUR_MS);
                value(&points[place(end - window.range)..place(end)], at)?
            }
        };
        context.reserve(found.as_ref().map_or(0, &heap_bytes))?;
        values.push(found);
    }
    Ok(values)
}

/// Adds figures.
///
/// # Errors
/// If the sum exceeds 128 bits.
pub(super) fn merge_figures(
    into: &mut RollupFigures,
    other: &RollupFigures,
) -> Result<(), EvalError> {
    if into.sum.checked_add(other.sum).is_none() {
        return Err(EvalError::Failed(
            "the sum exceeds 128 bits: ask for a shorter range".to_owned(),
        ));
    }
    into.merge(other);
    Ok(())
}

/// Adds a rollup with its sketches. Fails as [`merge_figures`] does.
pub(super) fn merge_rollup(into: &mut Rollup, other: &Rollup) -> Result<(), EvalError> {
    merge_figures(&mut into.figures, &other.figures)?;
    into.distinct.merge(&other.distinct);
    into.quantiles.merge(&other.quantiles);
    Ok(())
}

fn histogram(events: &[(Millis, Rollup)]) -> Result<Option<Rollup>, EvalError> {
    let Some(((_, first), rest)) = events.split_first() else { return Ok(None) };
    let mut merged = first.clone();
    rest.iter().try_for_each(|(_, rollup)| merge_rollup(&mut merged, rollup))?;
    Ok(Some(merged))
}

fn number(
    function: WindowFunction,
    events: &[(Millis, Rollup)],
    q: f64,
    hours: i64,
) -> Result<Option<f64>, EvalError> {
    let mut figures = RollupFigures::default();
    events.iter().try_for_each(|(_, rollup)| merge_figures(&mut figures, &rollup.figures))?;
    if figures.count == 0 {
        return Ok(None);
    }
    Ok(match function {
        WindowFunction::Increase | WindowFunction::Count => Some(figures.count as f64),
        WindowFunction::Rate | WindowFunction::CountPerSecond => {
            Some(figures.count as f64 / (hours as f64 * SECONDS_PER_HOUR))
        }
        WindowFunction::Present => Some(1.0),
        WindowFunction::Distinct => {
            let mut users = DistinctSketch::default();
            events.iter().for_each(|(_, rollup)| users.merge(&rollup.distinct));
            Some(users.estimate() as f64)
        }
        _ if figures.value_count == 0 => None,
        WindowFunction::Sum => Some(units_to_f64(figures.sum)),
        WindowFunction::Avg => Some(average(&figures)),
        WindowFunction::Min => figures.min.map(Decimal::to_f64),
        WindowFunction::Max => figures.max.map(Decimal::to_f64),
        WindowFunction::Quantile => histogram(events)?.and_then(|merged| {
            let at = |rank| merged.value_at(rank).map(Decimal::to_f64);
            interpolate(q, figures.value_count, at)
        }),
    })
}

/// The sum divided by the number of values, of which there is one.
pub(super) fn average(figures: &RollupFigures) -> f64 {
    units_to_f64(divide_half_even(figures.sum, i128::from(figures.value_count)))
}

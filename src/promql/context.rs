//! What every part of an evaluation needs: the data, the memory charged for it, and vectors whose
//! series have different labels.

use std::collections::BTreeMap;

use super::labels::Labels;
use super::plan::FetchedSeries;
use super::value::{Points, Series};
use crate::model::budget::{AbortReason, QueryBudget};
use crate::model::query_charge::QueryCharge;
use crate::model::rollup::Rollup;

/// Why an evaluation ended without a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The series do not fit the expression, or a figure is too large. For clients.
    #[error("{0}")]
    Failed(String),
    /// The query's budget is used up, or nobody waits.
    #[error("the query was ended")]
    Ended(AbortReason),
}

/// Bytes of a point of a series of numbers.
pub(super) const POINT_BYTES: usize = size_of::<Option<f64>>();

/// The data of an evaluation, and its charge for memory.
pub(super) struct EvalContext<'a> {
    pub(super) data: &'a [Vec<FetchedSeries>],
    charge: QueryCharge<'a>,
}

impl<'a> EvalContext<'a> {
    pub(super) fn new(data: &'a [Vec<FetchedSeries>], budget: &'a QueryBudget) -> Self {
        Self { data, charge: QueryCharge::new(budget) }
    }

    /// Fails if the query has been ended.
    pub(super) fn check(&self) -> Result<(), EvalError> {
        self.charge.budget().abort_reason().map_or(Ok(()), |why| Err(EvalError::Ended(why)))
    }

    /// Charges memory that is about to be used. Fails if the query has been ended.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.charge.add_bytes(bytes);
        self.check()
    }
}

/// Bytes that the sketches of a rollup hold.
pub(super) fn rollup_heap_bytes(rollup: &Rollup) -> usize {
    rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes()
}

/// Bytes that a series holds.
pub(super) fn bytes_of(series: &Series) -> usize {
    let points = match &series.points {
        Points::Numbers(numbers) => size_of_val(numbers.as_slice()),
        Points::Histograms(samples) => {
            let heap = samples.iter().flatten().map(|sample| rollup_heap_bytes(&sample.rollup));
            size_of_val(samples.as_slice()) + heap.sum::<usize>()
        }
    };
    points + series.labels.bytes()
}

/// Merges series that have the same labels at different times.
///
/// # Errors
/// If two have the same labels at the same time.
pub(super) fn unique(series: Vec<Series>) -> Result<Vec<Series>, EvalError> {
    let mut places: BTreeMap<Labels, usize> = BTreeMap::new();
    let mut merged: Vec<Series> = Vec::with_capacity(series.len());
    for series in series {
        if let Some(&at) = places.get(&series.labels) {
            merge_points(&mut merged[at].points, series.points)?;
            continue;
        }
        places.insert(series.labels.clone(), merged.len());
        merged.push(series);
    }
    Ok(merged)
}

fn merge_points(into: &mut Points, other: Points) -> Result<(), EvalError> {
    let same = || {
        EvalError::Failed(
            "two series of a vector have the same labels at the same time: keep a label that \
             tells them apart"
                .to_owned(),
        )
    };
    match (into, other) {
        (Points::Numbers(into), Points::Numbers(other)) => {
            merge_options(into, other).then_some(()).ok_or_else(same)
        }
        (Points::Histograms(into), Points::Histograms(other)) => {
            merge_options(into, other).then_some(()).ok_or_else(same)
        }
        _ => Err(same()),
    }
}

/// Fills gaps; false if both have a point at the same time.
fn merge_options<T>(into: &mut [Option<T>], other: Vec<Option<T>>) -> bool {
    for (place, point) in into.iter_mut().zip(other) {
        match (place.is_some(), point) {
            (_, None) => {}
            (true, Some(_)) => return false,
            (false, point) => *place = point,
        }
    }
    true
}

//! What expressions evaluate to, at all times of a grid at once.

use super::labels::Labels;
use crate::model::rollup::Rollup;

/// A native histogram: the events of a series, or of a group of series, over a range.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub rollup: Rollup,
    /// Seconds that a rate divides counts and sums by; 1 for an increase.
    pub per: f64,
}

/// The points of a series, one for each time of the grid; None where there is none.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq)]
pub enum Points {
    Numbers(Vec<Option<f64>>),
    Histograms(Vec<Option<Sample>>),
}

/// One series of a vector.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub labels: Labels,
    pub points: Points,
}

/// The value of an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number for each time.
    Scalar(Vec<f64>),
    /// Series with different labels.
    Vector(Vec<Series>),
}

impl Series {
    /// A series of numbers.
    pub(super) fn of_numbers(labels: Labels, numbers: Vec<Option<f64>>) -> Self {
        Self { labels, points: Points::Numbers(numbers) }
    }

    /// Whether there is a point at no time.
    pub(super) fn is_empty(&self) -> bool {
        match &self.points {
            Points::Numbers(numbers) => numbers.iter().all(Option::is_none),
            Points::Histograms(samples) => samples.iter().all(Option::is_none),
        }
    }

    /// The points as numbers; the number of a histogram is its count of events.
    pub fn numbers(&self) -> Vec<Option<f64>> {
        match &self.points {
            Points::Numbers(numbers) => numbers.clone(),
            Points::Histograms(samples) => samples
                .iter()
                .map(|sample| sample.as_ref().map(|s| s.rollup.figures.count as f64 / s.per))
                .collect(),
        }
    }
}

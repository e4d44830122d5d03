//! Binary operators between numbers, and between vectors and numbers.

use super::context::{EvalContext, EvalError, unique};
use super::functions::BinaryOperator;
use super::matching;
use super::plan::Binary;
use super::value::{Series, Value};

impl BinaryOperator {
    pub(super) fn is_comparison(self) -> bool {
        matches!(
            self,
            BinaryOperator::Equal
                | BinaryOperator::NotEqual
                | BinaryOperator::Greater
                | BinaryOperator::Less
                | BinaryOperator::GreaterOrEqual
                | BinaryOperator::LessOrEqual
        )
    }

    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            BinaryOperator::Equal => left == right,
            BinaryOperator::NotEqual => left != right,
            BinaryOperator::Greater => left > right,
            BinaryOperator::Less => left < right,
            BinaryOperator::GreaterOrEqual => left >= right,
            BinaryOperator::LessOrEqual => left <= right,
            _ => false,
        }
    }

    fn compute(self, left: f64, right: f64) -> f64 {
        match self {
            BinaryOperator::Add => left + right,
            BinaryOperator::Sub => left - right,
            BinaryOperator::Mul => left * right,
            BinaryOperator::Div => left / right,
            BinaryOperator::Mod => left % right,
            BinaryOperator::Pow => left.powf(right),
            BinaryOperator::Atan2 => left.atan2(right),
            comparison => f64::from(u8::from(comparison.holds(left, right))),
        }
    }
}

impl Binary {
    /// The result of two numbers of vectors, of which a comparison without `bool` keeps `kept`.
    pub(super) fn result(&self, left: f64, right: f64, kept: f64) -> Option<f64> {
        if self.operator.is_comparison() && !self.to_bool {
            return self.operator.holds(left, right).then_some(kept);
        }
        Some(self.operator.compute(left, right))
    }

    /// Whether the result is another quantity, which has not the name of the metric.
    pub(super) fn drops_name(&self) -> bool {
        !self.operator.is_comparison() || self.to_bool
    }
}

/// Evaluates an operator.
///
/// # Errors
/// If the series of two vectors do not match each other as the operator says.
pub(super) fn evaluate(
    context: &mut EvalContext<'_>,
    plan: &Binary,
    left: Value,
    right: Value,
) -> Result<Value, EvalError> {
    match (left, right) {
        (Value::Scalar(left), Value::Scalar(right)) => {
            let pairs = left.into_iter().zip(right);
            Ok(Value::Scalar(pairs.map(|(l, r)| plan.operator.compute(l, r)).collect()))
        }
        (Value::Vector(series), Value::Scalar(numbers)) => {
            let result = |number: f64, other: f64| plan.result(number, other, number);
            with_numbers(plan, series, &numbers, result)
        }
        (Value::Scalar(numbers), Value::Vector(series)) => {
            let result = |number: f64, other: f64| plan.result(other, number, number);
            with_numbers(plan, series, &numbers, result)
        }
        (Value::Vector(left), Value::Vector(right)) => {
            matching::evaluate(context, plan, left, right).map(Value::Vector)
        }
    }
}

fn with_numbers(
    plan: &Binary,
    series: Vec<Series>,
    numbers: &[f64],
    result: impl Fn(f64, f64) -> Option<f64>,
) -> Result<Value, EvalError> {
    let computed = series.into_iter().map(|series| {
        let points = series.numbers().into_iter().zip(numbers);
        let points = points.map(|(point, other)| point.and_then(|point| result(point, *other)));
        let points = points.collect();
        let labels = if plan.drops_name() { series.labels.without_name() } else { series.labels };
        Series::of_numbers(labels, points)
    });
    unique(computed.collect()).map(Value::Vector)
}

//! Evaluates a plan over what was read, at all times of its grid at once.

use super::context::{EvalContext, EvalError, POINT_BYTES, bytes_of, unique};
use super::functions::SubqueryFunction;
use super::grid::Grid;
use super::number::{mean_and_variance, quantile};
use super::plan::{Call, CompiledQuery, FetchedSeries, Node, Plan, Subquery};
use super::value::{Series, Value};
use super::{aggregate, binary, calls, window};
use crate::model::budget::QueryBudget;

/// Evaluates a query over the results of its fetches, in their order. Charges the memory that it
/// needs to `budget`, and gives it back at the end.
///
/// # Errors
/// If series do not match, a sum exceeds 128 bits, or the budget ends the query.
pub fn evaluate(
    query: &CompiledQuery,
    data: &[Vec<FetchedSeries>],
    budget: &QueryBudget,
) -> Result<Value, EvalError> {
    Evaluator { context: EvalContext::new(data, budget) }.node(&query.root)
}

struct Evaluator<'a> {
    context: EvalContext<'a>,
}

impl Evaluator<'_> {
    fn node(&mut self, node: &Node) -> Result<Value, EvalError> {
        let mut value = match &node.plan {
            Plan::Number(number) => Value::Scalar(vec![*number; node.grid.count]),
            Plan::Time => {
                Value::Scalar(node.grid.times().map(|hour| hour as f64 * 3_600.0).collect())
            }
            Plan::Window(window) => {
                let parameter = self.parameter(window.parameter.as_deref())?;
                Value::Vector(window::evaluate(
                    &mut self.context,
                    window,
                    node.grid,
                    parameter.as_deref(),
                )?)
            }
            Plan::Subquery(subquery) => Value::Vector(self.subquery(subquery, node)?),
            Plan::Aggregate(plan) => {
                let parameter = self.parameter(plan.parameter.as_deref())?;
                let series = self.vector(&plan.inner)?;
                let aggregated =
                    aggregate::evaluate(&mut self.context, plan, series, parameter.as_deref())?;
                Value::Vector(aggregated)
            }
            Plan::Binary(plan) => {
                let (left, right) = (self.node(&plan.left)?, self.node(&plan.right)?);
                binary::evaluate(&mut self.context, plan, left, right)?
            }
            Plan::Negate(inner) => calls::negate(self.node(inner)?)?,
            Plan::Call(call) => self.call(call, node.grid)?,
        };
        // Filters leave series without any point, which are in no answer.
        if let Value::Vector(series) = &mut value {
            series.retain(|series| !series.is_empty());
        }
        self.account(&value)?;
        Ok(value)
    }

    fn account(&mut self, value: &Value) -> Result<(), EvalError> {
        self.context.reserve(match value {
            Value::Scalar(numbers) => size_of_val(numbers.as_slice()),
            Value::Vector(series) => series.iter().map(bytes_of).sum(),
        })
    }

    /// The series of a vector.
    fn vector(&mut self, node: &Node) -> Result<Vec<Series>, EvalError> {
        match self.node(node)? {
            Value::Vector(series) => Ok(series),
            Value::Scalar(_) => {
                Err(EvalError::Failed("expected a vector, this is a number: vector(…)".to_owned()))
            }
        }
    }

    /// The numbers of a scalar.
    fn scalar(&mut self, node: &Node) -> Result<Vec<f64>, EvalError> {
        match self.node(node)? {
            Value::Scalar(numbers) => Ok(numbers),
            Value::Vector(_) => {
                Err(EvalError::Failed("expected a number, this is a vector: scalar(…)".to_owned()))
            }
        }
    }

    fn parameter(&mut self, node: Option<&Node>) -> Result<Option<Vec<f64>>, EvalError> {
        node.map(|node| self.scalar(node)).transpose()
    }

    fn call(&mut self, call: &Call, grid: Grid) -> Result<Value, EvalError> {
        let numbers = call.numbers.iter().map(|number| self.scalar(number));
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        match call.inner.as_deref() {
            Some(inner) => {
                let series = self.vector(inner)?;
                calls::evaluate(&mut self.context, call, series, &numbers, grid)
            }
            None => calls::without_vector(call, numbers),
        }
    }

    fn subquery(&mut self, plan: &Subquery, node: &Node) -> Result<Vec<Series>, EvalError> {
        let parameter = self.parameter(plan.parameter.as_deref())?;
        let Some(inner) = plan.inner.as_deref() else { return Ok(Vec::new()) };
        let mut result = Vec::new();
        for series in self.vector(inner)? {
            self.context.reserve(node.grid.count * POINT_BYTES)?;
            let numbers = series.numbers();
            let place = |hour: i64| {
                let at = (hour - inner.grid.start).div_euclid(inner.grid.step) + 1;
                usize::try_from(at.max(0)).unwrap_or(0).min(numbers.len())
            };
            let mut found = Vec::with_capacity(node.grid.count);
            for (at, time) in node.grid.times().enumerate() {
                // Ranges may have thousands of points, and are sorted for a quantile.
                self.context.check()?;
                let end = plan.end.of(time);
                let window = &numbers[place(end - plan.range)..place(end)];
                let values: Vec<f64> = window.iter().flatten().copied().collect();
                let q = parameter.as_ref().and_then(|numbers| numbers.get(at)).copied();
                found.push(summary(plan.function, values, q));
            }
            let keeps_name = plan.function == SubqueryFunction::Last;
            let labels = if keeps_name { series.labels } else { series.labels.without_name() };
            result.push(Series::of_numbers(labels, found));
        }
        unique(result)
    }
}

fn summary(function: SubqueryFunction, values: Vec<f64>, q: Option<f64>) -> Option<f64> {
    let last = *values.last()?;
    Some(match function {
        SubqueryFunction::Count => values.len() as f64,
        SubqueryFunction::Sum => values.iter().sum(),
        SubqueryFunction::Avg => mean_and_variance(&values).0,
        SubqueryFunction::Min => values.iter().copied().fold(f64::NAN, f64::min),
        SubqueryFunction::Max => values.iter().copied().fold(f64::NAN, f64::max),
        SubqueryFunction::Quantile => quantile(q.unwrap_or(f64::NAN), values),
        SubqueryFunction::Present => 1.0,
        SubqueryFunction::Last => last,
        SubqueryFunction::Stddev => mean_and_variance(&values).1.sqrt(),
        SubqueryFunction::Stdvar => mean_and_variance(&values).1,
    })
}

//! Queries: at one time, and over a range of times.

use super::answer::{PromAnswer, ResultData};
use super::error::PromError;
use super::params::PromParams;
use super::read::Reader;
use crate::api::timestamp;
use crate::model::window::{HOUR_MS, Millis};
use crate::promql::{
    CompiledQuery, Grid, Series, Value, compile, evaluate, hour_at_or_before, parse_step,
};
use crate::query::error::QueryError;

fn evaluated(reader: &mut Reader<'_>, query: &CompiledQuery) -> Result<Value, PromError> {
    let data =
        query.fetches.iter().map(|fetch| reader.fetch(fetch)).collect::<Result<Vec<_>, _>>()?;
    let value = evaluate(query, &data, reader.budget)?;
    let points = match &value {
        Value::Scalar(numbers) => numbers.len(),
        Value::Vector(series) => series.iter().map(present_points).sum(),
    };
    if points > reader.max_points {
        return Err(QueryError::TooManyPoints { max: reader.max_points }.into());
    }
    Ok(value)
}

fn present_points(series: &Series) -> usize {
    series.numbers().iter().flatten().count()
}

fn note_time(reader: &mut Reader<'_>, asked: Millis) {
    if asked.rem_euclid(HOUR_MS) == 0 {
        return;
    }
    let hour = timestamp(hour_at_or_before(asked) * HOUR_MS);
    let hour = hour.map(|hour| hour.to_string()).unwrap_or_default();
    reader.infos.push(format!(
        "figures are of whole hours: evaluated at {hour}, the whole hour before the time that \
         was asked for, as the times of the answer say"
    ));
}

/// Answers `/api/v1/query`.
pub(super) fn instant(
    reader: &mut Reader<'_>,
    params: &PromParams,
) -> Result<PromAnswer, PromError> {
    let text = params.required("query")?;
    let asked = params.time("time")?.unwrap_or(params.now);
    let query = compile(text, Grid::at(hour_at_or_before(asked)))?;
    let value = evaluated(reader, &query)?;
    // A constant has the time that was asked for, as the check of a data source expects.
    let time = if query.is_constant() { asked } else { query.grid.start * HOUR_MS };
    if !query.is_constant() {
        note_time(reader, asked);
    }
    PromAnswer::new(ResultData::Instant { value, time }, params.limit()?)
}

/// Answers `/api/v1/query_range`.
pub(super) fn range(reader: &mut Reader<'_>, params: &PromParams) -> Result<PromAnswer, PromError> {
    let text = params.required("query")?;
    let time = |name| {
        params.required(name)?;
        params.time(name)?.ok_or_else(|| PromError::bad(format!("{name} is required")))
    };
    let (start, end) = (time("start")?, time("end")?);
    if end < start {
        return Err(PromError::bad("end is before start"));
    }
    let step = parse_step(params.required("step")?)?;
    // As many times as were asked for, each read as the hour before it.
    let (first, more) = (hour_at_or_before(start), (end - start) / (step * HOUR_MS));
    let grid = Grid::range(first, first + more * step, step)?;
    let query = compile(text, grid)?;
    let value = evaluated(reader, &query)?;
    note_time(reader, start);
    PromAnswer::new(ResultData::Range { value, grid }, params.limit()?)
}

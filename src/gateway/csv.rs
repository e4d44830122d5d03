//! Answers as CSV (RFC 4180): one row per point, numbers with all their digits.
//!
//! Label values are written unchanged, even those that a spreadsheet takes for a formula. CSV
//! cannot mark a cell as text, and a quote in front would change the value for every other
//! reader. docs/reference/api.md documents this.

use super::error::ApiError;
use super::render::{self, DecimalFormat};
use crate::model::window::Millis;
use crate::query::answer::{FigureValue, QueryOutput};
use crate::query::error::QueryError;

/// Most missing shards, and most parts of a replay, named in the header: every HTTP client accepts a
/// header of that size.
const NAMED: usize = 32;

/// An answer as CSV, and what CSV has no place for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvAnswer {
    /// A header line and one row per point.
    pub csv: String,
    /// Completeness of the answer, as JSON that fits into an HTTP header.
    pub completeness: String,
}

/// Renders an answer as CSV. Fails if the query was cancelled meanwhile or
/// exceeded its memory budget.
pub(super) fn table(
    answer: &mut QueryOutput<'_>,
    decimals: DecimalFormat,
) -> Result<CsvAnswer, ApiError> {
    // Quoting every cell keeps readers from parsing numbers as doubles.
    let quotes = if decimals == DecimalFormat::Strings {
        csv::QuoteStyle::Always
    } else {
        csv::QuoteStyle::Necessary
    };
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .quote_style(quotes)
        .from_writer(Vec::new());
    let request = answer.request;
    let labels = request.group_by.iter().map(String::as_str);
    let figures = request.aggregates.iter().map(|aggregate| aggregate.name());
    writer
        .write_record(std::iter::once("time").chain(labels).chain(figures))
        .map_err(write_failed)?;
    let mut charged = 0;
    for at in 0..answer.series.len() {
        rows(answer, at, &mut writer).map_err(write_failed)?;
        // Charged after each series, so that a table over its budget ends early.
        let written = writer.get_ref().len();
        if let Some(why) = answer.charge(written - charged) {
            return Err(QueryError::ended(why, 0).into());
        }
        charged = written;
    }
    let bytes = writer.into_inner().map_err(write_failed)?;
    let csv = String::from_utf8(bytes).map_err(write_failed)?;
    let mut completeness = render::completeness(&answer.completeness);
    completeness.more = completeness.missing.len().saturating_sub(NAMED) as u64;
    completeness.missing.truncate(NAMED);
    completeness.more_generations = completeness.generations.len().saturating_sub(NAMED) as u64;
    completeness.generations.truncate(NAMED);
    Ok(CsvAnswer { csv, completeness: serde_json::to_string(&completeness).map_err(write_failed)? })
}

/// Writes the rows of one series.
fn rows(
    answer: &QueryOutput<'_>,
    series: usize,
    writer: &mut csv::Writer<Vec<u8>>,
) -> csv::Result<()> {
    let mut cell = String::new();
    let series = &answer.series[series];
    for (start, rollup) in &series.points {
        writer.write_field(time(answer, *start))?;
        for value in &series.key {
            writer.write_field(value)?;
        }
        for &aggregate in &answer.request.aggregates {
            cell.clear();
            match answer.figure(aggregate, *start, rollup) {
                FigureValue::Absent => {}
                figure => render::figure(&mut cell, figure, DecimalFormat::Numbers),
            }
            writer.write_field(&cell)?;
        }
        writer.write_record(None::<&[u8]>)?;
    }
    Ok(())
}

/// Writing CSV to memory cannot fail, so a failure is a bug.
fn write_failed(error: impl std::fmt::Display) -> ApiError {
    tracing::error!(%error, "an answer cannot be written as CSV");
    ApiError::internal()
}

/// The start of a bucket, in the requested time zone.
fn time(answer: &QueryOutput<'_>, start: Millis) -> String {
    let Some(at) = crate::api::timestamp(start) else { return String::new() };
    if answer.request.tz == jiff::tz::TimeZone::UTC {
        return at.to_string();
    }
    at.to_zoned_datetime(answer.request.tz.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

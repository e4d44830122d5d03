//! Answers as CSV (RFC 4180): a row for each point, figures with all their digits.
//!
//! Values of labels are written as they are, also those that a spreadsheet takes for a formula: CSV
//! has no way to say that a cell is text, and a quote put before it would be another value for
//! every other reader. docs/api.md says so.

use super::error::ApiError;
use super::render::{self, DecimalFormat};
use crate::model::window::Millis;
use crate::query::answer::{FigureValue, QueryOutput};
use crate::query::error::QueryError;

/// Shards that are named beside a table: a header of HTTP holds so much anywhere.
const MISSING: usize = 32;

/// An answer as CSV, and beside it what a table has no place for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvAnswer {
    /// The rows.
    pub csv: String,
    /// How complete they are, as JSON that fits into a header.
    pub completeness: String,
}

/// The table of an answer.
///
/// # Errors
/// Why the query has ended meanwhile.
pub(super) fn table(
    answer: &mut QueryOutput<'_>,
    decimals: DecimalFormat,
) -> Result<CsvAnswer, ApiError> {
    // Who wants no figure read as a double gets every cell quoted.
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
        let written = writer.get_ref().len();
        if let Some(why) = answer.charge(written - charged) {
            return Err(QueryError::ended(why, 0).into());
        }
        charged = written;
    }
    let bytes = writer.into_inner().map_err(write_failed)?;
    let csv = String::from_utf8(bytes).map_err(write_failed)?;
    let mut completeness = render::completeness(&answer.completeness);
    completeness.more = completeness.missing.len().saturating_sub(MISSING) as u64;
    completeness.missing.truncate(MISSING);
    Ok(CsvAnswer { csv, completeness: serde_json::to_string(&completeness).map_err(write_failed)? })
}

/// Writes the points of a series.
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

/// A table in memory cannot be written: never, and if so it is a bug.
fn write_failed(error: impl std::fmt::Display) -> ApiError {
    tracing::error!(%error, "an answer cannot be written as CSV");
    ApiError::internal()
}

/// The start of a window, by the clocks of the zone that was asked for.
fn time(answer: &QueryOutput<'_>, start: Millis) -> String {
    let Some(at) = crate::api::timestamp(start) else { return String::new() };
    if answer.request.tz == jiff::tz::TimeZone::UTC {
        return at.to_string();
    }
    at.to_zoned_datetime(answer.request.tz.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

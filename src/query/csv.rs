//! Answers as CSV (RFC 4180): a row for each point, figures with all their digits. Pure.
//!
//! Values of labels are written as they are, also those that a spreadsheet takes for a formula: CSV has no way to say that a cell is
//! text, and a quote put before it would be another value for every other reader. docs/api.md says so.

use super::completeness::Completeness;
use super::groups::Group;
use super::json;
use super::params::bad;
use super::plan::Plan;
use super::service::{QueryError, QueryErrorKind, Table};
use super::steps::Step;
use crate::model::budget::Budget;
use crate::model::window::Millis;

/// The table of an answer.
///
/// # Errors
/// If a step does not end in the zone, or the budget has ended; what has ended it is left to the caller.
pub(super) fn table(plan: &Plan, groups: &[&Group], completeness: &Completeness, budget: &Budget) -> Result<Table, QueryError> {
    // Who wants no figure read as a double gets every cell quoted.
    let quotes = if plan.strings { csv::QuoteStyle::Always } else { csv::QuoteStyle::Necessary };
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).quote_style(quotes).from_writer(Vec::new());
    let broken = |error: csv::Error| QueryError::new(QueryErrorKind::Internal, "internal", format!("cannot write CSV: {error}"));
    let header = std::iter::once("time").chain(plan.by.iter().map(String::as_str)).chain(plan.aggs.iter().map(|agg| agg.name()));
    writer.write_record(header).map_err(broken)?;
    let (mut charged, mut cell) = (0, String::new());
    for Group { key, points } in groups {
        for &(start, ref rollup) in points {
            let bucket = if plan.step == Step::All { Ok(plan.from..plan.to) } else { plan.step.bucket(&plan.tz, start) };
            let end = bucket.map_err(|why| bad("tz_not_hour_aligned", why))?.end;
            writer.write_field(time(plan, start)).map_err(broken)?;
            for value in key {
                writer.write_field(value).map_err(broken)?;
            }
            for &agg in &plan.aggs {
                cell.clear();
                json::value(&mut cell, agg, (end - start) / 1000, rollup);
                writer.write_field(if cell == "null" { "" } else { &cell }).map_err(broken)?;
            }
            writer.write_record(None::<&[u8]>).map_err(broken)?;
        }
        let written = writer.get_ref().len();
        budget.charge(written - charged);
        charged = written;
        if budget.ended().is_some() {
            break;
        }
    }
    let unwritten = |why: String| QueryError::new(QueryErrorKind::Internal, "internal", format!("cannot write CSV: {why}"));
    let bytes = writer.into_inner().map_err(|error| unwritten(error.to_string()))?;
    let csv = String::from_utf8(bytes).map_err(|error| unwritten(error.to_string()))?;
    let mut beside = String::new();
    completeness.render(&mut beside, MISSING);
    Ok(Table { csv, completeness: beside })
}

/// Shards that are named beside a table: a header of HTTP holds so much anywhere.
const MISSING: usize = 32;

/// The start of a window, by the clocks of the zone that was asked for.
fn time(plan: &Plan, start: Millis) -> String {
    let Ok(at) = jiff::Timestamp::from_millisecond(start) else { return String::new() };
    if plan.tz == jiff::tz::TimeZone::UTC {
        return at.to_string();
    }
    at.to_zoned_datetime(plan.tz.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

//! The JSON of query answers, written straight into a string: numbers keep all their
//! digits, and a large answer is built without an intermediate tree. A test checks
//! the shape against [`crate::api::query::QueryAnswer`].

use std::fmt::Write;

use crate::api;
use crate::api::timestamp;
use crate::model::budget::AbortReason;
use crate::model::decimal::write_units;
use crate::model::rollup::Rollup;
use crate::model::served::ServedHours;
use crate::model::window::Millis;
use crate::query::answer::{FigureValue, QueryOutput};
use crate::query::completeness::QueryCompleteness;

/// Estimated size of an answer without its points, and of one point, for the first allocation.
const ANSWER_BYTES: usize = 256;
const POINT_BYTES: usize = 64;

/// How decimals are written in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecimalFormat {
    /// As JSON numbers, with all digits.
    #[default]
    Numbers,
    /// As strings, for readers whose numbers are doubles.
    Strings,
}

/// Renders an answer as JSON.
///
/// # Errors
/// If the query was cancelled meanwhile or exceeded its memory budget.
pub fn query_answer(
    answer: &mut QueryOutput<'_>,
    decimals: DecimalFormat,
) -> Result<String, AbortReason> {
    let mut out = String::new();
    write_answer(&mut out, "{", answer, decimals)?;
    Ok(out)
}

/// Renders an answer as an update of a subscription. The hash covers everything except what changes
/// with time alone, such as `as_of`; an equal hash means that no update is due.
///
/// # Errors
/// If the query was cancelled meanwhile or exceeded its memory budget.
pub fn update(
    name: &str,
    answer: &mut QueryOutput<'_>,
    decimals: DecimalFormat,
) -> Result<(String, u128), AbortReason> {
    let mut out = String::new();
    let mut head = "{\"update\":".to_owned();
    string(&mut head, name);
    head.push(',');
    let figures = write_answer(&mut out, &head, answer, decimals)?;
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&out.as_bytes()[head.len()..figures]);
    hash.update(&[u8::from(answer.completeness.is_partial())]);
    hash.update(&answer.completeness.overflow.unwrap_or(0).to_be_bytes());
    for piece in &answer.completeness.generations {
        let ServedHours { from, to, generation } = piece;
        [i64::from(from.0), i64::from(to.0), generation.0 as i64]
            .iter()
            .for_each(|number| hash.update(&number.to_be_bytes()));
    }
    Ok((out, hash.digest128()))
}

/// Writes the answer after `head`, the beginning of its object. Returns where its series end.
fn write_answer(
    out: &mut String,
    head: &str,
    answer: &mut QueryOutput<'_>,
    decimals: DecimalFormat,
) -> Result<usize, AbortReason> {
    let room = head.len() + ANSWER_BYTES + answer.points() * POINT_BYTES;
    let mut charged = 0;
    // Charged before each growth, so that a query over its budget stops before the memory is used.
    let mut charge = |answer: &mut QueryOutput<'_>, bytes: usize| {
        let more = bytes.saturating_sub(charged);
        charged = charged.max(bytes);
        answer.charge(more).map_or(Ok(()), Err)
    };
    charge(answer, room)?;
    out.reserve(room);
    out.push_str(head);
    out.push_str("\"metric\":");
    string(out, &answer.request.metric);
    out.push_str(",\"step\":");
    string(out, answer.request.step.name());
    out.push_str(",\"from\":");
    time(out, answer.request.from);
    out.push_str(",\"to\":");
    time(out, answer.request.to);
    out.push_str(",\"series\":[");
    for at in 0..answer.series.len() {
        charge(answer, out.len())?;
        out.push_str(if at > 0 { ",{\"labels\":{" } else { "{\"labels\":{" });
        let series = &answer.series[at];
        let labels =
            answer.request.group_by.iter().zip(&series.key).filter(|(_, value)| !value.is_empty());
        for (at, (name, value)) in labels.enumerate() {
            if at > 0 {
                out.push(',');
            }
            string(out, name);
            out.push(':');
            string(out, value);
        }
        out.push_str("},\"points\":[");
        for (at, (start, rollup)) in series.points.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            point(out, answer, *start, rollup, decimals);
        }
        out.push_str("]}");
    }
    out.push(']');
    let figures = out.len();
    out.push_str(",\"completeness\":");
    // Serialising a plain struct cannot fail.
    out.push_str(&serde_json::to_string(&completeness(&answer.completeness)).unwrap_or_default());
    out.push('}');
    Ok(figures)
}

/// The completeness of an answer, as the API writes it.
pub fn completeness(of: &QueryCompleteness) -> api::completeness::Completeness {
    let missing =
        |missing: &crate::query::completeness::IncompleteShard| api::completeness::MissingShard {
            shard: missing.shard.0,
            reason: missing.reason.to_owned(),
            behind_ms: missing.behind_ms,
        };
    let generation = |piece: &ServedHours| api::completeness::ServedGeneration {
        generation: piece.generation.0,
        from: timestamp(piece.from.start()),
        to: timestamp(piece.to.start()),
    };
    api::completeness::Completeness {
        partial: of.is_partial(),
        shards: of.shards as u32,
        missing: of.missing.iter().map(missing).collect(),
        more: 0,
        overflow: of.overflow,
        generations: of.generations.iter().map(generation).collect(),
        more_generations: 0,
        as_of: timestamp(of.as_of),
    }
}

/// Writes a JSON string. Most strings need no escapes and are copied as they are.
fn string(out: &mut String, text: &str) {
    if text.bytes().any(|byte| byte < b' ' || matches!(byte, b'"' | b'\\')) {
        // Serialising a string cannot fail.
        out.push_str(&serde_json::Value::from(text).to_string());
    } else {
        out.push('"');
        out.push_str(text);
        out.push('"');
    }
}

/// Writes a time as a JSON string; `null` outside of the calendar's range.
fn time(out: &mut String, t: Millis) {
    match timestamp(t) {
        Some(at) => _ = write!(out, "\"{at}\""),
        None => out.push_str("null"),
    }
}

fn point(
    out: &mut String,
    answer: &QueryOutput<'_>,
    start: Millis,
    rollup: &Rollup,
    decimals: DecimalFormat,
) {
    out.push_str("{\"t\":");
    time(out, start);
    for &aggregate in &answer.request.aggregates {
        // Writing to a String cannot fail.
        _ = write!(out, ",\"{}\":", aggregate.name());
        figure(out, answer.figure(aggregate, start, rollup), decimals);
    }
    out.push('}');
}

/// Writes the value of an aggregate; `null` if there is none.
pub(super) fn figure(out: &mut String, figure: FigureValue, decimals: DecimalFormat) {
    let quotes = decimals == DecimalFormat::Strings
        && matches!(figure, FigureValue::Units(_) | FigureValue::Value(_));
    if quotes {
        out.push('"');
    }
    // Writing to a String cannot fail.
    _ = match figure {
        FigureValue::Whole(number) => write!(out, "{number}"),
        FigureValue::Rate(number) => write!(out, "{number}"),
        FigureValue::Units(units) => write_units(units, out),
        FigureValue::Value(value) => write!(out, "{value}"),
        FigureValue::Absent => write!(out, "null"),
    };
    if quotes {
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped() {
        let mut out = String::new();
        string(&mut out, "a\"\r\n\u{1b}[31m");
        string(&mut out, "Zürich, DEL\u{7f}");
        assert_eq!(out, "\"a\\\"\\r\\n\\u001b[31m\"\"Zürich, DEL\u{7f}\"");
    }
}

//! The JSON of answers, written straight into a string: numbers keep all their digits.

use std::fmt::Write;

use super::plan::{Agg, Plan};
use crate::model::decimal::write_units;
use crate::model::rollup::Rollup;
use crate::model::window::Millis;

/// A JSON string.
pub(super) fn string(out: &mut String, text: &str) {
    // A string always serialises.
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// A time, quoted.
pub(super) fn time(out: &mut String, t: Millis) {
    match jiff::Timestamp::from_millisecond(t) {
        Ok(at) => _ = write!(out, "\"{at}\""),
        Err(_) => out.push_str("null"),
    }
}

/// One point.
pub(super) fn point(out: &mut String, plan: &Plan, start: Millis, end: Millis, rollup: &Rollup) {
    out.push_str("{\"t\":");
    time(out, start);
    for &agg in &plan.aggs {
        _ = write!(out, ",\"{}\":", agg.name());
        let before = out.len();
        value(out, agg, (end - start) / 1000, rollup);
        let decimal = matches!(agg, Agg::Sum | Agg::Avg | Agg::Min | Agg::Max | Agg::Quantile(..));
        if plan.strings && decimal && !out.ends_with("null") {
            out.insert(before, '"');
            out.push('"');
        }
    }
    out.push('}');
}

/// One figure, `null` if there is none.
pub(super) fn value(out: &mut String, agg: Agg, seconds: i64, rollup: &Rollup) {
    let figures = &rollup.figures;
    let valued = figures.value_count > 0;
    // Writing to a String cannot fail.
    _ = match agg {
        Agg::Count => write!(out, "{}", figures.count),
        Agg::Distinct => write!(out, "{}", rollup.distinct.estimate()),
        Agg::Rate => write!(out, "{}", figures.count as f64 / seconds.max(1) as f64),
        Agg::Sum if valued => write_units(figures.sum, out),
        Agg::Avg if valued => write_units(divide_half_even(figures.sum, i128::from(figures.value_count)), out),
        Agg::Min | Agg::Max | Agg::Quantile(..) if valued => match agg {
            Agg::Min => write!(out, "{}", figures.min.unwrap_or_default()),
            Agg::Max => write!(out, "{}", figures.max.unwrap_or_default()),
            Agg::Quantile(q, _) => match rollup.quantile(q) {
                Some(value) => write!(out, "{value}"),
                None => write!(out, "null"),
            },
            _ => Ok(()),
        },
        _ => write!(out, "null"),
    };
}

/// Exact to 9 digits, rounded half-even.
fn divide_half_even(sum: i128, count: i128) -> i128 {
    let (quotient, rest) = (sum.div_euclid(count), sum.rem_euclid(count));
    let up = rest * 2 > count || (rest * 2 == count && quotient.rem_euclid(2) == 1);
    quotient + i128::from(up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_round_half_even() {
        assert_eq!(
            [divide_half_even(5, 2), divide_half_even(7, 2), divide_half_even(-5, 2), divide_half_even(2, 3)],
            [2, 4, -2, 1]
        );
    }

    #[test]
    fn strings_are_escaped() {
        let mut out = String::new();
        string(&mut out, "a\"\r\n\u{1b}[31m");
        assert_eq!(out, r#""a\"\r\n\u001b[31m""#);
    }
}

//! Numbers as Prometheus writes and computes them.

/// A number as in the answers of Prometheus: the shortest decimal that is read back as the same
/// number, never with an exponent.
pub fn format_number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

/// What a quantile outside of 0 to 1 is; None inside.
pub(super) fn degenerate_quantile(q: f64) -> Option<f64> {
    if q.is_nan() {
        Some(f64::NAN)
    } else if q < 0.0 {
        Some(f64::NEG_INFINITY)
    } else if q > 1.0 {
        Some(f64::INFINITY)
    } else {
        None
    }
}

/// The quantile of `count` ascending values, interpolated between the two nearest ranks (from 0)
/// as Prometheus does; None if a rank has no value.
pub(super) fn interpolate(
    q: f64,
    count: u64,
    value_at: impl Fn(u64) -> Option<f64>,
) -> Option<f64> {
    if let Some(value) = degenerate_quantile(q) {
        return Some(value);
    }
    let rank = q * count.saturating_sub(1) as f64;
    let (lower, weight) = (rank.floor(), rank - rank.floor());
    let upper = ((lower + 1.0) as u64).min(count.saturating_sub(1));
    let (lower, upper) = (value_at(lower as u64)?, value_at(upper)?);
    // Equal values first: an infinity times a weight of zero would be no number.
    if lower == upper { Some(lower) } else { Some(lower * (1.0 - weight) + upper * weight) }
}

/// The quantile of numbers; NaN if there are none. What is no number comes first, as in Prometheus,
/// whatever its sign.
pub(super) fn quantile(q: f64, mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(|a, b| b.is_nan().cmp(&a.is_nan()).then(a.total_cmp(b)));
    let at = |rank: u64| values.get(usize::try_from(rank).ok()?).copied();
    interpolate(q, values.len() as u64, at).unwrap_or(f64::NAN)
}

/// Mean and population variance.
pub(super) fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (mean, values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count)
}

//! Formats numbers for people.

/// Groups digits by three: 1,234,567.89. Text that is no number is returned unchanged.
pub(super) fn grouped(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) =
        digits.split_once('.').map_or((digits, None), |(whole, fraction)| (whole, Some(fraction)));
    if whole.is_empty() || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.to_owned();
    }
    let groups: Vec<&str> = whole
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    let fraction = fraction.map(|fraction| format!(".{fraction}")).unwrap_or_default();
    format!("{sign}{}{fraction}", groups.join(","))
}

/// A count with its noun, in the plural unless it is 1.
pub(super) fn count_of(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(&n.to_string()), if n == 1 { "" } else { "s" })
}

/// Formats an approximate number with six significant digits, however small it is.
pub(super) fn short(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { value.to_string() };
    }
    // Written out, such numbers would be mostly zeros.
    if !(1e-9..1e15).contains(&magnitude) {
        return format!("{value:e}");
    }
    let whole_digits = magnitude.log10().floor() as i32 + 1;
    let decimals = usize::try_from(DIGITS - whole_digits).unwrap_or(0);
    let text = format!("{value:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    grouped(text)
}

const DIGITS: i32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_groups() {
        for (text, shown) in [
            ("0", "0"),
            ("999", "999"),
            ("1000", "1,000"),
            ("-1234567.0004", "-1,234,567.0004"),
            ("1e21", "1e21"),
            ("-", "-"),
            ("", ""),
        ] {
            assert_eq!(grouped(text), shown);
        }
        assert_eq!(
            (count_of(1, "event"), count_of(2000, "event")),
            ("1 event".to_owned(), "2,000 events".to_owned())
        );
    }

    #[test]
    fn small_figures_keep_digits_and_large_ones_lose_none_before_the_point() {
        for (value, text) in [
            (0.0, "0"),
            (0.0004, "0.0004"),
            (0.000_123_456_78, "0.000123457"),
            (12.345_678_9, "12.3457"),
            (-1_234_567.8, "-1,234,568"),
            (100.0, "100"),
            (1e-12, "1e-12"),
            (5e20, "5e20"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}

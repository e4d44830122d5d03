//! Exact decimals: 128-bit fixed point with 9 fractional digits, so that 0.1 + 0.2 is 0.3 and money
//! adds up.

use std::cmp::Ordering;

use num_bigint::BigUint;

/// Units per one: a value is `units / 10^9`.
pub const UNITS_PER_ONE: i128 = 1_000_000_000;
const FRACTION_DIGITS: usize = 9;
/// Largest magnitude of an event's value: 10^18.
pub const MAX_MAGNITUDE: i128 = 1_000_000_000_000_000_000;

/// An exact decimal with 9 fractional digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Decimal(i128);

/// Why a text is not a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// The text is not a decimal number.
    #[error("not a decimal number")]
    Syntax,
    /// The magnitude exceeds 10^18.
    #[error("beyond ±10^18")]
    OutOfRange,
}

impl Decimal {
    /// The number one, which is 10^9 units.
    pub const ONE: Decimal = Decimal(UNITS_PER_ONE);
    /// The number zero; also the default.
    pub const ZERO: Decimal = Decimal(0);

    /// Takes units of 10^-9, unchecked.
    pub fn from_units(units: i128) -> Self {
        Self(units)
    }
    /// Takes units of 10^-9 from an untrusted source. `None` outside the range that [`Self::parse`]
    /// accepts, because sums could overflow.
    pub fn checked_from_units(units: i128) -> Option<Self> {
        (units.unsigned_abs() <= (MAX_MAGNITUDE * UNITS_PER_ONE).unsigned_abs())
            .then_some(Self(units))
    }
    /// The value in units of 10^-9.
    pub fn units(self) -> i128 {
        self.0
    }
    /// The nearest double, as [`units_to_f64`]; never to add up.
    pub fn to_f64(self) -> f64 {
        units_to_f64(self.0)
    }

    /// Parses a JSON number or a decimal string: `[+-]digits[.digits][(e|E)[+-]digits]`. Fractions
    /// of more than 9 digits are rounded half-even, once.
    ///
    /// # Errors
    /// [`DecimalError::Syntax`] for anything else (NaN, infinities, empty),
    /// [`DecimalError::OutOfRange`] beyond ±10^18.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        Self::parse_rounded(text).map(|(value, _)| value)
    }

    /// Like [`Self::parse`], but `None` if the text has more than 9 fractional digits, so that the
    /// value would be another number. Fails as [`Self::parse`] does.
    pub fn parse_exact(text: &str) -> Result<Option<Self>, DecimalError> {
        Self::parse_rounded(text).map(|(value, is_exact)| is_exact.then_some(value))
    }

    /// The value, and whether it is exactly what the text says.
    fn parse_rounded(text: &str) -> Result<(Self, bool), DecimalError> {
        let bytes = text.as_bytes();
        let (negative, bytes) = match bytes.first() {
            Some(b'-') => (true, &bytes[1..]),
            Some(b'+') => (false, &bytes[1..]),
            _ => (false, bytes),
        };
        let (mantissa, exponent) = match bytes.iter().position(|b| matches!(b, b'e' | b'E')) {
            Some(at) => (&bytes[..at], parse_exponent(&bytes[at + 1..])?),
            None => (bytes, 0),
        };
        let (whole, fraction) = match mantissa.iter().position(|&b| b == b'.') {
            Some(at) => (&mantissa[..at], &mantissa[at + 1..]),
            None => (mantissa, &mantissa[..0]),
        };
        let digits_only = whole.iter().chain(fraction).all(u8::is_ascii_digit);
        if !digits_only || whole.len() + fraction.len() == 0 {
            return Err(DecimalError::Syntax);
        }
        let (magnitude, is_exact) = scale(whole, fraction, exponent)?;
        if magnitude > MAX_MAGNITUDE * UNITS_PER_ONE {
            return Err(DecimalError::OutOfRange);
        }
        Ok((Self(if negative { -magnitude } else { magnitude }), is_exact))
    }

    /// This value times `multiply`, divided by `divide`, rounded half-even once. `None` beyond
    /// ±10^18, or if `divide` is zero.
    pub fn scaled(self, multiply: Self, divide: Self) -> Option<Self> {
        if divide.0 == 0 {
            return None;
        }
        let units = match self.0.checked_mul(multiply.0) {
            Some(product) if divide.0 > 0 => divide_half_even(product, divide.0),
            _ => divide_wide(self.0, multiply.0, divide.0)?,
        };
        Self::checked_from_units(units)
    }
}

fn parse_exponent(text: &[u8]) -> Result<i64, DecimalError> {
    let (negative, digits) = match text.first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(DecimalError::Syntax);
    }
    // Capped so that the sum below cannot overflow. Beyond this exponent a value is out of range or
    // rounds to zero, whatever mantissa fits into an event of 8 KiB.
    let value = digits.iter().fold(0i64, |n, &d| (n * 10 + i64::from(d - b'0')).min(1_000_000));
    Ok(if negative { -value } else { value })
}

/// `whole.fraction × 10^exponent` in units, rounded half-even, and whether rounding changed nothing.
fn scale(whole: &[u8], fraction: &[u8], exponent: i64) -> Result<(i128, bool), DecimalError> {
    // The number of mantissa digits before the decimal point of the value in units.
    let point = whole.len() as i64 + exponent + FRACTION_DIGITS as i64;
    let mut units = 0i128;
    let mut digits = whole.iter().chain(fraction).map(|d| i128::from(d - b'0'));
    let mut position = 0i64;
    let limit = MAX_MAGNITUDE * UNITS_PER_ONE * 10;
    while position < point {
        match digits.next() {
            Some(digit) => units = units * 10 + digit,
            // A zero mantissa stays zero: without this exit, `0e1000000` would loop a million
            // times.
            None if units == 0 => return Ok((0, true)),
            None => units *= 10,
        }
        // Checked per digit, before a long mantissa can overflow the i128.
        if units > limit {
            return Err(DecimalError::OutOfRange);
        }
        position += 1;
    }
    if point < 0 {
        return Ok((0, digits.all(|d| d == 0)));
    }
    let Some(first) = digits.next() else { return Ok((units, true)) };
    let rest_is_zero = digits.all(|d| d == 0);
    let up = first > 5 || (first == 5 && (!rest_is_zero || units % 2 == 1));
    Ok((units + i128::from(up), first == 0 && rest_is_zero))
}

/// `a × b ÷ c`, rounded half-even, for products beyond 128 bits. `None` if the result is beyond
/// them too.
fn divide_wide(a: i128, b: i128, c: i128) -> Option<i128> {
    let negative = (a < 0) ^ (b < 0) ^ (c < 0);
    let divisor = BigUint::from(c.unsigned_abs());
    let product = BigUint::from(a.unsigned_abs()) * b.unsigned_abs();
    let (quotient, rest) = (&product / &divisor, &product % &divisor);
    let up = match (rest * 2u32).cmp(&divisor) {
        Ordering::Equal => quotient.bit(0),
        other => other == Ordering::Greater,
    };
    let magnitude = i128::try_from(quotient + u32::from(up)).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// Units of 10^-9 as a double. Exact if a double can hold the number: units alone may need more than
/// its 53 bits where the number does not.
pub fn units_to_f64(units: i128) -> f64 {
    if units.unsigned_abs() < 1 << 53 {
        return units as f64 / UNITS_PER_ONE as f64;
    }
    let (whole, rest) = (units / UNITS_PER_ONE, units % UNITS_PER_ONE);
    whole as f64 + rest as f64 / UNITS_PER_ONE as f64
}

/// Divides units by a positive count, rounded half-even to 9 digits. Euclidean, so that negative
/// sums round like positive ones.
pub fn divide_half_even(sum: i128, count: i128) -> i128 {
    let (quotient, rest) = (sum.div_euclid(count), sum.rem_euclid(count));
    let up = rest * 2 > count || (rest * 2 == count && quotient.rem_euclid(2) == 1);
    quotient + i128::from(up)
}

/// Writes units of 10^-9 as the shortest exact decimal.
pub fn write_units(units: i128, out: &mut impl std::fmt::Write) -> std::fmt::Result {
    let magnitude = units.unsigned_abs();
    let one = UNITS_PER_ONE.unsigned_abs();
    if units < 0 {
        out.write_char('-')?;
    }
    write!(out, "{}", magnitude / one)?;
    let mut fraction = magnitude % one;
    if fraction != 0 {
        let mut width = FRACTION_DIGITS;
        while fraction.is_multiple_of(10) {
            fraction /= 10;
            width -= 1;
        }
        write!(out, ".{fraction:0width$}")?;
    }
    Ok(())
}

/// Parses what [`write_units`] writes: plain digits, at most 9 of them behind the point. `None` for
/// anything else, and beyond 128 bits.
pub fn parse_units(text: &str) -> Option<i128> {
    let (is_negative, magnitude) = match text.strip_prefix('-') {
        Some(magnitude) => (true, magnitude),
        None => (false, text),
    };
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > FRACTION_DIGITS || !digits(whole) || !digits(fraction) {
        return None;
    }
    let fraction: i128 = format!("{fraction:0<FRACTION_DIGITS$}").parse().ok()?;
    let sign = if is_negative { -1 } else { 1 };
    let whole = whole.parse::<i128>().ok()?.checked_mul(sign * UNITS_PER_ONE)?;
    whole.checked_add(sign * fraction)
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write_units(self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(text: &str) -> Result<i128, DecimalError> {
        Decimal::parse(text).map(Decimal::units)
    }

    #[test]
    fn what_is_written_is_read_back() {
        for units in [0, 1, -1, 1_500_000_000, -999_999_999, i128::MAX, i128::MIN, i128::MIN + 1] {
            let mut text = String::new();
            write_units(units, &mut text).expect("memory");
            assert_eq!(parse_units(&text), Some(units), "{text}");
        }
        for text in [
            "",
            "-",
            ".5",
            "1e3",
            "+1",
            "1.0000000001",
            "1.-5",
            "--1",
            "1_0",
            "9".repeat(40).as_str(),
        ] {
            assert_eq!(parse_units(text), None, "{text}");
        }
    }

    #[test]
    fn averages_round_half_even() {
        let cases = [
            divide_half_even(5, 2),
            divide_half_even(7, 2),
            divide_half_even(-5, 2),
            divide_half_even(2, 3),
        ];
        assert_eq!(cases, [2, 4, -2, 1]);
    }

    #[test]
    fn exact_values() {
        assert_eq!(units("0.1").unwrap() + units("0.2").unwrap(), units("0.3").unwrap());
        assert_eq!(units("19.99"), Ok(19_990_000_000));
        assert_eq!(units("-43"), Ok(-43_000_000_000));
        assert_eq!(units("1e3"), Ok(1_000 * UNITS_PER_ONE));
        assert_eq!(units("1.5E-3"), Ok(1_500_000));
        assert_eq!(units("-0.0"), Ok(0));
        assert_eq!(units("1e-400"), Ok(0));
        assert_eq!(units("0e999999999999"), Ok(0));
        assert_eq!(units(&format!("{}{}", "0".repeat(300), "7")), Ok(7 * UNITS_PER_ONE));
    }

    #[test]
    fn more_digits_round_half_even_once() {
        assert_eq!(units("0.0000000005"), Ok(0));
        assert_eq!(units("0.0000000015"), Ok(2));
        assert_eq!(units("0.0000000025"), Ok(2));
        assert_eq!(units("0.00000000250000000001"), Ok(3));
        assert_eq!(units("0.00000000249999999999"), Ok(2));
        assert_eq!(units("5e-10"), Ok(0));
        assert_eq!(units("6e-10"), Ok(1));
        assert_eq!(units("6e-11"), Ok(0));
    }

    #[test]
    fn what_has_too_many_digits_is_not_exact() {
        for exact in ["0.000000001", "1e-9", "0.0000000010", "5000e-12", "0e-400", "-7", "1e18"] {
            assert_eq!(Decimal::parse_exact(exact), Decimal::parse(exact).map(Some), "{exact}");
        }
        for inexact in ["0.0000000001", "1e-10", "0.00000000051", "1.0000000001", "5e-400"] {
            assert_eq!(Decimal::parse_exact(inexact), Ok(None), "{inexact}");
        }
        assert_eq!(Decimal::parse_exact("x"), Err(DecimalError::Syntax));
    }

    #[test]
    fn scaling_rounds_half_even_once() {
        let scaled = |value: &str, multiply: &str, divide: &str| {
            let [value, multiply, divide] =
                [value, multiply, divide].map(|text| Decimal::parse(text).expect("a number"));
            value.scaled(multiply, divide).map(|scaled| scaled.to_string())
        };
        for (value, multiply, divide, expected) in [
            ("90", "1", "60", Some("1.5")),
            ("1", "1", "60", Some("0.016666667")),
            ("-1", "1", "60", Some("-0.016666667")),
            ("1", "-1", "-60", Some("0.016666667")),
            ("0.000000001", "1", "2", Some("0")),
            ("0.000000003", "1", "2", Some("0.000000002")),
            ("0.000000003", "-1", "2", Some("-0.000000002")),
            ("0.000000003", "1", "-2", Some("-0.000000002")),
            ("1e18", "1e18", "1e18", Some("1000000000000000000")),
            ("1e18", "999999999.999999999", "1e9", Some("999999999999999999")),
            ("1e18", "1e18", "-3e17", None),
            ("1e18", "1.000000001", "1", None),
            ("-1e18", "2", "1", None),
            ("0", "1e18", "0.000000001", Some("0")),
            ("5", "1", "0", None),
        ] {
            assert_eq!(scaled(value, multiply, divide).as_deref(), expected, "{value}");
        }
        // Both ways of dividing agree.
        for (a, b, c) in [(7, 5, 2), (-7, 5, 2), (9, 3, 4), (1, 1, 3), (-1, 5, 10), (3, 5, 10)] {
            assert_eq!(divide_wide(a, b, c), Some(divide_half_even(a * b, c)), "{a} {b} {c}");
        }
    }

    #[test]
    fn range_and_syntax() {
        assert_eq!(units("1000000000000000000"), Ok(MAX_MAGNITUDE * UNITS_PER_ONE));
        assert_eq!(units("1000000000000000000.000000001"), Err(DecimalError::OutOfRange));
        assert_eq!(units("1e400"), Err(DecimalError::OutOfRange));
        assert_eq!(units("-1e19"), Err(DecimalError::OutOfRange));
        for bad in ["", "-", ".", "NaN", "inf", "1e", "1e+", "0x1", "1 ", "1,5", "--1", "1.2.3"] {
            assert_eq!(units(bad), Err(DecimalError::Syntax), "{bad:?}");
        }
    }

    #[test]
    fn prints_shortest() {
        for text in ["0", "-43", "0.1", "19.99", "-0.000000001", "1000000000000000000", "10.05"] {
            assert_eq!(Decimal::parse(text).unwrap().to_string(), text);
        }
    }
}

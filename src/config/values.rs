//! Values of keys: numbers, sizes, durations, texts.

use super::keys::{Key, Kind};

/// A value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number or bytes.
    Number(u64),
    /// A duration.
    Millis(i64),
    /// A text.
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number}"),
            Value::Millis(millis) => write!(f, "{millis}ms"),
            Value::Text(text) => f.write_str(text),
        }
    }
}

const DURATIONS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: &[(&str, u64)] = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

/// Parses the text of a key and checks its range.
pub fn parse(key: &Key, text: &str) -> Result<Value, String> {
    let (number, make): (u64, fn(u64) -> Value) = match key.kind {
        // Where empty means something, it is the default.
        Kind::Text if text.trim().is_empty() && !key.default.is_empty() => {
            return Err(format!("must not be empty: leave it out for {}", key.default));
        }
        Kind::Text => return Ok(Value::Text(text.to_owned())),
        Kind::Number => (text.parse().map_err(|_| "expected a whole number")?, Value::Number),
        Kind::Bytes => (with_unit(text, SIZES).ok_or("expected a size such as 64MiB")?, Value::Number),
        Kind::Duration => {
            (with_unit(text, DURATIONS).ok_or("expected a duration such as 10m or 400d")?, |n| Value::Millis(n as i64))
        }
    };
    if number < key.min || number > key.max {
        return Err(format!("must be from {} to {}", show(key, key.min), show(key, key.max)));
    }
    Ok(make(number))
}

fn show(key: &Key, number: u64) -> String {
    match key.kind {
        Kind::Duration => format!("{number}ms"),
        Kind::Bytes => format!("{number}B"),
        _ => number.to_string(),
    }
}

/// A value as it is written in a file.
pub fn to_toml(key: &Key, value: &Value) -> String {
    let largest = |number: u64, units: &[(&str, u64)]| {
        let whole = units.iter().filter(|(_, unit)| number > 0 && number.is_multiple_of(*unit)).max_by_key(|(_, unit)| *unit);
        whole.map_or_else(|| "\"0\"".to_owned(), |(name, unit)| format!("\"{}{name}\"", number / unit))
    };
    match (value, key.kind) {
        (Value::Text(text), _) => toml::Value::from(text.as_str()).to_string(),
        (Value::Millis(millis), _) => largest(millis.unsigned_abs(), DURATIONS),
        (Value::Number(number), Kind::Bytes) => largest(*number, SIZES),
        (Value::Number(number), _) => number.to_string(),
    }
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    // Nothing is nothing in every unit.
    if text == "0" {
        return Some(0);
    }
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(at);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

//! The types of values: how each is parsed and printed.

use std::path::PathBuf;
use std::time::Duration;

/// How values of a key are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// A whole number without a unit.
    Number,
    /// A size with a unit, such as `64MiB`.
    Bytes,
    /// A duration with a unit, such as `10m`.
    Duration,
    /// Either `true` or `false`, without quotes.
    Bool,
    /// Free text, a string in TOML.
    Text,
}

/// A type that a key may have.
pub(super) trait ConfigValue: Sized {
    /// How values of this type are written.
    const KIND: ValueKind;
    /// Whether a text of this type is never shown, not even in the message that refuses it.
    const IS_SECRET: bool = false;

    /// Parses a value; the error says what is expected.
    fn parse(text: &str) -> Result<Self, String>;
    /// The value as written in a file, without quotes and with passwords masked.
    fn text(&self) -> String;
    /// Whether `text` masks a part of the value.
    fn is_secret(&self) -> bool {
        false
    }
    /// The value as a number, for types that may have a range.
    fn number(&self) -> Option<u64> {
        None
    }
}

macro_rules! numbers {
    ($($type:ty)+) => {$(
        impl ConfigValue for $type {
            const KIND: ValueKind = ValueKind::Number;
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| "expected a whole number".to_owned())
            }
            fn text(&self) -> String {
                self.to_string()
            }
            fn number(&self) -> Option<u64> {
                Some(*self as u64)
            }
        }
    )+};
}
numbers!(u32 u64 usize);

/// A size in bytes, written `64MiB` in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// No bytes at all.
    pub const ZERO: Self = Self(0);

    /// A size of this many bytes.
    pub const fn of(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size as `usize`; saturates on 32-bit machines.
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

pub(super) const fn kib(n: u64) -> ByteSize {
    ByteSize(n << 10)
}
pub(super) const fn mib(n: u64) -> ByteSize {
    ByteSize(n << 20)
}
pub(super) const fn gib(n: u64) -> ByteSize {
    ByteSize(n << 30)
}
pub(super) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
pub(super) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
pub(super) const fn minutes(n: u64) -> Duration {
    seconds(n * 60)
}
pub(super) const fn hours(n: u64) -> Duration {
    minutes(n * 60)
}
pub(super) const fn days(n: u64) -> Duration {
    hours(n * 24)
}

/// A duration in the unit of the model, whole milliseconds; saturates.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

const DURATIONS: &[(&str, u64)] =
    &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: &[(&str, u64)] = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

impl ConfigValue for ByteSize {
    const KIND: ValueKind = ValueKind::Bytes;
    fn parse(text: &str) -> Result<Self, String> {
        with_unit(text, SIZES).map(Self).ok_or_else(|| "expected a size such as 64MiB".to_owned())
    }
    fn text(&self) -> String {
        in_largest_unit(self.0, SIZES)
    }
    fn number(&self) -> Option<u64> {
        Some(self.0)
    }
}

impl ConfigValue for Duration {
    const KIND: ValueKind = ValueKind::Duration;
    fn parse(text: &str) -> Result<Self, String> {
        with_unit(text, DURATIONS)
            .map(ms)
            .ok_or_else(|| "expected a duration such as 10m or 400d".to_owned())
    }
    fn text(&self) -> String {
        in_largest_unit(millis(*self).unsigned_abs(), DURATIONS)
    }
    fn number(&self) -> Option<u64> {
        Some(millis(*self).unsigned_abs())
    }
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    // Zero needs no unit.
    if text == "0" {
        return Some(0);
    }
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(at);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn in_largest_unit(number: u64, units: &[(&str, u64)]) -> String {
    // Zero is a multiple of every unit, and is written without one.
    let whole = units
        .iter()
        .filter(|(_, unit)| number > 0 && number.is_multiple_of(*unit))
        .max_by_key(|(_, unit)| *unit);
    whole.map_or_else(|| "0".to_owned(), |(name, unit)| format!("{}{name}", number / unit))
}

impl ConfigValue for bool {
    const KIND: ValueKind = ValueKind::Bool;
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "neither true nor false".to_owned())
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

impl ConfigValue for String {
    const KIND: ValueKind = ValueKind::Text;
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn text(&self) -> String {
        self.clone()
    }
}

impl ConfigValue for PathBuf {
    const KIND: ValueKind = ValueKind::Text;
    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }
    fn text(&self) -> String {
        self.display().to_string()
    }
}

/// `None` is written as an empty text.
impl<T: ConfigValue> ConfigValue for Option<T> {
    const KIND: ValueKind = T::KIND;
    const IS_SECRET: bool = T::IS_SECRET;
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::parse(text).map(Some) }
    }
    fn text(&self) -> String {
        self.as_ref().map(T::text).unwrap_or_default()
    }
    fn is_secret(&self) -> bool {
        self.as_ref().is_some_and(T::is_secret)
    }
}

/// The URL of a server, which may hold a password. Only [`SecretUrl::expose`] reveals it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// The URL with its password, to connect with.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for SecretUrl {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&without_password(&self.0))
    }
}

impl std::fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl ConfigValue for SecretUrl {
    const KIND: ValueKind = ValueKind::Text;
    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
    fn text(&self) -> String {
        self.to_string()
    }
    fn is_secret(&self) -> bool {
        self.text() != self.0
    }
}

/// Masks the password of an address: `scheme://user:***@host`.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    // The last `@`, because a password may hold one unescaped.
    let Some((user, host)) = rest.rsplit_once('@') else { return text.to_owned() };
    let name = user.split_once(':').map_or("", |(name, _)| name);
    format!("{scheme}://{name}:***@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(
            without_password("redis://me:top@se:cret@cache:6379/1"),
            "redis://me:***@cache:6379/1"
        );
        assert_eq!(without_password("redis://secret@cache"), "redis://:***@cache");
        assert_eq!(without_password("http://127.0.0.1:9000"), "http://127.0.0.1:9000");
        let url = SecretUrl::parse("postgres://me:top@se:cret@db,db2/rollmill").expect("a text");
        assert_eq!(
            format!("{url} {url:?}"),
            "postgres://me:***@db,db2/rollmill postgres://me:***@db,db2/rollmill"
        );
        assert!(url.is_secret() && !SecretUrl::parse("redis://cache").expect("a text").is_secret());
    }

    #[test]
    fn sizes_and_durations_are_read_as_they_are_written() {
        for text in ["0", "1B", "20971521B", "3KiB", "20MiB", "1GiB"] {
            assert_eq!(ByteSize::parse(text).expect("a size").text(), text);
        }
        for text in ["0", "1ms", "61s", "90m", "36h", "400d"] {
            assert_eq!(Duration::parse(text).expect("a duration").text(), text);
        }
        for wrong in [
            "",
            "1",
            "soon",
            "-1s",
            "1.5h",
            "1 week",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(Duration::parse(wrong).is_err() && ByteSize::parse(wrong).is_err(), "{wrong}");
        }
    }
}

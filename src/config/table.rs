//! The macro behind the table of keys, and what it makes of a row.

use std::ops::RangeInclusive;

use super::values::{ConfigValue, ValueKind};

/// Makes of each section a struct with typed fields, and of all of them [`Config`](super::Config):
/// its defaults, its reading by key, and the list of its keys. A row is `name: Type = default;` or
/// `name: Type = default, least..=most;`, and its documentation is that of the key.
macro_rules! config {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr $(, $range:expr)?; )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $Section { $( $(#[doc = $doc])+ pub $field: $type, )+ }
        )+

        /// The configuration: a struct for each section of the file.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Config { $( $(#[doc = $about])+ pub $section: $Section, )+ }

        impl Config {
            /// The configuration of an empty file: the only place that knows a default.
            pub fn defaults() -> Self {
                Self { $( $section: $Section { $( $field: $default, )+ }, )+ }
            }

            /// Reads the text of a key. `None` if there is no such key.
            pub(super) fn set(&mut self, name: &str, text: &str) -> Option<Result<(), super::table::ValueRefusal>> {
                $($(
                    if name == concat!(stringify!($section), ".", stringify!($field)) {
                        let value = &mut self.$section.$field;
                        return Some(super::table::read(value, text, &$default, super::table::range!($($range)?)));
                    }
                )+)+
                None
            }

            /// Every key with its value here, in the order of the table.
            pub fn entries(&self) -> Vec<super::table::KeyEntry> {
                vec![$($(
                    super::table::entry(
                        concat!(stringify!($section), ".", stringify!($field)),
                        concat!($($doc),+).trim(),
                        &self.$section.$field,
                        super::table::range!($($range)?),
                    ),
                )+)+]
            }
        }
    };
}

macro_rules! range {
    () => {
        None
    };
    ($range:expr) => {
        Some($range)
    };
}

/// The name of a key that the compiler knows: `key!(server.listen)` is `"server.listen"`.
macro_rules! key {
    ($section:ident.$field:ident) => {{
        let _exists = |config: &$crate::config::Config| {
            let _ = &config.$section.$field;
        };
        concat!(stringify!($section), ".", stringify!($field))
    }};
}

pub(crate) use key;
pub(super) use {config, range};

/// A key and its value in one configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// The key.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// What it takes.
    pub kind: ValueKind,
    /// The value as a file has it, without quotes; a password is `***`.
    pub text: String,
    /// Whether the value holds a secret, so that `text` is not all of it.
    pub is_secret: bool,
    /// Numbers and sizes; durations in milliseconds.
    pub number: Option<u64>,
    /// Least and largest value, as a file has them.
    pub range: Option<(String, String)>,
}

impl KeyEntry {
    /// Its environment variable.
    pub fn env(&self) -> String {
        format!("ROLLMILL_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// The value as TOML.
    pub fn toml(&self) -> String {
        match self.kind {
            ValueKind::Number | ValueKind::Bool => self.text.clone(),
            ValueKind::Bytes | ValueKind::Duration | ValueKind::Text => {
                toml::Value::from(self.text.as_str()).to_string()
            }
        }
    }
}

/// Why a text was not taken.
pub(super) struct ValueRefusal {
    /// Why.
    pub why: String,
    /// Whether the text must not be shown.
    pub is_secret: bool,
}

pub(super) fn read<T: ConfigValue>(
    value: &mut T,
    text: &str,
    default: &T,
    range: Option<RangeInclusive<T>>,
) -> Result<(), ValueRefusal> {
    *value = checked(text, default, range)
        .map_err(|why| ValueRefusal { why, is_secret: T::IS_SECRET })?;
    Ok(())
}

fn checked<T: ConfigValue>(
    text: &str,
    default: &T,
    range: Option<RangeInclusive<T>>,
) -> Result<T, String> {
    // Where empty means something, it is the default.
    if T::KIND == ValueKind::Text && text.trim().is_empty() && !default.text().is_empty() {
        return Err(format!("must not be empty: leave it out for {}", default.text()));
    }
    let value = T::parse(text)?;
    if let Some(range) = range
        && !(range.start().number()..=range.end().number()).contains(&value.number())
    {
        return Err(format!("must be from {} to {}", range.start().text(), range.end().text()));
    }
    Ok(value)
}

pub(super) fn entry<T: ConfigValue>(
    name: &'static str,
    doc: &'static str,
    value: &T,
    range: Option<RangeInclusive<T>>,
) -> KeyEntry {
    KeyEntry {
        name,
        doc,
        kind: T::KIND,
        text: value.text(),
        is_secret: value.is_secret(),
        number: value.number(),
        range: range.map(|range| (range.start().text(), range.end().text())),
    }
}

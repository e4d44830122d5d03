//! The macro behind the table of keys, and the parsing and printing of one row.

use std::ops::RangeInclusive;

use super::values::{ConfigValue, ValueKind};

/// Generates a struct with typed fields for each section, and [`Config`](super::Config) from all of
/// them: its defaults, its setter by key, and the list of its keys. A row is `name: Type =
/// default;` or `name: Type = default, least..=most;`; its documentation is that of the key.
macro_rules! config {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $default:expr $(, $range:expr)?;
            )+
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
            /// The configuration of an empty file. Defaults are defined nowhere else.
            pub fn defaults() -> Self {
                Self { $( $section: $Section { $( $field: $default, )+ }, )+ }
            }

            /// Sets a key from its text. `None` if there is no such key.
            pub(super) fn set(
                &mut self,
                name: &str,
                text: &str,
            ) -> Option<Result<(), super::table::ValueRefusal>> {
                $($(
                    if name == concat!(stringify!($section), ".", stringify!($field)) {
                        let value = &mut self.$section.$field;
                        let range = super::table::range!($($range)?);
                        return Some(super::table::read(value, text, &$default, range));
                    }
                )+)+
                None
            }

            /// Every key with its value in this configuration, in the order of the table.
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

/// The name of a key, checked by the compiler: `key!(server.listen)` is `"server.listen"`.
macro_rules! key {
    ($section:ident.$field:ident) => {{
        // Never called: it makes the compiler check that the key exists.
        let _exists = |config: &$crate::config::Config| {
            let _ = &config.$section.$field;
        };
        concat!(stringify!($section), ".", stringify!($field))
    }};
}

pub(crate) use key;
pub(super) use {config, range};

/// One key and its value in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// Section and field, such as `accept.max_age`.
    pub name: &'static str,
    /// What the key is for, in one paragraph.
    pub doc: &'static str,
    /// How values of the key are written.
    pub kind: ValueKind,
    /// The value as written in a file, without quotes; a password is `***`.
    pub text: String,
    /// Whether the value holds a secret, so that `text` is masked.
    pub is_secret: bool,
    /// The value as a number, for kinds that have one; durations are in milliseconds.
    pub number: Option<u64>,
    /// Inclusive bounds as written in a file; `None` without a range.
    pub range: Option<(String, String)>,
}

impl KeyEntry {
    /// The environment variable that sets the key.
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

/// Why the text of a key was refused.
pub(super) struct ValueRefusal {
    pub why: String,
    /// The text may be a secret and must not be shown.
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
    // An empty text is accepted only by keys whose default is empty, where it means the default.
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

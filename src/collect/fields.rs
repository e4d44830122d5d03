//! Reading the fields of an event: texts that may be numbers, ids of any length.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::model::event::{EventError, EventErrorCode, MAX_ID_BYTES};
use crate::model::suggest::excerpt;
use crate::rules::{PropertyValue, json_value};

/// Parses an event into the fields that matter, and checks the syntax of all others. Fails with
/// `event_unreadable` if it is not an object, or has one of the fields twice.
pub(super) fn parse<'a, T: Deserialize<'a>>(event: &'a str) -> Result<T, EventError> {
    let unreadable = |why| EventError::new(EventErrorCode::EventUnreadable, why);
    // Serde would accept an array of the fields as a struct.
    if !event.starts_with('{') {
        return Err(unreadable("an event is an object".to_owned()));
    }
    serde_json::from_str(event)
        .map_err(|e| unreadable(format!("not a readable event: {}", excerpt(&e.to_string()))))
}

/// A field as text: a string, or a number or truth value in its shortest spelling. `None` if it is
/// missing, null, empty or anything else.
pub(super) fn text<'a>(field: Option<&'a RawValue>) -> Option<Cow<'a, str>> {
    let text = match json_value(field?.get().as_bytes())? {
        PropertyValue::Text(text) => text,
        other => Cow::Owned(other.text()?.into_owned()),
    };
    Some(text).filter(|text| !text.is_empty())
}

/// The id of an event as one of ours: one that is too long is replaced by its hash.
pub(super) fn id(sent: Cow<'_, str>) -> Cow<'_, str> {
    if sent.len() <= MAX_ID_BYTES { sent } else { Cow::Owned(hash(&[sent.as_bytes()])) }
}

/// An id of these parts: equal parts have equal ids.
pub(super) fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // The lengths keep the parts apart.
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_from_numbers_too() {
        let of = |json: &str| {
            let raw: Box<RawValue> = serde_json::from_str(json).expect("JSON");
            text(Some(&raw)).map(Cow::into_owned)
        };
        for (json, expected) in [
            (r#""u\u0031""#, Some("u1")),
            ("12345678901234567890", Some("12345678901234567890")),
            ("7.50", Some("7.5")),
            ("true", Some("true")),
            (r#""""#, None),
            ("null", None),
            ("{}", None),
            ("[1]", None),
        ] {
            assert_eq!(of(json).as_deref(), expected, "{json}");
        }
        assert_eq!(text(None), None);
    }

    #[test]
    fn ids_of_any_length_stay_apart() {
        let long = |end: &str| format!("{}{end}", "i".repeat(200));
        assert_eq!(id("short".into()), "short");
        assert_eq!(id(long("a").into()), id(long("a").into()));
        assert_ne!(id(long("a").into()), id(long("b").into()));
        assert_eq!(id(long("a").into()).len(), 32);
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}

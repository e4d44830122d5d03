//! Properties, read from the bytes of an event as its client sent them.
//!
//! The bytes are those that the gateway accepted: JSON, MessagePack, or a record of the Kafka REST
//! Proxy whose `value` is the event. Nothing is decoded but what a pointer leads to. Of equal names
//! in one object the last counts, as in most readers of JSON. Null reads as missing, as it does
//! everywhere in an event. Whatever cannot be read is missing.

use std::borrow::Cow;

use super::pointer::{JsonPointer, PointerStep};
use crate::model::decimal::{Decimal, DecimalError};
use crate::model::json_member::is_name;
use crate::model::json_scan::{self, JsonMembers};
use crate::model::msgpack_reader::{MsgpackReader, Token};

/// A property that is there.
#[derive(Debug, Clone, PartialEq)]
pub enum PropertyValue<'a> {
    /// A string, unescaped.
    Text(Cow<'a, str>),
    /// As it was written; from MessagePack, as the gateway writes it.
    Number(Cow<'a, str>),
    /// `true` or `false`.
    Bool(bool),
    /// An object, an array or bytes.
    Other,
}

impl<'a> PropertyValue<'a> {
    /// The property as the text of a label or a user. Numbers in the one shortest spelling, so that
    /// JSON and MessagePack give the same text. `None` for [`Self::Other`], and for numbers that no
    /// value could have.
    pub fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bool(value) => Some(Cow::Borrowed(if value { "true" } else { "false" })),
            Self::Number(text) => match Decimal::parse(&text) {
                Ok(number) => Some(Cow::Owned(number.to_string())),
                // Such numbers are ids, and ids are texts.
                Err(DecimalError::OutOfRange) if is_whole(&text) => Some(text),
                Err(_) => None,
            },
            Self::Other => None,
        }
    }
}

fn is_whole(text: &str) -> bool {
    text.strip_prefix('-').unwrap_or(text).bytes().all(|b| b.is_ascii_digit())
}

/// The properties of one event. They are looked for when the first pointer asks.
#[derive(Debug)]
pub(super) struct PropertyReader<'a> {
    raw: &'a [u8],
    found: Option<Properties<'a>>,
}

#[derive(Debug, Clone, Copy)]
enum Properties<'a> {
    /// From where they begin to the end of the event: where they end is seen when they are read.
    Json(&'a [u8]),
    MessagePack(&'a [u8]),
    Missing,
}

impl<'a> PropertyReader<'a> {
    pub(super) fn new(raw: &'a [u8]) -> Self {
        Self { raw, found: None }
    }

    /// The property that the pointer leads to; `None` if it is missing or null.
    pub(super) fn get(&mut self, pointer: &JsonPointer) -> Option<PropertyValue<'a>> {
        let raw = self.raw;
        match *self.found.get_or_insert_with(|| locate(raw)) {
            Properties::Json(text) => json(text, pointer.steps()),
            Properties::MessagePack(bytes) => message_pack(bytes, pointer.steps()),
            Properties::Missing => None,
        }
    }
}

fn locate(raw: &[u8]) -> Properties<'_> {
    let start = json_scan::skip_space(raw, 0);
    // No MessagePack map begins with a byte that is a brace or white space.
    let found = match raw.get(start) {
        Some(b'{') => json_properties(raw, start).map(Properties::Json),
        _ => message_pack_member(raw, "properties").map(Properties::MessagePack),
    };
    found.unwrap_or(Properties::Missing)
}

/// The text from where the properties begin, of the event that begins at `start`, or of the event in
/// the record that does. An event's `value` is never an object, and that of a record always is.
fn json_properties(raw: &[u8], start: usize) -> Option<&[u8]> {
    let is_record_value =
        |name: &[u8], at: usize| raw.get(at) == Some(&b'{') && is_name(name, "value");
    let is_wanted = |name: &[u8], at| is_name(name, "properties") || is_record_value(name, at);
    let (name, at) = JsonMembers::of(raw, start).find_start(is_wanted)?;
    if is_name(&raw[name], "properties") {
        return Some(&raw[at..]);
    }
    let (_, at) = JsonMembers::of(raw, at).find_start(|name, _| is_name(name, "properties"))?;
    Some(&raw[at..])
}

fn json<'a>(from: &'a [u8], steps: &[PointerStep]) -> Option<PropertyValue<'a>> {
    let Some((first, rest)) = steps.split_first() else {
        return json_value(&from[json_scan::value(from, 0)?]);
    };
    let mut at = json_step(from, first)?;
    for step in rest {
        at = json_step(at, step)?;
    }
    json_value(at)
}

/// One step down from the value that `at` begins with.
fn json_step<'a>(at: &'a [u8], step: &PointerStep) -> Option<&'a [u8]> {
    match at.first()? {
        b'{' => step.name.last_value(at).map(|value| &at[value]),
        b'[' => json_scan::element(at, 0, step.number?).map(|element| &at[element]),
        _ => None,
    }
}

/// The value that these bytes are, without white space around it; `None` for null, and for what is
/// no JSON.
pub fn json_value(at: &[u8]) -> Option<PropertyValue<'_>> {
    let text = || std::str::from_utf8(at).ok();
    match at.first()? {
        b'"' if at.contains(&b'\\') => {
            serde_json::from_slice(at).ok().map(|text| PropertyValue::Text(Cow::Owned(text)))
        }
        b'"' => {
            let text = text()?.strip_prefix('"')?.strip_suffix('"')?;
            Some(PropertyValue::Text(Cow::Borrowed(text)))
        }
        b'{' | b'[' => Some(PropertyValue::Other),
        b'-' | b'0'..=b'9' => text().map(|text| PropertyValue::Number(Cow::Borrowed(text))),
        _ => match at {
            b"true" => Some(PropertyValue::Bool(true)),
            b"false" => Some(PropertyValue::Bool(false)),
            _ => None,
        },
    }
}

fn message_pack_member<'a>(map: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut reader = MsgpackReader::new(map);
    let Token::Map(count) = reader.token().ok()? else { return None };
    let mut found = None;
    for _ in 0..count {
        let key = reader.skip_value().ok()?;
        let value = reader.skip_value().ok()?;
        if MsgpackReader::new(&map[key]).token() == Ok(Token::Str(name.as_bytes())) {
            found = Some(value);
        }
    }
    found.map(|value| &map[value])
}

fn message_pack<'a>(mut at: &'a [u8], steps: &[PointerStep]) -> Option<PropertyValue<'a>> {
    for step in steps {
        let mut reader = MsgpackReader::new(at);
        at = match reader.token().ok()? {
            Token::Map(_) => message_pack_member(at, step.name.as_str())?,
            Token::Array(count) => {
                let number = step.number.filter(|number| *number < count as usize)?;
                for _ in 0..number {
                    reader.skip_value().ok()?;
                }
                &at[reader.skip_value().ok()?]
            }
            _ => return None,
        };
    }
    let token = MsgpackReader::new(at).token().ok()?;
    match token {
        Token::Nil | Token::Reserved => None,
        Token::Bool(value) => Some(PropertyValue::Bool(value)),
        Token::Str(text) => {
            std::str::from_utf8(text).ok().map(|text| PropertyValue::Text(Cow::Borrowed(text)))
        }
        Token::Int(_) | Token::Float(_) | Token::Float32(_) => {
            // NaN and infinities are no numbers, and nothing else either.
            let number = token.number_text().map(|text| PropertyValue::Number(Cow::Owned(text)));
            number.or(Some(PropertyValue::Other))
        }
        Token::Other | Token::Array(_) | Token::Map(_) => Some(PropertyValue::Other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of<'a>(raw: &'a [u8], pointer: &str) -> Option<PropertyValue<'a>> {
        PropertyReader::new(raw).get(&JsonPointer::parse(pointer).expect("a pointer"))
    }

    fn shown(raw: &[u8], pointer: &str) -> String {
        match of(raw, pointer) {
            None => "missing".to_owned(),
            Some(PropertyValue::Text(text)) => format!("text {text}"),
            Some(PropertyValue::Number(text)) => format!("number {text}"),
            Some(PropertyValue::Bool(value)) => format!("bool {value}"),
            Some(PropertyValue::Other) => "other".to_owned(),
        }
    }

    const CASES: &[(&str, &str)] = &[
        ("/plan", "text free"),
        ("/esc", "text a\"\u{fc}\n"),
        ("/n", "number 7.5"),
        ("/big", "number 12345678901234567890"),
        ("/yes", "bool true"),
        ("/no", "bool false"),
        ("/null", "missing"),
        ("/list/1/a", "number 2"),
        ("/list/0", "number 1"),
        ("/list/2", "missing"),
        ("/list/-", "missing"),
        ("/list/01", "missing"),
        ("/list", "other"),
        ("/deep", "other"),
        ("/deep/x~1y/~0", "text z"),
        ("/deep/0", "text zero"),
        ("/plan/x", "missing"),
        ("/absent", "missing"),
        ("", "other"),
    ];

    fn properties() -> serde_json::Value {
        serde_json::json!({
            "plan": "free", "esc": "a\"\u{fc}\n", "n": 7.5, "big": 12_345_678_901_234_567_890_u64,
            "yes": true, "no": false, "null": null, "list": [1, {"a": 2}],
            "deep": {"x/y": {"~": "z"}, "0": "zero"},
        })
    }

    #[test]
    fn json_and_message_pack_read_the_same() {
        let event = serde_json::json!({"metric": "m", "value": 2, "properties": properties()});
        let json = event.to_string().into_bytes();
        let packed = rmp_serde::to_vec(&event).expect("packs");
        let record = serde_json::json!({"key": {"properties": {"plan": "key"}}, "value": event});
        let record = record.to_string().into_bytes();
        for (pointer, expected) in CASES {
            for raw in [&json, &packed, &record] {
                assert_eq!(shown(raw, pointer), *expected, "{pointer}");
            }
        }
    }

    #[test]
    fn names_read_as_the_gateway_reads_them() {
        let escaped = br#" {"metric":"m","pr\u006fperties" : {"pl\u0061n":"x"} } "#;
        assert_eq!(shown(escaped, "/plan"), "text x");
        let record = br#"{"v\u0061lue":{"properties":{"plan":"x"}},"key":1}"#;
        assert_eq!(shown(record, "/plan"), "text x");
        let twice = br#"{"properties":{"a":1,"b":{"c":1},"a":2,"b":{"d":3}}}"#;
        assert_eq!(
            ["/a", "/b/c", "/b/d"].map(|at| shown(twice, at)),
            ["number 2", "missing", "number 3"]
        );
        let packed = b"\x81\xaaproperties\x82\xa1a\x01\xa1a\x02";
        assert_eq!(shown(packed, "/a"), "number 2");
        assert_eq!(shown(br#"{"properties":"whole"}"#, ""), "text whole");
        assert_eq!(shown(br#"{"properties":null}"#, ""), "missing");
        assert_eq!(shown(br#"{"value":5}"#, "/a"), "missing");
    }

    #[test]
    fn numbers_have_one_text() {
        for (number, expected) in [
            ("7", Some("7")),
            ("7.50", Some("7.5")),
            ("1e3", Some("1000")),
            ("-0", Some("0")),
            ("12345678901234567890", Some("12345678901234567890")),
            ("-12345678901234567890", Some("-12345678901234567890")),
            ("1e300", None),
            ("x", None),
        ] {
            let value = PropertyValue::Number(number.into());
            assert_eq!(value.text().as_deref(), expected, "{number}");
        }
        let nan = rmp_serde::to_vec(&std::collections::BTreeMap::from([(
            "properties",
            std::collections::BTreeMap::from([("n", f64::NAN)]),
        )]));
        assert_eq!(shown(&nan.expect("packs"), "/n"), "other");
    }

    #[test]
    fn what_cannot_be_read_is_missing() {
        for raw in [
            &b""[..],
            b" ",
            b"{",
            b"[]",
            b"{\"properties\":",
            b"{\"properties\":{\"a\":}}",
            b"{\"properties\":{\"a\":nul}}",
            b"{\"properties\":{\"a\":\"\\ud800\"}}",
            b"{\"properties\":{\"a\":\"\xff\"}}",
            b"\x81\xaaproperties",
            b"\xdf\xff\xff\xff\xff",
            b"\x81\xaaproperties\x81\xa1a\xc1",
        ] {
            assert_eq!(of(raw, "/a"), None, "{raw:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(
            start in prop_oneof![
                Just(&b"{\"properties\":{\"a\":"[..]), Just(&b"\x81\xaaproperties\x81\xa1a"[..]),
                Just(&b""[..]),
            ],
            noise in proptest::collection::vec(any::<u8>(), 0..60),
            pointer in "(/[a0-2]){0,3}",
        ) {
            let _ = of(&[start, &noise].concat(), &pointer);
        }
    }
}

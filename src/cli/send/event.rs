//! Normalises one JSON value to an event on one line, with an id.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::times::{InputTime, TimeParser};

/// Members of an event that `send` may have to change, as slices of its text.
#[derive(Debug, Default)]
struct EventFacts<'a> {
    fields: usize,
    id: Option<&'a str>,
    timestamp: Option<&'a str>,
}

impl<'de> Visitor<'de> for EventFacts<'de> {
    type Value = Self;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event, which is a JSON object")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((name, value)) = map.next_entry::<MemberName<'de>, &'de RawValue>()? {
            self.fields += 1;
            match &*name.0 {
                "id" => self.id = Some(value.get()),
                "timestamp" => self.timestamp = Some(value.get()),
                _ => {}
            }
        }
        Ok(self)
    }
}

#[derive(serde::Deserialize)]
struct MemberName<'a>(#[serde(borrow)] Cow<'a, str>);

/// Writes the event with an id on one line. Returns whether it got the id `made_up`.
///
/// # Errors
/// A code and a message if it is no JSON object or its time is ambiguous. All other checks are
/// left to the server.
pub(super) fn one_line(
    value: &[u8],
    made_up: &str,
    times: &mut TimeParser,
    out: &mut Vec<u8>,
) -> Result<bool, (&'static str, String)> {
    let unreadable = |why: String| ("event_unreadable", why);
    let text = std::str::from_utf8(value).map_err(|_| unreadable("not UTF-8".to_owned()))?.trim();
    if !text.starts_with('{') {
        return Err(unreadable("not a JSON object".to_owned()));
    }
    // Only the members that matter are located; edits keep all other bytes as they were.
    let mut reader = serde_json::Deserializer::from_str(text);
    let seen =
        reader.deserialize_map(EventFacts::default()).and_then(|seen| reader.end().map(|()| seen));
    let seen = seen.map_err(|error| unreadable(format!("not a readable event: {error}")))?;
    let place = |part: &str| {
        let from = part.as_ptr() as usize - text.as_ptr() as usize;
        from..from + part.len()
    };
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let id = match seen.id {
        None => {
            let comma = if seen.fields > 0 { "," } else { "" };
            edits.push((1..1, format!("\"id\":\"{made_up}\"{comma}")));
            true
        }
        // The server treats null as no id.
        Some("null") => {
            edits.extend(seen.id.map(|id| (place(id), format!("\"{made_up}\""))));
            true
        }
        Some(_) => false,
    };
    if let Some(raw) =
        seen.timestamp.filter(|raw| raw.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
    {
        match times.number(raw).map_err(|why| ("timestamp_invalid", why))? {
            InputTime::Verbatim => {}
            InputTime::Millis(millis) => edits.push((place(raw), millis.to_string())),
        }
    }
    edits.sort_by_key(|(range, _)| range.start);
    let mut from = 0;
    for (range, with) in edits {
        push_line(out, &text[from..range.start]);
        out.extend_from_slice(with.as_bytes());
        from = range.end;
    }
    push_line(out, &text[from..]);
    Ok(id)
}

/// Replaces line breaks by spaces: valid JSON has them between tokens only.
fn push_line(out: &mut Vec<u8>, text: &str) {
    let from = out.len();
    out.extend_from_slice(text.as_bytes());
    out[from..]
        .iter_mut()
        .filter(|byte| matches!(byte, b'\n' | b'\r'))
        .for_each(|byte| *byte = b' ');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: &str) -> (String, bool) {
        let mut out = Vec::new();
        let made_up = one_line(value.as_bytes(), "x", &mut TimeParser::default(), &mut out)
            .expect("an event");
        (String::from_utf8(out).expect("text"), made_up)
    }

    #[test]
    fn an_event_without_an_id_is_given_one() {
        assert_eq!(
            line(" {\"metric\":\"m\"} "),
            ("{\"id\":\"x\",\"metric\":\"m\"}".to_owned(), true)
        );
        assert_eq!(
            line("{\"metric\":\"m\",\"id\":null}"),
            ("{\"metric\":\"m\",\"id\":\"x\"}".to_owned(), true)
        );
        assert_eq!(line("{\"\\u0069d\":\"7\"}"), ("{\"\\u0069d\":\"7\"}".to_owned(), false));
        assert_eq!(line("{}"), ("{\"id\":\"x\"}".to_owned(), true));
        assert_eq!(line("{\"a\":\n\r\n1}"), ("{\"id\":\"x\",\"a\":   1}".to_owned(), true));
    }

    #[test]
    fn seconds_become_milliseconds_and_everything_else_is_left_to_the_server() {
        assert_eq!(
            line("{\"timestamp\": 1767225600 ,\"id\":\"a\"}").0,
            "{\"timestamp\": 1767225600000 ,\"id\":\"a\"}"
        );
        for text in [
            "{\"id\":\"a\",\"timestamp\":1767225600123}",
            "{\"id\":\"a\",\"timestamp\":\"1767225600\"}",
            "{\"id\":\"a\",\"timestamp\":null,\"tags\":[1e400]}",
            "{\"id\":7,\"id\":8}",
        ] {
            assert_eq!(line(text), (text.to_owned(), false));
        }
    }

    #[test]
    fn what_is_no_object_is_refused_here() {
        for (text, word) in [
            ("7", "object"),
            ("[{}]", "object"),
            ("{\"a\":1,}", "trailing comma"),
            ("{} {}", "trailing"),
        ] {
            let (code, why) =
                one_line(text.as_bytes(), "x", &mut TimeParser::default(), &mut Vec::new())
                    .expect_err(text);
            assert!(code == "event_unreadable" && why.contains(word), "{text}: {why}");
        }
        assert!(
            one_line(b"{\"a\":\"\xff\"}", "x", &mut TimeParser::default(), &mut Vec::new())
                .is_err()
        );
    }
}

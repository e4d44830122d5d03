//! Parser of the text messages that a client sends on a WebSocket.

use std::ops::Range;

use serde::de::{Deserializer, MapAccess, Visitor};

use super::super::error::ApiError;
use crate::model::json_scan::{self, JsonMember, JsonMembers, ScanError};

/// A parsed client message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientMessage {
    /// Events to append and acknowledge.
    Events {
        /// Number that the acknowledgement repeats.
        seq: u64,
        /// Range of the events array in the message.
        events: Range<usize>,
    },
    /// A query whose answer is sent whenever it changes.
    Subscribe {
        /// The client's name for the subscription.
        name: String,
        /// Parameters as sent; `None` if they are not an object of strings.
        query: Option<Vec<(String, String)>>,
    },
    /// Ends the subscription of this name.
    Unsubscribe(String),
}

/// A message that is invalid.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MessageError {
    /// The `seq` of the events that it carries, if that can be read.
    pub(super) seq: Option<u64>,
    /// What is wrong with it.
    pub(super) error: ApiError,
}

/// The members that messages may have, each at most once.
#[derive(Default)]
struct MessageMembers {
    seq: Option<Range<usize>>,
    events: Option<Range<usize>>,
    subscribe: Option<Range<usize>>,
    query: Option<Range<usize>>,
    unsubscribe: Option<Range<usize>>,
}

impl MessageMembers {
    fn member_mut(&mut self, name: &[u8]) -> Option<&mut Option<Range<usize>>> {
        match name {
            b"\"seq\"" => Some(&mut self.seq),
            b"\"events\"" => Some(&mut self.events),
            b"\"subscribe\"" => Some(&mut self.subscribe),
            b"\"query\"" => Some(&mut self.query),
            b"\"unsubscribe\"" => Some(&mut self.unsubscribe),
            _ => None,
        }
    }

    /// Records the range of each member, up to the first syntax error.
    fn fill(&mut self, text: &[u8]) -> Result<(), String> {
        let start = json_scan::skip_space(text, 0);
        if text.get(start) != Some(&b'{') {
            return Err("a message is an object".to_owned());
        }
        let broken = |broken: ScanError| format!("broken JSON: {}", broken.describe(text));
        let (mut wrong, mut numbers) = (None, 0);
        for member in JsonMembers::of(text, start) {
            let JsonMember { name, value } = member.map_err(broken)?;
            let shown = || {
                String::from_utf8_lossy(&text[name.clone()])
                    .escape_debug()
                    .take(80)
                    .collect::<String>()
            };
            match self.member_mut(&text[name.clone()]) {
                None => {
                    wrong = wrong.or_else(|| Some(format!("no message has a member {}", shown())))
                }
                Some(place) if place.is_some() => {
                    wrong = wrong.or_else(|| Some(format!("{} is there twice", shown())))
                }
                Some(place) => *place = Some(value),
            }
            numbers += usize::from(&text[name] == b"\"seq\"");
        }
        if numbers > 1 {
            // With two numbers, it is unknown which of them the client waits for.
            self.seq = None;
        }
        // Checked last: `seq` is recorded by then, and names the batch to refuse.
        json_scan::whole_value(text, start).map_err(broken)?;
        wrong.map_or(Ok(()), Err)
    }
}

/// Parses a text message.
///
/// # Errors
/// What is wrong with it, with the `seq` to refuse if one is readable.
pub(super) fn read(text: &[u8]) -> Result<ClientMessage, MessageError> {
    let mut parts = MessageMembers::default();
    let filled = parts.fill(text);
    let seq = parts.seq.clone().and_then(|seq| serde_json::from_slice(&text[seq]).ok());
    let unread = |seq, message: &str| MessageError { seq, error: ApiError::unreadable(message) };
    if let Err(why) = filled {
        return Err(unread(seq, &why));
    }
    let name = |name: Range<usize>| {
        serde_json::from_slice::<String>(&text[name])
            .map_err(|_| unread(None, "the name of a subscription is a string"))
    };
    match parts {
        MessageMembers {
            seq: Some(_),
            events: Some(events),
            subscribe: None,
            query: None,
            unsubscribe: None,
        } => match seq {
            Some(seq) => Ok(ClientMessage::Events { seq, events }),
            None => Err(unread(None, "seq is a whole number from 0 to 2^64-1")),
        },
        MessageMembers {
            seq: None,
            events: None,
            subscribe: Some(subscribe),
            query,
            unsubscribe: None,
        } => {
            let query = query.map_or(Some(Vec::new()), |query| strings(&text[query]));
            Ok(ClientMessage::Subscribe { name: name(subscribe)?, query })
        }
        MessageMembers {
            seq: None,
            events: None,
            subscribe: None,
            query: None,
            unsubscribe: Some(gone),
        } => Ok(ClientMessage::Unsubscribe(name(gone)?)),
        _ => {
            let message = "a message has seq and events, or subscribe and query, or unsubscribe";
            Err(unread(seq.filter(|_| parts.events.is_some()), message))
        }
    }
}

struct Strings;

impl<'de> Visitor<'de> for Strings {
    type Value = Vec<(String, String)>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of strings")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

/// The pairs of an object of strings, duplicates included: the query decides what those mean.
fn strings(raw: &[u8]) -> Option<Vec<(String, String)>> {
    serde_json::Deserializer::from_slice(raw).deserialize_map(Strings).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_by_their_members() {
        let events = br#" {"seq": 7, "events": [{"metric":"m"}]} "#;
        assert_eq!(read(events), Ok(ClientMessage::Events { seq: 7, events: 22..38 }));
        let query = Some(vec![("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())]);
        let subscribe = br#"{"subscribe":"q","query":{"a":"1","a":"2"}}"#;
        assert_eq!(read(subscribe), Ok(ClientMessage::Subscribe { name: "q".to_owned(), query }));
        let subscribe = |query| Ok(ClientMessage::Subscribe { name: "q".to_owned(), query });
        assert_eq!(read(br#"{"subscribe":"q"}"#), subscribe(Some(vec![])));
        assert_eq!(read(br#"{"subscribe":"q","query":{"step":3600}}"#), subscribe(None));
        assert_eq!(read(br#"{"subscribe":"q","query":7}"#), subscribe(None));
        assert_eq!(read(br#"{"unsubscribe":"q"}"#), Ok(ClientMessage::Unsubscribe("q".to_owned())));
    }

    #[test]
    fn what_is_no_message_says_whose_events_it_held() {
        for (text, seq) in [
            ("", None),
            ("garbage", None),
            ("[]", None),
            (r#"{"seq":1}"#, None),
            (r#"{"events":[]}"#, None),
            (r#"{"seq":-1,"events":[]}"#, None),
            (r#"{"seq":1.5,"events":[]}"#, None),
            (r#"{"subscribe":7}"#, None),
            (r#"{"subscribe":"a","unsubscribe":"a"}"#, None),
            (r#"{"events":[,"seq":1}"#, None),
            (r#"{"seq":3,"events":[[["#, Some(3)),
            (r#"{"seq":3,"events":[{"metric":"m]}"#, Some(3)),
            (r#"{"seq":3,"events":[]}}"#, Some(3)),
            (r#"{"seq":3,"events":[],"subscribe":"q"}"#, Some(3)),
            (r#"{"seq":3,"events":[],"more":1}"#, Some(3)),
            (r#"{"seq":3,"seq":4,"events":[]}"#, None),
        ] {
            let unread = read(text.as_bytes()).unwrap_err();
            assert_eq!(unread.seq, seq, "{text}: {unread:?}");
        }
        let unread = read(b"{\"seq\":1,\n \"events\":[{]}").unwrap_err();
        assert!(unread.error.message.contains("line 2 column 13"), "{unread:?}");
    }
}

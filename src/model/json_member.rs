//! Finds a member of an object by its name, without stepping through the others.
//!
//! A search for the bytes of the name leads to where it may be. What lies before decides whether it
//! is a name: how many brackets are open, and whether a string is. As in simdjson (Langdale and
//! Lemire, "Parsing gigabytes of JSON per second", VLDB Journal 2019) blocks of bytes are looked at
//! together: a block without brackets and escapes changes nothing but the latter, and that only if
//! its quotes are odd in number.

use std::ops::Range;

use memchr::memmem;

use super::json_scan::{self, JsonMembers};

/// Bytes that are looked at together.
const BLOCK_BYTES: usize = 64;

/// The name of a member that is looked for.
#[derive(Debug, Clone)]
pub struct MemberName {
    name: String,
    /// Finds the name in its quotes.
    quoted: memmem::Finder<'static>,
    /// Whether JSON has short escapes for any of its characters.
    has_escapes: bool,
}

impl PartialEq for MemberName {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for MemberName {}

impl MemberName {
    /// The name, without quotes and escapes.
    pub fn new(name: String) -> Self {
        let has_escapes = name.contains(|c: char| matches!(c, '"' | '\\' | '/') || c < ' ');
        let quoted = memmem::Finder::new(&format!("\"{name}\"")).into_owned();
        Self { name, quoted, has_escapes }
    }

    /// The name, without quotes and escapes.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The value of the last member that has this name, without white space around it, of the object
    /// that `text` begins with. `None` if there is none, or its value does not end.
    pub fn last_value(&self, text: &[u8]) -> Option<Range<usize>> {
        if self.has_escapes || has_unicode_escape(text) {
            return self.last_value_of_members(text);
        }
        let (mut found, mut at, mut place) = (None, 1, Place { depth: 1, ..Place::default() });
        while let Some(next) = self.quoted.find(text.get(at..)?).map(|next| at + next) {
            place.pass(&text[at..next]);
            if place.depth == 0 {
                break;
            }
            let is_name = place.depth == 1 && !place.in_string;
            found = is_name.then(|| self.value_start(text, next)).flatten().or(found);
            // Its closing quote may open the next: names of punctuation look like what is between
            // two strings.
            place.pass(&text[next..=next]);
            at = next + 1;
        }
        json_scan::value(text, found?)
    }

    /// Where the value begins, if the string that begins at `at` is a name.
    fn value_start(&self, text: &[u8], at: usize) -> Option<usize> {
        let colon = json_scan::skip_space(text, at + self.name.len() + 2);
        (text.get(colon) == Some(&b':')).then(|| json_scan::skip_space(text, colon + 1))
    }

    fn last_value_of_members(&self, text: &[u8]) -> Option<Range<usize>> {
        let members = JsonMembers::of(text, 0).map_while(Result::ok);
        members
            .filter(|member| is_name(&text[member.name.clone()], &self.name))
            .last()
            .map(|member| member.value)
    }
}

/// Whether a quoted name of JSON is this one.
pub fn is_name(quoted: &[u8], name: &str) -> bool {
    match quoted.strip_prefix(b"\"").and_then(|quoted| quoted.strip_suffix(b"\"")) {
        // An escape is longer than what it stands for.
        Some(plain) if plain.len() < name.len() => false,
        Some(plain) if !json_scan::has_escape(plain) => plain == name.as_bytes(),
        _ => serde_json::from_slice::<String>(quoted).is_ok_and(|unescaped| unescaped == name),
    }
}

/// What is open at a place of a text.
#[derive(Debug, Default)]
struct Place {
    /// Brackets that are open. Stays 0 once the first is closed.
    depth: usize,
    in_string: bool,
    /// Whether the byte before was a backslash that escapes this one.
    escaped: bool,
}

impl Place {
    fn pass(&mut self, text: &[u8]) {
        let (blocks, rest) = text.as_chunks::<BLOCK_BYTES>();
        blocks.iter().for_each(|block| self.pass_block(block));
        self.pass_block(rest);
    }

    fn pass_block(&mut self, block: &[u8]) {
        // Without a branch per byte, the compiler vectorises this.
        let (special, quotes) = block.iter().fold((false, 0_u8), |(special, quotes), byte| {
            (special | is_special(*byte), quotes ^ u8::from(*byte == b'"'))
        });
        match special || self.escaped {
            true => block.iter().for_each(|byte| self.pass_byte(*byte)),
            false => self.in_string ^= quotes == 1,
        }
    }

    fn pass_byte(&mut self, byte: u8) {
        match byte {
            _ if self.escaped || self.depth == 0 => self.escaped = false,
            b'\\' => self.escaped = self.in_string,
            b'"' => self.in_string = !self.in_string,
            b'{' | b'[' if !self.in_string => self.depth += 1,
            b'}' | b']' if !self.in_string => self.depth -= 1,
            _ => {}
        }
    }
}

/// Whether a name could be spelled in another way, if it holds nothing that has a short escape.
fn has_unicode_escape(text: &[u8]) -> bool {
    // Most texts hold no backslash, which is found to be so in half the time.
    let first = memchr::memchr(b'\\', text);
    first.is_some_and(|first| memmem::find(&text[first..], b"\\u").is_some())
}

/// Whether it is a bracket or a backslash, or the bar, which shares their bits.
fn is_special(byte: u8) -> bool {
    matches!(byte & 0xdf, b'['..=b']')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found<'a>(text: &'a str, name: &str) -> Option<&'a str> {
        MemberName::new(name.to_owned()).last_value(text.as_bytes()).map(|value| &text[value])
    }

    #[test]
    fn only_names_of_the_object_itself_are_found() {
        let long = "x".repeat(3 * BLOCK_BYTES);
        for (text, expected) in [
            (r#"{"a":1}"#, Some("1")),
            (r#"{ "a" : [1, 2] , "b":2}"#, Some("[1, 2]")),
            (r#"{"a":1,"b":"a","a":2}"#, Some("2")),
            (r#"{"b":{"a":1}}"#, None),
            (r#"{"b":[{"a":1}],"c":"\"a\":1","d":"}","a":3}"#, Some("3")),
            (r#"{"b":1},"a":2}"#, None),
            (r#"{"b":"\\","a":"\\"}"#, Some(r#""\\""#)),
            (r#"{"b":"a"}"#, None),
            (r#"{"a":"x"#, None),
            (r#"{"\u0061":1}"#, Some("1")),
            ("{}", None),
            ("{", None),
        ] {
            assert_eq!(found(text, "a"), expected, "{text}");
            let behind = text.replacen('{', &format!(r#"{{"{long}":"{long}","#), 1);
            assert_eq!(found(&behind, "a"), expected, "{behind}");
        }
        assert_eq!(found(r#"{"x":"y",",":1}"#, ","), Some("1"));
        assert_eq!(found(r#"{"a\/b":1}"#, "a/b"), Some("1"));
    }

    /// Texts of JSON, with names that occur in it elsewhere too.
    fn json() -> impl Strategy<Value = String> {
        let string = || {
            "[a,:\"\\\\{}\\[\\]|/ü x]{0,6}|x{60,70}"
                .prop_map(|text| serde_json::Value::from(text).to_string())
        };
        let name = prop_oneof![
            4 => prop_oneof![Just(r#""a""#), Just(r#"",""#), Just(r#""a\/""#), Just(r#""\u0061""#)]
                .prop_map(str::to_owned),
            1 => string(),
        ];
        let leaf = prop_oneof![string(), Just("-1.5e3".to_owned()), Just("null".to_owned())];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            let member = (name.clone(), " ?", inner.clone())
                .prop_map(|(name, space, value)| format!("{name}{space}:{space}{value}"));
            prop_oneof![
                proptest::collection::vec(inner, 0..4)
                    .prop_map(|values| format!("[{}]", values.join(","))),
                proptest::collection::vec(member, 0..6)
                    .prop_map(|members| format!("{{{}}}", members.join(","))),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_finds_what_stepping_through_the_members_finds(
            members in proptest::collection::vec(json(), 1..4),
            name in prop_oneof![Just("a"), Just(","), Just("a/"), Just("x"), Just("")],
            behind in prop_oneof![Just(""), Just(",\"a\":1}"), Just(" ")],
        ) {
            let members: Vec<_> = members.iter().map(|value| format!("\"a\":{value}")).collect();
            let text = format!("{{{}}}{behind}", members.join(","));
            let stepped = MemberName::new(name.to_owned()).last_value_of_members(text.as_bytes());
            prop_assert_eq!(found(&text, name), stepped.map(|value| &text[value]));
        }

        #[test]
        fn no_bytes_make_it_fail(
            noise in proptest::collection::vec(
                prop_oneof![
                    Just(b'"'), Just(b'\\'), Just(b'a'), Just(b'['), Just(b']'),
                    Just(b'{'), Just(b'}'), Just(b','), Just(b':'), any::<u8>(),
                ],
                0..150,
            ),
        ) {
            let text = [b"{".as_slice(), &noise].concat();
            let value = MemberName::new("a".to_owned()).last_value(&text);
            prop_assert!(value.is_none_or(|value| value.end <= text.len()));
        }
    }
}

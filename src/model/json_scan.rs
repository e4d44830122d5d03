//! Finds where the parts of a JSON text begin and end, without validating them: whatever
//! lies between two commas is one event, however broken, so that it alone is refused. Only
//! strings and brackets must be closed. Works on bytes, so that invalid UTF-8 affects only
//! the event that contains it.

use std::ops::Range;

/// Nesting depth up to which the kinds of brackets are matched. Deeper values are refused by the
/// parser that reads them.
const COMPARED_DEPTH: usize = 128;
/// Bytes of a string that are scanned at a time.
const CHUNK_BYTES: usize = 16;

/// A text whose parts cannot be separated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanError {
    /// Byte offset of the error.
    pub at: usize,
    /// Byte offset of the part that was being scanned.
    pub part_start: usize,
    /// What is wrong there, for people.
    pub why: &'static str,
}

impl ScanError {
    /// The error with line and column.
    pub fn describe(&self, text: &[u8]) -> String {
        let (line, column) = position(text, self.at);
        if self.part_start == self.at {
            return format!("{} at line {line} column {column}", self.why);
        }
        let (from_line, from_column) = position(text, self.part_start);
        format!(
            "{} at line {line} column {column}, in what begins at line {from_line} column \
             {from_column}",
            self.why
        )
    }
}

/// Line and column of a byte offset, from 1; columns count characters.
pub fn position(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let is_first_byte = |b: &&u8| **b & 0xc0 != 0x80;
    (
        1 + before.iter().filter(|b| **b == b'\n').count(),
        1 + before[line_start..].iter().filter(is_first_byte).count(),
    )
}

/// Stack of open brackets, one bit each: set for a brace, clear for a square bracket.
#[derive(Default)]
struct Nesting {
    depth: usize,
    braces: u128,
}

impl Nesting {
    fn open(&mut self, bracket: u8) {
        if self.depth < COMPARED_DEPTH {
            let bit = 1 << self.depth;
            self.braces = if bracket == b'{' { self.braces | bit } else { self.braces & !bit };
        }
        self.depth += 1;
    }

    /// Pops a bracket; false if none is open or it is of the other kind.
    fn close(&mut self, bracket: u8) -> bool {
        let Some(depth) = self.depth.checked_sub(1) else { return false };
        self.depth = depth;
        depth >= COMPARED_DEPTH || (self.braces >> depth & 1 == 1) == (bracket == b'}')
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// The first offset from `at` on that holds no white space.
pub fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|b| is_space(*b)) {
        at += 1;
    }
    at
}

fn trimmed(text: &[u8], from: usize, mut to: usize) -> Range<usize> {
    while to > from && is_space(text[to - 1]) {
        to -= 1;
    }
    from..to
}

/// Marks the bytes of a word that are this one: the lowest mark is right, those above may not be.
fn marks(word: u64, byte: u8) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let zeros = word ^ (ONES * u64::from(byte));
    zeros.wrapping_sub(ONES) & !zeros & (ONES << 7)
}

/// The first quote or backslash from `at` on. Most strings are short: eight bytes are looked at
/// together, because byte by byte the end of each would be a branch that cannot be predicted.
fn quote_or_backslash(text: &[u8], mut at: usize) -> Option<usize> {
    while let Some(word) = text.get(at..)?.first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        let found = marks(word, b'"') | marks(word, b'\\');
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    text[at..].iter().position(|b| matches!(b, b'"' | b'\\')).map(|found| at + found)
}

/// Whether a string has an escape.
pub fn has_escape(string: &[u8]) -> bool {
    let (words, rest) = string.as_chunks::<8>();
    words.iter().any(|word| marks(u64::from_le_bytes(*word), b'\\') != 0) || rest.contains(&b'\\')
}

/// The closing quote of the string whose opening quote is at `from`.
fn string_end(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from + 1;
    loop {
        // Without a branch per byte, the compiler vectorises this test.
        while let Some(chunk) = text.get(at..at + CHUNK_BYTES)
            && !chunk.iter().fold(false, |found, b| found | (*b == b'"') | (*b == b'\\'))
        {
            at += CHUNK_BYTES;
        }
        at = quote_or_backslash(text, at)?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// The end of the value that begins at `from`: the comma or bracket after it, or, if `alone`, the
/// offset after its own last bracket.
fn value_end(text: &[u8], from: usize, alone: bool) -> Result<usize, ScanError> {
    let endless = ScanError { at: text.len(), part_start: from, why: "the text ends" };
    let (mut nesting, mut at) = (Nesting::default(), from);
    loop {
        match *text.get(at).ok_or(endless)? {
            b'"' => {
                at = string_end(text, at).ok_or(ScanError {
                    at,
                    part_start: from,
                    why: "a string does not end",
                })?
            }
            bracket @ (b'{' | b'[') => nesting.open(bracket),
            b',' | b'}' | b']' if nesting.depth == 0 => return Ok(at),
            bracket @ (b'}' | b']') => {
                if !nesting.close(bracket) {
                    return Err(ScanError {
                        at,
                        part_start: from,
                        why: "a bracket of another kind is open",
                    });
                }
                if alone && nesting.depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// The value that begins at `from` and ends before a comma or a bracket that closes what is around
/// it. `None` if there is neither.
pub fn value(text: &[u8], from: usize) -> Option<Range<usize>> {
    value_end(text, from, false).ok().map(|end| trimmed(text, from, end))
}

/// The object or array that begins at `from` and is followed by white space only. Fails if the
/// value is not closed, or something follows it.
pub fn whole_value(text: &[u8], from: usize) -> Result<Range<usize>, ScanError> {
    let end = value_end(text, from, true)?;
    match skip_space(text, end) {
        at if at < text.len() => {
            Err(ScanError { at, part_start: at, why: "something stands behind the end" })
        }
        _ => Ok(from..end),
    }
}

/// The elements of the array that begins at `from`, and where it ends. Stops after `max` + 1, which
/// is enough to see that there are too many. Nothing between two commas is an empty element. Fails
/// if the elements cannot be separated.
pub fn elements(
    text: &[u8],
    from: usize,
    max: usize,
) -> Result<(Vec<Range<usize>>, usize), ScanError> {
    let mut found = Vec::new();
    let mut at = skip_space(text, from + 1);
    if text.get(at) == Some(&b']') {
        return Ok((found, at + 1));
    }
    loop {
        let end = value_end(text, at, false)?;
        found.push(trimmed(text, at, end));
        match text[end] {
            b',' if found.len() > max => return Ok((found, end)),
            b',' => at = skip_space(text, end + 1),
            b']' => return Ok((found, end + 1)),
            _ => return Err(ScanError { at: end, part_start: at, why: "a brace closes none" }),
        }
    }
}

/// The element of the array that begins at `from` with this number. `None` if there are fewer, or
/// they cannot be separated.
pub fn element(text: &[u8], from: usize, number: usize) -> Option<Range<usize>> {
    let mut at = skip_space(text, from + 1);
    if text.get(at) == Some(&b']') {
        return None;
    }
    for _ in 0..number {
        let end = value_end(text, at, false).ok()?;
        if text[end] != b',' {
            return None;
        }
        at = skip_space(text, end + 1);
    }
    value_end(text, at, false).ok().map(|end| trimmed(text, at, end))
}

/// A member of an object, as ranges of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonMember {
    /// Its name, including the quotes.
    pub name: Range<usize>,
    /// Its value, without white space around it.
    pub value: Range<usize>,
}

/// Iterates over the members of an object, up to its end or the first syntax error.
pub struct JsonMembers<'a> {
    text: &'a [u8],
    at: usize,
    ended: bool,
}

impl<'a> JsonMembers<'a> {
    /// The members of the object that begins at `from`.
    pub fn of(text: &'a [u8], from: usize) -> Self {
        let at = skip_space(text, from + 1);
        Self { text, at, ended: text.get(from) != Some(&b'{') || text.get(at) == Some(&b'}') }
    }

    /// The first name, with its quotes, that is wanted, and where its value begins. That value is
    /// not scanned, so that whoever reads a part of it scans it once.
    pub fn find_start(
        mut self,
        is_wanted: impl Fn(&[u8], usize) -> bool,
    ) -> Option<(Range<usize>, usize)> {
        while !self.ended {
            let (name, start) = self.name().ok()?;
            if is_wanted(&self.text[name.clone()], start) {
                return Some((name, start));
            }
            self.value(name.start, start).ok()?;
        }
        None
    }

    /// The next name, and where its value begins.
    fn name(&self) -> Result<(Range<usize>, usize), ScanError> {
        let (text, begun) = (self.text, self.at);
        let broken = |at, why| ScanError { at, part_start: begun, why };
        if text.get(begun) != Some(&b'"') {
            return Err(broken(begun, "a name in quotes is expected"));
        }
        let name_end = string_end(text, begun).ok_or(broken(begun, "a string does not end"))? + 1;
        let colon = skip_space(text, name_end);
        if text.get(colon) != Some(&b':') {
            return Err(broken(colon, "a colon is expected"));
        }
        Ok((begun..name_end, skip_space(text, colon + 1)))
    }

    /// The value that begins at `start`. Goes on to the next name, or to the end.
    fn value(&mut self, begun: usize, start: usize) -> Result<Range<usize>, ScanError> {
        let end = value_end(self.text, start, false)?;
        match self.text[end] {
            b',' => self.at = skip_space(self.text, end + 1),
            b'}' => (self.at, self.ended) = (end, true),
            _ => {
                let why = "a bracket closes none";
                return Err(ScanError { at: end, part_start: begun, why });
            }
        }
        Ok(trimmed(self.text, start, end))
    }

    /// The elements of the array that begins at `start`, and the end of the array. Stops as
    /// [`elements`] does, and does not go on then.
    fn array(
        &mut self,
        begun: usize,
        start: usize,
        max: usize,
    ) -> Result<Vec<Range<usize>>, ScanError> {
        let (found, end) = elements(self.text, start, max)?;
        let at = skip_space(self.text, end);
        match self.text.get(at) {
            _ if found.len() > max => self.ended = true,
            Some(b',') => self.at = skip_space(self.text, at + 1),
            Some(b'}') => (self.at, self.ended) = (at, true),
            _ => {
                let why = "a comma or a brace is expected";
                return Err(ScanError { at, part_start: begun, why });
            }
        }
        Ok(found)
    }

    fn member(&mut self) -> Result<JsonMember, ScanError> {
        let (name, start) = self.name()?;
        let value = self.value(name.start, start)?;
        Ok(JsonMember { name, value })
    }
}

impl Iterator for JsonMembers<'_> {
    type Item = Result<JsonMember, ScanError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let member = self.member();
        self.ended |= member.is_err();
        Some(member)
    }
}

/// An object that holds a list, and what else was asked for of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectWithList {
    /// The values of the members asked for, in that order; `None` for those that are missing.
    pub members: Vec<Option<Range<usize>>>,
    /// The elements of the list, at most one more than the limit; `None` if there is no such array.
    pub elements: Option<Vec<Range<usize>>>,
}

/// Scans the object that begins at `from` and is followed by white space only: the elements of its
/// member `list`, and the members `names`. Each byte is scanned once. If there are more than `max`
/// elements, what follows them is not looked at. Fails if the parts cannot be separated, or one of
/// them is there twice.
pub fn object_with_list(
    text: &[u8],
    from: usize,
    list: &str,
    names: &[&str],
    max: usize,
) -> Result<ObjectWithList, ScanError> {
    let mut found = ObjectWithList { members: vec![None; names.len()], elements: None };
    let mut members = JsonMembers::of(text, from);
    while !members.ended {
        let (name, start) = members.name()?;
        let plain = &text[name.start + 1..name.end - 1];
        let twice =
            ScanError { at: name.start, part_start: name.start, why: "a name is there twice" };
        if plain == list.as_bytes() && text.get(start) == Some(&b'[') {
            let elements = members.array(name.start, start, max)?;
            let too_many = elements.len() > max;
            if found.elements.replace(elements).is_some() {
                return Err(twice);
            }
            if too_many {
                return Ok(found);
            }
            continue;
        }
        let value = members.value(name.start, start)?;
        if let Some(at) = names.iter().position(|wanted| plain == wanted.as_bytes())
            && found.members[at].replace(value).is_some()
        {
            return Err(twice);
        }
    }
    match skip_space(text, members.at + 1) {
        at if at < text.len() => {
            Err(ScanError { at, part_start: at, why: "something stands behind the end" })
        }
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_and_members_are_found_in_one_pass() {
        let scan = |text: &str, max| {
            object_with_list(text.as_bytes(), 0, "batch", &["a", "key"], max).map(|found| {
                let shown = |range: Range<usize>| text[range].to_owned();
                let elements: Option<Vec<_>> =
                    found.elements.map(|elements| elements.into_iter().map(shown).collect());
                let members: Vec<_> =
                    found.members.into_iter().map(|member| member.map(shown)).collect();
                (elements, members)
            })
        };
        let text = r#"{"x":{"key":1},"key" : "k" , "batch":[ {"a":[1]} , 2 ] ,"a":[3]} "#;
        assert_eq!(
            scan(text, 9),
            Ok((
                Some(vec![r#"{"a":[1]}"#.to_owned(), "2".to_owned()]),
                vec![Some("[3]".to_owned()), Some(r#""k""#.to_owned())]
            ))
        );
        assert_eq!(scan("{}", 9), Ok((None, vec![None, None])));
        assert_eq!(scan(r#"{"batch":{}}"#, 9), Ok((None, vec![None, None])));
        assert_eq!(scan(r#"{"batch":[]}"#, 9), Ok((Some(vec![]), vec![None, None])));
        let cut = scan(r#"{"batch":[1,2,3,4"#, 1).expect("too many is seen at once");
        assert_eq!(cut.0.map(|elements| elements.len()), Some(2));
        for broken in [
            r#"{"batch":[1]"#,
            r#"{"batch":[1] "a":1}"#,
            r#"{"batch":[1]}]"#,
            r#"{"batch":[1],"batch":[2]}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":1"#,
            r#"{"a":1]"#,
            "{",
        ] {
            assert!(scan(broken, 9).is_err(), "{broken}");
        }
    }

    fn split(text: &str) -> Result<Vec<&str>, ScanError> {
        elements(text.as_bytes(), 0, 100)
            .map(|(found, _)| found.into_iter().map(|range| &text[range]).collect())
    }

    #[test]
    fn what_stands_between_commas_is_one_element_however_broken() {
        for (text, expected) in [
            ("[]", vec![]),
            ("[ ]", vec![]),
            ("[1]", vec!["1"]),
            ("[ 1 ,\n 2 ]", vec!["1", "2"]),
            (r#"[{"a":NaN},{"b":1}]"#, vec![r#"{"a":NaN}"#, r#"{"b":1}"#]),
            (r#"[{"a":1,},{'b':1}]"#, vec![r#"{"a":1,}"#, "{'b':1}"]),
            (r#"["],[","\"]","\\",1]"#, vec![r#""],[""#, r#""\"]""#, r#""\\""#, "1"]),
            ("[1,,2,]", vec!["1", "", "2", ""]),
            ("[\"\u{0}\",\"\\ud800\"]", vec!["\"\u{0}\"", "\"\\ud800\""]),
        ] {
            assert_eq!(split(text), Ok(expected), "{text}");
        }
        let deep = format!("[1,{}{},2]", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(split(&deep).map(|found| found.len()), Ok(3));
    }

    #[test]
    fn brackets_and_strings_have_to_end() {
        for (text, at, why) in [
            ("[", 1, "ends"),
            ("[1,", 3, "ends"),
            (r#"[{"a":1]"#, 7, "another kind"),
            (r#"[{"a":1}}]"#, 8, "closes none"),
            (r#"[{"a":[}]"#, 7, "another kind"),
            ("[\"a]", 1, "does not end"),
            ("[\"a\\\"", 1, "does not end"),
            ("[\"a\\", 1, "does not end"),
        ] {
            let broken = split(text).unwrap_err();
            assert_eq!((broken.at, broken.why.contains(why)), (at, true), "{text}: {broken:?}");
        }
        assert_eq!(whole_value(b"{\"a\":1} ", 0), Ok(0..7));
        assert_eq!(whole_value(b"{} x", 0).map_err(|broken| broken.at), Err(3));
        assert_eq!(whole_value(b"{}}", 0).map_err(|broken| broken.at), Err(2));
    }

    #[test]
    fn members_are_told_up_to_where_an_object_is_broken() {
        let of = |text: &'static str| {
            let shown = |member: JsonMember| (&text[member.name], &text[member.value]);
            JsonMembers::of(text.as_bytes(), 0).map(|member| member.map(shown)).collect::<Vec<_>>()
        };
        assert_eq!(of("{}"), []);
        assert_eq!(of("7"), []);
        assert_eq!(
            of(r#"{ "a" : [1, 2] , "b":NaN}"#),
            [Ok((r#""a""#, "[1, 2]")), Ok((r#""b""#, "NaN"))]
        );
        let start = |name: &str| {
            let text = br#"{ "a" : [1, 2] , "b": {"c": 1}, broken"#;
            let found = JsonMembers::of(text, 0).find_start(|found, _| found == name.as_bytes());
            found.map(|(_, start)| start)
        };
        assert_eq!([r#""a""#, r#""b""#, r#""c""#].map(start), [Some(8), Some(22), None]);
        assert_eq!(value(br#"{"b": {"c": 1} , 2"#, 6), Some(6..14));
        assert_eq!(value(br#"{"c": 1"#, 6), None);
        let broken = of(r#"{"id":"x",metric:1}"#);
        assert!(
            broken.len() == 2 && broken[0] == Ok((r#""id""#, r#""x""#)) && broken[1].is_err(),
            "{broken:?}"
        );
        for text in [r#"{"a" 1}"#, r#"{"a":1]"#, r#"{"a":"#, "{", r#"{"a"#, r#"{"a":1,}"#] {
            assert!(of(text).last().is_some_and(Result::is_err), "{text}");
        }
    }

    #[test]
    fn a_place_is_a_line_and_a_column_of_characters() {
        let text = "[\n{\"ä\": 1}\n]]".as_bytes();
        assert_eq!(
            whole_value(text, 0).unwrap_err().describe(text),
            "something stands behind the end at line 3 column 2"
        );
        let text = "[\n {\"ä\":1]".as_bytes();
        assert!(
            whole_value(text, 0)
                .unwrap_err()
                .describe(text)
                .contains("line 2 column 8, in what begins at line 1 column 1")
        );
    }

    proptest! {
        #[test]
        fn elements_are_those_of_the_json_parser(
            values in proptest::collection::vec(".{0,40}", 0..8),
            spaces in "[ \n\t]{0,3}",
        ) {
            let array: Vec<_> = values
                .iter()
                .map(|text| serde_json::json!({"k": text, text: [text]}).to_string())
                .collect();
            let text = format!("[{spaces}{}{spaces}]", array.join(&format!("{spaces},{spaces}")));
            let found = split(&text).unwrap();
            prop_assert_eq!(found, array.iter().map(String::as_str).collect::<Vec<_>>());
            for (number, expected) in array.iter().enumerate() {
                let found = element(text.as_bytes(), 0, number).map(|range| &text[range]);
                prop_assert_eq!(found, Some(expected.as_str()));
            }
            prop_assert_eq!(element(text.as_bytes(), 0, array.len()), None);
        }

        #[test]
        fn quotes_and_backslashes_are_found_where_they_are(
            bytes in proptest::collection::vec(
                prop_oneof![
                    4 => any::<u8>(),
                    1 => prop_oneof![Just(b'"'), Just(b'\\'), Just(b'#'), Just(b']'), Just(0xa2)],
                ],
                0..60,
            ),
            at in 0_usize..70,
        ) {
            let from = bytes.get(at..).unwrap_or_default();
            let expected = from.iter().position(|b| matches!(b, b'"' | b'\\')).map(|n| at + n);
            prop_assert_eq!(quote_or_backslash(&bytes, at), expected);
            prop_assert_eq!(has_escape(from), from.contains(&b'\\'));
        }

        #[test]
        fn no_bytes_are_out_of_its_bounds(noise in proptest::collection::vec(
            prop_oneof![
                Just(b'"'), Just(b'\\'), Just(b'['), Just(b']'),
                Just(b'{'), Just(b'}'), Just(b','), Just(b':'), any::<u8>(),
            ],
            0..60,
        )) {
            let text = [b"[".as_slice(), &noise].concat();
            if let Ok((found, end)) = elements(&text, 0, 3) {
                let inside = found.iter().all(|range| range.end <= end);
                prop_assert!(end <= text.len() && found.len() <= 4 && inside);
            }
            for number in 0..4 {
                prop_assert!(element(&text, 0, number).is_none_or(|e| e.end <= text.len()));
            }
            let text = [b"{".as_slice(), &noise].concat();
            for last in 0..3 {
                let of_length = |name: &[u8], _| name.len() == last + 2;
                let found = JsonMembers::of(&text, 0).find_start(of_length);
                prop_assert!(found.is_none_or(|(_, at)| at <= text.len()));
                prop_assert!(value(&text, last).is_none_or(|value| value.end <= text.len()));
            }
            for member in JsonMembers::of(&text, 0).flatten() {
                let JsonMember { name, value } = member;
                prop_assert!(name.end <= value.start && value.end <= text.len());
            }
            let _ = whole_value(&text, 0).map_err(|broken| broken.describe(&text));
        }
    }
}

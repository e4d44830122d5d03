//! Splits bytes into records: lines of NDJSON, rows of CSV, values of JSON.
//!
//! A record knows its byte offset and its line, for ids and messages. Consumed bytes are hashed on
//! the way, because the hash is how a position recognises its input. Memory is bounded: a record
//! longer than [`MAX_RECORD`] is refused.

use std::ops::Range;

/// Longest record in bytes; no server accepts more (`accept.max_event_bytes` is at most 1 MiB).
pub(super) const MAX_RECORD: usize = 1 << 20;

/// How an input is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputFormat {
    /// One JSON object per line.
    Ndjson,
    /// JSON values in an array, or one after the other.
    Values,
    /// CSV with this delimiter.
    Csv(u8),
}

/// Why a record cannot be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordFlaw {
    /// Longer than [`MAX_RECORD`]; only its beginning is kept.
    TooLong,
    /// A quoted CSV cell that is not closed.
    OpenQuote,
    /// A JSON value that is not closed; nothing after it can be separated.
    Unfinished,
    /// An array that is not closed; its elements were read, but more may be missing.
    OpenArray,
}

impl RecordFlaw {
    /// The reason for people.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "longer than 1 MiB, which no server takes; only its beginning is kept",
            Self::OpenQuote => "a quoted cell begins here and does not end",
            Self::Unfinished => {
                "the JSON that begins here does not end: what stands behind it cannot be told apart"
            }
            Self::OpenArray => "the array that begins here does not end: the file is cut off",
        }
    }
}

/// A record, as a range of the splitter's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InputRecord {
    pub(super) range: Range<usize>,
    /// Byte offset in the input at which it begins.
    pub(super) offset: u64,
    /// Line of the input at which it begins, from 1.
    pub(super) line: u64,
    /// Whether its end was seen; the last line of an input may lack a line feed.
    pub(super) ended: bool,
    pub(super) flaw: Option<RecordFlaw>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CellState {
    Begin,
    Plain,
    Quoted,
    QuoteInQuoted,
}

/// Scanner state within a record that has not ended yet.
#[derive(Debug, Clone, Copy)]
struct ScanState {
    at: usize,
    cell: CellState,
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl ScanState {
    fn from(at: usize) -> Self {
        Self { at, cell: CellState::Begin, depth: 0, quoted: false, escaped: false }
    }
}

/// Splits one input incrementally.
pub(super) struct Splitter {
    format: InputFormat,
    held: Vec<u8>,
    /// Start of the unconsumed bytes in `held`.
    start: usize,
    scan: ScanState,
    offset: u64,
    line: u64,
    hasher: blake3::Hasher,
    /// Start of the bytes in `held` that are not hashed yet.
    hashed: usize,
    complete: bool,
    /// Skips to the end of a line that was too long.
    skip_line: bool,
    /// Skips everything: later records cannot be separated.
    skip_all: bool,
    arrays: usize,
    /// Offset and line of the outermost open array.
    array_at: (u64, u64),
}

impl Splitter {
    /// Starts with the bytes in `held`, skipping a UTF-8 byte order mark.
    pub(super) fn new(format: InputFormat, held: Vec<u8>) -> Self {
        let mut new = Self {
            format,
            held,
            start: 0,
            scan: ScanState::from(0),
            offset: 0,
            line: 1,
            hasher: blake3::Hasher::new(),
            hashed: 0,
            complete: false,
            skip_line: false,
            skip_all: false,
            arrays: 0,
            array_at: (0, 1),
        };
        if new.held.starts_with(BOM) {
            new.consume(BOM.len());
        }
        new
    }

    /// Appends input. Ranges of earlier records become invalid.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        // Drops consumed bytes here and not in `next`, where records still point into the buffer.
        self.hasher.update(&self.held[self.hashed..self.start]);
        self.held.drain(..self.start);
        self.scan.at -= self.start;
        (self.start, self.hashed) = (0, 0);
        self.held.extend_from_slice(bytes);
    }

    /// Marks the end of the input.
    pub(super) fn finish(&mut self) {
        self.complete = true;
    }

    pub(super) fn bytes(&self, record: &InputRecord) -> &[u8] {
        &self.held[record.range.clone()]
    }

    /// The offset up to which records were taken, and the hash of everything before.
    pub(super) fn cursor(&self) -> (u64, String) {
        let mut hasher = self.hasher.clone();
        hasher.update(&self.held[self.hashed..self.start]);
        (self.offset, hasher.finalize().to_hex().to_string())
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn format(&self) -> InputFormat {
        self.format
    }

    pub(super) fn line_number(&self) -> u64 {
        self.line
    }

    /// Bytes of a record that has begun but not ended.
    pub(super) fn pending(&self) -> &[u8] {
        &self.held[self.start..]
    }

    /// The next complete record, or after [`Self::finish`] also the last one.
    /// Blank records are skipped.
    pub(super) fn next(&mut self) -> Option<InputRecord> {
        loop {
            if self.skip_all {
                self.consume(self.held.len() - self.start);
                return None;
            }
            if self.skip_line {
                let end = newline(&self.held[self.start..]);
                self.consume(end.map_or(self.held.len() - self.start, |at| at + 1));
                self.skip_line = end.is_none();
                if self.skip_line {
                    return None;
                }
            }
            let record = match self.format {
                InputFormat::Ndjson => self.line(),
                InputFormat::Csv(delimiter) => self.row(delimiter),
                InputFormat::Values => self.value(),
            }?;
            if record.flaw.is_some() || !blank(self.bytes(&record)) {
                return Some(record);
            }
        }
    }

    /// Advances by `n` bytes, counting lines.
    fn consume(&mut self, n: usize) {
        self.line +=
            memchr::memchr_iter(b'\n', &self.held[self.start..self.start + n]).count() as u64;
        self.offset += n as u64;
        self.start += n;
        self.scan = ScanState::from(self.start);
    }

    /// Takes a record of `length` bytes and consumes `with_end` bytes.
    fn take(&mut self, length: usize, with_end: usize, flaw: Option<RecordFlaw>) -> InputRecord {
        let range = self.start..self.start + length;
        let record = InputRecord {
            range,
            offset: self.offset,
            line: self.line,
            ended: with_end > length,
            flaw,
        };
        self.consume(with_end);
        record
    }

    fn line(&mut self) -> Option<InputRecord> {
        let held = self.held.len() - self.start;
        match newline(&self.held[self.scan.at..]) {
            Some(at) => {
                let length = self.scan.at + at - self.start;
                Some(if length > MAX_RECORD {
                    self.too_long(length)
                } else {
                    self.take(length, length + 1, None)
                })
            }
            None if held > MAX_RECORD => {
                self.skip_line = true;
                Some(self.take(MAX_RECORD, MAX_RECORD, Some(RecordFlaw::TooLong)))
            }
            None if self.complete && held > 0 => Some(self.take(held, held, None)),
            None => {
                self.scan.at = self.held.len();
                None
            }
        }
    }

    /// Takes a complete line that is too long.
    fn too_long(&mut self, length: usize) -> InputRecord {
        let mut record = self.take(MAX_RECORD, length + 1, Some(RecordFlaw::TooLong));
        record.ended = true;
        record
    }

    fn row(&mut self, delimiter: u8) -> Option<InputRecord> {
        while self.scan.at < self.held.len() {
            let byte = self.held[self.scan.at];
            let cell = match (self.scan.cell, byte) {
                (CellState::Quoted, b'"') => CellState::QuoteInQuoted,
                (CellState::Quoted, _) => CellState::Quoted,
                // Either ends a row; the blank row within a CR LF is skipped.
                (_, b'\n' | b'\r') => {
                    let length = self.scan.at - self.start;
                    return Some(self.take(length, length + 1, None));
                }
                (CellState::Begin | CellState::QuoteInQuoted, b'"') => CellState::Quoted,
                (_, byte) if byte == delimiter => CellState::Begin,
                _ => CellState::Plain,
            };
            self.scan.cell = cell;
            self.scan.at += 1;
            if self.scan.at - self.start > MAX_RECORD {
                return Some(self.bad_row());
            }
        }
        if !self.complete || self.start == self.held.len() {
            return None;
        }
        if self.scan.cell == CellState::Quoted {
            return Some(self.bad_row());
        }
        let length = self.held.len() - self.start;
        Some(self.take(length, length, None))
    }

    /// Refuses the first line of a row that does not end; splitting resumes at the next line.
    fn bad_row(&mut self) -> InputRecord {
        let open = self.scan.cell == CellState::Quoted;
        let flaw = if open { RecordFlaw::OpenQuote } else { RecordFlaw::TooLong };
        match newline(&self.held[self.start..self.scan.at]) {
            Some(length) => self.take(length, length + 1, Some(flaw)),
            None => {
                self.skip_line = true;
                let length = (self.scan.at - self.start).min(MAX_RECORD);
                self.take(length, length, Some(flaw))
            }
        }
    }

    fn value(&mut self) -> Option<InputRecord> {
        if self.scan.at == self.start && self.scan.depth == 0 && !self.pass_punctuation() {
            return None;
        }
        while self.scan.at < self.held.len() {
            let byte = self.held[self.scan.at];
            let scan = &mut self.scan;
            scan.at += 1;
            match byte {
                _ if scan.escaped => scan.escaped = false,
                b'\\' if scan.quoted => scan.escaped = true,
                b'"' => scan.quoted = !scan.quoted,
                _ if scan.quoted => {}
                b'{' => scan.depth += 1,
                // At depth 0, brackets belong to the surrounding array, which is not a record.
                b'[' if scan.depth > 0 => scan.depth += 1,
                b'}' | b']' if scan.depth > 1 => scan.depth -= 1,
                b'}' if scan.depth == 1 => {
                    let length = scan.at - self.start;
                    return Some(self.take_value(length));
                }
                b',' | b']' | b' ' | b'\n' | b'\r' | b'\t' if scan.depth == 0 => {
                    let length = scan.at - 1 - self.start;
                    return Some(self.take_value(length));
                }
                _ => {}
            }
            // Without the end of this value, brackets no longer tell where the next one begins.
            if self.scan.at - self.start > MAX_RECORD {
                self.skip_all = true;
                return Some(self.take(MAX_RECORD, MAX_RECORD, Some(RecordFlaw::Unfinished)));
            }
        }
        if !self.complete {
            return None;
        }
        let length = self.held.len() - self.start;
        let flaw = (self.scan.depth > 0 || self.scan.quoted).then_some(RecordFlaw::Unfinished);
        self.skip_all |= flaw.is_some();
        Some(self.take(length, length, flaw))
    }

    fn take_value(&mut self, length: usize) -> InputRecord {
        let mut record = self.take(length, length, None);
        record.ended = true;
        record
    }

    /// Skips punctuation between values. Returns false if there is no value yet.
    fn pass_punctuation(&mut self) -> bool {
        while let Some(byte) = self.held.get(self.start).copied() {
            match byte {
                b'[' => {
                    if self.arrays == 0 {
                        self.array_at = (self.offset, self.line);
                    }
                    self.arrays += 1;
                }
                b']' => self.arrays = self.arrays.saturating_sub(1),
                b',' | b' ' | b'\n' | b'\r' | b'\t' => {}
                _ => return true,
            }
            self.consume(1);
        }
        false
    }

    /// An empty record for an array that is still open at the end of the input, at the place
    /// where the array begins.
    pub(super) fn take_open_array(&mut self) -> Option<InputRecord> {
        let open = self.complete && self.arrays > 0 && !self.skip_all;
        self.arrays = 0;
        let (offset, line) = self.array_at;
        let range = self.start..self.start;
        open.then_some(InputRecord {
            range,
            offset,
            line,
            ended: false,
            flaw: Some(RecordFlaw::OpenArray),
        })
    }
}

pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

fn newline(bytes: &[u8]) -> Option<usize> {
    memchr::memchr(b'\n', bytes)
}

fn blank(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Splits an input that arrives in chunks of `part` bytes; yields text, offset, line and flaw.
    fn split(
        format: InputFormat,
        input: &[u8],
        part: usize,
    ) -> Vec<(String, u64, u64, Option<RecordFlaw>)> {
        let mut splitter = Splitter::new(format, Vec::new());
        let mut found = Vec::new();
        let mut drain = |splitter: &mut Splitter| {
            while let Some(record) = splitter.next() {
                let text = String::from_utf8_lossy(splitter.bytes(&record)).into_owned();
                found.push((text, record.offset, record.line, record.flaw));
            }
        };
        for part in input.chunks(part) {
            splitter.push(part);
            drain(&mut splitter);
        }
        splitter.finish();
        drain(&mut splitter);
        assert_eq!(
            splitter.cursor(),
            (input.len() as u64, blake3::hash(input).to_hex().to_string()),
            "all is consumed and hashed"
        );
        found
    }

    fn named(found: &[(String, u64, u64, Option<RecordFlaw>)]) -> Vec<(&str, u64, u64)> {
        found.iter().map(|(text, offset, line, _)| (text.as_str(), *offset, *line)).collect()
    }

    #[test]
    fn lines_know_where_they_stand() {
        let input = b"{1}\n\n  \r\n{2}\r\n{3}";
        for part in 1..=input.len() {
            let found = split(InputFormat::Ndjson, input, part);
            assert_eq!(named(&found), [("{1}", 0, 1), ("{2}\r", 9, 4), ("{3}", 14, 5)]);
        }
    }

    #[test]
    fn a_byte_order_mark_belongs_to_no_record() {
        let mut splitter = Splitter::new(InputFormat::Ndjson, b"\xef\xbb\xbf{1}\n".to_vec());
        let record = splitter.next().expect("a record");
        assert_eq!((splitter.bytes(&record), record.offset, record.line), (&b"{1}"[..], 3, 1));
    }

    #[test]
    fn rows_may_hold_lines_and_delimiters() {
        let input = b"a;b\n1;\"x\ny;\"\"z\"\"\"\r\n\n2;5\"\n3;4";
        for part in 1..=input.len() {
            let found = split(InputFormat::Csv(b';'), input, part);
            let expected =
                [("a;b", 0, 1), ("1;\"x\ny;\"\"z\"\"\"", 4, 2), ("2;5\"", 20, 5), ("3;4", 25, 6)];
            assert_eq!(named(&found), expected);
        }
    }

    #[test]
    fn a_quote_without_an_end_costs_one_row() {
        for part in [1, 7, 64] {
            let found = split(InputFormat::Csv(b','), b"v\n1\n\"2\n3\n4\n", part);
            assert_eq!(found[2], ("\"2".to_owned(), 4, 3, Some(RecordFlaw::OpenQuote)));
            assert_eq!(named(&found)[3..], [("3", 7, 4), ("4", 9, 5)]);
        }
    }

    #[test]
    fn values_of_an_array_or_one_after_the_other_are_found() {
        let array = b"[\n  {\"a\": \"]}\\\"\",\n   \"b\": [{}]},\n  {\"c\":1} , 7\n]\n";
        for part in 1..=array.len() {
            let found = split(InputFormat::Values, array, part);
            let expected = [
                ("{\"a\": \"]}\\\"\",\n   \"b\": [{}]}", 4, 2),
                ("{\"c\":1}", 35, 4),
                ("7", 45, 4),
            ];
            assert_eq!(named(&found), expected);
        }
        assert_eq!(
            named(&split(InputFormat::Values, b"{\n}\n{\n}{}", 3)),
            [("{\n}", 0, 1), ("{\n}", 4, 3), ("{}", 7, 4)]
        );
    }

    #[test]
    fn json_without_an_end_is_said_to_have_none() {
        let found = split(InputFormat::Values, b"[{\"a\":1},{\"b\":", 4);
        assert_eq!((found.len(), found[1].3), (2, Some(RecordFlaw::Unfinished)));
        let mut splitter = Splitter::new(InputFormat::Values, b"[{},\n{}".to_vec());
        splitter.finish();
        assert_eq!(std::iter::from_fn(|| splitter.next()).count(), 2);
        let open = splitter.take_open_array().expect("a mistake");
        assert_eq!(
            (open.flaw, open.line, splitter.take_open_array()),
            (Some(RecordFlaw::OpenArray), 1, None)
        );
    }

    #[test]
    fn memory_is_bounded_and_the_next_line_is_found() {
        for format in [InputFormat::Ndjson, InputFormat::Csv(b',')] {
            let mut splitter = Splitter::new(format, Vec::new());
            let mut found = Vec::new();
            for _ in 0..200 {
                splitter.push(&[b'x'; 64 * 1024]);
                found.extend(std::iter::from_fn(|| splitter.next()));
                assert!(
                    splitter.held.len() <= MAX_RECORD + 2 * 64 * 1024,
                    "{}",
                    splitter.held.len()
                );
            }
            splitter.push(b"\ny\n");
            let last = std::iter::from_fn(|| splitter.next()).last().expect("the next line");
            assert_eq!(
                (found.len(), found[0].flaw, last.line),
                (1, Some(RecordFlaw::TooLong), 2),
                "{format:?}"
            );
            assert_eq!(splitter.bytes(&last), b"y");
        }
    }

    proptest! {
        #[test]
        fn rows_are_those_of_the_csv_crate(input in "[a\",;\r\n]{0,40}", part in 1usize..9) {
            let found = split(InputFormat::Csv(b','), input.as_bytes(), part);
            prop_assume!(found.iter().all(|(_, _, _, flaw)| flaw.is_none()));
            let mut reader = csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .from_reader(input.as_bytes());
            let theirs: Vec<u64> =
                reader.records().map(|row| row.unwrap().position().unwrap().byte()).collect();
            // The csv crate may start a row at the line feed after a carriage return.
            let is_break = |b: &&u8| matches!(**b, b'\r' | b'\n');
            let starts = |at: u64| {
                at + input.as_bytes()[at as usize..].iter().take_while(is_break).count() as u64
            };
            let ours: Vec<u64> = found.iter().map(|row| row.1).collect();
            prop_assert_eq!(ours, theirs.into_iter().map(starts).collect::<Vec<_>>());
        }
    }
}

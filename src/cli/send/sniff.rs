//! Detects the format of an input by its beginning. Formats that `send` cannot read
//! are refused by name.

use super::split::{BOM, InputFormat};
use super::table::delimiter_of;

/// Magic numbers of formats that are not text, with a name and advice.
const FOREIGN: &[(&[u8], &str, &str)] = &[
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "unpack it, or save it as CSV"),
    (b"BZh", "packed with bzip2", "unpack it on the way: `bzcat FILE | rollmill send -`"),
    (b"\xfd7zXZ\0", "packed with xz", "unpack it on the way: `xzcat FILE | rollmill send -`"),
    (b"7z\xbc\xaf\x27\x1c", "packed with 7-Zip", "unpack it first"),
    (
        b"\x04\x22\x4d\x18",
        "packed with lz4",
        "unpack it on the way: `lz4cat FILE | rollmill send -`",
    ),
    (b"PAR1", "a Parquet file", "write it as CSV or NDJSON first, as with DuckDB"),
    (b"Obj\x01", "an Avro file", "write it as NDJSON first"),
    (b"SQLite format 3\0", "an SQLite database", "export it as CSV first"),
    (b"\xff\xfe", "UTF-16", "convert it: `iconv -f UTF-16 -t UTF-8 FILE | rollmill send -`"),
    (b"\xfe\xff", "UTF-16", "convert it: `iconv -f UTF-16 -t UTF-8 FILE | rollmill send -`"),
];

/// Lines that must look alike for an input to be taken for CSV and not for NDJSON with a bad line.
const LOOKED_AT: usize = 5;

/// What the command line says about the format.
#[derive(Debug, Clone, Copy)]
pub(super) struct FormatHint {
    /// A metric or its column is given, so the input must be CSV.
    pub(super) csv: bool,
    pub(super) delimiter: Option<u8>,
}

/// The format of an input that begins with `head`; `None` if more bytes are needed.
///
/// # Errors
/// Which other format it is, and what to do about it.
pub(super) fn format_of(
    head: &[u8],
    complete: bool,
    wanted: FormatHint,
) -> Result<Option<InputFormat>, String> {
    if let Some((_, what, way)) = FOREIGN.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Err(format!("it is {what}: {way}"));
    }
    let text = head.strip_prefix(BOM).unwrap_or(head).trim_ascii_start();
    let line_end = memchr::memchr2(b'\n', b'\r', text);
    let undecided = !complete && head.len() < super::split::MAX_RECORD;
    let Some(first) = text.first().copied() else {
        return Ok(complete.then_some(if wanted.csv {
            InputFormat::Csv(b',')
        } else {
            InputFormat::Ndjson
        }));
    };
    // Sixteen bytes are enough to see the longest magic number.
    if undecided && line_end.is_none() && (wanted.csv || head.len() < 16) {
        return Ok(None);
    }
    let line = &text[..line_end.unwrap_or(text.len())];
    match (first, wanted.csv) {
        (b'{' | b'[', true) => {
            Err("it begins like JSON, and --metric and --metric-column are for CSV".to_owned())
        }
        (_, true) => {
            Ok(Some(InputFormat::Csv(wanted.delimiter.unwrap_or_else(|| delimiter_of(line)))))
        }
        (b'[', false) => Ok(Some(InputFormat::Values)),
        (b'{', false) if line.trim_ascii() == b"{" => Ok(Some(InputFormat::Values)),
        // First bytes of MessagePack maps and arrays; invalid UTF-8 confirms it.
        (0x80..=0xa0 | 0xdc..=0xdf, false) if std::str::from_utf8(line).is_err() => {
            Err("it looks like MessagePack, which POST /v1/events takes: see docs/reference/api.md"
                .to_owned())
        }
        (_, false) => match csv_header(text) {
            Some(columns) => Err(format!(
                "it looks like CSV with the columns {columns}: name the metric with --metric \
                 NAME, or the column that holds it with --metric-column COLUMN"
            )),
            None => Ok(Some(InputFormat::Ndjson)),
        },
    }
}

/// The column names, if these lines are CSV: none begins like JSON, and all have as many
/// delimiters as the first.
fn csv_header(text: &[u8]) -> Option<String> {
    let mut lines = text
        .split(|byte| *byte == b'\n')
        .take(LOOKED_AT)
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty());
    let header = lines.next()?;
    let delimiter = delimiter_of(header);
    let count = |line: &[u8]| memchr::memchr_iter(delimiter, line).count();
    // Only the second line is compared, because a later one may be incomplete.
    let second = lines.next()?;
    let alike = count(header) > 0 && count(second) == count(header) && !second.starts_with(b"{");
    let columns = String::from_utf8_lossy(header);
    alike.then(|| {
        columns
            .split(char::from(delimiter))
            .map(|name| name.trim_matches('"'))
            .collect::<Vec<_>>()
            .join(", ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(head: &[u8], csv: bool) -> Result<Option<InputFormat>, String> {
        format_of(head, true, FormatHint { csv, delimiter: None })
    }

    #[test]
    fn json_is_told_by_its_beginning() {
        for (head, format) in [
            (&b"{\"metric\":\"m\"}\n"[..], InputFormat::Ndjson),
            (b"\xef\xbb\xbf{\"metric\":\"m\"}", InputFormat::Ndjson),
            (b"\xef\xbb\xbf [{\"metric\":\"m\"}]", InputFormat::Values),
            (b"{\n  \"metric\": \"m\"\n}", InputFormat::Values),
            (b"started, version 1\n{\"metric\":\"m\"}\n", InputFormat::Ndjson),
            (b"hello\n", InputFormat::Ndjson),
            (b"", InputFormat::Ndjson),
        ] {
            assert_eq!(told(head, false), Ok(Some(format)), "{}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn csv_needs_a_metric_and_a_metric_needs_csv() {
        assert_eq!(told(b"a;b\n1;2\n", true), Ok(Some(InputFormat::Csv(b';'))));
        assert_eq!(
            format_of(b"a;b\n", true, FormatHint { csv: true, delimiter: Some(b',') }),
            Ok(Some(InputFormat::Csv(b',')))
        );
        let why = told(b"time,\"value\"\n1,2\n", false).expect_err("CSV");
        assert!(why.contains("columns time, value") && why.contains("--metric-column"), "{why}");
        assert!(told(b"{\"metric\":\"m\"}", true).expect_err("JSON").contains("for CSV"));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        for (head, name) in [
            (&b"PK\x03\x04xxxx"[..], "ZIP"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"PAR1....", "Parquet"),
            (b"\x81\xa6metric\xa1m\xff", "MessagePack"),
        ] {
            assert!(told(head, false).expect_err(name).contains(name));
        }
    }

    #[test]
    fn a_beginning_that_tells_nothing_is_waited_for() {
        let early = |head: &[u8], csv| format_of(head, false, FormatHint { csv, delimiter: None });
        assert_eq!(
            (early(b"", false), early(b" \n", false), early(b"{", false), early(b"a;b", true)),
            (Ok(None), Ok(None), Ok(None), Ok(None))
        );
        assert_eq!(early(b"{}\n", false), Ok(Some(InputFormat::Ndjson)));
    }
}

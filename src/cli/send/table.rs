//! Turns rows of CSV into events.

use super::times::{InputTime, TimeParser};

/// Why a row cannot be an event: a code for programs and a message.
type RowError = (&'static str, String);

/// The columns to use, by name as given on the command line.
#[derive(Debug, Default, Clone)]
pub(super) struct ColumnNames {
    pub(super) metric: Option<String>,
    pub(super) metric_column: Option<String>,
    pub(super) time: Option<String>,
    pub(super) value: Option<String>,
    pub(super) user: Option<String>,
    pub(super) id: Option<String>,
    /// Pairs of label and column name.
    pub(super) labels: Vec<(String, String)>,
    /// Whether values are written as 1.234,5.
    pub(super) decimal_comma: bool,
}

/// The resolved columns of one file.
#[derive(Debug)]
pub(super) struct ColumnMap {
    delimiter: u8,
    columns: usize,
    metric: Result<usize, String>,
    time: Option<usize>,
    value: Option<usize>,
    user: Option<usize>,
    id: Option<usize>,
    labels: Vec<(String, usize)>,
    decimal_comma: bool,
}

/// The unquoted cells of a row, in one buffer.
#[derive(Debug, Default)]
pub(super) struct RowCells {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl RowCells {
    /// Splits a record into cells and removes their quotes.
    pub(super) fn of(record: &[u8], delimiter: u8) -> Self {
        let mut cells = Self::default();
        let mut quoted = false;
        let mut begins = true;
        let mut rest = record.iter().copied().peekable();
        while let Some(byte) = rest.next() {
            match byte {
                b'"' if quoted && rest.peek() == Some(&b'"') => {
                    cells.bytes.push(b'"');
                    rest.next();
                }
                b'"' if quoted => quoted = false,
                b'"' if begins => quoted = true,
                byte if byte == delimiter && !quoted => cells.ends.push(cells.bytes.len()),
                byte => cells.bytes.push(byte),
            }
            begins = byte == delimiter && !quoted;
        }
        cells.ends.push(cells.bytes.len());
        cells
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, at: usize) -> &[u8] {
        let from = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[from..self.ends[at]]
    }

    /// The cell of a column; `None` if there is no such column or the cell is empty.
    fn cell(&self, at: Option<usize>) -> Result<Option<&str>, RowError> {
        let Some(at) = at else { return Ok(None) };
        let text = self.text(at).map_err(|why| ("row_invalid", why))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn text(&self, at: usize) -> Result<&str, String> {
        std::str::from_utf8(self.get(at)).map_err(|_| {
            "not UTF-8: convert the file, as with `iconv -f LATIN1 -t UTF-8`".to_owned()
        })
    }
}

/// The most frequent delimiter in a header, outside of quotes; a comma if there is none.
pub(super) fn delimiter_of(header: &[u8]) -> u8 {
    let mut quoted = false;
    let mut counts = [0usize; 4];
    for byte in header {
        quoted ^= *byte == b'"';
        if let (false, Some(at)) =
            (quoted, DELIMITERS.iter().position(|delimiter| delimiter == byte))
        {
            counts[at] += 1;
        }
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    counts.iter().position(|count| *count == most).map_or(b',', |at| DELIMITERS[at])
}

/// Known delimiters; a tie goes to the earlier one.
pub(super) const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

impl ColumnMap {
    /// Resolves the columns by the header.
    ///
    /// # Errors
    /// Names a column that is missing or occurs twice.
    pub(super) fn new(header: &[u8], delimiter: u8, wanted: &ColumnNames) -> Result<Self, String> {
        let cells = RowCells::of(header, delimiter);
        let names: Vec<&str> =
            (0..cells.len()).map(|at| cells.text(at).map(str::trim)).collect::<Result<_, _>>()?;
        let column = |name: &String| {
            let mut found = (0..names.len()).filter(|at| names[*at] == name.trim());
            match (found.next(), found.next()) {
                (Some(at), None) => Ok(at),
                (Some(_), Some(_)) => Err(format!("there are two columns {name:?}")),
                (None, _) => {
                    Err(format!("there is no column {name:?}; there are {}", names.join(", ")))
                }
            }
        };
        let optional = |name: &Option<String>| name.as_ref().map(column).transpose();
        let labels = wanted.labels.iter().map(|(label, name)| Ok((label.clone(), column(name)?)));
        Ok(Self {
            delimiter,
            columns: names.len(),
            metric: match &wanted.metric_column {
                Some(name) => Ok(column(name)?),
                None => Err(wanted.metric.clone().unwrap_or_default()),
            },
            time: optional(&wanted.time)?,
            value: optional(&wanted.value)?,
            user: optional(&wanted.user)?,
            id: optional(&wanted.id)?,
            labels: labels.collect::<Result<_, String>>()?,
            decimal_comma: wanted.decimal_comma,
        })
    }

    /// Appends a row as an event on one line; a row without an id gets `made_up`.
    /// Returns whether it did.
    ///
    /// # Errors
    /// A code and a message, if the row cannot be an event.
    pub(super) fn event(
        &self,
        record: &[u8],
        made_up: &str,
        times: &mut TimeParser,
        out: &mut Vec<u8>,
    ) -> Result<bool, RowError> {
        let row = RowCells::of(record, self.delimiter);
        if row.len() != self.columns {
            return Err((
                "row_invalid",
                format!("the row has {} cells, the header {}", row.len(), self.columns),
            ));
        }
        let metric = match &self.metric {
            Err(metric) => metric.as_str(),
            Ok(at) => row
                .cell(Some(*at))?
                .ok_or_else(|| ("metric_invalid", "the cell of the metric is empty".to_owned()))?,
        };
        out.extend_from_slice(b"{\"metric\":");
        push_text(out, metric);
        if self.time.is_some() {
            out.extend_from_slice(b",\"timestamp\":");
            push_time(row.cell(self.time)?, times, out)?;
        }
        if self.value.is_some() {
            out.extend_from_slice(b",\"value\":");
            push_value(row.cell(self.value)?, self.decimal_comma, out)?;
        }
        out.extend_from_slice(b",\"labels\":{");
        self.push_labels(&row, out)?;
        out.push(b'}');
        if let Some(user) = row.cell(self.user)? {
            out.extend_from_slice(b",\"user\":");
            push_text(out, user);
        }
        let id = row.cell(self.id)?;
        out.extend_from_slice(b",\"id\":");
        push_text(out, id.unwrap_or(made_up));
        out.push(b'}');
        Ok(id.is_none())
    }

    /// Appends the members of `labels`; an empty cell is a missing label.
    fn push_labels(&self, row: &RowCells, out: &mut Vec<u8>) -> Result<(), RowError> {
        let mut separator = "";
        for (label, at) in &self.labels {
            if let Some(value) = row.cell(Some(*at))? {
                out.extend_from_slice(separator.as_bytes());
                push_text(out, label);
                out.push(b':');
                push_text(out, value);
                separator = ",";
            }
        }
        Ok(())
    }
}

/// Appends the time of a row as a JSON number or string.
fn push_time(
    cell: Option<&str>,
    times: &mut TimeParser,
    out: &mut Vec<u8>,
) -> Result<(), RowError> {
    // An empty cell is an error: the server would take the time of receipt instead.
    let Some(time) = cell.map(str::trim).filter(|time| !time.is_empty()) else {
        return Err(("timestamp_invalid", "the cell of the time is empty".to_owned()));
    };
    match times.cell(time).map_err(|why| ("timestamp_invalid", why))? {
        InputTime::Millis(millis) => out.extend_from_slice(millis.to_string().as_bytes()),
        InputTime::Verbatim if time.parse::<i64>().is_ok() => {
            out.extend_from_slice(time.as_bytes())
        }
        InputTime::Verbatim => push_text(out, time),
    }
    Ok(())
}

/// Appends the value of a row as a decimal string; an empty cell is null.
fn push_value(cell: Option<&str>, decimal_comma: bool, out: &mut Vec<u8>) -> Result<(), RowError> {
    match cell.map(str::trim).filter(|value| !value.is_empty()) {
        None => out.extend_from_slice(b"null"),
        Some(value) if decimal_comma => push_text(out, &value.replace('.', "").replace(',', ".")),
        Some(value) if value.contains(',') => {
            return Err((
                "value_invalid",
                format!("{value:?} has a comma: say --decimal-comma if 1.234,5 is a number here"),
            ));
        }
        // A string, because the text of a cell need not be a valid JSON number.
        Some(value) => push_text(out, value),
    }
    Ok(())
}

/// Appends a text as a JSON string.
fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[from..at]);
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
        from = at + 1;
    }
    out.extend_from_slice(&text.as_bytes()[from..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn columns() -> ColumnNames {
        ColumnNames {
            metric: Some("m".to_owned()),
            time: Some("time".to_owned()),
            value: Some("v".to_owned()),
            labels: vec![("origin".to_owned(), "from".to_owned())],
            ..ColumnNames::default()
        }
    }

    fn event(table: &ColumnMap, row: &str) -> Result<Value, (&'static str, String)> {
        let mut out = Vec::new();
        table.event(row.as_bytes(), "made-up", &mut TimeParser::default(), &mut out)?;
        Ok(serde_json::from_slice(&out).expect("JSON"))
    }

    #[test]
    fn a_row_is_an_event() {
        let table = ColumnMap::new(b"from,time,v,rest", b',', &columns()).expect("all columns");
        let got =
            event(&table, "\"a \"\"b\"\" \\ \u{1}\",2026-01-01T00:00:00Z, 5 ,").expect("an event");
        let labels = json!({"origin": "a \"b\" \\ \u{1}"});
        assert_eq!(
            got,
            json!({
                "metric": "m",
                "timestamp": "2026-01-01T00:00:00Z",
                "value": "5",
                "labels": labels,
                "id": "made-up",
            })
        );
        assert_eq!(event(&table, ",1767225600000,,").expect("an event")["value"], Value::Null);
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said_of_that_row() {
        let table = ColumnMap::new(b"from,time,v", b',', &columns()).expect("all columns");
        for (row, code, word) in [
            ("a,1767225600000", "row_invalid", "2 cells, the header 3"),
            ("a,,1", "timestamp_invalid", "empty"),
            ("a,2026-01-01 00:00:00,1", "timestamp_invalid", "--tz"),
            ("a,1767225600000,\"1,5\"", "value_invalid", "--decimal-comma"),
        ] {
            let (got, why) = event(&table, row).expect_err(row);
            assert!(got == code && why.contains(word), "{row}: {got} {why}");
        }
        let mut out = Vec::new();
        let bad = table
            .event(b"\xe4,1767225600000,1", "x", &mut TimeParser::default(), &mut out)
            .expect_err("Latin-1");
        assert!(bad.1.contains("not UTF-8"), "{bad:?}");
    }

    #[test]
    fn a_column_may_hold_the_metric_and_a_comma_may_be_a_point() {
        let wanted = ColumnNames {
            metric: None,
            metric_column: Some("what".to_owned()),
            decimal_comma: true,
            ..columns()
        };
        let table = ColumnMap::new(b"what;from;time;v", b';', &wanted).expect("all columns");
        let got = event(&table, "speed;a;1767225600;1.234,5").expect("an event");
        assert_eq!(
            (&got["metric"], &got["value"], &got["timestamp"]),
            (&json!("speed"), &json!("1234.5"), &json!(1_767_225_600_000i64))
        );
        assert_eq!(event(&table, ";a;1767225600;1").expect_err("no metric").0, "metric_invalid");
    }

    #[test]
    fn columns_have_to_be_there_once() {
        let why = ColumnMap::new(b"from,time", b',', &columns()).expect_err("no value");
        assert!(why.contains("no column \"v\"; there are from, time"), "{why}");
        assert!(
            ColumnMap::new(b"from,time,v,v", b',', &columns())
                .expect_err("which?")
                .contains("two columns \"v\"")
        );
    }

    #[test]
    fn delimiters_are_told_from_the_header() {
        let cases: [(&[u8], u8); 6] = [
            (b"a,b", b','),
            (b"a;b;c,d", b';'),
            (b"a\tb", b'\t'),
            (b"a|b", b'|'),
            (b"a", b','),
            (b"\"a,b,c\";d", b';'),
        ];
        for (header, delimiter) in cases {
            assert_eq!(delimiter_of(header), delimiter, "{}", String::from_utf8_lossy(header));
        }
    }

    proptest! {
        #[test]
        fn cells_are_those_of_the_csv_crate(input in "[a\",;]{1,20}") {
            let mut reader =
                csv::ReaderBuilder::new().has_headers(false).from_reader(input.as_bytes());
            let theirs = reader.records().next().unwrap().unwrap();
            let ours = RowCells::of(input.as_bytes(), b',');
            let ours: Vec<_> = (0..ours.len()).map(|at| ours.text(at).unwrap()).collect();
            prop_assert_eq!(ours, theirs.iter().collect::<Vec<_>>());
        }

        #[test]
        fn any_text_is_json(text in "\\PC*|[\u{0}-\u{1f}\"\\\\]*") {
            let mut out = Vec::new();
            push_text(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}

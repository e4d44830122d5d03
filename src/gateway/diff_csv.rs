//! Rows that a replay changes, as CSV (RFC 4180): one line per row. Pure.

use crate::api::replays::{DiffFigures, DiffRow};

const COLUMNS: [&str; 18] = [
    "time",
    "metric",
    "labels",
    "change",
    "count_before",
    "count_after",
    "value_count_before",
    "value_count_after",
    "sum_before",
    "sum_after",
    "min_before",
    "min_after",
    "max_before",
    "max_after",
    "distinct_before",
    "distinct_after",
    "distinct_equal",
    "quantiles_equal",
];

/// The rows as lines, with a header if it is the first part. Labels are one cell, as JSON.
///
/// # Errors
/// Writing to memory cannot fail, so a failure is a bug.
pub fn table(rows: &[DiffRow], header: bool) -> Result<String, csv::Error> {
    let mut writer =
        csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    if header {
        writer.write_record(COLUMNS)?;
    }
    for row in rows {
        let labels = serde_json::to_string(&row.labels).map_err(std::io::Error::other)?;
        let mut cells = vec![
            row.time.map(|time| time.to_string()).unwrap_or_default(),
            row.metric.clone(),
            labels,
            row.change.clone(),
        ];
        let figures: [fn(&DiffFigures) -> Option<String>; 6] = [
            |row| Some(row.count.to_string()),
            |row| Some(row.value_count.to_string()),
            |row| Some(row.sum.clone()),
            |row| row.min.clone(),
            |row| row.max.clone(),
            |row| Some(row.distinct.to_string()),
        ];
        for figure in figures {
            for side in [&row.before, &row.after] {
                cells.push(side.as_ref().and_then(figure).unwrap_or_default());
            }
        }
        cells.push(row.distinct_equal.to_string());
        cells.push(row.quantiles_equal.to_string());
        writer.write_record(&cells)?;
    }
    let bytes = writer.into_inner().map_err(|error| std::io::Error::other(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| std::io::Error::other(error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_on_a_side_is_an_empty_cell() {
        let after = DiffFigures {
            count: 2,
            value_count: 1,
            sum: "1.5".to_owned(),
            min: Some("1.5".to_owned()),
            max: None,
            distinct: 1,
        };
        let row = DiffRow {
            time: crate::api::timestamp(0),
            metric: "m".to_owned(),
            labels: [("plan".to_owned(), "a,b".to_owned())].into(),
            change: "added".to_owned(),
            before: None,
            after: Some(after),
            distinct_equal: false,
            quantiles_equal: false,
        };
        let text = table(std::slice::from_ref(&row), true).expect("CSV");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split(',').count(), COLUMNS.len());
        let expected = "1970-01-01T00:00:00Z,m,\"{\"\"plan\"\":\"\"a,b\"\"}\",added,,2,,1,,1.5,,1.5,,,,1,false,false";
        assert_eq!(lines[1], expected);
        assert_eq!(table(&[row], false).expect("CSV").lines().count(), 1);
    }
}

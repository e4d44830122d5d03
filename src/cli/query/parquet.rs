//! An answer as Parquet: one row for each point, in the order of the answer, with exact types.
//!
//! `time` is a timestamp, labels are strings, counts are integers, and sums, least and largest
//! values are decimals with 9 fractional digits. What is approximate, or a quotient, is a double.

use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as PhysicalType};
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType,
    Int64Type,
};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{PrimitiveTypeBuilder, Type};

use super::super::UsageError;
use crate::api::query::{Point, QueryAnswer};
use crate::model::decimal::parse_units;

/// Digits of a decimal, and those of them behind the point.
const PRECISION: i32 = 38;
const SCALE: i32 = 9;
/// The largest number of that many digits, in units of the last.
const MAX_UNITS: u128 = 10_u128.pow(PRECISION as u32) - 1;
/// Rows of a row group, which bounds the memory of a reader.
const GROUP_ROWS: usize = 1 << 17;
const TIME: &str = "time";

/// How the figures of an aggregate are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer,
    Decimal,
    Double,
}

fn kind_of(aggregate: &str) -> Kind {
    match aggregate {
        "count" | "distinct" => Kind::Integer,
        "sum" | "min" | "max" => Kind::Decimal,
        _ => Kind::Double,
    }
}

/// Encodes an answer to a query for these labels and aggregates.
///
/// # Errors
/// A usage error if two columns would have one name; otherwise if the answer holds what is no
/// figure, or a sum that does not fit into 38 digits.
pub(super) fn encode(
    labels: &[&str],
    aggregates: &[&str],
    answer: &QueryAnswer,
) -> anyhow::Result<Vec<u8>> {
    check_names(labels, aggregates)?;
    let schema = Arc::new(schema(labels, aggregates)?);
    let properties = Arc::new(properties(answer)?);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties)?;
    let rows: Vec<_> = answer
        .series
        .iter()
        .flat_map(|series| series.points.iter().map(move |point| (&series.labels, point)))
        .collect();
    for group in rows.chunks(GROUP_ROWS) {
        let mut columns = writer.next_row_group()?;
        let times: anyhow::Result<Vec<i64>> = group.iter().map(|(_, point)| time(point)).collect();
        put::<Int64Type>(&mut columns, times?.into_iter().map(Some))?;
        for label in labels {
            let values = group.iter().map(|(of, _)| of.get(*label));
            put::<ByteArrayType>(&mut columns, values.map(|value| value.map(|v| text(v))))?;
        }
        for aggregate in aggregates {
            let figures: Vec<_> = group.iter().map(|(_, point)| point.figure(aggregate)).collect();
            put_figures(&mut columns, aggregate, &figures)?;
        }
        columns.close()?;
    }
    Ok(writer.into_inner()?)
}

/// Refuses labels that are named as another column is. CSV tells them apart by their places, but
/// readers of Parquet go by name.
fn check_names(labels: &[&str], aggregates: &[&str]) -> Result<(), UsageError> {
    let taken = labels.iter().find(|label| **label == TIME || aggregates.contains(label));
    taken.map_or(Ok(()), |label| {
        Err(UsageError(format!(
            "the label {label} has the name of another column, which Parquet cannot have twice: \
             leave it out of --by, or use --output csv"
        )))
    })
}

fn column(
    name: &str,
    physical: PhysicalType,
    logical: Option<LogicalType>,
) -> PrimitiveTypeBuilder<'_> {
    Type::primitive_type_builder(name, physical)
        .with_logical_type(logical)
        .with_repetition(Repetition::OPTIONAL)
}

fn schema(labels: &[&str], aggregates: &[&str]) -> anyhow::Result<Type> {
    let time = LogicalType::timestamp(true, TimeUnit::MILLIS);
    let mut fields = vec![
        column(TIME, PhysicalType::INT64, Some(time))
            .with_repetition(Repetition::REQUIRED)
            .build()?,
    ];
    for label in labels {
        fields.push(column(label, PhysicalType::BYTE_ARRAY, Some(LogicalType::String)).build()?);
    }
    for aggregate in aggregates {
        fields.push(match kind_of(aggregate) {
            Kind::Integer => column(aggregate, PhysicalType::INT64, None).build()?,
            Kind::Double => column(aggregate, PhysicalType::DOUBLE, None).build()?,
            Kind::Decimal => {
                let decimal = LogicalType::decimal(SCALE, PRECISION);
                column(aggregate, PhysicalType::FIXED_LEN_BYTE_ARRAY, Some(decimal))
                    .with_length(16)
                    .with_precision(PRECISION)
                    .with_scale(SCALE)
                    .build()?
            }
        });
    }
    let fields = fields.into_iter().map(Arc::new).collect();
    Ok(Type::group_type_builder("answer").with_fields(fields).build()?)
}

/// What the rows do not say goes with the file: of what, from when to when, and how complete.
fn properties(answer: &QueryAnswer) -> anyhow::Result<WriterProperties> {
    let pairs = [
        ("rollmill.metric", answer.metric.clone()),
        ("rollmill.step", answer.step.clone()),
        ("rollmill.from", answer.from.clone()),
        ("rollmill.to", answer.to.clone()),
        ("rollmill.completeness", serde_json::to_string(&answer.completeness)?),
    ];
    let pairs = pairs.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value));
    Ok(WriterProperties::builder()
        .set_created_by("rollmill".to_owned())
        .set_compression(Compression::ZSTD(Default::default()))
        .set_key_value_metadata(Some(pairs.collect()))
        .build())
}

fn time(point: &Point) -> anyhow::Result<i64> {
    let text = point.text("t");
    let time: jiff::Timestamp =
        text.parse().with_context(|| format!("{text:?} is no time of a point"))?;
    Ok(time.as_millisecond())
}

fn text(value: &str) -> ByteArray {
    ByteArray::from(value.as_bytes().to_vec())
}

fn put_figures(
    columns: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    aggregate: &str,
    figures: &[Option<&str>],
) -> anyhow::Result<()> {
    match kind_of(aggregate) {
        Kind::Integer => put::<Int64Type>(columns, parsed(figures, |text| text.parse().ok())?),
        Kind::Double => put::<DoubleType>(columns, parsed(figures, |text| text.parse().ok())?),
        Kind::Decimal => put::<FixedLenByteArrayType>(columns, parsed(figures, decimal)?),
    }
}

fn parsed<T>(
    figures: &[Option<&str>],
    parse: impl Fn(&str) -> Option<T>,
) -> anyhow::Result<impl Iterator<Item = Option<T>>> {
    let one = |figure: &Option<&str>| match figure {
        None => Ok(None),
        Some(text) => parse(text)
            .map(Some)
            .ok_or_else(|| anyhow!("{text} does not fit into a column of Parquet: use CSV")),
    };
    Ok(figures.iter().map(one).collect::<anyhow::Result<Vec<_>>>()?.into_iter())
}

fn decimal(text: &str) -> Option<FixedLenByteArray> {
    let units = parse_units(text).filter(|units| units.unsigned_abs() <= MAX_UNITS)?;
    Some(FixedLenByteArray::from(units.to_be_bytes().to_vec()))
}

/// Writes the next column; an absent cell is null.
fn put<T: DataType>(
    columns: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    cells: impl Iterator<Item = Option<T::T>>,
) -> anyhow::Result<()> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    for cell in cells {
        levels.push(i16::from(cell.is_some()));
        values.extend(cell);
    }
    let mut column = columns.next_column()?.context("the schema has fewer columns")?;
    let written = column.typed::<T>().write_batch(&values, Some(&levels), None)?;
    ensure!(written == values.len(), "a column was not written as a whole");
    column.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;

    fn answer(points: &str) -> QueryAnswer {
        let text = format!(
            r#"{{"metric": "m", "step": "1h", "from": "2026-01-01T00:00:00Z", "to":
            "2026-01-01T02:00:00Z", "series": [{{"labels": {{"country": "DE"}}, "points": {points}}}],
            "completeness": {{"partial": true, "shards": 1, "missing": [], "as_of": null}}}}"#
        );
        serde_json::from_str(&text).expect("an answer")
    }

    fn rows(bytes: Vec<u8>) -> (Vec<String>, SerializedFileReader<bytes::Bytes>) {
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("Parquet");
        let rows =
            reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row").to_string());
        (rows.collect(), reader)
    }

    #[test]
    fn figures_keep_their_types_and_all_their_digits() {
        let points = r#"[{"t": "2026-01-01T00:00:00Z", "count": 2, "sum": 12345678901234567890.000000001,
            "min": -0.5, "avg": 0.1, "p99.9": null},
            {"t": "2026-01-01T01:00:00Z", "count": 1, "sum": 0, "min": null, "avg": null, "p99.9": 7.25}]"#;
        let aggregates = ["count", "sum", "min", "avg", "p99.9"];
        let bytes = encode(&["country", "page"], &aggregates, &answer(points)).expect("encoded");
        let (rows, reader) = rows(bytes);
        assert_eq!(
            rows,
            [
                "{time: 2026-01-01 00:00:00.000 +00:00, country: \"DE\", page: null, count: 2, sum: \
                 12345678901234567890.000000001, min: -0.500000000, avg: 0.1, p99.9: null}",
                "{time: 2026-01-01 01:00:00.000 +00:00, country: \"DE\", page: null, count: 1, sum: \
                 0.000000000, min: null, avg: null, p99.9: 7.25}",
            ]
        );
        let said = reader.metadata().file_metadata().key_value_metadata().expect("pairs");
        let completeness = said.iter().find(|pair| pair.key == "rollmill.completeness");
        let completeness =
            completeness.and_then(|pair| pair.value.as_deref()).expect("it is there");
        assert!(completeness.contains("\"partial\":true"), "{completeness}");
    }

    #[test]
    fn an_answer_without_points_has_its_columns() {
        let bytes = encode(&["country"], &["count"], &answer("[]")).expect("encoded");
        let (rows, reader) = rows(bytes);
        assert!(rows.is_empty());
        assert_eq!(reader.metadata().file_metadata().schema().get_fields().len(), 3);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for labels in [["time"], ["count"]] {
            let why = encode(&labels, &["count"], &answer("[]")).expect_err("twice one name");
            assert!(why.is::<UsageError>() && why.to_string().contains("--by"), "{why}");
        }
        let digits = "9".repeat(30);
        let points = format!(r#"[{{"t": "2026-01-01T00:00:00Z", "sum": {digits}}}]"#);
        let why = encode(&[], &["sum"], &answer(&points)).expect_err("39 digits").to_string();
        assert!(why.contains("CSV"), "{why}");
    }
}

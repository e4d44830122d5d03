//! `rollmill send`: sends events from files or standard input, in batches, with retries that never
//! count an event twice.
//!
//! Each run has a random id. An event without an id gets one made of run id, input number and byte
//! offset. It is the same in every retry, and in every later run that resumes the same position
//! (`--resume`), whatever the file is called by then and however events are batched.

mod delivery;
mod event;
mod input;
mod input_reader;
mod position;
mod rejects;
mod run;
mod sniff;
mod sources;
mod split;
pub(super) mod stop_signal;
mod table;
mod times;

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use self::table::ColumnNames;
use self::times::TimeUnit;
use super::client::ServerArgs;

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("csv").args(["metric", "metric_column"]),
    after_help = "Examples:
  rollmill send events.ndjson
  rollmill send logs/ 'more/*.ndjson.gz' --resume sent.json --rejects bad.ndjson
  rollmill send flights.csv.gz --metric delay --time event_time --value dep_delay \
  --label origin=origin --resume flights.sent
  rollmill send export.csv --metric-column sensor --time seconds --time-unit s \
  --value reading --delimiter ';' --decimal-comma
  tail -F events.ndjson | rollmill send -

Reads NDJSON, a JSON array, or CSV with a header; plain, gzip or zstd. A partial batch is sent after
a second. Sent twice, a file counts twice, unless --resume records what was sent.

Exit code 0: every event was accepted. 1: some were refused, or not everything was sent."
)]
pub(super) struct SendArgs {
    /// Files, directories or patterns to send; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// CSV: the metric of every row
    #[arg(long)]
    metric: Option<String>,
    /// CSV: column that holds the metric
    #[arg(long, value_name = "COLUMN")]
    metric_column: Option<String>,
    /// CSV: column that holds the time
    #[arg(long, requires = "csv", value_name = "COLUMN")]
    time: Option<String>,
    /// CSV: column that holds the value; an empty cell is an event without a value
    #[arg(long, requires = "csv", value_name = "COLUMN")]
    value: Option<String>,
    /// CSV: column that holds the user
    #[arg(long, requires = "csv", value_name = "COLUMN")]
    user: Option<String>,
    /// CSV: column that holds the id
    #[arg(long, requires = "csv", value_name = "COLUMN")]
    id: Option<String>,
    /// CSV: a label, and the column that holds it
    #[arg(long, value_name = "LABEL=COLUMN", requires = "csv", value_parser = label)]
    label: Vec<(String, String)>,
    /// CSV: delimiter, one character or `tab` [default: the most frequent of , ; tab
    /// | in the header]
    #[arg(long, requires = "csv", value_parser = delimiter)]
    delimiter: Option<u8>,
    /// CSV: values are written as 1.234,5
    #[arg(long, requires = "csv")]
    decimal_comma: bool,
    /// Unit of numeric times, counted from 1970 [default: detected by magnitude]
    #[arg(long)]
    time_unit: Option<TimeUnit>,
    /// CSV: time zone of times without one
    #[arg(long, value_name = "ZONE", requires = "csv", value_parser = jiff::tz::TimeZone::get)]
    tz: Option<jiff::tz::TimeZone>,
    /// Events per request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Record in this file what was sent, and continue from there
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Append refused lines to this file unchanged, and the reasons to FILE.reasons
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Give up after this many seconds of failures in a row
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    patience: u64,
    #[command(flatten)]
    server: ServerArgs,
}

impl SendArgs {
    fn columns(&self) -> Option<ColumnNames> {
        (self.metric.is_some() || self.metric_column.is_some()).then(|| ColumnNames {
            metric: self.metric.clone(),
            metric_column: self.metric_column.clone(),
            time: self.time.clone(),
            value: self.value.clone(),
            user: self.user.clone(),
            id: self.id.clone(),
            labels: self.label.clone(),
            decimal_comma: self.decimal_comma,
        })
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair =
        text.split_once('=').filter(|(label, column)| !label.is_empty() && !column.is_empty());
    let (label, column) = pair.ok_or_else(|| "write LABEL=COLUMN".to_owned())?;
    Ok((label.to_owned(), column.to_owned()))
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
        _ => Err("one ASCII character, or `tab`".to_owned()),
    }
}

pub(super) use run::run;

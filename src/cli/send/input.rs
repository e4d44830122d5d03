//! Lines of a file as events.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};

use super::SendArgs;

/// Counts the bytes that pass.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.0.read(buffer)?;
        self.1.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

enum Format {
    Ndjson(Box<dyn BufRead>),
    Csv(Box<csv::Reader<Box<dyn BufRead>>>, Mapping),
}

/// Columns of a CSV file.
struct Mapping {
    metric: String,
    time: Option<usize>,
    value: Option<usize>,
    user: Option<usize>,
    id: Option<usize>,
    labels: Vec<(String, usize)>,
}

/// Events of an input, one after the other.
pub(super) struct Lines {
    format: Format,
    fingerprint: String,
    line: u64,
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

impl Lines {
    pub(super) fn open(args: &SendArgs) -> anyhow::Result<Self> {
        let read = Arc::new(AtomicU64::new(0));
        let (raw, total): (Box<dyn Read>, _) = if args.file.as_os_str() == "-" {
            (Box::new(std::io::stdin()), None)
        } else {
            let file = File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
            let size = file.metadata().map(|m| m.len()).ok();
            (Box::new(file), size)
        };
        let counted = Counted(raw, read.clone());
        let unpacked: Box<dyn BufRead> = if args.file.extension().is_some_and(|e| e == "gz") {
            Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(counted)))
        } else {
            Box::new(BufReader::new(counted))
        };
        let format = match &args.metric {
            None => Format::Ndjson(unpacked),
            Some(metric) => {
                let mut reader = csv::Reader::from_reader(unpacked);
                let mapping = Mapping::new(args, metric, reader.headers().context("cannot read the CSV header")?)?;
                Format::Csv(Box::new(reader), mapping)
            }
        };
        // The name of the input identifies its lines; standard input has none, so its lines get no made-up ids.
        let name = args.file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let fingerprint = if total.is_some() { blake3::hash(name.as_bytes()).to_hex()[..12].to_owned() } else { String::new() };
        Ok(Self { format, fingerprint, line: 0, read, total })
    }

    pub(super) fn total_bytes(&self) -> Option<u64> {
        self.total
    }

    pub(super) fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The next event as JSON on one line.
    pub(super) fn next_event(&mut self) -> anyhow::Result<Option<String>> {
        self.line += 1;
        let id = (!self.fingerprint.is_empty()).then(|| format!("{}-{}", self.fingerprint, self.line));
        match &mut self.format {
            Format::Ndjson(reader) => {
                let mut text = String::new();
                loop {
                    text.clear();
                    if reader.read_line(&mut text).with_context(|| format!("cannot read line {}", self.line))? == 0 {
                        return Ok(None);
                    }
                    if !text.trim().is_empty() {
                        return Ok(Some(with_id(text.trim(), id)));
                    }
                }
            }
            Format::Csv(reader, mapping) => {
                let mut row = csv::StringRecord::new();
                let more = reader.read_record(&mut row).with_context(|| format!("cannot read row {}", self.line))?;
                more.then(|| mapping.event(&row, id)).transpose()
            }
        }
    }
}

/// Adds an id to an event that has none; a line that is no JSON object goes as it is, so that the server names it.
fn with_id(line: &str, id: Option<String>) -> String {
    let parsed: Option<BTreeMap<String, &serde_json::value::RawValue>> = serde_json::from_str(line).ok();
    match (parsed, id) {
        (Some(event), Some(id)) if !event.contains_key("id") && line.starts_with('{') && !event.is_empty() => {
            format!("{{\"id\":\"{id}\",{}", &line[1..])
        }
        _ => line.to_owned(),
    }
}

impl Mapping {
    fn new(args: &SendArgs, metric: &str, headers: &csv::StringRecord) -> anyhow::Result<Self> {
        let column = |name: &str| match headers.iter().position(|h| h == name) {
            Some(at) => Ok(at),
            None => bail!("there is no column {name:?}; there are {}", headers.iter().collect::<Vec<_>>().join(", ")),
        };
        let optional = |name: &Option<String>| name.as_deref().map(column).transpose();
        let labels = args.label.iter().map(|pair| {
            let (label, name) = pair.split_once('=').with_context(|| format!("--label takes LABEL=COLUMN, not {pair:?}"))?;
            Ok((label.to_owned(), column(name)?))
        });
        Ok(Self {
            metric: metric.to_owned(),
            time: optional(&args.time)?,
            value: optional(&args.value)?,
            user: optional(&args.user)?,
            id: optional(&args.id)?,
            labels: labels.collect::<anyhow::Result<_>>()?,
        })
    }

    fn event(&self, row: &csv::StringRecord, id: Option<String>) -> anyhow::Result<String> {
        let cell = |at: Option<usize>| at.and_then(|at| row.get(at)).filter(|text| !text.is_empty());
        let mut event = serde_json::Map::new();
        event.insert("metric".to_owned(), self.metric.clone().into());
        if let Some(time) = cell(self.time) {
            event.insert("timestamp".to_owned(), time.parse::<i64>().map_or_else(|_| time.into(), Into::into));
        }
        if self.value.is_some() {
            event.insert("value".to_owned(), cell(self.value).map_or(serde_json::Value::Null, Into::into));
        }
        let labels = self.labels.iter().filter_map(|(label, at)| Some((label.clone(), cell(Some(*at))?.into())));
        let labels: serde_json::Map<String, serde_json::Value> = labels.collect();
        event.insert("labels".to_owned(), labels.into());
        if let Some(user) = cell(self.user) {
            event.insert("user".to_owned(), user.into());
        }
        if let Some(id) = cell(self.id).map(str::to_owned).or(id) {
            event.insert("id".to_owned(), id.into());
        }
        serde_json::to_string(&event).context("an event always serialises")
    }
}

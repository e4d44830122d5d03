//! Records as rows, one per event, and back, byte for byte.
//!
//! `decode_record` of the pushed rows always returns the original record. If the columns alone do
//! not determine the bytes (a record that does not decode, or was written by another encoder), the
//! first row carries the whole record as well.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::flush::LogRecord;
use crate::model::outcome::Outcome;
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::series::{Series, SeriesId};
use crate::model::window::Millis;

/// One event with its envelope. A record without events becomes one row in which the
/// event's columns are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct EventRow {
    /// Offset of the record.
    pub offset: u64,
    /// Index of the event in the record, from 0.
    pub index: u32,
    pub received: Millis,
    pub appended: Millis,
    pub event_time: Option<Millis>,
    pub tenant: Option<Bytes>,
    pub metric: Option<Bytes>,
    /// A JSON object with sorted keys.
    pub labels: Option<Bytes>,
    /// The series id as 32 hexadecimal digits.
    pub series_id: Option<Bytes>,
    pub id: Option<Bytes>,
    pub user: Option<Bytes>,
    /// In units of 10^-9.
    pub value: Option<i128>,
    /// The event as the client sent it.
    pub raw: Option<Bytes>,
    /// The gateway that accepted the record.
    pub gateway: Option<u32>,
    /// Index of the series in the record's table.
    pub series_index: Option<u32>,
    /// The gateway's append clock; `None` in records of version 1.
    pub stamp: Option<Millis>,
    /// The whole record, if its columns do not determine it.
    pub payload: Option<Bytes>,
    /// What became of the event; `None` if the row is no event, or if it is not known.
    pub outcome: Option<Outcome>,
}

/// Makes rows. Caches the columns of each series, because a shard's records repeat their series.
#[derive(Debug, Default)]
pub(super) struct RowEncoder {
    series: HashMap<Bytes, SeriesColumns>,
}

/// The cells that all events of a series share. They determine its key and id exactly.
#[derive(Debug, Clone)]
struct SeriesColumns {
    tenant: Bytes,
    metric: Bytes,
    labels: Bytes,
    digits: Bytes,
    id: SeriesId,
}

impl SeriesColumns {
    /// `None` if the columns would not reproduce the entry.
    fn of(entry: &SeriesEntry<'_>) -> Option<Self> {
        let series = Series::from_key(entry.key).ok()?;
        let labels: BTreeMap<&str, &str> =
            series.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let labels = serde_json::to_vec(&labels).ok()?;
        let (same, id) = (series.key() == entry.key, entry.series_id());
        let digits = id.to_string().into();
        same.then(|| Self {
            tenant: series.tenant.into(),
            metric: series.metric.into(),
            labels: labels.into(),
            digits,
            id,
        })
    }
}

impl RowEncoder {
    /// Appends the rows of a record, at least one.
    pub(super) fn push_rows(&mut self, log_record: &LogRecord, rows: &mut Vec<EventRow>) {
        let start = rows.len();
        let payload = &log_record.payload;
        let exact =
            record::decode(payload).is_ok_and(|record| self.push_events(log_record, &record, rows));
        let empty = rows.len() == start;
        if empty {
            let (received, appended) = (log_record.received, log_record.appended);
            rows.push(EventRow {
                offset: log_record.offset,
                received,
                appended,
                ..EventRow::default()
            });
        }
        if empty || !exact {
            rows[start].payload = Some(payload.clone());
        }
    }

    /// Returns whether the rows determine the record. Pushes none if one of
    /// its series is unreadable.
    fn push_events(
        &mut self,
        log_record: &LogRecord,
        record: &Record<'_>,
        rows: &mut Vec<EventRow>,
    ) -> bool {
        let slice = |part: &[u8]| log_record.payload.slice_ref(part);
        let Some(series) = record
            .series
            .iter()
            .map(|entry| self.columns(entry, &slice))
            .collect::<Option<Vec<_>>>()
        else {
            return false;
        };
        let mut used = vec![false; series.len()];
        let tenant = slice(record.tenant.as_bytes());
        for (index, event) in (0..).zip(&record.events) {
            let of = &series[event.series as usize];
            used[event.series as usize] = true;
            rows.push(EventRow {
                offset: log_record.offset,
                index,
                received: log_record.received,
                appended: log_record.appended,
                event_time: Some(event.timestamp),
                tenant: Some(tenant.clone()),
                metric: Some(of.metric.clone()),
                labels: Some(of.labels.clone()),
                series_id: Some(of.digits.clone()),
                id: event.id.map(|id| slice(id.as_bytes())),
                user: event.user.map(|user| slice(user.as_bytes())),
                value: event.value.map(Decimal::units),
                raw: Some(slice(event.raw)),
                gateway: Some(record.gateway),
                series_index: Some(event.series),
                stamp: record.stamp,
                payload: None,
                outcome: None,
            });
        }
        // The columns reproduce every series that has the record's tenant and at least one event.
        // What remains is whether the record is written as our encoder writes it.
        used.iter().all(|used| *used)
            && series.iter().all(|of| of.tenant == tenant)
            && is_canonical(record, &log_record.payload)
    }

    fn columns(
        &mut self,
        entry: &SeriesEntry<'_>,
        slice: &impl Fn(&[u8]) -> Bytes,
    ) -> Option<SeriesColumns> {
        // A record's id is unchecked: two entries may have the same key and different ids.
        if let Some(known) = self.series.get(entry.key)
            && known.id == entry.series_id()
        {
            return Some(known.clone());
        }
        let made = SeriesColumns::of(entry)?;
        self.series.insert(slice(entry.key), made.clone());
        Some(made)
    }
}

fn is_canonical(record: &Record<'_>, payload: &[u8]) -> bool {
    let mut bytes = Vec::with_capacity(payload.len());
    record::encode(record, &mut bytes);
    bytes == payload
}

/// Decodes the rows of one record, which all have its offset. Fails if the rows cannot
/// come from a record.
pub(super) fn decode_record(rows: &[EventRow]) -> Result<LogRecord, CodecError> {
    let first = rows.first().ok_or_else(|| bad("a record without rows"))?;
    let payload = match &first.payload {
        Some(payload) => payload.clone(),
        None => rebuild_record(rows)?.into(),
    };
    Ok(LogRecord {
        offset: first.offset,
        appended: first.appended,
        received: first.received,
        payload,
    })
}

fn rebuild_record(rows: &[EventRow]) -> Result<Vec<u8>, CodecError> {
    let mut keys: Vec<Option<(Vec<u8>, [u8; 16])>> = Vec::new();
    for row in rows {
        let at = need(row.series_index, "series_index")? as usize;
        // Every series has an event. A greater index is damage and must not size the table.
        if at >= rows.len() {
            return Err(bad("a series is not used by any event"));
        }
        keys.resize_with(keys.len().max(at + 1), || None);
        if keys[at].is_none() {
            keys[at] = Some(key(row)?);
        }
    }
    let keys: Vec<(Vec<u8>, [u8; 16])> = keys
        .into_iter()
        .collect::<Option<_>>()
        .ok_or_else(|| bad("a series is not used by any event"))?;
    let first = rows.first().ok_or_else(|| bad("a record without rows"))?;
    let record = Record {
        version: if first.stamp.is_some() { record::VERSION } else { record::VERSION_1 },
        tenant: text(need(first.tenant.as_ref(), "tenant")?)?,
        gateway: need(first.gateway, "gateway")?,
        series: keys.iter().map(|(key, id)| SeriesEntry { id, key }).collect(),
        events: rows.iter().map(event).collect::<Result<_, _>>()?,
        stamp: first.stamp,
    };
    let mut bytes = Vec::new();
    record::encode(&record, &mut bytes);
    Ok(bytes)
}

fn key(row: &EventRow) -> Result<(Vec<u8>, [u8; 16]), CodecError> {
    let labels: BTreeMap<String, String> =
        serde_json::from_slice(need(row.labels.as_ref(), "labels")?)
            .map_err(|e| bad(format!("labels: {e}")))?;
    let series = Series::new(
        text(need(row.tenant.as_ref(), "tenant")?)?,
        text(need(row.metric.as_ref(), "metric")?)?,
        labels,
    );
    // Not derived from the key: a record may carry any id.
    let digits = text(need(row.series_id.as_ref(), "series_id")?)?;
    let id =
        u128::from_str_radix(digits, 16).map_err(|e| bad(format!("series_id {digits:?}: {e}")))?;
    Ok((series.key(), id.to_be_bytes()))
}

fn event(row: &EventRow) -> Result<RecordEvent<'_>, CodecError> {
    Ok(RecordEvent {
        series: need(row.series_index, "series_index")?,
        timestamp: need(row.event_time, "event_time")?,
        value: row.value.map(Decimal::from_units),
        user: row.user.as_ref().map(text).transpose()?,
        id: row.id.as_ref().map(text).transpose()?,
        raw: need(row.raw.as_ref(), "raw")?,
    })
}

fn need<T>(cell: Option<T>, column: &str) -> Result<T, CodecError> {
    cell.ok_or_else(|| bad(format!("column {column} is null where the record needs it")))
}

fn text(bytes: &Bytes) -> Result<&str, CodecError> {
    std::str::from_utf8(bytes).map_err(|e| bad(e.to_string()))
}

fn bad(why: impl Into<String>) -> CodecError {
    CodecError::new("archive row", why)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record of `events` events over up to three series.
    pub(in super::super) fn sample(offset: u64, events: usize) -> LogRecord {
        let series: Vec<Series> = (0..3.min(events))
            .map(|n| Series::new("t", "page_view", [("n".to_owned(), format!("\"{n}\\"))]))
            .collect();
        let keys: Vec<(Vec<u8>, SeriesId)> =
            series.iter().map(|s| (s.key(), SeriesId::of_key(&s.key()))).collect();
        let texts: Vec<String> = (0..events).map(|n| format!("{offset}/{n}")).collect();
        let event = |n: usize| RecordEvent {
            series: (n % keys.len()) as u32,
            timestamp: 3_600_000 * n as i64 - 1,
            value: (!n.is_multiple_of(4))
                .then(|| Decimal::from_units(((n as i128 - 2) % 100) * 10i128.pow(n as u32 % 26))),
            user: n.is_multiple_of(2).then_some(texts[n].as_str()),
            id: n.is_multiple_of(3).then_some(texts[n].as_str()),
            raw: texts[n].as_bytes(),
        };
        let record = Record {
            version: if offset.is_multiple_of(3) { record::VERSION_1 } else { record::VERSION },
            tenant: "t",
            gateway: u32::MAX,
            series: keys.iter().map(|(key, id)| SeriesEntry { id: &id.0, key }).collect(),
            events: (0..events).map(event).collect(),
            stamp: (!offset.is_multiple_of(3)).then_some(offset as i64 * 10 - 1),
        };
        let mut payload = Vec::new();
        record::encode(&record, &mut payload);
        LogRecord {
            offset,
            appended: offset as i64 * 10,
            received: offset as i64 * 10 - 3 * (offset as i64 % 5),
            payload: payload.into(),
        }
    }

    fn round_trip(original: &LogRecord) -> Vec<EventRow> {
        let mut rows = Vec::new();
        RowEncoder::default().push_rows(original, &mut rows);
        assert_eq!(&decode_record(&rows).expect("a record"), original);
        rows
    }

    #[test]
    fn ordinary_records_need_no_copy_of_their_bytes() {
        for events in [1, 2, 3, 50] {
            let rows = round_trip(&sample(7, events));
            assert_eq!(rows.len(), events);
            assert!(rows.iter().all(|row| row.payload.is_none()));
        }
    }

    #[test]
    fn records_that_do_not_decode_or_have_no_events_keep_their_bytes() {
        for payload in [&b""[..], b"garbage", b"\x95\x01\xa1t\x00\x90\x90"] {
            let rows = round_trip(&LogRecord {
                offset: 1,
                appended: 2,
                received: 3,
                payload: Bytes::copy_from_slice(payload),
            });
            assert_eq!(
                (rows.len(), rows[0].event_time, rows[0].payload.as_deref()),
                (1, None, Some(payload))
            );
        }
    }

    #[test]
    fn a_series_that_no_event_uses_is_kept() {
        let original = sample(0, 3);
        let mut record = record::decode(&original.payload).expect("decodes");
        record.events.truncate(1);
        let mut payload = Vec::new();
        record::encode(&record, &mut payload);
        let rows = round_trip(&LogRecord { payload: payload.into(), ..original });
        assert_eq!(rows.len(), 1);
        assert!(rows[0].payload.is_some());
    }

    #[test]
    fn a_key_seen_with_another_id_is_not_taken_from_memory() {
        let original = sample(0, 1);
        let mut record = record::decode(&original.payload).expect("decodes");
        record.series[0].id = &[9; 16];
        let mut payload = Vec::new();
        record::encode(&record, &mut payload);
        let other = LogRecord { offset: 1, payload: payload.into(), ..original.clone() };
        let (mut maker, mut rows) = (RowEncoder::default(), Vec::new());
        maker.push_rows(&original, &mut rows);
        maker.push_rows(&other, &mut rows);
        assert_eq!(
            rows.chunks(1)
                .map(|rows| super::decode_record(rows).expect("a record"))
                .collect::<Vec<_>>(),
            [original, other]
        );
    }

    #[test]
    fn a_series_of_another_tenant_is_kept() {
        let original = sample(0, 1);
        let mut record = record::decode(&original.payload).expect("decodes");
        record.tenant = "u";
        let mut payload = Vec::new();
        record::encode(&record, &mut payload);
        assert!(
            round_trip(&LogRecord { payload: payload.into(), ..original })[0].payload.is_some()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(
            flips in proptest::collection::vec((0usize..200, any::<u8>()), 0..4),
            events in 0usize..6,
        ) {
            let mut bytes =
                if events == 0 { Vec::new() } else { sample(3, events).payload.to_vec() };
            for (at, byte) in flips {
                match bytes.get_mut(at) {
                    Some(there) => *there = byte,
                    None => bytes.push(byte),
                }
            }
            round_trip(&LogRecord { offset: 3, appended: -5, received: 5, payload: bytes.into() });
        }
    }
}

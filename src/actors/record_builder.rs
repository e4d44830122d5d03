//! Turns a validated request into log records: events grouped by shard, in order, split at
//! the record size limit.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::model::batch::{ValidBatch, ValidEvent};
use crate::model::offset::ShardId;
use crate::model::record::{self, MAX_RECORD_BYTES, Record, RecordEvent, SeriesEntry};
use crate::model::window::Millis;
use crate::persistence::log::AppendRequest;

/// Upper bound of an event's bytes that are not in its strings.
const ENVELOPE_BYTES: usize = 64;

/// The records of one request. `stamp` is the time on the gateway's append clock.
pub fn records_of(batch: &ValidBatch, gateway: u32, stamp: Millis) -> AppendRequest {
    let mut by_shard: BTreeMap<ShardId, Vec<&ValidEvent>> = BTreeMap::new();
    for event in &batch.events {
        by_shard.entry(event.series.shard).or_default().push(event);
    }
    let mut request = AppendRequest { records: Vec::with_capacity(by_shard.len()) };
    for (shard, events) in by_shard {
        for part in split(&events) {
            request.records.push((shard, encode(batch, gateway, part, stamp)));
        }
    }
    request
}

/// Splits the events of a shard into runs whose records stay below the limit. A single event always
/// fits, because it is limited to a few KiB.
fn split<'a, 'b>(events: &'a [&'b ValidEvent]) -> Vec<&'a [&'b ValidEvent]> {
    let mut parts = Vec::with_capacity(1);
    let (mut from, mut bytes) = (0, 0);
    for (at, event) in events.iter().enumerate() {
        let size = size_bound(event);
        // A part is never empty, even if its first event is above the limit by this estimate.
        if bytes + size > MAX_RECORD_BYTES && at > from {
            parts.push(&events[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += size;
    }
    parts.push(&events[from..]);
    parts
}

fn size_bound(event: &ValidEvent) -> usize {
    let text =
        event.user.as_ref().map_or(0, String::len) + event.id.as_ref().map_or(0, String::len);
    event.raw.len() + event.series.key.len() + text + ENVELOPE_BYTES
}

fn encode(batch: &ValidBatch, gateway: u32, events: &[&ValidEvent], stamp: Millis) -> Bytes {
    // A series is written once per record; events refer to it by index.
    let mut series: Vec<SeriesEntry<'_>> = Vec::new();
    let mut index_of: hashbrown::HashMap<&[u8], u32, foldhash::fast::FixedState> =
        hashbrown::HashMap::default();
    let mut out =
        Vec::with_capacity(events.iter().map(|e| size_bound(e)).sum::<usize>() + ENVELOPE_BYTES);
    let events = events
        .iter()
        .map(|event| {
            let id: &[u8] = &event.series.id.0;
            let index = *index_of.entry(id).or_insert_with(|| {
                series.push(SeriesEntry { id, key: &event.series.key });
                (series.len() - 1) as u32
            });
            RecordEvent {
                series: index,
                timestamp: event.timestamp,
                value: event.value,
                user: event.user.as_deref(),
                id: event.id.as_deref(),
                raw: &batch.body[event.raw.clone()],
            }
        })
        .collect();
    let record = Record {
        version: record::VERSION,
        tenant: &batch.tenant,
        gateway,
        series,
        events,
        stamp: Some(stamp),
    };
    record::encode(&record, &mut out);
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::batch::RoutedSeries;
    use crate::model::series::Series;

    fn event(metric: &str, raw: std::ops::Range<usize>) -> ValidEvent {
        let routed = RoutedSeries::new(&Series::new("t", metric, []), 4);
        ValidEvent {
            series: Arc::new(routed),
            timestamp: 7,
            value: None,
            user: None,
            id: None,
            raw,
        }
    }

    #[test]
    fn every_event_is_in_the_record_of_its_shard_in_order() {
        let events: Vec<_> = (0..40).map(|i| event(&format!("m{}", i % 7), i..i + 1)).collect();
        let batch =
            ValidBatch { tenant: "t".into(), body: Bytes::from_static(&[b'x'; 40]), events };
        let request = records_of(&batch, 3, 99);
        let mut seen = 0;
        for (shard, payload) in &request.records {
            let record = record::decode(payload).expect("decodes");
            assert_eq!((record.tenant, record.gateway, record.stamp), ("t", 3, Some(99)));
            for event in &record.events {
                assert_eq!(record.series[event.series as usize].series_id().shard(4), *shard);
                seen += 1;
            }
        }
        assert_eq!(seen, 40);
        assert!(request.records.len() <= 4);
    }

    #[test]
    fn large_requests_are_split_below_the_limit_without_loss() {
        let body = Bytes::from(vec![b'x'; 8192]);
        let events: Vec<_> = (0..200).map(|_| event("m", 0..8192)).collect();
        let batch = ValidBatch { tenant: "t".into(), body, events };
        let request = records_of(&batch, 0, 99);
        assert!(request.records.len() >= 4);
        assert!(request.records.iter().all(|(_, payload)| payload.len() <= MAX_RECORD_BYTES));
        let total: usize = request
            .records
            .iter()
            .map(|(_, payload)| record::decode(payload).expect("decodes").events.len())
            .sum();
        assert_eq!(total, 200);
    }
}

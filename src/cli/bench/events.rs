//! The events of a benchmark: a body is built once and then patched in place, which costs next
//! to nothing per request.

use std::fmt::Write;

use super::shape::EventShape;
use super::wire::{FieldOffsets, WireProtocol};

/// A request body of fixed length, in which changing digits are overwritten.
pub(super) struct BenchBody {
    pub(super) bytes: Vec<u8>,
    start: usize,
    event: usize,
    places: FieldOffsets,
}

impl BenchBody {
    /// Builds a body; `head` makes the request head for its length, which precedes
    /// it in the buffer.
    pub(super) fn new(
        shape: &EventShape,
        wire: WireProtocol,
        head: impl FnOnce(usize) -> Vec<u8>,
    ) -> Self {
        let (mut event, places) = wire.event(shape);
        if wire == WireProtocol::Rollmill {
            pad(&mut event, shape.bytes);
        }
        let [before, between, after] = wire.punctuation();
        let body = format!("{before}{}{after}", vec![event.as_str(); shape.batch].join(between));
        let mut bytes = head(body.len());
        let start = bytes.len() + before.len();
        bytes.extend_from_slice(body.as_bytes());
        Self { bytes, start, event: event.len() + between.len(), places }
    }

    /// Turns the body into the events from `first` on, at time `now`.
    pub(super) fn patch(&mut self, shape: &EventShape, first: u64, now: i64) {
        for n in 0..shape.batch {
            let serial = first + n as u64;
            let base = self.start + n * self.event;
            // A fixed mix of the serial number, so that a retry repeats exactly the same events.
            let mixed = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            self.digits(base + self.places.time, 13, now.unsigned_abs());
            self.digits(base + self.places.value, 3, mixed % 900 + 100);
            self.digits(base + self.places.series, 8, mixed % shape.series);
            if let Some(user) = self.places.user {
                self.digits(base + user, 8, (mixed >> 8) % shape.users.max(1));
            }
            if let Some(id) = self.places.id {
                self.digits(base + id, 12, serial);
            }
        }
    }

    /// Assigns event *n* to series *first + n*.
    pub(super) fn one_of_each_series(&mut self, shape: &EventShape, first: u64) {
        for n in 0..shape.batch {
            self.digits(
                self.start + n * self.event + self.places.series,
                8,
                (first + n as u64) % shape.series,
            );
        }
    }

    fn digits(&mut self, at: usize, width: usize, mut number: u64) {
        for place in self.bytes[at..at + width].iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }
}

/// Pads an event to `bytes` with words of a small vocabulary, which compress about as well as real
/// payloads; constant padding would compress to nothing.
fn pad(event: &mut String, bytes: usize) {
    let padding = bytes.saturating_sub(event.len() + 24);
    event.push_str(r#","properties":{"text":""#);
    let mut word = 0u64;
    let target = event.len() + padding.saturating_sub(3);
    while event.len() < target {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        _ = write!(event, "{:x} ", (word >> 33) % 4096);
    }
    event.truncate(target.max(1));
    event.push_str("\"}}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_of_the_wanted_size() {
        for bytes in [300, 4_096] {
            let shape = EventShape { bytes, batch: 3, series: 1_000, users: 10, run: 7 };
            let mut body = BenchBody::new(&shape, WireProtocol::Rollmill, |_| b"HEAD".to_vec());
            body.patch(&shape, 41, 1_790_000_000_123);
            let events: Vec<serde_json::Value> =
                serde_json::from_slice(&body.bytes[4..]).expect("JSON");
            assert_eq!(
                (events.len(), events[2]["id"].as_str()),
                (3, Some("00000007-000000000043"))
            );
            assert_eq!(events[1]["timestamp"], 1_790_000_000_123i64);
            assert!(body.event.abs_diff(bytes) < 16, "an event has {} bytes", body.event);
        }
    }

    #[test]
    fn all_wires_carry_the_same_events() {
        let shape = EventShape { bytes: 300, batch: 3, series: 1_000, users: 10, run: 7 };
        let text = |wire| {
            let mut body = BenchBody::new(&shape, wire, |_| Vec::new());
            body.patch(&shape, 41, 1_790_000_000_123);
            String::from_utf8(body.bytes).unwrap()
        };
        let ours: Vec<serde_json::Value> =
            serde_json::from_str(&text(WireProtocol::Rollmill)).unwrap();
        let (import, influx) = (text(WireProtocol::JsonImport), text(WireProtocol::InfluxLine));
        assert_eq!((import.lines().count(), influx.lines().count()), (3, 3));
        for ((ours, import), influx) in ours.iter().zip(import.lines()).zip(influx.lines()) {
            let (series, value) =
                (ours["labels"]["series"].as_str().unwrap(), ours["value"].as_f64().unwrap());
            let import: serde_json::Value = serde_json::from_str(import).unwrap();
            let name = "bench_00000007";
            let metric = serde_json::json!({"__name__": name, "series": series, "host": "web-1"});
            assert_eq!((&import["metric"], import["values"][0].as_f64()), (&metric, Some(value)));
            assert_eq!(import["timestamps"], serde_json::json!([1_790_000_000_123i64]));
            assert_eq!(
                influx,
                format!("bench_00000007,series={series},host=web-1 value={value:.2} 1790000000123")
            );
        }
    }
}

//! The events of a benchmark: made once, then patched in place, so that making them costs next to nothing.

use std::fmt::Write;

/// What the events look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of one event.
    pub(super) bytes: usize,
    /// Events of one request.
    pub(super) batch: usize,
    /// Different series.
    pub(super) series: u64,
    /// Different users.
    pub(super) users: u64,
    /// Which run: part of metric name and ids.
    pub(super) run: u32,
}

impl Shape {
    pub(super) fn metric(&self) -> String {
        format!("bench_{:08x}", self.run)
    }
}

/// A request body of fixed length whose changing digits are overwritten.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    start: usize,
    event: usize,
    offsets: [usize; 5],
}

const TIME: usize = 0;
const VALUE: usize = 1;
const SERIES: usize = 2;
const USER: usize = 3;
const ID: usize = 4;

impl Body {
    /// `head` stands before the body in the same buffer.
    pub(super) fn new(shape: &Shape, head: impl FnOnce(usize) -> Vec<u8>) -> Self {
        let mut event = format!(
            r#"{{"metric":"{}","timestamp":0000000000000,"value":100.00,"labels":{{"series":"s00000000","host":"web-1"}},"user":"u00000000","id":"{:08x}-000000000000""#,
            shape.metric(),
            shape.run
        );
        let at = |needle: &str| event.find(needle).map_or(0, |found| found + needle.len());
        let offsets = [
            at("\"timestamp\":"),
            at("\"value\":"),
            at("\"series\":\"s"),
            at("\"user\":\"u"),
            at(&format!("{:08x}-", shape.run)),
        ];
        let padding = shape.bytes.saturating_sub(event.len() + 24);
        // Padding that zstd cannot fold away at once, as real payloads: words of a small vocabulary.
        event.push_str(r#","properties":{"text":""#);
        let mut word = 0u64;
        let target = event.len() + padding.saturating_sub(3);
        while event.len() < target {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            _ = write!(event, "{:x} ", (word >> 33) % 4096);
        }
        event.truncate(target.max(1));
        event.push_str("\"}}");
        let body = format!("[{}]", vec![event.as_str(); shape.batch].join(","));
        let mut bytes = head(body.len());
        let start = bytes.len() + 1;
        bytes.extend_from_slice(body.as_bytes());
        Self { bytes, start, event: event.len() + 1, offsets }
    }

    /// Events `first..` of the run, at `now`.
    pub(super) fn patch(&mut self, shape: &Shape, first: u64, now: i64) {
        for n in 0..shape.batch {
            let serial = first + n as u64;
            let base = self.start + n * self.event;
            let mixed = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            self.digits(base + self.offsets[TIME], 13, now.unsigned_abs());
            self.digits(base + self.offsets[VALUE], 3, mixed % 900 + 100);
            self.digits(base + self.offsets[SERIES], 8, mixed % shape.series);
            self.digits(base + self.offsets[USER], 8, (mixed >> 8) % shape.users.max(1));
            self.digits(base + self.offsets[ID], 12, serial);
        }
    }

    /// Event *n* is of series *n*.
    pub(super) fn every_series_once(&mut self, shape: &Shape) {
        for n in 0..shape.batch {
            self.digits(self.start + n * self.event + self.offsets[SERIES], 8, n as u64 % shape.series);
        }
    }

    fn digits(&mut self, at: usize, width: usize, mut number: u64) {
        for place in self.bytes[at..at + width].iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_of_the_wanted_size() {
        for bytes in [300, 4_096] {
            let shape = Shape { bytes, batch: 3, series: 1_000, users: 10, run: 7 };
            let mut body = Body::new(&shape, |_| b"HEAD".to_vec());
            body.patch(&shape, 41, 1_790_000_000_123);
            let events: Vec<serde_json::Value> = serde_json::from_slice(&body.bytes[4..]).expect("JSON");
            assert_eq!((events.len(), events[2]["id"].as_str()), (3, Some("00000007-000000000043")));
            assert_eq!(events[1]["timestamp"], 1_790_000_000_123i64);
            assert!(body.event.abs_diff(bytes) < 16, "an event has {} bytes", body.event);
        }
    }
}

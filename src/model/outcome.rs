//! What became of the events of the log, as ingest decided it, once.
//!
//! Nearly all events are counted, so a flush notes the others: their positions, in about two bytes
//! each. The note stays in the store until the archive object that says it of every row is in the
//! manifest.

use std::cmp::Ordering;

use super::CodecError;
use super::offset::{Offset, OffsetRange};

const FORMAT: &str = "outcome note";
/// Low bits of an encoded index, which hold the [`Verdict`].
const VERDICT_BITS: u32 = 2;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It is in a rollup.
    Counted,
    /// An event with the same id had been counted or set aside within the horizon.
    Duplicate,
    /// It was set aside. Releasing it later does not change what ingest decided.
    Quarantined,
}

impl Outcome {
    /// The name in the archive's column `outcome`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Counted => "counted",
            Outcome::Duplicate => "duplicate",
            Outcome::Quarantined => "quarantined",
        }
    }

    /// The outcome of this name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Outcome::Counted, Outcome::Duplicate, Outcome::Quarantined]
            .into_iter()
            .find(|outcome| outcome.name().as_bytes() == name)
    }
}

/// Why an event was not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The event is a duplicate.
    Duplicate,
    /// The event was set aside.
    Quarantined,
    /// The whole record was set aside, whatever events it seems to have. Its index is 0.
    RecordQuarantined,
}

impl Verdict {
    /// The outcome of an event with this verdict.
    pub fn outcome(self) -> Outcome {
        match self {
            Verdict::Duplicate => Outcome::Duplicate,
            Verdict::Quarantined | Verdict::RecordQuarantined => Outcome::Quarantined,
        }
    }

    fn code(self) -> u64 {
        match self {
            Verdict::Duplicate => 0,
            Verdict::Quarantined => 1,
            Verdict::RecordQuarantined => 2,
        }
    }

    fn from_code(code: u64) -> Option<Self> {
        [Verdict::Duplicate, Verdict::Quarantined, Verdict::RecordQuarantined]
            .into_iter()
            .find(|verdict| verdict.code() == code)
    }
}

/// An event that was not counted: its place in the log, and why.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UncountedEvent {
    pub offset: Offset,
    /// Index of the event in its record.
    pub index: u32,
    pub verdict: Verdict,
}

impl UncountedEvent {
    /// An event that was set aside; `is_record` if its whole record was.
    pub fn set_aside((offset, index): (Offset, u32), is_record: bool) -> Self {
        let verdict = if is_record { Verdict::RecordQuarantined } else { Verdict::Quarantined };
        Self { offset, index, verdict }
    }

    fn place(&self) -> (Offset, u32) {
        (self.offset, self.index)
    }
}

/// The events of a range that were not counted, ascending by place.
///
/// For each event, two numbers of seven bits a byte, least first: how much greater its offset is
/// than that of the event before; and its index, or how much greater that is if the offset is the
/// same, with the verdict in the low two bits. So a duplicate among small records costs two bytes,
/// and no event more than fifteen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutcomeNote {
    bytes: Vec<u8>,
    last: (Offset, u32),
    count: u64,
}

impl OutcomeNote {
    /// Appends an event, which must lie behind all others.
    pub fn push(&mut self, event: UncountedEvent) {
        // Bytes that do not decode would be worse than a note of too few events, which is noticed
        // when it is compared with the accounting.
        if self.count > 0 && event.place() <= self.last {
            return;
        }
        let (offset, index) = self.last;
        let step = event.offset.wrapping_sub(offset);
        let base = if step == 0 && self.count > 0 { index } else { 0 };
        put(&mut self.bytes, step);
        let ahead = u64::from(event.index.wrapping_sub(base));
        put(&mut self.bytes, ahead << VERDICT_BITS | event.verdict.code());
        self.last = event.place();
        self.count += 1;
    }

    /// The number of events.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether every event was counted.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded events.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Decodes what [`OutcomeNote::as_bytes`] returned.
    ///
    /// # Errors
    /// If the bytes are cut off, name no verdict, or do not ascend.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut events = OutcomeEvents { rest: bytes, last: (0, 0), is_first: true };
        let mut note = Self { bytes: bytes.to_vec(), ..Self::default() };
        while !events.rest.is_empty() {
            let before = (!events.is_first).then_some(events.last);
            let event = events.decode().ok_or_else(|| bad("cut off, or not one of ours"))?;
            if before.is_some_and(|before| event.place() <= before) {
                return Err(bad("its events do not ascend"));
            }
            note.last = event.place();
            note.count += 1;
        }
        Ok(note)
    }

    /// The events, ascending.
    pub fn iter(&self) -> OutcomeEvents<'_> {
        OutcomeEvents { rest: &self.bytes, last: (0, 0), is_first: true }
    }

    /// Appends the events of `other` that lie in `range`.
    pub fn extend_within(&mut self, other: &Self, range: OffsetRange) {
        other
            .iter()
            .skip_while(|event| event.offset < range.from)
            .take_while(|event| event.offset < range.to)
            .for_each(|event| self.push(event));
    }

    /// Answers for the outcomes of events in ascending order.
    pub fn reader(&self) -> OutcomeReader<'_> {
        let mut events = self.iter();
        let next = events.next();
        OutcomeReader { events, next, record: None, passed_over: 0 }
    }
}

/// The events of a note, ascending.
#[derive(Debug, Clone)]
pub struct OutcomeEvents<'a> {
    rest: &'a [u8],
    last: (Offset, u32),
    is_first: bool,
}

impl OutcomeEvents<'_> {
    fn decode(&mut self) -> Option<UncountedEvent> {
        let (step, coded) = (take(&mut self.rest)?, take(&mut self.rest)?);
        let base = if step == 0 && !self.is_first { self.last.1 } else { 0 };
        let offset = self.last.0.checked_add(step)?;
        let ahead = u32::try_from(coded >> VERDICT_BITS).ok()?;
        let verdict = Verdict::from_code(coded & ((1 << VERDICT_BITS) - 1))?;
        let index = base.checked_add(ahead)?;
        (self.last, self.is_first) = ((offset, index), false);
        Some(UncountedEvent { offset, index, verdict })
    }
}

impl Iterator for OutcomeEvents<'_> {
    type Item = UncountedEvent;

    fn next(&mut self) -> Option<UncountedEvent> {
        self.decode()
    }
}

/// Walks a note beside the events of its range.
#[derive(Debug)]
pub struct OutcomeReader<'a> {
    events: OutcomeEvents<'a>,
    next: Option<UncountedEvent>,
    /// The record that was set aside as a whole, if it is the current one.
    record: Option<Offset>,
    /// Noted events that nobody asked for.
    passed_over: u64,
}

impl OutcomeReader<'_> {
    /// The outcome of an event; each call must name a later one than the call before.
    pub fn outcome(&mut self, offset: Offset, index: u32) -> Outcome {
        while let Some(event) = self.next {
            match event.place().cmp(&(offset, index)) {
                Ordering::Greater => break,
                order => {
                    self.next = self.events.next();
                    if event.verdict == Verdict::RecordQuarantined {
                        self.record = Some(event.offset);
                    } else if order == Ordering::Equal {
                        return event.verdict.outcome();
                    } else {
                        self.passed_over += 1;
                    }
                }
            }
        }
        if self.record == Some(offset) { Outcome::Quarantined } else { Outcome::Counted }
    }

    /// Passes over a record whose events nobody can tell apart.
    pub fn skip_record(&mut self, offset: Offset) {
        while self.next.is_some_and(|event| event.offset == offset) {
            self.next = self.events.next();
        }
    }

    /// How many noted events were neither asked for nor skipped.
    pub fn finish(self) -> u64 {
        let rest = self.next.into_iter().chain(self.events);
        let single = rest.filter(|event| event.verdict != Verdict::RecordQuarantined);
        self.passed_over + single.count() as u64
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(input: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn bad(why: &str) -> CodecError {
    CodecError::new(FORMAT, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(offset: Offset, index: u32, verdict: Verdict) -> UncountedEvent {
        UncountedEvent { offset, index, verdict }
    }

    fn note(events: &[UncountedEvent]) -> OutcomeNote {
        let mut note = OutcomeNote::default();
        events.iter().for_each(|event| note.push(*event));
        note
    }

    #[test]
    fn the_bytes_are_pinned() {
        let events = [
            event(0, 0, Verdict::Duplicate),
            event(0, 1, Verdict::Duplicate),
            event(300, 40, Verdict::Quarantined),
            event(301, 0, Verdict::RecordQuarantined),
        ];
        let bytes = [0, 0, 0, 4, 0xac, 2, 0xa1, 1, 1, 2];
        assert_eq!(note(&events).as_bytes(), bytes);
        let read = OutcomeNote::from_bytes(&bytes).expect("decodes");
        assert_eq!((read.iter().collect::<Vec<_>>(), read.len()), (events.to_vec(), 4));
        assert_eq!(read, note(&events));
    }

    #[test]
    fn what_is_no_note_is_refused() {
        for bytes in [&[0][..], &[0, 0, 0, 0], &[0x80], &[0, 3], &[0xff; 11], &[1, 0, 0, 0]] {
            assert!(OutcomeNote::from_bytes(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn every_event_has_an_outcome() {
        let note = note(&[
            event(4, 1, Verdict::Duplicate),
            event(5, 0, Verdict::RecordQuarantined),
            event(7, 0, Verdict::Quarantined),
        ]);
        let mut reader = note.reader();
        let outcomes = [(4, 0), (4, 1), (5, 0), (5, 1), (6, 0), (7, 0), (7, 1)]
            .map(|(o, i)| reader.outcome(o, i));
        let (counted, set_aside) = (Outcome::Counted, Outcome::Quarantined);
        assert_eq!(
            outcomes,
            [counted, Outcome::Duplicate, set_aside, set_aside, counted, set_aside, counted]
        );
        // A record of no event is passed over, and so is all that lies before the first event asked.
        assert_eq!(note.reader().outcome(7, 0), set_aside);
        assert_eq!(note.reader().outcome(6, 0), counted);
        assert_eq!((reader.finish(), note.reader().finish()), (0, 2));
        let mut skipping = note.reader();
        skipping.skip_record(4);
        assert_eq!((skipping.outcome(7, 0), skipping.finish()), (set_aside, 0));
        for outcome in outcomes {
            assert_eq!(Outcome::from_name(outcome.name().as_bytes()), Some(outcome));
        }
    }

    proptest! {
        #[test]
        fn any_note_comes_back_and_is_cut_by_offset(
            steps in proptest::collection::vec((0u64..3, 0u32..5, 0u64..3), 0..40),
            first in prop_oneof![Just(0), any::<u32>().prop_map(u64::from)],
            cut in 0u64..60,
        ) {
            let mut events: Vec<UncountedEvent> = Vec::new();
            for (step, ahead, code) in steps {
                let (offset, index) = match events.last() {
                    Some(last) if step == 0 => (last.offset, last.index + 1 + ahead),
                    last => (last.map_or(first, |last| last.offset) + step, ahead),
                };
                let verdict = Verdict::from_code(code).expect("a verdict");
                if events.last().is_none_or(|last| last.place() < (offset, index)) {
                    events.push(event(offset, index, verdict));
                }
            }
            let whole = note(&events);
            prop_assert_eq!(OutcomeNote::from_bytes(whole.as_bytes()), Ok(whole.clone()));
            let at = first + cut;
            let mut halves = OutcomeNote::default();
            halves.extend_within(&whole, OffsetRange { from: 0, to: at });
            halves.extend_within(&whole, OffsetRange { from: at, to: u64::MAX });
            prop_assert_eq!(&halves, &whole);
            let mut reader = whole.reader();
            for event in &events {
                prop_assert_eq!(reader.outcome(event.offset, event.index), event.verdict.outcome());
            }
        }

        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(note) = OutcomeNote::from_bytes(&bytes) {
                prop_assert_eq!(note.iter().count() as u64, note.len());
            }
        }
    }
}

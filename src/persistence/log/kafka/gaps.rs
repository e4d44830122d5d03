//! Gaps: offsets of a partition that no reader is ever given.
//!
//! Kafka writes records of its own into a partition, which no client hands out: the ends of
//! transactions. Rollmill uses none, so another program did, and nothing that a gateway was
//! acknowledged can lie there. A gap that compaction or damage made looks the same to a reader, but
//! not to the broker: it finds no record at those offsets when it is asked by time
//! (docs/adr/0020-gaps.md).

use super::append_times::max_time_below;
use crate::model::offset::{Offset, OffsetRange};
use crate::model::record::{self, Record};
use crate::model::window::Millis;

/// Longer gaps are for people to look at.
const MAX_GAP_LEN: u64 = 64;

/// The largest time below the gap; below all times at the start of the log.
///
/// # Errors
/// If a question is not answered.
pub(super) fn max_time_below_gap<E>(
    gap: OffsetRange,
    start: Offset,
    first_since: impl FnMut(Millis) -> Result<Option<Offset>, E>,
) -> Result<Millis, E> {
    if gap.from <= start { Ok(-1) } else { max_time_below(gap.from, 0, first_since) }
}

/// The append time of each offset of the gap, if the broker has a record at every single one: the
/// client has handed out none of them, so they are the broker's own. `below` is the largest time
/// below the gap. Records that have no later time than one before them are not found by time, and
/// nothing is proved.
///
/// # Errors
/// If a question is not answered.
pub(super) fn control_record_times<E>(
    gap: OffsetRange,
    below: Millis,
    mut first_since: impl FnMut(Millis) -> Result<Option<Offset>, E>,
) -> Result<Option<Vec<Millis>>, E> {
    if gap.len() > MAX_GAP_LEN {
        return Ok(None);
    }
    let (mut reached, mut times) = (below, Vec::new());
    for offset in gap.from..gap.to {
        if first_since(reached + 1)? != Some(offset) {
            return Ok(None);
        }
        reached = max_time_below(offset + 1, reached + 1, &mut first_since)?;
        times.push(reached);
    }
    Ok(Some(times))
}

/// What stands for an offset that is passed: a record without events, so that offsets stay dense
/// for everybody behind the log.
pub(super) fn placeholder_record() -> Vec<u8> {
    let nothing = Record {
        version: record::VERSION_1,
        tenant: "",
        gateway: 0,
        series: Vec::new(),
        events: Vec::new(),
        stamp: None,
    };
    let mut payload = Vec::new();
    record::encode(&nothing, &mut payload);
    payload
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A partition by the times of its records; a record that is not there has none.
    fn since(times: &[Option<Millis>]) -> impl FnMut(Millis) -> Result<Option<Offset>, Infallible> {
        move |time| {
            Ok(times.iter().position(|at| at.is_some_and(|at| at >= time)).map(|at| at as Offset))
        }
    }

    fn kept(times: &[Option<Millis>], from: Offset, to: Offset) -> Option<Vec<Millis>> {
        let gap = OffsetRange { from, to };
        let below = max_time_below_gap(gap, 0, since(times)).expect("answered");
        control_record_times(gap, below, since(times)).expect("answered")
    }

    #[test]
    fn what_the_broker_has_at_every_offset_is_its_own() {
        let times = [5, 7, 9, 9, 12, 20].map(Some);
        assert_eq!(kept(&times, 2, 3), Some(vec![9]));
        assert_eq!(kept(&times, 4, 6), Some(vec![12, 20]));
        assert_eq!(kept(&times, 0, 2), Some(vec![5, 7]), "nothing lies below");
        assert_eq!(kept(&times, 3, 4), None, "not later than the one before it: nothing is proved");
        assert_eq!(kept(&times, 2, 4), None);
    }

    #[test]
    fn what_the_broker_does_not_have_is_lost() {
        for (at, time) in [(2, 9), (4, 12)] {
            let mut times = [5, 7, 9, 11, 12, 20].map(Some);
            assert_eq!(kept(&times, at, at + 1), Some(vec![time]));
            times[at as usize] = None;
            assert_eq!(kept(&times, at, at + 1), None);
            assert_eq!(kept(&times, at, at + 2), None);
        }
        let times = [Some(5), None, Some(9)];
        assert_eq!(kept(&times, 1, 3), None);
    }

    #[test]
    fn clocks_that_go_back_prove_nothing_wrong() {
        let times = [5, 30, 9, 31].map(Some);
        assert_eq!(kept(&times, 2, 3), None, "a new leader's clock is behind");
        assert_eq!(kept(&times, 3, 4), Some(vec![31]));
        assert_eq!(kept(&[Some(5); 70], 0, 70), None, "too long");
    }

    #[test]
    fn what_stands_in_for_an_offset_has_no_event() {
        let payload = placeholder_record();
        let record = record::decode(&payload).expect("a record");
        assert_eq!((record.tenant, record.series.len(), record.events.len()), ("", 0, 0));
    }
}

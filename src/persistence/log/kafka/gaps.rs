//! Gaps: offsets of a partition that are never returned to a reader.
//!
//! Kafka writes control records, such as the ends of transactions, and clients do not return them.
//! Rollmill uses no transactions, so another program did, and nothing acknowledged by a gateway can
//! be at those offsets. To a reader, a gap from compaction or damage looks the same. A query by
//! time tells them apart: the broker finds a control record, but nothing in the other gaps
//! (docs/adr/0020-gaps.md).

use super::append_times::max_time_below;
use crate::model::offset::{Offset, OffsetRange};
use crate::model::record::{self, Record};
use crate::model::window::Millis;

/// Longer gaps are left to an operator.
const MAX_GAP_LEN: u64 = 64;

/// The greatest time below the gap. At the start of the log, less than any time. Fails
/// if a request fails.
pub(super) fn max_time_below_gap<E>(
    gap: OffsetRange,
    start: Offset,
    first_since: impl FnMut(Millis) -> Result<Option<Offset>, E>,
) -> Result<Millis, E> {
    if gap.from <= start { Ok(-1) } else { max_time_below(gap.from, 0, first_since) }
}

/// The append time of each offset of the gap, if the broker has a record at every one. As clients
/// are given none of them, they are control records. `below` is the greatest time below the gap. A
/// record that is not later than all before it cannot be found by time, and then nothing is proved.
/// Fails if a request fails.
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

/// A record without events in place of a skipped offset, so that offsets stay dense for everybody
/// who reads the log.
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

    /// A partition given by the times of its records; missing records have none.
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

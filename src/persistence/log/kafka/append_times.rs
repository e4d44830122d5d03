//! Append times: the running maximum, per shard, of the lesser of the gateway's stamp and
//! `LogAppendTime`.
//!
//! Leaders write the time of their own clock, and so do gateways. The lesser of both is ahead only
//! if both clocks are, so a single wrong clock moves nothing forward. The running maximum never
//! decreases and is a function of the log alone; whoever applies or archives records computes it,
//! starting from the checkpoint or the previous object.
//!
//! Records of version 1 have no stamp, only `LogAppendTime`. Their maximum below an offset can be
//! found without reading them, as the first start of a shard after an upgrade must: Kafka returns
//! the first record with a time of at least t, and that record is below the offset exactly if the
//! maximum is at least t. Deleting records does not change the running maximum of the others,
//! because the log is released only up to a record that is later than all before it (`release`).

use crate::model::offset::Offset;
use crate::model::record;
use crate::model::window::Millis;

/// The lesser of the stamp in a record and `time`, its `LogAppendTime`.
pub(super) fn append_time(time: Millis, payload: &[u8]) -> Millis {
    record::stamp_of(payload).map_or(time, |stamp| stamp.min(time))
}

/// The greatest time of a record below `from`. `known` is the time of one of those records, and
/// `first_since` finds the first record with at least a given time. Usually needs one request,
/// because clocks seldom go back. Fails if a request fails.
pub(super) fn max_time_below<E>(
    from: Offset,
    known: Millis,
    mut first_since: impl FnMut(Millis) -> Result<Option<Offset>, E>,
) -> Result<Millis, E> {
    let mut reached =
        |time: Millis| first_since(time).map(|found| found.is_some_and(|offset| offset < from));
    // Invariant: the maximum is at least `low`. Doubling steps find a bound above it, then bisect.
    let (mut low, mut step) = (known, 1);
    while reached(low.saturating_add(step))? {
        low = low.saturating_add(step);
        step = step.saturating_mul(2);
    }
    let mut high = low.saturating_add(step);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if reached(middle)? { low = middle } else { high = middle }
    }
    Ok(low)
}

/// The greatest offset up to `floor` that may be released: its record is later than all before it,
/// and none below it has a time of `before` or later. `None` if there is no such record above
/// `start`. Fails if a request fails.
pub(super) fn releasable<E>(
    start: Offset,
    floor: Offset,
    before: Millis,
    mut first_since: impl FnMut(Millis) -> Result<Option<Offset>, E>,
) -> Result<Option<Offset>, E> {
    // Whatever `first_since` finds is later than all records before it, and a later time never
    // finds an earlier record. So the search can bisect.
    let mut below =
        |time: Millis| first_since(time).map(|found| found.filter(|offset| *offset <= floor));
    let useful = |found: Option<Offset>| found.filter(|offset| *offset > start);
    if let Some(found) = below(before)? {
        return Ok(useful(Some(found)));
    }
    let (mut high, mut step, mut best) = (before, 1, None);
    while best.is_none() && high > 0 {
        let time = before.saturating_sub(step).max(0);
        best = below(time)?.map(|offset| (time, offset));
        if best.is_none() {
            high = time;
            step = step.saturating_mul(2);
        }
    }
    let Some((mut low, mut offset)) = best else { return Ok(None) };
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match below(middle)? {
            Some(found) => (low, offset) = (middle, found),
            None => high = middle,
        }
    }
    Ok(useful(Some(offset)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first_since(
        times: &[Millis],
        start: usize,
    ) -> impl Fn(Millis) -> Result<Option<Offset>, ()> + '_ {
        move |time| {
            Ok(times.iter().skip(start).position(|t| *t >= time).map(|at| (at + start) as Offset))
        }
    }

    #[test]
    fn one_clock_that_is_ahead_moves_nothing_forward() {
        let stamped = |stamp: Millis| {
            let mut bytes = Vec::new();
            let (series, events) = (Vec::new(), Vec::new());
            let version = record::VERSION;
            record::encode(
                &record::Record {
                    version,
                    tenant: "t",
                    gateway: 1,
                    series,
                    events,
                    stamp: Some(stamp),
                },
                &mut bytes,
            );
            bytes
        };
        assert_eq!(append_time(1_000, &stamped(990)), 990);
        assert_eq!(append_time(1_000, &stamped(i64::MAX)), 1_000, "the gateway is ahead");
        assert_eq!(append_time(i64::MAX, &stamped(990)), 990, "the broker is ahead");
        assert_eq!(append_time(1_000, b"of version 1, or no record"), 1_000);
    }

    #[test]
    fn a_clock_that_does_not_go_back_costs_one_question() {
        let times: Vec<Millis> = (0..100).map(|i| 1_000 + i * 7).collect();
        let mut asked = 0;
        let maximum = max_time_below(60, times[59], |time| {
            asked += 1;
            first_since(&times, 0)(time)
        });
        assert_eq!((maximum, asked), (Ok(times[59]), 1));
    }

    proptest! {
        /// The append time of a record does not depend on where reading starts
        /// or what was released.
        #[test]
        fn the_append_time_does_not_depend_on_where_reading_starts(
            times in prop::collection::vec(0i64..200, 1..60),
            floor in 0u64..60,
            before in 0i64..250,
            from in 0usize..60,
        ) {
            let max_so_far = |max: &mut Millis, t: &Millis| {
                *max = (*t).max(*max);
                Some(*max)
            };
            let running: Vec<Millis> = times.iter().scan(0, max_so_far).collect();
            let released = releasable(0, floor, before, first_since(&times, 0)).expect("answers");
            let start = released.unwrap_or(0) as usize;
            prop_assert!(start as u64 <= floor && times[..start].iter().all(|t| *t < before));
            let best = (1..times.len()).rev().find(|at| {
                *at as u64 <= floor && times[..*at].iter().all(|t| *t < times[*at] && *t < before)
            });
            prop_assert_eq!(start, best.unwrap_or(0), "as much as may be is released");
            prop_assert_eq!(times[start], running[start]);
            if from > start && from < times.len() {
                let found = first_since(&times, start);
                let maximum = max_time_below(from as Offset, times[from - 1], found);
                prop_assert_eq!(maximum, Ok(running[from - 1]));
            }
        }
    }
}

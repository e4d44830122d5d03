//! A reader that holds every answer against what may have been served while it was made.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::{Served, World, hour_of, tag_of};
use crate::ledger::{DAYS, FIRST_HOUR, METRICS};
use crate::load::{ReadStats, as_of_ms, get, impatient, range};
use crate::rng::Rng;

/// Queries one node after another in a loop.
pub fn reader(world: &World<'_>, seed: u64, stop: &AtomicBool, stats: &ReadStats) {
    let (agent, mut rng) = (impatient(), Rng(seed));
    for url in world.urls.iter().cycle().take_while(|_| !stop.load(Ordering::SeqCst)) {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let (metric, step) = (rng.below(METRICS), ["1d", "1h"][rng.below(2) as usize]);
        let path = format!("{url}/v1/query?metric=m{metric}&{}&by=tag&step={step}", range());
        let moment = world.moment();
        let Some((200, answer)) = get(&agent, &path) else {
            stats.unanswered.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        let served = served_days(&answer);
        let possible = world.possible_since(moment);
        let was_served = |state: &Served| state[metric as usize] == served;
        assert!(
            possible.iter().any(was_served),
            "m{metric} was answered from {served:?}, and may have been served from {possible:?}: \
             {answer}"
        );
        let counted = counts_by_day(world, &answer, served);
        if answer["completeness"]["partial"] != false {
            stats.partial.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let (least, most) = (world.ledger.acked_before(as_of_ms(&answer)), world.ledger.sent());
        for day in 0..DAYS {
            let only_odd = world.correction(served[day]).only_odd;
            let bounds = [least, most].map(|counts| counts.of(metric, day, only_odd));
            assert!(
                (bounds[0]..=bounds[1]).contains(&counted[day]),
                "a complete answer of m{metric} has {} events on day {day} in generation {}, \
                 {bounds:?} is possible: {answer}",
                counted[day],
                served[day]
            );
        }
        stats.complete.fetch_add(1, Ordering::SeqCst);
    }
}

/// The generation of each day, as the answer says.
fn served_days(answer: &Value) -> [u64; DAYS] {
    let mut served = [0; DAYS];
    let pieces = answer["completeness"]["generations"].as_array().cloned().unwrap_or_default();
    for piece in pieces {
        let hour = |name: &str| {
            let at: jiff::Timestamp =
                piece[name].as_str().expect("a bound").parse().expect("a time");
            (at.as_millisecond() / 3_600_000) as u64 - FIRST_HOUR
        };
        let (from, to) = (hour("from"), hour("to"));
        assert!(from % 24 == 0 && to % 24 == 0, "a piece is no whole days: {answer}");
        let id = piece["generation"].as_u64().expect("a number");
        served[from as usize / 24..to as usize / 24].fill(id);
    }
    served
}

/// The events of each day. Every figure must be of the generation that is served on its day.
fn counts_by_day(world: &World<'_>, answer: &Value, served: [u64; DAYS]) -> [u64; DAYS] {
    let mut counted = [0; DAYS];
    for series in answer["series"].as_array().expect("series") {
        let tag = tag_of(&series["labels"]);
        for point in series["points"].as_array().expect("points") {
            let day = ((hour_of(point) - FIRST_HOUR) / 24) as usize;
            let count = point["count"].as_u64().expect("a count");
            let wanted = world.correction(served[day]).tag;
            assert!(
                count == 0 || tag == wanted,
                "generation {} is served on day {day}, whose tag is {wanted:?}, and the answer \
                 mixes it with {tag:?}: {answer}",
                served[day]
            );
            counted[day] += count;
        }
    }
    counted
}

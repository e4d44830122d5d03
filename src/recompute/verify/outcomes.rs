//! Compares the outcomes that archive objects carry with those of the fold. Pure.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::model::manifest::ManifestRow;
use crate::model::offset::{Offset, OffsetRange};
use crate::model::outcome::{Outcome, OutcomeNote, UncountedEvent, Verdict};
use crate::model::window::Millis;
use crate::persistence::store::StoreDamage;

/// Most events per object that are reported one by one; the rest is reported as a number.
const MAX_REPORTED: usize = 10;

/// An event of which archive and fold disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OutcomeDifference {
    place: (Offset, u32),
    archived: Outcome,
    folded: Outcome,
}

/// The index of the first object whose duplicates a fold decides as ingest did: no event in it can
/// repeat one of before the fold. `before` is the append time of the record before the first
/// object; `None` if there was none.
pub(super) fn first_certain(
    objects: &[&ManifestRow],
    before: Option<Millis>,
    horizon_ms: i64,
) -> usize {
    let Some(mut before) = before else { return 0 };
    for (at, object) in objects.iter().enumerate() {
        if object.appended.0.saturating_sub(before) > horizon_ms {
            return at;
        }
        before = object.appended.1;
    }
    objects.len()
}

/// Names the events of the object below `until` whose outcome is another one in the fold. An event
/// that was set aside and is counted now is not among them: it was released.
pub(super) fn compare(
    object: &ManifestRow,
    until: Offset,
    archived: &OutcomeNote,
    folded: &OutcomeNote,
) -> Vec<StoreDamage> {
    let range = OffsetRange { to: object.range.to.min(until), ..object.range };
    let found = differences(range, archived, folded);
    let damage = |reason: String| StoreDamage { location: "archive".to_owned(), reason };
    let path = &object.path;
    let named = found.iter().take(MAX_REPORTED).map(|event| {
        damage(format!(
            "{path}, offset {}, event {}: it says {}, the records give {}",
            event.place.0,
            event.place.1,
            event.archived.name(),
            event.folded.name()
        ))
    });
    let more = found.len().saturating_sub(MAX_REPORTED);
    let rest = (more > 0).then(|| damage(format!("{path}: and {more} more events")));
    named.chain(rest).collect()
}

fn differences(
    range: OffsetRange,
    archived: &OutcomeNote,
    folded: &OutcomeNote,
) -> Vec<OutcomeDifference> {
    // A record that was set aside whole may seem to have any number of events.
    let whole: BTreeSet<Offset> = [archived, folded]
        .into_iter()
        .flat_map(OutcomeNote::iter)
        .filter(|event| event.verdict == Verdict::RecordQuarantined)
        .map(|event| event.offset)
        .collect();
    let within = |event: &UncountedEvent| {
        range.from <= event.offset
            && event.offset < range.to
            && !(whole.contains(&event.offset) && event.verdict.outcome() == Outcome::Quarantined)
    };
    let mut archived = archived.iter().filter(within).peekable();
    let mut folded = folded.iter().filter(within).peekable();
    let mut found = Vec::new();
    loop {
        let place = |event: &UncountedEvent| (event.offset, event.index);
        let (a, f) = (archived.peek().map(place), folded.peek().map(place));
        let (order, at) = match (a, f) {
            (None, None) => return found,
            (Some(a), None) => (Ordering::Less, a),
            (None, Some(f)) => (Ordering::Greater, f),
            (Some(a), Some(f)) => (a.cmp(&f), a.min(f)),
        };
        let outcome = |event: Option<UncountedEvent>| {
            event.map_or(Outcome::Counted, |event| event.verdict.outcome())
        };
        let says = outcome(if order.is_le() { archived.next() } else { None });
        let gives = outcome(if order.is_ge() { folded.next() } else { None });
        let released = says == Outcome::Quarantined && gives == Outcome::Counted;
        if says != gives && !released {
            found.push(OutcomeDifference { place: at, archived: says, folded: gives });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::Tier;
    use crate::model::offset::{Epoch, LogId, ShardId};

    fn note(events: &[(u64, u32, Verdict)]) -> OutcomeNote {
        let mut note = OutcomeNote::default();
        for &(offset, index, verdict) in events {
            note.push(UncountedEvent { offset, index, verdict });
        }
        note
    }

    fn object(appended: (Millis, Millis)) -> ManifestRow {
        ManifestRow {
            log: LogId([0; 16]),
            shard: ShardId(0),
            range: OffsetRange { from: 10, to: 20 },
            epoch: Epoch { counter: 1, nonce: 1 },
            path: "an/object".to_owned(),
            appended,
            received: appended,
            windows: vec![],
            rows: 1,
            raw_bytes: 1,
            bytes: 1,
            crc32c: 0,
            tier: Tier::Hot,
        }
    }

    #[test]
    fn an_event_with_another_outcome_is_named() {
        use Verdict::{Duplicate, Quarantined, RecordQuarantined};
        let object = object((0, 0));
        let told = |archived: &[(u64, u32, Verdict)], folded: &[(u64, u32, Verdict)]| {
            let found = compare(&object, 15, &note(archived), &note(folded));
            found.into_iter().map(|damage| damage.reason).collect::<Vec<_>>()
        };
        let same = [(10, 1, Duplicate), (11, 0, Quarantined), (14, 2, Duplicate)];
        assert!(told(&same, &same).is_empty());
        assert!(told(&same, &[same[0], same[2]]).is_empty(), "released since");
        assert!(told(&same, &[same[0], same[1], same[2], (15, 0, Duplicate)]).is_empty(), "above");
        let say = |place: &str, says: &str, gives: &str| {
            format!("an/object, {place}: it says {says}, the records give {gives}")
        };
        assert_eq!(
            told(
                &[(10, 0, Duplicate), (12, 1, Quarantined)],
                &[(10, 1, Duplicate), (12, 1, Duplicate)]
            ),
            [
                say("offset 10, event 0", "duplicate", "counted"),
                say("offset 10, event 1", "counted", "duplicate"),
                say("offset 12, event 1", "quarantined", "duplicate"),
            ]
        );
        let record = [(11, 0, Quarantined), (11, 1, Quarantined)];
        assert!(told(&record, &[(11, 0, RecordQuarantined)]).is_empty());
        assert!(told(&[], &[(11, 0, RecordQuarantined)]).is_empty(), "its rows are no events");
        let many: Vec<_> = (0..13).map(|index| (10, index, Duplicate)).collect();
        let told = told(&many, &[]);
        assert_eq!((told.len(), &*told[10]), (11, "an/object: and 3 more events"));
    }

    #[test]
    fn what_may_repeat_an_expired_event_is_not_compared() {
        let objects = [object((0, 5)), object((90, 100)), object((201, 210)), object((211, 220))];
        let rows: Vec<&ManifestRow> = objects.iter().collect();
        assert_eq!(first_certain(&rows, None, 100), 0, "from the first record on");
        assert_eq!(first_certain(&rows, Some(-101), 100), 0);
        assert_eq!(first_certain(&rows, Some(-100), 100), 2, "only a gap ends the chain");
        assert_eq!(first_certain(&rows[2..], Some(200), 100), 2, "never");
    }
}

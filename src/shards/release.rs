//! Release of a quarantined event: computes what the event adds, with the same apply path that live
//! shards and recomputation use.
//!
//! A released event lands where recomputing its record would put it, because the admissions at its
//! offset decide: in its own series if that was admitted by then, otherwise in the overflow series
//! that stands in for it. So it is in each generation that the shard writes, under its rules and
//! with the admissions of the writer that has passed the event. An event that cannot be folded is
//! refused and stays in quarantine.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::driver::{ShardCommand, ShardDriver, ShardEvent, StepContext};
use super::generations::{ActiveSet, OpenGeneration, SourceEvent};
use super::series::SeriesAdmission;
use super::state::{ShardLimits, ShardState};
use crate::model::CodecError;
use crate::model::flush::{
    Claim, FlushBatch, GenerationDeltas, LogRecord, QuarantineRow, SeriesInfo,
};
use crate::model::generation::{GenerationId, MaintainedSet, WriterPart};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset};
use crate::model::record::{self, RecordEvent, SeriesEntry};
use crate::model::release::{ReleaseBasis, ReleasedEvent};
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;

/// Why an event cannot be released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReleaseError(String);

/// What a release reads of the generations of the event's shard.
#[derive(Debug, Default)]
pub struct ReleaseGenerations {
    /// The set that the shard writes under.
    pub set: MaintainedSet,
    /// Which writers have passed the event.
    pub basis: ReleaseBasis,
    /// What these have admitted.
    pub admissions: BTreeMap<GenerationId, Vec<(SeriesId, Offset)>>,
}

/// Folds one quarantined event. `admissions` are those of its shard in generation 0.
///
/// # Errors
/// Fails if this build cannot read the record or the rules of a generation, if the record is not a
/// single event, or if folding would quarantine the event again.
pub fn fold(
    limits: &ShardLimits,
    row: &QuarantineRow,
    admissions: Vec<(SeriesId, Offset)>,
    generations: ReleaseGenerations,
) -> Result<ReleasedEvent, ReleaseError> {
    let record =
        record::decode(&row.record).map_err(|e| ReleaseError(format!("it cannot be read: {e}")))?;
    let [event] = &record.events[..] else {
        return Err(ReleaseError(format!(
            "it is a whole record of {} events: no gateway of this cluster wrote it, or no \
             build could read it then, and whether its events were counted since, by a retry \
             under the same ids, is not known; if they are missing, send them again, and discard \
             it",
            record.events.len()
        )));
    };
    let batch = fold_ingest(limits, row, admissions)?;
    let entry = &record.series[event.series as usize];
    let of_others = fold_generations(row, (entry, event), &generations)?;
    Ok(ReleasedEvent {
        deltas: batch.deltas.clone(),
        generations: of_others,
        basis: generations.basis,
    })
}

fn fold_ingest(
    limits: &ShardLimits,
    row: &QuarantineRow,
    admissions: Vec<(SeriesId, Offset)>,
) -> Result<Arc<FlushBatch>, ReleaseError> {
    // Only the offset matters: the batch is merged under the quarantine row,
    // not under a checkpoint.
    let checkpoint = Checkpoint {
        log: LogId([0; 16]),
        next: row.offset,
        archived: row.offset,
        epoch: Epoch { counter: 0, nonce: 0 },
        appended: None,
    };
    let claim =
        Claim { checkpoint, attempts: 1, suspects: Vec::new(), set: MaintainedSet::default() };
    let admission = SeriesAdmission::recorded(admissions).for_shard(row.shard);
    // Empty de-duplication: the id of the event was remembered when it was quarantined, so it would
    // be a duplicate of itself.
    let state =
        ShardState::new(limits.clone(), row.shard, &claim, Vec::new(), admission, row.offset);
    let one = LogRecord {
        offset: row.offset,
        appended: row.received,
        received: row.received,
        payload: row.record.clone().into(),
    };
    let (mut driver, mut commands) = (ShardDriver::from(state), VecDeque::new());
    // A drain flushes whatever the time is.
    let at = StepContext { now: 0, log_end: row.offset + 1 };
    driver.handle(at, ShardEvent::LogRead(Ok(vec![one].into())), &mut commands);
    driver.handle(at, ShardEvent::Drain, &mut commands);
    let batch = commands.into_iter().find_map(|command| match command {
        ShardCommand::Commit { batch, .. } => Some(batch),
        _ => None,
    });
    let batch = batch.ok_or_else(|| ReleaseError("its fold gave nothing".to_owned()))?;
    match batch.quarantined.first() {
        Some(again) => Err(ReleaseError(again.reason.clone())),
        None => Ok(batch),
    }
}

/// Folds an event, which generation 0 has taken, into the generations whose writer has passed it.
fn fold_generations(
    row: &QuarantineRow,
    (entry, event): (&SeriesEntry<'_>, &RecordEvent<'_>),
    generations: &ReleaseGenerations,
) -> Result<Vec<(WriterPart, GenerationDeltas)>, ReleaseError> {
    let unreadable = |what: &str, why: CodecError| ReleaseError(format!("{what}: {why}"));
    let set = ActiveSet::compile(&generations.set)
        .map_err(|why| unreadable("this build cannot read the rules of a replay", why))?;
    let series = Series::from_key(entry.key).map_err(|why| unreadable("it cannot be read", why))?;
    let series = Arc::new(SeriesInfo { id: entry.series_id(), series });
    let source = SourceEvent {
        series: &series,
        value: event.value,
        user: event.user_hash(),
        time: event.timestamp,
        raw: event.raw,
        offset: row.offset,
    };
    let Series { tenant, metric, .. } = &series.series;
    let mut folded = Vec::new();
    for range in set.on(tenant, metric, Hour::of(event.timestamp).day()) {
        let Some(part) = generations.basis.writer(range.generation) else { continue };
        let admitted = generations.admissions.get(&range.generation).cloned().unwrap_or_default();
        let mut admission = SeriesAdmission::recorded(admitted).for_shard(row.shard);
        let mut open = OpenGeneration::default();
        open.fold(&source, &range.rules, &mut admission);
        let (mut deltas, _) = open.freeze(range.generation);
        // Known series were admitted before; the store numbers an overflow series as it merges.
        deltas.admitted.clear();
        folded.push((part, deltas));
    }
    Ok(folded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flush::FillProgress;
    use crate::model::generation::{DayRange, MaintainedRange};
    use crate::model::offset::ShardId;
    use crate::model::record::Record;

    const LIMITS: ShardLimits = ShardLimits {
        dedup_horizon_ms: 1,
        dedup_max_ids: 1,
        flush_interval_ms: 1,
        max_delta_bytes: 1 << 20,
        keep_flushed_ms: 1,
        shard_count: 1,
        panic_on_user: None,
    };

    fn row(series: &Series, id: SeriesId, events: usize) -> QuarantineRow {
        let key = series.key();
        let event = RecordEvent {
            series: 0,
            timestamp: 7_200_000,
            value: None,
            user: Some("u"),
            id: Some("a"),
            raw: b"{}",
        };
        let series = vec![SeriesEntry { id: &id.0, key: &key }];
        let mut record = Vec::new();
        let events = vec![event; events];
        record::encode(
            &Record {
                version: record::VERSION,
                tenant: "t",
                gateway: 0,
                series,
                events,
                stamp: Some(1),
            },
            &mut record,
        );
        let (reason, tenant) = (String::new(), "t".to_owned());
        QuarantineRow {
            shard: ShardId(0),
            offset: 5,
            index: 3,
            tenant,
            received: 1,
            reason,
            discarded: false,
            record,
        }
    }

    #[test]
    fn an_event_goes_where_recomputing_puts_it() {
        let series = Series::new("t", "m", [("page".to_owned(), "/".to_owned())]);
        let id = SeriesId::of_key(&series.key());
        let target = |admissions| {
            let none = ReleaseGenerations::default();
            let batch = fold(&LIMITS, &row(&series, id, 1), admissions, none).expect("folds");
            assert_eq!(
                (batch.deltas.len(), batch.deltas[0].hour, batch.deltas[0].rollup.figures.count),
                (1, Hour(2), 1)
            );
            batch.deltas[0].series.series.clone()
        };
        assert_eq!(target(vec![(id, 5)]), series, "admitted by then");
        assert_eq!(target(vec![(id, 6)]), series.overflow(), "admitted only later");
        assert_eq!(target(vec![]), series.overflow());
    }

    #[test]
    fn what_cannot_be_folded_is_refused() {
        let series = Series::new("t", "m", []);
        let id = SeriesId::of_key(&series.key());
        let why = |row: &QuarantineRow| {
            let none = ReleaseGenerations::default();
            fold(&LIMITS, row, vec![], none).expect_err("refused").to_string()
        };
        assert!(why(&row(&series, SeriesId([9; 16]), 1)).contains("hash"), "a lying id");
        assert!(why(&row(&series, id, 2)).contains("2 events"));
        assert!(
            why(&QuarantineRow { record: vec![1, 2, 3], ..row(&series, id, 1) })
                .contains("cannot be read")
        );
    }

    #[test]
    fn each_writer_that_has_passed_an_event_takes_it_under_its_rules() {
        let series = Series::new("t", "m", [("page".to_owned(), "/".to_owned())]);
        let id = SeriesId::of_key(&series.key());
        let range = |generation, days, rules: &str| MaintainedRange {
            tenant: "t".to_owned(),
            metric: "m".to_owned(),
            days,
            generation: GenerationId(generation),
            rules: rules.into(),
        };
        let drop = r#"{"rule": [{"name": "d", "drop": true}]}"#;
        let relabel = r#"{"rule": [
            {"name": "r", "set_label": {"label": "page", "value": "other"}}]}"#;
        let none = r#"{"rule": []}"#;
        let other_days = DayRange::new(1, None).expect("days");
        let ranges = vec![
            range(1, DayRange::ALWAYS, relabel),
            range(2, DayRange::ALWAYS, drop),
            range(3, DayRange::ALWAYS, none),
            range(4, DayRange::ALWAYS, none),
            range(5, other_days, none),
        ];
        let at = |cut, cursor| FillProgress { log: LogId([0; 16]), cut, cursor };
        // The event is at offset 5. Generation 4 was there from the first record on.
        let fills = [(1, at(9, 6)), (2, at(3, 0)), (3, at(9, 5)), (5, at(0, 0))];
        let fills = fills.map(|(id, at)| (GenerationId(id), at));
        let generations = ReleaseGenerations {
            set: MaintainedSet { version: 8, ranges },
            basis: ReleaseBasis::new(8, &fills, 5),
            admissions: BTreeMap::from([(GenerationId(4), vec![(id, 5)])]),
        };
        let event = fold(&LIMITS, &row(&series, id, 1), vec![], generations).expect("folds");
        assert_eq!(event.basis, ReleaseBasis::new(8, &fills, 5));
        let [relabelled, dropped, live] = &event.generations[..] else {
            panic!("{:?}", event.generations)
        };
        assert_eq!((relabelled.0, relabelled.1.generation.0), (WriterPart::Fill, 1));
        // Its writer has not admitted the series of the new label.
        assert_eq!(relabelled.1.deltas[0].series.series, series.overflow());
        assert_eq!((dropped.0, dropped.1.generation.0), (WriterPart::Live, 2));
        assert_eq!((dropped.1.deltas.len(), dropped.1.dropped[0].events), (0, 1));
        assert_eq!((live.0, live.1.generation.0), (WriterPart::Live, 4));
        assert_eq!(live.1.deltas[0].series.series, series);
        assert!(event.generations.iter().all(|(_, of)| of.admitted.is_empty()));
    }
}

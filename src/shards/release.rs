//! Release of a quarantined event: computes the delta that the event adds, with the same apply path
//! that live shards and recomputation use.
//!
//! A released event lands where recomputing its record would put it, because the admissions at its
//! offset decide: in its own series if that was admitted by then, otherwise in the overflow series
//! that stands in for it. An event that cannot be folded is refused and stays in quarantine.

use std::collections::VecDeque;
use std::sync::Arc;

use super::driver::{ShardCommand, ShardDriver, ShardEvent, StepContext};
use super::series::SeriesAdmission;
use super::state::{ShardLimits, ShardState};
use crate::model::flush::{Claim, FlushBatch, LogRecord, QuarantineRow};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset};
use crate::model::record;
use crate::model::series::SeriesId;

/// Why an event cannot be released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReleaseError(String);

/// Folds one quarantined event. `admissions` are those of its shard.
///
/// # Errors
/// Fails if this build cannot read the record, if it is not a single event, or if folding would
/// quarantine the event again.
pub fn fold(
    limits: &ShardLimits,
    row: &QuarantineRow,
    admissions: Vec<(SeriesId, Offset)>,
) -> Result<Arc<FlushBatch>, ReleaseError> {
    let events = record::decode(&row.record)
        .map_err(|e| ReleaseError(format!("it cannot be read: {e}")))?
        .events
        .len();
    if events != 1 {
        return Err(ReleaseError(format!(
            "it is a whole record of {events} events: no gateway of this cluster wrote it, or no \
             build could read it then, and whether its events were counted since, by a retry \
             under the same ids, is not known; if they are missing, send them again, and discard \
             it"
        )));
    }
    // Only the offset matters: the batch is merged under the quarantine row,
    // not under a checkpoint.
    let checkpoint = Checkpoint {
        log: LogId([0; 16]),
        next: row.offset,
        archived: row.offset,
        epoch: Epoch { counter: 0, nonce: 0 },
        appended: None,
    };
    let claim = Claim { checkpoint, attempts: 1, suspects: Vec::new() };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::ShardId;
    use crate::model::record::{Record, RecordEvent, SeriesEntry};
    use crate::model::series::Series;
    use crate::model::window::Hour;

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
            let batch = fold(&LIMITS, &row(&series, id, 1), admissions).expect("folds");
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
        let why =
            |row: &QuarantineRow| fold(&LIMITS, row, vec![]).expect_err("refused").to_string();
        assert!(why(&row(&series, SeriesId([9; 16]), 1)).contains("hash"), "a lying id");
        assert!(why(&row(&series, id, 2)).contains("2 events"));
        assert!(
            why(&QuarantineRow { record: vec![1, 2, 3], ..row(&series, id, 1) })
                .contains("cannot be read")
        );
    }
}

//! Recomputes the generations besides generation 0, and compares them writer by writer.
//!
//! A generation is verified on the days on which it is maintained: those that leave are being
//! deleted. Of each shard, the records from its cut on are the live writer's, and those below its
//! cursor are the fill's; what lies between is not filled yet. What ingest decided is taken from
//! the fold of generation 0, which is compared on its own. What each rule did is not compared: it
//! has no day, so days that left or expired are in it, and it decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::report::{GenerationCheck, RowDifference, UnfilledShard, VerifyReport};
use super::stored_row::{StoredRow, digest};
use crate::model::flush::{FillProgress, GenerationDeltas, LogRecord, SeriesInfo};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::offset::{Offset, ShardId};
use crate::model::outcome::{Outcome, OutcomeNote};
use crate::model::record;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;
use crate::persistence::store::{StoreDamage, StoreError, StoreSnapshot};
use crate::shards::generations::{ActiveSet, OpenGeneration, SourceEvent};
use crate::shards::series::SeriesAdmission;

/// Where a stored row of a generation is.
type RowKey = (GenerationId, Writer, SeriesId, Hour);
/// Where a count of dropped events is: generation, writer, tenant, metric, day.
type DroppedKey = (GenerationId, Writer, String, String, i32);

/// What one snapshot says about the maintained generations.
#[derive(Default)]
pub(super) struct StoredGenerations {
    set: ActiveSet,
    progress: HashMap<(GenerationId, ShardId), FillProgress>,
    admissions: HashMap<(GenerationId, Writer), Vec<(SeriesId, Offset)>>,
    rows: HashMap<RowKey, StoredRow>,
    dropped: BTreeMap<DroppedKey, u64>,
    /// What is told about each, apart from differences.
    checks: Vec<GenerationCheck>,
    /// Days of generations that are being deleted.
    leaving: u64,
}

/// What the rules made of the records of one shard.
pub(super) type FoldedGenerations = Vec<(WriterPart, GenerationDeltas)>;

impl StoredGenerations {
    /// Reads what is maintained. `shards` are those that have a checkpoint.
    pub(super) fn read(
        snapshot: &mut dyn StoreSnapshot,
        shards: &[ShardId],
        hours: &Range<Hour>,
    ) -> Result<Self, StoreError> {
        let book = snapshot.generation_book()?;
        let newest = book.newest_set();
        let set = ActiveSet::compile(&newest)?;
        let mut stored = Self { leaving: book.leaving().len() as u64, ..Self::default() };
        for generation in set.generations() {
            stored.read_progress(snapshot, generation, shards)?;
            for (writer, dropped) in snapshot.dropped_events(generation)? {
                let key = (generation, writer, dropped.tenant, dropped.metric, dropped.day);
                let is_maintained = set.on(&key.2, &key.3, key.4);
                if is_maintained.into_iter().any(|range| range.generation == generation) {
                    stored.dropped.insert(key, dropped.events);
                }
            }
        }
        for range in &newest.ranges {
            let (from, to) = range.days.hours();
            let within = (from.max(hours.start), to.min(hours.end));
            if within.0 < within.1 {
                let of = (&*range.tenant, &*range.metric);
                let rows = &mut stored.rows;
                let generation = range.generation;
                snapshot.generation_rows(
                    generation,
                    of,
                    within,
                    &mut |writer, info, hour, rollup, bytes| {
                        let (info, digest) = (info.clone(), digest(bytes));
                        let row = StoredRow { figures: rollup.figures, digest, info };
                        rows.insert((generation, writer, row.info.id, hour), row);
                        Ok(())
                    },
                )?;
            }
        }
        stored.set = set;
        Ok(stored)
    }

    fn read_progress(
        &mut self,
        snapshot: &mut dyn StoreSnapshot,
        generation: GenerationId,
        shards: &[ShardId],
    ) -> Result<(), StoreError> {
        let mut check = GenerationCheck { generation, ..GenerationCheck::default() };
        for (shard, at) in snapshot.fill_progress(generation)? {
            self.progress.insert((generation, shard), at);
            if !at.is_complete() {
                check.unfilled.push(UnfilledShard { shard, progress: Some(at) });
            }
        }
        for shard in shards {
            if !self.progress.contains_key(&(generation, *shard)) {
                check.unfilled.push(UnfilledShard { shard: *shard, progress: None });
            }
            for part in [WriterPart::Live, WriterPart::Fill] {
                let writer = Writer { shard: *shard, part };
                let admitted = snapshot.generation_admissions(generation, writer)?;
                self.admissions.insert((generation, writer), admitted);
            }
        }
        check.unfilled.sort_unstable_by_key(|unfilled| unfilled.shard);
        self.checks.push(check);
        Ok(())
    }

    /// Drops the rows of windows that cannot be verified. Returns how many.
    pub(super) fn drop_before(&mut self, before: Hour) -> u64 {
        let all = self.rows.len();
        self.rows.retain(|(_, _, _, hour), _| *hour >= before);
        (all - self.rows.len()) as u64
    }
}

/// The fold of one shard's records into the generations. Each writer has admissions of its own.
pub(super) struct GenerationFold<'a> {
    stored: &'a StoredGenerations,
    shard: ShardId,
    hours: &'a Range<Hour>,
    writers: BTreeMap<(GenerationId, WriterPart), FoldWriter>,
    /// By the id that the record gives; `None` if no generation has the metric.
    series: HashMap<SeriesId, Option<Arc<SeriesInfo>>>,
}

struct FoldWriter {
    open: OpenGeneration,
    admission: SeriesAdmission,
}

impl<'a> GenerationFold<'a> {
    pub(super) fn new(
        stored: &'a StoredGenerations,
        shard: ShardId,
        hours: &'a Range<Hour>,
    ) -> Self {
        Self { stored, shard, hours, writers: BTreeMap::new(), series: HashMap::new() }
    }

    /// Folds records. `noted` are those of their events that are not counted.
    ///
    /// # Errors
    /// Says what of the records contradicts that they were counted.
    pub(super) fn fold(
        &mut self,
        records: &[LogRecord],
        noted: &OutcomeNote,
    ) -> Result<(), String> {
        if self.stored.set.is_empty() {
            return Ok(());
        }
        let mut noted = noted.reader();
        for log_record in records {
            let offset = log_record.offset;
            let record = match record::decode(&log_record.payload) {
                Ok(record) => record,
                // Set aside whole, so none of its events is counted.
                Err(_) if noted.outcome(offset, 0) == Outcome::Quarantined => continue,
                Err(why) => return Err(format!("the record at offset {offset}: {why}")),
            };
            for (index, event) in record.events.iter().enumerate() {
                if noted.outcome(offset, index as u32) != Outcome::Counted {
                    continue;
                }
                let hour = Hour::of(event.timestamp);
                if !self.hours.contains(&hour) {
                    continue;
                }
                let entry = &record.series[event.series as usize];
                let series = self
                    .series(entry.series_id(), entry.key)
                    .map_err(|why| format!("the record at offset {offset}: {why}"))?;
                let Some(series) = series else { continue };
                self.fold_event(&SourceEvent {
                    series: &series,
                    value: event.value,
                    user: event.user_hash(),
                    time: event.timestamp,
                    raw: event.raw,
                    offset,
                });
            }
        }
        Ok(())
    }

    fn series(
        &mut self,
        id: SeriesId,
        key: &[u8],
    ) -> Result<Option<Arc<SeriesInfo>>, crate::model::CodecError> {
        if let Some(known) = self.series.get(&id) {
            return Ok(known.clone());
        }
        let series = Series::from_key(key)?;
        let is_wanted = self.stored.set.has_metric(&series.tenant, &series.metric);
        let info = is_wanted.then(|| Arc::new(SeriesInfo { id, series }));
        self.series.insert(id, info.clone());
        Ok(info)
    }

    fn fold_event(&mut self, event: &SourceEvent<'_>) {
        let stored = self.stored;
        let Series { tenant, metric, .. } = &event.series.series;
        for range in stored.set.on(tenant, metric, Hour::of(event.time).day()) {
            let id = range.generation;
            let at = stored.progress.get(&(id, self.shard));
            let Some(part) = at.and_then(|at| part_of(at, event.offset)) else { continue };
            let shard = self.shard;
            let writer = self.writers.entry((id, part)).or_insert_with(|| {
                let recorded = stored.admissions.get(&(id, Writer { shard, part }));
                let admission = SeriesAdmission::recorded(recorded.cloned().unwrap_or_default());
                FoldWriter {
                    open: OpenGeneration::default(),
                    admission: admission.for_shard(shard),
                }
            });
            writer.open.fold(event, &range.rules, &mut writer.admission);
        }
    }

    pub(super) fn finish(self) -> FoldedGenerations {
        let writers = self.writers.into_iter();
        writers.map(|((id, part), writer)| (part, writer.open.freeze(id).0)).collect()
    }
}

/// Who folds a record into a generation; `None` if it is not filled yet.
fn part_of(at: &FillProgress, offset: Offset) -> Option<WriterPart> {
    match offset {
        _ if offset >= at.cut => Some(WriterPart::Live),
        _ if offset < at.cursor => Some(WriterPart::Fill),
        _ => None,
    }
}

/// A comparison in progress: what is stored is removed as the folds produce it.
pub(super) struct GenerationComparison {
    stored: StoredGenerations,
    hours: Range<Hour>,
    /// Rows below are dropped by age, and not compared.
    kept_from: Hour,
    /// How many there would be.
    dropped_rows: u64,
    folded: BTreeSet<ShardId>,
    differences: Vec<RowDifference>,
    damages: Vec<StoreDamage>,
}

impl GenerationComparison {
    pub(super) fn new(stored: StoredGenerations, hours: Range<Hour>, kept_from: Hour) -> Self {
        let (folded, differences, damages) = (BTreeSet::new(), Vec::new(), Vec::new());
        Self { stored, hours, kept_from, dropped_rows: 0, folded, differences, damages }
    }

    /// What is stored, for the folds.
    pub(super) fn stored(&self) -> &StoredGenerations {
        &self.stored
    }

    /// Compares what one shard has written.
    pub(super) fn add_shard(&mut self, shard: ShardId, folded: FoldedGenerations) {
        for (generation, writer, _, hour) in self.stored.rows.keys() {
            let check = self.stored.checks.iter_mut().find(|of| of.generation == *generation);
            let is_compared = writer.shard == shard && *hour >= self.kept_from;
            if let Some(check) = check.filter(|_| is_compared) {
                check.rows += 1;
            }
        }
        self.folded.insert(shard);
        for (part, deltas) in folded {
            let (generation, writer) = (deltas.generation, Writer { shard, part });
            for delta in deltas.deltas {
                let key = (generation, writer, delta.series.id, delta.hour);
                let stored = self.stored.rows.remove(&key);
                if delta.hour < self.kept_from {
                    self.dropped_rows += 1;
                    continue;
                }
                let mut bytes = Vec::new();
                delta.rollup.encode(&mut bytes);
                if stored.as_ref().is_some_and(|row| row.digest == digest(&bytes)) {
                    continue;
                }
                self.differences.push(RowDifference {
                    written_by: Some((generation, writer)),
                    series: delta.series,
                    hour: delta.hour,
                    stored: stored.map(|row| row.figures),
                    recomputed: Some(delta.rollup.figures),
                });
            }
            for dropped in deltas.dropped {
                let key = (generation, writer, dropped.tenant, dropped.metric, dropped.day);
                self.compare_dropped(key, dropped.events);
            }
        }
    }

    fn compare_dropped(&mut self, key: DroppedKey, recomputed: u64) {
        let stored = self.stored.dropped.remove(&key).unwrap_or(0);
        let is_whole = covers_day(&self.hours, key.4);
        self.damages.extend(dropped_difference(&key, stored, recomputed).filter(|_| is_whole));
    }

    /// Reports what no record accounts for, and adds everything to the report. Returns how many
    /// rows were not compared because the store drops them by age. What rules dropped is counted
    /// for their days all the same.
    pub(super) fn finish(mut self, report: &mut VerifyReport) -> u64 {
        let Self { hours, folded, damages, stored, .. } = &mut self;
        let is_comparable =
            |key: &DroppedKey| folded.contains(&key.1.shard) && covers_day(hours, key.4);
        let left = stored.dropped.iter().filter(|(key, _)| is_comparable(key));
        damages.extend(left.filter_map(|(key, stored)| dropped_difference(key, *stored, 0)));
        let rows = self.stored.rows.into_iter();
        let rows = rows.filter(|((_, writer, ..), _)| self.folded.contains(&writer.shard));
        let (dropped, rows): (Vec<_>, Vec<_>) =
            rows.partition(|((.., hour), _)| *hour < self.kept_from);
        self.differences.extend(rows.into_iter().map(|((generation, writer, _, hour), row)| {
            RowDifference {
                written_by: Some((generation, writer)),
                series: row.info,
                hour,
                stored: Some(row.figures),
                recomputed: None,
            }
        }));
        report.differences.append(&mut self.differences);
        report.damages.append(&mut self.damages);
        (report.generations, report.leaving) = (self.stored.checks, self.stored.leaving);
        self.dropped_rows + dropped.len() as u64
    }
}

/// Counts of dropped events are of whole days, so those of a day that is cut cannot be compared.
fn covers_day(hours: &Range<Hour>, day: i32) -> bool {
    let (from, to) = (day.saturating_mul(24), day.saturating_add(1).saturating_mul(24));
    hours.start.0 <= from && to <= hours.end.0
}

fn dropped_difference(key: &DroppedKey, stored: u64, recomputed: u64) -> Option<StoreDamage> {
    let (generation, writer, tenant, metric, day) = key;
    (stored != recomputed).then(|| StoreDamage {
        location: "generation_dropped".to_owned(),
        reason: format!(
            "replay {generation}, {tenant}/{metric}, day {day} since 1970, {writer}: its rules \
             dropped {recomputed} events, and the store says {stored}"
        ),
    })
}

//! The open deltas of one generation: a map from series and hour to what they grew by.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

use super::live_query::LiveQuery;
use super::series::SeriesAdmission;
use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::flush::{Delta, SeriesInfo};
use crate::model::generation::GenerationId;
use crate::model::offset::Offset;
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId, metric_hash};
use crate::model::window::Hour;

/// Estimated bytes of a delta without its sketches, including its share of the maps.
const DELTA_BYTES: usize = 256;
/// Estimated bytes of a series entry, including its share of the maps.
const SERIES_BYTES: usize = 256;

/// The `(metric hash, hour)` pairs for which a batch holds deltas; the hash is [`metric_hash`].
pub type MetricWindows = HashSet<(u64, Hour), FixedState>;

#[derive(Debug)]
struct OpenDelta {
    series: u32,
    hour: Hour,
    rollup: Rollup,
}

/// What a batch knows about a series id. The key was checked against the id.
#[derive(Debug)]
pub enum SeriesLookup {
    /// Index of the series in this batch, or of the overflow series that stands in for it.
    InBatch(u32),
    /// The series was in the batch that was frozen last.
    InPreviousBatch(Arc<SeriesInfo>),
    /// Neither batch has the series.
    Unknown,
}

/// The series of the batch that was frozen last.
#[derive(Debug, Default)]
struct PreviousSeries {
    series: Vec<Arc<SeriesInfo>>,
    slots: HashMap<SeriesId, u32, FixedState>,
}

/// The deltas of a batch in one generation.
#[derive(Debug, Default)]
pub struct DeltaTable {
    /// Lets a series that occurs again reuse the parsed entry of the previous batch.
    previous: PreviousSeries,
    series: Vec<Arc<SeriesInfo>>,
    slots: HashMap<SeriesId, u32, FixedState>,
    deltas: Vec<OpenDelta>,
    /// The delta of the newest event, by slot: the next event of a series is mostly of the same
    /// hour, and needs no look-up.
    newest: Vec<Option<(Hour, u32)>>,
    by_series_hour: HashMap<(u32, Hour), u32, FixedState>,
    /// Indices into `deltas`, by [`metric_hash`].
    by_metric: HashMap<u64, Vec<u32>, FixedState>,
    windows: MetricWindows,
    admitted: Vec<(Arc<SeriesInfo>, Offset)>,
    bytes: usize,
}

/// A frozen table: deltas in key order, and the series that were first admitted in it.
pub type FrozenDeltas = (Vec<Delta>, Vec<(Arc<SeriesInfo>, Offset)>);

impl DeltaTable {
    /// Creates an empty table with capacity for as many series as the previous batch had.
    fn following(before: PreviousSeries) -> Self {
        let room = before.series.len();
        Self {
            previous: before,
            series: Vec::with_capacity(room),
            slots: HashMap::with_capacity_and_hasher(room, FixedState::default()),
            deltas: Vec::with_capacity(room),
            newest: Vec::with_capacity(room),
            by_series_hour: HashMap::with_capacity_and_hasher(room, FixedState::default()),
            ..Self::default()
        }
    }

    /// Estimated memory use in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.admitted.is_empty()
    }

    /// The series of an index.
    pub fn series(&self, slot: u32) -> &Arc<SeriesInfo> {
        &self.series[slot as usize]
    }

    /// Looks up a series by its id.
    ///
    /// # Errors
    /// Fails if `id` is not the hash of `key`. The check is made even for series that are already
    /// known, so that the verdict does not depend on what the batch happens to hold.
    pub fn look_up(&self, id: SeriesId, key: &[u8]) -> Result<SeriesLookup, CodecError> {
        if let Some(&slot) = self.slots.get(&id) {
            // For an overflow slot the stored key is that of the overflow series, so `key`
            // has to be hashed.
            if !self.series[slot as usize].series.has_key(key) {
                check_key(id, key)?;
            }
            return Ok(SeriesLookup::InBatch(slot));
        }
        let before = self.previous.slots.get(&id).map(|&slot| &self.previous.series[slot as usize]);
        match before.filter(|info| info.id == id && info.series.has_key(key)) {
            Some(info) => Ok(SeriesLookup::InPreviousBatch(info.clone())),
            None => check_key(id, key).map(|()| SeriesLookup::Unknown),
        }
    }

    /// Index of a series, or of the overflow series that stands in for it. `key` must hash
    /// to `id` (see [`DeltaTable::look_up`]).
    ///
    /// # Errors
    /// Fails if the key does not decode.
    pub fn series_slot(
        &mut self,
        (id, key): (SeriesId, &[u8]),
        known: &SeriesLookup,
        admission: &mut SeriesAdmission,
        offset: Offset,
    ) -> Result<u32, CodecError> {
        let info = match known {
            SeriesLookup::InBatch(slot) => return Ok(*slot),
            SeriesLookup::InPreviousBatch(info) => info.clone(),
            SeriesLookup::Unknown => Arc::new(SeriesInfo { id, series: Series::from_key(key)? }),
        };
        Ok(self.place(info, admission, offset))
    }

    /// Index of a series that this table knows by its id.
    pub fn known_slot(&self, id: SeriesId) -> Option<u32> {
        self.slots.get(&id).copied()
    }

    /// Index of a series, or of the overflow series that stands in for it.
    pub fn place(
        &mut self,
        info: Arc<SeriesInfo>,
        admission: &mut SeriesAdmission,
        offset: Offset,
    ) -> u32 {
        let id = info.id;
        // The lookups are made once per record, and a record may list the same series twice.
        let Entry::Vacant(place) = self.slots.entry(id) else { return self.slots[&id] };
        let is_known = admission.is_admitted(id, offset);
        if is_known || admission.try_admit(id, &info.series, offset) {
            let slot = place.insert(self.series.len() as u32);
            let slot = *slot;
            self.insert(info, (!is_known).then_some(offset));
            return slot;
        }
        let overflow = admission.overflow_series(&info.series, offset);
        let slot = self.overflow_slot(&overflow, admission, offset);
        // A refusal may still turn into an admission when recorded admissions or metric names
        // decide, and the overflow series may change. Only a final refusal may be cached
        // in the slot map.
        if admission.refusals_are_final(offset) {
            self.slots.insert(id, slot);
        }
        slot
    }

    fn overflow_slot(
        &mut self,
        overflow: &Series,
        admission: &mut SeriesAdmission,
        offset: Offset,
    ) -> u32 {
        let id = SeriesId::of_key(&overflow.key());
        if let Some(&slot) = self.slots.get(&id) {
            return slot;
        }
        let new = !admission.is_admitted(id, offset) && admission.try_admit(id, overflow, offset);
        let slot = self
            .insert(Arc::new(SeriesInfo { id, series: overflow.clone() }), new.then_some(offset));
        self.slots.insert(id, slot);
        slot
    }

    fn insert(&mut self, info: Arc<SeriesInfo>, admitted_at: Option<Offset>) -> u32 {
        if let Some(offset) = admitted_at {
            self.admitted.push((info.clone(), offset));
        }
        self.series.push(info);
        self.newest.push(None);
        self.bytes += SERIES_BYTES;
        (self.series.len() - 1) as u32
    }

    /// Adds one event to the delta of its series and hour.
    pub fn add(&mut self, slot: u32, hour: Hour, value: Option<Decimal>, user: Option<u64>) {
        let at = match self.newest[slot as usize] {
            Some((newest, at)) if newest == hour => at,
            _ => self.delta_of(slot, hour),
        };
        let rollup = &mut self.deltas[at as usize].rollup;
        let before = rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes();
        rollup.add(value, user);
        self.bytes +=
            (rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes()).saturating_sub(before);
    }

    /// The delta of a series and hour, a new one if there is none.
    fn delta_of(&mut self, slot: u32, hour: Hour) -> u32 {
        let next = self.deltas.len() as u32;
        let at = *self.by_series_hour.entry((slot, hour)).or_insert(next);
        if at == next {
            let series = &self.series[slot as usize].series;
            let metric = metric_hash(&series.tenant, &series.metric);
            self.windows.insert((metric, hour));
            self.by_metric.entry(metric).or_default().push(at);
            self.deltas.push(OpenDelta { series: slot, hour, rollup: Rollup::default() });
            self.bytes += DELTA_BYTES;
        }
        self.newest[slot as usize] = Some((hour, at));
        at
    }

    /// Notes a window for which another table of the batch holds deltas.
    pub fn note_window(&mut self, metric: u64, hour: Hour) {
        self.windows.insert((metric, hour));
    }

    /// Windows for which the batch holds deltas.
    pub fn windows(&self) -> &MetricWindows {
        &self.windows
    }

    /// Takes the windows out; the batch is about to be frozen.
    pub fn take_windows(&mut self) -> MetricWindows {
        std::mem::take(&mut self.windows)
    }

    /// Series that were first admitted in this batch.
    pub fn admitted(&self) -> impl Iterator<Item = &Arc<SeriesInfo>> {
        self.admitted.iter().map(|(info, _)| info)
    }

    /// Series and hour of every delta.
    pub fn series_windows(&self) -> impl Iterator<Item = (&Series, Hour)> {
        self.deltas.iter().map(|delta| (&self.series[delta.series as usize].series, delta.hour))
    }

    /// Freezes the table: returns rows in key order, and the empty table that follows.
    pub fn freeze(self) -> (FrozenDeltas, Self) {
        let series = self.series;
        let mut deltas: Vec<Delta> = self
            .deltas
            .into_iter()
            .map(|d| Delta {
                series: series[d.series as usize].clone(),
                hour: d.hour,
                rollup: d.rollup,
            })
            .collect();
        // Key order lets readers find a metric by binary search
        // (`visit_frozen`) without another index.
        deltas.sort_unstable_by(|a, b| key_of(a).cmp(&key_of(b)));
        let behind = Self::following(PreviousSeries { series, slots: self.slots });
        ((deltas, self.admitted), behind)
    }

    /// Visits the deltas that match the query, in the hours in which it wants this generation.
    pub fn visit(
        &self,
        generation: GenerationId,
        query: &LiveQuery<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) {
        let metric = metric_hash(query.tenant, query.metric);
        let deltas =
            self.by_metric.get(&metric).into_iter().flatten().map(|&at| &self.deltas[at as usize]);
        for delta in deltas.filter(|d| query.wants(generation, d.hour)) {
            let info = &self.series[delta.series as usize];
            if is_wanted(query, &info.series) && matches(&info.series) {
                visit(info, delta.hour, &delta.rollup);
            }
        }
    }
}

fn check_key(id: SeriesId, key: &[u8]) -> Result<(), CodecError> {
    if SeriesId::of_key(key) == id {
        Ok(())
    } else {
        Err(CodecError::new("series", format!("id {id} is not the hash of its key")))
    }
}

fn is_wanted(query: &LiveQuery<'_>, series: &Series) -> bool {
    series.tenant == query.tenant && series.metric == query.metric
}

fn key_of(delta: &Delta) -> (&str, &str, Hour, SeriesId) {
    (&delta.series.series.tenant, &delta.series.series.metric, delta.hour, delta.series.id)
}

/// Visits the deltas of a frozen table that match the query, in the hours in which it wants this
/// generation.
pub fn visit_frozen(
    (generation, deltas): (GenerationId, &[Delta]),
    query: &LiveQuery<'_>,
    matches: &mut dyn FnMut(&Series) -> bool,
    visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
) {
    let first = (query.tenant, query.metric, query.from);
    let from = deltas.partition_point(|d| {
        (d.series.series.tenant.as_str(), d.series.series.metric.as_str(), d.hour) < first
    });
    let wanted = deltas[from..]
        .iter()
        .take_while(|d| is_wanted(query, &d.series.series) && d.hour < query.to);
    let wanted = wanted.filter(|d| query.wants(generation, d.hour));
    for delta in wanted.filter(|d| matches(&d.series.series)) {
        visit(&delta.series, delta.hour, &delta.rollup);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed(page: &str) -> (SeriesId, Vec<u8>) {
        let key = Series::new("t", "views", [("page".to_owned(), page.to_owned())]).key();
        (SeriesId::of_key(&key), key)
    }

    fn slot(
        open: &mut DeltaTable,
        id: SeriesId,
        key: &[u8],
        admission: &mut SeriesAdmission,
        at: Offset,
    ) -> Result<u32, CodecError> {
        let known = open.look_up(id, key)?;
        open.series_slot((id, key), &known, admission, at)
    }

    #[test]
    fn an_id_with_the_key_of_another_series_is_refused_in_every_batch() {
        let ((id, key), (second, second_key)) = (keyed("a"), keyed("b"));
        // The limit has room for one series; the second goes to the overflow series.
        let mut admission = SeriesAdmission::limited(1, Vec::new());
        let mut open = DeltaTable::default();
        for at in 0..4 {
            for (id, right, wrong) in [(id, &key, &second_key), (second, &second_key, &key)] {
                assert!(
                    slot(&mut open, id, wrong, &mut admission, at).is_err(),
                    "before it is known, record {at}"
                );
                let place = slot(&mut open, id, right, &mut admission, at).expect("its own key");
                assert!(
                    slot(&mut open, id, wrong, &mut admission, at).is_err(),
                    "when it is known, record {at}"
                );
                assert_eq!(slot(&mut open, id, right, &mut admission, at), Ok(place));
                open.add(place, Hour(7), None, None);
            }
            if at % 2 == 1 {
                let ((deltas, _), behind) = open.freeze();
                assert_eq!(
                    deltas.iter().map(|delta| delta.rollup.figures.count).collect::<Vec<_>>(),
                    [2, 2]
                );
                open = behind;
            }
        }
    }

    #[test]
    fn a_series_that_a_record_names_twice_has_one_place() {
        let (mut admission, mut open) =
            (SeriesAdmission::limited(10, Vec::new()), DeltaTable::default());
        let (id, key) = keyed("a");
        let known = [open.look_up(id, &key), open.look_up(id, &key)]
            .map(|known| known.expect("its own key"));
        let places = known.map(|known| {
            open.series_slot((id, &key), &known, &mut admission, 0).expect("it decodes")
        });
        assert_eq!((places, open.series.len(), open.admitted.len()), ([0, 0], 1, 1));
    }

    #[test]
    fn a_series_that_comes_again_is_kept_once() {
        let mut admission = SeriesAdmission::limited(10, Vec::new());
        let mut open = DeltaTable::default();
        let mut kept: Vec<Arc<SeriesInfo>> = Vec::new();
        for at in 0..3 {
            let (id, key) = keyed("a");
            let place = slot(&mut open, id, &key, &mut admission, at).expect("its own key");
            open.add(place, Hour(7), None, None);
            let ((deltas, admitted), behind) = open.freeze();
            assert_eq!((behind.bytes(), admitted.len()), (0, usize::from(at == 0)));
            kept.push(deltas[0].series.clone());
            open = behind;
        }
        assert!(kept.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
    }
}

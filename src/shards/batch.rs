//! The open batch of deltas, and how it is frozen for the flush.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use super::series::Admission;
use super::state::LiveQuestion;
use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::flush::{AccountingDelta, DedupBlock, Delta, FlushBatch, QuarantineRow, SeriesInfo};
use crate::model::offset::{Offset, OffsetRange};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::{Hour, Millis};

/// Bytes of a delta beside its sketches, with its share of the maps.
const DELTA_BYTES: usize = 256;
/// Bytes of a series entry, with its share of the maps.
const SERIES_BYTES: usize = 256;

/// By [`metric_hash`], the windows that a batch holds deltas of.
pub type Windows = HashSet<(u64, Hour), FixedState>;

/// What stands for a metric of a tenant where its name would be too long. Two may share one: it says "perhaps", never "no" by mistake.
pub fn metric_hash(tenant: &str, metric: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(metric.as_bytes(), xxhash_rust::xxh3::xxh3_64(tenant.as_bytes()))
}

#[derive(Debug)]
struct OpenDelta {
    series: u32,
    hour: Hour,
    rollup: Rollup,
}

/// Everything above the last flush.
#[derive(Debug)]
pub struct OpenBatch {
    from: Offset,
    series: Vec<Arc<SeriesInfo>>,
    slots: HashMap<SeriesId, u32, FixedState>,
    deltas: Vec<OpenDelta>,
    by_series_hour: HashMap<(u32, Hour), u32, FixedState>,
    by_metric: HashMap<(String, String), Vec<u32>, FixedState>,
    windows: Windows,
    admitted: Vec<(Arc<SeriesInfo>, Offset)>,
    ids: Vec<(Millis, Vec<u128>)>,
    accounting: Vec<AccountingDelta>,
    quarantined: Vec<QuarantineRow>,
    bytes: usize,
}

impl OpenBatch {
    /// An empty batch that begins at `from`.
    pub fn new(from: Offset) -> Self {
        Self {
            from,
            series: Vec::new(),
            slots: HashMap::default(),
            deltas: Vec::new(),
            by_series_hour: HashMap::default(),
            by_metric: HashMap::default(),
            windows: Windows::default(),
            admitted: Vec::new(),
            ids: Vec::new(),
            accounting: Vec::new(),
            quarantined: Vec::new(),
            bytes: 0,
        }
    }

    /// Where it begins.
    pub fn from(&self) -> Offset {
        self.from
    }

    /// Roughly the memory it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The place of a series, or of the overflow series that stands in for it.
    ///
    /// # Errors
    /// If the key does not decode or does not have this id.
    pub fn series_slot(
        &mut self,
        id: SeriesId,
        key: &[u8],
        admission: &mut Admission,
        offset: Offset,
    ) -> Result<u32, CodecError> {
        if let Some(&slot) = self.slots.get(&id) {
            return Ok(slot);
        }
        if SeriesId::of_key(key) != id {
            return Err(CodecError::new("series", format!("id {id} is not the hash of its key")));
        }
        let series = Series::from_key(key)?;
        let known = admission.knows(id, offset);
        if known || admission.admit(id, &series, offset) {
            let slot = self.insert(Arc::new(SeriesInfo { id, series }), (!known).then_some(offset));
            self.slots.insert(id, slot);
            return Ok(slot);
        }
        let slot = self.overflow_slot(&series.overflow(), admission, offset);
        if admission.refusals_last(offset) {
            self.slots.insert(id, slot);
        }
        Ok(slot)
    }

    fn overflow_slot(&mut self, overflow: &Series, admission: &mut Admission, offset: Offset) -> u32 {
        let id = SeriesId::of_key(&overflow.key());
        if let Some(&slot) = self.slots.get(&id) {
            return slot;
        }
        let new = !admission.knows(id, offset) && admission.admit(id, overflow, offset);
        let slot = self.insert(Arc::new(SeriesInfo { id, series: overflow.clone() }), new.then_some(offset));
        self.slots.insert(id, slot);
        slot
    }

    fn insert(&mut self, info: Arc<SeriesInfo>, admitted_at: Option<Offset>) -> u32 {
        if let Some(offset) = admitted_at {
            self.admitted.push((info.clone(), offset));
        }
        self.series.push(info);
        self.bytes += SERIES_BYTES;
        (self.series.len() - 1) as u32
    }

    /// Adds one event.
    pub fn add(&mut self, slot: u32, hour: Hour, value: Option<Decimal>, user: Option<u64>) {
        let next = self.deltas.len() as u32;
        let at = *self.by_series_hour.entry((slot, hour)).or_insert(next);
        if at == next {
            let series = &self.series[slot as usize].series;
            self.windows.insert((metric_hash(&series.tenant, &series.metric), hour));
            self.by_metric.entry((series.tenant.clone(), series.metric.clone())).or_default().push(at);
            self.deltas.push(OpenDelta { series: slot, hour, rollup: Rollup::default() });
            self.bytes += DELTA_BYTES;
        }
        let rollup = &mut self.deltas[at as usize].rollup;
        let before = rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes();
        rollup.add(value, user);
        self.bytes += (rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes()).saturating_sub(before);
    }

    /// Notes an id for the de-duplication block.
    pub fn remember_id(&mut self, id: u128, appended: Millis) {
        match self.ids.last_mut() {
            Some((at, ids)) if *at == appended => ids.push(id),
            _ => self.ids.push((appended, vec![id])),
        }
        self.bytes += size_of::<u128>();
    }

    /// Changes the accounting row of a tenant and hour of append.
    pub fn account(&mut self, tenant: &str, hour: Hour, change: impl FnOnce(&mut AccountingDelta)) {
        // Nearly always the same row as before: requests come in runs of one tenant.
        let found = self.accounting.iter().rposition(|row| row.hour == hour && row.tenant == tenant);
        let at = found.unwrap_or_else(|| {
            let row = AccountingDelta { tenant: tenant.to_owned(), hour, aggregated: 0, deduplicated: 0, quarantined: 0 };
            self.accounting.push(row);
            self.accounting.len() - 1
        });
        change(&mut self.accounting[at]);
    }

    /// The windows it holds.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// The windows, out of a batch that is about to be frozen.
    pub fn take_windows(&mut self) -> Windows {
        std::mem::take(&mut self.windows)
    }

    /// What was counted.
    pub fn accounting(&self) -> &[AccountingDelta] {
        &self.accounting
    }

    /// Sets an event aside.
    pub fn quarantine(&mut self, row: QuarantineRow) {
        self.bytes += row.record.len() + DELTA_BYTES;
        self.quarantined.push(row);
    }

    /// The batch as the store takes it: rows in key order.
    pub fn freeze(self, range: OffsetRange) -> FlushBatch {
        let series = self.series;
        let mut deltas: Vec<Delta> = self
            .deltas
            .into_iter()
            .map(|d| Delta { series: series[d.series as usize].clone(), hour: d.hour, rollup: d.rollup })
            .collect();
        deltas.sort_unstable_by(|a, b| key_of(a).cmp(&key_of(b)));
        let appended = self.ids.first().zip(self.ids.last()).map(|(first, last)| (first.0, last.0));
        let dedup = appended.map(|appended| DedupBlock { range, appended, runs: self.ids });
        FlushBatch { deltas, admitted: self.admitted, dedup, accounting: self.accounting, quarantined: self.quarantined }
    }

    /// Visits the deltas that the question asks for.
    pub fn visit(
        &self,
        question: &LiveQuestion<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) {
        let key = (question.tenant.to_owned(), question.metric.to_owned());
        let deltas = self.by_metric.get(&key).into_iter().flatten().map(|&at| &self.deltas[at as usize]);
        for delta in deltas.filter(|d| question.from <= d.hour && d.hour < question.to) {
            let info = &self.series[delta.series as usize];
            if matches(&info.series) {
                visit(info, delta.hour, &delta.rollup);
            }
        }
    }
}

fn key_of(delta: &Delta) -> (&str, &str, Hour, SeriesId) {
    (&delta.series.series.tenant, &delta.series.series.metric, delta.hour, delta.series.id)
}

/// Visits the deltas of a frozen batch that the question asks for.
pub fn visit_frozen(
    batch: &FlushBatch,
    question: &LiveQuestion<'_>,
    matches: &mut dyn FnMut(&Series) -> bool,
    visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
) {
    let first = (question.tenant, question.metric, question.from);
    let from =
        batch.deltas.partition_point(|d| (d.series.series.tenant.as_str(), d.series.series.metric.as_str(), d.hour) < first);
    let wanted = batch.deltas[from..].iter().take_while(|d| {
        d.series.series.tenant == question.tenant && d.series.series.metric == question.metric && d.hour < question.to
    });
    for delta in wanted.filter(|d| matches(&d.series.series)) {
        visit(&delta.series, delta.hour, &delta.rollup);
    }
}

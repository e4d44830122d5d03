//! The open batch: everything applied since the last flush began, and how it is frozen for the
//! flush.

use super::delta_table::{DeltaTable, MetricWindows};
use super::generations::OpenGeneration;
use crate::model::flush::{
    AccountingDelta, DedupBlock, FlushBatch, GenerationDeltas, QuarantineRow,
};
use crate::model::generation::GenerationId;
use crate::model::offset::{Offset, OffsetRange};
use crate::model::outcome::{OutcomeNote, UncountedEvent};
use crate::model::window::{Hour, Millis};

/// Estimated bytes of a quarantine row without its record.
const QUARANTINE_BYTES: usize = 256;

/// Everything applied since the last flush began.
#[derive(Debug, Default)]
pub struct OpenBatch {
    from: Offset,
    deltas: DeltaTable,
    /// What the batch adds to other generations; those that it touched.
    generations: Vec<(GenerationId, OpenGeneration)>,
    ids: Vec<(Millis, Vec<u128>)>,
    accounting: Vec<AccountingDelta>,
    quarantined: Vec<QuarantineRow>,
    outcomes: OutcomeNote,
    /// Estimated bytes of ids, quarantine rows and outcomes.
    bytes: usize,
}

impl OpenBatch {
    /// Creates an empty batch that starts at `from`.
    pub fn new(from: Offset) -> Self {
        Self { from, ..Self::default() }
    }

    /// First offset of the batch (inclusive).
    pub fn from(&self) -> Offset {
        self.from
    }

    /// Estimated memory use in bytes; flushing and credit are decided on it.
    pub fn bytes(&self) -> usize {
        let others = self.generations.iter().map(|(_, open)| open.bytes());
        self.bytes + self.deltas.bytes() + others.sum::<usize>()
    }

    /// The deltas of generation 0.
    pub fn deltas(&self) -> &DeltaTable {
        &self.deltas
    }

    /// The deltas of generation 0, to add to them.
    pub fn deltas_mut(&mut self) -> &mut DeltaTable {
        &mut self.deltas
    }

    /// What the batch adds to another generation, if it touched it.
    pub fn generation(&self, id: GenerationId) -> Option<&OpenGeneration> {
        self.generations.iter().find(|(known, _)| *known == id).map(|(_, open)| open)
    }

    /// What the batch adds to other generations.
    pub fn generations(&self) -> impl Iterator<Item = (GenerationId, &OpenGeneration)> {
        self.generations.iter().map(|(id, open)| (*id, open))
    }

    /// What the batch adds to another generation.
    pub fn generation_mut(&mut self, id: GenerationId) -> &mut OpenGeneration {
        let known = self.generations.iter().position(|(known, _)| *known == id);
        let at = known.unwrap_or_else(|| {
            self.generations.push((id, OpenGeneration::default()));
            self.generations.len() - 1
        });
        &mut self.generations[at].1
    }

    /// Records an id for the de-duplication block that is stored with the flush.
    pub fn remember_id(&mut self, id: u128, appended: Millis) {
        match self.ids.last_mut() {
            Some((at, ids)) if *at == appended => ids.push(id),
            _ => self.ids.push((appended, vec![id])),
        }
        self.bytes += size_of::<u128>();
    }

    /// Applies `change` to the accounting row of `tenant` and `hour`, the hour of receipt.
    pub fn update_accounting(
        &mut self,
        tenant: &str,
        hour: Hour,
        change: impl FnOnce(&mut AccountingDelta),
    ) {
        // Searched from the end: requests come in runs of one tenant, so it is nearly
        // always the last row.
        let found =
            self.accounting.iter().rposition(|row| row.hour == hour && row.tenant == tenant);
        let at = found.unwrap_or_else(|| {
            let row = AccountingDelta {
                tenant: tenant.to_owned(),
                hour,
                aggregated: 0,
                deduplicated: 0,
                quarantined: 0,
            };
            self.accounting.push(row);
            self.accounting.len() - 1
        });
        change(&mut self.accounting[at]);
    }

    /// Windows for which the batch holds deltas, of whatever generation.
    pub fn windows(&self) -> &MetricWindows {
        self.deltas.windows()
    }

    /// Takes the windows out; the batch is about to be frozen.
    pub fn take_windows(&mut self) -> MetricWindows {
        self.deltas.take_windows()
    }

    /// Accounting rows of the batch, one per tenant and hour of receipt.
    pub fn accounting(&self) -> &[AccountingDelta] {
        &self.accounting
    }

    /// Notes that an event is not counted.
    pub fn note_uncounted(&mut self, event: UncountedEvent) {
        let before = self.outcomes.as_bytes().len();
        self.outcomes.push(event);
        self.bytes += self.outcomes.as_bytes().len() - before;
    }

    /// Adds an event to the quarantine rows of the flush.
    pub fn quarantine(&mut self, row: QuarantineRow) {
        self.bytes += row.record.len() + QUARANTINE_BYTES;
        self.quarantined.push(row);
    }

    /// Freezes the batch: returns it in the form that the store takes, rows in key order, and the
    /// empty batch that follows. `last` is the append time of the last record in `range`, `set` the
    /// version of the set that the batch was folded under.
    pub fn freeze(self, range: OffsetRange, last: Option<Millis>, set: u64) -> (FlushBatch, Self) {
        let ((deltas, admitted), behind) = self.deltas.freeze();
        let mut following = Self { deltas: behind, ..Self::new(range.to) };
        let mut generations = Vec::with_capacity(self.generations.len());
        for (generation, open) in self.generations {
            let (frozen, behind) = open.freeze(generation);
            following.generations.push((generation, behind));
            generations.push(frozen);
        }
        generations.retain(|frozen: &GenerationDeltas| !frozen.is_empty());
        generations.sort_unstable_by_key(|frozen| frozen.generation);
        let appended = self.ids.first().zip(self.ids.last()).map(|(first, last)| (first.0, last.0));
        let dedup = appended.map(|appended| DedupBlock { range, appended, runs: self.ids });
        let batch = FlushBatch {
            deltas,
            admitted,
            dedup,
            accounting: self.accounting,
            quarantined: self.quarantined,
            outcomes: self.outcomes,
            appended: last,
            set,
            adopts: None,
            abandons: Vec::new(),
            generations,
        };
        (batch, following)
    }

    /// Drops what the batch would have had of generations that `is_written` denies; the batch is
    /// empty.
    pub fn retain_generations(&mut self, is_written: impl Fn(GenerationId) -> bool) {
        self.generations.retain(|(id, _)| is_written(*id));
    }
}

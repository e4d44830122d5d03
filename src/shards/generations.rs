//! Generations that a shard writes besides generation 0: the adopted set with its rules compiled,
//! and what a batch adds to each of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;

use super::delta_table::DeltaTable;
use super::series::SeriesAdmission;
use crate::invariants::{Invariant, check};
use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::flush::{DroppedEvents, GenerationDeltas, SeriesInfo};
use crate::model::generation::{DayRange, GenerationId, MaintainedRange, MaintainedSet};
use crate::model::offset::Offset;
use crate::model::series::{Series, SeriesId, key_of, metric_hash};
use crate::model::window::{Hour, Millis};
use crate::rules::{RuleCounts, RuleEvent, RuleLabels, RuleOutcome, RuleSet};

/// Estimated bytes of a count of dropped events.
const DROPPED_BYTES: usize = 128;

/// A range of the adopted set, with its rules compiled.
#[derive(Debug, Clone)]
pub struct ActiveRange {
    tenant: String,
    days: DayRange,
    /// The generation that is written there.
    pub generation: GenerationId,
    /// What becomes of each event.
    pub rules: Arc<RuleSet>,
}

/// The ranges of one metric, as indices into those of the set.
#[derive(Debug)]
struct MetricRanges {
    tenant: String,
    metric: String,
    by_generation: BTreeMap<GenerationId, Vec<usize>>,
    /// Days at which some range begins or ends, ascending, each with the ranges that hold it and
    /// the days up to the next one. A metric that was corrected every day of a year has as many
    /// ranges, and each of its events is looked up.
    segments: Vec<(i32, Vec<usize>)>,
}

impl MetricRanges {
    fn new(range: &MaintainedRange) -> Self {
        let (tenant, metric) = (range.tenant.clone(), range.metric.clone());
        Self { tenant, metric, by_generation: BTreeMap::new(), segments: Vec::new() }
    }

    fn is(&self, tenant: &str, metric: &str) -> bool {
        self.metric == metric && self.tenant == tenant
    }

    /// Cuts the days where ranges begin and end.
    fn cut(&mut self, ranges: &[ActiveRange]) {
        let mut edges: BTreeMap<i32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        for &at in self.by_generation.values().flatten() {
            let days = ranges[at].days;
            edges.entry(days.from()).or_default().0.push(at);
            if let Some(to) = days.to() {
                edges.entry(to).or_default().1.push(at);
            }
        }
        let mut open: Vec<usize> = Vec::new();
        for (day, (begin, end)) in edges {
            open.retain(|at| !end.contains(at));
            open.extend(begin);
            self.segments.push((day, open.clone()));
        }
    }

    /// The same of those ranges that are kept, under their places among these; `None` if none is.
    fn renumbered(&self, kept: &[usize], ranges: &[ActiveRange]) -> Option<Self> {
        let (tenant, metric) = (self.tenant.clone(), self.metric.clone());
        let mut left =
            Self { tenant, metric, by_generation: BTreeMap::new(), segments: Vec::new() };
        for (generation, of) in &self.by_generation {
            let of: Vec<_> = of.iter().filter_map(|at| kept.binary_search(at).ok()).collect();
            if !of.is_empty() {
                left.by_generation.insert(*generation, of);
            }
        }
        left.cut(ranges);
        (!left.by_generation.is_empty()).then_some(left)
    }

    fn on(&self, day: i32) -> &[usize] {
        let behind = self.segments.partition_point(|(from, _)| *from <= day);
        self.segments[..behind].last().map_or(&[], |(_, ranges)| ranges)
    }
}

/// A [`MaintainedSet`] whose rules are compiled, indexed by metric and day.
#[derive(Debug, Default)]
pub struct ActiveSet {
    version: u64,
    ranges: Vec<ActiveRange>,
    /// By [`metric_hash`].
    by_metric: HashMap<u64, Vec<MetricRanges>>,
}

impl ActiveSet {
    /// Compiles a set.
    ///
    /// # Errors
    /// Fails if this build does not know the rules: a newer one wrote them.
    pub fn compile(set: &MaintainedSet) -> Result<Self, CodecError> {
        let mut active = Self { version: set.version, ..Self::default() };
        for range in &set.ranges {
            let MaintainedRange { tenant, metric, days, generation, rules } = range;
            let rules = RuleSet::shared(rules)
                .map_err(|mistakes| CodecError::new("rules", mistakes.to_string()))?;
            let of_hash = active.by_metric.entry(metric_hash(tenant, metric)).or_default();
            let known = of_hash.iter().position(|of| of.is(tenant, metric));
            let known = known.unwrap_or_else(|| {
                of_hash.push(MetricRanges::new(range));
                of_hash.len() - 1
            });
            let of_generation = of_hash[known].by_generation.entry(*generation).or_default();
            of_generation.push(active.ranges.len());
            let (tenant, days, generation) = (tenant.clone(), *days, *generation);
            active.ranges.push(ActiveRange { tenant, days, generation, rules });
        }
        active.by_metric.values_mut().flatten().for_each(|of| of.cut(&active.ranges));
        Ok(active)
    }

    /// Version of the set.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether generation 0 alone is written.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges of a metric: none or one.
    fn of_metric(&self, tenant: &str, metric: &str) -> impl Iterator<Item = &MetricRanges> {
        let found = self.by_metric.get(&metric_hash(tenant, metric));
        found.into_iter().flatten().filter(move |of| of.is(tenant, metric))
    }

    /// Whether anything is written for a metric.
    pub fn has_metric(&self, tenant: &str, metric: &str) -> bool {
        self.of_metric(tenant, metric).next().is_some()
    }

    /// What is written for an event of this metric on this day.
    pub fn on(&self, tenant: &str, metric: &str, day: i32) -> impl Iterator<Item = &ActiveRange> {
        let found = self.of_metric(tenant, metric).flat_map(move |of| of.on(day));
        found.map(|&at| &self.ranges[at])
    }

    /// Whether a generation is written on all these days of a metric.
    pub fn covers(
        &self,
        (tenant, metric): (&str, &str),
        generation: GenerationId,
        days: DayRange,
    ) -> bool {
        let of = self.of_metric(tenant, metric);
        let mut open = vec![days];
        for &at in of.filter_map(|of| of.by_generation.get(&generation)).flatten() {
            open = open.into_iter().flat_map(|days| days.without(self.ranges[at].days)).collect();
        }
        open.is_empty()
    }

    /// The same set without some generations.
    #[must_use]
    pub fn without(&self, ids: &[GenerationId]) -> Self {
        let is_kept = |at: &usize| !ids.contains(&self.ranges[*at].generation);
        let kept: Vec<usize> = (0..self.ranges.len()).filter(is_kept).collect();
        let ranges = kept.iter().map(|&at| self.ranges[at].clone()).collect();
        let mut rest = Self { version: self.version, ranges, ..Self::default() };
        for (hash, metrics) in &self.by_metric {
            let left = metrics.iter().filter_map(|of| of.renumbered(&kept, &rest.ranges));
            rest.by_metric.insert(*hash, left.collect());
        }
        rest
    }

    /// Whether none of these generations is written.
    pub fn is_without(&self, ids: &[GenerationId]) -> bool {
        !self.ranges.iter().any(|range| ids.contains(&range.generation))
    }

    /// The tenant of a generation; `None` if the set does not write it.
    pub fn tenant(&self, generation: GenerationId) -> Option<&str> {
        let mut ranges = self.ranges.iter();
        ranges.find(|range| range.generation == generation).map(|range| range.tenant.as_str())
    }

    /// The metrics of a generation that the set writes.
    pub fn metrics(&self, generation: GenerationId) -> impl Iterator<Item = &str> {
        let of_generation = move |of: &&MetricRanges| of.by_generation.contains_key(&generation);
        self.by_metric.values().flatten().filter(of_generation).map(|of| of.metric.as_str())
    }

    /// The generations of the set, ascending.
    pub fn generations(&self) -> Vec<GenerationId> {
        let mut all: Vec<_> = self.ranges.iter().map(|range| range.generation).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// An event of the log or of the archive, as generations take it in.
#[derive(Debug, Clone, Copy)]
pub struct SourceEvent<'a> {
    /// The series that the client sent it to, not the overflow series that stands in for it.
    pub series: &'a Arc<SeriesInfo>,
    /// Its value.
    pub value: Option<Decimal>,
    /// The hash of its user.
    pub user: Option<u64>,
    /// Its own time.
    pub time: Millis,
    /// The event as the client sent it. May be empty if the rules need no properties.
    pub raw: &'a [u8],
    /// The offset of its record.
    pub offset: Offset,
}

impl<'a> SourceEvent<'a> {
    /// The event as rules see it.
    pub(super) fn of_rules(&self) -> RuleEvent<'a> {
        let Self { series, value, user, time, raw, .. } = *self;
        RuleEvent { labels: &series.series.labels, value, user, time, raw }
    }
}

/// What a shard found in the store: the set that it writes under, and the series that each
/// generation of it has admitted by then.
#[derive(Debug, Default)]
pub struct AdoptedGenerations {
    /// The set.
    pub set: Arc<ActiveSet>,
    /// For each of its generations.
    pub admitted: Vec<(GenerationId, Vec<SeriesId>)>,
}

/// What a batch adds to a generation.
#[derive(Debug, Default)]
pub struct OpenGeneration {
    deltas: DeltaTable,
    dropped: BTreeMap<(String, String, i32), u64>,
    /// What the rules did, of the batch: a flush that is refused takes them with it.
    counts: RuleCounts,
    /// Events folded, to be compared with what is frozen.
    events: u64,
}

/// I13, before a batch goes to the store: every event that was folded is in one row, or dropped by
/// the rules.
fn check_fold(events: u64, frozen: &GenerationDeltas) {
    let in_rows: u64 = frozen.deltas.iter().map(|delta| delta.rollup.figures.count).sum();
    let dropped: u64 = frozen.dropped.iter().map(|dropped| dropped.events).sum();
    check(Invariant::GenerationEffect, in_rows + dropped == events, || {
        format!(
            "generation {} has {in_rows} events in its rows and dropped {dropped}, of {events}",
            frozen.generation
        )
    });
}

impl OpenGeneration {
    /// Estimated memory use in bytes.
    pub fn bytes(&self) -> usize {
        self.deltas.bytes() + self.dropped.len() * DROPPED_BYTES
    }

    /// The deltas, for readers.
    pub fn deltas(&self) -> &DeltaTable {
        &self.deltas
    }

    /// Folds one event under the rules of the generation.
    pub fn fold(
        &mut self,
        event: &SourceEvent<'_>,
        rules: &RuleSet,
        admission: &mut SeriesAdmission,
    ) {
        self.note_events(1);
        match rules.apply(&event.of_rules(), &mut self.counts) {
            RuleOutcome::Dropped => self.drop_events(event.series, Hour::of(event.time).day(), 1),
            RuleOutcome::Kept(kept) => {
                let slot = self.place(event, kept.labels, admission);
                self.add(slot, Hour::of(event.time), kept.value, kept.user);
            }
        }
    }

    /// Notes events that are folded: each is in a row, or was dropped.
    pub(super) fn note_events(&mut self, events: u64) {
        self.events += events;
    }

    /// Adds what the rules did to one event, for so many events to which they did the same.
    pub(super) fn add_counts(&mut self, one: &RuleCounts, events: u64) {
        self.counts.add_times(one, events);
    }

    /// Counts events of a series on a day that the rules drop.
    pub(super) fn drop_events(&mut self, series: &SeriesInfo, day: i32, events: u64) {
        let Series { tenant, metric, .. } = &series.series;
        *self.dropped.entry((tenant.clone(), metric.clone(), day)).or_default() += events;
    }

    /// The slot of an event that has these labels behind the rules.
    pub(super) fn place(
        &mut self,
        event: &SourceEvent<'_>,
        labels: RuleLabels<'_>,
        admission: &mut SeriesAdmission,
    ) -> u32 {
        let SourceEvent { series, offset, .. } = *event;
        // Without a change there is nothing to compare, text by text.
        if matches!(labels, RuleLabels::Unchanged(_)) || labels.are(&series.series.labels) {
            let known = self.deltas.known_slot(series.id);
            return known.unwrap_or_else(|| self.deltas.place(series.clone(), admission, offset));
        }
        let Series { tenant, metric, .. } = &series.series;
        let id = SeriesId::of_key(&key_of(tenant, metric, labels.iter()));
        let known = self.deltas.known_slot(id);
        known.unwrap_or_else(|| {
            let (tenant, metric) = (tenant.clone(), metric.clone());
            let series = Series { tenant, metric, labels: labels.to_owned() };
            let info = Arc::new(SeriesInfo { id, series });
            self.deltas.place(info, admission, offset)
        })
    }

    /// Adds an event to a slot.
    pub(super) fn add(&mut self, slot: u32, hour: Hour, value: Option<Decimal>, user: Option<u64>) {
        self.deltas.add(slot, hour, value, user);
    }

    /// Freezes what was added, and returns the empty one that follows.
    pub fn freeze(self, generation: GenerationId) -> (GenerationDeltas, Self) {
        let ((deltas, admitted), behind) = self.deltas.freeze();
        let dropped = self.dropped.into_iter();
        let dropped = dropped
            .map(|((tenant, metric, day), events)| DroppedEvents { tenant, metric, day, events })
            .collect();
        let (rules, released) = (self.counts.events(), Vec::new());
        let frozen = GenerationDeltas { generation, deltas, admitted, dropped, rules, released };
        check_fold(self.events, &frozen);
        (frozen, Self { deltas: behind, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invariants::tests::violations;

    #[test]
    fn an_event_that_is_neither_in_a_row_nor_dropped_is_a_violation() {
        let dropped = |events| DroppedEvents {
            tenant: "t".to_owned(),
            metric: "m".to_owned(),
            day: 0,
            events,
        };
        let frozen = GenerationDeltas {
            generation: GenerationId(1),
            dropped: vec![dropped(2), dropped(1)],
            ..GenerationDeltas::default()
        };
        let found =
            |events| violations(Invariant::GenerationEffect, || check_fold(events, &frozen));
        assert_eq!((found(3), found(2), found(4)), (0, 1, 1));
    }

    fn set(ranges: &[(u8, i32, i32, u64)]) -> MaintainedSet {
        let range = |(metric, from, length, generation): &(u8, i32, i32, u64)| MaintainedRange {
            tenant: format!("t{}", metric % 2),
            metric: format!("m{}", metric / 2),
            // Some are open.
            days: DayRange::new(*from, (*length < 30).then_some(from + length)).expect("days"),
            generation: GenerationId(*generation),
            rules: r#"{"rule":[]}"#.into(),
        };
        MaintainedSet { version: 1, ranges: ranges.iter().map(range).collect() }
    }

    proptest! {
        #[test]
        fn every_day_of_a_metric_has_the_ranges_that_hold_it(
            ranges in prop::collection::vec((0u8..4, -20i32..20, 1i32..35, 1u64..5), 0..12),
            asked in (-25i32..25, 1i32..20),
        ) {
            let plain = set(&ranges);
            let active = ActiveSet::compile(&plain).expect("compiles");
            let days = DayRange::new(asked.0, Some(asked.0 + asked.1)).expect("days");
            for (tenant, metric) in [("t0", "m0"), ("t1", "m0"), ("t0", "m1"), ("t2", "m0")] {
                let generations = |day: i32| {
                    let mut all: Vec<_> =
                        plain.on(tenant, metric, day).map(|range| range.generation).collect();
                    all.sort_unstable();
                    all
                };
                for day in -30..60 {
                    let mut found: Vec<_> =
                        active.on(tenant, metric, day).map(|range| range.generation).collect();
                    found.sort_unstable();
                    prop_assert_eq!(found, generations(day));
                }
                for generation in (1..5).map(GenerationId) {
                    let on_all = (asked.0..asked.0 + asked.1)
                        .all(|day| generations(day).contains(&generation));
                    let covers = active.covers((tenant, metric), generation, days);
                    prop_assert_eq!(covers, on_all);
                }
            }
        }
    }
}

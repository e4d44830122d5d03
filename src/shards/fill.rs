//! Fills the past into a generation: archived events below the cut, under the generation's rules.
//!
//! What ingest decided is taken over: only events that were counted are folded, in offset order.
//! The result does not depend on where transactions begin and end, because the admissions of the
//! writer are stored with them and loaded again after a crash.

use std::sync::Arc;

use super::generations::{OpenGeneration, SourceEvent};
use super::series::SeriesAdmission;
use crate::model::flush::{FillProgress, GenerationDeltas, SeriesInfo};
use crate::model::generation::{DayRange, GenerationId};
use crate::model::generation_book::Generation;
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::series::{AdmittedSeries, SeriesId};
use crate::model::window::Hour;
use crate::rules::{RuleCounts, RuleOutcome, RuleSet};

/// The fold of one shard's archived events into one generation.
#[derive(Debug)]
pub struct GenerationFill {
    id: GenerationId,
    tenant: String,
    metrics: Vec<String>,
    days: DayRange,
    rules: Arc<RuleSet>,
    admission: SeriesAdmission,
    open: OpenGeneration,
    /// Start of what is open: everything below is in the store.
    from: Offset,
    cut: Offset,
}

impl GenerationFill {
    /// Continues at the stored cursor. `admitted` are the series that this writer has admitted
    /// below it; `max_series` limits them like those of the live writer.
    pub fn new(
        (id, generation, rules): (GenerationId, &Generation, Arc<RuleSet>),
        shard: ShardId,
        at: FillProgress,
        admitted: Vec<SeriesId>,
        max_series: u64,
    ) -> Self {
        let tenant = generation.tenant.clone();
        let metrics = generation.metrics.iter().map(String::as_str);
        let admitted = AdmittedSeries::of_metrics(admitted, (&tenant, metrics), shard);
        let admission = SeriesAdmission::limited(max_series, vec![(tenant.clone(), admitted)]);
        Self {
            id,
            tenant,
            metrics: generation.metrics.clone(),
            days: generation.days,
            rules,
            admission: admission.for_shard(shard),
            open: OpenGeneration::default(),
            from: at.cursor,
            cut: at.cut,
        }
    }

    /// Sets what this writer admitted below the cut, which it is to admit again.
    #[must_use]
    pub fn with_recorded(mut self, admitted: &[(SeriesId, Offset)]) -> Self {
        self.admission.apply_recorded(admitted, self.cut);
        self
    }

    /// Whether an event of this metric and day belongs to the generation.
    pub fn wants(&self, tenant: &str, metric: &str, day: i32) -> bool {
        self.days.contains(day)
            && self.tenant == tenant
            && self.metrics.iter().any(|known| known == metric)
    }

    /// Whether the rules need the raw bytes of events.
    pub fn needs_properties(&self) -> bool {
        self.rules.needs_properties()
    }

    /// Folds an event that ingest has counted, and that the generation wants. Those at and above
    /// the cut are the live writer's, those below the cursor are in the store.
    pub fn fold(&mut self, event: &SourceEvent<'_>) {
        if self.is_open_for(event) {
            self.open.fold(event, &self.rules, &mut self.admission);
        }
    }

    fn is_open_for(&self, event: &SourceEvent<'_>) -> bool {
        (self.from..self.cut).contains(&event.offset)
    }

    /// Folds the first event of a series under rules that do the same to all of them. `None` if the
    /// next one may be placed otherwise.
    fn fold_first(&mut self, event: &SourceEvent<'_>) -> Option<SeriesFate> {
        if !self.admission.refusals_are_final(event.offset) {
            self.fold(event);
            return None;
        }
        let mut counts = RuleCounts::of(&self.rules);
        let hour = Hour::of(event.time);
        let outcome = match self.rules.apply(&event.of_rules(), &mut counts) {
            RuleOutcome::Dropped => SeriesOutcome::Dropped(event.series.clone(), hour.day(), 1),
            RuleOutcome::Kept(kept) => {
                let slot = self.open.place(event, kept.labels, &mut self.admission);
                self.open.add(slot, hour, kept.value, kept.user);
                SeriesOutcome::Kept(slot)
            }
        };
        Some(SeriesFate { counts, events: 1, outcome })
    }

    /// Folds events that share a table of so many series. What rules do to all events of a series
    /// alike, they do once for each series of the table.
    pub fn batch(&mut self, series: usize) -> FillBatch<'_> {
        let by_series = match self.rules.read_only_labels() {
            true => std::iter::repeat_with(|| None).take(series).collect(),
            false => Vec::new(),
        };
        FillBatch { fill: self, by_series }
    }

    /// Estimated bytes of what is open.
    pub fn bytes(&self) -> usize {
        self.open.bytes()
    }

    /// Takes out what was folded below `to`, where all events below have been offered; `None` if
    /// the cursor is there already.
    pub fn take(&mut self, to: Offset) -> Option<(OffsetRange, GenerationDeltas)> {
        let to = to.min(self.cut);
        let range = OffsetRange::new(self.from, to).filter(|range| !range.is_empty())?;
        let (deltas, behind) = std::mem::take(&mut self.open).freeze(self.id);
        (self.open, self.from) = (behind, to);
        Some((range, deltas))
    }
}

/// Events that share a table of series.
#[derive(Debug)]
#[must_use = "what the rules did is counted by `finish`"]
pub struct FillBatch<'f> {
    fill: &'f mut GenerationFill,
    /// By the number of the series; empty if the rules look at more than labels.
    by_series: Vec<Option<SeriesFate>>,
}

/// What becomes of every event of a series.
#[derive(Debug)]
struct SeriesFate {
    /// What the rules did to one event.
    counts: RuleCounts,
    events: u64,
    outcome: SeriesOutcome,
}

#[derive(Debug)]
enum SeriesOutcome {
    /// Dropped; on the day of the newest, so many.
    Dropped(Arc<SeriesInfo>, i32, u64),
    /// Added to this slot.
    Kept(u32),
}

impl FillBatch<'_> {
    /// Folds an event, as [`GenerationFill::fold`] does. `series` is the number of its series.
    pub fn fold(&mut self, series: u32, event: &SourceEvent<'_>) {
        match self.by_series.get_mut(series as usize) {
            None => self.fill.fold(event),
            Some(_) if !self.fill.is_open_for(event) => {}
            Some(Some(fate)) => fate.fold(event, &mut self.fill.open),
            Some(unknown) => *unknown = self.fill.fold_first(event),
        }
    }

    /// Counts what the rules did.
    pub fn finish(self) {
        for fate in self.by_series.into_iter().flatten() {
            self.fill.open.add_counts(&fate.counts, fate.events);
            self.fill.open.note_events(fate.events);
            if let SeriesOutcome::Dropped(series, day, events) = fate.outcome {
                self.fill.open.drop_events(&series, day, events);
            }
        }
    }
}

impl SeriesFate {
    fn fold(&mut self, event: &SourceEvent<'_>, open: &mut OpenGeneration) {
        self.events += 1;
        let hour = Hour::of(event.time);
        match &mut self.outcome {
            SeriesOutcome::Kept(slot) => open.add(*slot, hour, event.value, event.user),
            SeriesOutcome::Dropped(_, day, events) if *day == hour.day() => *events += 1,
            SeriesOutcome::Dropped(series, day, events) => {
                open.drop_events(series, *day, *events);
                (*day, *events) = (hour.day(), 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::decimal::Decimal;
    use crate::model::flush::RuleEvents;
    use crate::model::offset::LogId;
    use crate::model::rollup::Rollup;
    use crate::model::series::Series;
    use crate::model::window::{HOUR_MS, Millis};
    use crate::rules::RulesFormat;

    const RULES: &str = r#"
        [[rule]]
        name = "no bots"
        where = { labels = '{page="bot"}' }
        drop = true
    "#;

    fn generation(days: DayRange) -> Generation {
        Generation {
            tenant: "t".to_owned(),
            metrics: vec!["m".to_owned()],
            days,
            rules: "".into(),
            started: 0,
            by: String::new(),
            given_up: None,
        }
    }

    fn rules() -> Arc<RuleSet> {
        parsed(RULES)
    }

    fn parsed(rules: &str) -> Arc<RuleSet> {
        let parsed = RuleSet::parse(rules, RulesFormat::Toml);
        Arc::new(parsed.unwrap_or_else(|mistakes| panic!("{mistakes}")))
    }

    fn series(page: &str) -> Arc<SeriesInfo> {
        let series = Series::new("t", "m", [("page".to_owned(), page.to_owned())]);
        Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
    }

    fn event(series: &Arc<SeriesInfo>, offset: Offset, time: Millis) -> SourceEvent<'_> {
        SourceEvent { series, value: None, user: None, time, raw: b"", offset }
    }

    fn fill(
        days: DayRange,
        cursor: Offset,
        cut: Offset,
        admitted: Vec<SeriesId>,
    ) -> GenerationFill {
        fill_under(rules(), days, (cursor, cut), admitted)
    }

    fn fill_under(
        rules: Arc<RuleSet>,
        days: DayRange,
        (cursor, cut): (Offset, Offset),
        admitted: Vec<SeriesId>,
    ) -> GenerationFill {
        let at = FillProgress { log: LogId([0; 16]), cut, cursor };
        let of = (GenerationId(1), &generation(days), rules);
        GenerationFill::new(of, ShardId(0), at, admitted, 3)
    }

    /// Rules of which the first three look at labels alone.
    const RULE_FILES: [&str; 5] = [
        "rule = []",
        RULES,
        r#"
            [[rule]]
            name = "merge"
            where = { labels = '{page=~"a|b"}' }
            map_label = { label = "page", values = { a = "b" } }
            [[rule]]
            name = "same"
            set_label = { label = "host", value = "" }
        "#,
        r#"
            [[rule]]
            name = "late bots"
            where = { labels = '{page="bot"}', time = { from = "1970-01-01T05:00:00Z" } }
            drop = true
        "#,
        r#"
            [[rule]]
            name = "seconds"
            where = { labels = '{page!="c"}' }
            scale_value = { divide = 1000 }
        "#,
    ];

    #[test]
    fn what_is_not_below_the_cut_or_not_of_its_days_is_left_out() {
        let days = DayRange::new(0, Some(1)).expect("a day");
        let mut fill = fill(days, 5, 8, vec![]);
        assert!(fill.wants("t", "m", 0) && !fill.wants("t", "m", 1));
        assert!(!fill.wants("u", "m", 0) && !fill.wants("t", "n", 0));
        let (home, bot) = (series("home"), series("bot"));
        for offset in 3..10 {
            fill.fold(&event(&home, offset, 0));
            fill.fold(&event(&bot, offset, 0));
        }
        let (range, deltas) = fill.take(99).expect("something");
        assert_eq!((range.from, range.to), (5, 8));
        assert_eq!(deltas.deltas[0].rollup.figures.count, 3);
        assert_eq!((deltas.dropped.len(), deltas.dropped[0].events), (1, 3));
        let of_rule = |events| RuleEvents { rule: 0, outcome: "dropped".to_owned(), events };
        assert_eq!(deltas.rules, [of_rule(3)]);
        assert!(fill.take(99).is_none());
    }

    #[test]
    fn rules_on_labels_alone_are_told_from_others() {
        let alone = RULE_FILES.map(|rules| parsed(rules).read_only_labels());
        assert_eq!(alone, [true, true, true, false, false]);
    }

    /// What there is to commit, in a form that can be compared.
    fn taken(fill: &mut GenerationFill, to: Offset) -> Option<(OffsetRange, String)> {
        let (range, deltas) = fill.take(to)?;
        Some((range, format!("{deltas:?}")))
    }

    proptest! {
        #[test]
        fn a_batch_comes_to_what_its_events_one_by_one_come_to(
            file in 0..RULE_FILES.len(),
            batches in prop::collection::vec(
                (prop::collection::vec((0_usize..6, 0_i64..40, 0_u64..4), 0..40), any::<bool>()),
                1..5,
            ),
        ) {
            let days = DayRange::new(0, Some(2)).expect("days");
            let pages = ["a", "b", "bot", "c", "d", "e"].map(series);
            let all: usize = batches.iter().map(|(events, _)| events.len()).sum();
            let range = (2, (all as u64).saturating_sub(2).max(2));
            let new = || fill_under(parsed(RULE_FILES[file]), days, range, vec![]);
            let (mut batched, mut single) = (new(), new());
            let mut offset = 0;
            for (events, is_committed) in &batches {
                let mut batch = batched.batch(pages.len());
                for (page, hour, n) in events {
                    let event = SourceEvent {
                        value: (*n > 0).then(|| Decimal::from_units(i128::from(*n) * 7)),
                        user: (*n < 3).then_some(*n),
                        ..event(&pages[*page], offset, hour * HOUR_MS)
                    };
                    batch.fold(*page as u32, &event);
                    single.fold(&event);
                    offset += 1;
                }
                batch.finish();
                prop_assert_eq!(batched.bytes(), single.bytes());
                if *is_committed {
                    prop_assert_eq!(taken(&mut batched, offset), taken(&mut single, offset));
                }
            }
            prop_assert_eq!(taken(&mut batched, offset), taken(&mut single, offset));
        }

        #[test]
        fn crashes_and_transactions_anywhere_change_no_row(
            events in prop::collection::vec((0_usize..6, 0_i64..40), 1..60),
            cuts in prop::collection::vec((0_u64..60, any::<bool>()), 0..8),
        ) {
            let days = DayRange::new(0, Some(1)).expect("a day");
            let pages = ["a", "b", "bot", "c", "d", "e"].map(series);
            let all = |stops: &[(u64, bool)]| {
                let mut rows = std::collections::BTreeMap::<(SeriesId, Hour), Rollup>::new();
                let (mut admitted, mut dropped, mut cursor) = (Vec::new(), (0, 0), 0);
                let mut folding = fill(days, 0, events.len() as u64, vec![]);
                let ends = stops.iter().copied().chain([(events.len() as u64, false)]);
                for (end, crashes) in ends {
                    let from = cursor;
                    for offset in from..end.clamp(from, events.len() as u64) {
                        let (page, hour) = events[offset as usize];
                        let time = hour * HOUR_MS;
                        if folding.wants("t", "m", Hour::of(time).day()) {
                            folding.fold(&event(&pages[page], offset, time));
                        }
                    }
                    if crashes {
                        folding = fill(days, cursor, events.len() as u64, admitted.clone());
                    } else if let Some((range, deltas)) = folding.take(end) {
                        cursor = range.to;
                        admitted.extend(deltas.admitted.iter().map(|(info, _)| info.id));
                        dropped.0 += deltas.dropped.iter().map(|d| d.events).sum::<u64>();
                        dropped.1 += deltas.rules.iter().map(|r| r.events).sum::<u64>();
                        for delta in deltas.deltas {
                            let row = rows.entry((delta.series.id, delta.hour)).or_default();
                            row.merge(&delta.rollup);
                        }
                    }
                }
                (rows, dropped)
            };
            let mut stops = cuts.clone();
            stops.sort_unstable();
            let (of_days, of_rules) = all(&stops).1;
            prop_assert_eq!(of_days, of_rules);
            prop_assert_eq!(all(&stops), all(&[]));
        }
    }
}

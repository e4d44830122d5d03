//! The catalogue of a tenant: what the store has, with what its shards hold and have not written yet. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::series::{OVERFLOW_LABEL, SeriesId};
use crate::model::window::Hour;
use crate::persistence::store::MetricInfo;
use crate::shards::state::NewEntry;

/// The metrics of a tenant.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    metrics: BTreeMap<String, MetricInfo>,
    /// Overflow series that were added: each shard admits the one of a metric for itself.
    overflow: BTreeSet<SeriesId>,
}

impl Catalogue {
    /// What the store has.
    pub(super) fn stored(metrics: Vec<MetricInfo>) -> Self {
        let metrics = metrics.into_iter().map(|info| (info.metric.clone(), info)).collect();
        Self { metrics, overflow: BTreeSet::new() }
    }

    /// Adds what a shard holds.
    pub(super) fn add(&mut self, entry: NewEntry<'_>) {
        match entry {
            NewEntry::Series(info) => {
                let series = &info.series;
                let metric = self.metrics.entry(series.metric.clone()).or_insert_with(|| MetricInfo {
                    metric: series.metric.clone(),
                    labels: Vec::new(),
                    series: 0,
                    first: None,
                    last: None,
                });
                let of_overflow = |name: &String| name == OVERFLOW_LABEL.0;
                let known = series.is_overflow() && (metric.labels.iter().any(of_overflow) || !self.overflow.insert(info.id));
                metric.series += u64::from(!known);
                for (name, _) in &series.labels {
                    if let Err(at) = metric.labels.binary_search(name) {
                        metric.labels.insert(at, name.clone());
                    }
                }
            }
            NewEntry::Window(metric, hour) => {
                if let Some(metric) = self.metrics.get_mut(metric) {
                    let wider = |bound: Option<Hour>, pick: fn(Hour, Hour) -> Hour| Some(bound.map_or(hour, |at| pick(at, hour)));
                    (metric.first, metric.last) = (wider(metric.first, Hour::min), wider(metric.last, Hour::max));
                }
            }
        }
    }

    /// The metrics, ascending.
    pub(super) fn metrics(self) -> impl Iterator<Item = MetricInfo> {
        self.metrics.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flush::SeriesInfo;
    use crate::model::series::Series;

    fn info(metric: &str, labels: &[(&str, &str)]) -> SeriesInfo {
        let series = Series::new("t", metric, labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        SeriesInfo { id: SeriesId::of_key(&series.key()), series }
    }

    #[test]
    fn what_shards_hold_is_united_with_what_is_stored() {
        let stored = MetricInfo {
            metric: "m".to_owned(),
            labels: vec!["b".to_owned()],
            series: 3,
            first: Some(Hour(5)),
            last: Some(Hour(7)),
        };
        let mut catalogue = Catalogue::stored(vec![stored]);
        let overflow = info("m", &[OVERFLOW_LABEL]);
        for series in [&info("m", &[("a", "x"), ("b", "y")]), &info("new", &[("c", "z")]), &overflow, &overflow] {
            catalogue.add(NewEntry::Series(series));
        }
        for (metric, hour) in [("m", 6), ("m", 9), ("new", 8), ("new", 2)] {
            catalogue.add(NewEntry::Window(metric, Hour(hour)));
        }
        let found: Vec<_> = catalogue.metrics().map(|m| (m.metric, m.labels.concat(), m.series, m.first, m.last)).collect();
        let hours = |first, last| (Some(Hour(first)), Some(Hour(last)));
        let expected =
            |metric: &str, labels: &str, series, (first, last)| (metric.to_owned(), labels.to_owned(), series, first, last);
        assert_eq!(found, [expected("m", "__overflow__ab", 5, hours(5, 9)), expected("new", "c", 1, hours(2, 8))]);
    }
}

//! A tenant's metrics: those in the store merged with those that shards have not flushed yet. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::actors::catalogue::CatalogueGrowth;
use crate::model::series::OVERFLOW_LABEL;
use crate::model::window::Hour;
use crate::persistence::store::MetricInfo;

/// The metrics of a tenant by name.
#[derive(Debug, Default)]
pub(super) struct MetricCatalogue {
    metrics: BTreeMap<String, MetricInfo>,
    /// Metrics whose overflow series has been counted. Every shard may admit it, but
    /// it is one series.
    overflow: BTreeSet<String>,
}

impl MetricCatalogue {
    /// Starts from what the store has.
    pub(super) fn stored(metrics: Vec<MetricInfo>) -> Self {
        let metrics = metrics.into_iter().map(|info| (info.metric.clone(), info)).collect();
        Self { metrics, overflow: BTreeSet::new() }
    }

    /// Adds what a shard holds above its checkpoint.
    pub(super) fn add(&mut self, growth: &CatalogueGrowth) {
        for (name, new) in &growth.metrics {
            if !self.metrics.contains_key(name) {
                if new.series == 0 && !new.overflow {
                    // Only new hours of stored series: the store lists this metric on another page.
                    continue;
                }
                let none = MetricInfo {
                    metric: name.clone(),
                    labels: Vec::new(),
                    series: 0,
                    first: None,
                    last: None,
                };
                self.metrics.insert(name.clone(), none);
            }
            let Some(metric) = self.metrics.get_mut(name) else { continue };
            let stored = metric.labels.iter().any(|label| label == OVERFLOW_LABEL.0);
            let overflows = new.overflow && self.overflow.insert(name.clone()) && !stored;
            metric.series += new.series + u64::from(overflows);
            for label in &new.labels {
                if let Err(at) = metric.labels.binary_search(label) {
                    metric.labels.insert(at, label.clone());
                }
            }
            if let Some((first, last)) = new.hours {
                let wider = |bound: Option<Hour>, hour, pick: fn(Hour, Hour) -> Hour| {
                    Some(bound.map_or(hour, |at| pick(at, hour)))
                };
                (metric.first, metric.last) =
                    (wider(metric.first, first, Hour::min), wider(metric.last, last, Hour::max));
            }
        }
    }

    pub(super) fn metrics(self) -> impl Iterator<Item = MetricInfo> {
        self.metrics.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::catalogue::{CatalogueNames, CatalogueQuery};
    use crate::model::flush::SeriesInfo;
    use crate::model::series::{Series, SeriesId};
    use crate::shards::state::CatalogueEntry;

    fn info(metric: &str, labels: &[(&str, &str)]) -> SeriesInfo {
        let series = Series::new(
            "t",
            metric,
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
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
        let mut catalogue = MetricCatalogue::stored(vec![stored]);
        let question = CatalogueQuery {
            tenant: "t",
            names: CatalogueNames::Metrics,
            prefix: "",
            after: "",
            limit: 10,
        };
        let overflow = info("m", &[OVERFLOW_LABEL]);
        let (mut one, mut other) = (CatalogueGrowth::default(), CatalogueGrowth::default());
        for series in
            [&info("m", &[("a", "x"), ("b", "y")]), &info("new", &[("c", "z")]), &overflow]
        {
            one.add(&question, CatalogueEntry::Series(series));
        }
        other.add(&question, CatalogueEntry::Series(&overflow));
        for (metric, hour) in [("m", 6), ("m", 9), ("new", 8), ("new", 2), ("elsewhere", 3)] {
            other.add(&question, CatalogueEntry::Window(metric, Hour(hour)));
        }
        catalogue.add(&one);
        catalogue.add(&other);
        let found: Vec<_> = catalogue
            .metrics()
            .map(|m| (m.metric, m.labels.concat(), m.series, m.first, m.last))
            .collect();
        let hours = |first, last| (Some(Hour(first)), Some(Hour(last)));
        let expected = |metric: &str, labels: &str, series, (first, last)| {
            (metric.to_owned(), labels.to_owned(), series, first, last)
        };
        assert_eq!(
            found,
            [expected("m", "__overflow__ab", 5, hours(5, 9)), expected("new", "c", 1, hours(2, 8))]
        );
    }
}

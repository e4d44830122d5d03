//! Merging rollups into the groups and buckets of an answer. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::plan::{Agg, Order, Plan};
use super::steps::Step;
use crate::model::flush::SeriesInfo;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};

/// Values of the `by` labels.
pub type GroupKey = Vec<String>;

/// The groups of one answer.
pub struct Groups<'a> {
    plan: &'a Plan,
    groups: BTreeMap<GroupKey, BTreeMap<Millis, Rollup>>,
    keys: HashMap<SeriesId, GroupKey>,
    buckets: HashMap<Hour, Millis>,
    /// Why merging stopped, if it did.
    pub failed: Option<String>,
}

impl<'a> Groups<'a> {
    /// No groups.
    pub fn new(plan: &'a Plan) -> Self {
        Self { plan, groups: BTreeMap::new(), keys: HashMap::new(), buckets: HashMap::new(), failed: None }
    }

    /// Merges one rollup of a series.
    pub fn add(&mut self, series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup) {
        let bucket = match self.bucket(hour) {
            Ok(bucket) => bucket,
            Err(why) => {
                self.failed = Some(why);
                return;
            }
        };
        let key = self
            .keys
            .entry(series.id)
            .or_insert_with(|| self.plan.by.iter().map(|name| series.series.label(name).to_owned()).collect());
        let point = match self.groups.get_mut(key) {
            Some(points) => points.entry(bucket).or_default(),
            None => self.groups.entry(key.clone()).or_default().entry(bucket).or_default(),
        };
        if point.figures.sum.checked_add(rollup.figures.sum).is_none() {
            self.failed = Some("the sum exceeds 128 bits: ask for a shorter step".to_owned());
            return;
        }
        point.figures.merge(&rollup.figures);
        if self.plan.wants_distinct() {
            point.distinct.merge(&rollup.distinct);
        }
        if self.plan.wants_quantiles() {
            point.quantiles.merge(&rollup.quantiles);
        }
    }

    fn bucket(&mut self, hour: Hour) -> Result<Millis, String> {
        if self.plan.step == Step::All {
            return Ok(self.plan.from);
        }
        if let Some(&bucket) = self.buckets.get(&hour) {
            return Ok(bucket);
        }
        let bucket = self.plan.step.floor(&self.plan.tz, hour.start())?;
        self.buckets.insert(hour, bucket);
        Ok(bucket)
    }

    /// Number of points.
    pub fn points(&self) -> usize {
        self.groups.values().map(BTreeMap::len).sum()
    }

    /// The groups in the order asked for, cut at the limit.
    pub fn ordered(&self) -> Vec<(&GroupKey, &BTreeMap<Millis, Rollup>)> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        if self.plan.order != Order::Labels {
            let first = self.plan.aggs.first().copied().unwrap_or(Agg::Count);
            let total = |points: &BTreeMap<Millis, Rollup>| {
                let mut whole = Rollup::default();
                points.values().for_each(|rollup| whole.merge(rollup));
                rank(first, &whole)
            };
            groups.sort_by(|a, b| total(a.1).total_cmp(&total(b.1)));
            if self.plan.order == Order::Descending {
                groups.reverse();
            }
        }
        groups.truncate(self.plan.limit.unwrap_or(usize::MAX));
        groups
    }
}

/// A number to order by.
fn rank(agg: Agg, rollup: &Rollup) -> f64 {
    let figures = &rollup.figures;
    match agg {
        Agg::Count | Agg::Rate => figures.count as f64,
        Agg::Sum => figures.sum as f64,
        Agg::Avg => figures.sum as f64 / figures.value_count.max(1) as f64,
        Agg::Min => figures.min.map_or(f64::NEG_INFINITY, |v| v.to_f64()),
        Agg::Max => figures.max.map_or(f64::NEG_INFINITY, |v| v.to_f64()),
        Agg::Distinct => rollup.distinct.estimate() as f64,
        Agg::Quantile(q, _) => rollup.quantiles.quantile(q).unwrap_or(f64::NEG_INFINITY),
    }
}

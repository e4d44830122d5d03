//! Merging rollups into the groups and buckets of an answer. Pure.
//!
//! Rows come by the hundred thousand, an hour at a time, so the way from a row to its point is short: the bucket of the last hour is
//! kept, a series finds its group by its id, and a group's points are appended at the end.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::plan::{Agg, Order, Plan};
use super::steps::Step;
use crate::model::flush::SeriesInfo;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};

/// Values of the `by` labels.
pub type GroupKey = Vec<String>;

/// One series of an answer.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its labels.
    pub key: GroupKey,
    /// Its points, ascending.
    pub points: Vec<(Millis, Rollup)>,
}

impl Group {
    /// The point of a bucket; whether it is new.
    fn point(&mut self, bucket: Millis) -> (&mut Rollup, bool) {
        let at = match self.points.last() {
            Some((last, _)) if *last == bucket => return (&mut self.points.last_mut().expect("it has a last").1, false),
            Some((last, _)) if *last > bucket => self.points.binary_search_by_key(&bucket, |(start, _)| *start),
            _ => Err(self.points.len()),
        };
        match at {
            Ok(at) => (&mut self.points[at].1, false),
            Err(at) => {
                self.points.insert(at, (bucket, Rollup::default()));
                (&mut self.points[at].1, true)
            }
        }
    }
}

/// The groups of one answer, or of one day of it.
pub struct Groups<'a> {
    plan: &'a Plan,
    groups: Vec<Group>,
    by_key: HashMap<GroupKey, u32>,
    by_series: HashMap<SeriesId, u32, FixedState>,
    last_bucket: Option<(Hour, Millis)>,
    points: usize,
    /// Why merging stopped, if it did.
    pub failed: Option<String>,
}

impl<'a> Groups<'a> {
    /// No groups.
    pub fn new(plan: &'a Plan) -> Self {
        let by_series = HashMap::default();
        Self { plan, groups: Vec::new(), by_key: HashMap::new(), by_series, last_bucket: None, points: 0, failed: None }
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
        let group = match self.by_series.get(&series.id) {
            Some(&group) => group,
            None => {
                let group = self.group(self.plan.by.iter().map(|name| series.series.label(name).to_owned()).collect());
                self.by_series.insert(series.id, group);
                group
            }
        };
        self.merge(group, bucket, rollup);
    }

    /// Merges groups that were merged before.
    pub fn absorb(&mut self, part: &[Group]) {
        for group in part {
            let at = self.group(group.key.clone());
            group.points.iter().for_each(|(bucket, rollup)| self.merge(at, *bucket, rollup));
        }
    }

    /// The groups as they are.
    pub fn into_part(self) -> Vec<Group> {
        self.groups
    }

    fn group(&mut self, key: GroupKey) -> u32 {
        let next = self.groups.len() as u32;
        match self.by_key.get(&key) {
            Some(&group) => group,
            None => {
                self.groups.push(Group { key: key.clone(), points: Vec::new() });
                self.by_key.insert(key, next);
                next
            }
        }
    }

    fn merge(&mut self, group: u32, bucket: Millis, rollup: &Rollup) {
        let (point, new) = self.groups[group as usize].point(bucket);
        self.points += usize::from(new);
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
        match self.last_bucket {
            Some((last, bucket)) if last == hour => Ok(bucket),
            _ => {
                let bucket = self.plan.step.floor(&self.plan.tz, hour.start())?;
                self.last_bucket = Some((hour, bucket));
                Ok(bucket)
            }
        }
    }

    /// Number of points.
    pub fn points(&self) -> usize {
        self.points
    }

    /// The groups in the order asked for, cut at the limit.
    pub fn ordered(&self) -> Vec<&Group> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        if self.plan.order != Order::Labels {
            let first = self.plan.aggs.first().copied().unwrap_or(Agg::Count);
            groups.sort_by_cached_key(|group| Rank(rank(first, &group.points)));
            if self.plan.order == Order::Descending {
                groups.reverse();
            }
        }
        groups.truncate(self.plan.limit.unwrap_or(usize::MAX));
        groups
    }
}

/// A number with a total order.
#[derive(PartialEq)]
struct Rank(f64);

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A number to order by, over all points. Floating point, because sums of many windows may exceed 128 bits; it orders, it is not shown.
fn rank(agg: Agg, points: &[(Millis, Rollup)]) -> f64 {
    let sum = |of: fn(&Rollup) -> f64| points.iter().map(|(_, rollup)| of(rollup)).sum::<f64>();
    let merged = || {
        let mut whole = Rollup::default();
        for (_, rollup) in points {
            whole.distinct.merge(&rollup.distinct);
            whole.quantiles.merge(&rollup.quantiles);
        }
        whole
    };
    let values = |of: fn(&Rollup) -> Option<f64>| points.iter().filter_map(move |(_, rollup)| of(rollup));
    match agg {
        Agg::Count | Agg::Rate => sum(|r| r.figures.count as f64),
        Agg::Sum => sum(|r| r.figures.sum as f64),
        Agg::Avg => sum(|r| r.figures.sum as f64) / sum(|r| r.figures.value_count as f64).max(1.0),
        Agg::Min => values(|r| r.figures.min.map(|v| v.to_f64())).fold(f64::INFINITY, f64::min),
        Agg::Max => values(|r| r.figures.max.map(|v| v.to_f64())).fold(f64::NEG_INFINITY, f64::max),
        Agg::Distinct => merged().distinct.estimate() as f64,
        Agg::Quantile(q, _) => merged().quantiles.quantile(q).unwrap_or(f64::NEG_INFINITY),
    }
}

//! Merges rollups into the groups and buckets of an answer. Pure.
//!
//! Rows arrive by the hundred thousand, hour by hour, so the path from a row to its point is short:
//! the last hour's bucket is cached, series find their group by series id, and points are usually
//! appended at the end. Memory is charged as it grows, so an oversized query is aborted while it
//! runs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::{FixedState, RandomState};
use hashbrown::HashTable;

use super::rank::{self, RankValue};
use super::request::{Aggregate, QueryRequest, SeriesOrder};
use super::steps::TimeStep;
use crate::model::budget::QueryBudget;
use crate::model::flush::SeriesInfo;
use crate::model::query_charge::QueryCharge;
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::{Hour, Millis};

/// The values of the `by` labels, in the order of the request; or all labels of a series.
pub type GroupKey = Vec<String>;

/// One series of an answer: a group with its points.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct SeriesGroup {
    pub key: GroupKey,
    /// By the start of the bucket, ascending.
    pub points: Vec<(Millis, Rollup)>,
}

impl SeriesGroup {
    /// The point of a bucket, created if absent; true if it is new.
    fn point(&mut self, bucket: Millis) -> (&mut Rollup, bool) {
        let at = match self.points.last() {
            Some((last, _)) if *last < bucket => Err(self.points.len()),
            Some((last, _)) if *last == bucket => Ok(self.points.len() - 1),
            _ => self.points.binary_search_by_key(&bucket, |(start, _)| *start),
        };
        let new = at.is_err();
        let at = at.unwrap_or_else(|at| {
            self.points.insert(at, (bucket, Rollup::default()));
            at
        });
        (&mut self.points[at].1, new)
    }
}

/// The limits of a merge.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub struct MergeLimits<'a> {
    pub budget: &'a QueryBudget,
    /// Maximum number of points in the answer; None if they cannot be counted while merging.
    pub max_points: Option<usize>,
}

/// Bytes of a point, including the spare capacity of a growing `Vec`.
const POINT_BYTES: usize = 3 * size_of::<(Millis, Rollup)>() / 2;
/// Bytes of a group without its labels and points; includes its index entry.
const GROUP_BYTES: usize = 200;
/// Bytes of an entry in `by_series`.
const SERIES_BYTES: usize = 48;
/// Bytes of a label value without its text.
const LABEL_BYTES: usize = 64;

/// The cached result of one day of a query.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Default)]
pub struct DayPart {
    pub groups: Vec<SeriesGroup>,
    /// Events of the overflow series; 0 if the query does not ask for them.
    pub overflow: u64,
}

/// The groups of one answer, or of one day of it.
pub struct GroupSet<'a> {
    request: &'a QueryRequest,
    groups: Vec<SeriesGroup>,
    /// Indices into `groups` by key; the keys are stored in `groups` only. Label values come from
    /// clients, so the hash is randomly seeded against crafted collisions.
    by_key: HashTable<u32>,
    hasher: RandomState,
    /// Series ids are hashes already, so a fixed seed will do.
    by_series: HashMap<SeriesId, u32, FixedState>,
    last_bucket: Range<Millis>,
    /// Events of the overflow series, whatever the matchers say. Counted only if the
    /// query depends on labels.
    pub overflow: u64,
    points: usize,
    limits: MergeLimits<'a>,
    charge: QueryCharge<'a>,
    /// Why merging stopped: a figure or a bucket is out of range.
    pub failed: Option<String>,
}

impl<'a> GroupSet<'a> {
    /// An empty set for a request.
    pub fn new(request: &'a QueryRequest, cost: MergeLimits<'a>) -> Self {
        Self {
            request,
            groups: Vec::new(),
            by_key: HashTable::new(),
            hasher: RandomState::default(),
            by_series: HashMap::default(),
            last_bucket: 0..0,
            overflow: 0,
            points: 0,
            charge: QueryCharge::new(cost.budget),
            limits: cost,
            failed: None,
        }
    }

    /// Number of points in all groups.
    pub fn points(&self) -> usize {
        self.points
    }

    /// The limits given to [`Self::new`].
    pub fn limits(&self) -> MergeLimits<'a> {
        self.limits
    }

    /// Merges one live delta. Shards send the overflow series regardless of the matchers if the
    /// query asks for it, so the matchers are applied to it here.
    pub fn add_live(&mut self, series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup) {
        if self.request.overflow.is_some() && series.series.is_overflow() {
            self.overflow += rollup.figures.count;
            if !self.request.matchers.iter().all(|matcher| matcher.matches(&series.series)) {
                return;
            }
        }
        self.add(series, hour, rollup);
    }

    /// Merges one rollup of a series.
    pub fn add(&mut self, series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup) {
        // Rows still arriving after an abort are dropped: the caller checks the budget at the end.
        if self.limits.budget.abort_reason().is_some() {
            return;
        }
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
                let key = group_key(self.request, &series.series);
                let group = self.group(Cow::Owned(key));
                self.by_series.insert(series.id, group);
                self.charge.add_bytes(SERIES_BYTES);
                group
            }
        };
        self.merge(group, bucket, rollup);
    }

    /// Merges the cached result of a day.
    pub fn merge_part(&mut self, part: &DayPart) {
        self.overflow += part.overflow;
        for group in &part.groups {
            if self.limits.budget.abort_reason().is_some() {
                return;
            }
            let at = self.group(Cow::Borrowed(&group.key));
            group.points.iter().for_each(|(bucket, rollup)| self.merge(at, *bucket, rollup));
        }
    }

    /// The groups as a cacheable part.
    pub fn into_part(self) -> DayPart {
        DayPart { groups: self.groups, overflow: self.overflow }
    }

    fn group(&mut self, key: Cow<'_, [String]>) -> u32 {
        let Self { groups, by_key, hasher, .. } = self;
        let hash = hasher.hash_one(&*key);
        let known = by_key.find(hash, |&at| *groups[at as usize].key == *key);
        if let Some(&group) = known {
            return group;
        }
        let next = groups.len() as u32;
        let bytes = GROUP_BYTES + key.iter().map(|value| LABEL_BYTES + value.len()).sum::<usize>();
        groups.push(SeriesGroup { key: key.into_owned(), points: Vec::new() });
        by_key.insert_unique(hash, next, |&at| hasher.hash_one(&*groups[at as usize].key));
        self.charge.add_bytes(bytes);
        next
    }

    fn merge(&mut self, group: u32, bucket: Millis, rollup: &Rollup) {
        let (point, new) = self.groups[group as usize].point(bucket);
        let sketches = self.request.wants_distinct() || self.request.wants_quantiles();
        // Only sketches grow on the heap; without them the step is skipped for every row.
        let before = if sketches { heap_bytes(point) } else { 0 };
        if point.figures.sum.checked_add(rollup.figures.sum).is_none() {
            self.failed = Some("the sum exceeds 128 bits: ask for a shorter step".to_owned());
            return;
        }
        point.figures.merge(&rollup.figures);
        if self.request.wants_distinct() {
            point.distinct.merge(&rollup.distinct);
        }
        if self.request.wants_quantiles() {
            point.quantiles.merge(&rollup.quantiles);
        }
        let grown = if sketches { heap_bytes(point).saturating_sub(before) } else { 0 };
        if new {
            self.points += 1;
            if let Some(max) = self.limits.max_points {
                self.charge.add_point(max);
            }
        }
        if new || grown > 0 {
            self.charge.add_bytes(grown + if new { POINT_BYTES } else { 0 });
        }
    }

    fn bucket(&mut self, hour: Hour) -> Result<Millis, String> {
        if self.request.step == TimeStep::All {
            return Ok(self.request.from);
        }
        let start = hour.start();
        if !self.last_bucket.contains(&start) {
            self.last_bucket = self.request.step.bucket(&self.request.tz, start)?;
        }
        Ok(self.last_bucket.start)
    }

    /// The groups in the requested order, truncated to the limit, with the charge for their memory.
    /// Ties are broken by labels.
    pub fn into_ordered(self) -> (Vec<SeriesGroup>, QueryCharge<'a>) {
        let (request, mut groups) = (self.request, self.groups);
        // Sorted by labels in any case: the sort by rank below is stable, so this breaks its ties.
        groups.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        if request.order != SeriesOrder::Labels {
            let first = request.aggregates.first().copied().unwrap_or(Aggregate::Count);
            let mut ranked: Vec<_> = groups
                .into_iter()
                .map(|group| (RankValue::of(first, &group.points), group))
                .collect();
            let descending = request.order == SeriesOrder::Descending;
            ranked.sort_by(|(a, _), (b, _)| rank::order(a.as_ref(), b.as_ref(), descending));
            groups = ranked.into_iter().map(|(_, group)| group).collect();
        }
        groups.truncate(request.limit.unwrap_or(usize::MAX));
        (groups, self.charge)
    }
}

fn group_key(request: &QueryRequest, series: &Series) -> GroupKey {
    if request.per_series {
        let parts = series.labels.iter().flat_map(|(name, value)| [name, value]);
        return parts.cloned().collect();
    }
    request.group_by.iter().map(|name| series.label(name).to_owned()).collect()
}

fn heap_bytes(rollup: &Rollup) -> usize {
    rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes()
}

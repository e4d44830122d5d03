//! The stored part of an answer: complete days from the cache or the store, the hours before and
//! behind them from the store, each piece of the range in the generation that is served there.

use std::ops::Range;
use std::sync::Arc;

use super::cache::DayCache;
use super::days::{self, first_hour};
use super::groups::{GroupSet, MergeLimits};
use super::part::PartSource;
use super::request::QueryRequest;
use super::steps::TimeStep;
use crate::model::budget::QueryBudget;
use crate::model::served::ServedHours;
use crate::model::window::Hour;
use crate::persistence::store::{QuerySnapshot, QuerySource, RollupQuery, StoreError};

/// Target number of points in the days that are read together and merged afterwards. Large enough
/// that a long range with few groups is one read; small enough that days with many groups are not
/// in memory at the same time.
const PART_POINTS: usize = 50_000;
/// By which factor the number of days per read may grow from one read to the next: the first days
/// may be sparser than the rest.
const MORE_DAYS: usize = 8;

/// Longer ranges are read without the day cache: no store holds that many days, and every day
/// costs a revision look-up.
const MAX_DAYS: i64 = 4_000;

/// Reads the stored part of one answer.
#[derive(Clone, Copy)]
pub(super) struct StoredReader<'q> {
    pub store: &'q dyn QuerySource,
    pub cache: &'q DayCache,
    pub tenant: &'q str,
    pub request: &'q QueryRequest,
    pub max_series: usize,
    /// The first day that is not complete.
    pub today: i32,
}

/// The UTC days that lie entirely within the hours and before `today`.
fn whole_days(first: Hour, end: Hour, today: i32) -> Range<i32> {
    let from = first.0.div_euclid(24) + i32::from(first.0.rem_euclid(24) != 0);
    let to = end.0.div_euclid(24).min(today);
    if to <= from { 0..0 } else { from..to }
}

impl StoredReader<'_> {
    /// Merges what is stored of each piece. The pieces are of one range, ascending.
    pub(super) fn add(
        &self,
        served: &[ServedHours],
        snapshot: &mut dyn QuerySnapshot,
        groups: &mut GroupSet<'_>,
    ) -> Result<(), StoreError> {
        let days = |piece: &ServedHours| whole_days(piece.from, piece.to, self.today);
        let count: i64 = served.iter().map(|piece| days(piece).len() as i64).sum();
        for piece in served {
            match days(piece) {
                days if days.is_empty() || count > MAX_DAYS => {
                    let query = self.rollup_query(piece, groups.limits().budget);
                    days::fold(snapshot, &query, self.request, groups)?;
                }
                days => self.add_days(piece, days, snapshot, groups)?,
            }
            if groups.failed.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Merges a piece with complete days.
    fn add_days(
        &self,
        piece: &ServedHours,
        days: Range<i32>,
        snapshot: &mut dyn QuerySnapshot,
        groups: &mut GroupSet<'_>,
    ) -> Result<(), StoreError> {
        let Self { tenant, request, .. } = *self;
        let of = PartSource { tenant, request, generation: piece.generation };
        let revisions =
            snapshot.revisions(tenant, &request.metric, piece.generation, days.clone())?;
        let cost = groups.limits();
        let query = self.rollup_query(piece, cost.budget);
        let edge = |from: Hour, to: Hour| RollupQuery { from, to, ..query.clone() };
        // Days of a longer step share buckets, so their points do not add up to those of the
        // answer.
        let of_days = MergeLimits {
            max_points: cost.max_points.filter(|_| request.step == TimeStep::Hours(1)),
            ..cost
        };
        days::fold(snapshot, &edge(piece.from, first_hour(days.start)), request, groups)?;
        // Consecutive uncached days are read together, as many as keep the points of one read near
        // PART_POINTS. Ungrouped queries have one group, so their days need no probing.
        let mut uncached: Vec<(i32, u64)> = Vec::new();
        let mut at_once =
            if request.group_by.is_empty() && !request.per_series { usize::MAX } else { 1 };
        let wanted: Vec<(i32, u64)> = days.clone().zip(revisions).collect();
        let mut parts = self.cache.look_up(of, &wanted);
        // The extra element at the end flushes what is still in `uncached`; its revision 0 matches
        // no day.
        for (day, revision) in wanted.iter().copied().chain([(days.end, 0)]) {
            let cached = parts.next_part();
            if revision > 0 && cached.is_none() {
                uncached.push((day, revision));
                if uncached.len() < at_once {
                    continue;
                }
            }
            let extra = || self.store.query_snapshot_at_once(cost.budget);
            let read = days::read(snapshot, &extra, &query, (request, of_days), &uncached)?;
            if !read.is_empty() {
                let points = read.iter().map(GroupSet::points).sum::<usize>().div_ceil(read.len());
                at_once = (PART_POINTS / points.max(1)).clamp(1, at_once.saturating_mul(MORE_DAYS));
            }
            for (day, mut part) in uncached.drain(..).zip(read) {
                if part.failed.is_some() {
                    groups.failed = part.failed.take();
                    return Ok(());
                }
                let part = Arc::new(part.into_part());
                groups.merge_part(&part);
                self.cache.put(of, day, part);
            }
            if let Some(part) = cached {
                groups.merge_part(&part);
            }
        }
        days::fold(snapshot, &edge(first_hour(days.end), piece.to), request, groups)
    }

    fn rollup_query<'b>(&'b self, piece: &ServedHours, budget: &'b QueryBudget) -> RollupQuery<'b> {
        let request = self.request;
        RollupQuery {
            tenant: self.tenant,
            metric: &request.metric,
            generation: piece.generation,
            matchers: &request.matchers,
            from: piece.from,
            to: piece.to,
            distinct: request.wants_distinct(),
            quantiles: request.wants_quantiles(),
            max_series: self.max_series,
            budget: Some(budget),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_days_that_are_whole_and_over_are_cached() {
        assert_eq!(whole_days(Hour(0), Hour(72), 9), 0..3);
        assert_eq!(whole_days(Hour(1), Hour(71), 9), 1..2);
        assert_eq!(whole_days(Hour(-25), Hour(72), 2), -1..2);
        assert!(whole_days(Hour(1), Hour(47), 9).is_empty());
        assert!(whole_days(Hour(48), Hour(96), 2).is_empty());
    }
}

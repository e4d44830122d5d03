//! Parts of answers over whole days that lie behind, kept by revision.
//!
//! The flush moves the revision of every (tenant, metric, UTC day) that it writes, in its transaction, and a query reads the revisions
//! in its own snapshot. A part is found under its revision only, so it is never stale: a late event makes it unreachable, whenever it
//! comes. Live deltas are merged afterwards and never kept. What does not fit is forgotten, least recently used first.

use std::sync::Arc;

use super::groups::Group;
use super::plan::Plan;
use crate::telemetry;

/// Bytes of a point beside its sketches, and of a group beside its points.
const OVERHEAD: usize = 160;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    tenant: String,
    query: String,
    day: i32,
    revision: u64,
}

/// The cache of an engine; none if it may hold nothing.
pub struct Cache(Option<moka::sync::Cache<Key, Arc<Vec<Group>>>>);

fn weight(part: &[Group]) -> usize {
    let point = |(_, rollup): &(i64, crate::model::rollup::Rollup)| {
        OVERHEAD + rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes()
    };
    let group = |group: &Group| {
        OVERHEAD + group.key.iter().map(|value| value.len() + 24).sum::<usize>() + group.points.iter().map(point).sum::<usize>()
    };
    OVERHEAD + part.iter().map(group).sum::<usize>()
}

impl Cache {
    /// A cache of so many bytes; 0 turns it off.
    pub fn new(bytes: u64) -> Self {
        let weigher = |key: &Key, part: &Arc<Vec<Group>>| {
            u32::try_from(weight(part) + key.tenant.len() + key.query.len()).unwrap_or(u32::MAX)
        };
        Self((bytes > 0).then(|| moka::sync::Cache::builder().max_capacity(bytes).weigher(weigher).build()))
    }

    /// The part of a day.
    pub fn get(&self, tenant: &str, plan: &Plan, day: i32, revision: u64) -> Option<Arc<Vec<Group>>> {
        let found = self.0.as_ref()?.get(&key(tenant, plan, day, revision));
        metrics::counter!(telemetry::QUERY_CACHE, "outcome" => if found.is_some() { "hit" } else { "miss" }).increment(1);
        found
    }

    /// Keeps the part of a day.
    pub fn put(&self, tenant: &str, plan: &Plan, day: i32, revision: u64, part: Arc<Vec<Group>>) {
        if let Some(cache) = &self.0 {
            cache.insert(key(tenant, plan, day, revision), part);
        }
    }
}

fn key(tenant: &str, plan: &Plan, day: i32, revision: u64) -> Key {
    Key { tenant: tenant.to_owned(), query: plan.key.clone(), day, revision }
}

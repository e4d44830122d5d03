//! The series interner: labels are parsed, checked, hashed and routed once per distinct
//! (tenant, metric, label bytes).
//!
//! It is a two-generation cache, bounded in entries and bytes: when the current generation is full,
//! it becomes the previous one, and entries still in use are copied back. Equality is decided by
//! the stored bytes, never by the hash alone, so a collision is a miss.

use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use dashmap::DashMap;

use crate::model::batch::RoutedSeries;
use crate::model::event::EventError;
use crate::model::series::Series;

/// Overhead of an entry beyond its strings, rounded up: its slot in the map, two reference-counted
/// allocations, and what the allocator rounds up.
const ENTRY_BYTES: usize = 192;

#[derive(Clone)]
struct Entry {
    /// Label bytes as the client sent them.
    labels: Arc<[u8]>,
    series: Arc<RoutedSeries>,
}

#[derive(Default)]
struct Generation {
    map: DashMap<u64, Entry, foldhash::fast::RandomState>,
    bytes: AtomicUsize,
}

struct Generations {
    current: Arc<Generation>,
    previous: Arc<Generation>,
}

/// A bounded cache of routed series.
pub struct Interner {
    generations: ArcSwap<Generations>,
    seed: foldhash::fast::RandomState,
    shard_count: u32,
    max_entries: usize,
    max_bytes: usize,
}

impl Interner {
    /// Creates an empty interner. Both generations together stay below the caps.
    pub fn new(shard_count: u32, max_entries: usize, max_bytes: usize) -> Self {
        let empty = Generations { current: Arc::default(), previous: Arc::default() };
        Self {
            generations: ArcSwap::from_pointee(empty),
            seed: foldhash::fast::RandomState::default(),
            shard_count,
            max_entries: (max_entries / 2).max(1),
            max_bytes: (max_bytes / 2).max(1),
        }
    }

    /// The series of these label bytes; on a miss, `parse` reads and checks them.
    /// Fails as `parse` does.
    pub fn intern(
        &self,
        tenant: &str,
        metric: &str,
        labels: &[u8],
        parse: impl FnOnce() -> Result<Vec<(String, String)>, EventError>,
    ) -> Result<Arc<RoutedSeries>, EventError> {
        let hash = self.hash(tenant, metric, labels);
        let generations = self.generations.load();
        let same = |entry: &Entry| {
            *entry.labels == *labels && Series::key_is_of(&entry.series.key, tenant, metric)
        };
        if let Some(entry) = generations.current.map.get(&hash)
            && same(&entry)
        {
            return Ok(entry.series.clone());
        }
        let old = generations
            .previous
            .map
            .get(&hash)
            .filter(|entry| same(entry))
            .map(|entry| entry.clone());
        let entry = match old {
            Some(entry) => entry,
            None => {
                let series =
                    RoutedSeries::new(&Series::new(tenant, metric, parse()?), self.shard_count);
                Entry { labels: labels.into(), series: Arc::new(series) }
            }
        };
        let series = entry.series.clone();
        self.insert(&generations, hash, entry);
        Ok(series)
    }

    fn hash(&self, tenant: &str, metric: &str, labels: &[u8]) -> u64 {
        use std::hash::BuildHasher;
        let mut hasher = self.seed.build_hasher();
        hasher.write(tenant.as_bytes());
        // Separates the parts, so that ("ab", "c") and ("a", "bc") hash differently.
        hasher.write_u8(0);
        hasher.write(metric.as_bytes());
        hasher.write_u8(0);
        hasher.write(labels);
        hasher.finish()
    }

    fn insert(&self, generations: &Arc<Generations>, hash: u64, entry: Entry) {
        let current = &generations.current;
        let size = ENTRY_BYTES + entry.labels.len() + entry.series.key.len();
        let bytes = current.bytes.fetch_add(size, Ordering::Relaxed) + size;
        current.map.insert(hash, entry);
        if bytes > self.max_bytes || current.map.len() > self.max_entries {
            let next = Generations { current: Arc::default(), previous: current.clone() };
            // Another thread may have rotated first; then its generations are kept.
            self.generations.compare_and_swap(generations, Arc::new(next));
        }
    }

    /// Number of cached entries, in both generations.
    pub fn len(&self) -> usize {
        let generations = self.generations.load();
        generations.current.map.len() + generations.previous.map.len()
    }

    /// Whether no entry is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(value: &str) -> Result<Vec<(String, String)>, EventError> {
        Ok(vec![("a".to_owned(), value.to_owned())])
    }

    #[test]
    fn a_hit_does_not_parse_and_tenants_never_meet() {
        let interner = Interner::new(64, 100, 1 << 20);
        let first = interner.intern("t", "m", b"{a:1}", || label("1")).unwrap();
        let again = interner.intern("t", "m", b"{a:1}", || panic!("parsed again")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let other = interner.intern("u", "m", b"{a:1}", || label("1")).unwrap();
        assert!(Series::key_is_of(&other.key, "u", "m"));
        assert_ne!(other.id, first.id);
    }

    #[test]
    fn entries_and_bytes_stay_bounded() {
        let interner = Interner::new(64, 100, 1 << 30);
        for i in 0..10_000 {
            interner.intern("t", "m", format!("{i}").as_bytes(), || label(&i.to_string())).unwrap();
            assert!(interner.len() <= 102);
        }
        let interner = Interner::new(64, usize::MAX, 100 * ENTRY_BYTES);
        (0..10_000).for_each(|i| {
            drop(interner.intern("t", "m", format!("{i}").as_bytes(), || label("x")).unwrap())
        });
        assert!(interner.len() <= 100, "{}", interner.len());
    }
}

//! Admission of series. Beyond a tenant's limit of series, events go to the overflow series of
//! their metric; beyond its limit of metric names, to the overflow series of the tenant.
//!
//! The limits decide, and the offset of each admission is stored with the series. Recomputation
//! follows what was stored, whatever the limits are by then. So does a shard that applies archived
//! records again, because their objects say what it admitted there.
//!
//! Several shards may write the overflow series of a metric, and the catalogue records only the
//! first of them, so it does not say what any other shard decided. Therefore, from the first metric
//! name that a shard refuses a tenant, it uses overflow series of its own for that tenant. Their
//! admissions distinguish refused names from names that merely had no room
//! for another series ([`SeriesAdmission::overflow_series`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use crate::model::offset::{Offset, ShardId};
use crate::model::series::{AdmittedSeries, Series, SeriesId, metric_hash};

/// Metric names of each tenant that this process knows: those of the catalogue, and those that its
/// shards have admitted since.
///
/// Names are never removed. A name that was refused stays refused for the life of the process,
/// unless the catalogue shows that another process admitted it.
#[derive(Debug)]
pub struct MetricNameRegistry {
    limit: usize,
    names: Mutex<HashMap<String, HashSet<u64, FixedState>, FixedState>>,
}

impl MetricNameRegistry {
    /// Creates a registry that admits up to `limit` names per tenant.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, names: Mutex::default() })
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, HashSet<u64, FixedState>, FixedState>> {
        // A set of numbers: a panic in the middle of an insertion leaves nothing inconsistent.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds names of the catalogue, whatever the limit.
    pub fn extend(&self, catalogue: &[(String, String)]) {
        let mut names = self.names();
        for (tenant, metric) in catalogue {
            names.entry_ref(tenant.as_str()).or_default().insert(metric_hash(tenant, metric));
        }
    }

    /// Whether the tenant may use the name. A new name is admitted, and counted, if there is room.
    pub fn try_admit(&self, tenant: &str, metric: &str) -> bool {
        let hash = metric_hash(tenant, metric);
        let mut names = self.names();
        let known = names.entry_ref(tenant).or_default();
        if known.contains(&hash) {
            return true;
        }
        known.len() < self.limit && known.insert(hash)
    }

    /// The limit of names, and how many this tenant uses.
    pub fn usage(&self, tenant: &str) -> (usize, usize) {
        (self.limit, self.names().get(tenant).map_or(0, HashSet::len))
    }
}

/// The series that a shard has admitted.
#[derive(Debug)]
pub struct SeriesAdmission {
    shard: ShardId,
    admitted: HashMap<SeriesId, Offset, FixedState>,
    rule: AdmissionRule,
}

#[derive(Debug)]
enum AdmissionRule {
    /// Limits per tenant decide; below `recorded.below`, earlier decisions do.
    Limit {
        limit: u64,
        counts: HashMap<String, u64, FixedState>,
        recorded: RecordedAdmissions,
        metric_names: Option<Arc<MetricNameRegistry>>,
        /// Offset of the last record with an event that went to an overflow
        /// series shared between shards.
        shared_at: Option<Offset>,
    },
    /// Nothing is admitted that was not admitted at the time.
    Recorded,
}

/// Admissions in records that are applied again.
#[derive(Debug, Default)]
struct RecordedAdmissions {
    below: Offset,
    pending: HashMap<SeriesId, Offset, FixedState>,
}

impl SeriesAdmission {
    /// Starts from the series in the catalogue, by tenant, with a limit of series per tenant and
    /// no limit of names.
    pub fn limited(limit: u64, catalogue: Vec<(String, AdmittedSeries)>) -> Self {
        let mut counts = HashMap::default();
        let mut admitted = HashMap::default();
        for (tenant, AdmittedSeries { ids, overflow }) in catalogue {
            // A release may have made an overflow series although the limit is not reached.
            counts.insert(tenant, ids.len() as u64 - overflow);
            // Everything in the catalogue was admitted below the checkpoint, so offset
            // 0 is early enough.
            admitted.extend(ids.into_iter().map(|id| (id, 0)));
        }
        let rule = AdmissionRule::Limit {
            limit,
            counts,
            recorded: RecordedAdmissions::default(),
            metric_names: None,
            shared_at: None,
        };
        Self { shard: ShardId(0), admitted, rule }
    }

    /// Follows recorded admissions only: each series is admitted from its offset on.
    pub fn recorded(admissions: Vec<(SeriesId, Offset)>) -> Self {
        Self {
            shard: ShardId(0),
            admitted: admissions.into_iter().collect(),
            rule: AdmissionRule::Recorded,
        }
    }

    /// Sets the shard, which names its own overflow series.
    #[must_use]
    pub fn for_shard(self, shard: ShardId) -> Self {
        Self { shard, ..self }
    }

    /// Adds a limit of metric names.
    #[must_use]
    pub fn with_metric_names(mut self, names: Arc<MetricNameRegistry>) -> Self {
        if let AdmissionRule::Limit { metric_names: registry, .. } = &mut self.rule {
            *registry = Some(names);
        }
        self
    }

    /// Adds recorded admissions. Below `to`, a series is admitted if and only if it is among them.
    pub fn apply_recorded(&mut self, admissions: &[(SeriesId, Offset)], to: Offset) {
        if let AdmissionRule::Limit { recorded, .. } = &mut self.rule {
            recorded.below = recorded.below.max(to);
            recorded.pending.extend(
                admissions.iter().filter(|(id, _)| !self.admitted.contains_key(id)).copied(),
            );
        }
    }

    /// Whether the series is admitted at this offset.
    pub fn is_admitted(&self, id: SeriesId, offset: Offset) -> bool {
        self.admitted.get(&id).is_some_and(|&from| from <= offset)
    }

    /// Like [`SeriesAdmission::is_admitted`], but also true for a recorded admission that has
    /// not been applied yet.
    fn is_admitted_or_recorded(&self, series: &Series, offset: Offset) -> bool {
        let id = SeriesId::of_key(&series.key());
        let pending = |from: &Offset| *from <= offset;
        self.is_admitted(id, offset)
            || matches!(
                &self.rule,
                AdmissionRule::Limit { recorded, .. }
                    if offset < recorded.below && recorded.pending.get(&id).is_some_and(pending)
            )
    }

    /// Admits an unknown series if its tenant has room for it and for its metric name, or, below
    /// the recorded offset, if it was admitted there. Overflow series always have room.
    pub fn try_admit(&mut self, id: SeriesId, series: &Series, offset: Offset) -> bool {
        let AdmissionRule::Limit { limit, counts, recorded, metric_names: registry, .. } =
            &mut self.rule
        else {
            return false;
        };
        let count = counts.entry_ref(series.tenant.as_str()).or_insert(0);
        let is_overflow = series.is_overflow();
        let named = || {
            registry
                .as_ref()
                .is_none_or(|registry| registry.try_admit(&series.tenant, &series.metric))
        };
        // Below `recorded.below` the limits are not asked: the record was decided before, and must
        // be decided the same way again.
        let admits = match offset < recorded.below {
            true => recorded.pending.get(&id).is_some_and(|from| *from <= offset),
            // The name comes last: it is never given back, so it must not be taken for a series
            // that has no room.
            false => is_overflow || *count < *limit && named(),
        };
        if admits {
            *count += u64::from(!is_overflow);
            self.admitted.insert(id, recorded.pending.remove(&id).unwrap_or(offset));
        }
        admits
    }

    /// The overflow series for an event of a series that is not admitted. The choice follows from
    /// the admissions of this shard's own overflow series alone, so that
    /// recomputation finds it again:
    ///
    /// - While the shard has refused no name of the tenant, it is the metric's overflow
    ///   series, which shards share.
    /// - The first refusal admits this shard's overflow series of the tenant. From then on, a
    ///   metric with an admitted name has an overflow series of this shard, admitted with its first
    ///   event; a metric without one was refused.
    /// - If an earlier event of the same record went to the shared series, the first refusal is put
    ///   off to the next record, because admissions are recorded per offset.
    pub fn overflow_series(&mut self, series: &Series, offset: Offset) -> Series {
        let (of_tenant, of_metric) =
            (series.overflow_of_tenant(self.shard), series.overflow_of_shard(self.shard));
        let refused_before = self.is_admitted_or_recorded(&of_tenant, offset);
        let own = refused_before && self.is_admitted_or_recorded(&of_metric, offset);
        let AdmissionRule::Limit { recorded, metric_names: Some(registry), shared_at, .. } =
            &mut self.rule
        else {
            return if own {
                of_metric
            } else if refused_before {
                of_tenant
            } else {
                series.overflow()
            };
        };
        if offset < recorded.below {
            return if own {
                of_metric
            } else if refused_before {
                of_tenant
            } else {
                series.overflow()
            };
        }
        let named = own || registry.try_admit(&series.tenant, &series.metric);
        match (refused_before, named) {
            (true, true) => of_metric,
            (true, false) => of_tenant,
            (false, false) if *shared_at != Some(offset) => of_tenant,
            (false, _) => {
                *shared_at = Some(offset);
                series.overflow()
            }
        }
    }

    /// Whether a refusal holds for the rest of a batch, which is so if the limit
    /// of series alone decides.
    pub fn refusals_are_final(&self, offset: Offset) -> bool {
        matches!(
            &self.rule,
            AdmissionRule::Limit { recorded, metric_names: None, .. } if offset >= recorded.below
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(n: u8) -> (SeriesId, Series) {
        let series = Series::new("t", "m", [("n".to_owned(), n.to_string())]);
        (SeriesId::of_key(&series.key()), series)
    }

    #[test]
    fn the_limit_counts_what_the_catalogue_knows() {
        let overflow = series(1).1.overflow();
        let mut known = AdmittedSeries::from(vec![series(0).0]);
        known.add(SeriesId::of_key(&overflow.key()), Some(&overflow.key())).expect("a key");
        let mut admission = SeriesAdmission::limited(2, vec![("t".to_owned(), known)]);
        assert!(admission.is_admitted(series(0).0, 0));
        let taken: Vec<bool> =
            (1..4).map(|n| admission.try_admit(series(n).0, &series(n).1, 7)).collect();
        assert_eq!(taken, [true, false, false]);
        let other = of_metric("other", 1).1.overflow();
        assert!(
            admission.try_admit(SeriesId::of_key(&other.key()), &other, 8),
            "the overflow series has no limit"
        );
        assert!(
            admission.try_admit(series(9).0, &Series::new("other", "m", []), 9),
            "nor have other tenants"
        );
    }

    #[test]
    fn what_was_admitted_is_admitted_again_where_it_was_and_behind_it_the_limit_decides() {
        let (known, later, never) = (series(1), series(2), series(3));
        let mut admission =
            SeriesAdmission::limited(2, vec![("t".to_owned(), vec![known.0].into())]);
        admission.apply_recorded(&[(known.0, 4), (later.0, 6)], 10);
        assert!(!admission.try_admit(later.0, &later.1, 5), "it went to the overflow series then");
        assert!(
            !admission.try_admit(never.0, &never.1, 5),
            "there is room now, there was none then"
        );
        assert!(admission.try_admit(later.0, &later.1, 6));
        assert!(
            admission.is_admitted(later.0, 6)
                && !admission.refusals_are_final(9)
                && admission.refusals_are_final(10)
        );
        assert!(
            !admission.try_admit(never.0, &never.1, 10),
            "what was admitted then fills the limit"
        );
        let mut wider = SeriesAdmission::limited(3, vec![("t".to_owned(), vec![known.0].into())]);
        wider.apply_recorded(&[(later.0, 6)], 10);
        assert!(wider.try_admit(later.0, &later.1, 6) && wider.try_admit(never.0, &never.1, 10));
    }

    #[test]
    fn recorded_admissions_hold_from_their_offset_on() {
        let mut admission = SeriesAdmission::recorded(vec![(series(1).0, 5)]);
        assert_eq!(
            [4, 5, 6].map(|offset| admission.is_admitted(series(1).0, offset)),
            [false, true, true]
        );
        assert!(!admission.try_admit(series(2).0, &series(2).1, 9));
    }

    fn of_metric(metric: &str, n: u8) -> (SeriesId, Series) {
        let series = Series::new("t", metric, [("n".to_owned(), n.to_string())]);
        (SeriesId::of_key(&series.key()), series)
    }

    /// Where an event goes: to its series or to the one that stands in for it, admitted as
    /// a batch does it.
    fn place(
        admission: &mut SeriesAdmission,
        (id, series): &(SeriesId, Series),
        offset: Offset,
    ) -> Series {
        if admission.is_admitted(*id, offset) || admission.try_admit(*id, series, offset) {
            return series.clone();
        }
        let overflow = admission.overflow_series(series, offset);
        let id = SeriesId::of_key(&overflow.key());
        let _new = !admission.is_admitted(id, offset) && admission.try_admit(id, &overflow, offset);
        overflow
    }

    #[test]
    fn names_beyond_the_limit_share_one_metric() {
        let registry = MetricNameRegistry::new(2);
        registry.extend(&[("t".to_owned(), "old".to_owned())]);
        let mut admission = SeriesAdmission::limited(9, vec![])
            .for_shard(ShardId(7))
            .with_metric_names(registry.clone());
        assert_eq!(place(&mut admission, &of_metric("old", 1), 0), of_metric("old", 1).1);
        assert_eq!(place(&mut admission, &of_metric("new", 1), 1), of_metric("new", 1).1);
        for n in 0..50_u64 {
            let placed = place(&mut admission, &of_metric(&format!("more{n}"), 1), 2 + n);
            assert_eq!(
                (placed.metric.as_str(), placed.is_overflow(), placed.label("shard")),
                ("__overflow__", true, "7")
            );
        }
        assert_eq!(
            place(&mut admission, &of_metric("new", 2), 60),
            of_metric("new", 2).1,
            "known names go on"
        );
        assert_eq!(registry.usage("t"), (2, 2));
        assert_eq!(registry.usage("other"), (2, 0));
    }

    #[test]
    fn overflow_of_series_stays_that_of_the_metric_while_no_name_is_refused() {
        let mut admission = SeriesAdmission::limited(1, vec![])
            .for_shard(ShardId(7))
            .with_metric_names(MetricNameRegistry::new(10));
        place(&mut admission, &of_metric("a", 1), 0);
        assert_eq!(place(&mut admission, &of_metric("a", 2), 1), of_metric("a", 2).1.overflow());
        assert_eq!(place(&mut admission, &of_metric("b", 1), 2), of_metric("b", 1).1.overflow());
    }

    proptest::proptest! {
        /// Two shards share a registry, and the same records are applied again from what the
        /// catalogue recorded. An overflow series that both shards write is recorded for
        /// the first one only.
        #[test]
        fn recomputing_finds_every_place_again(
            events in proptest::collection::vec(
                (0_usize..2, 0_u8..6, 0_u8..4, proptest::bool::ANY), 1..80),
            names in 0_usize..5,
            limit in 0_u64..6,
            forget in 0_usize..80,
        ) {
            let registry = MetricNameRegistry::new(names);
            let new = |shard: usize, catalogue, registry: &Arc<MetricNameRegistry>| {
                SeriesAdmission::limited(limit, catalogue)
                    .for_shard(ShardId(shard as u32))
                    .with_metric_names(registry.clone())
            };
            let mut live = [new(0, vec![], &registry), new(1, vec![], &registry)];
            let mut noted: [Vec<(SeriesId, Offset)>; 2] = Default::default();
            let mut catalogue: Vec<(String, String)> = Vec::new();
            let mut places = Vec::new();
            let mut offsets = [0_u64; 2];
            for (at, (shard, metric, n, next)) in events.iter().copied().enumerate() {
                // Series are routed, so no series belongs to both shards.
                let event = of_metric(&format!("m{metric}"), n * 2 + shard as u8);
                offsets[shard] += u64::from(next);
                let offset = offsets[shard];
                if at == forget {
                    // A restart: only the series in the catalogue and their names are known.
                    let registry = MetricNameRegistry::new(names + 1);
                    registry.extend(&catalogue);
                    for shard in 0..2 {
                        offsets[shard] += 1;
                        let ids: Vec<_> = noted[shard].iter().map(|(id, _)| *id).collect();
                        live[shard] = new(shard, vec![("t".to_owned(), ids.into())], &registry);
                    }
                }
                let offset = offsets[shard].max(offset);
                let placed = place(&mut live[shard], &event, offset);
                let id = SeriesId::of_key(&placed.key());
                if !noted.iter().flatten().any(|(other, _)| *other == id) {
                    noted[shard].push((id, offset));
                    catalogue.push(("t".to_owned(), placed.metric.clone()));
                }
                places.push((shard, event, offset, placed));
            }
            for (shard, noted) in noted.iter().enumerate() {
                let mut recorded =
                    SeriesAdmission::recorded(noted.clone()).for_shard(ShardId(shard as u32));
                let mut learned = new(shard, vec![], &MetricNameRegistry::new(0));
                learned.apply_recorded(noted, u64::MAX);
                for (_, event, offset, placed) in places.iter().filter(|(of, ..)| *of == shard) {
                    let found = place(&mut recorded, event, *offset);
                    proptest::prop_assert_eq!(&found, placed, "recorded, {}", offset);
                    let found = place(&mut learned, event, *offset);
                    proptest::prop_assert_eq!(&found, placed, "learned, {}", offset);
                }
            }
        }
    }
}

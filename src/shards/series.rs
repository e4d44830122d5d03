//! Admission of series: beyond a tenant's limit, events go to the overflow series of their metric.

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use crate::model::series::{Series, SeriesId};

/// The series that this shard has admitted.
#[derive(Debug)]
pub struct Admission {
    limit: u64,
    admitted: HashSet<SeriesId, FixedState>,
    counts: HashMap<String, u64, FixedState>,
}

impl Admission {
    /// What the catalogue knows, by tenant, under a limit per tenant.
    pub fn new(limit: u64, catalogue: Vec<(String, Vec<SeriesId>)>) -> Self {
        let mut admission = Self { limit, admitted: HashSet::default(), counts: HashMap::default() };
        for (tenant, ids) in catalogue {
            admission.counts.insert(tenant, ids.len() as u64);
            admission.admitted.extend(ids);
        }
        admission
    }

    /// Whether the series is in the catalogue, or in a batch on its way there.
    pub fn knows(&self, id: SeriesId) -> bool {
        self.admitted.contains(&id)
    }

    /// Admits a series that is not known, if its tenant has room; the overflow series always has.
    pub fn admit(&mut self, id: SeriesId, series: &Series) -> bool {
        let count = self.counts.entry_ref(series.tenant.as_str()).or_insert(0);
        let is_overflow = *series == series.overflow();
        if *count >= self.limit && !is_overflow {
            return false;
        }
        *count += u64::from(!is_overflow);
        self.admitted.insert(id);
        true
    }
}

//! The oracle of replays: what the rows of generations must be, from the records, the book and the
//! cuts alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use rollmill::invariants::Invariant;
use rollmill::model::flush::{FillProgress, SeriesInfo};
use rollmill::model::generation::{GenerationId, Writer, WriterPart};
use rollmill::model::generation_book::{Generation, GenerationBook};
use rollmill::model::generation_status::whole_generations;
use rollmill::model::offset::{Offset, ShardId};
use rollmill::model::rollup::Rollup;
use rollmill::model::series::SeriesId;
use rollmill::model::window::Hour;
use rollmill::persistence::store::{SnapshotSource, StoreSnapshot};

use crate::fold::{
    METRIC, OracleFold, OracleRows, TENANTS, merge, overflow_id, page_of, series, series_id,
    tenant_of,
};
use crate::replay::SimRules;
use crate::report::{Violation, ensure};
use crate::world::SimWorld;

/// Rows of a generation, as the store keeps them.
type WriterRows = BTreeMap<(Writer, SeriesId, i32), Rollup>;

const ALWAYS: (Hour, Hour) = (Hour(i32::MIN), Hour(i32::MAX));

/// How far a generation is, by shard.
pub type Progress = Vec<(ShardId, FillProgress)>;

fn stored_rows(snapshot: &mut dyn StoreSnapshot, of: (GenerationId, &str)) -> WriterRows {
    let mut found = WriterRows::new();
    let mut visit = |writer, info: &Arc<SeriesInfo>, hour: Hour, rollup, _: &[u8]| {
        found.insert((writer, info.id, hour.0), rollup);
        Ok(())
    };
    snapshot.generation_rows(of.0, (of.1, METRIC), ALWAYS, &mut visit).expect("the double answers");
    found
}

fn counts(rows: &WriterRows) -> Vec<String> {
    let rows = rows.iter();
    rows.map(|(key, rollup)| format!("{key:?} {}", rollup.figures.count)).collect()
}

impl SimWorld {
    /// I13 and I15 on what the store has.
    pub fn check_replays(&mut self) -> Result<(), Violation> {
        let store = self.store.clone();
        let mut snapshot = store.snapshot().expect("the double answers");
        let book = snapshot.generation_book().expect("the double answers");
        for (id, generation) in book.generations() {
            let progress = snapshot.fill_progress(*id).expect("the double answers");
            self.check_rows(&mut *snapshot, (*id, generation), &book, &progress)?;
        }
        for id in (1..=self.last_generation).map(GenerationId) {
            for tenant in TENANTS.iter().filter(|_| !book.generations().contains_key(&id)) {
                let orphans = stored_rows(&mut *snapshot, (id, *tenant));
                ensure(Invariant::GenerationEffect, orphans.is_empty(), || {
                    format!("generation {id} has left and has rows: {:?}", counts(&orphans))
                })?;
            }
        }
        for id in whole_generations(&book) {
            let progress = snapshot.fill_progress(id).expect("the double answers");
            let is_whole =
                progress.len() == self.shards() && progress.iter().all(|(_, at)| at.is_complete());
            ensure(Invariant::ServedIsWhole, is_whole, || {
                format!("replay {id} is served or kept, and not filled in: {progress:?}")
            })?;
        }
        let unwritten = book.unwritten_piece();
        ensure(Invariant::ServedIsWhole, unwritten.is_none(), || {
            format!("served or kept, and not written any more: {unwritten:?}")
        })
    }

    /// The rows of a generation are the fold of what its writers have passed, on the days that are
    /// written; on days that leave there may be some; on others there are none.
    fn check_rows(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        (id, generation): (GenerationId, &Generation),
        book: &GenerationBook,
        progress: &[(ShardId, FillProgress)],
    ) -> Result<(), Violation> {
        let set = book.newest_set();
        let is_written = |hour: i32| {
            set.on(&generation.tenant, METRIC, Hour(hour).day()).any(|r| r.generation == id)
        };
        let leaves = |hour: i32| {
            let mut of = book.leaving().iter().filter(|range| range.generation == id);
            of.any(|range| range.days.contains(Hour(hour).day()))
        };
        let mut expected = WriterRows::new();
        for (shard, at) in progress {
            let fold = &self.oracle[shard.0 as usize];
            let parts = [(WriterPart::Fill, 0..at.cursor), (WriterPart::Live, at.cut..fold.next)];
            for (part, range) in parts {
                let writer = Writer { shard: *shard, part };
                for ((series, hour), rollup) in self.rows_of((id, generation), fold, &range) {
                    expected.insert((writer, series, hour), rollup);
                }
            }
        }
        expected.retain(|(_, _, hour), _| is_written(*hour));
        let mut found = stored_rows(snapshot, (id, generation.tenant.as_str()));
        found.retain(|(_, _, hour), _| is_written(*hour) || !leaves(*hour));
        ensure(Invariant::GenerationEffect, expected == found, || {
            format!(
                "rows of generation {id}: expected {:?}, found {:?}",
                counts(&expected),
                counts(&found)
            )
        })
    }

    /// What one writer of a generation makes of the counted events of a range of its shard.
    pub fn rows_of(
        &self,
        (id, generation): (GenerationId, &Generation),
        fold: &OracleFold,
        range: &Range<Offset>,
    ) -> OracleRows {
        let rules = SimRules::of(&generation.rules);
        let tenant = TENANTS.iter().position(|name| *name == generation.tenant).expect("known");
        let (mut admitted, mut rows) = (BTreeMap::new(), OracleRows::new());
        for (place, event, taken_in) in fold.counted_by(id, range) {
            let hour = Hour::of(event.timestamp);
            if tenant_of(event.series) != tenant || !generation.days.contains(hour.day()) {
                continue;
            }
            let Some(page) = rules.page(page_of(event.series)) else { continue };
            let known = admitted.get(page).copied();
            let fits = match taken_in {
                true => known.is_some_and(|at| at <= place.0),
                false => known.is_some() || admitted.len() < self.setup.rules.max_series,
            };
            let series = match fits {
                true => series_id(tenant, page),
                false => overflow_id(tenant),
            };
            if fits {
                admitted.entry(page).or_insert(place.0);
            }
            let (value, user) = event.figures();
            rows.entry((series, hour.0)).or_default().add(value, user);
        }
        rows
    }

    /// What both writers of a shard make of everything below `fold`.
    pub fn rows_of_shard(
        &self,
        (id, generation): (GenerationId, &Generation),
        progress: &[(ShardId, FillProgress)],
        (s, fold): (usize, &OracleFold),
    ) -> OracleRows {
        let mut rows = OracleRows::new();
        let at = progress.iter().find(|(shard, _)| shard.0 as usize == s);
        let Some((_, at)) = at else { return rows };
        for range in [0..at.cursor, at.cut..fold.next + 1] {
            merge(&mut rows, &self.rows_of((id, generation), fold, &range));
        }
        rows
    }

    /// Whether a generation besides generation 0 is served on some day of a tenant's metric.
    pub fn serves_generation(&self, tenant: usize) -> bool {
        self.book().pointer(TENANTS[tenant], METRIC).is_some()
    }

    /// Replaces the rows of days on which another generation is served. `fold` is what the owner of
    /// a shard has applied.
    pub fn as_served(&self, s: usize, tenant: usize, fold: &OracleFold) -> OracleRows {
        let book = self.book();
        let Some(pointer) = book.pointer(TENANTS[tenant], METRIC) else { return fold.rows.clone() };
        let served_on = |hour: i32| pointer.on(Hour(hour).day());
        let mut rows = fold.rows.clone();
        rows.retain(|(id, hour), _| !is_of_tenant(*id, tenant) || served_on(*hour).is_ingest());
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let served: BTreeSet<_> = pointer.pieces().iter().map(|piece| piece.generation).collect();
        for id in served {
            let progress = snapshot.fill_progress(id).expect("the double answers");
            let of = (id, &book.generations()[&id]);
            let mut part = self.rows_of_shard(of, &progress, (s, fold));
            part.retain(|(_, hour), _| served_on(*hour) == id);
            merge(&mut rows, &part);
        }
        rows
    }
}

/// Whether a series, or an overflow series, is of a tenant.
pub fn is_of_tenant(id: SeriesId, tenant: usize) -> bool {
    let all = series(1);
    id == overflow_id(tenant)
        || (0..all.len()).any(|at| tenant_of(at) == tenant && all[at].id == id)
}

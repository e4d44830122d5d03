//! The real query engine with its cache, in the middle of a schedule: a commit may arrive between
//! its snapshot and its live reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use rollmill::actors::catalogue::{CatalogueGrowth, CatalogueQuery};
use rollmill::actors::live::{LiveReader, ShardRead, ShardResults};
use rollmill::actors::shard_table::ShardTable;
use rollmill::clock::Clock;
use rollmill::gateway::read_routes;
use rollmill::invariants::Invariant;
use rollmill::model::budget::QueryBudget;
use rollmill::model::decimal::{Decimal, write_units};
use rollmill::model::flush::{AccountingDelta, SeriesInfo};
use rollmill::model::generation::Pointer;
use rollmill::model::matcher::Matcher;
use rollmill::model::offset::ShardId;
use rollmill::model::rollup::Rollup;
use rollmill::model::served::{ServedHours, served_hours};
use rollmill::model::window::Hour;
use rollmill::persistence::store::{QuerySource, ShardStore, StoreError};
use rollmill::query::engine::{QueryEngine, QueryLimits};
use rollmill::shards::state::{AccountingQuery, LiveQuery};
use serde_json::value::RawValue;

use crate::doubles::checkpoint;
use crate::fold::{METRIC, OracleRows, TENANTS, merge, page_of, series, tenant_of};
use crate::plants::Plant;
use crate::report::{Fault, Violation, ensure};
use crate::world::SimWorld;

type PendingAction = Box<dyn FnOnce() + Send>;

/// Routes live reads to the node chosen for each shard, and performs a pending action
/// before the first read.
struct ReadRouter {
    tables: Vec<Arc<ShardTable>>,
    chosen: Mutex<Vec<usize>>,
    meanwhile: Mutex<Option<PendingAction>>,
    /// Planted: shards are always asked for generation 0.
    asks_ingest: bool,
    /// Planted: what the store serves in the place of generation 0.
    hidden: Mutex<Option<Pointer>>,
}

impl LiveReader for ReadRouter {
    fn shard_count(&self) -> u32 {
        self.tables[0].shard_count()
    }

    fn read(
        &self,
        asked: &[ShardRead],
        question: &LiveQuery<'_>,
        matchers: &[Matcher],
        visit: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> ShardResults {
        if let Some(meanwhile) = self.meanwhile.lock().expect("one thread").take() {
            meanwhile();
        }
        let chosen = self.chosen.lock().expect("one thread");
        let ingest = [ServedHours::ingest(question.from, question.to)];
        let hidden = self.hidden.lock().expect("one thread");
        let behind = served_hours(hidden.as_ref(), question.from, question.to);
        let served = match (self.asks_ingest, hidden.is_some()) {
            (true, _) => &ingest[..],
            (_, true) => &behind[..],
            _ => question.served,
        };
        let question = &LiveQuery { served, ..*question };
        let of = |one: &ShardRead| {
            self.tables[chosen[one.0.0 as usize]].read(&[*one], question, matchers, visit)
        };
        asked.iter().flat_map(of).collect()
    }

    fn catalogue(
        &self,
        asked: &[ShardRead],
        question: &CatalogueQuery<'_>,
        visit: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults {
        let chosen = self.chosen.lock().expect("one thread");
        asked
            .iter()
            .flat_map(|one| {
                self.tables[chosen[one.0.0 as usize]].catalogue(&[*one], question, visit)
            })
            .collect()
    }

    fn accounting(
        &self,
        asked: &[ShardRead],
        question: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults {
        let chosen = self.chosen.lock().expect("one thread");
        asked
            .iter()
            .flat_map(|one| {
                self.tables[chosen[one.0.0 as usize]].accounting(&[*one], question, visit)
            })
            .collect()
    }
}

/// A query engine over all nodes.
pub struct SimEngine {
    engine: Arc<QueryEngine>,
    router: Arc<ReadRouter>,
}

impl SimEngine {
    pub fn new(
        store: Arc<dyn QuerySource>,
        slots: Vec<Arc<ShardTable>>,
        clock: Arc<dyn Clock>,
        plant: Option<Plant>,
    ) -> Self {
        let router = Arc::new(ReadRouter {
            tables: slots,
            chosen: Mutex::default(),
            meanwhile: Mutex::default(),
            asks_ingest: plant == Some(Plant::LiveAsksIngest),
            hidden: Mutex::default(),
        });
        let limits = QueryLimits {
            max_points: 10_000,
            max_series: 100,
            stale_after_ms: 10_000,
            cache_bytes: 1 << 20,
        };
        Self { engine: QueryEngine::new(store, router.clone(), clock, limits), router }
    }
}

#[derive(serde::Deserialize)]
struct Answer {
    series: Vec<Group>,
    completeness: Completeness,
}

#[derive(serde::Deserialize)]
struct Completeness {
    partial: bool,
    overflow: Option<u64>,
}

/// Accounting of a tenant.
#[derive(serde::Deserialize)]
struct LedgerAnswer {
    hours: Vec<LedgerHour>,
    completeness: Completeness,
}

#[derive(serde::Deserialize)]
struct LedgerHour {
    hour: String,
    accepted: u64,
    aggregated: u64,
    deduplicated: u64,
    quarantined: u64,
    pending: u64,
}

#[derive(serde::Deserialize)]
struct Group {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    points: Vec<Point>,
}

#[derive(serde::Deserialize)]
struct Point {
    t: String,
    count: u64,
    distinct: u64,
    sum: Box<RawValue>,
    min: Box<RawValue>,
    max: Box<RawValue>,
}

impl SimWorld {
    /// Asks the engine. A commit on its way may arrive between the engine's snapshot
    /// and its live reads.
    pub fn ask_engine(&mut self) -> Result<(), Violation> {
        let tenant = self.rng.below(2);
        let nodes: Vec<usize> = (0..self.shards()).map(|s| self.owner_of(s)).collect();
        let commit = (!self.pending.is_empty() && self.rng.chance(500))
            .then(|| self.rng.below(self.pending.len()));
        let Some(engine) = &self.engine else { return Ok(()) };
        let (asked, router) = (engine.engine.clone(), engine.router.clone());
        *router.chosen.lock().expect("one thread") = nodes.clone();
        let hidden = self.has_plant(Plant::PointerWithoutRevision);
        let pointer = self.book().pointer(TENANTS[tenant], METRIC).cloned();
        *router.hidden.lock().expect("one thread") = pointer.filter(|_| hidden);
        let sent = commit.map(|at| self.pending.remove(at));
        let before = sent.as_ref().and_then(|p| checkpoint(&*self.store, p.guard.shard));
        let outcome: Arc<Mutex<Option<Result<(), StoreError>>>> = Arc::default();
        let arrive = sent.as_ref().map(|p| -> PendingAction {
            let (store, guard, batch, forget) =
                (self.store.clone(), p.guard, p.batch.clone(), p.forget_ids_before);
            let outcome = outcome.clone();
            Box::new(move || {
                *outcome.lock().expect("one thread") = Some(store.flush(guard, &batch, forget))
            })
        });
        *router.meanwhile.lock().expect("one thread") = arrive;
        let day = self.now.div_euclid(86_400_000);
        let hours = ((day - 3) * 24, (day + 2) * 24);
        let params =
            [("metric", METRIC.to_owned()), ("by", "page".to_owned()), ("step", "1h".to_owned())];
        let range = [
            ("from", (hours.0 * 3_600_000).to_string()),
            ("to", (hours.1 * 3_600_000).to_string()),
        ];
        let aggs = [("agg", "count,sum,min,max,distinct".to_owned())];
        let params: Vec<_> =
            params.into_iter().chain(range).chain(aggs).map(|(k, v)| (k.to_owned(), v)).collect();
        let answer = read_routes::query(
            &*asked,
            TENANTS[tenant],
            &params,
            self.now,
            &QueryBudget::default(),
        )
        .expect("the engine answers");
        if let Some(pending) = sent {
            let outcome =
                outcome.lock().expect("one thread").take().expect("every query reads a shard");
            self.hit(Fault::CommitDuringQuery);
            self.on_delivered(pending, before, outcome)?;
        }
        let answer: Answer = serde_json::from_str(&answer).expect("the answer is JSON");
        if answer.completeness.partial {
            return Ok(());
        }
        self.hit(Fault::EngineComplete);
        if self.serves_generation(tenant) {
            self.hit(Fault::EngineServedGeneration);
        }
        for (s, &n) in nodes.iter().enumerate() {
            let slot = self.nodes[n].table.entry(ShardId(s as u32));
            let applied = slot.read_state(|state| (state.epoch(), state.next()));
            let short = applied
                .and_then(|(of, next)| self.held_at_claim.get(&of).filter(|held| **held > next));
            ensure(Invariant::HonestQueries, short.is_none(), || {
                format!(
                    "complete, but shard {s} has not reached the {short:?} that the log held when \
                     its owner claimed it"
                )
            })?;
        }
        let rows = self.rows(tenant, hours, &nodes)?;
        let of_overflow =
            rows.iter().filter(|((id, _), _)| *id == crate::fold::overflow_id(tenant));
        let overflow: u64 = of_overflow.map(|(_, rollup)| rollup.figures.count).sum();
        ensure(Invariant::HonestQueries, answer.completeness.overflow == Some(overflow), || {
            format!(
                "{overflow} events have lost their labels, the engine says {:?}",
                answer.completeness.overflow
            )
        })?;
        let expected = points(&rows);
        let found = points_of(&answer);
        ensure(Invariant::HonestQueries, expected == found, || {
            format!(
                "a complete answer of the engine is not the fold: expected {expected:?}, found \
                 {found:?}"
            )
        })
    }

    /// Asks the engine for a tenant's accounting. It has to balance and to hold exactly what was
    /// counted below and above the checkpoints.
    pub fn ask_ledger(&mut self) -> Result<(), Violation> {
        let tenant = self.rng.below(2);
        let nodes: Vec<usize> = (0..self.shards()).map(|s| self.owner_of(s)).collect();
        let Some(engine) = &self.engine else { return Ok(()) };
        *engine.router.chosen.lock().expect("one thread") = nodes.clone();
        let params = [("from", "-200000000000000"), ("to", "200000000000000")];
        let time = |ms: &str| {
            jiff::Timestamp::from_millisecond(ms.parse().expect("a number"))
                .expect("a time")
                .to_string()
        };
        let params = params.map(|(name, ms)| (name.to_owned(), time(ms)));
        let answer = read_routes::accounting(
            &*engine.engine,
            TENANTS[tenant],
            &params,
            self.now,
            &QueryBudget::default(),
        )
        .expect("the engine answers");
        let books: LedgerAnswer = serde_json::from_str(&answer).expect("the answer is JSON");
        let short = books
            .hours
            .iter()
            .find(|h| h.accepted != h.aggregated + h.deduplicated + h.quarantined + h.pending);
        ensure(Invariant::Accounting, short.is_none(), || {
            format!("the books do not balance: {answer}")
        })?;
        if books.completeness.partial {
            return Ok(());
        }
        self.hit(Fault::BooksComplete);
        let mut expected: BTreeMap<i64, [u64; 2]> = BTreeMap::new();
        for (s, &n) in nodes.iter().enumerate() {
            let stored = checkpoint(&*self.store, ShardId(s as u32)).map_or(0, |c| c.next);
            let below = self.fold_to(s, stored, None, &self.settlements[s].released);
            for (at, fold) in [below, self.fold_at(s, stored, n)].into_iter().enumerate() {
                for ((_, hour), counts) in
                    fold.accounting.iter().filter(|((of, _), _)| *of == TENANTS[tenant])
                {
                    expected.entry(i64::from(*hour)).or_default()[at] += counts.iter().sum::<u64>();
                }
            }
        }
        expected.retain(|_, [stored, all]| *stored + *all > 0);
        let found: BTreeMap<i64, [u64; 2]> = books
            .hours
            .iter()
            .map(|h| {
                let ms = rollmill::model::event::parse_rfc3339(&h.hour).expect("a time");
                (ms.div_euclid(3_600_000), [h.accepted - h.pending, h.accepted])
            })
            .collect();
        ensure(Invariant::Accounting, expected == found, || {
            format!("complete books are not the fold: expected {expected:?}, found {found:?}")
        })
    }

    /// What a complete answer has to hold: everything that the asked owners have applied.
    fn rows(
        &self,
        tenant: usize,
        hours: (i64, i64),
        nodes: &[usize],
    ) -> Result<OracleRows, Violation> {
        let mut rows = OracleRows::new();
        for (s, &n) in nodes.iter().enumerate() {
            let slot = self.nodes[n].table.entry(ShardId(s as u32));
            let at = checkpoint(&*self.store, ShardId(s as u32));
            let owned = at.is_some() && at.map(|c| c.epoch) == slot.epoch();
            ensure(Invariant::HonestQueries, owned, || {
                format!("complete, but node {n} does not own shard {s}")
            })?;
            let fold = self.fold_at(s, at.map_or(0, |c| c.next), n);
            merge(&mut rows, &self.as_served(s, tenant, &fold));
        }
        rows.retain(|(id, hour), _| {
            let plain = (0..12).find(|i| series(1)[*i].id == *id);
            let of_tenant =
                plain.map_or(*id == crate::fold::overflow_id(tenant), |i| tenant_of(i) == tenant);
            of_tenant && hours.0 <= i64::from(*hour) && i64::from(*hour) < hours.1
        });
        Ok(rows)
    }
}

/// The points of rows, by page and hour.
fn points(rows: &OracleRows) -> BTreeSet<String> {
    let mut groups: BTreeMap<(String, i32), Rollup> = BTreeMap::new();
    for ((id, hour), rollup) in rows {
        let plain = (0..12).find(|i| series(1)[*i].id == *id);
        let page = plain.map_or(String::new(), |i| page_of(i).to_owned());
        groups.entry((page, *hour)).or_default().merge(rollup);
    }
    let show = |units: Option<i128>| {
        let Some(units) = units else { return "null".to_owned() };
        let mut text = String::new();
        write_units(units, &mut text).expect("a string takes everything");
        text
    };
    let point = |((page, hour), rollup): (&(String, i32), &Rollup)| {
        let figures = &rollup.figures;
        let sum = show((figures.value_count > 0).then_some(figures.sum));
        let bounds = [figures.min, figures.max].map(|b| show(b.map(Decimal::units)));
        let ms = i64::from(*hour) * 3_600_000;
        format!(
            "{page} {ms} {} {sum} {} {} {}",
            figures.count,
            bounds[0],
            bounds[1],
            rollup.distinct.estimate()
        )
    };
    groups.iter().map(point).collect()
}

fn points_of(answer: &Answer) -> BTreeSet<String> {
    let mut points = BTreeSet::new();
    for group in &answer.series {
        let page = group.labels.get("page").cloned().unwrap_or_default();
        for p in &group.points {
            let ms = rollmill::model::event::parse_rfc3339(&p.t).expect("a time");
            points.insert(format!(
                "{page} {ms} {} {} {} {} {}",
                p.count, p.sum, p.min, p.max, p.distinct
            ));
        }
    }
    points
}

//! Queries: one snapshot of the store, then the live deltas of each shard, with
//! other steps in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rollmill::actors::live::{LiveError, LiveReader};
use rollmill::invariants::Invariant;
use rollmill::model::flush::SeriesInfo;
use rollmill::model::generation::GenerationId;
use rollmill::model::generation_book::Generation;
use rollmill::model::offset::{Checkpoint, ShardId};
use rollmill::model::rollup::Rollup;
use rollmill::model::series::metric_hash;
use rollmill::model::served::{ServedHours, generation_at, served_hours};
use rollmill::model::window::Hour;
use rollmill::persistence::log::LogReader;
use rollmill::persistence::store::{RollupQuery, SnapshotSource};
use rollmill::shards::state::{LiveQuery, ShardState};

use crate::doubles::with_dice;
use crate::fold::{
    EventPosition, METRIC, OracleFold, OracleRows, Releases, TENANTS, difference, merge,
};
use crate::plants::Plant;
use crate::replay_checks::{Progress, is_of_tenant};
use crate::report::{Fault, Violation, ensure};
use crate::world::SimWorld;

/// Answer of a shard.
#[derive(Clone)]
pub struct LiveAnswer {
    applied: u64,
    /// End of the log at the time of the answer.
    end: u64,
    as_of: i64,
    /// End of the log when the owner claimed the shard; `None` if the shard says that it has
    /// not reached that yet.
    held: Option<u64>,
    set_aside: BTreeSet<EventPosition>,
    alone: Option<(u64, u32)>,
}

/// A query between its steps.
#[derive(Clone)]
pub struct SimQuery {
    tenant: usize,
    from: i32,
    to: i32,
    pub checkpoints: Vec<Option<Checkpoint>>,
    rows: OracleRows,
    answers: Vec<Option<LiveAnswer>>,
    /// What the pointer of the snapshot serves.
    served: Vec<ServedHours>,
    /// What was released when the snapshot was taken, by shard.
    releases: Vec<Releases>,
    /// What the snapshot knows of these generations.
    generations: BTreeMap<GenerationId, (Generation, Progress)>,
}

impl SimWorld {
    /// Takes the next step of the open query, or starts a new one.
    pub fn step_query(&mut self) -> Result<(), Violation> {
        if self.engine.is_some() && self.rng.chance(500) {
            return if self.rng.chance(200) { self.ask_ledger() } else { self.ask_engine() };
        }
        let Some(mut query) = self.query.take() else {
            let query = self.snapshot();
            self.query = Some(query);
            return Ok(());
        };
        if query.answers.len() < self.shards() {
            self.ask(&mut query);
            // Most queries are fast: the remaining shards are asked at once.
            while query.answers.len() < self.shards() && self.rng.chance(600) {
                self.ask(&mut query);
            }
        }
        if query.answers.len() < self.shards() {
            self.query = Some(query);
            return Ok(());
        }
        self.judge(query)
    }

    pub fn snapshot(&mut self) -> SimQuery {
        let hour = self.now.div_euclid(3_600_000) as i32;
        let (from, to) =
            self.rng.pick(&[(i32::MIN, i32::MAX), (hour - 1, hour + 1), (hour - 40, hour)]);
        let tenant = self.rng.below(2);
        self.snapshot_of(tenant, from, to)
    }

    pub fn snapshot_of(&mut self, tenant: usize, from: i32, to: i32) -> SimQuery {
        let mut query = SimQuery {
            tenant,
            from,
            to,
            checkpoints: vec![],
            rows: OracleRows::new(),
            answers: vec![],
            served: vec![],
            releases: self.settlements.iter().map(|of| of.released.clone()).collect(),
            generations: BTreeMap::new(),
        };
        self.read_pointer(&mut query);
        self.read_checkpoints(&mut query);
        self.read_rows(&mut query);
        self.add_trace(|| {
            format!(
                "a query takes its snapshot at {:?}",
                query.checkpoints.iter().map(|c| c.map(|c| c.next)).collect::<Vec<_>>()
            )
        });
        query
    }

    fn read_pointer(&self, query: &mut SimQuery) {
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let book = snapshot.generation_book().expect("the double answers");
        let pointer = book.pointer(TENANTS[query.tenant], METRIC);
        query.served = served_hours(pointer, Hour(query.from), Hour(query.to));
        for piece in query.served.iter().filter(|piece| !piece.generation.is_ingest()) {
            let id = piece.generation;
            let progress = snapshot.fill_progress(id).expect("the double answers");
            query.generations.insert(id, (book.generations()[&id].clone(), progress));
        }
    }

    fn read_checkpoints(&self, query: &mut SimQuery) {
        let found =
            self.store.snapshot().and_then(|mut s| s.checkpoints()).expect("the double answers");
        let of = |s: u32| found.iter().find(|(id, _)| id.0 == s).map(|(_, checkpoint)| *checkpoint);
        query.checkpoints = (0..self.setup.shards).map(of).collect();
    }

    fn read_rows(&self, query: &mut SimQuery) {
        let mut rows = OracleRows::new();
        let mut snapshot = self.store.snapshot().expect("the double answers");
        for piece in &query.served {
            let question = RollupQuery {
                generation: piece.generation,
                tenant: TENANTS[query.tenant],
                metric: METRIC,
                matchers: &[],
                from: piece.from,
                to: piece.to,
                distinct: true,
                quantiles: true,
                max_series: 100,
                budget: None,
            };
            let mut visit = |info: &Arc<SeriesInfo>, hour: Hour, rollup: Rollup| {
                rows.entry((info.id, hour.0)).or_default().merge(&rollup);
            };
            snapshot.rollups(&question, &mut visit).expect("the double answers");
        }
        query.rows = rows;
    }

    /// The node with the owner that the snapshot names.
    fn node_of(&self, s: usize, checkpoint: Option<Checkpoint>) -> Option<usize> {
        let epoch = checkpoint?.epoch;
        (0..self.setup.nodes)
            .find(|n| self.nodes[*n].table.entry(ShardId(s as u32)).epoch() == Some(epoch))
    }

    /// Asks the next shard, on the node that seems to own it.
    fn ask(&mut self, query: &mut SimQuery) {
        let s = query.answers.len();
        let owner = (0..self.setup.nodes).find(|n| self.nodes[*n].shards[s].alive).unwrap_or(0);
        let n = match self.rng.below(10) {
            0..2 => self.rng.below(self.setup.nodes),
            2..5 => self.node_of(s, query.checkpoints[s]).unwrap_or(owner),
            _ => owner,
        };
        self.ask_node(query, n);
    }

    /// Asks a node for the next shard.
    pub fn ask_node(&mut self, query: &mut SimQuery, n: usize) {
        let s = query.answers.len();
        let shard = ShardId(s as u32);
        if self.has_plant(Plant::CheckpointsReadAfterRows) {
            self.read_checkpoints(query);
        }
        let checkpoint = query.checkpoints[s];
        let (from, to) = (Hour(query.from), Hour(query.to));
        let (tenant, metric) = (TENANTS[query.tenant], METRIC);
        let ingest = [ServedHours::ingest(from, to)];
        let asks_ingest = self.has_plant(Plant::LiveAsksIngest);
        let question = LiveQuery {
            tenant,
            metric,
            from,
            to,
            served: if asks_ingest { &ingest } else { &query.served },
            distinct: true,
            quantiles: true,
            overflow: false,
        };
        let mut rows = OracleRows::new();
        let end = self.log.end(shard);
        let read = if self.nodes[n].paused {
            // A paused node does not answer in time.
            Err(LiveError::Unavailable)
        } else {
            let reports = self.nodes[n].table.read(
                &[(shard, checkpoint)],
                &question,
                &[],
                &mut |_, info, hour, rollup| {
                    rows.entry((info.id, hour.0)).or_default().merge(rollup);
                },
            );
            let of_ingest = LiveQuery { served: &ingest, ..question };
            match reports[0].1 {
                Err(LiveError::StaleCheckpoint) if !query.generations.is_empty() => {
                    let mut ignore = |_: ShardId, _: &Arc<SeriesInfo>, _: Hour, _: &Rollup| {};
                    let asked = [(shard, checkpoint)];
                    let table = &self.nodes[n].table;
                    let moved = table.read(&asked, &of_ingest, &[], &mut ignore)[0].1;
                    if moved.is_ok() {
                        with_dice(&self.dice, |dice| dice.stats.hit(Fault::Moved));
                    }
                    match self.has_plant(Plant::MovedNotSaid) {
                        true => moved,
                        false => reports[0].1,
                    }
                }
                answer => answer,
            }
        };
        self.add_trace(|| format!("shard {s} on node {n} answers a query: {read:?}"));
        if read.is_ok() {
            self.check_windows(shard, n, question.tenant, &rows);
        }
        let shell = &self.nodes[n].shards[s];
        let answer = match read {
            Ok(report) => {
                merge(&mut query.rows, &rows);
                let as_of = match self.plant {
                    Some(Plant::ReadsBehindIgnored) => self.now,
                    Some(Plant::CaughtUpRemembered) => {
                        report.as_of.max(shell.inherited.unwrap_or(report.as_of))
                    }
                    _ => report.as_of,
                };
                let recovering = report.recovering && !self.has_plant(Plant::RecoveringNotSaid);
                let held = checkpoint
                    .and_then(|at| self.held_at_claim.get(&at.epoch).copied())
                    .filter(|_| !recovering);
                let (set_aside, alone) = (shell.quarantined.clone(), shell.isolated);
                if recovering {
                    self.hit(Fault::Recovering);
                }
                Some(LiveAnswer {
                    applied: end - report.behind,
                    end,
                    as_of,
                    held,
                    set_aside,
                    alone,
                })
            }
            Err(_) if self.has_plant(Plant::DeadShardIgnored) => Some(LiveAnswer {
                applied: checkpoint.map_or(0, |c| c.next),
                end,
                as_of: self.now,
                held: None,
                set_aside: BTreeSet::new(),
                alone: None,
            }),
            Err(_) => None,
        };
        query.answers.push(answer);
        if self.has_plant(Plant::RowsReadAfterLive) && query.answers.len() == self.shards() {
            let live = std::mem::take(&mut query.rows);
            let before = live.clone();
            self.read_rows(query);
            // Keeps what was live and reads again what was stored.
            let stored = std::mem::take(&mut query.rows);
            query.rows = if stored.is_empty() { before } else { stored };
            merge(&mut query.rows, &rows);
        }
    }

    /// The windows that a node announces, so that it need not be asked for others, include
    /// all that it holds.
    fn check_windows(&self, shard: ShardId, n: usize, tenant: &str, rows: &OracleRows) {
        let mut said = BTreeSet::new();
        let stood = self.nodes[n]
            .table
            .position(shard, &mut |metric, hour| _ = said.insert((metric, hour.0)));
        assert!(stood.is_ok(), "it has just answered");
        let unsaid =
            rows.keys().find(|(_, hour)| !said.contains(&(metric_hash(tenant, METRIC), *hour)));
        assert!(
            unsaid.is_none(),
            "node {n} holds {unsaid:?} of shard {shard}, which it does not say"
        );
    }

    /// Store ⊕ live has to be the fold of exactly what the answer claims, and no shard may claim
    /// more than it has applied.
    pub fn judge(&mut self, query: SimQuery) -> Result<(), Violation> {
        let complete = query.answers.iter().all(Option::is_some);
        self.hit(if complete { Fault::QueryComplete } else { Fault::QueryPartial });
        if complete && !query.generations.is_empty() {
            self.hit(Fault::QueryServedGeneration);
        }
        let mut expected = OracleRows::new();
        for (s, answer) in query.answers.iter().enumerate() {
            let stored = query.checkpoints[s].map_or(0, |c| c.next);
            let fold = self.fold_to(s, stored, answer.as_ref(), &query.releases[s]);
            merge(&mut expected, &self.served_rows(&query, s, &fold));
        }
        let tenant = query.tenant;
        expected.retain(|(id, hour), _| {
            is_of_tenant(*id, tenant) && query.from <= *hour && *hour < query.to
        });
        if expected != query.rows {
            let why = difference(&expected, &query.rows)
                .unwrap_or_else(|| "the same bytes in another form".to_owned());
            let promise = match query.generations.is_empty() {
                true => Invariant::HonestQueries,
                false => Invariant::OneGeneration,
            };
            return ensure(promise, false, || {
                format!("store and live deltas are not the fold: {why}")
            });
        }
        for (s, answer) in query.answers.iter().enumerate() {
            let Some(answer) = answer else { continue };
            ensure(
                Invariant::HonestQueries,
                answer.held.is_none_or(|held| answer.applied >= held),
                || {
                    format!(
                        "shard {s} has applied {} and says that nothing is missing, but the log \
                         held {:?} when its owner claimed it: an owner before may have shown more",
                        answer.applied, answer.held
                    )
                },
            )?;
            let unapplied =
                &self.history[s][answer.applied.min(answer.end) as usize..answer.end as usize];
            let short = unapplied.iter().find(|record| record.received < answer.as_of);
            ensure(Invariant::HonestQueries, short.is_none(), || {
                format!(
                    "shard {s} claims everything before {}, but has applied {} and lacks a record \
                     of {:?}",
                    answer.as_of,
                    answer.applied,
                    short.map(|r| r.received)
                )
            })?;
        }
        Ok(())
    }

    /// What a query has to show of a shard: of each hour the generation that its snapshot serves.
    fn served_rows(&self, query: &SimQuery, s: usize, fold: &OracleFold) -> OracleRows {
        if query.generations.is_empty() {
            return fold.rows.clone();
        }
        let at = |hour: i32| generation_at(&query.served, Hour(hour));
        let mut rows = fold.rows.clone();
        rows.retain(|(_, hour), _| at(*hour) == Some(GenerationId::INGEST));
        for (id, (generation, progress)) in &query.generations {
            let mut part = self.rows_of_shard((*id, generation), progress, (s, fold));
            part.retain(|(_, hour), _| at(*hour) == Some(*id));
            merge(&mut rows, &part);
        }
        rows
    }

    /// The node that seems to own a shard and is running.
    pub fn owner_of(&mut self, s: usize) -> usize {
        let lives = |n: &usize| self.nodes[*n].shards[s].alive && !self.nodes[*n].paused;
        let owner = (0..self.setup.nodes).find(lives).unwrap_or(0);
        if self.rng.chance(200) { self.rng.below(self.setup.nodes) } else { owner }
    }

    /// The fold of everything that the owner on a node has applied.
    pub fn fold_at(&self, s: usize, stored: u64, n: usize) -> OracleFold {
        let shell = &self.nodes[n].shards[s];
        let slot = self.nodes[n].table.entry(ShardId(s as u32));
        let applied = slot.read_state(ShardState::next).unwrap_or(stored);
        let (set_aside, alone) = (shell.quarantined.clone(), shell.isolated);
        let answer = LiveAnswer { applied, end: applied, as_of: 0, held: None, set_aside, alone };
        self.fold_to(s, stored, Some(&answer), &self.settlements[s].released)
    }

    /// The fold of a prefix of a shard's log: up to the checkpoint as decided in the store, above
    /// it as decided by the owner that answered.
    pub fn fold_to(
        &self,
        s: usize,
        stored: u64,
        answer: Option<&LiveAnswer>,
        releases: &Releases,
    ) -> OracleFold {
        let to = answer.map_or(stored, |a| a.applied.max(stored));
        let oracle = &self.oracle[s];
        let mut fold = match oracle.next == stored && oracle.released == *releases {
            true => oracle.clone(),
            false => OracleFold::default(),
        };
        let decided = oracle.quarantined.iter().chain(oracle.released.keys());
        let mut set_aside: BTreeSet<EventPosition> =
            decided.filter(|p| p.0 < stored).copied().collect();
        set_aside.extend(answer.iter().flat_map(|a| a.set_aside.iter()).filter(|p| p.0 >= stored));
        while fold.next < to {
            fold.fold_record(&self.history[s][fold.next as usize], self.setup.rules, &set_aside);
        }
        if let Some((offset, index)) = answer.and_then(|a| a.alone)
            && offset == to
        {
            fold.fold_part(&self.history[s][to as usize], index, self.setup.rules, &set_aside);
        }
        fold.release(&self.history[s], releases);
        fold
    }
}

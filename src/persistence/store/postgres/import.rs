//! Imports a whole store in one transaction: afterwards everything is there, or nothing. See
//! [`super::super::transfer`].
//!
//! Series get numbers of this database; everything else is written as it comes. The partitions of
//! the weeks are created before the transaction, so that it does not hold a lock for each of them;
//! a crashed import leaves only such partitions, empty.

mod generations;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::catalogue::{self, PostgresSeriesCache, SeriesGrowth};
use super::codec::{CopyRows, UuidBytes, get};
use super::generations::{audit_insert, dropped_upsert, rules_upsert};
use super::schema::{self, WEEK};
use super::session::{Param, PostgresSession, params};
use super::{PostgresOptions, PostgresStore, StoreError, boards, flush, merge};
use crate::model::decimal::Decimal;
use crate::model::flush::{DedupBlock, SeriesInfo, SuspectEvent};
use crate::model::generation::GenerationId;
use crate::model::manifest::ArchiveFloor;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::store::transfer::{
    FiguresRow, RevisionRow, ShardRow, SketchesRow, TransferBatch, TransferSink,
};
use crate::persistence::store::{SeriesScope, byte_columns};

/// Recorded as the owner of the shards until a node claims them.
const OWNER: &str = "rollmill:migrate";

/// While the source is being read, the session is silent inside its transaction, so the server must
/// not end it for that.
const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0;";

/// What a store holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreContents {
    /// No data in any table.
    Empty,
    /// Checkpoints, which belong to this log.
    Log(LogId),
    /// Rows, but no checkpoint.
    OrphanRows,
}

impl PostgresStore {
    /// Connects without creating anything: `None` if there are no tables yet. Fails like
    /// [`PostgresStore::open`].
    pub fn open_if_created(options: &PostgresOptions) -> Result<Option<Arc<Self>>, StoreError> {
        let store = Self::new(options)?;
        let place = &store.writers.connector.address;
        let is_created = schema::is_current(store.writers.take()?.session()?, place)?;
        Ok(is_created.then(|| Arc::new(store)))
    }

    /// What the store holds.
    pub fn contents(&self) -> Result<StoreContents, StoreError> {
        contents(self.writers.take()?.session()?)
    }

    /// Switches every shard to another log that begins at these offsets. They must equal the
    /// shard's checkpoint and archived offset, or nothing is changed.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if a shard is at another offset; [`StoreError::Unknown`] if the
    /// outcome is unknown, which [`PostgresStore::contents`] then resolves.
    pub fn switch_log(&self, from: LogId, to: LogId, ends: &[Offset]) -> Result<(), StoreError> {
        let mut lease = self.writers.begin(BEGIN)?;
        let session = lease.session()?;
        // Owners that are still running wait here, and are then refused for their old epoch.
        session.batch_execute("LOCK TABLE shards IN EXCLUSIVE MODE".to_owned())?;
        for row in &session
            .query("SELECT shard, log, next, archived FROM shards ORDER BY shard", params![])?
        {
            let (shard, log) = (get::<i32>(row, 0)?, LogId(get::<UuidBytes>(row, 1)?.0));
            let checkpoint = (get::<i64>(row, 2)? as Offset, get::<i64>(row, 3)? as Offset);
            let end = usize::try_from(shard).ok().and_then(|at| ends.get(at));
            if log != from || end.is_none_or(|end| checkpoint != (*end, *end)) {
                return Err(StoreError::Failed(format!(
                    "shard {shard} stands at {} of log {log}, archived up to {}, instead of \
                     {end:?} of log {from}: does a node still run?",
                    checkpoint.0, checkpoint.1
                )));
            }
        }
        session.execute(
            "UPDATE shards SET log = $1, epoch = epoch + 1, attempts = 0",
            params![UuidBytes(to.0)],
        )?;
        session.execute("UPDATE generation_fills SET log = $1", params![UuidBytes(to.0)])?;
        session.commit()
    }

    /// Imports what `source` provides, with rollups on these UTC days. The checkpoints
    /// become those of `log`.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the store is not empty; [`StoreError::Unknown`] if the outcome is
    /// unknown, which [`PostgresStore::contents`] then resolves.
    pub fn import(
        &self,
        log: LogId,
        days: &[i32],
        source: impl FnOnce(TransferSink<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let weeks: BTreeSet<i32> = days
            .iter()
            .flat_map(|day| [day * 24, day * 24 + 23])
            .map(|hour| hour.div_euclid(WEEK))
            .collect();
        // One transaction per week, so that locks on all weeks are never held together.
        for week in &weeks {
            self.ensure_weeks(&BTreeSet::from([*week]), None)?;
        }
        let mut lease = self.writers.begin(BEGIN)?;
        let session = lease.session()?;
        let mut import = Import {
            session,
            log,
            series: HashMap::new(),
            metrics: HashMap::new(),
            spans: BTreeMap::new(),
        };
        // Of two imports at once, the second waits here and then finds the rows of the first.
        import.session.batch_execute("LOCK TABLE shards IN EXCLUSIVE MODE".to_owned())?;
        if contents(import.session)? != StoreContents::Empty {
            let place = &self.writers.connector.address;
            return Err(StoreError::Failed(format!(
                "{place} is not empty any more: another import has just ended; start again"
            )));
        }
        source(&mut |batch| {
            // A fresh time limit per batch: reading the source must not count.
            import.session.set_time_limit(self.limit);
            import.write_batch(batch)
        })?;
        import.session.set_time_limit(self.limit);
        import.finish()?;
        session.commit()
    }
}

fn contents(session: &mut PostgresSession) -> Result<StoreContents, StoreError> {
    if let Some(row) =
        session.query("SELECT log FROM shards ORDER BY shard LIMIT 1", params![])?.first()
    {
        return Ok(StoreContents::Log(LogId(get::<UuidBytes>(row, 0)?.0)));
    }
    let sql = "SELECT EXISTS (SELECT FROM series) OR EXISTS (SELECT FROM rollups) OR EXISTS \
               (SELECT FROM manifest)
        OR EXISTS (SELECT FROM accounting) OR EXISTS (SELECT FROM quarantine) OR EXISTS (SELECT \
               FROM dedup)
        OR EXISTS (SELECT FROM generation_book WHERE version > 0)";
    let any = session.query(sql, params![])?.first().is_some_and(|row| row.get::<_, bool>(0));
    Ok(if any { StoreContents::OrphanRows } else { StoreContents::Empty })
}

/// An import in progress.
struct Import<'a> {
    session: &'a mut PostgresSession,
    log: LogId,
    /// Metric and series numbers that this import assigned.
    series: HashMap<SeriesScope, HashMap<SeriesId, (i32, i64)>>,
    metrics: HashMap<(GenerationId, String, String), i32>,
    /// First and last hour of the metrics, by number; written at the end.
    spans: BTreeMap<i32, (i32, i32)>,
}

impl Import<'_> {
    fn write_batch(&mut self, batch: TransferBatch) -> Result<(), StoreError> {
        match batch {
            TransferBatch::Series(shard, scope, rows) => self.admit((shard, scope), &rows),
            TransferBatch::Figures(rows) => self.figures(&rows),
            TransferBatch::Sketches(rows) => self.sketches(&rows),
            TransferBatch::Revisions(rows) => self.revisions(&rows),
            TransferBatch::DedupBlocks(shard, rows) => {
                self.write(rows.iter().map(|block| dedup(shard, block)))
            }
            TransferBatch::OutcomeNotes(shard, rows) => {
                self.write(rows.iter().map(|(range, note)| flush::note_insert(shard, *range, note)))
            }
            TransferBatch::DedupRules(shard, rows) => self.write(
                rows.iter()
                    .map(|(from, rule)| super::admin::dedup_rule_insert(shard, *from, *rule)),
            ),
            TransferBatch::Accounting(rows) => {
                self.write(flush::accounting_upsert(&rows).into_iter())
            }
            TransferBatch::Quarantine(rows) => self.quarantine(&rows),
            TransferBatch::Suspects(shard, rows) => {
                self.write(rows.iter().map(|row| suspect(shard, row)))
            }
            TransferBatch::Manifest(rows) => {
                self.write(rows.iter().map(super::admin::manifest_insert))
            }
            TransferBatch::ArchiveFloors(rows) => {
                self.write(rows.iter().map(|(shard, floor)| archive_floor(*shard, floor)))
            }
            TransferBatch::Boards(rows) => {
                self.write(rows.iter().map(|(tenant, board)| boards::upsert(tenant, board)))
            }
            TransferBatch::Book(book) => self.book(&book),
            TransferBatch::Fills(rows) => {
                let log = self.log;
                self.write(rows.iter().map(|row| generations::fill_insert(log, row)))
            }
            TransferBatch::Dropped(rows) => {
                self.write(rows.iter().filter_map(|(generation, writer, dropped)| {
                    dropped_upsert(*generation, *writer, std::slice::from_ref(dropped))
                }))
            }
            TransferBatch::RuleEvents(rows) => {
                self.write(rows.iter().filter_map(|(generation, writer, counted)| {
                    rules_upsert(*generation, *writer, std::slice::from_ref(counted))
                }))
            }
            TransferBatch::Audit(rows) => self.write(rows.iter().map(audit_insert)),
            TransferBatch::Shards(rows) => {
                let log = self.log;
                self.write(rows.iter().map(|row| checkpoint(log, row)))
            }
        }
    }

    fn write(
        &mut self,
        rows: impl Iterator<Item = (&'static str, Vec<Param>)>,
    ) -> Result<(), StoreError> {
        Ok(self.session.execute_all(rows.collect())?)
    }

    fn admit(
        &mut self,
        (shard, scope): (ShardId, SeriesScope),
        rows: &[(Arc<SeriesInfo>, Offset)],
    ) -> Result<(), StoreError> {
        let mut growth = SeriesGrowth::new();
        let numbers = catalogue::number_series(
            self.session,
            // An empty cache, because the numbers of a failed import must not be remembered.
            &PostgresSeriesCache::default(),
            scope,
            (rows, &[]),
            (shard, 0),
            &mut growth,
        )?;
        let series = self.series.entry(scope).or_default();
        for (info, _) in rows {
            let no = numbers
                .get(&info.id)
                .ok_or_else(|| StoreError::Failed(format!("series {} has no number", info.id)))?;
            series.insert(info.id, (no.metric_no, no.series_no));
            let (tenant, metric) = (info.series.tenant.clone(), info.series.metric.clone());
            self.metrics.entry((scope.generation(), tenant, metric)).or_insert(no.metric_no);
        }
        let (metrics, grown): (Vec<i32>, Vec<i64>) = growth.into_iter().unzip();
        let sql = "UPDATE metrics m SET series_count = m.series_count + w.grown
            FROM unnest($1::integer[], $2::bigint[]) AS w (no, grown) WHERE m.no = w.no";
        self.session.execute(sql, params![metrics, grown])?;
        Ok(())
    }

    fn row_key(
        &self,
        scope: SeriesScope,
        id: SeriesId,
        hour: Hour,
    ) -> Result<(i32, i32, i64), StoreError> {
        let found = self.series.get(&scope).and_then(|series| series.get(&id)).copied();
        let (metric, series) = found.ok_or_else(|| {
            StoreError::Invalid(format!("series {id} has rollups but no catalogue row"))
        })?;
        Ok((metric, hour.0, series))
    }

    fn figures(&mut self, rows: &[FiguresRow]) -> Result<(), StoreError> {
        let mut copy = CopyRows::new();
        for row in rows {
            let place = self.row_key(row.scope, row.series, row.hour)?;
            let span = self.spans.entry(place.0).or_insert((place.1, place.1));
            *span = (span.0.min(place.1), span.1.max(place.1));
            copy.begin_row(8);
            merge::put_key(&mut copy, place);
            copy.bigint(row.figures.count as i64);
            copy.bigint(row.figures.value_count as i64);
            copy.numeric(Some(row.figures.sum));
            copy.numeric(row.figures.min.map(Decimal::units));
            copy.numeric(row.figures.max.map(Decimal::units));
        }
        let sql = "COPY rollups (metric_no, hour, series_no, count, value_count, sum, min, max) \
                   FROM STDIN BINARY";
        self.session.copy_in(sql, copy.finish())?;
        Ok(())
    }

    fn sketches(&mut self, rows: &[SketchesRow]) -> Result<(), StoreError> {
        let mut copy = CopyRows::new();
        for row in rows {
            copy.begin_row(5);
            merge::put_key(&mut copy, self.row_key(row.scope, row.series, row.hour)?);
            copy.bytea(|out| out.extend_from_slice(&row.distinct_users));
            copy.bytea(|out| out.extend_from_slice(&row.quantiles));
        }
        let sql = "COPY sketches (metric_no, hour, series_no, distinct_users, quantiles) FROM \
                   STDIN BINARY";
        self.session.copy_in(sql, copy.finish())?;
        Ok(())
    }

    fn revisions(&mut self, rows: &[RevisionRow]) -> Result<(), StoreError> {
        let (mut metrics, mut days, mut revisions) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let key = (row.generation, row.tenant.clone(), row.metric.clone());
            match self.metrics.get(&key) {
                Some(no) => metrics.push(*no),
                // Its series have left, so nothing reads it any more.
                None if !row.generation.is_ingest() => continue,
                None => {
                    let why = format!("metric {} has a revision but no series", row.metric);
                    return Err(StoreError::Invalid(why));
                }
            }
            days.push(row.day);
            revisions.push(row.revision as i64);
        }
        let sql = "INSERT INTO revisions (metric_no, day, revision)
            SELECT * FROM unnest($1::integer[], $2::integer[], $3::bigint[]) AS w (metric_no, day, \
                   revision)";
        self.session.execute(sql, params![metrics, days, revisions])?;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        let metrics: Vec<i32> = self.spans.keys().copied().collect();
        let (first, last): (Vec<i32>, Vec<i32>) = self.spans.values().copied().unzip();
        let sql = "UPDATE metrics m SET first_hour = w.first, last_hour = w.last
            FROM unnest($1::integer[], $2::integer[], $3::integer[]) AS w (no, first, last) WHERE \
                   m.no = w.no";
        self.session.execute(sql, params![metrics, first, last])?;
        Ok(())
    }
}

fn dedup(shard: ShardId, block: &DedupBlock) -> (&'static str, Vec<Param>) {
    let range = (block.range.from as i64, block.range.to as i64);
    let runs = byte_columns::encode_runs(&block.runs);
    let params =
        params![shard.0.cast_signed(), range.0, range.1, block.appended.0, block.appended.1, runs];
    (
        "INSERT INTO dedup (shard, from_offset, to_offset, first_appended, last_appended, block) \
         VALUES ($1, $2, $3, $4, $5, $6)",
        params,
    )
}

fn suspect(shard: ShardId, row: &SuspectEvent) -> (&'static str, Vec<Param>) {
    let params = params![
        shard.0.cast_signed(),
        row.offset as i64,
        i64::from(row.index),
        i64::from(row.deaths)
    ];
    ("INSERT INTO suspects (shard, \"offset\", idx, deaths) VALUES ($1, $2, $3, $4)", params)
}

fn archive_floor(shard: ShardId, floor: &ArchiveFloor) -> (&'static str, Vec<Param>) {
    let params = params![shard.0.cast_signed(), floor.offset as i64, floor.appended, floor.hour.0];
    (
        "INSERT INTO archive_floors (shard, \"offset\", appended, hour) VALUES ($1, $2, $3, $4)",
        params,
    )
}

fn checkpoint(log: LogId, row: &ShardRow) -> (&'static str, Vec<Param>) {
    let at = row.checkpoint;
    let sql = "INSERT INTO shards (shard, log, next, archived, epoch, nonce, attempts, owner, \
               owner_pid, owner_started, appended, noted_from, noted_to, set_version, set_next)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, now(), $9, $10, $11, $12, $3)";
    let params = params![
        row.shard.0.cast_signed(),
        UuidBytes(log.0),
        at.next as i64,
        at.archived as i64,
        at.epoch.counter as i64,
        at.epoch.nonce as i64,
        i64::from(row.attempts),
        OWNER.to_owned(),
        at.appended,
        row.noted.map(|noted| noted.from as i64),
        row.noted.map(|noted| noted.to as i64),
        row.set_version as i64
    ];
    (sql, params)
}

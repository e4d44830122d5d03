//! The store of a cluster: TimescaleDB, or PostgreSQL 14 and newer with native partitions if the
//! extension is missing.
//!
//! Every write is one READ COMMITTED transaction that begins with its compare-and-set, which locks
//! the shard's row; nothing derived from a transaction is cached before it committed. Inside the
//! transaction the session carries the name of the shard, so that a new owner can find the backend
//! of a frozen predecessor and terminate it. A snapshot is a REPEATABLE READ transaction on the
//! primary: it sees one state, with everything that was committed before it began. For failures see
//! [`errors`]. A transaction is never retried here.

mod admin;
mod catalogue;
mod check;
mod codec;
mod compressed_weeks;
mod connect;
mod errors;
mod flush;
mod import;
mod maintenance;
mod options;
mod pool;
mod rollups;
mod runtime;
mod schema;
mod session;
mod sizes;
mod snapshot;
#[cfg(test)]
pub(super) mod tests;
mod week_expiry;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use self::import::StoreContents;
pub use self::maintenance::RetentionPolicy;
pub use self::options::PostgresOptions;
pub use self::schema::{DatabaseState, ROLES};

use self::catalogue::{PostgresSeriesCache, SeriesNumbers};
use self::compressed_weeks::CompressedWeeks;
use self::connect::SessionConnector;
use self::pool::SessionPool;
use self::runtime::{BlockingRuntime, RuntimeHandle};
use self::session::{PostgresSession, params};
use super::{
    ExpiryTarget, ManifestStore, QuarantineStore, QuerySnapshot, QuerySource, RebuildStore,
    ShardStore, SnapshotSource, StoreDamage, StoreError, StoreInspection, StoreSizes,
    StoreSnapshot,
};
use crate::model::budget::QueryBudget;
use crate::model::flush::{Claim, DedupBlock, DedupRule, FlushBatch, FlushGuard};
use crate::model::manifest::{ManifestRow, ShardRestore, Tier};
use crate::model::offset::{Epoch, LogId, Offset, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};

/// Rollups, catalogue and checkpoints in a PostgreSQL database, in the schema `rollmill`.
pub struct PostgresStore {
    node: String,
    writers: SessionPool,
    readers: SessionPool,
    series_cache: PostgresSeriesCache,
    /// Weeks known to have partitions, and the server start (see `ServerBackend`) that
    /// this is true for.
    partitioned_weeks: Mutex<(i64, BTreeSet<i32>)>,
    match_cache: snapshot::PostgresMatchCache,
    compressed_weeks: CompressedWeeks,
    size_cache: sizes::SizeCache,
    claim_lock_timeout: String,
    /// `store.timeout`: the time limit of a transaction, and of each step of an import.
    limit: Duration,
    /// `store.compress_timeout`, for one chunk.
    compress_limit: Duration,
    runtime: BlockingRuntime,
    rebuilding: bool,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore")
            .field("place", &self.writers.connector.address)
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects, and creates or migrates the tables if the role may.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the URL, the server or the schema is unusable, or if the rollups
    /// were lost; [`StoreError::Failed`] if no host accepts writes.
    pub fn open(options: &PostgresOptions) -> Result<Arc<Self>, StoreError> {
        let store = Self::new(options)?;
        let place = &store.writers.connector.address;
        let mut lease = store.writers.take()?;
        if !schema::is_current(lease.session()?, place)? {
            // Checked again inside, under the migration lock: another node may have been faster.
            drop(lease);
            lease = store.writers.begin("BEGIN")?;
            schema::migrate(lease.session()?, place)?;
            lease.session()?.commit()?;
        }
        schema::refuse_lost_rollups(lease.session()?, place)?;
        drop(lease);
        // Connects a reader once: a wrong `store.read_url` fails the start, not the first query.
        store.readers.take()?;
        Ok(Arc::new(store))
    }

    /// Connects to a database without a store, or with an unfinished rebuild, and creates the
    /// tables. Until [`PostgresStore::finish_rebuild`] nothing else can open it.
    ///
    /// # Errors
    /// Like [`PostgresStore::open`], and if the database holds a store, or the role
    /// may not create tables.
    pub fn open_rebuilding(options: &PostgresOptions) -> Result<Arc<Self>, StoreError> {
        let store = Self { rebuilding: true, ..Self::new(options)? };
        let place = &store.writers.connector.address;
        let mut lease = store.writers.begin("BEGIN")?;
        schema::begin_rebuild(lease.session()?, place)?;
        lease.session()?.commit()?;
        drop(lease);
        Ok(Arc::new(store))
    }

    /// Ends the rebuild: the database becomes an ordinary store. May be repeated if it fails.
    pub fn finish_rebuild(&self) -> Result<(), StoreError> {
        if !self.rebuilding {
            return Err(super::not_being_rebuilt());
        }
        let mut lease = self.writers.begin("BEGIN")?;
        schema::end_rebuild(lease.session()?)?;
        lease.session()?.commit()
    }

    /// What the database holds. Writes nothing.
    pub fn database_state(options: &PostgresOptions) -> Result<DatabaseState, StoreError> {
        let store = Self::new(options)?;
        schema::database_state(store.writers.take()?.session()?)
    }

    /// Connects for reading, while nodes may be writing. Never creates or migrates tables. Fails
    /// like [`PostgresStore::open`], and if the tables are not those of this version.
    pub fn open_read_only(options: &PostgresOptions) -> Result<Arc<Self>, StoreError> {
        let store = Self::new(options)?;
        let place = &store.readers.connector.address;
        if !schema::is_current(store.readers.take()?.session()?, place)? {
            return Err(StoreError::Invalid(format!(
                "{place} has not the tables of this version: start a node of this version, or run \
                 `rollmill store migrate`"
            )));
        }
        Ok(Arc::new(store))
    }

    /// Database, hosts and user, without the password.
    pub fn address(&self) -> String {
        self.writers.connector.address.to_string()
    }

    fn new(options: &PostgresOptions) -> Result<Self, StoreError> {
        let worker = BlockingRuntime::start()?;
        let hands = worker.handle()?;
        let connector = |key: &str,
                         url: &str,
                         role: &str,
                         setup: String|
         -> Result<SessionConnector, StoreError> {
            SessionConnector::new(
                options.config(key, url, role)?,
                options.tls_ca.as_deref(),
                setup,
                hands.clone(),
            )
        };
        let writing = options.settings(options.idle_timeout)
            + flush::NO_DECOMPRESS_LIMIT
            + flush::STAGING_TABLES;
        // Queries may pause between reads for the whole timeout: they hold no lock that a flush
        // needs.
        let reading = options.settings(options.timeout)
            + "SET default_transaction_read_only = on; SET enable_sort = off;";
        let (read_key, read_url) = options
            .read_url
            .as_deref()
            .map_or(("store.url", &*options.url), |url| ("store.read_url", url));
        let writers = connector("store.url", &options.url, "writer", writing)?;
        let readers = connector(read_key, read_url, "reader", reading)?;
        let patience = options.lock_timeout.min(admin::CLAIM_WAIT).as_millis();
        Ok(Self {
            node: options.node.clone(),
            writers: SessionPool::new(
                writers,
                options.flush_connections,
                options.timeout,
                "store.flush_connections",
            ),
            readers: SessionPool::new(
                readers,
                options.read_connections,
                options.timeout,
                "store.read_connections",
            ),
            series_cache: PostgresSeriesCache::default(),
            partitioned_weeks: Mutex::default(),
            match_cache: snapshot::PostgresMatchCache::new(options.match_cache),
            compressed_weeks: CompressedWeeks::default(),
            size_cache: sizes::SizeCache::default(),
            claim_lock_timeout: format!("SET LOCAL lock_timeout = {patience};"),
            limit: options.timeout,
            compress_limit: options.compress_timeout,
            runtime: worker,
            rebuilding: false,
        })
    }

    fn runtime_handle(&self) -> Result<RuntimeHandle, StoreError> {
        self.runtime.handle()
    }

    /// The role part of a session's name inside a transaction of the shard.
    fn session_name(shard: ShardId) -> String {
        format!("shard-{:04}", shard.0)
    }

    /// The SQL that begins a transaction of the shard. The name is set before the row is locked,
    /// and other sessions see it at once.
    fn begin_sql(&self, shard: ShardId) -> String {
        format!(
            "BEGIN; SET LOCAL application_name = '{}';",
            options::application_name(&self.node, &Self::session_name(shard))
        )
    }

    /// Runs `body` in one transaction of the shard. Its result is returned only after the commit.
    fn transaction<T>(
        &self,
        shard: ShardId,
        body: impl FnOnce(&mut PostgresSession) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut lease = self.writers.begin(&self.begin_sql(shard))?;
        let session = lease.session()?;
        let answer = body(session)?;
        session.commit()?;
        Ok(answer)
    }

    /// Like [`Self::transaction`], and caches the numbers of series after the commit.
    fn numbered_transaction<T>(
        &self,
        shard: ShardId,
        body: impl FnOnce(&mut PostgresSession) -> Result<(SeriesNumbers, T), StoreError>,
    ) -> Result<T, StoreError> {
        let ((numbers, answer), server) = self
            .transaction(shard, |session| Ok((body(session)?, session.backend.server_started)))?;
        self.series_cache.remember(server, numbers);
        Ok(answer)
    }

    /// Creates the partitions that a transaction needs, in a transaction of their own before it, so
    /// that no flush waits while another one creates a table.
    fn ensure_weeks(&self, wanted: &BTreeSet<i32>) -> Result<(), StoreError> {
        // The lock is not held during the queries, so two flushes may both create: `ensure_week` is
        // idempotent.
        let known = self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if wanted.is_subset(&known.1) {
            return Ok(());
        }
        let mut lease = self.writers.begin("BEGIN")?;
        let session = lease.session()?;
        let server = session.backend.server_started;
        let missing: Vec<i32> = wanted
            .iter()
            .filter(|week| known.0 != server || !known.1.contains(week))
            .copied()
            .collect();
        for week in &missing {
            session.query("SELECT rollmill.ensure_week($1)", params![*week])?;
        }
        session.commit()?;
        let mut weeks = self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner);
        if weeks.0 != server {
            *weeks = (server, BTreeSet::new());
        }
        weeks.1.extend(missing);
        Ok(())
    }

    /// Forgets the known partitions after a failure: retention or a failover to an older state may
    /// have dropped them, so the next flush checks again.
    fn forget_weeks<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(
            outcome,
            Err(StoreError::Failed(_) | StoreError::Unavailable(_) | StoreError::Unknown(_))
        ) {
            *self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner) =
                Default::default();
        }
        outcome
    }

    /// Drops the rollups of whole weeks that end at or before `before`, figures and sketches alike.
    /// Returns the number of partitions or chunks dropped.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if `before` is within the last day, or if a partition stays in
    /// use for too long.
    pub fn drop_before(&self, before: Hour) -> Result<u32, StoreError> {
        self.drop_weeks("SELECT rollmill.drop_before($1)", before)
    }

    fn drop_weeks(&self, sql: &str, before: Hour) -> Result<u32, StoreError> {
        let mut lease = self.writers.begin("BEGIN")?;
        let session = lease.session()?;
        let rows = session.query(sql, params![before.0])?;
        session.commit()?;
        drop(lease);
        *self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
        self.compressed_weeks.invalidate();
        Ok(rows.first().map_or(0, |row| row.get::<_, i32>(0)).unsigned_abs())
    }

    /// Tries to claim once. `None` if the shard's row stays locked beyond the lock timeout.
    fn try_claim(
        &self,
        shard: ShardId,
        log: LogId,
        nonce: u64,
        words: &str,
    ) -> Result<Option<Claim>, StoreError> {
        let mut lease = self.writers.begin(words)?;
        let session = lease.session()?;
        match admin::lock_shard(session, shard)? {
            None => Ok(None),
            Some(found) => {
                let claim = admin::claim(session, shard, (found, log), nonce)?;
                session.commit()?;
                Ok(Some(claim))
            }
        }
    }
}

/// The shard under whose name the session writes an expiry state.
fn shard_of(of: ExpiryTarget) -> ShardId {
    match of {
        ExpiryTarget::Archive(shard) => shard,
        ExpiryTarget::Weeks => ShardId(0),
    }
}

impl SnapshotSource for PostgresStore {
    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        let lease = self.readers.begin(snapshot::BEGIN_SNAPSHOT)?;
        Ok(Box::new(snapshot::PostgresSnapshot::new(
            lease,
            &self.match_cache,
            &self.compressed_weeks,
        )?))
    }

    fn snapshot_for(&self, query: &QueryBudget) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        let lease = self.readers.begin_for(snapshot::BEGIN_SNAPSHOT, Some(&query.cancel_flag()))?;
        Ok(Box::new(snapshot::PostgresSnapshot::new(
            lease,
            &self.match_cache,
            &self.compressed_weeks,
        )?))
    }
}

impl QuerySource for PostgresStore {
    fn query_snapshot(
        &self,
        query: &QueryBudget,
    ) -> Result<Box<dyn QuerySnapshot + '_>, StoreError> {
        Ok(self.snapshot_for(query)?)
    }

    fn query_snapshot_at_once(
        &self,
        query: &QueryBudget,
    ) -> Result<Option<Box<dyn QuerySnapshot + '_>>, StoreError> {
        let Some(lease) =
            self.readers.begin_at_once(snapshot::BEGIN_SNAPSHOT, Some(&query.cancel_flag()))?
        else {
            return Ok(None);
        };
        Ok(Some(Box::new(snapshot::PostgresSnapshot::new(
            lease,
            &self.match_cache,
            &self.compressed_weeks,
        )?)))
    }
}

impl ShardStore for PostgresStore {
    /// If the previous owner's transaction does not end within `admin::CLAIM_WAIT`,
    /// its backend is terminated.
    fn claim(&self, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError> {
        // Waits briefly first: a healthy flush of the previous owner usually ends by itself (ADR
        // 8).
        let patient = format!("{} {}", self.begin_sql(shard), self.claim_lock_timeout);
        if let Some(claim) = self.try_claim(shard, log, nonce, &patient)? {
            return Ok(claim);
        }
        let mut lease = self.writers.take()?;
        admin::terminate_holders(
            lease.session()?,
            &format!("rollmill:{}:", Self::session_name(shard)),
        )?;
        drop(lease);
        self.try_claim(shard, log, nonce, &self.begin_sql(shard))?.ok_or_else(|| {
            StoreError::Failed(format!(
                "the row of shard {shard} stays locked by a transaction that is not one of ours, \
                 or runs as another role: find it in pg_stat_activity"
            ))
        })
    }

    fn recent_ids(&self, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError> {
        admin::recent_ids(self.readers.begin(snapshot::BEGIN_SNAPSHOT)?.session()?, shard, since)
    }

    fn set_dedup_rule(
        &self,
        shard: ShardId,
        epoch: Epoch,
        from: Offset,
        rule: DedupRule,
    ) -> Result<(), StoreError> {
        self.transaction(shard, |session| admin::set_dedup_rule(session, shard, epoch, from, rule))
    }

    fn flush(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Result<(), StoreError> {
        self.ensure_weeks(&flush::touched_weeks(&batch.deltas))?;
        let flushed = self.numbered_transaction(guard.shard, |session| {
            flush::flush(
                session,
                (&self.series_cache, &self.compressed_weeks),
                guard,
                batch,
                forget_ids_before,
            )
            .map(|numbers| (numbers, ()))
        });
        self.forget_weeks(flushed)
    }

    fn mark_suspect(
        &self,
        shard: ShardId,
        epoch: Epoch,
        offset: Offset,
        index: u32,
    ) -> Result<(), StoreError> {
        self.transaction(shard, |session| admin::mark_suspect(session, shard, epoch, offset, index))
    }

    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, Vec<SeriesId>)>, StoreError> {
        admin::admitted_series(self.readers.begin(snapshot::BEGIN_SNAPSHOT)?.session()?, shard)
    }

    fn metric_names(&self) -> Result<Vec<(String, String)>, StoreError> {
        admin::metric_names(self.readers.begin(snapshot::BEGIN_SNAPSHOT)?.session()?)
    }
}

impl ManifestStore for PostgresStore {
    fn insert_manifest_row(&self, owner: Epoch, row: &ManifestRow) -> Result<(), StoreError> {
        self.transaction(row.shard, |session| admin::insert_manifest_row(session, owner, row))
    }

    fn set_tier(&self, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError> {
        self.transaction(row.shard, |session| admin::set_tier(session, row, tier))
    }

    fn expire_object(&self, row: &ManifestRow) -> Result<bool, StoreError> {
        self.transaction(row.shard, |session| admin::expire_object(session, row))
    }

    fn swap_expiry(
        &self,
        of: ExpiryTarget,
        before: Option<&str>,
        after: &str,
    ) -> Result<bool, StoreError> {
        self.transaction(shard_of(of), |session| admin::swap_expiry(session, of, before, after))
    }

    fn approve_expiry(&self, of: &[ExpiryTarget]) -> Result<u64, StoreError> {
        self.transaction(ShardId(0), |session| admin::approve_expiry(session, of))
    }
}

impl QuarantineStore for PostgresStore {
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        delta: Option<&FlushBatch>,
    ) -> Result<bool, StoreError> {
        if let Some(batch) = delta {
            self.ensure_weeks(&flush::touched_weeks(&batch.deltas))?;
        }
        let settled = self.numbered_transaction(shard, |session| {
            let numbers = flush::settle(
                session,
                (&self.series_cache, &self.compressed_weeks),
                (shard, offset, index),
                delta,
            )?;
            let settled = numbers.is_some();
            Ok((numbers.unwrap_or_default(), settled))
        });
        self.forget_weeks(settled)
    }
}

impl RebuildStore for PostgresStore {
    fn restore(&self, shard: &ShardRestore) -> Result<(), StoreError> {
        if !self.rebuilding {
            return Err(super::not_being_rebuilt());
        }
        self.transaction(shard.shard, |session| admin::restore(session, shard))
    }
}

impl StoreInspection for PostgresStore {
    fn check(&self, found: &mut dyn FnMut(StoreDamage)) -> Result<(), StoreError> {
        self.find_damage(found)
    }

    fn sizes(&self) -> Result<StoreSizes, StoreError> {
        Ok(self.cached_sizes())
    }
}

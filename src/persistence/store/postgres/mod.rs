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
mod boards;
mod catalogue;
mod check;
mod codec;
mod compressed_weeks;
mod connect;
mod errors;
mod flush;
mod generations;
mod import;
mod maintenance;
mod merge;
mod options;
mod partitions;
mod pool;
mod quarantine;
mod released;
mod rollups;
mod runtime;
mod schema;
mod session;
mod shard_store;
mod sizes;
mod snapshot;
#[cfg(test)]
pub(super) mod tests;
mod week_expiry;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::catalogue::{PostgresSeriesCache, ScopedNumbers};
use self::compressed_weeks::CompressedWeeks;
use self::connect::SessionConnector;
use self::generations::BookCache;
pub use self::import::StoreContents;
pub use self::maintenance::RetentionPolicy;
pub use self::options::PostgresOptions;
use self::pool::SessionPool;
use self::runtime::{BlockingRuntime, RuntimeHandle};
pub use self::schema::{DatabaseState, ROLES};
use self::session::PostgresSession;
use super::{
    ExpiryTarget, ManifestStore, RebuildStore, StoreDamage, StoreError, StoreInspection, StoreSizes,
};
use crate::model::budget::{CancelFlag, QueryBudget};
use crate::model::manifest::{ManifestRow, ShardRestore, Tier};
use crate::model::offset::{Epoch, ShardId};

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
    books: BookCache,
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
            + merge::NO_DECOMPRESS_LIMIT
            + merge::STAGING_TABLES;
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
            books: BookCache::default(),
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
        self.transaction_for(shard, None, body)
    }

    /// Like [`Self::transaction`], for a request whose end aborts it. Until the COMMIT that is
    /// [`StoreError::QueryEnded`].
    fn transaction_for<T>(
        &self,
        shard: ShardId,
        request: Option<&CancelFlag>,
        body: impl FnOnce(&mut PostgresSession) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut lease = self.writers.begin_for(&self.begin_sql(shard), request)?;
        let session = lease.session()?;
        let answer = body(session)?;
        session.commit()?;
        Ok(answer)
    }

    /// Like [`Self::transaction_for`], and caches the numbers of series after the commit.
    fn numbered_transaction<T>(
        &self,
        shard: ShardId,
        request: Option<&CancelFlag>,
        body: impl FnOnce(&mut PostgresSession) -> Result<(ScopedNumbers, T), StoreError>,
    ) -> Result<T, StoreError> {
        let ((numbers, answer), server) = self.transaction_for(shard, request, |session| {
            Ok((body(session)?, session.backend.server_started))
        })?;
        self.series_cache.remember(server, numbers);
        Ok(answer)
    }
}

/// The shard under whose name the session writes an expiry state.
fn shard_of(of: ExpiryTarget) -> ShardId {
    match of {
        ExpiryTarget::Archive(shard) => shard,
        ExpiryTarget::Weeks => ShardId(0),
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

    fn approve_expiry(
        &self,
        of: &[ExpiryTarget],
        request: Option<&QueryBudget>,
    ) -> Result<u64, StoreError> {
        let request = request.map(QueryBudget::cancel_flag);
        self.transaction_for(ShardId(0), request.as_ref(), |session| {
            admin::approve_expiry(session, of)
        })
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

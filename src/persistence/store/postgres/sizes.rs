//! The size of the tables. Queried every few seconds but measured once a minute: a store of years
//! has thousands of files.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::codec::get;
use super::session::params;
use super::{PostgresStore, StoreError};
use crate::clock::Stopwatch;
use crate::persistence::store::StoreSizes;

/// Older results are measured again.
const MAX_AGE: Duration = Duration::from_secs(60);
/// A measurement that takes longer is given up until the next minute.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(5);

/// Every table with its indexes and TOAST data; partitions are tables of the same schema.
const TABLES: &str = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM \
                      pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'rollmill' AND c.relkind = 'r'";
/// The schema of the extension, which also contains `hypertable_size`.
const EXTENSION: &str = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON \
                         n.oid = e.extnamespace
    WHERE e.extname = 'timescaledb'";
const ARCHIVE: &str = "SELECT coalesce(sum(bytes), 0)::bigint FROM manifest";

/// Like [`TABLES`], but hypertables with all their chunks, which are in a schema of the extension.
fn with_chunks(extension: &str) -> String {
    format!(
        "SELECT coalesce(sum(CASE WHEN c.relname IN ('rollups', 'sketches') THEN \
         {extension}.hypertable_size(c.oid)
         ELSE pg_total_relation_size(c.oid) END), 0)::bigint FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'rollmill' AND c.relkind \
         = 'r'"
    )
}

/// The last result, and when a measurement was last attempted.
#[derive(Debug, Default)]
pub(super) struct SizeCache {
    last: Mutex<(Option<Stopwatch>, StoreSizes)>,
}

impl PostgresStore {
    /// Sizes of up to a minute ago. A size that this role may not measure keeps its last
    /// value, 0 at first.
    pub(super) fn cached_sizes(&self) -> StoreSizes {
        let mut last = self.size_cache.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, sizes) = &mut *last;
        if since.as_ref().is_some_and(|since| since.elapsed() < MAX_AGE) {
            return *sizes;
        }
        // Set before measuring: a server that fails is asked once a minute, not at every call.
        *since = Some(Stopwatch::start());
        // Each on its own: the right to read one of the two is enough for that one.
        for (size, measured) in
            [(&mut sizes.store, self.measure_store()), (&mut sizes.archive, self.measure(ARCHIVE))]
        {
            match measured {
                Ok(bytes) => *size = bytes.unwrap_or(*size),
                Err(why) => tracing::debug!(%why, "the store does not say how large it is"),
            }
        }
        *sizes
    }

    fn measure_store(&self) -> Result<Option<u64>, StoreError> {
        let Some(mut lease) =
            self.readers.begin_at_once("BEGIN READ ONLY", None, MEASURE_TIMEOUT)?
        else {
            return Ok(None);
        };
        let session = lease.session()?;
        let extension = session
            .query(EXTENSION, params![])?
            .first()
            .map(|row| get::<String>(row, 0))
            .transpose()?;
        drop(lease);
        extension.map_or_else(
            || self.measure(TABLES),
            |extension| self.measure(&with_chunks(&extension)),
        )
    }

    /// The result of a statement; `None` while all read connections are busy, because a gauge is
    /// not worth waiting for.
    fn measure(&self, sql: &str) -> Result<Option<u64>, StoreError> {
        let Some(mut lease) =
            self.readers.begin_at_once("BEGIN READ ONLY", None, MEASURE_TIMEOUT)?
        else {
            return Ok(None);
        };
        let session = lease.session()?;
        let rows = session.query(sql, params![])?;
        rows.first().map(|row| get::<i64>(row, 0).map(i64::unsigned_abs)).transpose()
    }
}

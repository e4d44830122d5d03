//! Looks for damage in PostgreSQL ([`super::super::check`]): in one snapshot, week by week.
//!
//! Rows have no checksum of ours, because pages have the server's (`initdb --data-checksums`). A
//! damaged page fails the statement that reads it, which is reported here (ADR 31).

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::codec::{UuidBytes, get};
use super::session::{PostgresSession, params};
use super::{PostgresStore, StoreDamage, StoreError, snapshot};
use crate::persistence::store::check::{self, DamageCollector, RowVisitor, TableReader, TableRow};

/// No statement about one week takes this long unless it is stuck.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Joins of whole weeks need the planner's own choice of methods; queries have these disabled.
const SETTINGS: &str = "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET \
                        LOCAL enable_sort = on; SAVEPOINT look";

/// First hour and exclusive end of every native partition.
const PARTITIONS: &str = "SELECT DISTINCT substring(bound FROM 'FROM \\(''?(-?\\d+)')::bigint, \
                          substring(bound FROM 'TO \\(''?(-?\\d+)')::bigint
    FROM (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound FROM pg_inherits i JOIN pg_class c ON \
                          c.oid = i.inhrelid
    JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
    WHERE n.nspname = 'rollmill' AND p.relname IN ('rollups', 'sketches') AND p.relkind = 'p') AS \
                          parts ORDER BY 1";
const CHUNKS: &str = "SELECT DISTINCT range_start_integer, range_end_integer FROM \
                      timescaledb_information.chunks
    WHERE hypertable_schema = 'rollmill' AND hypertable_name IN ('rollups', 'sketches') ORDER BY 1";

impl PostgresStore {
    pub(super) fn find_damage(&self, sink: &mut dyn FnMut(StoreDamage)) -> Result<(), StoreError> {
        let mut lease = self.readers.begin(snapshot::BEGIN_SNAPSHOT)?;
        let session = lease.session()?;
        session.batch_execute(format!(
            "SET LOCAL statement_timeout = {}; {SETTINGS}",
            STATEMENT_TIMEOUT.as_millis()
        ))?;
        let mut found = DamageCollector::new(sink);
        check::find_contradictions(&mut SessionTables(session), &mut found)?;
        found.finish();
        Ok(())
    }
}

struct SessionTables<'a>(&'a mut PostgresSession);

impl TableReader for SessionTables<'_> {
    fn for_each_row(&mut self, sql: &str, visit: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        self.0.set_time_limit(STATEMENT_TIMEOUT);
        let mut failed = None;
        // One bad row does not stop the statement: all rows are consumed, so that the session stays
        // usable for the next one.
        self.0.for_each_row(sql, params![], |row| {
            failed = failed.take().or_else(|| visit(row).err());
            Ok(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn hour_ranges(&mut self) -> Result<Vec<(i64, i64)>, StoreError> {
        let mut ranges = Vec::new();
        for sql in [Some(PARTITIONS), Some(CHUNKS).filter(|_| self.0.backend.timescale)]
            .into_iter()
            .flatten()
        {
            self.0.set_time_limit(STATEMENT_TIMEOUT);
            for row in self.0.query(sql, params![])? {
                ranges.push((get(&row, 0)?, get(&row, 1)?));
            }
        }
        Ok(ranges)
    }

    fn metrics_with_wide_spans(&mut self) -> Result<BTreeSet<i64>, StoreError> {
        self.0.set_time_limit(STATEMENT_TIMEOUT);
        let rows = self.0.query("SELECT no FROM metrics WHERE generation > 0", params![])?;
        rows.iter().map(|row| get::<i32>(row, 0).map(i64::from)).collect()
    }

    fn recover(&mut self) -> Result<(), StoreError> {
        self.0.set_time_limit(STATEMENT_TIMEOUT);
        Ok(self.0.batch_execute("ROLLBACK TO SAVEPOINT look".to_owned())?)
    }
}

impl TableRow for Row {
    fn int(&self, at: usize) -> Result<Option<i64>, StoreError> {
        match self.columns().get(at).map(|column| column.type_()) {
            Some(&Type::INT2) => Ok(get::<Option<i16>>(self, at)?.map(i64::from)),
            Some(&Type::INT4) => Ok(get::<Option<i32>>(self, at)?.map(i64::from)),
            _ => get(self, at),
        }
    }

    fn text(&self, at: usize) -> Result<&str, StoreError> {
        get(self, at)
    }

    fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError> {
        match self.columns().get(at).map(|column| column.type_()) {
            Some(&Type::UUID) => Ok(get::<UuidBytes>(self, at)?.0.to_vec()),
            _ => get(self, at),
        }
    }
}

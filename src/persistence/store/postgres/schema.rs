//! The tables, their version, and who may create them.
//!
//! Every start reads the version. An older schema is migrated by a role that may (the owner of the
//! schema, or the only role of a small installation), one node at a time; a newer one is refused
//! and never changed.

use super::StoreError;
use super::errors::SessionError;
use super::options::StoreAddress;
use super::session::{PostgresSession, params};

/// Migrations in order; the number of the last one is the version of this build.
/// Released migrations never change.
const MIGRATIONS: &[&str] = &[
    include_str!("sql/0001_tables.sql"),
    include_str!("sql/0002_comments.sql"),
    include_str!("sql/0003_two_times.sql"),
    include_str!("sql/0004_dedup_rules.sql"),
    include_str!("sql/0005_outcomes.sql"),
    include_str!("sql/0006_generations.sql"),
    include_str!("sql/0007_boards.sql"),
    include_str!("sql/0008_settled.sql"),
];
const FUNCTIONS: &str = include_str!("sql/functions.sql");
const VIEWS: &str = include_str!("sql/views.sql");
const GRANTS: &str = include_str!("sql/grants.sql");
/// Creates the roles; an administrator runs it before the first start.
pub const ROLES: &str = include_str!("sql/roles.sql");

/// The version row that marks an unfinished rebuild.
const REBUILDING: i32 = 0;

/// Serialises migrations within a database, across nodes.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7094701)";
/// Hours of a chunk; native partitions have the same width (`functions.sql`).
pub(super) const WEEK: i32 = 168;

/// The version that this build reads and writes.
fn newest_version() -> i32 {
    MIGRATIONS.len() as i32
}

/// What a database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseState {
    /// No tables, or empty ones.
    Empty,
    /// The output of an unfinished rebuild.
    Rebuilding,
    /// A store with data.
    Complete,
}

fn is_true(session: &mut PostgresSession, sql: &str) -> Result<bool, StoreError> {
    Ok(session.query(sql, params![])?.first().is_some_and(|row| row.get::<_, bool>(0)))
}

/// Whether there are tables. Reads `pg_class`, because `to_regclass` fails for a role without
/// rights on the schema.
fn tables_exist(session: &mut PostgresSession) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'rollmill' AND c.relname = 'migrations')";
    is_true(session, sql)
}

fn is_rebuilding(session: &mut PostgresSession) -> Result<bool, StoreError> {
    is_true(
        session,
        &format!("SELECT EXISTS (SELECT FROM rollmill.migrations WHERE version = {REBUILDING})"),
    )
}

/// What the database holds, as seen by this session.
pub(super) fn database_state(session: &mut PostgresSession) -> Result<DatabaseState, StoreError> {
    if !tables_exist(session)? {
        return Ok(DatabaseState::Empty);
    }
    if is_rebuilding(session)? {
        return Ok(DatabaseState::Rebuilding);
    }
    let sql = "SELECT EXISTS (SELECT FROM rollmill.shards) OR EXISTS (SELECT FROM rollmill.series)";
    Ok(if is_true(session, sql)? { DatabaseState::Complete } else { DatabaseState::Empty })
}

/// Creates the tables and marks their contents as incomplete, inside the session's
/// transaction. Fails with [`StoreError::Invalid`] if the database holds a store, or the role
/// may not create tables.
pub(super) fn begin_rebuild(
    session: &mut PostgresSession,
    address: &StoreAddress,
) -> Result<(), StoreError> {
    session.batch_execute(LOCK.to_owned())?;
    if database_state(session)? == DatabaseState::Complete {
        return Err(StoreError::Invalid(format!(
            "{address} holds a store: name an empty database"
        )));
    }
    if !tables_exist(session)? || !is_newest(session, address)? {
        create_tables(session).map_err(|failure| create_error(address, failure))?;
    }
    let by = format!("rollmill {} rebuild", env!("CARGO_PKG_VERSION"));
    let sql = "INSERT INTO rollmill.migrations (version, by) VALUES ($1, $2) ON CONFLICT \
               (version) DO NOTHING";
    match session.execute(sql, params![REBUILDING, by]) {
        Ok(_) => Ok(()),
        Err(failure) => Err(create_error(address, failure)),
    }
}

/// Removes the mark of [`begin_rebuild`], inside the session's transaction.
pub(super) fn end_rebuild(session: &mut PostgresSession) -> Result<(), StoreError> {
    session.execute("DELETE FROM rollmill.migrations WHERE version = $1", params![REBUILDING])?;
    Ok(())
}

/// Refuses a store that lost rollups in an incomplete restore. There are two cases. The
/// catalogue lists rollups but there are none: a dump of our schema alone leaves this, because
/// the chunks of TimescaleDB are in another schema; answers would be empty and claim to be
/// complete. Or the rows exist, but the tables are no hypertables any more: a dump of all those
/// schemas without the extension's own catalogue leaves this; new rows would be written beside
/// the old ones. Either is [`StoreError::Invalid`].
pub(super) fn refuse_lost_rollups(
    session: &mut PostgresSession,
    address: &StoreAddress,
) -> Result<(), StoreError> {
    let bare = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = \
                c.relnamespace WHERE n.nspname = 'rollmill'
        AND c.relname IN ('rollups', 'sketches') AND c.relkind <> 'p')";
    let hypertables = "SELECT count(*) = 2 FROM timescaledb_information.hypertables WHERE \
                       hypertable_schema = 'rollmill'
        AND hypertable_name IN ('rollups', 'sketches')";
    if is_true(session, bare)? && !(session.backend.timescale && is_true(session, hypertables)?) {
        return Err(StoreError::Invalid(format!(
            "the rollups of {address} are neither partitioned nor a hypertable, as after a restore \
             without the catalogue of TimescaleDB: restore a dump of the whole database \
             (docs/how-to/backup-and-restore.md), or `DROP SCHEMA rollmill CASCADE` and `rollmill \
             rebuild`"
        )));
    }
    let sql = "SELECT EXISTS (SELECT FROM rollmill.metrics WHERE first_hour IS NOT NULL AND \
               generation = 0) AND NOT EXISTS (SELECT FROM rollmill.rollups)";
    if !is_true(session, sql)? {
        return Ok(());
    }
    Err(StoreError::Invalid(format!(
        "{address} has metrics with rollups in its catalogue, but not one rollup. A dump of the \
         schema rollmill alone leaves this on TimescaleDB: restore one of the whole database \
         (docs/how-to/backup-and-restore.md), or `DROP SCHEMA rollmill CASCADE` and `rollmill \
         rebuild`"
    )))
}

/// Whether views are missing although this role may create them: an administrator created their
/// schema after the migration, or an older build laid fewer.
fn lacks_views(session: &mut PostgresSession) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = 'rollmill_views'
        AND has_schema_privilege(n.oid, 'CREATE') AND pg_has_role(n.nspowner, 'MEMBER')
        AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = \
               'served'))";
    is_true(session, sql)
}

/// Whether the version is that of this build, and this role has nothing left to create. Fails with
/// [`StoreError::Invalid`] if the version is newer, or if a rebuild is unfinished.
pub(super) fn is_current(
    session: &mut PostgresSession,
    address: &StoreAddress,
) -> Result<bool, StoreError> {
    if !tables_exist(session)? {
        return Ok(false);
    }
    if is_rebuilding(session)? {
        return Err(StoreError::Invalid(format!(
            "{address} holds what a rebuild has not finished: run `rollmill rebuild` again, or \
             `DROP SCHEMA rollmill CASCADE`"
        )));
    }
    Ok(is_newest(session, address)? && !lacks_views(session)?)
}

fn is_newest(session: &mut PostgresSession, address: &StoreAddress) -> Result<bool, StoreError> {
    let found: i32 = match session
        .query("SELECT coalesce(max(version), 0) FROM rollmill.migrations", params![])?
        .first()
    {
        Some(row) => row.get(0),
        None => 0,
    };
    if found > newest_version() {
        return Err(StoreError::Invalid(format!(
            "{address} has schema version {found}, this build knows up to {}: start the version of \
             Rollmill that migrated it, or name another database",
            newest_version()
        )));
    }
    Ok(found == newest_version())
}

/// Migrates the schema to the version of this build, inside the session's transaction. Does
/// nothing if another node was faster. Fails with [`StoreError::Invalid`] if the role may not, or
/// if the version is newer.
pub(super) fn migrate(
    session: &mut PostgresSession,
    address: &StoreAddress,
) -> Result<(), StoreError> {
    session.batch_execute(LOCK.to_owned())?;
    if is_current(session, address)? {
        return Ok(());
    }
    create_tables(session).map_err(|failure| create_error(address, failure))
}

fn create_error(address: &StoreAddress, failure: SessionError) -> StoreError {
    match failure.sql_state().map(|state| state.code()) {
        Some("42501") => StoreError::Invalid(format!(
            "{address} has not the tables of this version, and this role may not lay them: run \
             `rollmill store migrate --url URL` with the URL of rollmill_owner; a rebuild takes \
             that URL itself"
        )),
        _ => failure.into(),
    }
}

fn create_tables(session: &mut PostgresSession) -> Result<(), SessionError> {
    let is = |session: &mut PostgresSession, sql: &str| -> Result<bool, SessionError> {
        Ok(session.query(sql, params![])?.first().is_some_and(|row| row.get::<_, bool>(0)))
    };
    // Everything belongs to the owner, even if a superuser runs this: the functions run with the
    // rights of their owner.
    let owner = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rollmill_owner'
        AND pg_has_role(current_user, oid, 'MEMBER') AND has_schema_privilege(oid, 'rollmill', \
                 'CREATE'))";
    let is_new = !is(session, "SELECT to_regnamespace('rollmill') IS NOT NULL")?;
    let for_owner = !is_new && is(session, owner)?;
    if is_new {
        session.batch_execute("CREATE SCHEMA rollmill".to_owned())?;
    }
    // A role that may not create a schema still creates the tables; `store roles` creates this
    // schema.
    if is(
        session,
        "SELECT has_database_privilege(current_database(), 'CREATE') AND \
         to_regnamespace('rollmill_views') IS NULL",
    )? {
        let of = if for_owner { " AUTHORIZATION rollmill_owner" } else { "" };
        session.batch_execute(format!("CREATE SCHEMA rollmill_views{of}"))?;
    }
    if for_owner {
        session.batch_execute("SET LOCAL ROLE rollmill_owner".to_owned())?;
    }
    session.batch_execute(
        "CREATE TABLE IF NOT EXISTS rollmill.migrations (version integer PRIMARY KEY, at \
         timestamptz NOT NULL DEFAULT now(),
         by text NOT NULL)"
            .to_owned(),
    )?;
    let timescale = timescale(session)?;
    let done =
        session.query("SELECT coalesce(max(version), 0) FROM rollmill.migrations", params![])?;
    let done: i32 = done.first().map_or(0, |row| row.get(0));
    for (version, text) in (1..).zip(MIGRATIONS).skip_while(|(version, _)| *version <= done) {
        session.batch_execute(text.replace(
            "/*PARTITIONED*/",
            if timescale.is_some() { "" } else { "PARTITION BY RANGE (hour)" },
        ))?;
        if let (1, Some(schema)) = (version, &timescale) {
            session.batch_execute(hypertables(schema))?;
        }
        let by = format!("rollmill {}", env!("CARGO_PKG_VERSION"));
        session.execute(
            "INSERT INTO rollmill.migrations (version, by) VALUES ($1, $2)",
            params![version, by],
        )?;
    }
    session.batch_execute(FUNCTIONS.to_owned())?;
    let views =
        "SELECT coalesce(has_schema_privilege(to_regnamespace('rollmill_views'), 'CREATE'), false)";
    if is(session, views)? {
        session.batch_execute(VIEWS.to_owned())?;
    } else {
        tracing::warn!(
            "the views for people are not laid, this role may not: run `rollmill store roles | \
             psql` and `store migrate`"
        );
    }
    session.batch_execute(GRANTS.to_owned())?;
    session.batch_execute("RESET ROLE".to_owned())?;
    Ok(())
}

/// The schema of the extension, quoted; `None` without the extension.
fn timescale(session: &mut PostgresSession) -> Result<Option<String>, SessionError> {
    let sql = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = \
               e.extnamespace
        WHERE e.extname = 'timescaledb'";
    Ok(session.query(sql, params![])?.first().map(|row| row.get(0)))
}

/// SQL that makes the tables hypertables. Their primary keys already lead to the hour, so the index
/// that the extension would add by default is useless.
fn hypertables(schema: &str) -> String {
    let one = |table: &str| {
        format!(
            "ALTER TABLE rollmill.{table} SET (fillfactor = 85);
             SELECT {schema}.create_hypertable('rollmill.{table}', 'hour', chunk_time_interval => \
             {WEEK}, create_default_indexes => false);"
        )
    };
    one("rollups") + &one("sketches")
}

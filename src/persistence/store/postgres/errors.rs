//! Translates errors of the server and of the connection into [`StoreError`].
//!
//! - Any error before COMMIT was sent is `Failed`: the transaction is rolled back, by us or by the
//!   end of its connection. Exceptions with the same guarantee: `Unavailable` if the server is
//!   unreachable, starting, stopping or full, because waiting helps; `TooLong` if the server cut a
//!   statement at its time limit, because waiting does not help.
//! - At COMMIT, a rollback reported by the server (class 40, class 23) is `Unavailable` or
//!   `Failed`; anything else (connection lost, deadline, server shutting down) is `Unknown`.
//! - At any time, damaged data or indexes (XX001, XX002) and tables that this build does not know
//!   (42P01, 42703) are `Invalid`.
//!
//! After every error except a plain statement error the session is discarded.

use std::io::ErrorKind;

use tokio_postgres::Error;
use tokio_postgres::error::{Severity, SqlState};

use super::StoreError;

/// Why a step of a session failed.
#[derive(Debug)]
pub(super) enum SessionError {
    /// An error of the server or of the connection.
    Postgres(Error),
    /// No answer within the deadline.
    TimedOut,
    /// The query that the step worked for was aborted.
    QueryEnded,
}

impl SessionError {
    /// The SQLSTATE, if the server reported one.
    pub(super) fn sql_state(&self) -> Option<&SqlState> {
        match self {
            SessionError::Postgres(error) => error.code(),
            SessionError::TimedOut | SessionError::QueryEnded => None,
        }
    }

    /// Whether the session can be used again after a rollback.
    pub(super) fn session_survives(&self) -> bool {
        let SessionError::Postgres(error) = self else { return false };
        let Some(said) = error.as_db_error() else { return false };
        // Read-only means that the server became a standby; an unsupported feature means that a
        // prepared statement no longer fits. Both need a new session.
        let stale = *said.code() == SqlState::READ_ONLY_SQL_TRANSACTION
            || *said.code() == SqlState::FEATURE_NOT_SUPPORTED;
        said.parsed_severity() == Some(Severity::Error)
            && !said.code().code().starts_with("57P")
            && !stale
    }

    /// Whether the failure passes without intervention. A wrong password, a bad certificate or a
    /// missing database does not.
    fn is_transient(&self) -> bool {
        let SessionError::Postgres(error) = self else { return true };
        match error.code().map(SqlState::code) {
            // A limit in the server's configuration: it persists until somebody raises it.
            Some("53400") => false,
            // 57P: shutting down, starting up, crashed; 53: too many connections; 08: connection
            // lost; 40, 55P03: another transaction was in the way.
            Some(state) => {
                ["57P", "53", "08", "40", "55P03"].iter().any(|class| state.starts_with(class))
            }
            None => error.is_closed() || is_connection_error(error),
        }
    }

    /// The error of a transaction whose COMMIT was sent.
    pub(super) fn into_commit_error(self) -> StoreError {
        match self.sql_state().map(|state| &state.code()[..2]) {
            Some("40" | "23") => self.into(),
            _ => StoreError::Unknown(format!("postgres: COMMIT: {}", self.message())),
        }
    }

    fn message(&self) -> String {
        let error = match self {
            SessionError::Postgres(error) => error,
            SessionError::TimedOut => return "no answer within store.timeout".to_owned(),
            SessionError::QueryEnded => return "no answer within query.timeout".to_owned(),
        };
        let Some(said) = error.as_db_error() else {
            let cause = std::error::Error::source(error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            return format!("{error}{cause}");
        };
        let detail = said.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
        format!("{} [{}]{detail}{}", said.message(), said.code().code(), remedy(said.code()))
    }
}

/// Whether the connection failed, rather than what was sent over it: a refused certificate is
/// `InvalidData`.
fn is_connection_error(error: &Error) -> bool {
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|io| io.kind() != ErrorKind::InvalidData)
}

impl From<SessionError> for StoreError {
    fn from(failure: SessionError) -> Self {
        if matches!(failure, SessionError::QueryEnded) {
            return StoreError::QueryEnded;
        }
        let text = format!("postgres: {}", failure.message());
        match failure.sql_state() {
            Some(state)
                if *state == SqlState::DATA_CORRUPTED || *state == SqlState::INDEX_CORRUPTED =>
            {
                StoreError::Invalid(format!(
                    "{text}: restore the database from a backup, or rebuild it from the archive"
                ))
            }
            Some(state)
                if *state == SqlState::UNDEFINED_TABLE || *state == SqlState::UNDEFINED_COLUMN =>
            {
                StoreError::Invalid(format!(
                    "{text}: run `rollmill store migrate` as the owner of the tables"
                ))
            }
            Some(state) if *state == SqlState::QUERY_CANCELED => StoreError::TooLong(text),
            _ if failure.is_transient() => StoreError::Unavailable(text),
            _ => StoreError::Failed(text),
        }
    }
}

/// What an operator can do about a SQLSTATE.
fn remedy(state: &SqlState) -> &'static str {
    match state.code() {
        "53100" => ": free space on the server's disk; what is not flushed waits in the log",
        "53400" => ": raise that limit of the server; until then it fails again and again",
        "53300" => {
            ": raise max_connections of the server, or lower store.flush_connections and \
             store.read_connections"
        }
        "53200" => {
            ": the server is out of memory, or max_locks_per_transaction is too small for so many \
             partitions"
        }
        "40001" | "40P01" => ": another transaction was in the way, it is tried again",
        "55P03" => ": another transaction held a lock longer than store.lock_timeout",
        "57014" => ": it took longer than store.timeout",
        "57P01" => ": the server shuts down, or a new owner of the shard ended this session",
        "57P03" => ": the server starts up",
        "25P03" => ": this node was silent inside a transaction for store.idle_timeout",
        "25006" => {
            ": the server is a standby now; name all hosts in store.url, and the next connection \
             finds the primary"
        }
        "42501" => ": grant what is missing, docs/how-to/run-on-postgresql.md has the roles",
        "28P01" | "28000" => ": check user and password of store.url",
        "3D000" => ": create the database, docs/how-to/run-on-postgresql.md says how",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_the_server_is_told_with_its_way_out() {
        assert!(remedy(&SqlState::CONFIGURATION_LIMIT_EXCEEDED).contains("raise that limit"));
    }
}

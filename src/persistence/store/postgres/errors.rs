//! From what the server or the connection says to [`StoreError`].
//!
//! | when | what | answer |
//! |---|---|---|
//! | before COMMIT was sent | anything | `Failed`: a transaction that was not committed is rolled back, by us or by the end of its connection |
//! | … | nobody answers, or the server says that it starts, stops, or is full | `Unavailable`: the same, and waiting mends it |
//! | … | the server cut a statement at its time limit | `TooLong`: the same; waiting does not mend it |
//! | at COMMIT | the server says that it rolled back (class 40, class 23) | `Unavailable`, `Failed` |
//! | at COMMIT | anything else: connection lost, deadline, the server shutting down | `Unknown` |
//! | any time | data or index damaged (XX001, XX002), tables not as this build knows them (42P01, 42703) | `Invalid` |
//!
//! After every error but a plain one of a statement the session is thrown away.

use std::io::ErrorKind;

use tokio_postgres::Error;
use tokio_postgres::error::{Severity, SqlState};

use super::StoreError;

/// Why a step failed.
#[derive(Debug)]
pub(super) enum SessionError {
    /// The server or the connection said so.
    Postgres(Error),
    /// No answer within the deadline.
    TimedOut,
    /// The query that it was done for has ended.
    QueryEnded,
}

impl SessionError {
    /// The state that the server named.
    pub(super) fn sql_state(&self) -> Option<&SqlState> {
        match self {
            SessionError::Postgres(error) => error.code(),
            SessionError::TimedOut | SessionError::QueryEnded => None,
        }
    }

    /// Whether the session can go on after a rollback.
    pub(super) fn session_survives(&self) -> bool {
        let SessionError::Postgres(error) = self else { return false };
        let Some(said) = error.as_db_error() else { return false };
        let stale = *said.code() == SqlState::READ_ONLY_SQL_TRANSACTION
            || *said.code() == SqlState::FEATURE_NOT_SUPPORTED;
        said.parsed_severity() == Some(Severity::Error)
            && !said.code().code().starts_with("57P")
            && !stale
    }

    /// Whether it passes by itself. A password, a certificate or a database that is not there is no
    /// matter of time.
    fn is_transient(&self) -> bool {
        let SessionError::Postgres(error) = self else { return true };
        match error.code().map(SqlState::code) {
            // A limit of the server's configuration: it stays until a person raises it.
            Some("53400") => false,
            // Shutting down, starting up, crashed; too many connections; the connection broke;
            // another transaction was in the way.
            Some(state) => {
                ["57P", "53", "08", "40", "55P03"].iter().any(|class| state.starts_with(class))
            }
            None => error.is_closed() || is_connection_error(error),
        }
    }

    /// The answer of a transaction whose COMMIT was sent.
    pub(super) fn into_commit_error(self) -> StoreError {
        match self.sql_state().map(|state| &state.code()[..2]) {
            Some("40" | "23") => self.into(),
            _ => StoreError::Unknown(format!("postgres: COMMIT: {}", self.message())),
        }
    }

    fn message(&self) -> String {
        let SessionError::Postgres(error) = self else {
            return "no answer within store.timeout".to_owned();
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

/// Whether it is the connection that failed, and not what was said over it: a certificate that is
/// refused is `InvalidData`.
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

/// What a person can do about a state.
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
        "42501" => ": grant what is missing, docs/operations.md has the roles",
        "28P01" | "28000" => ": check user and password of store.url",
        "3D000" => ": create the database, docs/operations.md says how",
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

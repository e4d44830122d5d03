//! File descriptors: raises the limit, and caps client connections to what it allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, key};

/// Descriptors kept for log, store, archive and other nodes, which client connections
/// must not use up.
const RESERVE: u64 = 100;
/// Requested where the system sets no limit; common kernels refuse more.
const MAX_DESCRIPTORS: u64 = 1 << 20;

const KEY: &str = key!(server.max_connections);

/// Raises the soft limit of the process to the hard one, and lowers `server.max_connections` if
/// that is not enough.
pub(super) fn fit_connections(config: &Config) -> Config {
    let limit = raise();
    let wanted = config.server.max_connections;
    let connections = connections(wanted as u64, limit) as usize;
    if connections < wanted {
        tracing::warn!(
            wanted,
            connections,
            descriptors = limit,
            "{KEY} is lowered to what the limit of file descriptors is enough for: raise that \
             (ulimit -Hn, LimitNOFILE)"
        );
    }
    let mut fitted = config.clone();
    fitted.server.max_connections = connections;
    fitted
}

/// Returns the limit in force afterwards; None if unlimited.
fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let hard = maximum.unwrap_or(MAX_DESCRIPTORS);
    if current.is_some_and(|current| current < hard)
        && let Err(why) = setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum })
    {
        tracing::warn!(%why, current, hard, "the limit of file descriptors cannot be raised");
    }
    getrlimit(Resource::Nofile).current
}

/// How many client connections that many descriptors allow.
fn connections(wanted: u64, limit: Option<u64>) -> u64 {
    let Some(limit) = limit else { return wanted };
    // With fewer descriptors than the reserve, clients get half of them.
    wanted.min(limit.saturating_sub(RESERVE).max(limit / 2)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_a_reserve_of_descriptors() {
        for (wanted, limit, connections_at_most) in [
            (4096, None, 4096),
            (4096, Some(1 << 20), 4096),
            (4096, Some(1024), 924),
            (4096, Some(256), 156),
            (4096, Some(150), 75),
            (50, Some(256), 50),
            (4096, Some(1), 1),
        ] {
            assert_eq!(connections(wanted, limit), connections_at_most, "{limit:?}");
        }
    }

    #[test]
    fn the_soft_limit_is_raised() {
        raise();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert!(
            current.is_none_or(|current| maximum.unwrap_or(MAX_DESCRIPTORS) <= current),
            "{current:?} of {maximum:?}"
        );
    }
}

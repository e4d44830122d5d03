//! File descriptors: as many as the system gives, and no more connections than they are enough for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, key};

/// Kept for log, store, archive, other nodes and servers: connections of clients must not use them
/// up.
const RESERVE: u64 = 100;
/// What is asked for where the system says that there is no limit: more is refused by the usual
/// kernels.
const MAX_DESCRIPTORS: u64 = 1 << 20;

const KEY: &str = key!(server.max_connections);

/// Raises the soft limit of this process to the hard one, and fits `server.max_connections` to what
/// there is.
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

/// The limit that is in force then; none if there is none.
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

/// Connections of clients at so many descriptors.
fn connections(wanted: u64, limit: Option<u64>) -> u64 {
    let Some(limit) = limit else { return wanted };
    // Where there are so few that a reserve would leave nothing, clients have the lesser half.
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

//! The settings of a node's part in the mesh.

use std::time::Duration;

use crate::cluster::tls::MeshTls;
use crate::model::offset::LogId;

/// The secret that the nodes of one cluster share. Its `Debug` form does not show it.
#[derive(Clone)]
pub struct ClusterCookie(pub(super) String);

impl std::fmt::Debug for ClusterCookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie(…)")
    }
}

impl ClusterCookie {
    /// Anybody who records a handshake can test guesses offline, so a short secret can be found.
    pub const MIN_BYTES: usize = 32;

    /// Accepts a secret of at least [`ClusterCookie::MIN_BYTES`] bytes, after trimming white space.
    ///
    /// # Errors
    /// If it is shorter.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.len() {
            n if n < Self::MIN_BYTES => Err(format!(
                "the cookie has {n} bytes, at least {} are needed: `openssl rand -hex 32` makes \
                 one",
                Self::MIN_BYTES
            )),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

/// The settings of a node's part in the mesh.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// The log of this cluster; peers with another log are not asked.
    pub log: LogId,
    /// The node's name for people; need not be unique.
    pub name: String,
    /// `cluster.peers`: the addresses to dial, possibly including this node's own.
    pub peers: Vec<String>,
    pub cookie: ClusterCookie,
    /// TLS for every session; None for plain TCP.
    pub tls: Option<MeshTls>,
    pub heartbeat: Duration,
    pub dead_after: Duration,
    pub max_calls: usize,
    pub max_reads: usize,
}

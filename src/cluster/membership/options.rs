//! How a node takes part.

use std::time::Duration;

use crate::cluster::tls::MeshTls;
use crate::model::offset::LogId;

/// The secret that nodes of one cluster share.
#[derive(Clone)]
pub struct ClusterCookie(pub(super) String);

impl std::fmt::Debug for ClusterCookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie(…)")
    }
}

impl ClusterCookie {
    /// Fewer bytes could be guessed: the handshake lets whoever listens check guesses offline.
    pub const MIN_BYTES: usize = 32;

    /// A secret of at least [`ClusterCookie::MIN_BYTES`] bytes; white space around it is cut.
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

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// The log of its cluster.
    pub log: LogId,
    /// Its name, for people.
    pub name: String,
    /// `cluster.peers`: the addresses to dial; its own may be among them.
    pub peers: Vec<String>,
    /// The secret.
    pub cookie: ClusterCookie,
    /// TLS on every session, or none at all.
    pub tls: Option<MeshTls>,
    /// `cluster.heartbeat`.
    pub heartbeat: Duration,
    /// `cluster.dead_after`.
    pub dead_after: Duration,
    /// `cluster.max_calls`.
    pub max_calls: usize,
    /// `cluster.max_reads`.
    pub max_reads: usize,
}

//! Which node owns which shard, as far as this node has heard.
//!
//! The owner of a shard, for one query, is whoever has announced the epoch of the checkpoint in the query's snapshot: the store decides,
//! announcements only say where to ask. What is announced is up to a heartbeat old; a wrong guess costs an answer of `moved`.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::peer::Peer;
use crate::model::offset::{Epoch, ShardId};

/// Nodes that are remembered, those that are gone included.
pub const MAX_PEERS: usize = 128;

/// The peers.
#[derive(Default)]
pub struct Directory {
    peers: ArcSwap<Vec<Arc<Peer>>>,
    writing: Mutex<()>,
}

impl Directory {
    /// A peer that has a session now; an earlier life of the same name that is gone is forgotten.
    pub fn join(&self, peer: Arc<Peer>) {
        self.change(|peers| {
            peers.retain(|known| known.name != peer.name || !known.is_gone());
            if peers.len() >= MAX_PEERS {
                let at = peers.iter().position(|known| !known.answers()).unwrap_or(0);
                peers.remove(at);
            }
            peers.push(peer);
        });
    }

    /// All peers, those that are gone included.
    pub fn peers(&self) -> Arc<Vec<Arc<Peer>>> {
        self.peers.load_full()
    }

    /// Whom to ask for a shard: whoever announced the epoch, or else whoever announced the latest one.
    pub fn owner(peers: &[Arc<Peer>], shard: ShardId, epoch: Epoch) -> Option<&Arc<Peer>> {
        let announced = |peer: &Arc<Peer>| {
            let stand = *peer.announced()?.shards.get(&shard.0)?;
            Some(stand.from.checkpoint().epoch)
        };
        let known = peers.iter().filter_map(|peer| Some((announced(peer)?, peer)));
        let best = known.max_by_key(|(of, peer)| (*of == epoch, of.counter, peer.answers()));
        best.map(|(_, peer)| peer)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Peer>>)) {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peers = self.peers.load_full().to_vec();
        change(&mut peers);
        self.peers.store(Arc::new(peers));
    }
}

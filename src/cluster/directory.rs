//! Which node owns which shard, by the latest announcements.
//!
//! For a query, the owner of a shard is the node that has announced the epoch of the checkpoint in
//! the query's snapshot. The store decides; announcements only say where to ask. They are up to a
//! heartbeat old, and a wrong guess costs an answer of `moved`.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::peer::MeshPeer;
use crate::model::offset::{Epoch, ShardId};

/// Maximum number of peers remembered, including those that are gone.
pub const MAX_PEERS: usize = 128;

/// All peers that this node has met.
#[derive(Default)]
pub struct PeerDirectory {
    peers: ArcSwap<Vec<Arc<MeshPeer>>>,
    writing: Mutex<()>,
}

impl PeerDirectory {
    /// Adds a peer with a new session. Replaces an earlier life of the same name that is gone.
    pub fn join(&self, peer: Arc<MeshPeer>) {
        self.update(|peers| {
            peers.retain(|known| known.name != peer.name || !known.is_gone());
            if peers.len() >= MAX_PEERS {
                // Prefers to forget a peer that cannot be asked anyway.
                let at = peers.iter().position(|known| !known.is_available()).unwrap_or(0);
                peers.remove(at);
            }
            peers.push(peer);
        });
    }

    /// All peers, including those that are gone: what they owned last is still known.
    pub fn peers(&self) -> Arc<Vec<Arc<MeshPeer>>> {
        self.peers.load_full()
    }

    /// Whether an available peer has announced the shard.
    pub fn is_owned(&self, shard: ShardId) -> bool {
        let announces = |peer: &Arc<MeshPeer>| {
            peer.announcement().is_some_and(|announced| announced.shards.contains_key(&shard.0))
        };
        self.peers.load().iter().any(|peer| peer.is_available() && announces(peer))
    }

    /// The peer to ask for a shard: the one that announced the epoch, or else the latest epoch.
    pub fn owner(peers: &[Arc<MeshPeer>], shard: ShardId, epoch: Epoch) -> Option<&Arc<MeshPeer>> {
        let announced = |peer: &Arc<MeshPeer>| {
            let shard = *peer.announcement()?.shards.get(&shard.0)?;
            Some(shard.from.checkpoint().epoch)
        };
        let known = peers.iter().filter_map(|peer| Some((announced(peer)?, peer)));
        let best = known.max_by_key(|(of, peer)| (*of == epoch, of.counter, peer.is_available()));
        best.map(|(_, peer)| peer)
    }

    fn update(&self, change: impl FnOnce(&mut Vec<Arc<MeshPeer>>)) {
        // Serialises writers; readers only load the pointer.
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut peers = self.peers.load_full().to_vec();
        change(&mut peers);
        self.peers.store(Arc::new(peers));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ractor::{Actor, ActorProcessingErr, ActorRef};
    use serde_bytes::ByteBuf;

    use super::*;
    use crate::clock::SystemClock;
    use crate::cluster::endpoint::EndpointMessage;
    use crate::cluster::wire::{
        self, NodeAnnouncement, PeerReply, ShardAnnouncement, ShardCheckpoint, WireFreshness,
    };
    use crate::model::offset::LogId;

    const SHARD: ShardId = ShardId(3);

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, nonce: counter * 7 }
    }

    /// An endpoint that announces one shard, claimed that many times.
    struct Announces(u64);

    impl Actor for Announces {
        type Msg = EndpointMessage;
        type State = ();
        type Arguments = ();

        async fn pre_start(
            &self,
            _: ActorRef<EndpointMessage>,
            (): (),
        ) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(
            &self,
            _: ActorRef<EndpointMessage>,
            message: EndpointMessage,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            let EndpointMessage::Ask(_, reply) = message;
            let Epoch { counter, nonce } = epoch(self.0);
            let from =
                ShardCheckpoint { shard: SHARD.0, log: [7; 16], next: 0, epoch: (counter, nonce) };
            let shards = vec![ShardAnnouncement {
                from,
                reach: WireFreshness { age_ms: 0, behind: 0, recovering: false, stopped: false },
            }];
            let announcement =
                NodeAnnouncement { shards, stopped: vec![], windows: None, card: ByteBuf::new() };
            Ok(reply.send(wire::encode(&PeerReply::Beat(announcement))?)?)
        }
    }

    /// A peer that has not answered yet.
    async fn silent(name: &str, claims: u64) -> Arc<MeshPeer> {
        let (door, _) = Actor::spawn(None, Announces(claims), ()).await.expect("spawned");
        MeshPeer::new(name.to_owned(), door, Arc::new(SystemClock), 1)
    }

    async fn heard(name: &str, claims: u64) -> Arc<MeshPeer> {
        let peer = silent(name, claims).await;
        peer.heartbeat(Duration::from_secs(5)).await.expect("it is there");
        peer
    }

    fn owner(peers: &[&Arc<MeshPeer>], of: Epoch) -> Option<String> {
        let peers: Vec<_> = peers.iter().map(|peer| (*peer).clone()).collect();
        PeerDirectory::owner(&peers, SHARD, of).map(|peer| peer.name.clone())
    }

    #[tokio::test]
    async fn the_owner_is_whoever_announced_the_epoch_or_else_the_latest() {
        let (old, new) = (heard("old", 1).await, heard("new", 2).await);
        for peers in [[&old, &new], [&new, &old]] {
            assert_eq!(
                owner(&peers, epoch(1)).as_deref(),
                Some("old"),
                "the snapshot is of its time"
            );
            assert_eq!(owner(&peers, epoch(2)).as_deref(), Some("new"));
            assert_eq!(
                owner(&peers, epoch(3)).as_deref(),
                Some("new"),
                "nobody has announced it: the latest may know"
            );
            let rolled_back = Epoch { counter: 1, nonce: 0 };
            assert_eq!(
                owner(&peers, rolled_back).as_deref(),
                Some("new"),
                "a counter alone is not an epoch"
            );
        }
        assert_eq!(owner(&[&silent("mute", 2).await], epoch(2)), None, "it has announced nothing");
        let other: Vec<_> = vec![new];
        assert!(
            PeerDirectory::owner(&other, ShardId(4), epoch(2)).is_none(),
            "nobody has announced this shard"
        );
        let directory = PeerDirectory::default();
        assert!(!directory.is_owned(SHARD));
        directory.join(old.clone());
        assert!(directory.is_owned(SHARD) && !directory.is_owned(ShardId(4)));
        assert_eq!(old.check_log(LogId([8; 16])), Some(LogId([7; 16])));
        assert!(
            !old.is_available() && !directory.is_owned(SHARD),
            "another cluster's node is not asked"
        );
        assert_eq!(old.check_log(LogId([7; 16])), None);
        assert!(old.is_available() && directory.is_owned(SHARD));
        old.mark_gone();
        assert!(!directory.is_owned(SHARD), "it is gone");
    }

    #[tokio::test]
    async fn whoever_answers_comes_before_whoever_is_gone() {
        let (gone, here) = (heard("gone", 2).await, heard("here", 2).await);
        gone.mark_gone();
        for peers in [[&gone, &here], [&here, &gone]] {
            assert_eq!(owner(&peers, epoch(2)).as_deref(), Some("here"));
        }
        assert_eq!(
            owner(&[&gone], epoch(2)).as_deref(),
            Some("gone"),
            "its shards are missing by its name"
        );
    }

    #[tokio::test]
    async fn a_node_that_comes_back_replaces_its_former_life_and_no_other() {
        let directory = PeerDirectory::default();
        let lives = [heard("a", 1).await, heard("a", 2).await, heard("a", 3).await];
        lives[0].mark_gone();
        for peer in [&lives[0], &heard("b", 1).await, &lives[1]] {
            directory.join(peer.clone());
        }
        let names = || directory.peers().iter().map(|peer| peer.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(), ["b", "a"]);
        directory.join(lives[2].clone());
        assert_eq!(
            names(),
            ["b", "a", "a"],
            "two nodes of one name that both answer are both known"
        );
    }

    #[tokio::test]
    async fn the_number_of_peers_is_bounded_and_those_that_do_not_answer_go_first() {
        let directory = PeerDirectory::default();
        directory.join(heard("first", 1).await);
        let gone = heard("gone", 1).await;
        gone.mark_gone();
        directory.join(gone);
        for at in 2..=MAX_PEERS {
            directory.join(heard(&format!("node-{at}"), 1).await);
        }
        let peers = directory.peers();
        assert_eq!(
            (peers.len(), peers[0].name.as_str(), peers[1].name.as_str()),
            (MAX_PEERS, "first", "node-2")
        );
    }
}

//! Open connections: whose they are, what waits in them, and which gives way to a new one.
//!
//! What always holds: connections of nobody (no request on them has carried a valid key) have three
//! quarters of all places; a further one takes the place of the oldest of them, so that whoever has
//! a key comes in, and so does a look at `/healthz`. Of several tenants each has a quarter of the
//! places. An answer is taken, a little of it at least in every `server.write_timeout`, or it is
//! dropped; so is one whose key is not valid any more.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use axum::http::HeaderValue;
use hashbrown::HashMap;
use tokio::sync::Notify;

use super::error::ApiError;
use super::frame_tracker::FrameTracker;
use super::shares;
use crate::clock::Stopwatch;
use crate::model::share::{ShareLease, SharePool};
use crate::telemetry;

/// Bytes of an unfinished message that are not worth counting.
const SMALL_MESSAGE: u64 = 16 * 1024;
/// Memory of a message is reserved in steps of this.
const STEP: u64 = 64 * 1024;

/// Why a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DisconnectReason {
    /// A newer one needed its place.
    Evicted,
    /// Its answer was not taken in time.
    SlowReader,
    /// The key of its answer is not valid any more.
    KeyRevoked,
}

impl DisconnectReason {
    fn name(self) -> &'static str {
        match self {
            DisconnectReason::Evicted => "gave_way",
            DisconnectReason::SlowReader => "slow",
            DisconnectReason::KeyRevoked => "revoked",
        }
    }
}

/// Counts a connection that is cut.
pub(super) fn count_disconnect(why: DisconnectReason) {
    metrics::counter!(telemetry::CONNECTIONS_CUT, "reason" => why.name()).increment(1);
}

/// All connections of a server.
pub(super) struct ConnectionTable {
    max_anonymous: usize,
    max_per_address: usize,
    shares: Arc<SharePool>,
    open: Mutex<OpenConnections>,
}

#[derive(Default)]
struct OpenConnections {
    /// Oldest first; those that ended or became a tenant's are passed over.
    anonymous: VecDeque<Weak<ClientConnection>>,
    anonymous_count: usize,
    addresses: HashMap<IpAddr, usize>,
}

/// One connection.
pub struct ClientConnection {
    all: Arc<ConnectionTable>,
    address: IpAddr,
    /// Told once, if the connection has to give way.
    pub evict_notify: Notify,
    evicted: AtomicBool,
    /// Something waits to be written, and was not taken when it was tried last.
    pub stalled: AtomicBool,
    /// There was no memory for what came in.
    pub overloaded: AtomicBool,
    owner: Mutex<Option<ConnectionOwner>>,
    socket: Mutex<Option<IncomingMessage>>,
}

/// Whose it is.
struct ConnectionOwner {
    tenant: Arc<str>,
    authorization: Option<HeaderValue>,
    _place: ShareLease,
}

/// Of a WebSocket, what comes in.
struct IncomingMessage {
    frames: FrameTracker,
    began: Option<Stopwatch>,
    memory: ShareLease,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters and places: nothing is half done when a holder panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ConnectionTable {
    /// At most so many connections, and from one address; 0 is no limit of its own for addresses.
    pub(super) fn new(max: usize, max_per_address: usize, shares: Arc<SharePool>) -> Arc<Self> {
        Arc::new(Self {
            max_anonymous: (max - max / 4).max(1),
            max_per_address,
            shares,
            open: Mutex::default(),
        })
    }

    /// Takes a new connection, which is nobody's at first; another one of nobody gives way if there
    /// are too many. None if its address has too many.
    pub(super) fn open(self: &Arc<Self>, address: IpAddr) -> Option<Arc<ClientConnection>> {
        // Whatever is upgraded may be the last of its kind, and takes the lock when it is dropped.
        let mut looked_at = Vec::new();
        let mut open = lock(&self.open);
        let of_address = open.addresses.entry(address).or_insert(0);
        if self.max_per_address > 0 && *of_address >= self.max_per_address {
            return None;
        }
        *of_address += 1;
        let connection = Arc::new(ClientConnection {
            all: self.clone(),
            address,
            evict_notify: Notify::new(),
            evicted: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            overloaded: AtomicBool::new(false),
            owner: Mutex::new(None),
            socket: Mutex::new(None),
        });
        open.anonymous_count += 1;
        open.anonymous.push_back(Arc::downgrade(&connection));
        if open.anonymous_count > self.max_anonymous {
            open.evict_oldest(&mut looked_at);
        }
        if open.anonymous.len() > 4 * self.max_anonymous {
            open.anonymous.retain(|one| one.strong_count() > 0);
        }
        drop(open);
        Some(connection)
    }

    /// Asks the oldest connection of nobody, if there is one, to give way.
    pub(super) fn evict_one(&self) {
        let mut looked_at = Vec::new();
        lock(&self.open).evict_oldest(&mut looked_at);
    }
}

impl OpenConnections {
    fn evict_oldest(&mut self, looked_at: &mut Vec<Arc<ClientConnection>>) {
        while let Some(oldest) = self.anonymous.pop_front() {
            let Some(connection) = oldest.upgrade() else { continue };
            let nobodys = lock(&connection.owner).is_none();
            if nobodys {
                connection.evicted.store(true, Ordering::Relaxed);
                connection.evict_notify.notify_one();
            }
            looked_at.push(connection);
            if nobodys {
                return;
            }
        }
    }
}

impl ClientConnection {
    /// A request on it carried a valid key: from now on it is that tenant's.
    ///
    /// # Errors
    /// 429 if the tenant has its part of the connections, 503 if there are no more.
    pub fn set_owner(
        &self,
        tenant: &Arc<str>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), ApiError> {
        let mut owner = lock(&self.owner);
        match owner.as_mut() {
            Some(known) if known.tenant == *tenant => {
                if known.authorization.as_ref() != authorization {
                    known.authorization = authorization.cloned();
                }
                return Ok(());
            }
            _ => {}
        }
        // A proxy's connection serves tenants in turn: what it was before it is no longer.
        let was_nobodys = owner.take().is_none();
        let place = shares::reserve(&self.all.shares, tenant, 1);
        let taken = place.map(|place| {
            *owner = Some(ConnectionOwner {
                tenant: tenant.clone(),
                authorization: authorization.cloned(),
                _place: place,
            });
        });
        drop(owner);
        let mut open = lock(&self.all.open);
        match (was_nobodys, taken.is_ok()) {
            (true, true) => open.anonymous_count -= 1,
            (false, false) => open.anonymous_count += 1,
            _ => {}
        }
        taken
    }

    /// What the last request with a valid key sent as `Authorization`.
    pub fn authorization(&self) -> Option<HeaderValue> {
        lock(&self.owner).as_ref().and_then(|owner| owner.authorization.clone())
    }

    /// From now on it is a WebSocket, whose unfinished messages are counted in this.
    pub fn set_websocket(&self, memory: ShareLease) {
        *lock(&self.socket) =
            Some(IncomingMessage { frames: FrameTracker::default(), began: None, memory });
    }

    /// Bytes came in. Whether there was memory for them.
    pub fn track_received(&self, bytes: &[u8]) -> bool {
        let mut socket = lock(&self.socket);
        let Some(incoming) = socket.as_mut() else { return true };
        let before = incoming.frames.unfinished_bytes();
        incoming.frames.push(bytes);
        let Some(unfinished) = incoming.frames.unfinished_bytes() else {
            incoming.began = None;
            incoming.memory.shrink_to(0);
            return true;
        };
        if before.is_none_or(|before| unfinished < before) {
            incoming.began = Some(Stopwatch::start());
        }
        // The library holds it twice while it puts it together.
        let wanted =
            if unfinished > SMALL_MESSAGE { (2 * unfinished).next_multiple_of(STEP) } else { 0 };
        let held = incoming.memory.amount();
        let fits = wanted <= held || shares::grow(&mut incoming.memory, wanted - held).is_ok();
        self.overloaded.fetch_or(!fits, Ordering::Relaxed);
        fits
    }

    /// For how long a message of a WebSocket has been coming in.
    pub fn message_age(&self) -> Option<std::time::Duration> {
        lock(&self.socket).as_ref().and_then(|incoming| incoming.began.map(|began| began.elapsed()))
    }

    /// Whether its place is wanted.
    pub fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Whether an answer waits and the other side does not take it.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        let nobodys = lock(&self.owner).is_none();
        let mut open = lock(&self.all.open);
        open.anonymous_count -= usize::from(nobodys);
        if let Some(of_address) = open.addresses.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                open.addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn connections(max: usize, per_address: usize, one_tenant: bool) -> Arc<ConnectionTable> {
        let shares = SharePool::new(
            "server.max_connections",
            max as u64,
            Arc::new(AtomicBool::new(one_tenant)),
        );
        ConnectionTable::new(max, per_address, shares)
    }

    async fn gives_way(connection: &ClientConnection) -> bool {
        tokio::time::timeout(std::time::Duration::ZERO, connection.evict_notify.notified())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn the_oldest_of_nobody_gives_way_and_no_tenant_does() {
        let all = connections(8, 0, true);
        let mut open: Vec<_> = (0..6).map(|_| all.open(HERE).expect("room")).collect();
        open[0].set_owner(&"t".into(), None).expect("a place");
        open.push(all.open(HERE).expect("room"));
        for one in &open {
            assert!(!gives_way(one).await, "there is room for six of nobody");
        }
        open.push(all.open(HERE).expect("room"));
        assert!(!gives_way(&open[0]).await, "it is a tenant's");
        assert!(gives_way(&open[1]).await);
        drop(open.remove(1));
        let _more = all.open(HERE).expect("room");
        assert!(gives_way(&open[1]).await, "now this is the oldest");
        drop(open);
        assert_eq!(lock(&all.open).anonymous_count, 1);
    }

    #[test]
    fn an_address_and_a_tenant_have_their_part() {
        let all = connections(8, 3, false);
        let held: Vec<_> = (0..3).map(|_| all.open(HERE).expect("room")).collect();
        assert!(all.open(HERE).is_none());
        assert!(all.open(IpAddr::from([10, 0, 0, 1])).is_some(), "another address");
        assert!(held[..2].iter().all(|one| one.set_owner(&"a".into(), None).is_ok()));
        assert_eq!(held[2].set_owner(&"a".into(), None).map_err(|e| e.status.as_u16()), Err(429));
        assert_eq!(held[2].set_owner(&"b".into(), None), Ok(()));
        assert_eq!(
            held[1].set_owner(&"b".into(), None),
            Ok(()),
            "a proxy's connection serves tenants in turn"
        );
        assert_eq!(held[2].set_owner(&"a".into(), None), Ok(()));
        drop(held);
        assert!(all.open(HERE).is_some());
        assert_eq!(all.shares.usage("a").held, 0);
    }

    #[test]
    fn memory_of_a_message_is_reserved_as_it_comes_and_given_back_when_it_is_whole() {
        let all = connections(8, 0, true);
        let connection = all.open(HERE).expect("room");
        let memory =
            SharePool::new("accept.max_inflight", 1 << 20, Arc::new(AtomicBool::new(true)));
        assert!(connection.track_received(&[0xff; 100]), "no WebSocket yet");
        connection.set_websocket(memory.take(&"t".into(), 0).expect("nothing"));
        let mut message = vec![0x81, 0xff];
        message.extend(400_000_u64.to_be_bytes());
        message.extend(vec![0; 4 + 400_000]);
        assert!(connection.track_received(&message[..10_000]));
        assert_eq!((memory.usage("t").held, connection.message_age().is_some()), (0, true));
        assert!(connection.track_received(&message[10_000..300_000]));
        assert!((580_000..700_000).contains(&memory.usage("t").held), "{:?}", memory.usage("t"));
        assert!(connection.track_received(&message[300_000..]));
        assert_eq!((memory.usage("t").held, connection.message_age()), (0, None));
        let more = memory.take(&"u".into(), 900_000).expect("room");
        assert!(!connection.track_received(&message[..200_000]), "there is no memory for it");
        drop(more);
    }
}

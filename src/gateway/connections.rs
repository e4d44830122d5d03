//! Open connections: their owners, their unfinished messages, and which one to evict for a new one.
//!
//! Invariants: anonymous connections (no request on them has carried a valid key) use at most three
//! quarters of the slots. A further one evicts the oldest of them, so that clients with a key and
//! probes of `/healthz` always get in. With several tenants, each has a quarter of the slots. A
//! client that does not take some of its answer within every `server.write_timeout` is
//! disconnected, and so is one that stalls after its key was revoked.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use axum::http::HeaderValue;
use hashbrown::HashMap;
use tokio::sync::Notify;

use super::client_end::ClientEnd;
use super::error::ApiError;
use super::frame_tracker::FrameTracker;
use super::shares;
use crate::clock::Stopwatch;
use crate::model::share::{ShareLease, SharePool};
use crate::telemetry;

/// Unfinished messages up to this size are not counted.
const SMALL_MESSAGE: u64 = 16 * 1024;
/// Granularity of memory reservations for messages, in bytes.
const STEP: u64 = 64 * 1024;

/// Why the server cut a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DisconnectReason {
    /// A newer connection needed its slot.
    Evicted,
    /// The client did not take its answer in time.
    SlowReader,
    /// The key that the answer was made for is no longer valid.
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

/// Counts a connection that the server cut.
pub(super) fn count_disconnect(why: DisconnectReason) {
    metrics::counter!(telemetry::CONNECTIONS_CUT, "reason" => why.name()).increment(1);
}

/// The open connections of a server, with their limits.
pub(super) struct ConnectionTable {
    max_anonymous: usize,
    max_per_address: usize,
    shares: Arc<SharePool>,
    open: Mutex<OpenConnections>,
}

#[derive(Default)]
struct OpenConnections {
    /// Oldest first. Skips entries that have closed or got an owner since.
    anonymous: VecDeque<Weak<ClientConnection>>,
    anonymous_count: usize,
    addresses: HashMap<IpAddr, usize>,
}

/// State of one connection, shared by its socket and its requests.
pub struct ClientConnection {
    all: Arc<ConnectionTable>,
    address: IpAddr,
    /// Notified once, when the connection is evicted.
    pub evict_notify: Notify,
    evicted: AtomicBool,
    /// Set while output is pending that the last write could not deliver.
    pub stalled: AtomicBool,
    /// Set once a message could not be received for lack of memory.
    pub overloaded: AtomicBool,
    /// Whether the client has closed its side.
    pub(super) client_end: ClientEnd,
    owner: Mutex<Option<ConnectionOwner>>,
    socket: Mutex<Option<IncomingMessage>>,
}

/// The tenant whose key the last authenticated request carried.
struct ConnectionOwner {
    tenant: Arc<str>,
    authorization: Option<HeaderValue>,
    _slot: ShareLease,
}

/// The message that a WebSocket is receiving.
struct IncomingMessage {
    frames: FrameTracker,
    began: Option<Stopwatch>,
    memory: ShareLease,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data is counters and slots: a panicking holder leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ConnectionTable {
    /// Limits the connections in total and per address; `max_per_address` 0 means no limit.
    pub(super) fn new(max: usize, max_per_address: usize, shares: Arc<SharePool>) -> Arc<Self> {
        Arc::new(Self {
            max_anonymous: (max - max / 4).max(1),
            max_per_address,
            shares,
            open: Mutex::default(),
        })
    }

    /// Registers a new connection, anonymous at first. It evicts the oldest anonymous one if there
    /// are too many. `None` if its address has too many.
    pub(super) fn open(self: &Arc<Self>, address: IpAddr) -> Option<Arc<ClientConnection>> {
        // Outlives the lock: an upgraded reference may be the last one, and its drop takes the
        // lock.
        let mut upgraded = Vec::new();
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
            client_end: ClientEnd::default(),
            owner: Mutex::new(None),
            socket: Mutex::new(None),
        });
        open.anonymous_count += 1;
        open.anonymous.push_back(Arc::downgrade(&connection));
        if open.anonymous_count > self.max_anonymous {
            open.evict_oldest(&mut upgraded);
        }
        // Closed connections leave dead entries behind; purging at four times the limit is O(1)
        // amortised.
        if open.anonymous.len() > 4 * self.max_anonymous {
            open.anonymous.retain(|one| one.strong_count() > 0);
        }
        drop(open);
        Some(connection)
    }

    /// Evicts the oldest anonymous connection, if there is one.
    pub(super) fn evict_one(&self) {
        let mut upgraded = Vec::new();
        lock(&self.open).evict_oldest(&mut upgraded);
    }
}

impl OpenConnections {
    fn evict_oldest(&mut self, upgraded: &mut Vec<Arc<ClientConnection>>) {
        while let Some(oldest) = self.anonymous.pop_front() {
            let Some(connection) = oldest.upgrade() else { continue };
            let is_anonymous = lock(&connection.owner).is_none();
            if is_anonymous {
                // Marked before the wake-up: the socket checks the mark when it is dropped.
                connection.evicted.store(true, Ordering::Relaxed);
                connection.evict_notify.notify_one();
            }
            upgraded.push(connection);
            if is_anonymous {
                return;
            }
        }
    }
}

impl ClientConnection {
    /// Makes the connection the tenant's, after a request with a valid key.
    ///
    /// # Errors
    /// 429 if the tenant has its full share of connections, 503 if there are none left.
    pub fn set_owner(
        &self,
        tenant: &Arc<str>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(), ApiError> {
        let mut owner = lock(&self.owner);
        match owner.as_mut() {
            Some(known) if known.tenant == *tenant => {
                // This runs for every request, so the header is cloned only when it changes.
                if known.authorization.as_ref() != authorization {
                    known.authorization = authorization.cloned();
                }
                return Ok(());
            }
            _ => {}
        }
        // A proxy's connection serves tenants in turn, so the previous owner's slot is released.
        let was_anonymous = owner.take().is_none();
        let slot = shares::reserve(&self.all.shares, tenant, 1);
        let taken = slot.map(|slot| {
            *owner = Some(ConnectionOwner {
                tenant: tenant.clone(),
                authorization: authorization.cloned(),
                _slot: slot,
            });
        });
        // Never holds both locks here: `evict_oldest` takes them in the opposite order.
        drop(owner);
        let mut open = lock(&self.all.open);
        match (was_anonymous, taken.is_ok()) {
            (true, true) => open.anonymous_count -= 1,
            (false, false) => open.anonymous_count += 1,
            _ => {}
        }
        taken
    }

    /// `Authorization` of the last request with a valid key.
    pub fn authorization(&self) -> Option<HeaderValue> {
        lock(&self.owner).as_ref().and_then(|owner| owner.authorization.clone())
    }

    /// Marks the connection as a WebSocket; `memory` counts its unfinished messages.
    pub fn set_websocket(&self, memory: ShareLease) {
        *lock(&self.socket) =
            Some(IncomingMessage { frames: FrameTracker::default(), began: None, memory });
    }

    /// Tracks received bytes. Returns false if there is no memory for the message.
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
        // Fewer bytes than before: one message ended and the next began within these bytes.
        if before.is_none_or(|before| unfinished < before) {
            incoming.began = Some(Stopwatch::start());
        }
        // The WebSocket library holds a message twice while it assembles it.
        let wanted =
            if unfinished > SMALL_MESSAGE { (2 * unfinished).next_multiple_of(STEP) } else { 0 };
        let held = incoming.memory.amount();
        let fits = wanted <= held || shares::grow(&mut incoming.memory, wanted - held).is_ok();
        self.overloaded.fetch_or(!fits, Ordering::Relaxed);
        fits
    }

    /// How long the unfinished message has been arriving; `None` between messages.
    pub fn message_age(&self) -> Option<std::time::Duration> {
        lock(&self.socket).as_ref().and_then(|incoming| incoming.began.map(|began| began.elapsed()))
    }

    /// Whether the connection has to close for a newer one.
    pub fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Whether output is pending that the client does not take.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        let is_anonymous = lock(&self.owner).is_none();
        let mut open = lock(&self.all.open);
        open.anonymous_count -= usize::from(is_anonymous);
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

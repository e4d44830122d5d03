//! A TCP proxy between client and server that breaks connections on purpose: at random moments
//! derived from one seed, or after a given byte string.
// Each test binary uses a part of this file. Real sockets take real time.
#![allow(dead_code, clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rng::Rng;

/// What the proxy does to the traffic. Percentages are per forwarded chunk, in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProxyPlan {
    /// Percentage of client chunks that are dropped, with the connection cut: the server never sees
    /// them.
    pub cut_request: u64,
    /// Percentage of server chunks that are dropped, with the connection cut: the client never
    /// learns the outcome.
    pub cut_reply: u64,
    /// Closes new connections at once.
    pub refuse: bool,
    /// Forwards nothing, and closes nothing.
    pub stall: bool,
    /// Delay added to every chunk.
    pub delay: Duration,
    /// Forwards a client chunk that contains these bytes, then cuts the connection before the
    /// answer. Once.
    pub cut_after: Option<&'static [u8]>,
}

/// A running proxy; it ends with its handle.
pub struct Proxy {
    pub port: u16,
    shared: Arc<ProxyState>,
}

struct ProxyState {
    upstream: u16,
    plan: Mutex<(ProxyPlan, Rng)>,
    ended: AtomicBool,
    cut_requests: AtomicU64,
    cut_replies: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChunkFate {
    Pass,
    Cut,
    PassThenCut,
    Stall,
}

impl Proxy {
    /// Listens on a free loopback port and connects to `upstream` on loopback.
    pub fn start(upstream: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(ProxyState {
            upstream,
            plan: Mutex::new((ProxyPlan::default(), Rng(seed))),
            ended: AtomicBool::new(false),
            cut_requests: AtomicU64::new(0),
            cut_replies: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), false) = (client, accepting.plan().refuse) else { continue };
                if let Ok(server) = TcpStream::connect(("127.0.0.1", accepting.upstream)) {
                    accepting.join(client, server);
                }
            }
        });
        Self { port, shared }
    }

    /// Replaces the plan from now on.
    pub fn set(&self, plan: ProxyPlan) {
        self.shared.plan.lock().expect("no panic").0 = plan;
    }

    /// Number of requests and of replies cut so far.
    pub fn cuts(&self) -> (u64, u64) {
        (
            self.shared.cut_requests.load(Ordering::SeqCst),
            self.shared.cut_replies.load(Ordering::SeqCst),
        )
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl ProxyState {
    fn plan(&self) -> ProxyPlan {
        self.plan.lock().expect("no panic").0
    }

    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let mute = Arc::new(AtomicBool::new(false));
        for (from, to, request) in [(&client, &server, true), (&server, &client, false)] {
            let (from, to) =
                (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
            let (shared, mute) = (Arc::clone(self), Arc::clone(&mute));
            std::thread::spawn(move || shared.pump(from, to, request, &mute));
        }
    }

    fn fate(&self, chunk: &[u8], request: bool) -> ChunkFate {
        let mut guard = self.plan.lock().expect("no panic");
        let (plan, rng) = &mut *guard;
        if plan.stall {
            return ChunkFate::Stall;
        }
        if request
            && let Some(word) = plan.cut_after
            && chunk.windows(word.len()).any(|part| part == word)
        {
            plan.cut_after = None;
            return ChunkFate::PassThenCut;
        }
        let percent = if request { plan.cut_request } else { plan.cut_reply };
        if rng.chance(percent) { ChunkFate::Cut } else { ChunkFate::Pass }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, request: bool, mute: &AtomicBool) {
        let mut chunk = vec![0; 16 * 1024];
        loop {
            let length = match from.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            let mut fate = self.fate(&chunk[..length], request);
            while fate == ChunkFate::Stall && !self.ended.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
                fate = self.fate(&chunk[..length], request);
            }
            if fate == ChunkFate::PassThenCut {
                mute.store(true, Ordering::SeqCst);
                let _ = to.write_all(&chunk[..length]);
                self.cut_replies.fetch_add(1, Ordering::SeqCst);
                // Long enough for the server to act on the chunk.
                std::thread::sleep(Duration::from_millis(200));
                break;
            }
            if !request && mute.load(Ordering::SeqCst) {
                continue;
            }
            if fate == ChunkFate::Cut {
                let count = if request { &self.cut_requests } else { &self.cut_replies };
                count.fetch_add(1, Ordering::SeqCst);
                break;
            }
            std::thread::sleep(self.plan().delay);
            if to.write_all(&chunk[..length]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

//! What it means that a client closes its side of the connection.
//!
//! Many clients close it when they have sent a request, and wait for the answer (`nc -N`,
//! `shutdown(SHUT_WR)`); HTTP allows it. TCP says the same of a client that has ended. So:
//!
//! - Within a request, the request is broken off. Between two, the connection is closed.
//! - When a request is whole, its answer is made and sent. But a client that closed its side counts
//!   as gone `query.client_gone_after` later, and what it reads is ended then. A write is not.
//! - A reset is no end of one side: that client is gone at once.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

const OPEN: u8 = 0;
const HALF_CLOSED: u8 = 1;
const RESET: u8 = 2;

/// The client's side of one connection.
#[derive(Debug, Default)]
pub(super) struct ClientEnd {
    /// Whether somebody waits for the end, so that the socket has to look for it: the HTTP library
    /// does not while it waits for an answer.
    watched: AtomicBool,
    state: AtomicU8,
    changed: Notify,
}

impl ClientEnd {
    /// Whether the socket has to look for the end.
    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed) && self.state.load(Ordering::Relaxed) == OPEN
    }

    /// Notes that the client has closed its side.
    pub(super) fn set_half_closed(&self) {
        self.set(HALF_CLOSED);
    }

    /// Notes that the connection was reset.
    pub(super) fn set_reset(&self) {
        self.set(RESET);
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Waits until the client counts as gone: `after` it closed its side, or at a reset.
    pub(super) async fn gone(&self, after: Duration) {
        self.watched.store(true, Ordering::Relaxed);
        let _ends = Unwatch(self);
        while self.state.load(Ordering::Relaxed) == OPEN {
            self.changed.notified().await;
        }
        if self.state.load(Ordering::Relaxed) == HALF_CLOSED {
            tokio::time::sleep(after).await;
        }
    }
}

struct Unwatch<'a>(&'a ClientEnd);

impl Drop for Unwatch<'_> {
    fn drop(&mut self) {
        self.0.watched.store(false, Ordering::Relaxed);
    }
}

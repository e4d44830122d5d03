//! Limits what a connection may send before its peer has authenticated: kilobytes.
//!
//! ractor_cluster has a single frame limit, that of the largest answer. An unauthenticated peer
//! needs no more than its name and a digest, so a larger frame is held back unread until the
//! session is authenticated, or closed because it is late.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use tokio::io::{AsyncRead, ReadBuf};

/// Largest frame in bytes that an unauthenticated peer may send.
const MAX_FRAME: u64 = 16 << 10;
/// Total bytes that an unauthenticated peer may send.
const MAX_BYTES: usize = 64 << 10;
/// Bytes per read while the gate is closed.
const PIECE: usize = 2 << 10;

/// Closed until its session is authenticated.
#[derive(Debug, Default)]
struct AuthGate {
    open: AtomicBool,
    waiting: AtomicWaker,
}

/// The gates of all connections by the peer's address.
#[derive(Debug, Default)]
pub(super) struct AuthGates(Mutex<HashMap<String, Weak<AuthGate>>>);

impl AuthGates {
    /// Opens the gate of a session that has authenticated.
    pub(super) fn open(&self, address: &str) {
        let gate = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(address)
            .and_then(|gate| gate.upgrade());
        if let Some(gate) = gate {
            gate.open.store(true, Ordering::Release);
            gate.waiting.wake();
        }
    }

    /// Puts a connection behind a closed gate.
    pub(super) fn guard(
        &self,
        peer: String,
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl tokio::io::AsyncWrite + Send + Unpin + 'static,
    ) -> MeshConnection {
        let gate = Arc::new(AuthGate::default());
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections that ended unauthenticated leave their entries behind.
        gates.retain(|_, gate| gate.strong_count() > 0);
        gates.insert(peer.clone(), Arc::downgrade(&gate));
        drop(gates);
        let reader = GatedReader { inner: reader, gate, frame: FrameState::default(), taken: 0 };
        MeshConnection { peer, reader: Box::new(reader), writer: Box::new(writer) }
    }
}

/// A connection to another node, incoming or outgoing.
pub struct MeshConnection {
    /// The address of the other node.
    pub peer: String,
    reader: BoxRead,
    writer: BoxWrite,
}

impl ClusterBidiStream for MeshConnection {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (self.reader, self.writer)
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.peer.clone())
    }
}

/// Position in the frame format: a length of eight big-endian bytes, then that many bytes.
#[derive(Debug, Default)]
struct FrameState {
    length: [u8; 8],
    known: usize,
    left: u64,
}

impl FrameState {
    /// How many bytes may be read before the state must be checked again.
    fn wanted(&self) -> usize {
        match self.left {
            0 => self.length.len() - self.known,
            left => usize::try_from(left).unwrap_or(PIECE).min(PIECE),
        }
    }

    fn advance(&mut self, bytes: &[u8]) {
        if self.left > 0 {
            self.left -= bytes.len() as u64;
            return;
        }
        self.length[self.known..self.known + bytes.len()].copy_from_slice(bytes);
        self.known += bytes.len();
        if self.known == self.length.len() {
            (self.left, self.known) = (u64::from_be_bytes(self.length), 0);
        }
    }
}

struct GatedReader<R> {
    inner: R,
    gate: Arc<AuthGate>,
    frame: FrameState,
    taken: usize,
}

impl<R: AsyncRead + Unpin> AsyncRead for GatedReader<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.gate.open.load(Ordering::Acquire) {
            if this.frame.left > MAX_FRAME {
                this.gate.waiting.register(cx.waker());
                // Checked again after registering: `open` may have been called in between.
                if !this.gate.open.load(Ordering::Acquire) {
                    return Poll::Pending;
                }
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            if this.taken >= MAX_BYTES {
                return Poll::Ready(Err(io::Error::other(
                    "it has sent too much before it was authenticated",
                )));
            }
            let mut piece = [0; PIECE];
            let most = this.frame.wanted().min(buf.remaining());
            let mut read = ReadBuf::new(&mut piece[..most]);
            std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            this.frame.advance(read.filled());
            this.taken += read.filled().len();
            buf.put_slice(read.filled());
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(length: u64) -> Vec<u8> {
        [&length.to_be_bytes()[..], &vec![7; length as usize]].concat()
    }

    fn guarded(gates: &AuthGates) -> (tokio::io::DuplexStream, BoxRead) {
        let (theirs, ours) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(ours);
        (theirs, Box::new(gates.guard("a:1".to_owned(), reader, writer)).split().0)
    }

    #[tokio::test]
    async fn small_frames_pass_and_a_large_one_waits_until_the_gate_is_open() {
        let gates = AuthGates::default();
        let (mut theirs, mut ours) = guarded(&gates);
        let large = frame(MAX_FRAME + 1);
        for bytes in [&frame(100), &frame(0), &frame(MAX_FRAME), &large] {
            theirs.write_all(bytes).await.expect("sent");
        }
        let mut small = vec![0; 8 + 100 + 8 + 8 + MAX_FRAME as usize];
        ours.read_exact(&mut small).await.expect("they pass");
        assert_eq!(small, [frame(100), frame(0), frame(MAX_FRAME)].concat());
        // Only the length of the large frame is read.
        let mut head = [0; 8];
        ours.read_exact(&mut head).await.expect("its length");
        let mut rest = vec![0; large.len() - 8];
        let waits =
            tokio::time::timeout(Duration::from_millis(50), ours.read_exact(&mut rest)).await;
        assert!(waits.is_err() && rest.iter().all(|byte| *byte == 0), "nothing of it is read");
        gates.open("b:1");
        let waits =
            tokio::time::timeout(Duration::from_millis(50), ours.read_exact(&mut rest)).await;
        assert!(waits.is_err(), "another one's gate");
        let opening = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            gates.open("a:1");
        });
        ours.read_exact(&mut rest).await.expect("it is authenticated");
        opening.await.expect("opened");
        assert_eq!(rest, large[8..]);
        let more = frame(1 << 18);
        theirs.write_all(&more).await.expect("sent");
        let mut read = vec![0; more.len()];
        ours.read_exact(&mut read).await.expect("from now on, everything passes");
    }

    #[tokio::test]
    async fn many_small_frames_are_too_much_as_well() {
        let gates = AuthGates::default();
        let (mut theirs, mut ours) = guarded(&gates);
        for _ in 0..20 {
            theirs.write_all(&frame(MAX_FRAME)).await.expect("sent");
        }
        let (mut read, mut piece) = (0, [0; 4_096]);
        let ended = loop {
            match ours.read(&mut piece).await {
                Ok(bytes) => read += bytes,
                Err(error) => break error.to_string(),
            }
        };
        assert!(
            ended.contains("before it was authenticated") && read <= MAX_BYTES + PIECE,
            "{ended} after {read}"
        );
    }
}

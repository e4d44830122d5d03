//! A client's socket. It holds its connection permit for as long as it is open, upgraded or not,
//! and lingers on close while the client is still sending: closing a socket with unread bytes
//! resets it, and the client would lose the answer that says why.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use super::connections::ClientConnection;

/// How long to read and discard what a client still sends.
const LINGER: Duration = Duration::from_secs(5);
/// Longest pause of the client while lingering.
const LINGER_IDLE: Duration = Duration::from_secs(2);

/// A client's connection, and its permit.
pub(super) struct ClientSocket {
    /// `None` only while being dropped.
    stream: Option<TcpStream>,
    slot: Option<OwnedSemaphorePermit>,
    of: Arc<ClientConnection>,
    /// The client has closed its sending side, or is gone.
    ended: bool,
}

impl ClientSocket {
    /// Wraps an accepted connection that holds a permit.
    pub(super) fn new(
        stream: TcpStream,
        slot: OwnedSemaphorePermit,
        of: Arc<ClientConnection>,
    ) -> Self {
        Self { stream: Some(stream), slot: Some(slot), of, ended: false }
    }

    fn stream(&mut self) -> Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| Error::from(ErrorKind::NotConnected))
    }

    /// Notes the end of the client's side, or has the task woken by it. An end behind further
    /// requests is not seen.
    fn look_for_end(&mut self, cx: &mut Context<'_>) {
        let Some(stream) = &self.stream else { return };
        let mut byte = [0; 1];
        match stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Pending | Poll::Ready(Ok(1..)) => {}
            Poll::Ready(Ok(0)) => self.of.client_end.set_half_closed(),
            Poll::Ready(Err(_)) => self.of.client_end.set_reset(),
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(self.stream()?.poll_read(cx, buffer));
        // No bytes although there is room for some: the client has closed its sending side.
        self.ended |= read.is_err() || (buffer.filled().len() == before && buffer.remaining() > 0);
        Poll::Ready(read)
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.stream()?.poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(TcpStream::is_write_vectored)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        // The HTTP library flushes whenever it has nothing more to do, also while it waits for an
        // answer. It does not read then.
        if self.of.client_end.is_watched() {
            self.look_for_end(cx);
        }
        self.stream()?.poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        let (Some(stream), Ok(runtime)) = (self.stream.take(), Handle::try_current()) else {
            return;
        };
        // An evicted connection does not linger: another one waits for its permit.
        if !self.ended && !self.of.is_evicted() {
            runtime.spawn(linger(stream, self.slot.take()));
        }
    }
}

/// Closes the sending side, then reads until the client closes its own or the time is up.
async fn linger(mut stream: TcpStream, slot: Option<OwnedSemaphorePermit>) {
    let discard = async {
        let mut rest = vec![0; 16 * 1024];
        stream.shutdown().await?;
        while let Ok(read) = tokio::time::timeout(LINGER_IDLE, stream.read(&mut rest)).await {
            if read? == 0 {
                break;
            }
        }
        Result::Ok(())
    };
    // Errors do not matter here: the socket is closed either way.
    drop(tokio::time::timeout(LINGER, discard).await);
    drop((stream, slot));
}

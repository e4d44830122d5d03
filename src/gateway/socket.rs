//! A client's socket: it counts as a connection as long as it is open, upgraded or not, and it is
//! not closed over what its client is still sending. A close with unread bytes is a reset, and a
//! reset takes from the client the answer that says why.

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

/// How long what a client still sends is read and thrown away.
const LINGER: Duration = Duration::from_secs(5);
/// How long it may pause in that.
const LINGER_IDLE: Duration = Duration::from_secs(2);

/// A connection of a client, and its place among all of them.
pub(super) struct ClientSocket {
    /// None only while it is dropped.
    stream: Option<TcpStream>,
    slot: Option<OwnedSemaphorePermit>,
    of: Arc<ClientConnection>,
    /// The client has said that it sends nothing more, or is gone.
    ended: bool,
}

impl ClientSocket {
    /// In this place.
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
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(self.stream()?.poll_read(cx, buffer));
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
        // Whoever has to give way has no time to say goodbye: another one waits for the place.
        if !self.ended && !self.of.is_evicted() {
            runtime.spawn(linger(stream, self.slot.take()));
        }
    }
}

/// Says that nothing more comes, and reads on until the client says the same, for a moment.
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
    // Whatever came of it, the moment is over.
    drop(tokio::time::timeout(LINGER, discard).await);
    drop((stream, slot));
}

//! Cuts a connection whose client does not take what is sent, and tracks messages
//! while they come in.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::connections::{ClientConnection, DisconnectReason, count_disconnect};

/// Bytes that a client must take within the write timeout while output is pending.
const MIN_PROGRESS: usize = 16 * 1024;

/// A socket whose pending writes time out.
pub(super) struct WriteTimeout<S> {
    stream: S,
    connection: Arc<ClientConnection>,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    /// Bytes taken since the timer was set; `None` while no write is pending.
    taken: Option<usize>,
}

impl<S> WriteTimeout<S> {
    /// Wraps a socket; `patience` is the write timeout.
    pub(super) fn new(stream: S, connection: Arc<ClientConnection>, patience: Duration) -> Self {
        Self {
            stream,
            connection,
            timeout: patience,
            // Not armed yet: far away, but without overflowing the clock.
            timer: Box::pin(tokio::time::sleep(Duration::MAX / 4)),
            taken: None,
        }
    }

    /// Updates the stall timer after a write.
    fn on_write(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<Result<usize>>,
    ) -> Poll<Result<usize>> {
        match outcome {
            Poll::Ready(Ok(bytes)) => {
                if let Some(taken) = &mut self.taken {
                    *taken += bytes;
                    // Progress below the minimum does not reset the timer: a client that takes a
                    // byte a minute would hold its answer in memory for ever.
                    if *taken >= MIN_PROGRESS {
                        self.clear_stall();
                    }
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => {
                if self.taken.is_none() {
                    self.taken = Some(0);
                    self.timer.as_mut().reset(Instant::now() + self.timeout);
                    self.connection.stalled.store(true, Ordering::Relaxed);
                }
                // Polled even right after a reset, or the timer would not wake this task.
                ready!(self.timer.as_mut().poll(context));
                count_disconnect(DisconnectReason::SlowReader);
                Poll::Ready(Err(Error::new(
                    ErrorKind::TimedOut,
                    "the answer was not taken (server.write_timeout)",
                )))
            }
        }
    }

    fn clear_stall(&mut self) {
        self.taken = None;
        self.connection.stalled.store(false, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.connection.track_received(&buffer.filled()[before..]) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(Error::new(
            ErrorKind::OutOfMemory,
            "no memory for the message (accept.max_inflight)",
        )))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.on_write(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.on_write(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        // A caller flushes once its own write buffer is empty, so nothing is pending.
        self.clear_stall();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

//! The server: an accept loop with deadlines and a limit of connections, and an orderly end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use super::socket::Socket;
use super::{Gateway, routes};

/// How long an accept error (no file descriptors) is waited out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long open requests may take after the signal to stop; then their connection is cut.
const DRAIN: Duration = Duration::from_secs(8);
/// How long the cut connections may take to be gone.
const CUT: Duration = Duration::from_secs(1);

/// Serves until `stop` is true; then takes no more connections and lets open requests end.
pub async fn serve(gateway: Arc<Gateway>, listener: TcpListener, mut stop: watch::Receiver<bool>) -> Result<(), Infallible> {
    let slots = Arc::new(Semaphore::new(gateway.deps.limits.max_connections));
    let router = routes::router(gateway.clone());
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            // A dropped sender means the same as the signal.
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok(Some(socket)) => {
                let (router, stopping) = (router.clone(), gateway.stopping.subscribe());
                let head = gateway.deps.limits.header_timeout;
                tasks.spawn(connection(router, socket, head, stopping));
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Without a pause, running out of descriptors would spin.
                if tokio::time::timeout(ACCEPT_PAUSE, stop.wait_for(|stop| *stop)).await.is_ok() {
                    break;
                }
            }
        }
    }
    gateway.stopping.send_replace(true);
    tasks.close();
    if tokio::time::timeout(DRAIN + CUT, tasks.wait()).await.is_err() {
        tracing::warn!(open = tasks.len(), "connections are still open after they were cut");
    }
    Ok(())
}

/// Serves `router` until it is dropped; then connections end as at a stop, and the listener takes new ones for whoever is next.
pub(super) async fn hold(router: Router, listener: &TcpListener, max_connections: usize, head: Duration) -> Infallible {
    let slots = Arc::new(Semaphore::new(max_connections));
    // Dropped with the rest, which is the signal.
    let (_stop, stopping) = watch::channel(false);
    loop {
        match accept(listener, &slots).await {
            Ok(Some(socket)) => {
                tokio::spawn(connection(router.clone(), socket, head, stopping.clone()));
            }
            Ok(None) => std::future::pending().await,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> std::io::Result<Option<Socket>> {
    let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(None) };
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(Some(Socket::new(stream, slot)))
}

async fn connection(router: Router, socket: Socket, head: Duration, mut stopping: watch::Receiver<bool>) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { drop(stopping.wait_for(|stop| *stop).await) } => {
            connection.as_mut().graceful_shutdown();
            let Ok(ended) = tokio::time::timeout(DRAIN, connection).await else {
                tracing::warn!("a connection still open after the drain time is cut");
                return;
            };
            ended
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

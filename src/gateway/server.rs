//! The HTTP server: an accept loop with timeouts and a connection limit, and a graceful shutdown.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::connections::{ClientConnection, ConnectionTable, DisconnectReason, count_disconnect};
use super::error::{ApiError, count_error};
use super::socket::ClientSocket;
use super::write_timeout::WriteTimeout;
use super::{Gateway, routes};
use crate::config::{ServerConfig, key};
use crate::model::share::SharePool;

/// Pause after an accept error, such as running out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long open requests may take after the stop signal; then their connections are cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// How often a connection whose answer is not taken has its key checked again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Kernel send buffer per connection, in bytes; the kernel reserves twice as much. Left to itself,
/// it buffers megabytes for each client that does not read.
const SEND_BUFFER: usize = 128 * 1024;
/// Read buffer per connection, in bytes, and so the limit of pipelined requests.
const MAX_BUFFER: usize = 64 * 1024;
/// How long cut connections may take to close.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until `stop` is true, then accepts no more connections and drains open requests.
pub async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Infallible> {
    let config = &gateway.deps.config.server;
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let places = gateway.connections.clone();
    let router = routes::router(gateway.clone());
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            // A dropped sender counts as the stop signal.
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &slots, &places) => accepted,
        };
        match accepted {
            Ok(Some(accepted)) => {
                let (router, stopping) = (router.clone(), gateway.stopping.subscribe());
                let (gateway, patience) = (gateway.clone(), ClientTimeouts::of(config));
                tasks.spawn(async move {
                    connection(router, accepted, patience, stopping, Some(&gateway)).await
                });
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
    if tokio::time::timeout(DRAIN_TIMEOUT + CUT_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(open = tasks.len(), "connections are still open after they were cut");
    }
    Ok(())
}

/// Serves `router` until the future is dropped. Its connections then drain as at a stop, and the
/// listener is free for the next server.
pub(super) async fn serve_until_dropped(
    router: Router,
    listener: &TcpListener,
    max_connections: usize,
    head: Duration,
) -> Infallible {
    let slots = Arc::new(Semaphore::new(max_connections));
    let one_tenant = Arc::new(AtomicBool::new(true));
    let places = ConnectionTable::new(
        max_connections,
        0,
        SharePool::new(key!(server.max_connections), u64::MAX, one_tenant),
    );
    let patience = ClientTimeouts { head, write: head };
    // Dropped with this future, which signals the connections to stop.
    let (_stop, stopping) = watch::channel(false);
    loop {
        match accept(listener, &slots, &places).await {
            Ok(Some(accepted)) => {
                let (router, stopping) = (router.clone(), stopping.clone());
                tokio::spawn(async move {
                    connection(router, accepted, patience, stopping, None).await
                });
            }
            Ok(None) => std::future::pending().await,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Time limits for a client's request head and for taking an answer.
#[derive(Clone, Copy)]
struct ClientTimeouts {
    head: Duration,
    write: Duration,
}

impl ClientTimeouts {
    fn of(config: &ServerConfig) -> Self {
        Self { head: config.header_timeout, write: config.write_timeout }
    }
}

/// An accepted connection, with its entry in the table.
type AcceptedConnection = (ClientSocket, Arc<ClientConnection>);

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    places: &Arc<ConnectionTable>,
) -> std::io::Result<Option<AcceptedConnection>> {
    loop {
        let (stream, address) = listener.accept().await?;
        // Answers are written whole, so Nagle's algorithm would only delay them.
        stream.set_nodelay(true)?;
        socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER)?;
        // Accepts before it has a permit: only a waiting client is a reason to evict another one.
        let slot = match slots.clone().try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                // Without an anonymous connection to evict, this one waits until any other ends.
                places.evict_one();
                let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(None) };
                slot
            }
        };
        let Some(connection) = places.open(address.ip()) else {
            refuse(&stream);
            continue;
        };
        return Ok(Some((ClientSocket::new(stream, slot, connection.clone()), connection)));
    }
}

/// Answers a client whose address has too many connections, if the socket takes it at once.
fn refuse(stream: &TcpStream) {
    let message = "your address has too many connections (server.max_connections_per_address): \
                   close some, or retry";
    let error = ApiError::unavailable("too_many_connections", message, 1);
    count_error(error.code);
    let body = error.body();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: \
                application/json\r\nretry-after: 1\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    if let Err(error) = stream.try_write(answer.as_bytes()) {
        tracing::debug!(%error, "a refused connection was not told why");
    }
}

async fn connection(
    router: Router,
    (socket, of): AcceptedConnection,
    patience: ClientTimeouts,
    stopping: watch::Receiver<bool>,
    gateway: Option<&Arc<Gateway>>,
) {
    let socket = WriteTimeout::new(socket, of.clone(), patience.write);
    let requests = of.clone();
    let router = router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(requests.clone());
        request
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_buf_size(MAX_BUFFER)
        // What the end of the client's side means is for `client_end` to say.
        .half_close(true)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router))
        .with_upgrades();
    let mut connection = pin!(connection);
    // In a collection of one, which polls a future only after its own wake-up: otherwise every read
    // and write would also poll these timers and signals.
    let mut end = FuturesUnordered::from_iter([await_end(&of, gateway, stopping)]);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        Some(end) = end.next() => {
            if let ConnectionEnd::Disconnect(reason) = end {
                count_disconnect(reason);
                return;
            }
            connection.as_mut().graceful_shutdown();
            let Ok(ended) = tokio::time::timeout(DRAIN_TIMEOUT, connection).await else {
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

/// Why the server ends a connection.
enum ConnectionEnd {
    Disconnect(DisconnectReason),
    Stop,
}

/// Completes when the server must end the connection.
async fn await_end(
    connection: &ClientConnection,
    gateway: Option<&Arc<Gateway>>,
    mut stopping: watch::Receiver<bool>,
) -> ConnectionEnd {
    tokio::select! {
        reason = await_disconnect(connection, gateway) => ConnectionEnd::Disconnect(reason),
        // A dropped sender means the same as the signal.
        _ = stopping.wait_for(|stop| *stop) => ConnectionEnd::Stop,
    }
}

/// Completes when the connection is evicted, or its key is revoked while the client does not take
/// an answer.
async fn await_disconnect(
    connection: &ClientConnection,
    gateway: Option<&Arc<Gateway>>,
) -> DisconnectReason {
    loop {
        if tokio::time::timeout(CHECK_INTERVAL, connection.evict_notify.notified()).await.is_ok() {
            return DisconnectReason::Evicted;
        }
        let valid = |gateway: &Arc<Gateway>| {
            connection.authorization().is_none_or(|key| gateway.is_valid_key(&key))
        };
        if connection.is_stalled() && !gateway.is_none_or(valid) {
            return DisconnectReason::KeyRevoked;
        }
    }
}

//! Accepts and opens connections between nodes.
//!
//! ractor_cluster has a listener of its own, but it finishes each TLS handshake before it accepts
//! the next connection: one silent peer would keep all others out. Here every handshake has a task
//! and a deadline, and their number is limited.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use ractor_cluster::NodeServerMessage;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::handshake_limit::{AuthGates, MeshConnection};
use super::tls::MeshTls;

/// Concurrent handshakes. Clusters are smaller than that; further connections are closed at once.
const MAX_HANDSHAKES: usize = 64;
/// Back-off after an error of the listener itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until aborted, and hands those that pass the handshake
/// to the session server.
pub(super) async fn run(
    listener: Arc<TcpListener>,
    tls: Option<MeshTls>,
    gates: Arc<AuthGates>,
    server: ActorRef<NodeServerMessage>,
    handshake: Duration,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of another node");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Dropping the stream closes the connection.
        let Ok(permit) = handshakes.clone().try_acquire_owned() else { continue };
        let (tls, gates, server) = (tls.clone(), gates.clone(), server.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(handshake, accepted(stream, address, tls, &gates)).await {
                Ok(Ok(stream)) => {
                    let opened = NodeServerMessage::ConnectionOpenedExternal {
                        stream: Box::new(stream),
                        is_server: true,
                    };
                    #[expect(
                        clippy::let_underscore_must_use,
                        reason = "a server that is gone takes its sessions with it; the mesh \
                                  starts again"
                    )]
                    let _ = server.cast(opened);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%address, %error, "a connection of another node failed")
                }
                Err(_) => {
                    tracing::debug!(
                        %address,
                        "a connection of another node did not end its handshake in time"
                    );
                }
            }
            drop(permit);
        });
    }
}

async fn accepted(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<MeshTls>,
    gates: &AuthGates,
) -> std::io::Result<MeshConnection> {
    stream.set_nodelay(true)?;
    Ok(match tls {
        None => {
            let (reader, writer) = stream.into_split();
            gates.guard(peer.to_string(), reader, writer)
        }
        Some(tls) => {
            let (reader, writer) = tokio::io::split(tls.acceptor.accept(stream).await?);
            gates.guard(peer.to_string(), reader, writer)
        }
    })
}

/// Connects to another node. With TLS, its certificate must be for the host in `address`.
///
/// # Errors
/// If the address cannot be reached, or the TLS handshake fails.
pub(super) async fn connect(
    address: &str,
    tls: Option<&MeshTls>,
    gates: &AuthGates,
) -> Result<MeshConnection, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let peer = stream.peer_addr().map_err(|e| e.to_string())?.to_string();
    let Some(tls) = tls else {
        let (reader, writer) = stream.into_split();
        return Ok(gates.guard(peer, reader, writer));
    };
    let host = address
        .rsplit_once(':')
        .map_or(address, |(host, _)| host)
        .trim_matches(['[', ']'])
        .to_owned();
    let name =
        tokio_rustls::rustls::pki_types::ServerName::try_from(host).map_err(|e| e.to_string())?;
    let stream = tls.connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(gates.guard(peer, reader, writer))
}

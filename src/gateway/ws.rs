//! `GET /v1/ws`: events with acknowledgements in order, and subscriptions.
//!
//! At most `ws.window` messages are unacknowledged; beyond that the server stops reading. At
//! most `ws.max_subscriptions` updates are being queried or wait for the reader; beyond that no
//! query starts. A connection ends with a close frame that gives the reason, sent after all
//! pending acknowledgements, so that the client knows what is durable. Only a reader that does
//! not take its answers is cut at once (1013). A key that is revoked or expires ends a
//! connection within a second (1008).

mod close;
mod inbound;
mod message;
mod subscription;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, FuturesUnordered, SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::{mpsc, oneshot};

use self::close::{CloseReason, close_frame};
use self::inbound::{MAX_REQUEST, MessageAction, append, read};
use self::subscription::{
    OutgoingMessage, Subscription, SubscriptionUpdate, UnsentGuard, UpdateOutcome, failed_update,
};
use super::auth::Scope;
use super::codes::{GOING_AWAY, INTERNAL, POLICY, TRY_LATER, UNSUPPORTED};
use super::connections::ClientConnection;
use super::error::ApiError;
use super::{Gateway, extract, read_routes, shares};
use crate::clock::Stopwatch;
use crate::model::budget::QueryBudget;
use crate::query::service::QueryService;

/// Read buffer per connection, in bytes.
const READ_BUFFER: usize = 16 * 1024;
/// How often the age of an unfinished message is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Extra slots of the outgoing queue beyond the window.
const QUEUE_SLACK: usize = 32;
/// How long a client may take to answer a close frame, or to receive the last one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait for pending acknowledgements when the server closes a connection.
const LAST_ACKS_TIMEOUT: Duration = Duration::from_secs(5);
/// Subprotocol by which a browser sends a key, because a script cannot set headers on a WebSocket.
const BEARER: &str = "bearer";

struct WsSession {
    gateway: Arc<Gateway>,
    headers: HeaderMap,
    out: mpsc::Sender<OutgoingMessage>,
    unsent: Arc<()>,
    acks: FuturesOrdered<BoxFuture<'static, String>>,
    updates: FuturesUnordered<BoxFuture<'static, SubscriptionUpdate>>,
    subscriptions: HashMap<String, Subscription>,
    generation: u64,
    last_received: Stopwatch,
}

/// Upgrades a connection. The key needs the write or the read scope; each message then needs the
/// scope of what it asks for.
///
/// # Errors
/// 401 or 403 for the key; 400 or 426 if the request is no WebSocket upgrade.
pub async fn upgrade(
    State(gateway): State<Arc<Gateway>>,
    mut headers: HeaderMap,
    connection: Option<Extension<Arc<ClientConnection>>>,
    q: extract::QueryString,
    ws: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    key_from_protocol(&mut headers)?;
    let writer = gateway.tenant(&headers, Scope::Write);
    // A client without the write scope cannot send events, so its messages are small.
    let max =
        if writer.is_ok() { gateway.deps.config.ws.max_message.in_memory() } else { MAX_REQUEST };
    let tenant = writer.or_else(|_| gateway.tenant(&headers, Scope::Read))?;
    extract::checked_params(q, &[])?;
    // Authenticates first: strangers learn nothing about which paths take WebSockets.
    let ws = ws.map_err(|refused| {
        ApiError::new(refused.status(), "websocket_expected", refused.body_text())
    })?;
    let connection = connection.map(|Extension(connection)| connection);
    if let Some(connection) = &connection {
        connection.set_owner(&tenant, headers.get(header::AUTHORIZATION))?;
        // An empty reservation, which grows with the message that arrives.
        connection.set_websocket(shares::reserve(&gateway.shares.inflight, &tenant, 0)?);
    }
    let ws = ws
        // Echoes the name of the subprotocol, never the key next to it.
        .protocols([BEARER])
        .max_message_size(max)
        .max_frame_size(max)
        .read_buffer_size(READ_BUFFER);
    Ok(ws.on_upgrade(move |socket| run(gateway, headers, socket, connection)))
}

/// Moves a key from the second of two subprotocols, where a browser sends it, to
/// `Authorization`: `new WebSocket(url, ["bearer", KEY])`. Fails with 400 if the request also
/// has a key in `Authorization`.
fn key_from_protocol(headers: &mut HeaderMap) -> Result<(), ApiError> {
    let offered = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let offered: Vec<_> = offered.flat_map(|value| value.split(',')).map(str::trim).collect();
    let [BEARER, key] = offered[..] else { return Ok(()) };
    let Ok(bearer) = HeaderValue::from_str(&format!("Bearer {key}")) else { return Ok(()) };
    if headers.insert(header::AUTHORIZATION, bearer).is_some() {
        let message = "the key is there twice, in Authorization and in Sec-WebSocket-Protocol";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "header_repeated", message));
    }
    Ok(())
}

async fn run(
    gateway: Arc<Gateway>,
    headers: HeaderMap,
    socket: WebSocket,
    connection: Option<Arc<ClientConnection>>,
) {
    let config = gateway.deps.config.clone();
    let (sink, mut incoming) = socket.split();
    let (out, queue) = mpsc::channel(config.ws.window + QUEUE_SLACK);
    let (cut, cut_signal) = oneshot::channel();
    let mut writer = tokio::spawn(write(sink, queue, cut_signal, config.ws.idle_timeout));
    let mut stopping = gateway.stopping.subscribe();
    let mut tick = tokio::time::interval(config.ws.update_interval);
    // After a stall, catching up would query every subscription several times in a row.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut late = std::pin::pin!(message_timeout(connection.clone(), config.server.body_timeout));
    let mut session = WsSession {
        gateway,
        headers,
        out,
        unsent: Arc::new(()),
        acks: FuturesOrdered::new(),
        updates: FuturesUnordered::new(),
        subscriptions: HashMap::new(),
        generation: 0,
        last_received: Stopwatch::start(),
    };
    let overloaded = || connection.as_ref().is_some_and(|c| c.overloaded.load(Ordering::Relaxed));
    let end = loop {
        let step = tokio::select! {
            _ = &mut writer => return,
            () = async { drop(stopping.wait_for(|stop| *stop).await) } => {
                Err(CloseReason::by_server(GOING_AWAY, "the server stops"))
            }
            () = &mut late => Err(CloseReason::by_server(
                POLICY,
                "a message was not whole in time (server.body_timeout)",
            )),
            // A full window stops reading, so that TCP slows the client down.
            message = incoming.next(), if session.acks.len() < config.ws.window => match message {
                Some(Ok(message)) => session.on_message(message).await,
                // The socket failed the read because no memory was left for the message.
                Some(Err(_)) if overloaded() => Err(CloseReason::by_server(
                    TRY_LATER,
                    "there is no room for the message (accept.max_inflight)",
                )),
                Some(Err(error)) => Err(CloseReason::from_error(&error)),
                None => Err(CloseReason::Disconnected),
            },
            Some(ack) = session.acks.next() => session.send(Message::Text(ack.into()), None).await,
            Some(update) = session.updates.next() => session.on_update(update).await,
            _ = tick.tick() => session.on_tick().await,
        };
        if let Err(end) = step {
            break end;
        }
    };
    if matches!(end, CloseReason::ByClient) {
        // Reading on makes the library send its answer to the close frame.
        let answered = async { while incoming.next().await.is_some() {} };
        drop(tokio::time::timeout(CLOSE_TIMEOUT, answered).await);
    }
    // Kept alive until the writer has ended, because the writer polls the other half.
    let _cut = session.finish(end, cut).await;
    if let Err(error) = writer.await {
        tracing::error!(%error, "the writer of a WebSocket crashed");
    }
    await_close(&mut incoming).await;
}

/// Reads until the client answers the close frame or the timeout passes. Closing a socket with
/// unread bytes resets it, and the client would lose the close frame.
async fn await_close(incoming: &mut SplitStream<WebSocket>) {
    let answered = async { while let Some(Ok(_)) = incoming.next().await {} };
    drop(tokio::time::timeout(CLOSE_TIMEOUT, answered).await);
}

/// Completes once a message has been unfinished for longer than `limit`. Pings do
/// not reset the time.
async fn message_timeout(connection: Option<Arc<ClientConnection>>, limit: Duration) {
    let Some(connection) = connection else { return std::future::pending().await };
    while connection.message_age().is_none_or(|since| since <= limit) {
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Sends queued messages up to a close frame. If `cut` fires or a send times out, it sends only the
/// close frame for a slow reader.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<OutgoingMessage>,
    mut cut: oneshot::Receiver<()>,
    timeout: Duration,
) {
    loop {
        let (message, _unsent) = tokio::select! {
            Ok(()) = &mut cut => break,
            message = queue.recv() => match message { Some(message) => message, None => return },
        };
        let is_last = matches!(message, Message::Close(_));
        tokio::select! {
            Ok(()) = &mut cut => break,
            sent = tokio::time::timeout(timeout, sink.send(message)) => match sent {
                Ok(Ok(())) if !is_last => {}
                Ok(_) => return,
                Err(_) => break,
            },
        }
    }
    let frame = close_frame(TRY_LATER, "the reader is too slow");
    if tokio::time::timeout(CLOSE_TIMEOUT, sink.send(frame)).await.is_err() {
        tracing::debug!("a WebSocket was cut: its reader does not even take the close frame");
    }
}

impl WsSession {
    /// Waits for room in the queue, because a burst fills it faster than the writer is scheduled.
    /// Only a reader that stays stuck counts as too slow.
    async fn send(
        &mut self,
        message: Message,
        unsent: Option<UnsentGuard>,
    ) -> Result<(), CloseReason> {
        let timeout = self.gateway.deps.config.ws.idle_timeout;
        self.out.send_timeout((message, unsent), timeout).await.map_err(|_| CloseReason::TooSlow)
    }

    /// Sends the pending acknowledgements and the last messages. Nothing more is read, so no new
    /// ones arise. Returns `cut` unless it had to be used.
    async fn finish(
        mut self,
        end: CloseReason,
        cut: oneshot::Sender<()>,
    ) -> Option<oneshot::Sender<()>> {
        let (last, timeout) = match end {
            CloseReason::TooSlow => {
                #[expect(
                    clippy::let_underscore_must_use,
                    reason = "if the writer is gone already there is nobody to tell"
                )]
                let _ = cut.send(());
                return None;
            }
            CloseReason::ByClient | CloseReason::Disconnected => (vec![], None),
            CloseReason::ByServer(code, reason) => {
                (vec![close_frame(code, &reason)], Some(LAST_ACKS_TIMEOUT))
            }
            CloseReason::Refused(code, error) => {
                let why = format!("{}: {}", error.code, error.message);
                (vec![Message::Text(error.body().into()), close_frame(code, &why)], None)
            }
        };
        // Acknowledgements take as long as the log may, except if the server closes the connection.
        let timeout =
            timeout.unwrap_or(self.gateway.deps.config.gateway.append_timeout + CLOSE_TIMEOUT);
        let drained = async {
            while let Some(ack) = self.acks.next().await {
                // Also drained for a client that is gone: dropping the future would abandon an
                // append whose events were already read.
                if !last.is_empty() {
                    self.send(Message::Text(ack.into()), None).await?;
                }
            }
            Ok(())
        };
        let drained: Result<(), CloseReason> =
            tokio::time::timeout(timeout, drained).await.unwrap_or(Ok(()));
        for message in last {
            if drained.is_err() || self.send(message, None).await.is_err() {
                #[expect(
                    clippy::let_underscore_must_use,
                    reason = "if the writer is gone already there is nobody to tell"
                )]
                let _ = cut.send(());
                return None;
            }
        }
        Some(cut)
    }

    async fn on_message(&mut self, message: Message) -> Result<(), CloseReason> {
        self.last_received = Stopwatch::start();
        match message {
            Message::Text(text) => self.on_text(Bytes::from(text)).await,
            Message::Close(_) => Err(CloseReason::ByClient),
            Message::Binary(_) => {
                let error = ApiError::unreadable("a message is text, not binary");
                Err(CloseReason::Refused(UNSUPPORTED, error))
            }
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        }
    }

    /// Parses a message completely before the next, so that messages are appended in the order
    /// in which they arrive.
    async fn on_text(&mut self, text: Bytes) -> Result<(), CloseReason> {
        let (headers, bytes) = (self.headers.clone(), text.len());
        // Only decides whose turn it is. Without the write scope no message is large.
        let tenant = self.gateway.tenant(&self.headers, Scope::Write).unwrap_or_default();
        let asked = self
            .gateway
            .read_in_turn(&tenant, bytes, move |gateway| Ok(read(gateway, &headers, text)))
            .await;
        match asked.map_err(|error| CloseReason::ByServer(INTERNAL, error.message))?? {
            MessageAction::Append(seq, batch) => {
                let gateway = self.gateway.clone();
                self.acks.push_back(Box::pin(append(gateway, seq, *batch)));
                Ok(())
            }
            MessageAction::Answer(text) => {
                self.push_answer(text);
                Ok(())
            }
            MessageAction::Subscribe { name, query } => self.subscribe(name, query),
            MessageAction::Unsubscribe(name) => {
                if self.subscriptions.remove(&name).is_none() {
                    let message = format!("there is no subscription {name:.128}");
                    self.push_answer(
                        ApiError::new(StatusCode::NOT_FOUND, "no_such_subscription", message)
                            .body(),
                    );
                }
                Ok(())
            }
        }
    }

    /// Queues an answer behind the pending acknowledgements, where it counts toward the window.
    fn push_answer(&mut self, text: String) {
        self.acks.push_back(Box::pin(std::future::ready(text)));
    }

    fn subscribe(
        &mut self,
        name: String,
        query: Option<Vec<(String, String)>>,
    ) -> Result<(), CloseReason> {
        let max = self.gateway.deps.config.ws.max_subscriptions;
        if name.len() > 128 {
            return Err(CloseReason::by_server(
                POLICY,
                "the name of a subscription is at most 128 bytes",
            ));
        }
        if self.subscriptions.len() >= max && !self.subscriptions.contains_key(&name) {
            return Err(CloseReason::ByServer(
                POLICY,
                format!("at most {max} subscriptions (ws.max_subscriptions)"),
            ));
        }
        let Some(params) = query else {
            self.subscriptions.remove(&name);
            let error = ApiError::new(
                StatusCode::BAD_REQUEST,
                "query_invalid",
                "query is an object of strings",
            );
            self.push_answer(failed_update(&name, &error));
            return Ok(());
        };
        let tenant = self.gateway.tenant(&self.headers, Scope::Read);
        // A subscription of the same name releases its slot first.
        self.subscriptions.remove(&name);
        let _slot = match tenant {
            Ok(tenant) => Some(
                shares::reserve(&self.gateway.shares.subscriptions, &tenant, 1)
                    .map_err(|error| CloseReason::ByServer(TRY_LATER, error.message))?,
            ),
            // A missing scope is reported as an update, not as a close.
            Err(_) => None,
        };
        // Lets `on_update` drop an answer to the subscription that this one replaces.
        self.generation += 1;
        let subscription =
            Subscription { params, last: None, _slot, running: false, generation: self.generation };
        self.subscriptions.insert(name, subscription);
        self.start_updates()
    }

    fn start_updates(&mut self) -> Result<(), CloseReason> {
        let unsent = Arc::strong_count(&self.unsent) - 1;
        let room = self
            .gateway
            .deps
            .config
            .ws
            .max_subscriptions
            .saturating_sub(unsent + self.updates.len());
        for (name, subscription) in
            self.subscriptions.iter_mut().filter(|(_, s)| !s.running).take(room)
        {
            subscription.running = true;
            let (gateway, headers) = (self.gateway.clone(), self.headers.clone());
            let (name, generation, params) =
                (name.clone(), subscription.generation, subscription.params.clone());
            let now = gateway.deps.clock.now();
            self.updates.push(Box::pin(async move {
                let answer = match gateway.tenant(&headers, Scope::Read) {
                    Ok(tenant) => {
                        let (asker, name) = (tenant.clone(), name.clone());
                        let asked = move |queries: &dyn QueryService, budget: &QueryBudget| {
                            read_routes::update(queries, &tenant, (&name, &params), now, budget)
                        };
                        gateway.run_query(&asker, asked).await
                    }
                    Err(error) => Err(error),
                };
                (name, generation, answer)
            }));
        }
        Ok(())
    }

    async fn on_update(
        &mut self,
        (name, generation, answer): SubscriptionUpdate,
    ) -> Result<(), CloseReason> {
        let Some(subscription) =
            self.subscriptions.get_mut(&name).filter(|s| s.generation == generation)
        else {
            return Ok(());
        };
        subscription.running = false;
        let mut outcome = UpdateOutcome::Sent;
        let (update, hash) = match answer {
            // Overloaded: the next tick tries again.
            Err(error) if error.retry_after.is_some() => {
                UpdateOutcome::Delayed.count();
                return Ok(());
            }
            Err(error) => {
                outcome = UpdateOutcome::Failed;
                let update = failed_update(&name, &error);
                let hash = xxhash_rust::xxh3::xxh3_128(update.as_bytes());
                (update, hash)
            }
            Ok(answer) => answer,
        };
        if subscription.last == Some(hash) {
            UpdateOutcome::Unchanged.count();
            return Ok(());
        }
        subscription.last = Some(hash);
        let answers = &self.gateway.shares.answers;
        // Only large updates are worth reserving, and only a tenant with the read scope gets any.
        let held = match self.gateway.tenant(&self.headers, Scope::Read) {
            Ok(tenant) => shares::reserve(
                answers,
                &tenant,
                (update.len() as u64).min(answers.limits().per_tenant),
            )
            .map(Some),
            Err(_) => Ok(None),
        };
        let Ok(held) = held else {
            // No memory for it now: forgets the hash, so that the next tick sends it.
            subscription.last = None;
            UpdateOutcome::Delayed.count();
            return Ok(());
        };
        outcome.count();
        let unsent = (self.unsent.clone(), held);
        self.send(Message::Text(update.into()), Some(unsent)).await
    }

    async fn on_tick(&mut self) -> Result<(), CloseReason> {
        let idle = self.gateway.deps.config.ws.idle_timeout;
        if self.last_received.elapsed() > idle && self.acks.is_empty() {
            // With output pending, silence means that the client does not read; without, that it is
            // gone.
            let waits = Arc::strong_count(&self.unsent) > 1
                || self.out.capacity() < self.out.max_capacity();
            return Err(if waits {
                CloseReason::TooSlow
            } else {
                CloseReason::by_server(GOING_AWAY, "nothing was heard for ws.idle_timeout")
            });
        }
        // Checked on every tick, so that a revoked key loses the connection within a second.
        self.gateway
            .tenant(&self.headers, Scope::Write)
            .or_else(|_| self.gateway.tenant(&self.headers, Scope::Read))
            .map_err(|_| CloseReason::by_server(POLICY, "the key is not valid any more"))?;
        // The pong counts as received, and keeps a client that only listens from timing out.
        if self.last_received.elapsed() > idle / 3 {
            self.send(Message::Ping(Bytes::new()), None).await?;
        }
        self.start_updates()
    }
}

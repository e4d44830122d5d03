//! `GET /v1/ws`: events with acknowledgements in order, and subscriptions.
//!
//! At most `ws.window` messages are unacknowledged: beyond that nothing more is read. At most
//! `ws.max_subscriptions` answers are being looked up or wait for the reader: beyond that nothing
//! is looked up. A connection ends with a close frame that says why, after the acknowledgements
//! that are due: so a client knows what is durable. Only a reader that does not take its answers is
//! cut at once (1013); a key that is revoked or expires ends a connection within a second (1008).

mod message;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, FuturesUnordered, SplitSink};
use futures::{SinkExt, StreamExt};
use tokio::sync::{mpsc, oneshot};

use self::message::{ClientMessage, MessageError};
use super::auth::Scope;
use super::connections::ClientConnection;
use super::decode::BodyFormat;
use super::error::ApiError;
use super::{Gateway, extract, ingest, parse, read_routes, shares};
use crate::api::error::ErrorAnswer;
use crate::api::events::RefusedEvent;
use crate::clock::Stopwatch;
use crate::model::batch::ValidEvent;
use crate::model::budget::QueryBudget;
use crate::model::share::ShareLease;
use crate::query::service::QueryService;

const GOING_AWAY: u16 = 1001;
const PROTOCOL: u16 = 1002;
const UNSUPPORTED: u16 = 1003;
const NOT_UTF8: u16 = 1007;
const POLICY: u16 = 1008;
const TOO_LARGE: u16 = 1009;
const INTERNAL: u16 = 1011;
const TRY_LATER: u16 = 1013;
/// Bytes of a message that is no `events`.
const MAX_REQUEST: usize = 16 * 1024;
/// Bytes read ahead of a message.
const READ_BUFFER: usize = 16 * 1024;
/// How often an unfinished message is looked at.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Answers that may wait for a slow reader beyond the window.
const QUEUE_SLACK: usize = 32;
/// How long a client may take to answer a close frame, or to take the last one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long acknowledgements are waited for when the server stops.
const LAST_ACKS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest reason of a close frame, in bytes.
const MAX_REASON: usize = 123;
/// The subprotocol by which a browser sends a key: a script cannot set a header.
const BEARER: &str = "bearer";

struct Subscription {
    params: Vec<(String, String)>,
    /// A hash of the last answer: the answer itself may be large.
    last: Option<u128>,
    _place: Option<ShareLease>,
    running: bool,
    generation: u64,
}

/// What counts an update as unsent, and its bytes as not taken, until it is dropped.
type UnsentGuard = (Arc<()>, Option<ShareLease>);
/// A message, and with an update what counts it.
type OutgoingMessage = (Message, Option<UnsentGuard>);
/// An answer's subscription and its generation; the update, and a hash of what is worth one.
type SubscriptionUpdate = (String, u64, Result<(String, u128), ApiError>);

/// How a connection ends.
#[derive(Debug)]
enum CloseReason {
    /// The client closes it and is answered.
    ByClient,
    /// The client is gone.
    Disconnected,
    /// The reader is too slow: at once, whatever waits for it.
    TooSlow,
    /// With this code and reason, after the acknowledgements that are due.
    ByServer(u16, String),
    /// The same for what is no message, and first the error itself.
    Refused(u16, ApiError),
}

impl CloseReason {
    fn by_server(code: u16, reason: &str) -> Self {
        Self::ByServer(code, reason.to_owned())
    }

    /// Of a connection whose frames cannot be read any more. The library's kinds of error are not
    /// ours to name, their texts are.
    fn from_error(error: &axum::Error) -> Self {
        let why = error.to_string();
        let code = if why.contains("Space limit") {
            TOO_LARGE
        } else if why.contains("UTF-8") {
            NOT_UTF8
        } else if why.contains("WebSocket protocol") && !why.contains("without closing handshake") {
            PROTOCOL
        } else {
            return Self::Disconnected;
        };
        let code_name = if code == TOO_LARGE { "message_too_large" } else { "message_unreadable" };
        Self::Refused(code, ApiError::new(StatusCode::BAD_REQUEST, code_name, why))
    }
}

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

/// Upgrades a connection. The key needs the scope of whatever is then asked; one of write and read
/// at least.
///
/// # Errors
/// 401, 403; 400 or 426 if it is no WebSocket.
pub async fn upgrade(
    State(gateway): State<Arc<Gateway>>,
    mut headers: HeaderMap,
    connection: Option<Extension<Arc<ClientConnection>>>,
    q: extract::QueryString,
    ws: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    key_from_protocol(&mut headers)?;
    let writer = gateway.tenant(&headers, Scope::Write);
    // Without the right to send events, no message is large.
    let max =
        if writer.is_ok() { gateway.deps.config.ws.max_message.in_memory() } else { MAX_REQUEST };
    let tenant = writer.or_else(|_| gateway.tenant(&headers, Scope::Read))?;
    extract::checked_params(q, &[])?;
    // The key first: whether a path speaks WebSocket is nobody else's business.
    let ws = ws.map_err(|refused| {
        ApiError::new(refused.status(), "websocket_expected", refused.body_text())
    })?;
    let connection = connection.map(|Extension(connection)| connection);
    if let Some(connection) = &connection {
        connection.set_owner(&tenant, headers.get(header::AUTHORIZATION))?;
        connection.set_websocket(shares::reserve(&gateway.shares.inflight, &tenant, 0)?);
    }
    let ws = ws
        .protocols([BEARER])
        .max_message_size(max)
        .max_frame_size(max)
        .read_buffer_size(READ_BUFFER);
    Ok(ws.on_upgrade(move |socket| run(gateway, headers, socket, connection)))
}

/// Takes the key that a browser sends as the second of two subprotocols: `new WebSocket(url,
/// ["bearer", KEY])`.
///
/// # Errors
/// 400 if there is another key beside it.
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
    let (cut, was_cut) = oneshot::channel();
    let mut writer = tokio::spawn(write(sink, queue, was_cut, config.ws.idle_timeout));
    let mut stopping = gateway.stopping.subscribe();
    let mut tick = tokio::time::interval(config.ws.update_interval);
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
    let end = loop {
        let step = tokio::select! {
            _ = &mut writer => return,
            () = async { drop(stopping.wait_for(|stop| *stop).await) } => Err(CloseReason::by_server(GOING_AWAY, "the server stops")),
            () = &mut late => Err(CloseReason::by_server(POLICY, "a message was not whole in time (server.body_timeout)")),
            message = incoming.next(), if session.acks.len() < config.ws.window => match message {
                Some(Ok(message)) => session.on_message(message).await,
                Some(Err(_)) if connection.as_ref().is_some_and(|c| c.overloaded.load(Ordering::Relaxed)) => {
                    Err(CloseReason::by_server(TRY_LATER, "there is no room for the message (accept.max_inflight)"))
                }
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
        // Reading on is what sends the answer to a close frame.
        let answered = async { while incoming.next().await.is_some() {} };
        drop(tokio::time::timeout(CLOSE_TIMEOUT, answered).await);
    }
    // Kept until the writer has ended, which waits for it beside its queue.
    let _cut = session.finish(end, cut).await;
    if let Err(error) = writer.await {
        tracing::error!(%error, "the writer of a WebSocket crashed");
    }
    // Until the client has answered the close frame, or as long as it may take: what it still sends
    // would otherwise be answered with a reset, which takes the frame from it.
    let answered = async { while let Some(Ok(_)) = incoming.next().await {} };
    drop(tokio::time::timeout(CLOSE_TIMEOUT, answered).await);
}

/// Waits until a message that has begun is not whole in time. Pings in between do not help it.
async fn message_timeout(connection: Option<Arc<ClientConnection>>, limit: Duration) {
    let Some(connection) = connection else { return std::future::pending().await };
    while connection.message_age().is_none_or(|since| since <= limit) {
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Writes what is queued, up to a close frame. Whoever cuts it short says nothing more than that
/// the reader is too slow.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<OutgoingMessage>,
    mut cut: oneshot::Receiver<()>,
    patience: Duration,
) {
    loop {
        let (message, _unsent) = tokio::select! {
            Ok(()) = &mut cut => break,
            message = queue.recv() => match message { Some(message) => message, None => return },
        };
        let is_last = matches!(message, Message::Close(_));
        tokio::select! {
            Ok(()) = &mut cut => break,
            sent = tokio::time::timeout(patience, sink.send(message)) => match sent {
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

fn close_frame(code: u16, reason: &str) -> Message {
    let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
    Message::Close(Some(CloseFrame { code, reason: reason.to_owned().into() }))
}

fn nack(seq: u64, error: &ApiError) -> String {
    match error.retry_after {
        Some(seconds) => {
            serde_json::json!({"nack": seq, "retry_after_ms": seconds * 1000, "code": error.code})
                .to_string()
        }
        // Sending it again would not help: the error says why.
        None => {
            let error =
                serde_json::json!({"code": error.code, "message": error.message, "details": {}});
            serde_json::json!({"nack": seq, "final": true, "error": error}).to_string()
        }
    }
}

/// What a message asks for.
enum MessageAction {
    Append(u64, Box<EventBatch>),
    Answer(String),
    Subscribe { name: String, query: Option<Vec<(String, String)>> },
    Unsubscribe(String),
}

/// Events that were read, and what holds the memory of them.
struct EventBatch {
    tenant: Arc<str>,
    body: Bytes,
    events: (Vec<ValidEvent>, Vec<RefusedEvent>),
    reservation: ShareLease,
}

/// Reads a message.
fn read(gateway: &Gateway, headers: &HeaderMap, text: Bytes) -> Result<MessageAction, CloseReason> {
    let bytes = text.len();
    match message::read(&text) {
        Ok(incoming)
            if bytes > MAX_REQUEST && !matches!(incoming, ClientMessage::Events { .. }) =>
        {
            Err(CloseReason::by_server(POLICY, "a message without events is at most 16 KiB"))
        }
        Ok(ClientMessage::Events { seq, events }) => {
            Ok(match read_events(gateway, headers, text, events) {
                Ok(batch) => MessageAction::Append(seq, Box::new(batch)),
                Err(error) => MessageAction::Answer(nack(seq, &error)),
            })
        }
        Ok(ClientMessage::Subscribe { name, query }) => {
            Ok(MessageAction::Subscribe { name, query })
        }
        Ok(ClientMessage::Unsubscribe(name)) => Ok(MessageAction::Unsubscribe(name)),
        // What cannot be read is refused for good, and its neighbours are answered.
        Err(MessageError { seq: Some(seq), error }) => Ok(MessageAction::Answer(nack(seq, &error))),
        Err(MessageError { seq: None, error }) => Err(CloseReason::Refused(PROTOCOL, error)),
    }
}

fn read_events(
    gateway: &Gateway,
    headers: &HeaderMap,
    body: Bytes,
    events: Range<usize>,
) -> Result<EventBatch, ApiError> {
    let tenant = gateway.tenant(headers, Scope::Write)?;
    let reservation = shares::reserve(&gateway.shares.inflight, &tenant, body.len() as u64)?;
    let now = gateway.deps.clock.now();
    let (format, idempotency, default_metric) = (BodyFormat::Json, None, None);
    let request = ingest::IngestRequest {
        gateway,
        tenant: &tenant,
        format,
        idempotency,
        default_metric,
        now,
    };
    let ranges = parse::split_json_in(&body, events, gateway.deps.config.accept.max_events)?;
    let events = request.read_ranges(&body, ranges)?;
    Ok(EventBatch { tenant, body, events, reservation })
}

/// Appends events; what is said of them.
async fn append(gateway: Arc<Gateway>, seq: u64, batch: EventBatch) -> String {
    let EventBatch { tenant, body, events, reservation } = batch;
    let outcome = ingest::append(&gateway, tenant, body, events).await;
    drop(reservation);
    match outcome {
        Ok(o) => serde_json::json!({"ack": seq, "accepted": o.accepted, "rejected": o.rejected, "errors": o.errors}).to_string(),
        Err(error) => nack(seq, &error),
    }
}

impl WsSession {
    /// Waits for room, because a burst fills the queue faster than the writer is scheduled; only a
    /// reader that stays stuck is too slow.
    async fn send(
        &mut self,
        message: Message,
        unsent: Option<UnsentGuard>,
    ) -> Result<(), CloseReason> {
        let patience = self.gateway.deps.config.ws.idle_timeout;
        self.out.send_timeout((message, unsent), patience).await.map_err(|_| CloseReason::TooSlow)
    }

    /// Says what is still to be said. Nothing more is read, so nothing more becomes due. Unless the
    /// writer had to be cut short, what would do so comes back.
    async fn finish(
        mut self,
        end: CloseReason,
        cut: oneshot::Sender<()>,
    ) -> Option<oneshot::Sender<()>> {
        let (last, patience) = match end {
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
        // As long as the log may take, except where the server itself cannot wait.
        let patience =
            patience.unwrap_or(self.gateway.deps.config.gateway.append_timeout + CLOSE_TIMEOUT);
        let said = async {
            while let Some(ack) = self.acks.next().await {
                // Those of a client that is gone are waited for, too: what was read before it went
                // is appended.
                if !last.is_empty() {
                    self.send(Message::Text(ack.into()), None).await?;
                }
            }
            Ok(())
        };
        let said: Result<(), CloseReason> =
            tokio::time::timeout(patience, said).await.unwrap_or(Ok(()));
        for message in last {
            if said.is_err() || self.send(message, None).await.is_err() {
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

    /// A message is read to its end before the next one, so that what comes first is also appended
    /// first.
    async fn on_text(&mut self, text: Bytes) -> Result<(), CloseReason> {
        let (headers, bytes) = (self.headers.clone(), text.len());
        // Whose turn it is; without the right to send events no message is large.
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

    /// In the order of what was asked, and within the window.
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
        // One of the same name gives its place up first.
        self.subscriptions.remove(&name);
        let _place = match tenant {
            Ok(tenant) => Some(
                shares::reserve(&self.gateway.shares.subscriptions, &tenant, 1)
                    .map_err(|error| CloseReason::ByServer(TRY_LATER, error.message))?,
            ),
            // What it may not ask it is told as an update.
            Err(_) => None,
        };
        self.generation += 1;
        let subscription = Subscription {
            params,
            last: None,
            _place,
            running: false,
            generation: self.generation,
        };
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
        let (update, hash) = match answer {
            // Too busy to look: the next tick looks again.
            Err(error) if error.retry_after.is_some() => return Ok(()),
            Err(error) => {
                let update = failed_update(&name, &error);
                let hash = xxhash_rust::xxh3::xxh3_128(update.as_bytes());
                (update, hash)
            }
            Ok(answer) => answer,
        };
        if subscription.last == Some(hash) {
            return Ok(());
        }
        subscription.last = Some(hash);
        let answers = &self.gateway.shares.answers;
        // Only what is large is worth counting, and only who may read has anything that is.
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
            // No room for it now: the next tick asks again, as if it had not been answered.
            subscription.last = None;
            return Ok(());
        };
        let unsent = (self.unsent.clone(), held);
        self.send(Message::Text(update.into()), Some(unsent)).await
    }

    async fn on_tick(&mut self) -> Result<(), CloseReason> {
        let idle = self.gateway.deps.config.ws.idle_timeout;
        if self.last_received.elapsed() > idle && self.acks.is_empty() {
            // Silent because it does not read is too slow; silent though nothing waits for it is
            // gone.
            let waits = Arc::strong_count(&self.unsent) > 1
                || self.out.capacity() < self.out.max_capacity();
            return Err(if waits {
                CloseReason::TooSlow
            } else {
                CloseReason::by_server(GOING_AWAY, "nothing was heard for ws.idle_timeout")
            });
        }
        self.gateway
            .tenant(&self.headers, Scope::Write)
            .or_else(|_| self.gateway.tenant(&self.headers, Scope::Read))
            .map_err(|_| CloseReason::by_server(POLICY, "the key is not valid any more"))?;
        if self.last_received.elapsed() > idle / 3 {
            self.send(Message::Ping(Bytes::new()), None).await?;
        }
        self.start_updates()
    }
}

/// An error as an update of this subscription.
fn failed_update(name: &str, error: &ApiError) -> String {
    #[derive(serde::Serialize)]
    struct FailedUpdate<'a> {
        update: &'a str,
        #[serde(flatten)]
        error: ErrorAnswer,
    }
    let update = FailedUpdate { update: name, error: ErrorAnswer::new(error.code, &error.message) };
    // A plain struct always serialises.
    serde_json::to_string(&update).unwrap_or_default()
}

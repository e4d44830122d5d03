//! `GET /v1/ws`: events with acknowledgements in order, and subscriptions.
//!
//! At most `ws.window` messages are unacknowledged: beyond that nothing more is read. At most `ws.max_subscriptions` answers are being
//! looked up or wait for the reader: beyond that nothing is looked up. A reader that does not take its answers is closed
//! with 1013; a key that is revoked or expires closes the connection with 1008 within a second.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, FuturesUnordered, SplitSink};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::auth::Scope;
use super::decode::Format;
use super::error::ApiError;
use super::{Gateway, ingest, parse};
use crate::clock::Stopwatch;

const GOING_AWAY: u16 = 1001;
const PROTOCOL: u16 = 1002;
const POLICY: u16 = 1008;
const TRY_LATER: u16 = 1013;
/// Answers that may wait for a slow reader beyond the window.
const SLACK: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Incoming<'a> {
    seq: Option<u64>,
    #[serde(borrow)]
    events: Option<&'a RawValue>,
    subscribe: Option<String>,
    query: Option<HashMap<String, String>>,
    unsubscribe: Option<String>,
}

struct Subscription {
    params: Vec<(String, String)>,
    last: Option<String>,
    running: bool,
    generation: u64,
}

/// A message, and with an update what counts it as unsent until it is dropped.
type Outgoing = (Message, Option<Arc<()>>);
type Update = (String, u64, Result<String, ApiError>);

struct Session {
    gateway: Arc<Gateway>,
    headers: HeaderMap,
    out: mpsc::Sender<Outgoing>,
    unsent: Arc<()>,
    acks: FuturesOrdered<BoxFuture<'static, String>>,
    updates: FuturesUnordered<BoxFuture<'static, Update>>,
    subscriptions: HashMap<String, Subscription>,
    generation: u64,
    heard: Stopwatch,
}

/// Upgrades a connection. The key needs the scope of whatever is then asked; one of write and read at least.
///
/// # Errors
/// 401, 403; 400 or 426 if it is no WebSocket.
pub async fn upgrade(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    ws: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    gateway.tenant(&headers, Scope::Write).or_else(|_| gateway.tenant(&headers, Scope::Read))?;
    // The key first: whether a path speaks WebSocket is nobody else's business.
    let ws = ws.map_err(|refused| ApiError::new(refused.status(), "websocket_expected", refused.body_text()))?;
    let max = gateway.deps.limits.ws_max_message_bytes;
    Ok(ws.max_message_size(max).max_frame_size(max).on_upgrade(move |socket| run(gateway, headers, socket)))
}

async fn run(gateway: Arc<Gateway>, headers: HeaderMap, socket: WebSocket) {
    let limits = gateway.deps.limits.clone();
    let (sink, mut incoming) = socket.split();
    let (out, queue) = mpsc::channel(limits.ws_window + SLACK);
    let (close, closed) = oneshot::channel();
    let mut writer = tokio::spawn(write(sink, queue, closed, limits.ws_idle_timeout));
    let mut stopping = gateway.stopping.subscribe();
    let mut tick = tokio::time::interval(limits.ws_update_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut session = Session {
        gateway,
        headers,
        out,
        unsent: Arc::new(()),
        acks: FuturesOrdered::new(),
        updates: FuturesUnordered::new(),
        subscriptions: HashMap::new(),
        generation: 0,
        heard: Stopwatch::start(),
    };
    let code = loop {
        let step = tokio::select! {
            _ = &mut writer => return,
            () = async { drop(stopping.wait_for(|stop| *stop).await) } => Err(GOING_AWAY),
            message = incoming.next(), if session.acks.len() < limits.ws_window => match message {
                Some(Ok(message)) => session.on_message(message),
                Some(Err(_)) | None => Err(PROTOCOL),
            },
            Some(ack) = session.acks.next() => session.send(Message::Text(ack.into()), None).await,
            Some(update) = session.updates.next() => session.on_update(update).await,
            _ = tick.tick() => session.on_tick().await,
        };
        if let Err(code) = step {
            break code;
        }
    };
    // If the writer is gone already there is nobody to tell.
    let _ = close.send(code);
    if let Err(error) = writer.await {
        tracing::error!(%error, "the writer of a WebSocket crashed");
    }
}

async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<Outgoing>,
    mut closed: oneshot::Receiver<u16>,
    patience: std::time::Duration,
) {
    let code = loop {
        let (message, _unsent) = tokio::select! {
            code = &mut closed => break code.unwrap_or(GOING_AWAY),
            message = queue.recv() => match message { Some(message) => message, None => break GOING_AWAY },
        };
        tokio::select! {
            code = &mut closed => break code.unwrap_or(GOING_AWAY),
            sent = tokio::time::timeout(patience, sink.send(message)) => match sent {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => break TRY_LATER,
            },
        }
    };
    let frame = Message::Close(Some(CloseFrame { code, reason: "".into() }));
    if tokio::time::timeout(std::time::Duration::from_secs(1), sink.send(frame)).await.is_err() {
        tracing::debug!(code, "a WebSocket was cut: its reader does not even take the close frame");
    }
}

fn nack(seq: u64, error: &ApiError) -> String {
    match error.retry_after {
        Some(seconds) => serde_json::json!({"nack": seq, "retry_after_ms": seconds * 1000, "code": error.code}).to_string(),
        // Sending it again would not help: the error says why.
        None => {
            serde_json::json!({"nack": seq, "error": {"code": error.code, "message": error.message, "details": {}}}).to_string()
        }
    }
}

impl Session {
    /// Waits for room, because a burst fills the queue faster than the writer is scheduled; only a reader that stays stuck is too slow.
    async fn send(&mut self, message: Message, unsent: Option<Arc<()>>) -> Result<(), u16> {
        let patience = self.gateway.deps.limits.ws_idle_timeout;
        self.out.send_timeout((message, unsent), patience).await.map_err(|_| TRY_LATER)
    }

    fn on_message(&mut self, message: Message) -> Result<(), u16> {
        self.heard = Stopwatch::start();
        match message {
            Message::Text(text) => self.on_text(Bytes::copy_from_slice(text.as_bytes())),
            Message::Close(_) | Message::Binary(_) => Err(PROTOCOL),
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        }
    }

    fn on_text(&mut self, body: Bytes) -> Result<(), u16> {
        let Ok(text) = std::str::from_utf8(&body) else { return Err(PROTOCOL) };
        match serde_json::from_str::<Incoming<'_>>(text) {
            Ok(Incoming { seq: Some(seq), events: Some(events), .. }) => {
                let ack = self.events(seq, &body, text, events);
                self.acks.push_back(ack);
                Ok(())
            }
            Ok(Incoming { subscribe: Some(name), query, .. }) => self.subscribe(name, query.unwrap_or_default()),
            Ok(Incoming { unsubscribe: Some(name), .. }) => {
                self.subscriptions.remove(&name);
                Ok(())
            }
            _ => Err(PROTOCOL),
        }
    }

    fn events(&self, seq: u64, body: &Bytes, text: &str, events: &RawValue) -> BoxFuture<'static, String> {
        let start = events.get().as_ptr() as usize - text.as_ptr() as usize;
        let part = body.slice(start..start + events.get().len());
        let gateway = self.gateway.clone();
        let read = gateway.tenant(&self.headers, Scope::Write).and_then(|tenant| {
            let reservation = gateway.admission.reserve(part.len())?;
            let now = gateway.deps.clock.now();
            let request = ingest::Request {
                gateway: &gateway,
                tenant: &tenant,
                format: Format::Json,
                idempotency: None,
                default_metric: None,
                now,
            };
            let read = parse::split_json(events.get(), gateway.deps.limits.max_events)?;
            Ok((request.read_ranges(&part, read)?, tenant.clone(), reservation))
        });
        let (read, tenant, reservation) = match read {
            Ok(read) => read,
            Err(error) => return Box::pin(std::future::ready(nack(seq, &error))),
        };
        Box::pin(async move {
            let outcome = ingest::append(&gateway, tenant, part, read).await;
            drop(reservation);
            match outcome {
                Ok(o) => serde_json::json!({"ack": seq, "accepted": o.accepted, "rejected": o.rejected, "errors": o.errors})
                    .to_string(),
                Err(error) => nack(seq, &error),
            }
        })
    }

    fn subscribe(&mut self, name: String, query: HashMap<String, String>) -> Result<(), u16> {
        let full = self.subscriptions.len() >= self.gateway.deps.limits.ws_max_subscriptions;
        if name.len() > 128 || (full && !self.subscriptions.contains_key(&name)) {
            return Err(POLICY);
        }
        self.generation += 1;
        let params = query.into_iter().collect();
        let subscription = Subscription { params, last: None, running: false, generation: self.generation };
        self.subscriptions.insert(name, subscription);
        self.ask()
    }

    fn ask(&mut self) -> Result<(), u16> {
        let unsent = Arc::strong_count(&self.unsent) - 1;
        let room = self.gateway.deps.limits.ws_max_subscriptions.saturating_sub(unsent + self.updates.len());
        for (name, subscription) in self.subscriptions.iter_mut().filter(|(_, s)| !s.running).take(room) {
            subscription.running = true;
            let (gateway, headers) = (self.gateway.clone(), self.headers.clone());
            let (name, generation, params) = (name.clone(), subscription.generation, subscription.params.clone());
            self.updates.push(Box::pin(async move {
                let answer = match gateway.tenant(&headers, Scope::Read) {
                    Ok(tenant) => gateway.ask(move |queries| queries.query(&tenant, &params)).await,
                    Err(error) => Err(error),
                };
                (name, generation, answer)
            }));
        }
        Ok(())
    }

    async fn on_update(&mut self, (name, generation, answer): Update) -> Result<(), u16> {
        let Some(subscription) = self.subscriptions.get_mut(&name).filter(|s| s.generation == generation) else { return Ok(()) };
        subscription.running = false;
        let (key, rest) = match answer {
            // Too busy to look: the next tick looks again.
            Err(error) if error.retry_after.is_some() => return Ok(()),
            Err(error) => (error.body(), error.body()),
            Ok(body) => (substance(&body), body),
        };
        if subscription.last.as_ref() == Some(&key) {
            return Ok(());
        }
        subscription.last = Some(key);
        let Some(fields) = rest.trim_start().strip_prefix('{') else { return Err(PROTOCOL) };
        let update = format!("{{\"update\":{},{fields}", serde_json::Value::from(name));
        let unsent = self.unsent.clone();
        self.send(Message::Text(update.into()), Some(unsent)).await
    }

    async fn on_tick(&mut self) -> Result<(), u16> {
        let idle = self.gateway.deps.limits.ws_idle_timeout;
        if self.heard.elapsed() > idle && self.acks.is_empty() {
            // Silent because it does not read is too slow; silent though nothing waits for it is gone.
            let waits = Arc::strong_count(&self.unsent) > 1 || self.out.capacity() < self.out.max_capacity();
            return Err(if waits { TRY_LATER } else { GOING_AWAY });
        }
        self.gateway
            .tenant(&self.headers, Scope::Write)
            .or_else(|_| self.gateway.tenant(&self.headers, Scope::Read))
            .map_err(|_| POLICY)?;
        if self.heard.elapsed() > idle / 3 {
            self.send(Message::Ping(Bytes::new()), None).await?;
        }
        self.ask()
    }
}

/// An answer without what moves by itself (`as_of`): only a change of the rest is worth an update.
fn substance(body: &str) -> String {
    let Ok(mut answer) = serde_json::from_str::<std::collections::BTreeMap<String, Box<RawValue>>>(body) else {
        return body.to_owned();
    };
    #[derive(Deserialize)]
    struct Partial {
        partial: bool,
    }
    let partial =
        answer.remove("completeness").and_then(|c| serde_json::from_str::<Partial>(c.get()).ok()).is_some_and(|c| c.partial);
    let fields: Vec<_> = answer.iter().map(|(k, v)| format!("{k}={}", v.get())).collect();
    format!("{partial}{}", fields.join(";"))
}

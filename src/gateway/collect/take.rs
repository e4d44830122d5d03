//! Takes the events of one request: whose it is, its body, its events, the log.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use bytes::Bytes;

use super::super::auth::{Scope, mask_key};
use super::super::beacon;
use super::super::connections::ClientConnection;
use super::super::decode::{self, BodyFormat, BodyReservation, Sniffing};
use super::super::error::ApiError;
use super::super::extract::{QueryString, checked_params, idempotency_of};
use super::super::ingest::{self, IngestRequest};
use super::super::parse::{self, EventFields, NumberField, TextField, TimeField};
use super::super::{Gateway, shares};
use super::form;
use crate::api::events::{IngestAnswer, RefusedEvent};
use crate::collect::{
    Form, MappedEvent, MappedValue, Mapping, SentEvent, SentRequest, Source, SplitError,
    binary_event, header_text,
};
use crate::model::batch::ValidEvent;
use crate::telemetry;

/// What became of an event that is in the log.
const ACCEPTED: &str = "accepted";

/// Where a request may carry its key.
#[derive(Debug, Clone)]
pub(super) enum KeyPlace {
    /// `Authorization`.
    Header,
    /// `Authorization`, or else a member of the body.
    HeaderOrBody,
    /// A parameter, or else `Authorization`.
    Parameter(Option<String>),
}

/// How a request is to be taken.
pub(super) struct Delivery {
    pub(super) form: Form,
    pub(super) key: KeyPlace,
    /// Parameters, of which there may be none; `None` if they do not matter.
    pub(super) params: Option<QueryString>,
    /// When the client says that it sent the request, if a header says so.
    pub(super) sent_at: Option<i64>,
    /// Whether the attributes of a CloudEvent are headers.
    pub(super) is_binary: bool,
    /// Whether the ids of accepted events are wanted.
    pub(super) wants_ids: bool,
}

impl Delivery {
    /// A request whose key is a header.
    pub(super) fn of(form: Form) -> Self {
        let key = KeyPlace::Header;
        Self { form, key, params: None, sent_at: None, is_binary: false, wants_ids: false }
    }
}

/// What became of the events of a request.
pub(super) struct Taken {
    pub(super) answer: IngestAnswer,
    /// The ids of accepted events, if they are wanted.
    pub(super) ids: Vec<String>,
}

impl Taken {
    /// Whether anything was taken, or there was nothing to take.
    pub(super) fn is_success(&self) -> bool {
        self.answer.accepted > 0 || self.answer.rejected == 0
    }
}

/// The tenant that a request names before its body; `None` if its key may be in there. Fails with
/// 401 or 403.
pub(super) fn tenant_of(
    gateway: &Gateway,
    head: &Parts,
    key: &KeyPlace,
) -> Result<Option<Arc<str>>, ApiError> {
    let is_named = head.headers.contains_key(header::AUTHORIZATION);
    match key {
        KeyPlace::Parameter(Some(key)) => {
            let tenant = gateway.tenant_of_key(Some(key))?;
            let keys = gateway.deps.keys.load();
            beacon::check_scopes(keys.scopes_of_key(key, gateway.deps.clock.now()))?;
            Ok(Some(tenant))
        }
        KeyPlace::HeaderOrBody if !is_named && !gateway.deps.keys.load().is_open() => Ok(None),
        _ => gateway.tenant_or_basic(&head.headers, Scope::Write).map(Some),
    }
}

/// Takes a request: the events that are valid are durable when it returns.
///
/// # Errors
/// As `POST /v1/events` fails, but not because of single events.
pub(super) async fn take(
    gateway: &Arc<Gateway>,
    head: &Parts,
    body: Body,
    delivery: Delivery,
) -> Result<Taken, ApiError> {
    let named = tenant_of(gateway, head, &delivery.key)?;
    let idempotency = idempotency_of(&head.headers)?.map(str::to_owned);
    let (body, mut reservation) = read_body(gateway, head, body, named.as_ref()).await?;
    let body = if delivery.is_binary { in_json(head, &body)? } else { body };
    let reader = named.as_ref().unwrap_or(&shares::NOBODY);
    let (body, split) = split(gateway, reader, delivery.form, body, &mut reservation).await?;
    let tenant = match named {
        Some(tenant) => tenant,
        None => {
            let key = split.as_ref().ok().and_then(|request| request.key.as_deref());
            let tenant = gateway.tenant_of_key(key)?;
            own_connection(head, &tenant, key)?;
            reservation = BodyReservation::new(gateway, &tenant)?;
            tenant
        }
    };
    if let Some(params) = delivery.params {
        checked_params(params, &[])?;
    }
    let max = gateway.deps.config.accept.max_events;
    let mut request = gateway.admission.charge(&tenant, split.map_err(|e| unsplit(e, max)))?;
    request.set_sent_at(delivery.sent_at);
    let max_event = gateway.deps.config.accept.max_event_bytes.in_memory();
    let rewritten = request.rewritten_bytes(max_event);
    // Held until the answer, so that bodies waiting for the log stay counted.
    reservation.grow_to(body.len() + rewritten)?;
    let (owner, now, bytes) = (tenant.clone(), gateway.deps.clock.now(), body.len());
    let read = move |gateway: &Arc<Gateway>| {
        let ingest = IngestRequest {
            gateway,
            tenant: &owner,
            format: BodyFormat::Json,
            idempotency: idempotency.as_deref(),
            default_metric: None,
            now,
        };
        Ok(read_events(&ingest, &request, &body, Vec::with_capacity(rewritten)))
    };
    let (kept, events, refusals) = gateway.read_in_turn(&tenant, bytes, read).await?;
    let ids = if delivery.wants_ids {
        events.iter().filter_map(|event| event.id.clone()).collect()
    } else {
        Vec::new()
    };
    let answer = ingest::append(gateway, tenant, Bytes::from(kept), (events, refusals)).await?;
    count(delivery.form.source(), ACCEPTED, answer.accepted);
    Ok(Taken { answer, ids })
}

/// Counts events by the protocol that they came with, and what became of them.
pub(super) fn count(source: Source, outcome: impl Into<Cow<'static, str>>, events: usize) {
    let (protocol, outcome) = (source.name(), outcome.into());
    metrics::counter!(telemetry::COLLECT_EVENTS, "protocol" => protocol, "outcome" => outcome)
        .increment(events as u64);
}

/// Sets the counters to zero, so that `increase()` sees the first event.
pub(in crate::gateway) fn start_counters() {
    let refused = telemetry::METRICS.iter().find(|one| one.name == telemetry::EVENTS_REJECTED);
    let codes = refused.and_then(|metric| metric.label).map_or(&[][..], |(_, codes)| codes);
    for (source, _) in Source::ALL {
        count(source, ACCEPTED, 0);
        codes.iter().for_each(|code| count(source, *code, 0));
    }
}

/// Reads the body in memory of its tenant, or in what strangers share.
async fn read_body(
    gateway: &Arc<Gateway>,
    head: &Parts,
    body: Body,
    tenant: Option<&Arc<str>>,
) -> Result<(Bytes, BodyReservation), ApiError> {
    let (reader, reservation) = match tenant {
        Some(tenant) => (tenant, BodyReservation::new(gateway, tenant)?),
        None => (&*shares::NOBODY, BodyReservation::of_nobody(gateway)?),
    };
    let headers = &head.headers;
    decode::read_body_into(gateway, reader, headers, body, reservation, Sniffing::Gzip).await
}

/// Tells the events of a body apart. Returns the JSON that their ranges are of, too.
async fn split(
    gateway: &Arc<Gateway>,
    reader: &Arc<str>,
    form: Form,
    body: Bytes,
    reservation: &mut BodyReservation,
) -> Result<(Bytes, Result<SentRequest, SplitError>), ApiError> {
    let is_html_form = form == Form::PostHog && form::is_html_form(&body);
    if is_html_form {
        reservation.grow_to(body.len() + form::memory_to_read(&body))?;
    }
    let (bytes, max) = (body.len(), gateway.deps.config.accept.max_events);
    let work = move |_: &Arc<Gateway>| {
        let json = if is_html_form { form::json_of_html_form(&body)? } else { body };
        let split = SentRequest::split(form, &json, max);
        Ok((json, split))
    };
    gateway.read_in_turn(reader, bytes, work).await
}

/// Counts a connection as one of the tenant's, as `Authorization` would.
fn own_connection(head: &Parts, tenant: &Arc<str>, key: Option<&str>) -> Result<(), ApiError> {
    let Some(connection) = head.extensions.get::<Arc<ClientConnection>>() else { return Ok(()) };
    let bearer = key.and_then(|key| HeaderValue::from_str(&format!("Bearer {key}")).ok());
    connection.set_owner(tenant, bearer.as_ref())
}

fn unsplit(error: SplitError, max: usize) -> ApiError {
    match error {
        SplitError::Unreadable(why) => ApiError::unreadable(why),
        SplitError::TooMany => parse::too_many(max),
    }
}

/// A CloudEvent whose attributes are headers, in the JSON format.
fn in_json(head: &Parts, data: &[u8]) -> Result<Bytes, ApiError> {
    let mut attributes = Vec::new();
    for (name, value) in &head.headers {
        let Some(name) = name.as_str().strip_prefix("ce-") else { continue };
        let value = header_text(value.as_bytes()).ok_or_else(|| {
            ApiError::unreadable(format!("the header ce-{name} is no percent-encoded UTF-8"))
        })?;
        attributes.push((name.to_owned(), value));
    }
    binary_event(&attributes, super::content_type(&head.headers), data)
        .map(Bytes::from)
        .map_err(|error| ApiError::unreadable(error.message))
}

/// Reads all events of a request. Returns the bytes that are kept of them, the valid events as
/// ranges of it, and the refusals.
fn read_events(
    ingest: &IngestRequest<'_>,
    request: &SentRequest,
    body: &[u8],
    mut kept: Vec<u8>,
) -> (Vec<u8>, Vec<ValidEvent>, Vec<RefusedEvent>) {
    let (mut events, mut refusals) = (Vec::with_capacity(request.events.len()), Vec::new());
    // Once: all events of a request are mapped by the same version of the file.
    let mapping = ingest.gateway.deps.mapping.load();
    for index in 0..request.events.len() {
        match read_event(ingest, request, &mapping, (body, index), &mut kept) {
            Ok(event) => events.push(event),
            Err(refusal) => {
                count(request.source(), refusal.code.clone(), 1);
                refusals.push(refusal);
            }
        }
    }
    (kept, events, refusals)
}

fn read_event(
    ingest: &IngestRequest<'_>,
    request: &SentRequest,
    mapping: &Mapping,
    (body, index): (&[u8], usize),
    kept: &mut Vec<u8>,
) -> Result<ValidEvent, RefusedEvent> {
    let max = ingest.gateway.deps.config.accept.max_event_bytes.in_memory();
    let refuse = |error| ingest.refuse(index, request.id_of_unreadable(body, index), error);
    let sent = request.read(body, index, (ingest.now, max)).map_err(refuse)?;
    let mapped = request.map(mapping, ingest.tenant, &sent, (body, index));
    for part in &mapped.left_out {
        metrics::counter!(telemetry::COLLECT_LEFT_OUT, "part" => *part).increment(1);
    }
    let written = request.rewrite(kept, body, index, (&sent, &mapped), max).map_err(refuse)?;
    if let Some(key) = &request.key {
        // Nowhere else: what was read of the event has to be found in it again.
        mask_key(&mut kept[written.properties], key);
    }
    let fields = fields_of(&sent, &mapped, &kept[written.labels]);
    let valid = ingest.read_fields(index, &fields, written.raw.clone());
    if valid.is_err() {
        kept.truncate(written.raw.start);
    }
    valid
}

/// The fields of the event that was made of one of an SDK. They are those of its bytes, without
/// reading these again.
fn fields_of<'a>(
    sent: &'a SentEvent<'_>,
    mapped: &'a MappedEvent<'_>,
    labels: &'a [u8],
) -> EventFields<'a> {
    let text = |text: Option<&'a str>| {
        text.map_or(TextField::Absent, |text| TextField::Present(Cow::Borrowed(text)))
    };
    EventFields {
        metric: text(Some(&mapped.metric)),
        timestamp: sent.timestamp.map_or(TimeField::Absent, TimeField::Millis),
        value: match &mapped.value {
            MappedValue::Default => NumberField::Absent,
            MappedValue::None => NumberField::Null,
            MappedValue::Text(text) => NumberField::Text(Cow::Borrowed(text)),
        },
        labels,
        user: text(mapped.user.as_deref()),
        id: text(sent.id.as_deref()),
    }
}

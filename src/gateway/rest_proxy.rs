//! Kafka REST Proxy: `POST /topics/{topic}`, so that its producers can be pointed at a gateway.
//!
//! The value of a record is an event; the topic is the metric of events that name none. A refused
//! record is reported in its entry of `offsets` with status 200, as that interface requires. If
//! nothing is durable, the whole request is 429 or 503 with `Retry-After`.

mod records;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use self::records::{EmbeddedFormat, ProduceRecord};
use super::Gateway;
use super::auth::Scope;
use super::codes::PROXY_CODES;
use super::decode::{self, BodyFormat};
use super::error::ApiError;
use super::extract::{QueryString, checked_params, idempotency_of, path_segment};
use super::ingest;
use crate::api::events::RefusedEvent;
use crate::model::batch::ValidEvent;
use crate::model::event;
use crate::telemetry;

const ANSWER_V1: &str = "application/vnd.kafka.v1+json";
const ANSWER_V2: &str = "application/vnd.kafka.v2+json";
/// Error code "other Kafka error", which clients do not retry.
const NOT_RETRIABLE: u32 = 50_002;
/// What Kafka clients receive when a record is written but its offset is unknown.
const UNKNOWN_OFFSET: i64 = -1;

/// The result of one record; entries keep the order of the request.
#[derive(Debug, Serialize)]
struct OffsetEntry {
    partition: Option<u32>,
    offset: Option<i64>,
    error_code: Option<u32>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct ProduceAnswer {
    offsets: Vec<OffsetEntry>,
    key_schema_id: Option<u32>,
    value_schema_id: Option<u32>,
}

/// Handles `POST /topics/{topic}`.
pub async fn produce(
    State(gateway): State<Arc<Gateway>>,
    topic: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    q: QueryString,
    body: Body,
) -> Response {
    match produce_records(&gateway, topic, &headers, q, body).await {
        Ok(answer) => axum::Json(answer).into_response().with_type(kind_of(&headers)),
        Err(error) => refuse(error, &headers),
    }
}

/// Refuses `POST /topics/{topic}/partitions/{id}`: the shard of an event follows from its series,
/// not from the client.
pub async fn produce_to_partition(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
) -> Response {
    // Authenticates first: without a key the answer is 401, as on every other route.
    let error = gateway.tenant_or_basic(&headers, Scope::Write).err().unwrap_or_else(|| {
        let message =
            "the series of an event decides on its partition, clients do not: POST /topics/{topic}";
        ApiError::new(StatusCode::NOT_FOUND, "partition_not_found", message)
    });
    refuse(error, &headers)
}

trait WithType {
    fn with_type(self, kind: &'static str) -> Self;
}

impl WithType for Response {
    fn with_type(mut self, kind: &'static str) -> Self {
        self.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        self
    }
}

async fn produce_records(
    gateway: &Arc<Gateway>,
    topic: Result<Path<String>, PathRejection>,
    headers: &HeaderMap,
    q: QueryString,
    body: Body,
) -> Result<ProduceAnswer, ApiError> {
    let tenant = gateway.tenant_or_basic(headers, Scope::Write)?;
    checked_params(q, &[])?;
    let topic: &str = &path_segment(topic)?;
    let embedded = embedded_format(headers)?;
    // 404 is what the REST Proxy answers for an unknown topic.
    event::check_metric(topic).map_err(|error| {
        let message = format!("a topic is the metric of events that name none: {}", error.message);
        ApiError::new(StatusCode::NOT_FOUND, "topic_not_found", message)
    })?;
    let idempotency = idempotency_of(headers)?;
    // Held until the answer, so that bodies waiting for the log stay counted.
    let (body, mut reservation) = decode::read_body(gateway, &tenant, headers, body).await?;
    // Decoding base64 makes a second buffer, never larger than the body.
    if embedded == EmbeddedFormat::Binary {
        reservation.grow_to(2 * body.len())?;
    }
    let now = gateway.deps.clock.now();
    let (owner, topic, idempotency) =
        (tenant.clone(), topic.to_owned(), idempotency.map(str::to_owned));
    let bytes = body.len();
    let read = move |gateway: &Arc<Gateway>| {
        let split = records::read(embedded, &body, gateway.deps.config.accept.max_events);
        let (kept, records) = gateway.admission.charge(&owner, split)?;
        let request = ingest::IngestRequest {
            gateway,
            tenant: &owner,
            format: BodyFormat::Json,
            idempotency: idempotency.as_deref(),
            default_metric: Some(&topic),
            now,
        };
        let sorted = sort_records(&request, &kept, records);
        Ok((kept, sorted))
    };
    let (kept, (entries, events, refusals)) = gateway.read_in_turn(&tenant, bytes, read).await?;
    ingest::append(gateway, tenant.clone(), kept, (events, refusals)).await?;
    Ok(ProduceAnswer { offsets: entries, key_schema_id: None, value_schema_id: None })
}

/// Validates each record. Returns the answer's entries, the events to append, and the refusals.
fn sort_records(
    request: &ingest::IngestRequest<'_>,
    kept: &[u8],
    records: Vec<Result<ProduceRecord, String>>,
) -> (Vec<OffsetEntry>, Vec<ValidEvent>, Vec<RefusedEvent>) {
    let (mut entries, mut events, mut refusals) =
        (Vec::with_capacity(records.len()), Vec::new(), Vec::new());
    for (index, record) in records.into_iter().enumerate() {
        match validate_record(request, index, kept, record) {
            Ok(event) => {
                entries.push(OffsetEntry {
                    partition: Some(event.series.shard.0),
                    offset: Some(UNKNOWN_OFFSET),
                    error_code: None,
                    error: None,
                });
                events.push(event);
            }
            Err(refusal) => {
                let error = Some(format!("{}: {}", refusal.code, refusal.message));
                entries.push(OffsetEntry {
                    partition: None,
                    offset: None,
                    error_code: Some(NOT_RETRIABLE),
                    error,
                });
                refusals.push(refusal);
            }
        }
    }
    (entries, events, refusals)
}

/// Validates the event of one record.
fn validate_record(
    request: &ingest::IngestRequest<'_>,
    index: usize,
    kept: &[u8],
    record: Result<ProduceRecord, String>,
) -> Result<ValidEvent, RefusedEvent> {
    let refuse = |message: String| {
        metrics::counter!(telemetry::EVENTS_REJECTED, "code" => "record_invalid").increment(1);
        RefusedEvent { index, id: None, code: "record_invalid".into(), message }
    };
    let ProduceRecord { event, raw } = record.map_err(refuse)?;
    request.read_one(index, &kept[event], raw)
}

fn content_type(headers: &HeaderMap) -> String {
    let named =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn kind_of(headers: &HeaderMap) -> &'static str {
    if content_type(headers).ends_with("v1+json") { ANSWER_V1 } else { ANSWER_V2 }
}

/// The format of the records by `Content-Type`. Version 1 without a format means binary.
fn embedded_format(headers: &HeaderMap) -> Result<EmbeddedFormat, ApiError> {
    let named = content_type(headers);
    let format =
        named.strip_prefix("application/vnd.kafka.").and_then(|rest| rest.strip_suffix("+json"));
    match format {
        Some("json.v2" | "json.v1") => Ok(EmbeddedFormat::Json),
        Some("binary.v2" | "binary.v1" | "v1") => Ok(EmbeddedFormat::Binary),
        _ => {
            let with_schema =
                ["avro", "protobuf", "jsonschema"].iter().any(|schema| named.contains(schema));
            let why = if with_schema { "there is no schema registry here: " } else { "" };
            let message = format!(
                "{why}Content-Type is application/vnd.kafka.json.v2+json or \
                 application/vnd.kafka.binary.v2+json"
            );
            Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                message,
            ))
        }
    }
}

/// Renders an error in the shape of the REST Proxy; overload keeps its `Retry-After`.
pub(super) fn refuse(error: ApiError, headers: &HeaderMap) -> Response {
    // The REST Proxy appends two digits of its own to the HTTP status.
    let number = match (error.status.as_u16(), error.code) {
        (401, _) => 40_101,
        (403, _) => 40_301,
        (404, "partition_not_found") => 40_402,
        (404, _) => 40_401,
        (429, _) => 42_901,
        (503, _) => 50_302,
        (status, _) => u32::from(status),
    };
    debug_assert!(
        PROXY_CODES.iter().any(|known| known.number == number),
        "{number} is in no table"
    );
    let body = serde_json::json!({"error_code": number, "message": error.to_string()}).to_string();
    let mut response = error.into_response().with_type(kind_of(headers));
    *response.body_mut() = Body::from(body);
    response
}

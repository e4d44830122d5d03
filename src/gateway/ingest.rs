//! Ingest: from a body to valid events and refusals, and from the log's result to the answer.
//!
//! The answer is success only after the log has confirmed the append. Every other result is 503
//! with `Retry-After`; event ids make the retry idempotent.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Gateway;
use super::decode::BodyFormat;
use super::error::ApiError;
use super::msgpack;
use super::parse::{self, EventFields, NumberField, TextField, TimeField};
use crate::actors::gateway::BatchSink;
use crate::api::events::{IngestAnswer, RefusedEvent};
use crate::model::batch::{ValidBatch, ValidEvent};
use crate::model::decimal::{Decimal, DecimalError};
use crate::model::event::{self, EventError, EventErrorCode};
use crate::persistence::log::AppendError;
use crate::telemetry;

fn text<'a>(
    field: &'a TextField<'_>,
    wrong: EventErrorCode,
    what: &str,
) -> Result<Option<&'a str>, EventError> {
    match field {
        TextField::Absent => Ok(None),
        TextField::Present(text) => Ok(Some(text)),
        TextField::Invalid => Err(EventError::new(wrong, format!("{what} is not a string"))),
    }
}

/// The labels of an event, each valid.
fn labels(raw: &[u8], format: BodyFormat) -> Result<Vec<(String, String)>, EventError> {
    let labels = match (raw.is_empty(), format) {
        (true, _) => Vec::new(),
        (false, BodyFormat::MessagePack) => msgpack::labels(raw)?,
        (false, _) => parse::json_labels(raw)?,
    };
    labels.iter().try_for_each(|(name, value)| event::check_label(name, value))?;
    Ok(labels)
}

/// The time that an event gives, whether it is acceptable now or not.
fn timestamp(field: &TimeField<'_>) -> Result<Option<i64>, EventError> {
    match field {
        TimeField::Absent => Ok(None),
        TimeField::Millis(at) => Ok(Some(*at)),
        TimeField::Text(text) => event::parse_rfc3339(text).map(Some),
        TimeField::Invalid => Err(EventError::new(
            EventErrorCode::TimestampInvalid,
            "a timestamp is RFC 3339 or integer milliseconds",
        )),
    }
}

fn value(field: &NumberField<'_>) -> Result<Option<Decimal>, EventError> {
    match field {
        NumberField::Absent => Ok(Some(Decimal::ONE)),
        NumberField::Null => Ok(None),
        NumberField::Invalid => Err(EventError::new(
            EventErrorCode::ValueInvalid,
            "a value is a finite number, a decimal string or null",
        )),
        NumberField::Text(text) => Decimal::parse(text).map(Some).map_err(|e| match e {
            DecimalError::Syntax => EventError::new(
                EventErrorCode::ValueInvalid,
                "a value is a finite number, a decimal string or null",
            ),
            DecimalError::OutOfRange => EventError::new(
                EventErrorCode::ValueOutOfRange,
                "a value is at most 10^18 in magnitude",
            ),
        }),
    }
}

/// The fields of one event that was accepted, wherever it came from.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainEvent {
    pub metric: String,
    pub labels: Vec<(String, String)>,
    /// `None` if the event gives none, and would get the time of its arrival.
    pub timestamp: Option<i64>,
    pub value: Option<Decimal>,
    pub user: Option<String>,
}

/// Reads an event of JSON as a server would, but for what depends on its configuration: how large
/// and how old an event may be.
///
/// # Errors
/// The refusal of the event.
pub fn plain_json_event(event: &[u8]) -> Result<PlainEvent, EventError> {
    let unreadable = |why| EventError::new(EventErrorCode::EventUnreadable, why);
    let fields = parse::json_event(event).map_err(unreadable)?;
    let id = text(&fields.id, EventErrorCode::IdInvalid, "id")?;
    id.map_or(Ok(()), event::check_id)?;
    let metric = text(&fields.metric, EventErrorCode::MetricInvalid, "metric")?.unwrap_or_default();
    event::check_metric(metric)?;
    let labels = labels(fields.labels, BodyFormat::Json)?;
    let user = text(&fields.user, EventErrorCode::UserInvalid, "user")?;
    user.map_or(Ok(()), event::check_user)?;
    Ok(PlainEvent {
        metric: metric.to_owned(),
        labels,
        timestamp: timestamp(&fields.timestamp)?,
        value: value(&fields.value)?,
        user: user.map(str::to_owned),
    })
}

/// What all events of a request have in common.
pub struct IngestRequest<'a> {
    /// Limits, interner and admission control.
    pub gateway: &'a Gateway,
    /// Tenant of the API key.
    pub tenant: &'a Arc<str>,
    /// Format of the body.
    pub format: BodyFormat,
    /// `Idempotency-Key`; events without an id get `KEY/INDEX`.
    pub idempotency: Option<&'a str>,
    /// The metric of events that name none.
    pub default_metric: Option<&'a str>,
    /// Wall time in milliseconds; the timestamp of events that have none.
    pub now: i64,
}

impl IngestRequest<'_> {
    fn timestamp(&self, field: &TimeField<'_>) -> Result<i64, EventError> {
        let Some(at) = timestamp(field)? else { return Ok(self.now) };
        event::check_timestamp(at, self.now, &self.gateway.event_limits).map(|()| at)
    }

    fn id(&self, index: usize, field: &TextField<'_>) -> Result<Option<String>, EventError> {
        let id = match (text(field, EventErrorCode::IdInvalid, "id")?, self.idempotency) {
            (Some(id), _) => Cow::Borrowed(id),
            (None, Some(key)) => Cow::Owned(format!("{key}/{index}")),
            (None, None) => return Ok(None),
        };
        event::check_id(&id)?;
        Ok(Some(id.into_owned()))
    }

    fn validate(
        &self,
        fields: &EventFields<'_>,
        id: Option<String>,
        raw: Range<usize>,
    ) -> Result<ValidEvent, EventError> {
        let metric = text(&fields.metric, EventErrorCode::MetricInvalid, "metric")?
            .or(self.default_metric)
            .unwrap_or_default();
        event::check_metric(metric)?;
        // Called on a miss of the interner only.
        let parse = || labels(fields.labels, self.format);
        let series = self.gateway.interner.intern(self.tenant, metric, fields.labels, parse)?;
        let user = text(&fields.user, EventErrorCode::UserInvalid, "user")?;
        user.map_or(Ok(()), event::check_user)?;
        let (timestamp, value) = (self.timestamp(&fields.timestamp)?, value(&fields.value)?);
        Ok(ValidEvent { series, timestamp, value, user: user.map(str::to_owned), id, raw })
    }

    /// Parses a body into its valid events and the refusals of all others.
    ///
    /// # Errors
    /// 400 if events cannot be separated, 413 for too many, 429 above the tenant's event rate.
    pub fn read(&self, body: &Bytes) -> Result<(Vec<ValidEvent>, Vec<RefusedEvent>), ApiError> {
        let max = self.gateway.deps.config.accept.max_events;
        let ranges = match self.format {
            BodyFormat::Json => parse::split_json(body, max),
            BodyFormat::Ndjson => parse::split_ndjson(body, max),
            BodyFormat::MessagePack => msgpack::split(body, max),
        };
        self.read_ranges(body, ranges)
    }

    /// Like [`Self::read`], for a body that was split into the ranges of its events.
    ///
    /// # Errors
    /// 429 above the tenant's event rate, otherwise the error of the split.
    pub fn read_ranges(
        &self,
        body: &Bytes,
        ranges: Result<Vec<Range<usize>>, ApiError>,
    ) -> Result<(Vec<ValidEvent>, Vec<RefusedEvent>), ApiError> {
        // Taken before parsing, so that a tenant over its rate costs no parsing.
        let ranges = self.gateway.admission.charge(self.tenant, ranges)?;
        let (mut events, mut refusals) = (Vec::with_capacity(ranges.len()), Vec::new());
        for (index, range) in ranges.into_iter().enumerate() {
            match self.read_one(index, &body[range.clone()], range) {
                Ok(event) => events.push(event),
                Err(refusal) => refusals.push(refusal),
            }
        }
        Ok((events, refusals))
    }

    /// The refusal of an event; counts and logs it.
    pub fn refuse(&self, index: usize, id: Option<String>, error: EventError) -> RefusedEvent {
        let code = error.code.name();
        metrics::counter!(telemetry::EVENTS_REJECTED, "code" => code).increment(1);
        tracing::debug!(
            tenant = %self.tenant,
            index,
            code,
            why = %error.message,
            "an event was refused"
        );
        RefusedEvent { index, id, code: code.into(), message: error.message }
    }

    /// Parses one event; `raw` is the range of the bytes that the log keeps.
    ///
    /// # Errors
    /// The refusal of the event, which does not affect others.
    pub fn read_one(
        &self,
        index: usize,
        event: &[u8],
        raw: Range<usize>,
    ) -> Result<ValidEvent, RefusedEvent> {
        let max_bytes = self.gateway.deps.config.accept.max_event_bytes.in_memory();
        if raw.len() > max_bytes {
            let message = format!(
                "the event has {} bytes, at most {max_bytes} (accept.max_event_bytes)",
                raw.len()
            );
            let error = EventError::new(EventErrorCode::EventTooLarge, message);
            return Err(self.refuse(index, self.id_of_unreadable(index, event), error));
        }
        let fields = match self.format {
            BodyFormat::MessagePack => msgpack::event(event),
            _ => parse::json_event(event),
        };
        let fields = fields.map_err(|why| {
            let error = EventError::new(EventErrorCode::EventUnreadable, why);
            self.refuse(index, self.id_of_unreadable(index, event), error)
        })?;
        self.read_fields(index, &fields, raw)
    }

    /// Validates one event that was parsed already.
    ///
    /// # Errors
    /// The refusal of the event, which does not affect others.
    pub fn read_fields(
        &self,
        index: usize,
        fields: &EventFields<'_>,
        raw: Range<usize>,
    ) -> Result<ValidEvent, RefusedEvent> {
        // The id first, so that a refusal for any other field can name it.
        let id = self.id(index, &fields.id).map_err(|error| self.refuse(index, None, error))?;
        self.validate(fields, id.clone(), raw).map_err(|error| self.refuse(index, id, error))
    }

    /// The id of an event whose other fields are unreadable, so that the refusal can name it.
    fn id_of_unreadable(&self, index: usize, event: &[u8]) -> Option<String> {
        let id = match self.format {
            BodyFormat::MessagePack => msgpack::id(event),
            _ => parse::json_id(event),
        };
        self.id(index, &id.map_or(TextField::Absent, |id| TextField::Present(id.into())))
            .ok()
            .flatten()
    }
}

/// Appends the events and waits until they are durable. On failure their rate tokens are refunded,
/// but not those of the events that were refused.
///
/// # Errors
/// 503 if the append failed or its outcome is unknown.
pub async fn append(
    gateway: &Gateway,
    tenant: Arc<str>,
    body: Bytes,
    (events, errors): (Vec<ValidEvent>, Vec<RefusedEvent>),
) -> Result<IngestAnswer, ApiError> {
    let accepted = events.len();
    let Some(submit) = &gateway.deps.submit else {
        gateway.admission.refund(&tenant, accepted);
        let message = "this node has no gateway role (node.roles): write to a node that has";
        return Err(ApiError::unavailable("no_gateway_role", message, 1));
    };
    if accepted > 0 {
        if let Err(error) =
            append_in_time(gateway, &**submit, ValidBatch { tenant: tenant.clone(), body, events })
                .await
        {
            gateway.admission.refund(&tenant, accepted);
            return Err(unavailable(error));
        }
        gateway.events_accepted.increment(accepted as u64);
    }
    Ok(IngestAnswer { accepted, rejected: errors.len(), errors })
}

async fn append_in_time(
    gateway: &Gateway,
    submit: &dyn BatchSink,
    batch: ValidBatch,
) -> Result<(), AppendError> {
    // The batch may still become durable. The client retries, and ids de-duplicate the retry.
    let unknown = |why: &str| AppendError::Unknown(why.to_owned());
    let ticket = submit.submit(batch)?;
    tokio::time::timeout(gateway.deps.config.gateway.append_timeout, ticket)
        .await
        .map_err(|_| unknown("the log did not answer in time"))?
        .map_err(|_| unknown("the gateway actor went away"))?
        .map(drop)
}

fn unavailable(error: AppendError) -> ApiError {
    // A full or broken disk takes longer to repair than an overload to pass.
    let seconds = match error {
        AppendError::DiskFull | AppendError::ReadOnly | AppendError::DiskFailed(_) => 10,
        AppendError::Closed(_) => 2,
        AppendError::Overloaded { .. } | AppendError::NoDescriptors | AppendError::Unknown(_) => 1,
    };
    metrics::counter!(telemetry::WRITES_REFUSED, "reason" => error.code()).increment(1);
    ApiError::unavailable(error.code(), error.to_string(), seconds)
}

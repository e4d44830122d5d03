//! Errors of the gateway: one shape, `{"error": {"code", "message", "details"}}`, and
//! `Retry-After` on every overload.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::codes;
use crate::api::error::ErrorAnswer;
use crate::operate::service::OperateError;
use crate::query::error::QueryError;
use crate::query::request::InvalidRequest;
use crate::telemetry;

/// An error, as the client receives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// Status of the HTTP answer.
    pub status: StatusCode,
    /// One stable word, for programs.
    pub code: &'static str,
    /// What went wrong, and what to do about it.
    pub message: String,
    /// Seconds until a retry makes sense; always set on 429 and 503.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// An error without `Retry-After`.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        debug_assert!(codes::is_known(status.as_u16(), code), "{status} {code} is in no table");
        Self { status, code, message: message.into(), retry_after: None }
    }
    /// 400: the body cannot be read.
    pub fn unreadable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "body_unreadable", message)
    }
    /// 400: a parameter is invalid.
    pub fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }
    /// 500: a bug; the server's log has the details.
    pub fn internal() -> Self {
        let message = "the request crashed and changed nothing, the log of the server says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
    /// 413: the body or an event is too large.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }
    /// 503: cannot be done now; the client should retry.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
        }
    }
    /// 429: the tenant exceeds its event rate.
    pub fn too_many(message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
        }
    }
    /// 429: the tenant already holds its full share.
    pub fn busy(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, message)
        }
    }
    /// The JSON body of the answer.
    pub fn body(&self) -> String {
        // Serialising a plain struct cannot fail.
        serde_json::to_string(&ErrorAnswer::new(self.code, &self.message)).unwrap_or_default()
    }
}

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        let code = match error {
            InvalidRequest::EmptyRange => "range_empty",
            InvalidRequest::TimeZone(_) => "tz_not_hour_aligned",
            InvalidRequest::RepeatedAggregate(_) => "agg_invalid",
            InvalidRequest::GroupBy(_) => "by_invalid",
        };
        Self::bad(code, error.to_string())
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let too_large =
            |code, message: String| Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message);
        match error {
            QueryError::NoQueryRole => Self::unavailable("no_query_role", error.to_string(), 1),
            QueryError::TooManyPoints { max } => {
                let way_out = "ask for a shorter range, a longer step, fewer groups, or set limit";
                too_large(
                    "too_many_points",
                    format!("the answer has more than {max} points (query.max_points): {way_out}"),
                )
            }
            QueryError::TooManySeries(why) => too_large("too_many_series", why),
            QueryError::FigureTooLarge(why) => too_large("answer_too_large", why),
            QueryError::TooMuchMemory => {
                let message = "the query needs more memory than one tenant may use for queries (a \
                               part of query.max_memory): ask for a shorter range, fewer groups, \
                               or without distinct and quantiles";
                too_large("query_too_large", message.to_owned())
            }
            QueryError::TenantBusy => Self::busy(
                "tenant_overloaded",
                "the tenant's other queries use its part of query.max_memory: retry",
                1,
            ),
            QueryError::Busy => Self::unavailable(
                "overloaded",
                "other queries use all of query.max_memory: retry",
                1,
            ),
            QueryError::TimedOut => {
                let message = "the query took longer than query.timeout: ask for a shorter range \
                               or fewer series, or retry";
                Self::unavailable("query_timeout", message, 1)
            }
            QueryError::Abandoned => {
                let message = "nobody waits for the answer: the client closed its side of the \
                               connection query.client_gone_after ago";
                Self::unavailable("query_abandoned", message, 1)
            }
            QueryError::StoreTooSlow(why) => {
                let message = format!(
                    "the store did not finish this question within store.timeout: ask for less at \
                     once ({why})"
                );
                Self::unavailable("query_too_slow", message, 1)
            }
            QueryError::StoreUnavailable(why) => Self::unavailable("store_unavailable", why, 1),
            QueryError::StoreInvalid(why) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store_invalid", why)
            }
        }
    }
}

impl From<OperateError> for ApiError {
    fn from(error: OperateError) -> Self {
        match error {
            OperateError::NoQueryRole => Self::unavailable("no_query_role", error.to_string(), 1),
            OperateError::NotQuarantined { .. } => Self::new(
                StatusCode::NOT_FOUND,
                "not_quarantined",
                format!("{error}: see GET /v1/quarantine"),
            ),
            OperateError::ReleaseOvertaken { .. } => {
                Self::unavailable("release_overtaken", format!("{error}; try again"), 1)
            }
            OperateError::NotReleasable(why) => {
                let message = format!("the event stays in the quarantine: {why}");
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not_releasable", message)
            }
            OperateError::NoReplay(why) => {
                Self::new(StatusCode::NOT_FOUND, "replay_not_found", why)
            }
            OperateError::ReplayInvalid(why) => Self::bad("replay_invalid", why),
            OperateError::RulesInvalid(why) => Self::bad("rules_invalid", why),
            OperateError::NotReady(why) => Self::new(StatusCode::CONFLICT, "replay_not_ready", why),
            OperateError::ReplayRefused(why) => {
                Self::new(StatusCode::CONFLICT, "replay_refused", why)
            }
            OperateError::NoBoard(why) => Self::new(StatusCode::NOT_FOUND, "board_not_found", why),
            OperateError::BoardInvalid(why) => Self::bad("board_invalid", why),
            OperateError::BoardChanged(why) => {
                Self::new(StatusCode::PRECONDITION_FAILED, "board_changed", why)
            }
            OperateError::BoardTooLarge(why) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "board_too_large", why)
            }
            OperateError::TooManyBoards(why) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "too_many_boards", why)
            }
            OperateError::StoreUnavailable(why) => {
                Self::unavailable("store_unavailable", format!("{why}; try again"), 1)
            }
            OperateError::StoreInvalid(why) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store_invalid", why)
            }
        }
    }
}

/// The code of an error, beside its answer: whatever shape an interface gives to that, the edge
/// counts it by this.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnsweredCode(pub(super) &'static str);

/// Counts an answer with an error.
pub(super) fn count_error(code: &'static str) {
    metrics::counter!(telemetry::REQUEST_ERRORS, "code" => code).increment(1);
}

/// Sets the counter of every code to zero, so that `increase()` sees the first error.
pub(super) fn start_counters() {
    for known in codes::ERROR_CODES {
        metrics::counter!(telemetry::REQUEST_ERRORS, "code" => known.code).increment(0);
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], self.body())
            .into_response();
        response.extensions_mut().insert(AnsweredCode(self.code));
        with_error_headers(response, self.retry_after)
    }
}

/// Adds what HTTP wants beside an error's status: when to try again, and with a 401 how to say who
/// one is.
pub(super) fn with_error_headers(mut response: Response, retry_after: Option<u64>) -> Response {
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

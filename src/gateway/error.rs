//! Errors of the edge: one shape, `{"error": {"code", "message", "details"}}`, and `Retry-After` on every overload.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::query::service::{QueryError, QueryErrorKind};

/// An answer that is not the one hoped for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The code in the body.
    pub code: &'static str,
    /// What is wrong and the way out.
    pub message: String,
    /// Seconds after which to try again; always there on 429 and 503.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// An error without `Retry-After`.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }
    /// 400: the body cannot be read.
    pub fn unreadable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "body_unreadable", message)
    }
    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }
    /// 503.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message) }
    }
    /// 429.
    pub fn too_many(message: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message) }
    }
    /// 429: the tenant holds its share already.
    pub fn busy(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, message) }
    }
    /// The body of the answer.
    pub fn body(&self) -> String {
        serde_json::json!({"error": {"code": self.code, "message": self.message, "details": {}}}).to_string()
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        match error.kind {
            QueryErrorKind::Bad => Self::new(StatusCode::BAD_REQUEST, error.code, error.message),
            QueryErrorKind::NotFound => Self::new(StatusCode::NOT_FOUND, error.code, error.message),
            QueryErrorKind::TooLarge => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.code, error.message),
            QueryErrorKind::Busy => Self::busy(error.code, error.message, 1),
            QueryErrorKind::Unavailable => Self::unavailable(error.code, error.message, 1),
            QueryErrorKind::Internal => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.code, error.message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], self.body()).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

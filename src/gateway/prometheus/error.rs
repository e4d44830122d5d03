//! Errors in the form of Prometheus: `{"status": "error", "errorType", "error"}`.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::gateway::error::{AnsweredCode, ApiError, with_error_headers};
use crate::promql::{EvalError, PromqlError};
use crate::query::error::QueryError;
use crate::query::request::InvalidRequest;

/// An error, as the client receives it.
#[derive(Debug)]
pub(super) struct PromError {
    status: StatusCode,
    kind: &'static str,
    /// The code of the same error on other routes.
    code: Option<&'static str>,
    message: String,
    retry_after: Option<u64>,
}

impl PromError {
    /// 400: a parameter is invalid.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_data", message)
    }

    /// `errorType` of the answer.
    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, message: message.into(), retry_after: None }
    }
}

/// The word of Prometheus for a status.
fn kind_of(status: StatusCode, code: &str) -> &'static str {
    match status.as_u16() {
        _ if matches!(code, "query_timeout" | "query_too_slow" | "body_timeout") => "timeout",
        _ if code == "query_abandoned" => "canceled",
        401 => "unauthorized",
        403 => "forbidden",
        422 => "execution",
        500 => "internal",
        429 | 503 => "unavailable",
        _ => "bad_data",
    }
}

impl From<ApiError> for PromError {
    fn from(error: ApiError) -> Self {
        Self {
            kind: kind_of(error.status, error.code),
            status: error.status,
            code: Some(error.code),
            message: error.message,
            retry_after: error.retry_after,
        }
    }
}

impl From<QueryError> for PromError {
    fn from(error: QueryError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<InvalidRequest> for PromError {
    fn from(error: InvalidRequest) -> Self {
        ApiError::from(error).into()
    }
}

impl From<PromqlError> for PromError {
    fn from(error: PromqlError) -> Self {
        match error {
            PromqlError::Syntax(why) => Self::bad(why),
            PromqlError::Unsupported(why) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "execution", why)
            }
        }
    }
}

impl From<EvalError> for PromError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Failed(why) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "execution", why),
            EvalError::Ended(why) => QueryError::ended(why, 0).into(),
        }
    }
}

impl IntoResponse for PromError {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({
            "status": "error",
            "errorType": self.kind,
            "error": self.message,
        });
        if let Some(code) = self.code {
            body["code"] = code.into();
        }
        let mut response = (self.status, axum::Json(body)).into_response();
        if let Some(code) = self.code {
            response.extensions_mut().insert(AnsweredCode(code));
        }
        with_error_headers(response, self.retry_after)
    }
}

//! Handlers of boards: saved panels of the key's tenant.
//!
//! `read` sees them. A change needs `write` and `read`, or `admin`: a key that may only write
//! stands in pages, where everybody finds it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::auth::Scope;
use super::error::ApiError;
use super::extract::{GatewayState, QueryString, checked_params, decode_query, json, path_segment};
use super::params::QueryParams;
use super::{Gateway, decode, read_routes};
use crate::api::boards::BoardInfo;
use crate::model::board::BoardId;
use crate::model::budget::QueryBudget;
use crate::operate::service::{BoardAuthor, BoardPage, BoardService, BoardVersion, OperateError};

/// Default and maximum number of boards in one answer.
const MAX_LISTED: usize = 200;

type PathId = Result<Path<String>, PathRejection>;

/// The id in a path.
fn board_id(path: PathId) -> Result<BoardId, ApiError> {
    let text = path_segment(path)?;
    BoardId::parse(&text).ok_or_else(|| {
        let message = "the id of a board is 1 to 64 of a-z, 0-9 and -, not beginning with -";
        ApiError::bad("board_id_invalid", message)
    })
}

/// Who changes a board.
fn author(gateway: &Gateway, headers: &HeaderMap) -> Result<BoardAuthor, ApiError> {
    let by_admin = gateway.tenant(headers, Scope::Admin);
    let tenant = by_admin.or_else(|_| {
        gateway.tenant(headers, Scope::Write)?;
        gateway.tenant(headers, Scope::Read)
    })?;
    let keys = gateway.deps.keys.load();
    let authorization = headers.get(header::AUTHORIZATION);
    let key = keys.key_prefix(authorization, gateway.deps.clock.now());
    Ok(BoardAuthor { tenant, by: key.unwrap_or_else(|| "without a key".to_owned()) })
}

async fn run<T, F>(gateway: &Gateway, tenant: &Arc<str>, work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce(&dyn BoardService, &QueryBudget) -> Result<T, OperateError> + Send + 'static,
{
    let boards = gateway.deps.boards.clone();
    gateway.run_operation(tenant, move |budget| work(&*boards, budget)).await
}

/// The version in an entity tag, `"17"` or, as proxies that pack answers rewrite it, `W/"17"`.
fn version_of(tag: &str) -> Option<u64> {
    let tag = tag.trim();
    let quoted = tag.strip_prefix("W/").unwrap_or(tag);
    quoted.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

fn entity_tag(version: u64) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(&format!("\"{version}\"")).map_err(|error| {
        tracing::error!(%error, "a version is no header");
        ApiError::internal()
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?").trim())
}

/// Which board a change is for: `If-None-Match: *` is one that there is not, `If-Match: "17"` the
/// one of this version. Fails with 428 without either, so that nobody overwrites what they have
/// not seen.
fn precondition(headers: &HeaderMap) -> Result<BoardVersion, ApiError> {
    let (none, is) = (text(headers, &header::IF_NONE_MATCH), text(headers, &header::IF_MATCH));
    match (none, is) {
        (Some("*"), None) => Ok(BoardVersion::New),
        (None, Some(tag)) if version_of(tag).is_some() => {
            Ok(BoardVersion::Is(version_of(tag).unwrap_or_default()))
        }
        (None, None) => {
            let message = "say which board is changed: If-Match: \"VERSION\" for the one that was \
                           read, If-None-Match: * for a new one";
            let status = StatusCode::PRECONDITION_REQUIRED;
            Err(ApiError::new(status, "precondition_required", message))
        }
        _ => {
            let message = "send either If-Match with one version, as GET has it in ETag, or \
                           If-None-Match: *";
            Err(ApiError::bad("precondition_invalid", message))
        }
    }
}

/// Answers `GET /v1/boards`: one page, ascending by id.
pub(super) async fn list(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Read)?;
    let given = decode_query(q)?;
    let params = QueryParams::read(&given, &["after", "limit"])?;
    let limit = match params.get("limit").map_or(Ok(MAX_LISTED), str::parse) {
        Ok(limit @ 1..=MAX_LISTED) => limit,
        _ => {
            let message = format!("limit is a whole number from 1 to {MAX_LISTED}");
            return Err(ApiError::bad("limit_invalid", message));
        }
    };
    let page = BoardPage { after: params.get("after").unwrap_or("").to_owned(), limit };
    let of = tenant.clone();
    let found = run(&gateway, &tenant, move |all, budget| all.list(&of, &page, budget)).await?;
    Ok(json(read_routes::json(&found)?))
}

/// Answers `GET /v1/boards/{id}`: the document as it was sent, with its version as `ETag`.
pub(super) async fn show(
    State(gateway): GatewayState,
    headers: HeaderMap,
    id: PathId,
    q: QueryString,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Read)?;
    checked_params(q, &[])?;
    let (id, of) = (board_id(id)?, tenant.clone());
    let (version, document) =
        run(&gateway, &tenant, move |all, budget| all.show(&of, &id, budget)).await?;
    let is_known = text(&headers, &header::IF_NONE_MATCH)
        .is_some_and(|tags| tags.split(',').any(|tag| version_of(tag) == Some(version)));
    let mut response =
        if is_known { StatusCode::NOT_MODIFIED.into_response() } else { json(document) };
    response.headers_mut().insert(header::ETAG, entity_tag(version)?);
    // Of one tenant, and anybody may change it.
    let private = HeaderValue::from_static("private, no-cache");
    response.headers_mut().insert(header::CACHE_CONTROL, private);
    Ok(response)
}

/// Answers `PUT /v1/boards/{id}`: makes or replaces a board.
pub(super) async fn put(
    State(gateway): GatewayState,
    headers: HeaderMap,
    id: PathId,
    q: QueryString,
    body: Body,
) -> Result<Response, ApiError> {
    let author = author(&gateway, &headers)?;
    checked_params(q, &[])?;
    let (id, expected) = (board_id(id)?, precondition(&headers)?);
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind.as_bytes() != b"application/json") {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let message = "send Content-Type: application/json";
        return Err(ApiError::new(status, "content_type_unsupported", message));
    }
    let tenant = author.tenant.clone();
    let (body, _reservation) = decode::read_body(&gateway, &tenant, &headers, body).await?;
    let written: BoardInfo = run(&gateway, &tenant, move |all, budget| {
        all.put(&author, &id, (expected, &body[..]), budget)
    })
    .await?;
    let status = match expected {
        BoardVersion::New => StatusCode::CREATED,
        BoardVersion::Is(_) => StatusCode::OK,
    };
    let tag = [(header::ETAG, entity_tag(written.version)?)];
    Ok((status, tag, json(read_routes::json(&written)?)).into_response())
}

/// Answers `DELETE /v1/boards/{id}`.
pub(super) async fn delete(
    State(gateway): GatewayState,
    headers: HeaderMap,
    id: PathId,
    q: QueryString,
) -> Result<Response, ApiError> {
    let author = author(&gateway, &headers)?;
    checked_params(q, &[])?;
    let id = board_id(id)?;
    let BoardVersion::Is(version) = precondition(&headers)? else {
        let message = "a board is deleted by If-Match: \"VERSION\", as GET has it in ETag";
        return Err(ApiError::bad("precondition_invalid", message));
    };
    let tenant = author.tenant.clone();
    run(&gateway, &tenant, move |all, budget| all.delete(&author.tenant, &id, version, budget))
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_the_version_that_it_is_for() {
        let asked = |headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), value.parse().expect("a header"))
            });
            precondition(&headers.collect()).map_err(|error| error.status.as_u16())
        };
        assert_eq!(asked(&[("if-none-match", "*")]), Ok(BoardVersion::New));
        assert_eq!(asked(&[("if-match", "\"17\"")]), Ok(BoardVersion::Is(17)));
        assert_eq!(asked(&[("if-match", "W/\"17\"")]), Ok(BoardVersion::Is(17)));
        assert_eq!(asked(&[]), Err(428));
        for wrong in
            ["*", "17", "\"\"", "\"x\"", "\"1\", \"2\"", "\"-1\"", "\"99999999999999999999\""]
        {
            assert_eq!(asked(&[("if-match", wrong)]), Err(400), "{wrong}");
        }
        assert_eq!(asked(&[("if-none-match", "\"1\"")]), Err(400));
        assert_eq!(asked(&[("if-none-match", "*"), ("if-match", "\"1\"")]), Err(400));
    }
}

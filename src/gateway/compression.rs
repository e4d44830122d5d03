//! Compression of answers for clients that accept it. JSON of series shrinks to a tenth.
//!
//! Small answers are sent as they are. So are all others while half of the processors compress.

use std::io::Write;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;

use super::Gateway;
use super::error::ApiError;

/// Smaller answers are not worth the work.
const MIN_BYTES: u64 = 4 * 1024;
/// The fastest level of zstd with a ratio near that of gzip.
const ZSTD_LEVEL: i32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentCoding {
    Gzip,
    Zstd,
}

impl ContentCoding {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn compress(self, body: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(body)?;
                encoder.finish()
            }
            Self::Zstd => zstd::bulk::compress(body, ZSTD_LEVEL),
        }
    }
}

/// How many answers are compressed at once: half of the processors, so that the others stay free
/// for work that cannot wait.
pub(super) fn max_concurrent() -> usize {
    (std::thread::available_parallelism().map_or(1, usize::from) / 2).max(1)
}

/// Picks the client's preferred coding among those supported; zstd wins a tie.
pub(super) fn negotiate(headers: &HeaderMap) -> Option<ContentCoding> {
    match qualities(headers) {
        (gzip, zstd) if zstd > 0.0 && zstd >= gzip => Some(ContentCoding::Zstd),
        (gzip, _) if gzip > 0.0 => Some(ContentCoding::Gzip),
        _ => None,
    }
}

/// Whether the client takes what was packed with gzip beforehand.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    qualities(headers).0 > 0.0
}

/// How much the client likes gzip and zstd; 0 is not at all.
fn qualities(headers: &HeaderMap) -> (f32, f32) {
    let asked =
        headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let (mut gzip, mut zstd, mut any) = (None, None, None);
    for item in asked.flat_map(|value| value.split(',')) {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        let quality = parameters
            .trim()
            .strip_prefix("q=")
            .map_or(Some(1.0), |q| q.trim().parse::<f32>().ok());
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => gzip = quality,
            "zstd" => zstd = quality,
            "*" => any = quality,
            _ => {}
        }
    }
    let quality = |named: Option<f32>| named.or(any).unwrap_or(0.0);
    (quality(gzip), quality(zstd))
}

fn is_compressible(response: &Response) -> bool {
    // Checked first: most answers are small, and then no header needs to be looked up.
    if response.body().size_hint().exact().is_none_or(|bytes| bytes < MIN_BYTES) {
        return false;
    }
    let kind = response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let is_text = kind.starts_with(b"application/json") || kind.starts_with(b"text/");
    is_text
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
        && !response.headers().contains_key(header::CONTENT_ENCODING)
}

/// Compresses an answer if it is large enough and the client accepts it.
pub(super) async fn compress_response(
    gateway: &Gateway,
    wanted: Option<ContentCoding>,
    mut response: Response,
) -> Response {
    if !is_compressible(&response) {
        return response;
    }
    // Also on answers that stay plain: a cache must not serve a compressed one to another client.
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
    let Some(coding) = wanted else { return response };
    // Compression is optional, so it never queues: without a permit the answer goes out plain.
    let Ok(place) = gateway.compression_permits.clone().try_acquire_owned() else {
        return response;
    };
    let (mut parts, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(whole) => whole.to_bytes(),
        Err(error) => return compression_failed(&error),
    };
    let work = move || {
        let packed = coding.compress(&body);
        drop(place);
        (packed, body)
    };
    let (packed, plain): (_, Bytes) = match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => return compression_failed(&error),
    };
    match packed {
        Ok(packed) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(packed))
        }
        Err(error) => {
            tracing::warn!(%error, "an answer could not be packed and is sent as it is");
            Response::from_parts(parts, Body::from(plain))
        }
    }
}

fn compression_failed(error: &dyn std::fmt::Display) -> Response {
    tracing::error!(%error, "an answer could not be packed");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the answer could not be packed")
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_says_what_it_takes() {
        for (asked, coding) in [
            ("", None),
            ("identity", None),
            ("br, deflate", None),
            ("gzip", Some(ContentCoding::Gzip)),
            ("GZIP, deflate", Some(ContentCoding::Gzip)),
            ("gzip, deflate, br, zstd", Some(ContentCoding::Zstd)),
            ("gzip;q=1.0, zstd;q=0.5", Some(ContentCoding::Gzip)),
            ("gzip; q=0, zstd;q=0", None),
            ("gzip;q=0, *", Some(ContentCoding::Zstd)),
            ("*;q=0", None),
            ("gzip;q=x", None),
        ] {
            let headers =
                HeaderMap::from_iter([(header::ACCEPT_ENCODING, asked.parse().expect("a header"))]);
            assert_eq!(negotiate(&headers), coding, "{asked}");
            let takes_gzip = coding.is_some() && !asked.starts_with("gzip;q=0,");
            assert_eq!(accepts_gzip(&headers), takes_gzip, "{asked}");
        }
        assert_eq!(negotiate(&HeaderMap::new()), None);
    }
}

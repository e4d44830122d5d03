//! Request bodies: content types, and streaming decompression under a size limit. Memory is
//! reserved before it is allocated.

use std::io::Read;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;

use super::error::ApiError;
use super::{Gateway, shares};
use crate::model::share::ShareLease;

/// Granularity of memory reservations, in bytes.
const STEP: usize = 64 * 1024;
/// Largest zstd window accepted: 2^23 = 8 MiB, what the usual levels need.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Most members of a gzip body or frames of a zstd body. Even an empty one costs time.
pub const MAX_MEMBERS: usize = 1_000;

/// Encoding of the events in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    /// One event, or an array of events.
    Json,
    /// One event per line.
    Ndjson,
    /// One map, or an array of maps.
    MessagePack,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    /// Deflate in the format of zlib, which is what the name means in HTTP (RFC 9110).
    Deflate,
    Zstd,
}

/// Memory reserved for a body; released on drop.
pub struct BodyReservation(ShareLease);

impl BodyReservation {
    /// A reservation of no bytes yet.
    ///
    /// # Errors
    /// In theory those of [`shares::reserve`]; reserving nothing cannot fail.
    pub(super) fn new(gateway: &Gateway, tenant: &Arc<str>) -> Result<Self, ApiError> {
        shares::reserve(&gateway.shares.inflight, tenant, 0).map(Self)
    }

    /// A reservation of no bytes yet, for a body whose tenant is known only once it is read.
    ///
    /// # Errors
    /// In theory those of [`shares::reserve`]; reserving nothing cannot fail.
    pub(super) fn of_nobody(gateway: &Gateway) -> Result<Self, ApiError> {
        shares::reserve(&gateway.shares.unidentified, &shares::NOBODY, 0).map(Self)
    }

    /// The largest that it may become while nothing else is in flight.
    fn largest(&self) -> usize {
        usize::try_from(self.0.pool().limits().per_tenant).unwrap_or(usize::MAX)
    }

    /// Grows the reservation to `bytes`, if it is smaller. Fails with 429 or 503 if too many
    /// bytes are in flight, and with 413 if so many may never be.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), ApiError> {
        let largest = self.largest();
        if bytes > largest {
            // A client told to retry would do so for ever.
            return Err(ApiError::too_large(format!(
                "the request takes {bytes} bytes of memory, and one may take {largest} (a part of \
                 {}): send several",
                self.0.pool().name
            )));
        }
        let more = (bytes as u64).saturating_sub(self.0.amount());
        if more == 0 {
            return Ok(());
        }
        let step = more.next_multiple_of(STEP as u64);
        // A step beyond the largest could never be taken.
        let room = (largest as u64).saturating_sub(self.0.amount());
        shares::grow(&mut self.0, step.min(room))
    }

    /// Makes room for `more` bytes of a body of at most `max`, while `beside` further bytes are in
    /// memory. Reserves exactly what it then allocates.
    fn reserve_for(
        &mut self,
        whole: &mut Vec<u8>,
        more: usize,
        max: usize,
        beside: usize,
    ) -> Result<(), ApiError> {
        let needed = whole.len() + more;
        if needed > max {
            return Err(body_too_large(max));
        }
        if needed > whole.capacity() {
            // The first allocation is as large as the first piece: most bodies are small and arrive
            // in one.
            let room = self.largest().saturating_sub(beside);
            let capacity = needed.max((2 * whole.capacity()).min(room)).min(max);
            self.grow_to(beside + capacity)?;
            whole.reserve_exact(capacity - whole.len());
        }
        Ok(())
    }
}

/// The format named by `Content-Type`. A page whose origin is listed may also send JSON as
/// `text/plain`, because `sendBeacon` can use no other type without a preflight.
///
/// # Errors
/// 415 for any other type.
pub fn format_of(headers: &HeaderMap, is_listed: bool) -> Result<BodyFormat, ApiError> {
    // A value that is not ASCII is an unknown type, not a missing one.
    let named = headers
        .get(header::CONTENT_TYPE)
        .map_or("application/json", |named| named.to_str().unwrap_or("?"));
    let named = named.split(';').next().unwrap_or_default().trim();
    let is = |kind: &str| named.eq_ignore_ascii_case(kind);
    if is("application/json") || (is_listed && is("text/plain")) {
        Ok(BodyFormat::Json)
    } else if is("application/x-ndjson") || is("application/ndjson") {
        Ok(BodyFormat::Ndjson)
    } else if is("application/msgpack") || is("application/x-msgpack") {
        Ok(BodyFormat::MessagePack)
    } else {
        let message =
            "Content-Type is application/json, application/x-ndjson or application/msgpack";
        Err(unsupported(message))
    }
}

fn unsupported(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
}

const ENCODINGS: &str = "Content-Encoding is gzip, deflate or zstd, once";

fn encoding_of(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    let mut named = headers.get_all(header::CONTENT_ENCODING).iter();
    let encoding = match named
        .next()
        .map(|v| v.to_str().unwrap_or("?").trim().to_ascii_lowercase())
        .as_deref()
    {
        None | Some("" | "identity") => Encoding::Identity,
        Some("gzip" | "x-gzip") => Encoding::Gzip,
        Some("deflate") => Encoding::Deflate,
        Some("zstd") => Encoding::Zstd,
        Some(_) => return Err(unsupported(ENCODINGS)),
    };
    if named.next().is_some() { Err(unsupported(ENCODINGS)) } else { Ok(encoding) }
}

/// Receives and decompresses a body.
///
/// # Errors
/// 400 if it is broken, 408 if it is late, 413 if it is too large, 415 for an unknown coding, 429
/// or 503 without memory for it.
pub async fn read_body(
    gateway: &Arc<Gateway>,
    tenant: &Arc<str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, BodyReservation), ApiError> {
    let reservation = BodyReservation::new(gateway, tenant)?;
    read_body_into(gateway, tenant, headers, body, reservation, Sniffing::Off).await
}

/// Whether a body without `Content-Encoding` may be compressed nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sniffing {
    /// The header says it.
    Off,
    /// A body that begins like gzip is: no JSON does.
    Gzip,
}

/// Like [`read_body`], in memory that a reservation was made for already.
pub(super) async fn read_body_into(
    gateway: &Arc<Gateway>,
    tenant: &Arc<str>,
    headers: &HeaderMap,
    body: Body,
    reservation: BodyReservation,
    sniffing: Sniffing,
) -> Result<(Bytes, BodyReservation), ApiError> {
    let mut encoding = encoding_of(headers)?;
    let deadline = gateway.deps.config.server.body_timeout;
    let read = tokio::time::timeout(deadline, collect(gateway, reservation, body)).await.map_err(
        |_| {
            let message = format!("the body did not arrive within {} s", deadline.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        },
    )?;
    let (packed, mut reservation) = read?;
    if sniffing == Sniffing::Gzip && packed.starts_with(b"\x1f\x8b") {
        encoding = Encoding::Gzip;
    }
    if encoding == Encoding::Identity {
        return Ok((packed, reservation));
    }
    let max = gateway.deps.config.accept.max_body.in_memory();
    let work = move || {
        decompress(max, encoding, &packed, &mut reservation).map(|body| (body, reservation))
    };
    // In the pool whatever the size: a small body may decompress to a large one.
    gateway.readers.run(tenant, work).await.map_err(|_| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "decompression crashed")
    })?
}

async fn collect(
    gateway: &Gateway,
    mut reservation: BodyReservation,
    mut body: Body,
) -> Result<(Bytes, BodyReservation), ApiError> {
    let max = gateway.deps.config.accept.max_body.in_memory();
    // Refuses by the declared length before reading, and so before hyper answers `Expect:
    // 100-continue`.
    if body.size_hint().lower() > max as u64 {
        return Err(body_too_large(max));
    }
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::unreadable(format!("the body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        reservation.reserve_for(&mut whole, data.len(), max, 0)?;
        whole.extend_from_slice(&data);
    }
    Ok((Bytes::from(whole), reservation))
}

fn body_too_large(max: usize) -> ApiError {
    ApiError::too_large(format!(
        "a body is at most {max} bytes decompressed (accept.max_body): send several"
    ))
}

fn decompress(
    max: usize,
    encoding: Encoding,
    packed: &[u8],
    reservation: &mut BodyReservation,
) -> Result<Bytes, ApiError> {
    let broken =
        |e: std::io::Error| ApiError::unreadable(format!("the body does not decompress: {e}"));
    let (mut whole, mut rest) = (Vec::new(), packed);
    // A body may be several members, as `cat a.gz b.gz` writes; all of them are decompressed.
    for _ in 0..MAX_MEMBERS {
        rest = match encoding {
            Encoding::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(rest).map_err(broken)?.single_frame();
                // The decoder allocates its window outside of the reservation.
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(broken)?;
                take_member(max, &mut decoder, packed.len(), &mut whole, reservation)?;
                decoder.finish()
            }
            Encoding::Deflate => {
                let mut decoder = flate2::bufread::ZlibDecoder::new(rest);
                take_member(max, &mut decoder, packed.len(), &mut whole, reservation)?;
                decoder.into_inner()
            }
            _ => {
                let mut decoder = flate2::bufread::GzDecoder::new(rest);
                take_member(max, &mut decoder, packed.len(), &mut whole, reservation)?;
                decoder.into_inner()
            }
        };
        if rest.is_empty() {
            return Ok(Bytes::from(whole));
        }
    }
    Err(ApiError::unreadable(format!("a compressed body has at most {MAX_MEMBERS} members")))
}

/// Appends the decompressed content of one member.
fn take_member(
    max: usize,
    member: &mut dyn Read,
    packed_bytes: usize,
    whole: &mut Vec<u8>,
    reservation: &mut BodyReservation,
) -> Result<(), ApiError> {
    let mut chunk = vec![0; STEP];
    loop {
        let n = member
            .read(&mut chunk)
            .map_err(|e| ApiError::unreadable(format!("the body does not decompress: {e}")))?;
        if n == 0 {
            return Ok(());
        }
        // Limits what is really decompressed: a size declared in a header cannot be trusted.
        reservation.reserve_for(whole, n, max, packed_bytes)?;
        whole.extend_from_slice(&chunk[..n]);
    }
}

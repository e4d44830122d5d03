//! How a connection ends: the close codes, and the frame that tells the client why.

use axum::extract::ws::{CloseFrame, Message};
use axum::http::StatusCode;

use super::super::codes::{NOT_UTF8, PROTOCOL, TOO_LARGE};
use super::super::error::ApiError;

/// Longest reason of a close frame, in bytes (RFC 6455: 125 with the code).
const MAX_REASON: usize = 123;

/// Why a connection ends, and how.
#[derive(Debug)]
pub(super) enum CloseReason {
    /// The client sent a close frame, which is answered.
    ByClient,
    /// The client has disconnected.
    Disconnected,
    /// The reader is too slow: closed at once, dropping what is queued.
    TooSlow,
    /// Closed with this code and reason, after the pending acknowledgements.
    ByServer(u16, String),
    /// Like `ByServer`, for an invalid message: the error itself is sent before the close frame.
    Refused(u16, ApiError),
}

impl CloseReason {
    pub(super) fn by_server(code: u16, reason: &str) -> Self {
        Self::ByServer(code, reason.to_owned())
    }

    /// The close reason after a read error. The library does not export its error kinds,
    /// so its texts decide.
    pub(super) fn from_error(error: &axum::Error) -> Self {
        let why = error.to_string();
        let code = if why.contains("Space limit") {
            TOO_LARGE
        } else if why.contains("UTF-8") {
            NOT_UTF8
        } else if why.contains("WebSocket protocol") && !why.contains("without closing handshake") {
            PROTOCOL
        } else {
            return Self::Disconnected;
        };
        let code_name = if code == TOO_LARGE { "message_too_large" } else { "message_unreadable" };
        Self::Refused(code, ApiError::new(StatusCode::BAD_REQUEST, code_name, why))
    }
}

/// The close frame with this code; a reason that is too long is truncated.
pub(super) fn close_frame(code: u16, reason: &str) -> Message {
    let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
    Message::Close(Some(CloseFrame { code, reason: reason.to_owned().into() }))
}

//! API keys: stored hashed, compared in constant time, sent as `Authorization: Bearer
//! KEY`. Interfaces whose existing clients support nothing else also take a key as the
//! password of `Authorization: Basic`, or its user without a password, or in body or parameters.
//!
//! The tenant follows from the key alone. Without a keys file every request is tenant `default`
//! with all scopes, and the node listens on loopback only.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use super::keys_file;
pub use super::keys_file::{KeysError, KeysFile, Scope, StoredKey};

/// The tenant of every request to a node without keys.
pub const DEFAULT_TENANT: &str = "default";
/// Allocated once: every request to a node without keys needs it.
static OPEN_TENANT: LazyLock<Arc<str>> = LazyLock::new(|| DEFAULT_TENANT.into());
const PREFIX_BYTES: usize = 11;
/// With what every key begins.
const KEY_START: &str = "rm_";
/// The length of every key: its start, and 24 bytes in hexadecimal.
const KEY_BYTES: usize = KEY_START.len() + 48;

/// The API keys in force.
#[derive(Debug, Clone)]
pub struct KeyTable {
    keys: Option<Vec<(StoredKey, Arc<str>)>>,
    tenants: usize,
}

/// Builds a key from random bytes. Returns the plain key, which is shown once, its
/// prefix, and its hash.
pub fn new_key(random: [u8; 24]) -> (String, String, String) {
    let plain = format!("{KEY_START}{}", hex(&random));
    let prefix = plain[..PREFIX_BYTES].to_owned();
    let hash = hash_key(&plain);
    (plain, prefix, hash)
}

/// Whether a text has the form of a key.
fn is_key(text: &str) -> bool {
    text.len() == KEY_BYTES && text.starts_with(KEY_START)
}

/// Overwrites a key in what is kept of a request, all but its prefix, so that no file holds it.
/// What has not the form of a key stays: clients of a node without keys send any text.
pub fn mask_key(kept: &mut [u8], key: &str) {
    if !is_key(key) {
        return;
    }
    let finder = memchr::memmem::Finder::new(key);
    let mut from = 0;
    while let Some(at) = finder.find(&kept[from..]) {
        let end = from + at + key.len();
        kept[from + at + PREFIX_BYTES..end].fill(b'*');
        from = end;
    }
}

/// The SHA-256 hash that the keys file stores, as hexadecimal.
pub fn hash_key(plain: &str) -> String {
    hex(&Sha256::digest(plain.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let halves = bytes.iter().flat_map(|b| [b >> 4, b & 15]);
    halves.map(|half| char::from(DIGITS[usize::from(half)])).collect()
}

impl KeyTable {
    /// A table without keys: every request is tenant `default`.
    pub fn open() -> Self {
        Self { keys: None, tenants: 1 }
    }

    /// A table of exactly these keys.
    pub fn of(file: KeysFile) -> Self {
        let tenants = file
            .keys
            .iter()
            .map(|key| key.tenant.as_str())
            .collect::<std::collections::BTreeSet<_>>()
            .len();
        Self {
            keys: Some(file.keys.into_iter().map(|k| (k.clone(), k.tenant.into())).collect()),
            tenants,
        }
    }

    /// Number of distinct tenants that the keys name.
    pub fn tenants(&self) -> usize {
        self.tenants
    }

    /// Whether the node runs without keys.
    pub fn is_open(&self) -> bool {
        self.keys.is_none()
    }

    /// Reads the table from a keys file.
    ///
    /// # Errors
    /// If the file cannot be read or is invalid; the caller keeps the table it has.
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        Ok(Self::of(keys_file::read(path)?))
    }

    /// The tenant whose key these headers carry.
    ///
    /// # Errors
    /// 401 for a missing, unknown or expired key; 403 if the key lacks the scope.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        scope: Scope,
        now: i64,
    ) -> Result<Arc<str>, ApiError> {
        if self.is_open() {
            // `origin_policy` has already checked who may reach a node without keys.
            return Ok(OPEN_TENANT.clone());
        }
        self.tenant_of(authorization(headers, "bearer"), scope, now)
    }

    /// Like [`Self::authenticate`], but also accepts the key as the password of `Basic`,
    /// with any user name, or as the user name without a password.
    ///
    /// # Errors
    /// 401 or 403, as [`Self::authenticate`] does.
    pub fn authenticate_or_basic(
        &self,
        headers: &HeaderMap,
        scope: Scope,
        now: i64,
    ) -> Result<Arc<str>, ApiError> {
        let Some(credentials) = authorization(headers, "basic").filter(|_| !self.is_open()) else {
            return self.authenticate(headers, scope, now);
        };
        self.tenant_of(basic_key(credentials).as_deref(), scope, now)
    }

    /// The tenant of a key that stands in a body or a parameter, because its clients put it there.
    ///
    /// # Errors
    /// 401 or 403, as [`Self::authenticate`] does.
    pub fn authenticate_key(
        &self,
        plain: Option<&str>,
        scope: Scope,
        now: i64,
    ) -> Result<Arc<str>, ApiError> {
        if self.is_open() {
            return Ok(OPEN_TENANT.clone());
        }
        self.tenant_of(plain, scope, now)
    }

    /// The tenant of a valid key, whatever its scopes. Takes a bearer token or a `Basic` password.
    pub fn owner(&self, authorization: Option<&HeaderValue>, now: i64) -> Option<Arc<str>> {
        if self.is_open() {
            return Some(OPEN_TENANT.clone());
        }
        self.valid_key(authorization, now).map(|(_, tenant)| tenant.clone())
    }

    /// The prefix of a valid key, which names it without revealing it; `None` on a node without
    /// keys.
    pub fn key_prefix(&self, authorization: Option<&HeaderValue>, now: i64) -> Option<String> {
        self.valid_key(authorization, now).map(|(key, _)| key.prefix.clone())
    }

    /// The scopes of a valid key; `None` on a node without keys.
    pub fn scopes(&self, authorization: Option<&HeaderValue>, now: i64) -> Option<Vec<Scope>> {
        self.valid_key(authorization, now).map(|(key, _)| key.scopes.clone())
    }

    /// The scopes of a valid key that is no header; `None` on a node without keys.
    pub fn scopes_of_key(&self, plain: &str, now: i64) -> Option<Vec<Scope>> {
        self.valid_plain_key(plain, now).map(|(key, _)| key.scopes.clone())
    }

    fn valid_key(
        &self,
        authorization: Option<&HeaderValue>,
        now: i64,
    ) -> Option<&(StoredKey, Arc<str>)> {
        let (scheme, credentials) = authorization?.to_str().ok()?.split_once(' ')?;
        let decoded;
        let plain = if scheme.eq_ignore_ascii_case("basic") {
            decoded = basic_key(credentials.trim())?;
            &decoded
        } else {
            credentials
        };
        self.valid_plain_key(plain, now)
    }

    fn valid_plain_key(&self, plain: &str, now: i64) -> Option<&(StoredKey, Arc<str>)> {
        let keys = self.keys.as_deref()?;
        let hash = hash_key(plain.trim());
        let found =
            keys.iter().find(|(key, _)| bool::from(key.sha256.as_bytes().ct_eq(hash.as_bytes())));
        found.filter(|(key, _)| key.expires_ms.is_none_or(|at| at > now))
    }

    fn tenant_of(&self, plain: Option<&str>, scope: Scope, now: i64) -> Result<Arc<str>, ApiError> {
        let refuse = || {
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "send a valid key as Authorization: Bearer KEY",
            )
        };
        let (keys, plain) = (self.keys.as_deref().unwrap_or_default(), plain.ok_or_else(refuse)?);
        let hash = hash_key(plain.trim());
        // Compares every key, each in constant time, so that the response time reveals nothing.
        let found = keys.iter().fold(None, |found, entry| {
            if bool::from(entry.0.sha256.as_bytes().ct_eq(hash.as_bytes())) {
                Some(entry)
            } else {
                found
            }
        });
        let Some((key, tenant)) = found else {
            tracing::debug!("a request was refused: nobody has its key");
            return Err(refuse());
        };
        // From here on the log names the key by its prefix, which does not reveal it.
        if key.expires_ms.is_some_and(|at| at <= now) {
            tracing::debug!(
                key = %key.prefix,
                %tenant,
                "a request was refused: its key has expired"
            );
            return Err(refuse());
        }
        if !key.scopes.contains(&scope) {
            tracing::debug!(
                key = %key.prefix,
                %tenant,
                ?scope,
                "a request was refused: its key lacks the scope"
            );
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                format!("the key lacks the scope {scope:?}").to_lowercase(),
            ));
        }
        Ok(tenant.clone())
    }
}

/// The key in credentials of `Basic`: the password, or the user if there is no password, which is
/// where Segment's clients put it.
fn basic_key(credentials: &str) -> Option<String> {
    let text = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(if password.is_empty() { user } else { password }.to_owned())
}

/// The credentials of the header `Authorization`, if it uses this scheme.
fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (named, credentials) =
        headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if named.eq_ignore_ascii_case(scheme) { Some(credentials.trim()) } else { None }
}

/// Whether the key is sent as the password of `Basic`.
pub fn is_basic(headers: &HeaderMap) -> bool {
    authorization(headers, "basic").is_some()
}

//! API keys: stored hashed, compared in constant time, sent as `Authorization: Bearer KEY`; where
//! an interface is another's whose clients know nothing else, also as the password of
//! `Authorization: Basic`.
//!
//! A key alone names the tenant. Without a keys file everything is tenant `default` with all
//! scopes, and the node binds to loopback only.

use std::path::Path;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use super::keys_file;
pub use super::keys_file::{KeysError, KeysFile, Scope, StoredKey};

/// The tenant when there are no keys.
pub const DEFAULT_TENANT: &str = "default";
const PREFIX_BYTES: usize = 11;

/// The keys in force.
#[derive(Debug, Clone)]
pub struct KeyTable {
    keys: Option<Vec<(StoredKey, Arc<str>)>>,
    tenants: usize,
}

/// Makes a key from randomness: the plain key, shown once, and its prefix and hash.
pub fn new_key(random: [u8; 24]) -> (String, String, String) {
    let plain = format!("rm_{}", hex(&random));
    let prefix = plain[..PREFIX_BYTES].to_owned();
    let hash = hash_key(&plain);
    (plain, prefix, hash)
}

/// The hash that is stored.
pub fn hash_key(plain: &str) -> String {
    hex(&Sha256::digest(plain.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl KeyTable {
    /// No keys: everything is tenant `default`.
    pub fn open() -> Self {
        Self { keys: None, tenants: 1 }
    }

    /// These keys and no others.
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

    /// How many tenants there are.
    pub fn tenants(&self) -> usize {
        self.tenants
    }

    /// Whether keys are configured.
    pub fn is_open(&self) -> bool {
        self.keys.is_none()
    }

    /// Reads a keys file.
    ///
    /// # Errors
    /// If it cannot be read or holds mistakes; the caller keeps the table it has.
    pub fn load(path: &Path) -> Result<Self, KeysError> {
        Ok(Self::of(keys_file::read(path)?))
    }

    /// The tenant that sends these headers.
    ///
    /// # Errors
    /// 401 for a missing, unknown or expired key; 403 if it lacks the scope.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        scope: Scope,
        now: i64,
    ) -> Result<Arc<str>, ApiError> {
        if self.is_open() {
            // Who may ask a node without keys, `sites` has decided.
            return Ok(DEFAULT_TENANT.into());
        }
        self.tenant_of(authorization(headers, "bearer"), scope, now)
    }

    /// The same, the key being sent as a bearer or as the password of Basic, whose user may be
    /// anything.
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub fn authenticate_or_basic(
        &self,
        headers: &HeaderMap,
        scope: Scope,
        now: i64,
    ) -> Result<Arc<str>, ApiError> {
        let Some(credentials) = authorization(headers, "basic").filter(|_| !self.is_open()) else {
            return self.authenticate(headers, scope, now);
        };
        let text =
            STANDARD.decode(credentials).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        self.tenant_of(
            text.as_deref().and_then(|text| text.split_once(':')).map(|(_, key)| key),
            scope,
            now,
        )
    }

    /// The tenant of a valid key, whatever it may do.
    pub fn owner(&self, authorization: Option<&HeaderValue>, now: i64) -> Option<Arc<str>> {
        let Some(keys) = self.keys.as_deref() else { return Some(DEFAULT_TENANT.into()) };
        let (scheme, credentials) = authorization?.to_str().ok()?.split_once(' ')?;
        let decoded;
        let plain = if scheme.eq_ignore_ascii_case("basic") {
            decoded = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
            decoded.split_once(':')?.1
        } else {
            credentials
        };
        let hash = hash_key(plain.trim());
        let found =
            keys.iter().find(|(key, _)| bool::from(key.sha256.as_bytes().ct_eq(hash.as_bytes())));
        found
            .filter(|(key, _)| key.expires_ms.is_none_or(|at| at > now))
            .map(|(_, tenant)| tenant.clone())
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
        // Every key is compared, each in constant time.
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
        if key.expires_ms.is_some_and(|at| at <= now) {
            tracing::debug!(key = %key.prefix, %tenant, "a request was refused: its key has expired");
            return Err(refuse());
        }
        if !key.scopes.contains(&scope) {
            tracing::debug!(key = %key.prefix, %tenant, ?scope, "a request was refused: its key lacks the scope");
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                format!("the key lacks the scope {scope:?}").to_lowercase(),
            ));
        }
        Ok(tenant.clone())
    }
}

/// The credentials of `Authorization`, if it has this scheme.
fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let (named, credentials) =
        headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if named.eq_ignore_ascii_case(scheme) { Some(credentials.trim()) } else { None }
}

/// Whether a key is sent as a password.
pub fn is_basic(headers: &HeaderMap) -> bool {
    authorization(headers, "basic").is_some()
}

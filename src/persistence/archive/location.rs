//! Where objects are stored, as configured: a local directory or an S3 bucket.
//!
//! Credentials come from a file in the format of the AWS tools, or from the environment and the
//! machine's role as `object_store` finds them (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
//! `AWS_SESSION_TOKEN`, web identity, instance metadata). They are never logged. Buckets are
//! addressed path-style, which MinIO and others require and AWS accepts.

use std::path::{Path as Directory, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::ArchiveError;

/// Limit for connecting, unless the request's own timeout is shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Retries within one request. After that the archiver retries, or the error is reported.
const RETRIES: usize = 3;

/// The location of one tier.
#[derive(Clone)]
pub struct TierLocation {
    /// Either `file:///path` or `s3://bucket/prefix`.
    pub url: String,
    /// S3 endpoint; empty means AWS.
    pub endpoint: String,
    /// S3 region; empty means that of the environment, or us-east-1.
    pub region: String,
    /// AWS credentials file; `None` means the environment.
    pub credentials: Option<PathBuf>,
    /// Limit for one request.
    pub timeout: Duration,
}

impl TierLocation {
    /// Opens the location. Sends nothing over the network: unreachable storage must not keep
    /// a node from starting.
    ///
    /// # Errors
    /// [`ArchiveError::Config`], with a message that names what is wrong and what is expected.
    pub fn open(&self) -> Result<Arc<dyn ObjectStore>, ArchiveError> {
        match self.url.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => open_directory(Directory::new(path)),
            Some(("s3", rest)) => self.open_bucket(rest),
            _ => Err(self.config_error("expected file:///path or s3://bucket/prefix")),
        }
    }

    /// Whether both are the same location, in whatever spelling. Moving objects between two names
    /// of one location would delete them.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.canonical_url() == other.canonical_url()
    }

    fn canonical_url(&self) -> String {
        // A path that exists is resolved, links and all; anything else is compared as text.
        let trimmed = self.url.trim_end_matches('/');
        let path =
            trimmed.strip_prefix("file://").and_then(|path| std::fs::canonicalize(path).ok());
        path.map_or_else(
            || format!("{trimmed} at {}", self.endpoint.trim_end_matches('/')),
            |path| format!("file://{}", path.display()),
        )
    }

    fn config_error(&self, why: &str) -> ArchiveError {
        // Text before an @ may be a secret that somebody put into the URL.
        let shown = self.url.rsplit_once('@').map_or(self.url.as_str(), |(_, shown)| shown);
        ArchiveError::Config(format!("{shown:?}: {why}"))
    }

    fn open_bucket(&self, rest: &str) -> Result<Arc<dyn ObjectStore>, ArchiveError> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || rest.contains(['@', '?', '#']) {
            return Err(self.config_error(
                "expected s3://bucket/prefix; credentials belong into archive.credentials_file or \
                 the environment",
            ));
        }
        // Bounds all attempts of one request together; the archiver has its own back-off.
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES,
            retry_timeout: self.timeout * 2,
        };
        let client = ClientOptions::new()
            .with_timeout(self.timeout)
            .with_connect_timeout(CONNECT_TIMEOUT.min(self.timeout))
            .with_allow_http(self.endpoint.starts_with("http://"));
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_virtual_hosted_style_request(false)
            .with_retry(retry)
            .with_client_options(client);
        if !self.endpoint.is_empty() {
            builder = builder.with_endpoint(self.endpoint.trim_end_matches('/'));
        }
        if !self.region.is_empty() {
            builder = builder.with_region(&self.region);
        }
        if let Some(path) = &self.credentials {
            let text = std::fs::read_to_string(path).map_err(|e| {
                ArchiveError::Config(format!("archive.credentials_file {}: {e}", path.display()))
            })?;
            let keys = Credentials::parse(&text).map_err(|why| {
                ArchiveError::Config(format!("archive.credentials_file {}: {why}", path.display()))
            })?;
            builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
            if let Some(token) = keys.token {
                builder = builder.with_token(token);
            }
        }
        let store = builder.build().map_err(|e| self.config_error(&e.to_string()))?;
        let prefix = prefix.trim_matches('/');
        Ok(if prefix.is_empty() {
            Arc::new(store)
        } else {
            Arc::new(PrefixStore::new(store, prefix))
        })
    }
}

/// Opens a local directory, and creates it if necessary.
///
/// # Errors
/// If the directory cannot be created or opened.
pub fn open_directory(path: &Directory) -> Result<Arc<dyn ObjectStore>, ArchiveError> {
    let failed = |why: String| ArchiveError::Config(format!("{}: {why}", path.display()));
    std::fs::create_dir_all(path).map_err(|e| failed(e.to_string()))?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|e| failed(e.to_string()))?;
    // Syncs file and directory before a put returns, so that the put is durable, as with S3.
    Ok(Arc::new(store.with_fsync(true)))
}

/// A key pair from a credentials file in the format of the AWS tools.
struct Credentials {
    id: String,
    secret: String,
    token: Option<String>,
}

impl Credentials {
    /// Reads the profile `default`, or the lines before the first profile header.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (mut ours, mut id, mut secret, mut token) = (true, None, None, None);
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
        {
            if line.starts_with('[') {
                ours = line == "[default]";
                continue;
            }
            let Some((name, value)) = line.split_once('=').filter(|_| ours) else { continue };
            let value = Some(value.trim().to_owned());
            match name.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
        match (id, secret) {
            (Some(id), Some(secret)) => Ok(Self { id, secret, token }),
            _ => Err("the profile [default] needs aws_access_key_id and aws_secret_access_key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str) -> TierLocation {
        TierLocation {
            url: url.to_owned(),
            endpoint: String::new(),
            region: String::new(),
            credentials: None,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn addresses_are_checked_and_secrets_in_them_are_not_shown() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(location(&format!("file://{}/new", dir.path().display())).open().is_ok());
        assert!(dir.path().join("new").is_dir());
        assert!(location("s3://bucket").open().is_ok());
        assert!(location("s3://bucket/a/b/").open().is_ok());
        for wrong in [
            "s3://",
            "s3:///prefix",
            "file://relative",
            "ftp://x/y",
            "bucket",
            "s3://id:secret@bucket/x",
            "s3://b/x?y=1",
        ] {
            match location(wrong).open() {
                Err(ArchiveError::Config(why)) => assert!(!why.contains("secret@"), "{why}"),
                other => panic!("{wrong}: {:?}", other.map(|_| ())),
            }
        }
    }

    #[test]
    fn one_place_may_be_written_in_several_ways() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("a")).expect("a directory");
        std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("b")).expect("a link");
        let at = |name: &str| location(&format!("file://{}/{name}", dir.path().display()));
        assert!(
            at("a").is_same_place(&at("a/"))
                && at("a").is_same_place(&at("b"))
                && at("a").is_same_place(&at("b/../a"))
        );
        assert!(!at("a").is_same_place(&at("c")));
        assert!(
            location("s3://b/x").is_same_place(&location("s3://b/x/"))
                && !location("s3://b/x").is_same_place(&location("s3://b/y"))
        );
    }

    #[test]
    fn credentials_are_those_of_the_default_profile() {
        let text = "# ours\n[other]\naws_access_key_id = no\n[default]\naws_access_key_id = \
                    A\naws_secret_access_key=s=/+\n\n[third]\naws_session_token = no\n";
        let keys = Credentials::parse(text).expect("keys");
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token), ("A", "s=/+", None));
        assert!(Credentials::parse("[default]\naws_access_key_id = A\n").is_err());
        let plain = Credentials::parse(
            "aws_access_key_id=A\naws_secret_access_key=B\naws_session_token=T\n",
        )
        .expect("keys");
        assert_eq!(plain.token.as_deref(), Some("T"));
    }
}

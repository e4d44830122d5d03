//! Mutual TLS between nodes: each side presents a certificate of the cluster's own authority and
//! verifies the other's.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The TLS configuration of a node, for both directions.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct MeshTls {
    pub acceptor: TlsAcceptor,
    pub connector: TlsConnector,
}

impl std::fmt::Debug for MeshTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = |e: &dyn std::fmt::Display| format!("{key} {}: {e}", path.display());
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|e| read(&e))?
        .collect::<Result<_, _>>()
        .map_err(|e| read(&e))?;
    if found.is_empty() { Err(read(&"no certificate is in it (PEM)")) } else { Ok(found) }
}

impl MeshTls {
    /// Reads this node's certificate chain and key, and the authority that signs the certificates
    /// of all nodes (PEM files).
    ///
    /// # Errors
    /// If a file cannot be used; names the configuration key, the file and the cause.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, String> {
        let chain = certificates(cert, "cluster.cert")?;
        let private = || {
            PrivateKeyDer::from_pem_file(key)
                .map_err(|e| format!("cluster.key {}: {e}", key.display()))
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca, "cluster.ca")? {
            roots.add(authority).map_err(|e| format!("cluster.ca {}: {e}", ca.display()))?;
        }
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
        let verifier = verifier.map_err(|e| format!("cluster.ca {}: {e}", ca.display()))?;
        let unusable = |e: tokio_rustls::rustls::Error| {
            format!("cluster.cert {} with cluster.key: {e}", cert.display())
        };
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let server = server
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private()?)
            .map_err(unusable)?;
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let client = client
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, private()?)
            .map_err(unusable)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }
}

/// Offers no certificate, so that every handshake fails.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// An acceptor that refuses every handshake.
///
/// # Errors
/// If the cryptographic library is unusable.
pub fn refuse_all() -> Result<TlsAcceptor, String> {
    let server =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let server = server
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    Ok(TlsAcceptor::from(Arc::new(server)))
}

//! rustls configurations for outgoing connections. Those for listeners are in `identity.rs`.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::identity;

/// A file of certificates that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub String);

/// TLS to upstreams: one trust and one identity, with HTTP/2 on offer and without.
#[derive(Clone)]
pub struct ClientTls {
    http2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl ClientTls {
    /// Trusts the system's roots (Mozilla's when the system has none) and these `authorities`; shows `client`'s certificate
    /// (with its key) to those who ask for one.
    ///
    /// # Errors
    /// When a file can't be read or is not what it should be.
    pub fn new(authorities: &[&Path], client: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let mut roots = system_roots();
        for path in authorities {
            add_file(&mut roots, path)?;
        }
        let failed = |cause: rustls::Error| TlsError(format!("TLS can't be set up: {cause}"));
        // The provider is named instead of taken from the process: which one is the process's own depends on what other
        // crates were built with.
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, secret) = identity::pair(cert, key)?;
                builder.with_client_auth_cert(chain, secret).map_err(failed)?
            }
        };
        Ok(Self::from(config))
    }

    /// HTTP/1.1 alone by ALPN.
    #[must_use]
    pub fn http1(&self) -> &Arc<ClientConfig> {
        &self.http1
    }

    /// HTTP/2 and HTTP/1.1 by ALPN.
    #[must_use]
    pub fn http2(&self) -> &Arc<ClientConfig> {
        &self.http2
    }

    /// Whether the two are clones of one.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.http1, &other.http1)
    }
}

impl From<ClientConfig> for ClientTls {
    fn from(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = Arc::new(config.clone());
        config.alpn_protocols.insert(0, b"h2".to_vec());
        Self { http2: Arc::new(config), http1 }
    }
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for problem in &found.errors {
        tracing::warn!(%problem, "some of the system's certificate authorities can't be read");
    }
    // System stores hold old entries that rustls does not take; one of them must not cost all others.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::info!("the system has no certificate authorities; using the built-in ones (Mozilla's)");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let wrong = |cause: &dyn std::fmt::Display| TlsError(format!("{}: {cause}", path.display()));
    let mut added = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(|cause| wrong(&cause))? {
        let certificate = certificate.map_err(|cause| wrong(&cause))?;
        roots.add(certificate).map_err(|cause| wrong(&cause))?;
        added += 1;
    }
    if added == 0 { Err(wrong(&"holds no certificate in PEM form")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_http2_where_it_may() {
        let tls = ClientTls::new(&[], None).unwrap();
        assert_eq!(tls.http1().alpn_protocols, [b"http/1.1".to_vec()]);
        assert_eq!(tls.http2().alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(tls.is(&tls.clone()) && !tls.is(&ClientTls::new(&[], None).unwrap()));
    }

    #[test]
    fn an_extra_authority_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(vec!["ca.example.com".into()]).unwrap();
        std::fs::write(&file, made.cert.pem()).unwrap();
        ClientTls::new(&[&file], None).unwrap();
    }

    #[test]
    fn a_useless_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing").unwrap();
        for file in [empty, folder.path().join("absent.pem")] {
            let Err(error) = ClientTls::new(&[&file], None) else { panic!("{} was read", file.display()) };
            let message = error.to_string();
            assert!(message.contains(file.file_name().unwrap().to_str().unwrap()), "{message}");
        }
    }
}

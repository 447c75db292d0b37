//! rustls configurations for outgoing connections. Those for listeners are in `identity.rs`.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// A file of certificates that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub String);

/// For outgoing connections: the system's roots (Mozilla's when the system has none) and `extra_ca`; HTTP/1.1 by ALPN.
///
/// # Errors
/// When `extra_ca` can't be read or holds no certificate.
pub fn client_config(extra_ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = system_roots();
    if let Some(path) = extra_ca {
        add_file(&mut roots, path)?;
    }
    // The provider is named instead of taken from the process: which one is the process's own depends on what other
    // crates were built with.
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|cause| TlsError(format!("TLS can't be set up: {cause}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
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
    let wrong = |cause: &dyn std::fmt::Display| TlsError(format!("egress.ca: {}: {cause}", path.display()));
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
    fn speaks_http_1_1_and_has_roots() {
        let config = client_config(None).unwrap();
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn an_extra_authority_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(vec!["ca.example.com".into()]).unwrap();
        std::fs::write(&file, made.cert.pem()).unwrap();
        client_config(Some(&file)).unwrap();
    }

    #[test]
    fn a_useless_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing").unwrap();
        for file in [empty, folder.path().join("absent.pem")] {
            let message = client_config(Some(&file)).unwrap_err().to_string();
            assert!(message.contains(file.file_name().unwrap().to_str().unwrap()), "{message}");
        }
    }
}

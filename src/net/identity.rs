//! A listener's certificate and key: read from files, read again when the files change. Connections that are open keep what
//! they began with; a new file that can't be used leaves the old certificate in place.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::tls::TlsError;
use crate::shutdown::Shutdown;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// A listener's certificate, as it is now.
#[derive(Debug)]
pub struct Identity {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
    /// The files that were read last, good or not.
    seen: Mutex<Option<[Stamp; 2]>>,
}

/// What changes with a file: replaced by another one, or written to.
type Stamp = (u64, u64, i64, i64, u64);

fn stamp(file: &Metadata) -> Stamp {
    (file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.size())
}

impl Identity {
    /// Reads a certificate chain (the listener's own first) and its key, both PEM.
    ///
    /// # Errors
    /// Names the file, and says what is wrong with it.
    pub fn load(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let seen = Mutex::new(stamps(cert, key));
        let current = ArcSwap::from_pointee(read(cert, key)?);
        Ok(Arc::new(Self { cert: cert.to_owned(), key: key.to_owned(), current, seen }))
    }

    /// TLS 1.2 and 1.3 with this certificate, HTTP/2 and HTTP/1.1 by ALPN. Sessions are resumed by tickets, which any thread
    /// can open: nothing is kept between connections.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let failed = |cause: rustls::Error| TlsError(format!("TLS can't be set up: {cause}"));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(failed)?;
        Ok(Arc::new(config))
    }

    /// Reads the files again when they changed since the last look. Answers whether there is a new certificate.
    ///
    /// # Errors
    /// What is wrong with the new files, once for each change of them; the old certificate stays.
    pub fn look(&self) -> Result<bool, TlsError> {
        let now = stamps(&self.cert, &self.key);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return Ok(false);
        }
        *seen = now;
        drop(seen);
        self.current.store(Arc::new(read(&self.cert, &self.key)?));
        Ok(true)
    }

    /// Looks every other second, until stopping begins.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = shutdown.stopping() => return,
            }
            match self.look() {
                Ok(false) => {}
                Ok(true) => tracing::info!(file = %self.cert.display(), "a new certificate is in use"),
                Err(problem) => tracing::warn!(%problem, "a new certificate can't be used; the old one stays"),
            }
        }
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn stamps(cert: &Path, key: &Path) -> Option<[Stamp; 2]> {
    let of = |path: &Path| std::fs::metadata(path).map(|file| stamp(&file)).ok();
    Some([of(cert)?, of(key)?])
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let (chain, secret) = pair(cert, key)?;
    CertifiedKey::from_der(chain, secret, &aws_lc_rs::default_provider()).map_err(|cause| match cause {
        rustls::Error::InconsistentKeys(_) => in_file("key", key, &"is not the key of the certificate"),
        other => in_file("key", key, &other),
    })
}

fn in_file(what: &str, path: &Path, cause: &dyn std::fmt::Display) -> TlsError {
    TlsError(format!("{what}: {}: {cause}", path.display()))
}

/// A certificate chain and a key, as they are in their files.
pub(super) fn pair(
    cert: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|cause| in_file("cert", cert, &cause))?;
    if chain.is_empty() {
        return Err(in_file("cert", cert, &"holds no certificate in PEM form"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|cause| in_file("key", key, &cause))?;
    Ok((chain, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec![name.into()]).unwrap();
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (cert, key)
    }

    #[test]
    fn new_files_are_taken_and_broken_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = write(folder.path(), "one.example.com");
        let identity = Identity::load(&cert, &key).unwrap();
        identity.server_config().unwrap();
        assert!(!identity.look().unwrap(), "nothing changed");
        let first = identity.current.load_full();

        write(folder.path(), "two.example.com");
        assert!(identity.look().unwrap());
        let second = identity.current.load_full();
        assert_ne!(first.cert, second.cert);

        std::fs::write(&cert, "half a certificate").unwrap();
        let problem = identity.look().unwrap_err().to_string();
        assert!(problem.contains("cert.pem"), "{problem}");
        assert!(!identity.look().unwrap(), "it is said once");
        assert_eq!(identity.current.load_full().cert, second.cert);

        std::fs::remove_file(&key).unwrap();
        assert!(identity.look().is_err());
        write(folder.path(), "three.example.com");
        assert!(identity.look().unwrap());
    }

    #[test]
    fn a_key_of_another_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, _) = write(folder.path(), "one.example.com");
        let other = tempfile::tempdir().unwrap();
        let (_, key) = write(other.path(), "two.example.com");
        let problem = Identity::load(&cert, &key).unwrap_err().to_string();
        assert!(problem.starts_with("key: ") && problem.contains("not the key of the certificate"), "{problem}");
    }
}

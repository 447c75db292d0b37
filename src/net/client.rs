//! Keyward's own small HTTP client, for token endpoints, identities and revocations. One connection a call: such calls
//! are rare, and "was anything written?" stays an honest question. Never follows a redirect, never retries.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Guard;

/// Bytes of an answer's head.
const HEAD_BYTES: usize = 32 * 1024;
/// Header lines of an answer's head.
const HEADERS: usize = 100;

/// Limits of a call.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// TCP and TLS together.
    pub connect: Duration,
    /// The whole call.
    pub total: Duration,
    /// Bytes of the answer's body.
    pub body: usize,
}

/// Makes calls.
#[derive(Clone)]
pub struct Client {
    guard: Arc<Guard>,
    tls: Arc<rustls::ClientConfig>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing was written: resolving, connecting, TLS, or a URL that can't be called. Safe to try again.
    #[error("the call was not sent: {0}")]
    Unsent(String),
    /// The request was (or may have been) written and no whole answer came: it may have had its effect.
    #[error("the call was sent and no whole answer came: {0}")]
    Ambiguous(String),
    /// The answer's body is larger than allowed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

impl Client {
    /// Over this guard and these roots.
    #[must_use]
    pub fn new(guard: Arc<Guard>, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { guard, tls }
    }

    /// Sends a request with an absolute URI (https, or http as the guard allows) and reads the whole answer.
    /// `Host`, `Content-Length`, `User-Agent`, `Accept-Encoding: identity` are set here. Must be called on the main
    /// runtime.
    ///
    /// Plain http goes to the guard's allowed private addresses only: whoever names a range there vouches for the way
    /// to it, and nobody can for the public Internet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn call(&self, request: Request<Bytes>, limits: &ClientLimits) -> Result<Response<Bytes>, ClientError> {
        let now = Instant::now();
        let deadline = now + limits.total;
        let connected = deadline.min(now + limits.connect);
        let place = Place::of(request.uri())?;
        let request = prepare(request, &place)?;

        let tcp = self
            .guard
            .dial(&place.host, place.port, connected.saturating_duration_since(now))
            .await
            .map_err(|cause| ClientError::Unsent(cause.to_string()))?;
        if place.https {
            let tls = timeout_at(connected, self.handshake(&place, tcp))
                .await
                .map_err(|_| ClientError::Unsent("the TLS handshake took too long".into()))??;
            exchange(tls, request, limits.body, deadline).await
        } else {
            let peer = tcp.peer_addr().map_err(|cause| ClientError::Unsent(cause.to_string()))?;
            if Guard::new(Vec::new()).check(peer.ip()).is_ok() {
                return Err(ClientError::Unsent("plain http is for private addresses only; use https".into()));
            }
            exchange(tcp, request, limits.body, deadline).await
        }
    }

    async fn handshake(&self, place: &Place, tcp: TcpStream) -> Result<TlsStream<TcpStream>, ClientError> {
        let name = ServerName::try_from(place.host.clone())
            .map_err(|_| ClientError::Unsent("the host is not a name that a certificate can be for".into()))?;
        TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, tcp)
            .await
            .map_err(|cause| ClientError::Unsent(format!("TLS: {cause}")))
    }
}

/// Where a call goes.
struct Place {
    https: bool,
    host: String,
    port: u16,
    authority: HeaderValue,
}

impl Place {
    fn of(uri: &Uri) -> Result<Self, ClientError> {
        let unsent = |why: &str| ClientError::Unsent(why.to_owned());
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(unsent("the URL is neither https nor http")),
        };
        let authority = uri.authority().ok_or_else(|| unsent("the URL has no host"))?;
        if authority.as_str().contains('@') {
            return Err(unsent("the URL holds a user name"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let own = if https { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(own);
        let shown = if port == own { authority.host().to_owned() } else { format!("{}:{port}", authority.host()) };
        let authority = HeaderValue::try_from(shown).map_err(|_| unsent("the URL's host can't be sent"))?;
        Ok(Self { https, host, port, authority })
    }
}

/// The request as it goes over the wire: origin form, our headers.
fn prepare(request: Request<Bytes>, place: &Place) -> Result<Request<Full<Bytes>>, ClientError> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from(path);
    head.headers.insert(HOST, place.authority.clone());
    head.headers.insert(USER_AGENT, HeaderValue::from_static(concat!("keyward/", env!("CARGO_PKG_VERSION"))));
    // Answers are small, and one that never has to be unpacked can't be a bomb.
    head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(Request::from_parts(head, Full::new(body)))
}

/// One request and its whole answer over a fresh connection.
async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    limit: usize,
    deadline: Instant,
) -> Result<Response<Bytes>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, connection) = http1::Builder::new()
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|cause| ClientError::Unsent(cause.to_string()))?;
    // The connection is driven here and not in a task of its own: when the caller goes, so does the socket.
    let mut connection = pin!(connection);
    let mut answer = pin!(answer(sender, request, limit));
    let both = async {
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    };
    timeout_at(deadline, both).await.unwrap_or_else(|_| Err(ClientError::Ambiguous("no answer in time".into())))
}

async fn answer(
    mut sender: SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, ClientError> {
    let ambiguous = |cause: &dyn std::fmt::Display| ClientError::Ambiguous(cause.to_string());
    let response: Response<Incoming> = sender.try_send_request(request).await.map_err(|mut failed| {
        // hyper gives the request back exactly when not a byte of it was written.
        match failed.take_message() {
            Some(_) => ClientError::Unsent(failed.error().to_string()),
            None => ambiguous(failed.error()),
        }
    })?;
    let (head, body) = response.into_parts();
    let encoded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if head.headers.get_all(CONTENT_ENCODING).iter().any(encoded) {
        return Err(ClientError::Ambiguous("the answer is compressed although that was not asked for".into()));
    }
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(Response::from_parts(head, body.to_bytes())),
        Err(cause) if cause.is::<LengthLimitError>() => Err(ClientError::TooLarge(limit)),
        Err(cause) => Err(ambiguous(&cause)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::ClientTls;

    fn client() -> Client {
        let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap()]);
        Client::new(Arc::new(guard), Arc::clone(ClientTls::new(&[], None).unwrap().http1()))
    }

    fn limits(total_ms: u64) -> ClientLimits {
        ClientLimits { connect: Duration::from_secs(2), total: Duration::from_millis(total_ms), body: 1024 }
    }

    fn post(url: &str) -> Request<Bytes> {
        Request::post(url).body(Bytes::from_static(b"a=b")).unwrap()
    }

    /// Reads a request's head and body start, sends `answer`, then closes or (with `hang`) keeps the socket open.
    async fn server(answer: &'static [u8], hang: bool) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let mut seen = [0u8; 4096];
                let _ = socket.read(&mut seen).await;
                let _ = socket.write_all(answer).await;
                if hang {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
            }
        });
        (port, calls)
    }

    async fn call(answer: &'static [u8], hang: bool) -> Result<Response<Bytes>, ClientError> {
        let (port, _) = server(answer, hang).await;
        client().call(post(&format!("http://127.0.0.1:{port}/token")), &limits(500)).await
    }

    #[tokio::test]
    async fn reads_a_whole_answer() {
        let answer = call(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true).await.unwrap();
        assert_eq!(answer.body().as_ref(), b"ok");
        let chunked = call(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true).await;
        assert_eq!(chunked.unwrap().body().as_ref(), b"ok");
        let until_close = call(b"HTTP/1.1 200 OK\r\n\r\nok", false).await;
        assert_eq!(until_close.unwrap().body().as_ref(), b"ok");
    }

    #[tokio::test]
    async fn sends_our_headers_in_origin_form() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut seen = vec![0u8; 4096];
            let length = socket.read(&mut seen).await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&seen[..length]).into_owned()
        });
        client().call(post(&format!("http://127.0.0.1:{port}/token?x=1")), &limits(2000)).await.unwrap();
        let seen = seen.await.unwrap();
        assert!(seen.starts_with("POST /token?x=1 HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{seen}");
        for line in ["accept-encoding: identity\r\n", "user-agent: keyward/", "content-length: 3\r\n"] {
            assert!(seen.contains(line), "{line} in {seen}");
        }
    }

    #[tokio::test]
    async fn trouble_after_writing_is_ambiguous() {
        for (answer, hang) in [
            (b"".as_slice(), true),
            (b"", false),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", false),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", true),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false),
            (b"not http at all\r\n\r\n", false),
            (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", false),
        ] {
            let got = call(answer, hang).await;
            let shown = String::from_utf8_lossy(answer);
            assert!(matches!(got, Err(ClientError::Ambiguous(_))), "{shown}: {got:?}");
        }
    }

    #[tokio::test]
    async fn a_drip_does_not_outlast_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n").await.unwrap();
            while socket.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let started = Instant::now();
        let got = client().call(post(&format!("http://127.0.0.1:{port}/")), &limits(300)).await;
        assert!(matches!(got, Err(ClientError::Ambiguous(_))));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_large_answer_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while socket.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let got = client().call(post(&format!("http://127.0.0.1:{port}/")), &limits(5000)).await;
        assert!(matches!(got, Err(ClientError::TooLarge(1024))), "{got:?}");
    }

    #[tokio::test]
    async fn redirects_are_answers() {
        let (second, calls) = server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:{second}/\r\nContent-Length: 0\r\n\r\n"
            );
            socket.write_all(answer.as_bytes()).await.unwrap();
        });
        let answer = client().call(post(&format!("http://127.0.0.1:{port}/")), &limits(2000)).await.unwrap();
        assert_eq!(answer.status(), 307);
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn what_was_never_sent_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = listener.local_addr().unwrap().port();
        drop(listener);
        for url in [
            format!("http://127.0.0.1:{closed}/"),
            "http://10.0.0.1/".into(),
            "ftp://127.0.0.1/".into(),
            "http://user:pass@127.0.0.1/".into(),
            "/only/a/path".into(),
        ] {
            let got = client().call(post(&url), &limits(2000)).await;
            assert!(matches!(got, Err(ClientError::Unsent(_))), "{url}: {got:?}");
        }
    }

    #[tokio::test]
    async fn tls_trouble_is_unsent_and_a_known_authority_is_trusted() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(mut socket) = acceptor.accept(socket).await else { continue };
                let mut seen = [0u8; 4096];
                let _ = socket.read(&mut seen).await;
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                let _ = socket.shutdown().await;
            }
        });
        let url = format!("https://localhost:{port}/");
        let guard = Arc::new(Guard::new(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]));
        let stranger = Client::new(Arc::clone(&guard), Arc::clone(ClientTls::new(&[], None).unwrap().http1()));
        let got = stranger.call(post(&url), &limits(2000)).await;
        assert!(matches!(got, Err(ClientError::Unsent(_))), "{got:?}");

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, made.cert.pem()).unwrap();
        let friend = Client::new(guard, Arc::clone(ClientTls::new(&[&file], None).unwrap().http1()));
        assert_eq!(friend.call(post(&url), &limits(2000)).await.unwrap().body().as_ref(), b"ok");
    }
}

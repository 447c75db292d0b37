//! One HTTP exchange over one connection: all that a command line needs. Plain http only to this machine.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

/// Longer than Keyward's own waiting for a provider.
const PATIENCE: Duration = Duration::from_secs(60);
const LARGEST_ANSWER: usize = 16 << 20;

/// An answer, held whole.
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// `Location`, if there is one.
    pub location: Option<String>,
    /// Body.
    pub body: Bytes,
}

/// Sends one request. Redirects are answers like any other.
pub async fn send(url: &Url, request: http::request::Builder, body: Bytes) -> anyhow::Result<Reply> {
    let shown = url.origin().ascii_serialization();
    match tokio::time::timeout(PATIENCE, exchange(url, request, body)).await {
        Ok(reply) => reply,
        Err(_) => bail!("{shown} did not answer within {} seconds", PATIENCE.as_secs()),
    }
}

async fn exchange(url: &Url, request: http::request::Builder, body: Bytes) -> anyhow::Result<Reply> {
    let host = url.host_str().context("the URL has no host")?;
    let port = url.port_or_known_default().context("the URL has no port")?;
    let shown = url.origin().ascii_serialization();
    // Whoever listens on the way would read the admin token.
    if url.scheme() == "http" && !is_loopback(url) {
        bail!("{shown} is not this machine: use https, or run the command there");
    }
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = request.uri(target).header(header::HOST, authority).body(Full::new(body))?;

    let reach = || format!("can't reach {shown}: is `keyward serve` running there? (--url or KEYWARD_ADMIN_URL)");
    // Brackets belong to the URL, not to the address.
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await.with_context(reach)?;
    match url.scheme() {
        "http" => converse(tcp, request).await,
        "https" => {
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
            let tls = TlsConnector::from(tls()?).connect(name, tcp).await;
            converse(tls.with_context(|| format!("{shown} could not prove who it is"))?, request).await
        }
        other => bail!("{other}: only http and https URLs are possible"),
    }
}

async fn converse<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<Reply>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let location = head.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = Limited::new(body, LARGEST_ANSWER).collect().await;
        let body = body.map_err(|cause| anyhow::anyhow!("the answer broke off: {cause}"))?.to_bytes();
        Ok(Reply { status: head.status, location, body })
    };
    tokio::pin!(exchange);
    // The connection works for the exchange; when it ends first, the exchange says why.
    tokio::select! {
        reply = &mut exchange => reply,
        _ = connection => exchange.await,
    }
}

fn tls() -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(native.certs);
    if added == 0 {
        bail!("this system has no certificate authorities to trust (SSL_CERT_FILE may name some)");
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
pub mod stand_in {
    //! A listener that gives prepared answers, one connection each, and tells what it was asked.

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    /// The base URL, and the requests as they came.
    pub async fn answering(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 16 << 10];
                let length = stream.read(&mut request).await.unwrap();
                asked.push(String::from_utf8_lossy(&request[..length]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (url, asked)
    }

    /// A JSON answer.
    pub fn json(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error() {
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}".to_owned();
        let (url, _) = stand_in::answering(vec![cut]).await;
        let told = send(&url.parse().unwrap(), Request::builder(), Bytes::new()).await.err().unwrap();
        assert!(told.to_string().starts_with("the answer broke off"), "{told}");
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_what_to_do() {
        let told = send(&"http://127.0.0.1:1".parse().unwrap(), Request::builder(), Bytes::new()).await.err().unwrap();
        assert!(told.to_string().starts_with("can't reach http://127.0.0.1:1: is `keyward serve` running"), "{told}");
    }

    #[tokio::test]
    async fn a_token_does_not_travel_in_the_clear() {
        let url = "http://keyward.example.com".parse().unwrap();
        let told = send(&url, Request::builder(), Bytes::new()).await.err().unwrap();
        assert!(told.to_string().contains("use https"), "{told}");
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        for (url, wanted) in [
            ("http://127.0.0.1:8081", true),
            ("http://[::1]:8081", true),
            ("http://localhost", true),
            ("http://keyward.example.com", false),
            ("http://127.0.0.1.example.com", false),
            ("http://x.localhost", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), wanted, "{url}");
        }
    }
}

//! A tiny client: one connection per request.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use url::Url;

use crate::ids::random;
use crate::sandbox::Sandbox;
use crate::secret::sha256;
use crate::shutdown::Shutdown;

pub(super) const CALLBACK: &str = "http://127.0.0.1:9/callback";

/// A running sandbox that ends with the test.
pub(super) struct World {
    pub(super) sandbox: Sandbox,
    shutdown: Shutdown,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.stop_now();
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// A query parameter of `Location`.
    pub(super) fn returned(&self, name: &str) -> Option<String> {
        let url = Url::parse(self.header("location")).unwrap();
        url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

pub(super) struct Pkce {
    pub(super) verifier: String,
    pub(super) challenge: String,
}

pub(super) fn pkce() -> Pkce {
    let verifier = URL_SAFE_NO_PAD.encode(random::<48>());
    Pkce { challenge: URL_SAFE_NO_PAD.encode(sha256(verifier.as_bytes())), verifier }
}

impl World {
    pub(super) async fn start() -> Self {
        let shutdown = Shutdown::new();
        let sandbox = Sandbox::start("127.0.0.1:0".parse().unwrap(), &shutdown).await.unwrap();
        Self { sandbox, shutdown }
    }

    /// Sends a request; an error when the connection or the body ends badly, or after ten seconds.
    pub(super) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, String> {
        let exchange = async {
            let stream = TcpStream::connect(self.sandbox.address()).await.map_err(|error| error.to_string())?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            let mut request = Request::builder().method(method).uri(target);
            request = request.header("host", self.sandbox.address().to_string());
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(Duration::from_secs(10), exchange).await.map_err(|_| String::from("no answer"))?
    }

    pub(super) async fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], b"").await.unwrap()
    }

    /// A call of the API with a bearer token and a JSON body (`Null`: none).
    pub(super) async fn api(&self, method: &str, target: &str, token: &str, body: Value) -> Answer {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, target, &headers, body.as_bytes()).await.unwrap()
    }

    pub(super) async fn form(&self, target: &str, pairs: &[(&str, &str)]) -> Result<Answer, String> {
        let body = serde_urlencoded::to_string(pairs).unwrap();
        self.send("POST", target, &[("content-type", "application/x-www-form-urlencoded")], body.as_bytes()).await
    }

    /// A call of the token endpoint with the client's credentials in the form.
    pub(super) async fn token(&self, pairs: &[(&str, &str)]) -> Result<Answer, String> {
        let client = [("client_id", self.sandbox.client_id()), ("client_secret", self.sandbox.client_secret())];
        self.form("/oauth/token", &[pairs, &client].concat()).await
    }

    pub(super) async fn refresh(&self, token: &str) -> Answer {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", token)]).await.unwrap()
    }

    pub(super) async fn redeem(&self, code: &str, verifier: &str) -> Answer {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", verifier),
        ];
        self.token(&pairs).await.unwrap()
    }

    /// An authorization request that is in order.
    pub(super) fn ask<'a>(&'a self, pkce: &'a Pkce) -> Vec<(&'a str, &'a str)> {
        vec![
            ("client_id", self.sandbox.client_id()),
            ("redirect_uri", CALLBACK),
            ("response_type", "code"),
            ("state", "a state & more"),
            ("scope", "User.Read Mail.Read"),
            ("code_challenge", &pkce.challenge),
            ("code_challenge_method", "S256"),
        ]
    }

    /// Says yes on the consent page and brings the code.
    pub(super) async fn allow(&self, pkce: &Pkce) -> String {
        let choice =
            [("person", "ada@example.com"), ("granted", "User.Read"), ("granted", "Mail.Read"), ("decision", "allow")];
        let answer = self.form("/oauth/authorize", &[self.ask(pkce).as_slice(), &choice].concat()).await.unwrap();
        assert_eq!(answer.status, StatusCode::SEE_OTHER);
        answer.returned("code").expect("a code came back")
    }
}

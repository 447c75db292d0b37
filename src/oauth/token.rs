//! The calls that need the client's credentials: exchange, refresh, revoke.
//!
//! These are three small forms over our own [`Client`], written by hand: the `oauth2` crate sends forms only (not JSON),
//! reads nothing but status 200 with JSON in the standard places, takes the last of two `access_token`s without a word,
//! and keeps secrets in types that serialise. Everything in `answer.rs` would have had to happen in front of it, and
//! all that was left to it is below.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::catalog::{ClientAuth, ClientCredentials, Pkce, Provider};
use crate::net::{Client, ClientError, ClientLimits};
use crate::secret::Secret;

use super::refusal::{self, transient};
use super::{Error, Tokens, answer};

/// DNS, TCP and TLS of a call.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const BODY: usize = 64 * 1024;

/// Makes the calls, with time limits.
#[derive(Clone)]
pub struct OAuthClient {
    http: Client,
    timeout: Duration,
}

/// Names and values of a request's body.
type Fields<'a> = Vec<(&'a str, &'a str)>;

impl OAuthClient {
    /// Over this client; `timeout` bounds a whole token call.
    #[must_use]
    pub fn new(http: Client, timeout: Duration) -> Self {
        Self { http, timeout }
    }

    /// Exchanges a code (RFC 6749 §4.1.3, RFC 7636 §4.5).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn exchange(
        &self,
        provider: &Provider,
        captures: &BTreeMap<String, String>,
        code: &Secret<String>,
        redirect_uri: &str,
        verifier: Option<&Secret<String>>,
    ) -> Result<Tokens, Error> {
        let mut fields: Fields<'_> =
            vec![("grant_type", "authorization_code"), ("code", code.expose()), ("redirect_uri", redirect_uri)];
        // The challenge was not sent to providers that refuse PKCE, and some refuse a verifier, too.
        if let Some(verifier) = verifier.filter(|_| provider.oauth.pkce == Pkce::S256) {
            fields.push(("code_verifier", verifier.expose()));
        }
        self.tokens(provider, &provider.oauth.token_url, captures, fields).await
    }

    /// Refreshes (RFC 6749 §6). Never retried here.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn refresh(
        &self,
        provider: &Provider,
        captures: &BTreeMap<String, String>,
        refresh: &Secret<String>,
    ) -> Result<Tokens, Error> {
        let url = provider.oauth.refresh_url.as_deref().unwrap_or(&provider.oauth.token_url);
        let fields = vec![("grant_type", "refresh_token"), ("refresh_token", refresh.expose().as_str())];
        self.tokens(provider, url, captures, fields).await
    }

    /// Revokes (RFC 7009). `Ok(false)`: the provider has no such endpoint.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn revoke(
        &self,
        provider: &Provider,
        captures: &BTreeMap<String, String>,
        token: &Secret<String>,
        kind: &str,
    ) -> Result<bool, Error> {
        let Some(url) = provider.oauth.revoke_url.as_deref() else { return Ok(false) };
        let fields = vec![("token", token.expose().as_str()), ("token_type_hint", kind)];
        let answer = self.post(provider, url, captures, fields).await?;
        // The standard says that the answer's body is of no interest (RFC 7009 §2.2).
        if answer.status() == StatusCode::OK || answer.status() == StatusCode::NO_CONTENT {
            return Ok(true);
        }
        match refusal::read(provider, answer.status(), answer.headers(), answer.body()) {
            // It is gone already: what was wanted. The standard wants 200 for this; Google and others answer 400.
            Error::Rejected { .. } => Ok(true),
            error => Err(error),
        }
    }

    /// Sends a request that needs no client credentials.
    pub(super) async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let limits = ClientLimits { connect: CONNECT.min(self.timeout), total: self.timeout, body: BODY };
        let host = request.uri().host().unwrap_or_default().to_owned();
        self.http.call(request, &limits).await.map_err(|cause| {
            // The only place that knows the cause; it holds no secret, and TLS trouble must be seen by somebody.
            tracing::warn!(host, %cause, "a call to a provider failed");
            match cause {
                ClientError::Unsent(_) => transient("it can't be reached", false),
                ClientError::Ambiguous(_) => transient("no whole answer came", true),
                ClientError::TooLarge(_) => transient("its answer is too large", true),
            }
        })
    }

    async fn tokens(
        &self,
        provider: &Provider,
        url: &str,
        captures: &BTreeMap<String, String>,
        fields: Fields<'_>,
    ) -> Result<Tokens, Error> {
        let answer = self.post(provider, url, captures, fields).await?;
        answer::read(provider, answer.status(), answer.headers(), answer.body())
    }

    async fn post(
        &self,
        provider: &Provider,
        url: &str,
        captures: &BTreeMap<String, String>,
        fields: Fields<'_>,
    ) -> Result<Response<Bytes>, Error> {
        let client = provider.client.as_ref().ok_or_else(|| misconfigured("not_configured"))?;
        let url = filled(provider, url, captures)?;
        self.send(authenticated(&url, provider.oauth.client_auth, client, fields)?).await
    }
}

/// A provider's URL with its `{name}`s filled in.
pub(super) fn filled(provider: &Provider, url: &str, captures: &BTreeMap<String, String>) -> Result<String, Error> {
    provider.fill(url, captures).map_err(|problem| {
        tracing::error!(provider = provider.id, %problem, "a URL of a provider can't be filled");
        misconfigured("bad_url")
    })
}

pub(super) fn misconfigured(code: &str) -> Error {
    Error::Misconfigured { code: code.to_owned() }
}

/// A request that shows who the client is, in the provider's way (RFC 6749 §2.3.1).
fn authenticated<'a>(
    url: &str,
    way: ClientAuth,
    client: &'a ClientCredentials,
    mut fields: Fields<'a>,
) -> Result<Request<Bytes>, Error> {
    let mut request = Request::post(url).header(ACCEPT, "application/json");
    let secret = client.secret.as_ref().map(|secret| secret.expose().as_str());
    match (way, secret) {
        (ClientAuth::Basic, Some(secret)) => {
            request = request.header(AUTHORIZATION, basic(&client.id, secret)?);
        }
        (ClientAuth::Post | ClientAuth::Json, Some(secret)) => {
            fields.push(("client_id", &client.id));
            fields.push(("client_secret", secret));
        }
        (ClientAuth::None, _) | (_, None) => fields.push(("client_id", &client.id)),
    }
    let (kind, body) = if way == ClientAuth::Json {
        let object: BTreeMap<_, _> = fields.into_iter().collect();
        ("application/json", serde_json::to_vec(&object).map_err(|_| misconfigured("bad_request"))?)
    } else {
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        ("application/x-www-form-urlencoded", form.into_bytes())
    };
    request.header(CONTENT_TYPE, kind).body(Bytes::from(body)).map_err(|_| misconfigured("bad_url"))
}

/// Both halves are form-encoded first: a colon in the id would otherwise split it elsewhere.
fn basic(id: &str, secret: &str) -> Result<HeaderValue, Error> {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!("{}:{}", encode(id), encode(secret)));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&text).map_err(|_| misconfigured("bad_client_credentials"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oauth::testing::{Heard, client, provider, server};

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    fn local(port: u16) -> Provider {
        let mut provider = provider();
        provider.oauth.token_url = format!("http://127.0.0.1:{port}/token");
        provider.oauth.revoke_url = Some(format!("http://127.0.0.1:{port}/revoke"));
        provider
    }

    const TOKEN: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"access_token\":\"a\"}";

    async fn exchange_as(way: ClientAuth, with_secret: bool) -> Heard {
        let (port, heard) = server(vec![TOKEN.to_owned()]).await;
        let mut provider = local(port);
        provider.oauth.client_auth = way;
        provider.client =
            Some(ClientCredentials { id: "my client".into(), secret: with_secret.then(|| secret("s:e&c+r%et")) });
        let answer = client(2000)
            .exchange(&provider, &BTreeMap::new(), &secret("c/o de"), "http://127.0.0.1/cb", Some(&secret("v")))
            .await;
        assert!(answer.is_ok());
        heard.lock().unwrap().remove(0)
    }

    #[tokio::test]
    async fn the_client_shows_who_it_is_in_each_way() {
        let common =
            "grant_type=authorization_code&code=c%2Fo+de&redirect_uri=http%3A%2F%2F127.0.0.1%2Fcb&code_verifier=v";
        let post = exchange_as(ClientAuth::Post, true).await;
        assert_eq!(post.body, format!("{common}&client_id=my+client&client_secret=s%3Ae%26c%2Br%25et"));
        assert!(post.head.starts_with("POST /token HTTP/1.1"));
        assert!(post.head.contains("accept: application/json"));
        assert!(!post.head.contains("authorization"));

        let basic = exchange_as(ClientAuth::Basic, true).await;
        assert_eq!(basic.body, common);
        let expected = STANDARD.encode("my+client:s%3Ae%26c%2Br%25et");
        assert!(basic.head.contains(&format!("authorization: Basic {expected}")), "{}", basic.head);

        let json = exchange_as(ClientAuth::Json, true).await;
        let body: serde_json::Value = serde_json::from_str(&json.body).unwrap();
        assert_eq!(body["client_secret"], "s:e&c+r%et");
        assert_eq!(body["code"], "c/o de");
        assert!(json.head.contains("content-type: application/json"));

        for public in [exchange_as(ClientAuth::None, true).await, exchange_as(ClientAuth::Basic, false).await] {
            assert_eq!(public.body, format!("{common}&client_id=my+client"));
        }
    }

    #[tokio::test]
    async fn a_provider_without_pkce_gets_no_verifier() {
        let (port, heard) = server(vec![TOKEN.to_owned()]).await;
        let mut provider = local(port);
        provider.oauth.pkce = Pkce::None;
        let verifier = secret("v");
        let got = client(2000).exchange(&provider, &BTreeMap::new(), &secret("c"), "x", Some(&verifier)).await;
        assert!(got.is_ok());
        assert!(!heard.lock().unwrap()[0].body.contains("verifier"));
    }

    #[tokio::test]
    async fn a_refresh_is_one_call_whatever_comes_back() {
        for (answer, ambiguous) in [
            (String::new(), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"acc".to_owned(), true),
            (format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(70_000)), true),
            ("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx".to_owned(), true),
            ("HTTP/1.1 308 Permanent Redirect\r\nLocation: /token\r\nContent-Length: 0\r\n\r\n".to_owned(), false),
            ("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n".to_owned(), false),
        ] {
            let (port, heard) = server(vec![answer.clone()]).await;
            let provider = local(port);
            let got = client(2000).refresh(&provider, &BTreeMap::new(), &secret("r")).await.err();
            let Some(Error::Transient { ambiguous: told, .. }) = got else { panic!("{answer}: {got:?}") };
            assert_eq!(told, ambiguous, "{answer}");
            assert_eq!(heard.lock().unwrap().len(), 1);
            assert!(heard.lock().unwrap()[0].body.starts_with("grant_type=refresh_token&refresh_token=r&"));
        }
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_and_may_have_acted() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = local(listener.local_addr().unwrap().port());
        let got = client(200).refresh(&provider, &BTreeMap::new(), &secret("r")).await.err();
        assert!(matches!(got, Some(Error::Transient { ambiguous: true, .. })), "{got:?}");
        drop(listener);
        let got = client(2000).refresh(&provider, &BTreeMap::new(), &secret("r")).await.err();
        assert!(matches!(got, Some(Error::Transient { ambiguous: false, .. })), "{got:?}");
    }

    #[tokio::test]
    async fn revoking_what_is_gone_is_done() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned();
        let error = |code: &str| {
            let body = format!(r#"{{"error":"{code}"}}"#);
            format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        let answers = vec![
            ok,
            error("invalid_token"),
            error("invalid_client"),
            "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
            error("unsupported_token_type"),
        ];
        let (port, heard) = server(answers).await;
        let mut provider = local(port);
        let client = client(2000);
        let mut results = Vec::new();
        for _ in 0..5 {
            results.push(client.revoke(&provider, &BTreeMap::new(), &secret("r"), "refresh_token").await);
        }
        assert!(matches!(results[0], Ok(true)) && matches!(results[1], Ok(true)));
        assert!(matches!(&results[2], Err(Error::Misconfigured { code }) if code == "invalid_client"));
        assert!(matches!(results[3], Err(Error::Transient { .. })));
        assert!(matches!(results[4], Err(Error::Misconfigured { .. })));
        assert!(heard.lock().unwrap()[0].body.starts_with("token=r&token_type_hint=refresh_token&client_id="));

        provider.oauth.revoke_url = None;
        let none = client.revoke(&provider, &BTreeMap::new(), &secret("r"), "refresh_token").await;
        assert!(matches!(none, Ok(false)));
    }

    #[tokio::test]
    async fn nothing_is_sent_without_client_credentials() {
        let mut provider = local(1);
        provider.client = None;
        let got = client(2000).refresh(&provider, &BTreeMap::new(), &secret("r")).await.err();
        assert!(matches!(got, Some(Error::Misconfigured { code }) if code == "not_configured"));
    }
}

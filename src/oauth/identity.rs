//! Whose token it is.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, Response, StatusCode};

use crate::catalog::{Captured, Injection, Provider};
use crate::secret::Secret;

use super::refusal::{passing, transient};
use super::token::{filled, misconfigured};
use super::{Error, Extras, OAuthClient, strict};

/// Who an account is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What never changes.
    pub subject: String,
    /// E-mail address.
    pub email: Option<String>,
    /// For people.
    pub name: Option<String>,
    /// Values captured from the identity answer, by name.
    pub captured: BTreeMap<String, String>,
}

impl OAuthClient {
    /// Asks whose token this is; from the token answer when the provider has no identity endpoint (`extras` must be
    /// given then).
    ///
    /// # Errors
    /// [`Error::Rejected`] when the provider answers 401: the token is not good.
    pub async fn identity(
        &self,
        provider: &Provider,
        captures: &BTreeMap<String, String>,
        access: &Secret<String>,
        extras: Option<&Extras>,
    ) -> Result<Identity, Error> {
        let Some(url) = provider.identity.url.as_deref() else {
            return match extras {
                Some(extras) => identity(provider, extras),
                // Only the token answer tells, and that is long gone: nothing is known to be wrong.
                None => Err(misconfigured("no_identity_endpoint")),
            };
        };
        let url = filled(provider, url, captures)?;
        let answer = self.send(with_token(provider, url, access)?).await?;
        read(provider, &answer)
    }
}

/// A GET with the token in it, put there just as for an agent's request.
fn with_token(provider: &Provider, mut url: String, access: &Secret<String>) -> Result<Request<Bytes>, Error> {
    let injection = provider.inject.prepare(access).map_err(|problem| {
        tracing::error!(provider = provider.id, %problem, "a token can't be put into a request");
        misconfigured("bad_token_template")
    })?;
    let headers = match injection {
        Injection::Headers(headers) => headers,
        Injection::Query { pair, headers, .. } => {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&pair);
            headers
        }
    };
    let mut request = Request::get(url)
        .header(ACCEPT, "application/json")
        .body(Bytes::new())
        .map_err(|_| misconfigured("bad_url"))?;
    for (name, value) in headers {
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

fn read(provider: &Provider, answer: &Response<Bytes>) -> Result<Identity, Error> {
    passing(answer.status(), answer.headers())?;
    match answer.status() {
        StatusCode::UNAUTHORIZED => return Err(rejected("invalid_token")),
        StatusCode::FORBIDDEN => return Err(misconfigured("identity_forbidden")),
        status if !status.is_success() => return Err(misconfigured("identity_refused")),
        _ => {}
    }
    let Some(body) = strict::parse(answer.body()) else {
        return Err(transient("its identity answer can't be read", false));
    };
    identity(provider, &Extras::new(body))
}

fn rejected(code: &str) -> Error {
    Error::Rejected { code: code.to_owned(), sign_in: false }
}

fn identity(provider: &Provider, answer: &Extras) -> Result<Identity, Error> {
    let wanted = &provider.identity;
    let Some(subject) = answer.pointer(&wanted.subject) else {
        // Slack answers 200 to everything.
        return Err(match answer.pointer("/error").as_deref() {
            Some(
                "invalid_auth" | "invalid_token" | "not_authed" | "token_revoked" | "token_expired"
                | "account_inactive",
            ) => rejected("invalid_token"),
            _ => misconfigured("identity_without_subject"),
        });
    };
    let captured = provider.captured.iter().filter_map(|(name, from)| match from {
        Captured::Identity(pointer) => Some((name.clone(), answer.pointer(pointer)?)),
        Captured::Callback(_) | Captured::Token(_) => None,
    });
    Ok(Identity {
        subject,
        email: wanted.email.iter().find_map(|pointer| answer.pointer(pointer)),
        name: wanted.name.as_deref().and_then(|pointer| answer.pointer(pointer)),
        captured: captured.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::InjectPlace;
    use crate::oauth::testing::{client, provider, server};

    fn answered(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    async fn ask(answer: String) -> Result<Identity, Error> {
        let (port, _) = server(vec![answer]).await;
        let mut provider = provider();
        provider.identity.url = Some(format!("http://127.0.0.1:{port}/me"));
        client(2000).identity(&provider, &BTreeMap::new(), &Secret::new("a".into()), None).await
    }

    #[tokio::test]
    async fn reads_who_it_is_by_pointers() {
        let (port, heard) = server(vec![answered(
            "200 OK",
            r#"{"id":42,"mail":null,"login":"ada@example.com","name":"Ada","site":"eu1"}"#,
        )])
        .await;
        let mut provider = provider();
        provider.identity.url = Some(format!("http://127.0.0.1:{port}/me?fields=id"));
        provider.captured.insert("site".into(), Captured::Identity("/site".into()));
        provider.inject.place = InjectPlace::Query { name: "api_key".into() };
        let token = Secret::new("to ken".to_owned());
        let who = client(2000).identity(&provider, &BTreeMap::new(), &token, None).await.unwrap();
        assert_eq!(
            who,
            Identity {
                subject: "42".into(),
                email: Some("ada@example.com".into()),
                name: Some("Ada".into()),
                captured: [("site".to_owned(), "eu1".to_owned())].into(),
            }
        );
        let head = heard.lock().unwrap()[0].head.clone();
        assert!(head.starts_with("GET /me?fields=id&api_key=to+ken HTTP/1.1"), "{head}");
        assert!(head.contains("accept: application/json"), "{head}");
    }

    #[tokio::test]
    async fn only_a_refused_token_is_rejected() {
        let rejected = |got: Result<Identity, Error>| matches!(got, Err(Error::Rejected { .. }));
        assert!(rejected(ask(answered("401 Unauthorized", "{}")).await));
        assert!(rejected(ask(answered("200 OK", r#"{"ok":false,"error":"token_revoked"}"#)).await));
        for (status, body) in
            [("403 Forbidden", "{}"), ("404 Not Found", "{}"), ("200 OK", r#"{"name":"nobody"}"#), ("200 OK", "[]")]
        {
            let got = ask(answered(status, body)).await;
            assert!(matches!(got, Err(Error::Misconfigured { .. })), "{status} {body}: {got:?}");
        }
        for (status, body) in
            [("500 Oops", "{}"), ("429 Slow", "{}"), ("302 Found", ""), ("200 OK", "<html>"), ("200 OK", "")]
        {
            let got = ask(answered(status, body)).await;
            assert!(matches!(got, Err(Error::Transient { .. })), "{status} {body}: {got:?}");
        }
    }

    #[tokio::test]
    async fn the_token_answer_may_tell_instead() {
        let mut provider = provider();
        provider.identity.url = None;
        let extras = Extras::new(serde_json::json!({"id": "u1"}));
        let token = Secret::new("a".to_owned());
        let who = client(2000).identity(&provider, &BTreeMap::new(), &token, Some(&extras)).await.unwrap();
        assert_eq!(who.subject, "u1");
    }
}

//! What a token endpoint said, read leniently and checked strictly.
//!
//! Lenient where servers are known to differ and nothing is lost by it (numbers as text, forms instead of JSON, errors
//! with status 200); strict where a wrong reading costs an account: nothing but a clear refusal of the grant is
//! [`Error::Rejected`], and nothing but a usable token is [`Tokens`]. The table of cases is at the bottom.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use zeroize::Zeroize;

use crate::catalog::Provider;
use crate::secret::Secret;

use super::refusal::{error_code, passing, refusal, transient};
use super::{Error, strict};

/// Tokens out of an answer.
pub struct Tokens {
    /// Access token, never empty.
    pub access: Secret<String>,
    /// Refresh token, when the answer held a non-empty one.
    pub refresh: Option<Secret<String>>,
    /// Life of the access token: the answer's if believable (1 s … 1 year), else the provider's default.
    pub expires_in: Duration,
    /// Life of the refresh token, when said.
    pub refresh_expires_in: Option<Duration>,
    /// Granted scopes, when said.
    pub scopes: Option<Vec<String>>,
    /// The rest of the answer, for identity and captured values.
    pub extras: Extras,
}

/// The whole answer, kept from view: it holds tokens.
pub struct Extras(pub(super) Value);

impl Extras {
    pub(super) const fn new(answer: Value) -> Self {
        Self(answer)
    }

    /// The text (or number, as text) at a JSON pointer.
    #[must_use]
    pub fn pointer(&self, pointer: &str) -> Option<String> {
        match self.0.pointer(pointer)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

impl Drop for Extras {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Reads an answer of a token endpoint.
///
/// # Errors
/// What the answer means when it holds no usable token.
pub(super) fn read(provider: &Provider, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Tokens, Error> {
    passing(status, headers)?;
    let Some(answer) = parse(headers, body) else {
        // A success that can't be read may have been one: the refresh token may be another by now.
        return Err(transient("the answer can't be read", status.is_success()));
    };
    if let Some(code) = error_code(provider, status, &answer.0) {
        return Err(refusal(provider, status, code, &answer.0));
    }
    if !status.is_success() {
        return Err(transient("an error without a code", false));
    }
    tokens(provider, answer)
}

/// The answer as an object. A form is read only when the answer says that it is one; everything but HTML is tried as JSON,
/// because servers are careless with `Content-Type`.
pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Option<Extras> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let answer = match kind.as_str() {
        "application/x-www-form-urlencoded" => parse_form(body)?,
        "text/html" | "application/xhtml+xml" => return None,
        _ => strict::parse(body)?,
    };
    answer.is_object().then(|| Extras::new(answer))
}

fn parse_form(body: &[u8]) -> Option<Value> {
    std::str::from_utf8(body).ok()?;
    let mut map = Map::new();
    for (name, value) in url::form_urlencoded::parse(body) {
        if map.insert(name.into_owned(), Value::String(value.into_owned())).is_some() {
            return None;
        }
    }
    Some(Value::Object(map))
}

fn tokens(provider: &Provider, answer: Extras) -> Result<Tokens, Error> {
    let fields = &provider.oauth.fields;
    let found = |pointer: &Option<String>, usual: &str| answer.0.pointer(pointer.as_deref().unwrap_or(usual));
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);

    let access = || {
        // Where the access token is in an odd place (Slack), `token_type` is about something else than how to send it.
        if fields.access_token.is_none()
            && let Some(kind) = text(answer.0.pointer("/token_type"))
            && !kind.eq_ignore_ascii_case("bearer")
        {
            return Err(Error::Misconfigured { code: "unsupported_token_type".to_owned() });
        }
        let access = text(found(&fields.access_token, "/access_token"))
            .map(Secret::new)
            .ok_or_else(|| transient("a success without an access token", true))?;
        // RFC 6749 §A.12; anything else could not be put into a header.
        if !access.expose().bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
            return Err(transient("an access token that can't be sent", true));
        }
        Ok(access)
    };
    let refresh = text(found(&fields.refresh_token, "/refresh_token")).map(Secret::new);
    let (access, refresh) = match (access(), refresh) {
        (Ok(access), refresh) => (access, refresh),
        (Err(cause), Some(refresh)) => return Err(Error::Unusable { refresh, cause: Box::new(cause) }),
        (Err(cause), None) => return Err(cause),
    };
    let expires_in = seconds(found(&fields.expires_in, "/expires_in"))
        .filter(|life| (SECOND..=YEAR).contains(life))
        .unwrap_or(provider.oauth.access_ttl);
    let refresh_expires_in = ["/refresh_token_expires_in", "/refresh_expires_in", "/x_refresh_token_expires_in"]
        .into_iter()
        .find_map(|pointer| seconds(answer.0.pointer(pointer)))
        // Zero stands for "never" at some; more than ten years is not worth remembering.
        .filter(|life| (SECOND..=YEAR * 10).contains(life));
    let scopes = found(&fields.scope, "/scope").and_then(|scope| scopes(scope, &provider.oauth.scope_separator));
    Ok(Tokens { access, refresh, expires_in, refresh_expires_in, scopes, extras: answer })
}

/// A number of seconds, also as text (`"3600"`) or with a fraction; `None` for what no length of time is.
fn seconds(value: Option<&Value>) -> Option<Duration> {
    let number = match value? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Duration::try_from_secs_f64(number).ok()
}

/// Granted scopes, from text or a list. Besides the provider's separator, blanks and commas separate: GitHub and Slack
/// answer with commas to what was asked with blanks. Nothing at all counts as not said: servers whose permissions are not
/// scopes send an empty text.
fn scopes(value: &Value, separator: &str) -> Option<Vec<String>> {
    let parts: Vec<&str> = match value {
        Value::String(text) if separator.trim().is_empty() => vec![text],
        Value::String(text) => text.split(separator.trim()).collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let mut scopes: Vec<String> = Vec::new();
    for scope in parts.into_iter().flat_map(|part| part.split([' ', ',', '\t', '\n', '\r'])) {
        if !scope.is_empty() && !scopes.iter().any(|known| known == scope) {
            scopes.push(scope.to_owned());
        }
    }
    (!scopes.is_empty()).then_some(scopes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oauth::testing::provider;

    const JSON: &str = "application/json";

    fn read_as(provider: &Provider, status: u16, kind: &str, body: &[u8]) -> Result<Tokens, Error> {
        let mut headers = HeaderMap::new();
        if !kind.is_empty() {
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        }
        read(provider, StatusCode::from_u16(status).unwrap(), &headers, body)
    }

    /// One word for what an answer means: `ok`, or class and code.
    fn meaning(answer: Result<Tokens, Error>) -> String {
        match answer {
            Ok(_) => "ok".into(),
            Err(Error::Transient { ambiguous: false, .. } | Error::Unknown { .. }) => "T".into(),
            Err(Error::Transient { ambiguous: true, .. }) => "T ambiguous".into(),
            Err(Error::Rejected { code, sign_in: false }) => format!("P {code}"),
            Err(Error::Rejected { code, sign_in: true }) => format!("P {code} sign_in"),
            Err(Error::Misconfigured { code }) => format!("C {code}"),
            Err(Error::Unusable { cause, .. }) => format!("{}, kept", meaning(Err(*cause))),
        }
    }

    #[test]
    fn every_answer_has_its_meaning() {
        let long = format!(r#"{{"error":"{}"}}"#, "a".repeat(65));
        let cases: &[(u16, &str, &[u8], &str)] = &[
            // Successes, odd ones included.
            (200, JSON, br#"{"access_token":"a"}"#, "ok"),
            (201, JSON, br#"{"access_token":"a"}"#, "ok"),
            (200, "application/json; charset=utf-8", br#" {"access_token":"a","token_type":"BEARER"} "#, "ok"),
            (200, "", br#"{"access_token":"a","token_type":"bearer"}"#, "ok"),
            (200, "text/plain", br#"{"access_token":"a","error":null,"token_type":""}"#, "ok"),
            (200, "text/javascript", br#"{"access_token":"a","error":""}"#, "ok"),
            (200, "application/x-www-form-urlencoded; charset=utf-8", b"access_token=a&scope=repo%2Cgist", "ok"),
            // Successes that are none.
            (200, JSON, br#"{"token_type":"bearer"}"#, "T ambiguous"),
            (200, JSON, br#"{"access_token":""}"#, "T ambiguous"),
            (200, JSON, br#"{"access_token":null}"#, "T ambiguous"),
            (200, JSON, br#"{"access_token":7}"#, "T ambiguous"),
            (200, JSON, br#"{"access_token":"a\r\nb"}"#, "T ambiguous"),
            (200, JSON, br#"{"access_token":"a","access_token":"b"}"#, "T ambiguous"),
            (200, JSON, br#"{"access_token":"a","scope":"x","scope":"x"}"#, "T ambiguous"),
            (200, "application/x-www-form-urlencoded", b"access_token=a&access_token=b", "T ambiguous"),
            (200, "application/x-www-form-urlencoded", b"access_token=\xff", "T ambiguous"),
            (200, "application/x-www-form-urlencoded", br#"{"access_token":"a"}"#, "T ambiguous"),
            (200, JSON, b"access_token=a", "T ambiguous"),
            (200, JSON, br#"{"access_token":"a""#, "T ambiguous"),
            (200, JSON, b"\xef\xbb\xbf{\"access_token\":\"a\"}", "T ambiguous"),
            (200, JSON, b"\xff\xfe{\0\"\0a\0\"\0}\0", "T ambiguous"),
            (200, JSON, br#"[{"access_token":"a"}]"#, "T ambiguous"),
            (200, JSON, b"null", "T ambiguous"),
            (200, JSON, b"", "T ambiguous"),
            (204, "", b"", "T ambiguous"),
            (200, "text/html", b"<html>Sign in to the network</html>", "T ambiguous"),
            (200, "text/html", br#"{"access_token":"a"}"#, "T ambiguous"),
            (200, JSON, br#"{"access_token":"a","token_type":"DPoP"}"#, "C unsupported_token_type"),
            // A refresh token beside a success that is none: whoever drops it may lose the account.
            (200, JSON, br#"{"refresh_token":"r"}"#, "T ambiguous, kept"),
            (200, JSON, br#"{"access_token":"","refresh_token":"r"}"#, "T ambiguous, kept"),
            (200, JSON, br#"{"access_token":"a\u0000","refresh_token":"r"}"#, "T ambiguous, kept"),
            (
                200,
                JSON,
                br#"{"access_token":"a","token_type":"DPoP","refresh_token":"r"}"#,
                "C unsupported_token_type, kept",
            ),
            (200, JSON, br#"{"access_token":"","refresh_token":""}"#, "T ambiguous"),
            (200, JSON, br#"{"access_token":"a","token_type":"mac"}"#, "C unsupported_token_type"),
            // Refused for good.
            (400, JSON, br#"{"error":"invalid_grant"}"#, "P invalid_grant"),
            (401, JSON, br#"{"error":"invalid_grant"}"#, "P invalid_grant"),
            (200, JSON, br#"{"error":"invalid_grant"}"#, "P invalid_grant"),
            (400, "application/x-www-form-urlencoded", b"error=invalid_grant", "P invalid_grant"),
            (400, JSON, br#"{"error":"invalid_grant","suberror":"bad_token"}"#, "P invalid_grant"),
            (400, JSON, br#"{"error":"invalid_grant","suberror":"basic_action"}"#, "P invalid_grant sign_in"),
            (400, JSON, br#"{"error":"invalid_grant","error_codes":[50076]}"#, "P invalid_grant sign_in"),
            (400, JSON, br#"{"error":"invalid_grant","error_codes":[70000]}"#, "P invalid_grant"),
            (
                400,
                JSON,
                br#"{"error":"invalid_grant","error_description":"AADSTS50076: use a second factor"}"#,
                "P invalid_grant sign_in",
            ),
            (400, JSON, br#"{"error":"interaction_required"}"#, "P interaction_required sign_in"),
            (400, JSON, br#"{"error":"consent_required"}"#, "P consent_required sign_in"),
            (400, JSON, br#"{"error":"login_required"}"#, "P login_required sign_in"),
            // The same words from somebody who may not say them.
            (403, JSON, br#"{"error":"invalid_grant"}"#, "T"),
            (404, JSON, br#"{"error":"invalid_grant"}"#, "T"),
            (500, JSON, br#"{"error":"invalid_grant"}"#, "T"),
            (503, JSON, br#"{"error":"invalid_grant"}"#, "T"),
            (400, "text/html", br#"{"error":"invalid_grant"}"#, "T"),
            (400, JSON, br#"{"error":"invalid_grant","error":"invalid_grant"}"#, "T"),
            (400, JSON, br#"["invalid_grant"]"#, "T"),
            (400, JSON, b"invalid_grant", "T"),
            // The operator's business.
            (401, JSON, br#"{"error":"invalid_client"}"#, "C invalid_client"),
            (400, JSON, br#"{"error":"unauthorized_client"}"#, "C unauthorized_client"),
            (400, JSON, br#"{"error":"invalid_request"}"#, "C invalid_request"),
            (400, JSON, br#"{"error":"unsupported_grant_type"}"#, "C unsupported_grant_type"),
            (400, JSON, br#"{"error":"invalid_scope"}"#, "C invalid_scope"),
            (200, JSON, br#"{"error":"incorrect_client_credentials"}"#, "C incorrect_client_credentials"),
            // Passing trouble.
            (400, JSON, br#"{"error":"temporarily_unavailable"}"#, "T"),
            (400, JSON, br#"{"error":"server_error"}"#, "T"),
            (400, JSON, br#"{"error":"slow_down"}"#, "T"),
            (400, JSON, br#"{"error":"something_new"}"#, "T"),
            (400, JSON, br#"{"error":"Invalid_Grant"}"#, "T"),
            (400, JSON, br#"{"error":{"code":190}}"#, "T"),
            (400, JSON, long.as_bytes(), "T"),
            (400, JSON, br#"{"message":"no"}"#, "T"),
            (400, JSON, br#"{"access_token":"a"}"#, "T"),
            (401, "", b"", "T"),
            (403, "text/html", b"<html>blocked</html>", "T"),
            (408, JSON, b"", "T"),
            (425, JSON, b"", "T"),
            (429, JSON, br#"{"error":"invalid_grant"}"#, "T"),
            (500, "text/html", b"<html>", "T"),
            (502, "text/html", b"<html>", "T ambiguous"),
            (503, "", b"", "T"),
            (504, "", b"", "T ambiguous"),
            (301, "", b"", "T"),
            (302, JSON, br#"{"access_token":"a"}"#, "T"),
            (303, "", b"", "T"),
            (307, JSON, br#"{"error":"invalid_grant"}"#, "T"),
            (308, "", b"", "T"),
        ];
        let provider = provider();
        for (status, kind, body, expected) in cases {
            let got = meaning(read_as(&provider, *status, kind, body));
            assert_eq!(&got, expected, "{status} {kind} {}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_providers_own_fatal_codes_end_an_account() {
        let mut provider = provider();
        provider.oauth.fatal_errors = vec!["bad_refresh_token".into(), "E-17".into()];
        provider.oauth.fields.error = Some("/problem/code".into());
        let read = |body: &str| meaning(read_as(&provider, 200, JSON, body.as_bytes()));
        assert_eq!(read(r#"{"problem":{"code":"bad_refresh_token"}}"#), "P bad_refresh_token");
        assert_eq!(read(r#"{"problem":{"code":"E-17"}}"#), "P unreadable");
        assert_eq!(read(r#"{"problem":{"code":"E-18"}}"#), "T");
        assert_eq!(read(r#"{"error":"not where it is","access_token":"a"}"#), "ok");
        assert_eq!(meaning(read_as(&provider, 400, JSON, br#"{"error":"invalid_grant"}"#)), "P invalid_grant");
    }

    fn tokens_of(provider: &Provider, body: &str) -> Tokens {
        read_as(provider, 200, JSON, body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    #[test]
    fn lives_are_believed_only_when_they_can_be_true() {
        let provider = provider();
        let default = provider.oauth.access_ttl.as_secs();
        for (said, expected) in [
            ("3599", 3599),
            (r#""3600""#, 3600),
            (r#"" 60 ""#, 60),
            ("3599.0", 3599),
            ("3.6e3", 3600),
            ("5", 5),
            ("31536000", 31_536_000),
            ("31536001", default),
            ("0", default),
            ("0.2", default),
            ("-1", default),
            ("9223372036854775808", default),
            ("1e300", default),
            (r#""NaN""#, default),
            (r#""inf""#, default),
            (r#""soon""#, default),
            (r#""""#, default),
            ("null", default),
            ("true", default),
            ("[60]", default),
        ] {
            let tokens = tokens_of(&provider, &format!(r#"{{"access_token":"a","expires_in":{said}}}"#));
            assert_eq!(tokens.expires_in.as_secs(), expected, "{said}");
        }
        assert_eq!(tokens_of(&provider, r#"{"access_token":"a"}"#).expires_in.as_secs(), default);
    }

    #[test]
    fn refresh_tokens_that_are_not_there_are_absent() {
        let provider = provider();
        for (said, expected) in [
            (r#"{"access_token":"a"}"#, None),
            (r#"{"access_token":"a","refresh_token":""}"#, None),
            (r#"{"access_token":"a","refresh_token":null}"#, None),
            (r#"{"access_token":"a","refresh_token":"r"}"#, Some("r")),
        ] {
            let refresh = tokens_of(&provider, said).refresh;
            assert_eq!(refresh.as_ref().map(|token| token.expose().as_str()), expected, "{said}");
        }
        let life = |said: &str| tokens_of(&provider, said).refresh_expires_in.map(|life| life.as_secs());
        assert_eq!(life(r#"{"access_token":"a","refresh_token_expires_in":604799}"#), Some(604_799));
        assert_eq!(life(r#"{"access_token":"a","refresh_expires_in":"0"}"#), None);
        assert_eq!(life(r#"{"access_token":"a","x_refresh_token_expires_in":8726400}"#), Some(8_726_400));
    }

    #[test]
    fn scopes_come_with_blanks_commas_or_as_a_list() {
        let mut provider = provider();
        let scopes = |provider: &Provider, said: &str| {
            tokens_of(provider, &format!(r#"{{"access_token":"a","scope":{said}}}"#)).scopes
        };
        let two = Some(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(scopes(&provider, r#""a b a""#), two);
        assert_eq!(scopes(&provider, r#""a,b""#), two);
        assert_eq!(scopes(&provider, r#"["a","b"]"#), two);
        assert_eq!(scopes(&provider, r#""""#), None);
        assert_eq!(scopes(&provider, "null"), None);
        provider.oauth.scope_separator = "|".into();
        assert_eq!(scopes(&provider, r#""a|b""#), two);
    }

    #[test]
    fn odd_places_are_found_by_pointers() {
        let mut provider = provider();
        provider.oauth.fields.access_token = Some("/authed_user/access_token".into());
        provider.oauth.fields.scope = Some("/authed_user/scope".into());
        let tokens = tokens_of(
            &provider,
            r#"{"ok":true,"token_type":"bot","authed_user":{"id":7,"access_token":"a","scope":"x,y"}}"#,
        );
        assert_eq!(tokens.access.expose(), "a");
        assert_eq!(tokens.scopes.unwrap().len(), 2);
        assert_eq!(tokens.extras.pointer("/authed_user/id").as_deref(), Some("7"));
        assert_eq!(tokens.extras.pointer("/nothing"), None);
    }
}

//! The authorization server's machine side: token endpoint, revocation (RFC 7009) and metadata (RFC 8414).

use aws_lc_rs::constant_time;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::Sandbox;
use super::consent::SCOPES;
use super::faults::{Fault, Place};
use super::server::Line;
use super::spoil::around;
use super::tokens::{Ended, Granted, Refused};

pub(super) fn router() -> Router<Sandbox> {
    Router::new()
        .route("/.well-known/oauth-authorization-server", get(metadata))
        .route("/oauth/token", post(token))
        .route("/oauth/revoke", post(revoke))
}

async fn metadata(State(sandbox): State<Sandbox>) -> Json<Value> {
    let origin = sandbox.origin();
    let scopes: Vec<&str> = SCOPES.iter().map(|(scope, _)| *scope).collect();
    Json(json!({
        "issuer": origin,
        "authorization_endpoint": format!("{origin}/oauth/authorize"),
        "token_endpoint": format!("{origin}/oauth/token"),
        "revocation_endpoint": format!("{origin}/oauth/revoke"),
        "scopes_supported": scopes,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "revocation_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
    }))
}

async fn token(
    State(sandbox): State<Sandbox>,
    Extension(line): Extension<Line>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form = Params::from_body(&headers, &body);
    let grant_type = form.as_ref().ok().and_then(|form| form.one("grant_type").ok().flatten());
    let label = match grant_type {
        Some(known @ ("authorization_code" | "refresh_token")) => known.to_owned(),
        _ => String::from("other"),
    };
    let fault = sandbox.0.faults.take(Place::Token);
    sandbox.count(|counters| {
        counters.token_arrived += 1;
        if let Some(fault) = &fault {
            counters.fault(fault.name());
            if fault.replaces_work() {
                counters.token_outcome(&label, "fault");
            }
        }
    });
    let work = async {
        let answer = match &form {
            Ok(form) => exchange(&sandbox, &headers, form, fault.as_ref()),
            Err(problem) => Err(Problem::request(problem)),
        };
        let outcome = answer.as_ref().map_or_else(|problem| problem.code, |_| "ok");
        sandbox.count(|counters| counters.token_outcome(&label, outcome));
        answer.map_or_else(IntoResponse::into_response, token_answer)
    };
    around(fault.clone(), &line, work).await
}

fn exchange(sandbox: &Sandbox, headers: &HeaderMap, form: &Params, fault: Option<&Fault>) -> Result<Granted, Problem> {
    authenticate(sandbox, headers, form)?;
    let now = sandbox.now();
    match form.need("grant_type")? {
        "authorization_code" => {
            let code = form.need("code")?;
            let redirect_uri = form.need("redirect_uri")?;
            let verifier = form.need("code_verifier")?;
            if !(43..=128).contains(&verifier.len()) {
                return Err(Problem::request("code_verifier must have 43 to 128 characters (RFC 7636 §4.1)"));
            }
            let redeemed = sandbox.tokens().redeem(code, redirect_uri, verifier, now);
            let (granted, person) = redeemed.map_err(|refused| refusal(sandbox, refused))?;
            sandbox.count(|counters| counters.family(granted.family, &person));
            Ok(granted)
        }
        "refresh_token" => {
            let token = form.need("refresh_token")?;
            let wanted = form.one("scope")?.map(|scopes| scopes.split_ascii_whitespace().map(str::to_owned).collect());
            let bend = fault.map(Fault::bend).unwrap_or_default();
            let refreshed = sandbox.tokens().refresh(token, wanted, bend, now);
            let granted = refreshed.map_err(|refused| refusal(sandbox, refused))?;
            sandbox.count(|counters| counters.refreshed(granted.family));
            Ok(granted)
        }
        _ => Err(Problem::new("unsupported_grant_type", "authorization_code and refresh_token are supported")),
    }
}

/// Counts what the refusal says, then puts it in the protocol's words.
fn refusal(sandbox: &Sandbox, refused: Refused) -> Problem {
    match refused {
        Refused::Grant(why) => Problem::new("invalid_grant", why),
        Refused::Scope => Problem::new("invalid_scope", "more than was granted"),
        Refused::CodeReused { family } => {
            sandbox.count(|counters| {
                counters.code_reuse_detected += 1;
                if let Some(family) = family {
                    counters.family_revoked(family);
                }
            });
            Problem::new("invalid_grant", "the code was used before; what it brought is revoked")
        }
        Refused::RefreshReused { family, family_died } => {
            sandbox.count(|counters| {
                counters.reused(family);
                if family_died {
                    counters.family_revoked(family);
                }
            });
            Problem::new("invalid_grant", "the refresh token was used before")
        }
    }
}

fn token_answer(granted: Granted) -> Response {
    let mut answer = json!({
        "token_type": "Bearer",
        "access_token": granted.access_token,
        "expires_in": granted.expires_in.as_secs(),
        "scope": granted.scopes.join(" "),
    });
    if let Some(refresh_token) = granted.refresh_token {
        answer["refresh_token"] = refresh_token.into();
    }
    if let Some(span) = granted.refresh_expires_in {
        answer["refresh_token_expires_in"] = span.as_secs().into();
    }
    // RFC 6749 §5.1 asks for both.
    ([(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")], Json(answer)).into_response()
}

async fn revoke(
    State(sandbox): State<Sandbox>,
    Extension(line): Extension<Line>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let fault = sandbox.0.faults.take(Place::Revoke);
    if let Some(fault) = &fault {
        sandbox.count(|counters| counters.fault(fault.name()));
    }
    let work = async {
        let form = Params::from_body(&headers, &body).map_err(|problem| Problem::request(&problem));
        match form.and_then(|form| revoke_token(&sandbox, &headers, &form)) {
            Ok(()) => StatusCode::OK.into_response(),
            Err(problem) => problem.into_response(),
        }
    };
    around(fault, &line, work).await
}

fn revoke_token(sandbox: &Sandbox, headers: &HeaderMap, form: &Params) -> Result<(), Problem> {
    authenticate(sandbox, headers, form)?;
    let ended = sandbox.tokens().revoke(form.need("token")?);
    sandbox.count(|counters| {
        counters.revoke_calls += 1;
        counters.revocations += u64::from(ended.is_some());
        if let Some(Ended::Family(family)) = ended {
            counters.family_revoked(family);
        }
    });
    // RFC 7009 §2.2: an unknown token is as good as a revoked one.
    Ok(())
}

/// By `Authorization: Basic` or in the form, never both (RFC 6749 §2.3).
fn authenticate(sandbox: &Sandbox, headers: &HeaderMap, form: &Params) -> Result<(), Problem> {
    let basic = headers.get(header::AUTHORIZATION).map(|value| basic_pair(value.as_bytes()));
    let (id, secret) = match (basic, form.one("client_secret")?) {
        (Some(_), Some(_)) => return Err(Problem::request("the client authenticates in two ways at once")),
        (Some(pair), None) => pair.ok_or_else(Problem::client)?,
        (None, Some(secret)) => (form.need("client_id")?.to_owned(), secret.to_owned()),
        (None, None) => return Err(Problem::client()),
    };
    let right = constant_time::verify_slices_are_equal(secret.as_bytes(), sandbox.client_secret().as_bytes()).is_ok();
    if right && id == sandbox.client_id() { Ok(()) } else { Err(Problem::client()) }
}

/// Both halves are form-encoded before they are joined (RFC 6749 §2.3.1).
fn basic_pair(value: &[u8]) -> Option<(String, String)> {
    let (scheme, rest) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let plain = |half: &str| {
        let form = format!("v={half}");
        serde_urlencoded::from_str::<Vec<(String, String)>>(&form).ok()?.into_iter().next().map(|(_, value)| value)
    };
    Some((plain(id)?, plain(secret)?))
}

/// An error of RFC 6749 §5.2.
pub(super) struct Problem {
    pub(super) code: &'static str,
    pub(super) description: String,
}

impl Problem {
    pub(super) fn new(code: &'static str, description: &str) -> Self {
        Self { code, description: description.to_owned() }
    }

    pub(super) fn request(description: &str) -> Self {
        Self::new("invalid_request", description)
    }

    fn client() -> Self {
        Self::new("invalid_client", "client_id or client_secret is wrong or missing")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.code, "error_description": self.description }));
        let no_store = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
        if self.code == "invalid_client" {
            let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"sandbox\"")];
            return (StatusCode::UNAUTHORIZED, no_store, challenge, body).into_response();
        }
        (StatusCode::BAD_REQUEST, no_store, body).into_response()
    }
}

/// Parameters of a query or form. A parameter that occurs twice is an error (RFC 6749 §3.1), an empty one is absent.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        serde_urlencoded::from_bytes(text).map(Self).map_err(|_| String::from("the parameters are not form-encoded"))
    }

    pub(super) fn from_body(headers: &HeaderMap, body: &[u8]) -> Result<Self, String> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(String::from("the content type must be application/x-www-form-urlencoded"));
        }
        Self::parse(body)
    }

    pub(super) fn one<'a>(&'a self, name: &str) -> Result<Option<&'a str>, Problem> {
        let mut found = self.all(name);
        let first = found.next();
        if found.next().is_some() {
            return Err(Problem::request(&format!("{name} occurs more than once")));
        }
        Ok(first.filter(|value| !value.is_empty()))
    }

    pub(super) fn need<'a>(&'a self, name: &str) -> Result<&'a str, Problem> {
        self.one(name)?.ok_or_else(|| Problem::request(&format!("{name} is missing")))
    }

    pub(super) fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

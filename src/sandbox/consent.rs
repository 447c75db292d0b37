//! The authorization server's human side: the page on which a person picks who they are and what they allow.

use askama::Template;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use url::{Host, Url};

use super::oauth::{Params, Problem};
use super::tokens::Consent;
use super::{PEOPLE, Sandbox, people};

/// What can be asked for, in Graph's words.
pub(super) const SCOPES: &[(&str, &str)] = &[
    ("openid", "Know who you are"),
    ("profile", "See your name"),
    ("email", "See your e-mail address"),
    ("offline_access", "Keep this access while you are away"),
    ("User.Read", "Read your profile"),
    ("Mail.Read", "Read your mail"),
    ("Mail.ReadWrite", "Read, change and delete your mail"),
    ("Mail.Send", "Send mail as you"),
    ("Mail.Read.Shared", "Read mailboxes shared with you"),
    ("Mail.ReadWrite.Shared", "Change mailboxes shared with you"),
    ("Mail.Send.Shared", "Send mail for mailboxes shared with you"),
    ("Calendars.Read", "Read your calendar"),
    ("Calendars.ReadWrite", "Read and change your calendar"),
    ("Calendars.Read.Shared", "Read calendars shared with you"),
    ("Calendars.ReadWrite.Shared", "Change calendars shared with you"),
];

pub(super) fn router() -> Router<Sandbox> {
    Router::new().route("/oauth/authorize", get(show).post(decide))
}

/// An authorization request that was found in order.
struct Asked {
    client_id: String,
    redirect_uri: String,
    state: String,
    scopes: Vec<String>,
    challenge: String,
    login_hint: String,
}

/// A request that was not. The redirect URI is trusted only once it and the client have been checked (RFC 6749 §4.1.2.1).
enum Wrong {
    Here(Problem),
    Back { redirect_uri: String, state: String, problem: Problem },
}

impl Asked {
    fn read(sandbox: &Sandbox, params: &Params) -> Result<Self, Wrong> {
        if params.need("client_id").map_err(Wrong::Here)? != sandbox.client_id() {
            return Err(Wrong::Here(Problem::request(
                "client_id is unknown here; it changes at every start of the sandbox",
            )));
        }
        let redirect_uri = params.need("redirect_uri").map_err(Wrong::Here)?;
        if !is_loopback(redirect_uri) {
            let problem = Problem::request("redirect_uri must be an http or https address on this machine");
            return Err(Wrong::Here(problem));
        }
        let state = params.one("state").map_err(Wrong::Here)?.unwrap_or_default();
        Self::read_rest(params, redirect_uri, state).map_err(|problem| Wrong::Back {
            redirect_uri: redirect_uri.to_owned(),
            state: state.to_owned(),
            problem,
        })
    }

    fn read_rest(params: &Params, redirect_uri: &str, state: &str) -> Result<Self, Problem> {
        if params.need("response_type")? != "code" {
            return Err(Problem::new("unsupported_response_type", "only response_type=code is supported"));
        }
        let challenge = params.one("code_challenge")?.unwrap_or_default();
        let method = params.one("code_challenge_method")?.unwrap_or("plain");
        let letters = challenge.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if method != "S256" || challenge.len() != 43 || !letters {
            return Err(Problem::request("PKCE with S256 is required: code_challenge, code_challenge_method=S256"));
        }
        let scopes: Vec<String> =
            params.one("scope")?.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
        let unknown = scopes.iter().find(|scope| !SCOPES.iter().any(|(known, _)| known == scope));
        if let Some(unknown) = unknown {
            return Err(Problem::new("invalid_scope", &format!("{unknown:?} is not a scope of the sandbox")));
        }
        if scopes.is_empty() {
            return Err(Problem::new("invalid_scope", "scope is missing"));
        }
        Ok(Self {
            client_id: params.need("client_id")?.to_owned(),
            redirect_uri: redirect_uri.to_owned(),
            state: state.to_owned(),
            scopes,
            challenge: challenge.to_owned(),
            login_hint: params.one("login_hint")?.unwrap_or_default().to_owned(),
        })
    }
}

fn is_loopback(redirect_uri: &str) -> bool {
    let Ok(url) = Url::parse(redirect_uri) else { return false };
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    let plain = url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    here && plain && matches!(url.scheme(), "http" | "https")
}

async fn show(State(sandbox): State<Sandbox>, RawQuery(query): RawQuery) -> Response {
    let asked = Params::parse(query.unwrap_or_default().as_bytes())
        .map_err(|problem| Wrong::Here(Problem::request(&problem)))
        .and_then(|params| Asked::read(&sandbox, &params));
    match asked {
        Ok(asked) => page(&asked),
        Err(wrong) => refuse(&sandbox, wrong),
    }
}

async fn decide(State(sandbox): State<Sandbox>, headers: HeaderMap, body: Bytes) -> Response {
    let decided = Params::from_body(&headers, &body)
        .map_err(|problem| Wrong::Here(Problem::request(&problem)))
        .and_then(|params| decision(&sandbox, &params));
    decided.unwrap_or_else(|wrong| refuse(&sandbox, wrong))
}

fn decision(sandbox: &Sandbox, params: &Params) -> Result<Response, Wrong> {
    let asked = Asked::read(sandbox, params)?;
    let back = |code, description: &str| Wrong::Back {
        redirect_uri: asked.redirect_uri.clone(),
        state: asked.state.clone(),
        problem: Problem::new(code, description),
    };
    if params.one("decision").map_err(Wrong::Here)? != Some("allow") {
        return Err(back("access_denied", "the person said no"));
    }
    let person = params.need("person").map_err(Wrong::Here)?;
    // The page offers a few; whoever posts the form may be anybody, as with `Sandbox::grant`.
    if !people::is_one(person) {
        return Err(Wrong::Here(Problem::request("choose one of the people")));
    }
    let granted: Vec<&str> = params.all("granted").collect();
    let scopes: Vec<String> = asked.scopes.iter().filter(|scope| granted.contains(&scope.as_str())).cloned().collect();
    if scopes.is_empty() {
        return Err(back("access_denied", "the person allowed nothing"));
    }
    let redirect_uri = asked.redirect_uri.clone();
    let consent = Consent { person: person.to_owned(), scopes, redirect_uri, challenge: asked.challenge };
    let now = sandbox.now();
    let code = sandbox.tokens().code(consent, now);
    Ok(redirect(sandbox, &asked.redirect_uri, &asked.state, &[("code", &code)]))
}

fn refuse(sandbox: &Sandbox, wrong: Wrong) -> Response {
    match wrong {
        Wrong::Here(problem) => {
            let page = Stopped { message: &problem.description };
            (StatusCode::BAD_REQUEST, page_headers(), Html(page.render().unwrap_or_default())).into_response()
        }
        Wrong::Back { redirect_uri, state, problem } => {
            let pairs = [("error", problem.code), ("error_description", problem.description.as_str())];
            redirect(sandbox, &redirect_uri, &state, &pairs)
        }
    }
}

/// Back to the client, with `state` as it came and `iss` (RFC 9207).
fn redirect(sandbox: &Sandbox, redirect_uri: &str, state: &str, pairs: &[(&str, &str)]) -> Response {
    let Ok(mut url) = Url::parse(redirect_uri) else { return StatusCode::BAD_REQUEST.into_response() };
    url.query_pairs_mut().extend_pairs(pairs);
    if !state.is_empty() {
        url.query_pairs_mut().append_pair("state", state);
    }
    url.query_pairs_mut().append_pair("iss", &sandbox.origin());
    let Ok(location) = HeaderValue::from_str(url.as_str()) else { return StatusCode::BAD_REQUEST.into_response() };
    let headers = [(header::LOCATION, location), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (StatusCode::SEE_OTHER, headers).into_response()
}

fn page(asked: &Asked) -> Response {
    let hinted = PEOPLE.iter().position(|person| *person == asked.login_hint).unwrap_or(0);
    let people = PEOPLE.iter().enumerate().map(|(index, person)| (*person, index == hinted)).collect();
    let scopes = SCOPES.iter().copied().filter(|(scope, _)| asked.scopes.iter().any(|asked| asked == scope)).collect();
    let scope = asked.scopes.join(" ");
    match (Page { asked, scope, scopes, people }).render() {
        Ok(html) => (page_headers(), Html(html)).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// No `form-action` here: browsers apply it to the redirect after the form too, and that goes to the client.
fn page_headers() -> [(header::HeaderName, &'static str); 3] {
    [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ]
}

#[derive(Template)]
#[template(
    ext = "html",
    source = r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Sandbox: allow access?</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0; display: grid; place-items: center; min-height: 100vh; background: Canvas; color: CanvasText; }
main { width: min(26rem, 100% - 2rem); padding: 1.5rem; border: 1px solid #8886; border-radius: .75rem; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; } p { margin: 0 0 1rem; } small { opacity: .7; }
fieldset { border: 0; margin: 0 0 1rem; padding: 0; } legend { font-weight: 600; }
label { display: flex; gap: .5rem; padding: .25rem 0; } label small { display: block; }
footer { display: flex; gap: .5rem; justify-content: flex-end; }
button { font: inherit; padding: .5rem 1rem; border: 1px solid #8888; border-radius: .5rem; cursor: pointer; }
button[value=allow] { background: #1a5fb4; border-color: #1a5fb4; color: #fff; }
</style>
</head>
<body>
<main>
<h1>Allow access?</h1>
<p>The application <strong>{{ asked.client_id }}</strong> wants to use an account of this sandbox.
<small>It goes back to {{ asked.redirect_uri }}.</small></p>
<form method="post" action="/oauth/authorize">
<input type="hidden" name="client_id" value="{{ asked.client_id }}">
<input type="hidden" name="redirect_uri" value="{{ asked.redirect_uri }}">
<input type="hidden" name="response_type" value="code">
<input type="hidden" name="state" value="{{ asked.state }}">
<input type="hidden" name="scope" value="{{ scope }}">
<input type="hidden" name="code_challenge" value="{{ asked.challenge }}">
<input type="hidden" name="code_challenge_method" value="S256">
<fieldset>
<legend>Who are you?</legend>
{% for (person, chosen) in people %}<label><input type="radio" name="person" value="{{ person }}"{% if *chosen %} checked{% endif %}> {{ person }}</label>
{% endfor %}</fieldset>
<fieldset>
<legend>What may it do?</legend>
{% for (scope, meaning) in scopes %}<label><input type="checkbox" name="granted" value="{{ scope }}" checked> <span>{{ meaning }} <small>{{ scope }}</small></span></label>
{% endfor %}</fieldset>
<footer>
<button name="decision" value="deny">Deny</button>
<button name="decision" value="allow">Allow</button>
</footer>
</form>
</main>
</body>
</html>
"##
)]
struct Page<'a> {
    asked: &'a Asked,
    scope: String,
    scopes: Vec<(&'static str, &'static str)>,
    people: Vec<(&'static str, bool)>,
}

#[derive(Template)]
#[template(
    ext = "html",
    source = r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Sandbox: this can’t go on</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0; display: grid; place-items: center; min-height: 100vh; background: Canvas; color: CanvasText; }
main { width: min(26rem, 100% - 2rem); padding: 1.5rem; border: 1px solid #8886; border-radius: .75rem; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; } p { margin: 0 0 1rem; } small { opacity: .7; }
fieldset { border: 0; margin: 0 0 1rem; padding: 0; } legend { font-weight: 600; }
label { display: flex; gap: .5rem; padding: .25rem 0; } label small { display: block; }
footer { display: flex; gap: .5rem; justify-content: flex-end; }
button { font: inherit; padding: .5rem 1rem; border: 1px solid #8888; border-radius: .5rem; cursor: pointer; }
button[value=allow] { background: #1a5fb4; border-color: #1a5fb4; color: #fff; }
</style>
</head>
<body>
<main>
<h1>This can’t go on</h1>
<p>{{ message }}</p>
<p><small>Nothing was sent back to the application, because the request does not prove where it came from.</small></p>
</main>
</body>
</html>
"##
)]
struct Stopped<'a> {
    message: &'a str,
}

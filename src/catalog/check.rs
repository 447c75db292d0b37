//! One provider's table → [`Provider`], with everything about it checked.
//!
//! After a mistake reading goes on with a harmless value, so that one start shows all of them; the loader keeps no
//! provider that had one.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::capability::capability;
use super::keys::Keys;
use super::names::{Known, Names};
use super::{
    Captured, ClientAuth, Identity, Inject, InjectPlace, Input, OAuth, OAuthFields, Pkce, Provider, Rotation, target,
    template,
};

/// Parameters of the authorization URL that the flow sets; data must not.
const FLOW_PARAMS: [&str; 9] = [
    "client_id",
    "client_secret",
    "redirect_uri",
    "response_type",
    "response_mode",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
];

/// Headers that frame or route a request: no credential and no constant goes there.
const FRAMING_HEADERS: [&str; 11] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "expect",
];

pub(super) fn provider(id: &str, mut keys: Keys<'_>) -> Provider {
    if !template::is_name(id) {
        keys.bad("id", format!("`{id}` is not a provider's id: 1 to 64 of a-z, 0-9 and _"));
    }
    if keys.text("id").is_some_and(|written| written != id) {
        keys.bad("id", format!("must be `{id}`, the name it is filed under"));
    }
    let name = keys.need("name");
    let env = keys.text("env").unwrap_or_else(|| id.to_ascii_uppercase());
    if env.len() > 64 || !env.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_')) {
        keys.bad("env", format!("`{env}` can't be part of a variable's name: A-Z, 0-9 and _"));
    }
    let docs = keys.text("docs");
    if let Some(docs) = &docs
        && let Err(cause) = target::check_endpoint(docs)
    {
        keys.bad("docs", cause.to_string());
    }
    let inputs = inputs(&mut keys);
    let captured = captured(&mut keys, &inputs);
    let names = Names { inputs: &inputs, captured: &captured };
    let oauth = oauth(keys.inside("oauth"), &names);
    let identity = identity(&mut keys, &names);
    let inject = inject(keys.inside("inject"));
    let mut capabilities = BTreeMap::new();
    for (id, keys) in keys.tables("capabilities") {
        capabilities.insert(id.to_owned(), capability(id, keys, &names));
    }
    if capabilities.is_empty() {
        keys.bad("capabilities", "a provider needs at least one capability");
    }
    keys.finish();
    Provider {
        id: id.to_owned(),
        name,
        env,
        docs,
        oauth,
        identity,
        inputs,
        captured,
        inject,
        capabilities,
        client: None,
    }
}

fn inputs(keys: &mut Keys<'_>) -> BTreeMap<String, Input> {
    let mut inputs = BTreeMap::new();
    for (name, mut keys) in keys.tables("inputs") {
        if !template::is_name(name) {
            keys.bad("label", format!("`{name}` can't be an input's name: 1 to 64 of a-z, 0-9 and _"));
        }
        let input = Input { label: keys.need("label"), default: keys.text("default"), pattern: keys.text("pattern") };
        match input.pattern.as_deref().map(template::whole) {
            Some(Err(problem)) => keys.bad("pattern", problem),
            Some(Ok(pattern)) if input.default.as_ref().is_some_and(|value| !pattern.is_match(value)) => {
                keys.bad("default", "does not match the input's pattern");
            }
            _ => {}
        }
        keys.finish();
        inputs.insert(name.to_owned(), input);
    }
    inputs
}

fn captured(keys: &mut Keys<'_>, inputs: &BTreeMap<String, Input>) -> BTreeMap<String, Captured> {
    let map = keys.map("captured");
    let keys = keys.below("captured");
    let mut captured = BTreeMap::new();
    for (name, text) in map {
        if !template::is_name(&name) {
            keys.bad(&name, "can't be a captured value's name: 1 to 64 of a-z, 0-9 and _");
        }
        if inputs.contains_key(&name) {
            keys.bad(&name, "is an input too; a value is either asked for or captured");
        }
        let (source, pointer) = text.split_once(':').unwrap_or((&text, ""));
        let value = match source {
            "callback" => Captured::Callback(pointer.to_owned()),
            "token" => Captured::Token(pointer.to_owned()),
            "identity" => Captured::Identity(pointer.to_owned()),
            _ => {
                keys.bad(&name, format!("`{text}` must be callback:, token: or identity: and a JSON pointer"));
                continue;
            }
        };
        check_pointer(&keys, &name, pointer);
        captured.insert(name, value);
    }
    captured
}

fn oauth(mut keys: Keys<'_>, names: &Names<'_>) -> OAuth {
    let authorize_url = keys.need("authorize_url");
    names.check(&keys, "authorize_url", &authorize_url, Known::Inputs);
    let token_url = keys.need("token_url");
    names.check(&keys, "token_url", &token_url, Known::Callback);
    let refresh_url = keys.text("refresh_url");
    let revoke_url = keys.text("revoke_url");
    let issuer = keys.text("issuer");
    for (key, url, known) in [
        ("refresh_url", &refresh_url, Known::Identity),
        ("revoke_url", &revoke_url, Known::Identity),
        ("issuer", &issuer, Known::Inputs),
    ] {
        if let Some(url) = url {
            names.check(&keys, key, url, known);
        }
    }
    let client_auth = client_auth(&mut keys);
    let pkce = keys.word("pkce", &[("s256", Pkce::S256), ("none", Pkce::None)]).unwrap_or(Pkce::S256);
    let scope_param = keys.text("scope_param").unwrap_or_else(|| "scope".into());
    let scope_separator = separator(&mut keys);
    let scopes = scopes(&mut keys, "scopes");
    let authorize_params = keys.map("authorize_params");
    for name in authorize_params.keys() {
        if FLOW_PARAMS.contains(&name.as_str()) || *name == scope_param {
            keys.bad("authorize_params", format!("`{name}` is set by the connect flow itself"));
        }
    }
    let rotations = [
        ("none", Rotation::None),
        ("rolling", Rotation::Rolling),
        ("single_use", Rotation::SingleUse),
        ("optional", Rotation::Optional),
    ];
    let rotation = keys.word("rotation", &rotations).unwrap_or(Rotation::Optional);
    let grace = keys.time("grace").unwrap_or_default();
    let access_ttl = keys.time("access_ttl").unwrap_or(Duration::from_secs(3600));
    if access_ttl.is_zero() {
        keys.bad("access_ttl", "must be longer than nothing");
    }
    let fatal_errors = keys.texts("fatal_errors").unwrap_or_default();
    let fields = fields(keys.inside("fields"));
    keys.finish();
    OAuth {
        authorize_url,
        token_url,
        refresh_url,
        revoke_url,
        issuer,
        client_auth,
        pkce,
        scopes,
        scope_param,
        scope_separator,
        authorize_params,
        rotation,
        grace,
        access_ttl,
        fatal_errors,
        fields,
    }
}

fn client_auth(keys: &mut Keys<'_>) -> ClientAuth {
    if keys.holds("client_auth", "private_key_jwt") {
        keys.skip("client_auth");
        keys.bad("client_auth", "`private_key_jwt` is not available yet; possible: basic, post, json, none");
        return ClientAuth::Basic;
    }
    let words = [
        ("basic", ClientAuth::Basic),
        ("post", ClientAuth::Post),
        ("json", ClientAuth::Json),
        ("none", ClientAuth::None),
    ];
    keys.word("client_auth", &words).unwrap_or(ClientAuth::Basic)
}

fn separator(keys: &mut Keys<'_>) -> String {
    // Read as a table entry would be: a single space is a value here, not emptiness.
    let separator = keys.raw_text("scope_separator").unwrap_or_else(|| " ".into());
    if !matches!(separator.as_str(), " " | "," | ";" | "+" | "|") {
        keys.bad("scope_separator", format!("{separator:?} can't be between scopes; possible: space , ; + |"));
    }
    separator
}

pub(super) fn scopes(keys: &mut Keys<'_>, key: &'static str) -> Vec<String> {
    let scopes = keys.texts(key).unwrap_or_default();
    for (index, scope) in scopes.iter().enumerate() {
        if scope.contains([' ', ',', '"', '\\']) || scope.chars().any(|c| !c.is_ascii_graphic()) {
            keys.bad(&format!("{key}[{index}]"), format!("{scope:?} is not one scope"));
        }
    }
    scopes
}

fn fields(mut keys: Keys<'_>) -> OAuthFields {
    let mut pointer = |key| {
        let pointer = keys.text(key);
        if let Some(pointer) = &pointer {
            check_pointer(&keys, key, pointer);
        }
        pointer
    };
    let fields = OAuthFields {
        access_token: pointer("access_token"),
        refresh_token: pointer("refresh_token"),
        expires_in: pointer("expires_in"),
        scope: pointer("scope"),
        error: pointer("error"),
    };
    keys.finish();
    fields
}

fn identity(keys: &mut Keys<'_>, names: &Names<'_>) -> Identity {
    if !keys.has("identity") {
        keys.bad("identity", "is missing; it says whose account it is");
    }
    let present = keys.has("identity");
    let mut keys = keys.inside("identity");
    let url = keys.text("url");
    if let Some(url) = &url {
        names.check(&keys, "url", url, Known::Token);
    }
    let subject = if present { keys.need("subject") } else { String::new() };
    if !subject.is_empty() {
        check_pointer(&keys, "subject", &subject);
    }
    let email = keys.texts("email").unwrap_or_default();
    for (index, pointer) in email.iter().enumerate() {
        check_pointer(&keys, &format!("email[{index}]"), pointer);
    }
    let name = keys.text("name");
    if let Some(name) = &name {
        check_pointer(&keys, "name", name);
    }
    keys.finish();
    Identity { url, subject, email, name }
}

fn inject(mut keys: Keys<'_>) -> Inject {
    for form in ["json_body", "basic"] {
        if keys.has(form) {
            keys.bad(form, "is not available for OAuth providers yet; use `header` or `query`");
            keys.skip(form);
        }
    }
    let header = keys.text("header");
    let value = keys.text("value");
    let query = keys.text("query");
    let headers = keys.map("headers");
    let place = match (header, query) {
        (Some(_), Some(name)) => {
            keys.bad("query", "a token goes into a header or the query, not both");
            InjectPlace::Query { name }
        }
        (None, Some(name)) => {
            if value.is_some() {
                keys.bad("value", "belongs to `header`; a query parameter holds the token alone");
            }
            InjectPlace::Query { name }
        }
        (header, None) => {
            let name = header.unwrap_or_else(|| "Authorization".into());
            check_header(&keys, "header", &name);
            let default = if name.eq_ignore_ascii_case("authorization") { "Bearer {token}" } else { "{token}" };
            let template = value.unwrap_or_else(|| default.into());
            if template.matches("{token}").count() != 1 || HeaderValue::from_str(&template).is_err() {
                keys.bad("value", "must be a header value that holds `{token}` once");
            }
            InjectPlace::Header { name, template }
        }
    };
    for (name, value) in &headers {
        check_header(&keys, "headers", name);
        if HeaderValue::from_str(value).is_err() || value.contains("{token}") {
            keys.bad("headers", format!("the value of `{name}` must be a plain header value"));
        }
        if matches!(&place, InjectPlace::Header { name: own, .. } if own.eq_ignore_ascii_case(name)) {
            keys.bad("headers", format!("`{name}` already holds the token"));
        }
    }
    keys.finish();
    Inject { place, headers }
}

fn check_header(keys: &Keys<'_>, key: &str, name: &str) {
    let framing = FRAMING_HEADERS.iter().any(|known| name.eq_ignore_ascii_case(known));
    if HeaderName::try_from(name).is_err() || framing || name.to_ascii_lowercase().starts_with("keyward-") {
        keys.bad(key, format!("`{name}` can't be set here"));
    }
}

fn check_pointer(keys: &Keys<'_>, key: &str, pointer: &str) {
    let escapes = pointer.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
    if !pointer.starts_with('/') || !escapes {
        keys.bad(key, format!("`{pointer}` is not a JSON pointer such as `/id`"));
    }
}

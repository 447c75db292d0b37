//! `[targets.<slug>]`: system targets and the credentials that the environment holds for them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use http::{HeaderName, HeaderValue, header};
use url::{Host, Url};

use crate::secret::Secret;

use super::document::Section;
use super::file::{Around, certificates, readable};
use super::{Protection, StaticCredential, SystemTarget, TargetTls, TlsFiles, Transport};

/// Headers that frame the message or name its place.
const NOT_CREDENTIALS: [HeaderName; 9] = [
    header::HOST,
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
];

pub(super) fn read(section: &Section<'_>, around: &Around<'_>) -> BTreeMap<String, SystemTarget> {
    let mut targets = BTreeMap::new();
    for (slug, target) in section.sections() {
        if !is_slug(&slug) {
            section.refuse(&slug, "a target's name is made of 1 to 96 characters a-z, 0-9 and -");
        }
        if !target.has("base_url") {
            target.refuse("base_url", "a target needs one");
        }
        let read = SystemTarget {
            name: target.text("name", |text| not_empty(text).map(str::to_owned)).unwrap_or_else(|| slug.clone()),
            base_url: target.text("base_url", base_url).unwrap_or_default(),
            credential: credential(target.section("credential"), around),
            fence: target
                .texts("fence", |text| not_empty(text).map(str::to_owned))
                .unwrap_or_else(|| vec!["/**".to_owned()]),
            protection: protection(&target),
            transport: Transport {
                http1_only: target.flag("http1_only").unwrap_or(false),
                websocket: target.flag("websocket").unwrap_or(false),
                set_cookie: target.flag("set_cookie").unwrap_or(false),
            },
            tls: tls(&target, around),
        };
        if read.fence.is_empty() {
            target.refuse("fence", "an empty fence lets nothing through; leave the key out to allow every path");
        }
        target.finish();
        targets.insert(slug, read);
    }
    targets
}

fn protection(target: &Section<'_>) -> Protection {
    let range = Protection::CONCURRENCY;
    let concurrency = target.number("concurrency", *range.start() as usize..=*range.end() as usize);
    Protection {
        concurrency: concurrency.and_then(|number| NonZeroU32::new(u32::try_from(number).ok()?)),
        reflect_guard: target.flag("reflect_guard"),
    }
}

fn tls(target: &Section<'_>, around: &Around<'_>) -> Option<TargetTls> {
    let ca = target.text("ca_file", |text| certificates(around.folder.join(text)));
    let file = |key: &str| target.text(key, |text| readable(around.folder.join(text)));
    let (cert, key) = (file("client_cert"), file("client_key"));
    for (given, wanted) in [("client_cert", "client_key"), ("client_key", "client_cert")] {
        if target.has(given) && !target.has(wanted) {
            target.refuse(wanted, "missing: a client certificate and its key belong together");
        }
    }
    let client = cert.zip(key).map(|(cert, key)| TlsFiles { cert, key });
    (ca.is_some() || client.is_some()).then(|| TargetTls { authorities: ca.into_iter().collect(), client })
}

fn is_slug(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=96).contains(&text.len()) && text.bytes().all(plain)
}

fn not_empty(text: &str) -> Result<&str, String> {
    if text.trim().is_empty() { Err("empty".to_owned()) } else { Ok(text) }
}

/// What the catalog asks of every base URL too; said here because here the line is known.
fn base_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|cause| format!("not a URL: {cause}"))?;
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => return Err("a host is missing".to_owned()),
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        _ => return Err("https is wanted (plain http only for loopback addresses)".to_owned()),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a user or password does not belong in the URL: use credential.basic".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("no query and no fragment are possible here".to_owned());
    }
    Ok(text.to_owned())
}

/// Exactly one kind, or none. The file names variables; it never holds the secret itself.
fn credential(section: Section<'_>, around: &Around<'_>) -> StaticCredential {
    let variable = |from: &Section<'_>, key: &str| from.text(key, |name| secret(name, around));
    let in_header = |from: &Section<'_>, key: &str| from.text(key, |name| header_value(name, around));
    let kinds = ["bearer_env", "basic", "headers_env", "query"];
    let given = kinds.iter().filter(|kind| section.has(kind)).count();
    if given > 1 {
        section.refuse(kinds[0], "one kind is possible: bearer_env, basic, headers_env or query");
    }

    let bearer = in_header(&section, "bearer_env").map(StaticCredential::Bearer);
    let basic = section.section("basic");
    let basic_given = section.has("basic");
    let username = basic.text("username", user_name);
    let password = variable(&basic, "password_env");
    let headers_section = section.section("headers_env");
    let headers = headers(&headers_section, around);
    let query = section.section("query");
    let query_given = section.has("query");
    let name = query.text("name", parameter);
    let value = variable(&query, "value_env");

    for (given, from, key) in [
        (basic_given, &basic, "username"),
        (basic_given, &basic, "password_env"),
        (query_given, &query, "name"),
        (query_given, &query, "value_env"),
    ] {
        if given && !from.has(key) {
            from.refuse(key, "missing");
        }
    }
    basic.finish();
    query.finish();
    section.finish();

    let basic = username.zip(password).map(|(username, password)| StaticCredential::Basic { username, password });
    let query = name.zip(value).map(|(name, value)| StaticCredential::Query { name, value });
    let headers = (!headers.is_empty()).then_some(StaticCredential::Headers(headers));
    bearer.or(basic).or(headers).or(query).unwrap_or(StaticCredential::None)
}

/// RFC 7617 §2: the first colon ends the user name.
fn user_name(text: &str) -> Result<String, String> {
    if text.contains(':') || text.chars().any(char::is_control) {
        return Err("a user name with a colon or a control character can't be sent".to_owned());
    }
    not_empty(text).map(str::to_owned)
}

fn headers(section: &Section<'_>, around: &Around<'_>) -> BTreeMap<String, Secret<String>> {
    let mut headers = BTreeMap::new();
    for name in section.keys() {
        let parsed = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| !NOT_CREDENTIALS.contains(name));
        let value = section.text(&name, |variable| header_value(variable, around));
        match parsed {
            None => section.refuse(&name, "this header can't carry a credential"),
            Some(_) => headers.extend(value.map(|value| (name, value))),
        }
    }
    headers
}

/// The secret that a variable holds. Capitals only, so that a secret pasted here by mistake is not repeated in a log.
fn secret(name: &str, around: &Around<'_>) -> Result<Secret<String>, String> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_uppercase());
    if !first || !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_') {
        return Err("the name of an environment variable is wanted here, as in \"ACME_API_KEY\"".to_owned());
    }
    let secret = around.env.secret(name).map_err(|error| format!("environment variable {error}"))?;
    let secret = secret.ok_or_else(|| format!("environment variable {name} (or {name}_FILE) is not set"))?;
    if secret.expose().is_empty() { Err(format!("environment variable {name} is empty")) } else { Ok(secret) }
}

/// A secret that stands in a header as it is (a password or a query value is encoded first).
fn header_value(name: &str, around: &Around<'_>) -> Result<Secret<String>, String> {
    let secret = secret(name, around)?;
    match HeaderValue::from_str(secret.expose()) {
        Ok(_) => Ok(secret),
        Err(_) => Err(format!("environment variable {name} holds characters that a header can't carry")),
    }
}

fn parameter(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(plain) {
        return Err("a query parameter's name is made of letters, digits, -, _ and .".to_owned());
    }
    Ok(text.to_owned())
}

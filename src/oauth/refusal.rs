//! What an answer that holds no tokens means, and so what can be done: wait, ask a person, or change the settings.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::catalog::Provider;

use super::Error;
use super::answer::parse;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// What an answer without tokens means, for calls that want none. [`Error::Rejected`] says that the token is not (or no
/// longer) one.
pub(super) fn read(provider: &Provider, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    if let Err(error) = passing(status, headers) {
        return error;
    }
    let answer = parse(headers, body);
    match answer.as_ref().and_then(|answer| error_code(provider, status, &answer.0)) {
        Some(code @ ("invalid_token" | "invalid_grant")) => Error::Rejected { code: shown_code(code), sign_in: false },
        Some(code) => Error::Misconfigured { code: shown_code(code) },
        None => transient("an error without a code", false),
    }
}

/// What the status alone decides: the server (or something before it) can't answer now, or points elsewhere.
///
/// Redirects are not followed: what would be sent on holds a refresh token and a client secret.
pub(super) fn passing(status: StatusCode, headers: &HeaderMap) -> Result<(), Error> {
    let why = match status {
        StatusCode::TOO_MANY_REQUESTS => "it asks for fewer calls",
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => "it asks to try again",
        status if status.is_server_error() => "its server failed",
        status if status.is_redirection() || status.is_informational() => "it answered with a redirect",
        _ => return Ok(()),
    };
    // A gateway that lost its server's answer does not know what the server did.
    let ambiguous = matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
    Err(Error::Transient { why, retry_after: retry_after(headers), ambiguous })
}

pub(super) const fn transient(why: &'static str, ambiguous: bool) -> Error {
    Error::Transient { why, retry_after: None, ambiguous }
}

/// `Retry-After` as seconds or a date (RFC 9110 §10.2.3), held to 1 s … 1 h. Clocks that differ only change the pause.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wish = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a very long time, too.
        text.parse().map_or(HOUR, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default()
    };
    Some(wish.clamp(SECOND, HOUR))
}

/// The error code of an answer that is one, with whatever status: at the provider's own place, and in an answer that says
/// of itself that it is an error also at the usual one. Servers that put an object there have no code.
pub(super) fn error_code<'a>(provider: &Provider, status: StatusCode, answer: &'a Value) -> Option<&'a str> {
    let own = provider.oauth.fields.error.as_deref();
    let usual = Some("/error").filter(|_| own.is_none() || !status.is_success());
    [own, usual].into_iter().flatten().find_map(|pointer| match answer.pointer(pointer)? {
        Value::String(code) if !code.is_empty() => Some(code.as_str()),
        Value::Object(_) | Value::Array(_) => Some(UNREADABLE),
        _ => None,
    })
}

/// Stands for a code that is not one; has no meaning of its own anywhere.
const UNREADABLE: &str = "unreadable";

/// A provider's code as it may be shown and stored: `[a-z_]{1,64}`, anything else is `unreadable`. An error code is text
/// of somebody else's, and so is one that comes through a browser.
pub(crate) fn shown_code(code: &str) -> String {
    let fits = (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if fits { code.to_owned() } else { UNREADABLE.to_owned() }
}

/// What a refusal means (`invariants.md` §2, rows 13–17).
pub(super) fn refusal(provider: &Provider, status: StatusCode, code: &str, answer: &Value) -> Error {
    // Only where RFC 6749 §5.2 puts refusals, or in a success (some servers answer 200 to everything): a 403 or a 404 in
    // front of a token endpoint is some filter's, whatever it says.
    let plain = status.is_success() || matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED);
    let fatal = code == "invalid_grant" || provider.oauth.fatal_errors.iter().any(|fatal| fatal == code);
    match code {
        "interaction_required" | "consent_required" | "login_required" | "account_selection_required" if plain => {
            Error::Rejected { code: shown_code(code), sign_in: true }
        }
        _ if fatal && plain => Error::Rejected { code: shown_code(code), sign_in: wants_sign_in(answer) },
        "invalid_client" | "unauthorized_client" | "invalid_request" | "unsupported_grant_type" | "invalid_scope"
        // The same, in words of GitHub and Slack.
        | "incorrect_client_credentials" | "redirect_uri_mismatch" | "bad_client_secret" | "invalid_client_id" => {
            Error::Misconfigured { code: shown_code(code) }
        }
        "temporarily_unavailable" | "server_error" | "slow_down" => transient("it says that it can't answer now", false),
        _ => Error::Unknown { code: shown_code(code) },
    }
}

/// Whether an `invalid_grant` of Microsoft's says that a person only has to sign in again (a second factor, a consent, a
/// new password). `error_codes` holds the same numbers as the description's `AADSTS…`.
fn wants_sign_in(answer: &Value) -> bool {
    const SUBERRORS: [&str; 8] = [
        "basic_action",
        "additional_action",
        "message_only",
        "consent_required",
        "interaction_required",
        "login_required",
        "user_password_expired",
        "device_authentication_failed",
    ];
    // Second factor (50072, 50074, 50076, 50079, 50158), password (50055, 50173), consent (65001), conditional access
    // (53000–53003), age of the session (70043, 70044).
    const CODES: [u64; 14] =
        [50055, 50072, 50074, 50076, 50079, 50158, 50173, 53000, 53001, 53002, 53003, 65001, 70043, 70044];
    let suberror = answer.get("suberror").and_then(Value::as_str).unwrap_or_default();
    if SUBERRORS.contains(&suberror) {
        return true;
    }
    let listed = answer.get("error_codes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64);
    let described = answer
        .get("error_description")
        .and_then(Value::as_str)
        .and_then(|text| text.strip_prefix("AADSTS"))
        .and_then(|text| text.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok());
    listed.chain(described).any(|code| CODES.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_to_wait_are_held_to_an_hour() {
        let wait = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        for (text, expected) in [
            ("0", Some(1)),
            ("7", Some(7)),
            ("86400", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("-5", None),
            ("soon", None),
            ("", None),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(1)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3600)),
        ] {
            assert_eq!(wait(text), expected, "{text:?}");
        }
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(120));
        assert!((118..=120).contains(&wait(&soon).unwrap()));
    }

    #[test]
    fn shown_codes_are_short_and_plain() {
        assert_eq!(shown_code("access_denied"), "access_denied");
        for code in ["", "Access", "a b", "<b>", "a\r\nb", &"a".repeat(65)] {
            assert_eq!(shown_code(code), "unreadable", "{code:?}");
        }
    }
}

//! What connecting an account means in HTTP: the cookie that binds a flow to a browser, and the callback's query.

use http::HeaderMap;

use crate::accounts::{Callback, Opened};
use crate::secret::Secret;
use crate::store::Captures;

use super::AdminState;
use super::site::{Site, read_cookie};

const FLOW_COOKIE: &str = "keyward_flow";
const FLOW_PATH: &str = "/integrations/";
const FLOW_SECONDS: i64 = 600;

/// The `Set-Cookie` value that binds an opened flow to the browser that gets it. It comes back to the callback only, and
/// with the provider's redirect (a top-level GET), hence Lax.
#[must_use]
pub fn flow_cookie(state: &AdminState, opened: &Opened) -> String {
    cookie(&Site::of(&state.public_url), opened.cookie.expose(), FLOW_SECONDS)
}

/// The `Set-Cookie` value that clears the cookie, for a flow that is over.
#[must_use]
pub fn clear_flow_cookie(state: &AdminState) -> String {
    cookie(&Site::of(&state.public_url), "", 0)
}

/// The flow cookie that a browser brought, if it did.
#[must_use]
pub fn read_flow_cookie(state: &AdminState, headers: &HeaderMap) -> Option<Secret<String>> {
    read_cookie(headers, &name(&Site::of(&state.public_url)))
}

/// Reads what a provider sent back through the browser: the raw query of its redirect URI. A parameter of the flow that
/// comes twice counts as not there (RFC 6749 §3.1 forbids it), so nobody can pair their code with somebody's state.
#[must_use]
pub fn callback_of(provider: &str, query: &str) -> Callback {
    let mut callback = Callback {
        provider: provider.to_owned(),
        state: None,
        code: None,
        error: None,
        iss: None,
        rest: Captures::new(),
    };
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
    for (name, value) in &pairs {
        if pairs.iter().filter(|(other, _)| other == name).count() > 1 {
            continue;
        }
        match name.as_ref() {
            "state" => callback.state = Some(Secret::new(value.to_string())),
            "code" => callback.code = Some(Secret::new(value.to_string())),
            "error" => callback.error = Some(value.to_string()),
            "iss" => callback.iss = Some(value.to_string()),
            _ => {
                callback.rest.insert(name.to_string(), value.to_string());
            }
        }
    }
    callback
}

fn name(site: &Site) -> String {
    site.cookie_name("__Secure-", FLOW_COOKIE)
}

fn cookie(site: &Site, value: &str, seconds: i64) -> String {
    site.set_cookie(name(site), value, FLOW_PATH, seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flow_cookie_goes_to_the_callback_and_lives_ten_minutes() {
        assert_eq!(
            cookie(&Site::of("http://127.0.0.1:8081"), "abc", FLOW_SECONDS),
            "keyward_flow=abc; HttpOnly; SameSite=Lax; Path=/integrations/; Max-Age=600"
        );
        assert_eq!(
            cookie(&Site::of("https://keyward.example.com"), "abc", FLOW_SECONDS),
            "__Secure-keyward_flow=abc; HttpOnly; SameSite=Lax; Secure; Path=/integrations/; Max-Age=600"
        );
    }

    #[test]
    fn a_callback_is_read_by_name_and_doubles_do_not_count() {
        let callback = callback_of("acme", "code=a%2Bb&state=s&iss=https%3A%2F%2Facme.example.com&realmId=12");
        assert_eq!(callback.provider, "acme");
        assert_eq!(callback.code.unwrap().expose(), "a+b");
        assert_eq!(callback.state.unwrap().expose(), "s");
        assert_eq!(callback.iss.as_deref(), Some("https://acme.example.com"));
        assert_eq!(callback.rest, Captures::from([("realmId".to_owned(), "12".to_owned())]));
        let doubled = callback_of("acme", "code=a&code=b&state=s&error=access_denied");
        assert!(doubled.code.is_none() && doubled.state.is_some());
        assert_eq!(doubled.error.as_deref(), Some("access_denied"));
    }
}

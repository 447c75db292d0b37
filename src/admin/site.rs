//! How people reach this listener: which `Host` is ours, and how cookies must look there.

use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use http::HeaderMap;
use http::uri::Authority;
use url::Url;

use crate::secret::Secret;

/// The facts of `public_url` that the edge needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    host: String,
    https: bool,
}

impl Site {
    /// Of a public URL (checked by the configuration).
    pub(super) fn of(public_url: &str) -> Self {
        let url = Url::parse(public_url).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default().to_ascii_lowercase();
        Self { host, https: url.is_some_and(|url| url.scheme() == "https") }
    }

    /// Whether a `Host` names this listener: a loopback name or the public one, with any port. Ports don't matter to
    /// what this is for: a name that an attacker points at our address.
    pub(super) fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        // Nothing but a name and a port: what `Authority` lets through beside that is no `Host`.
        let rest = host.strip_prefix(authority.host());
        let port = rest.map(|rest| rest.strip_prefix(':').unwrap_or(rest));
        if !port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit())) {
            return false;
        }
        let name = authority.host().to_ascii_lowercase();
        matches!(name.as_str(), "localhost" | "127.0.0.1" | "[::1]") || (!name.is_empty() && name == self.host)
    }

    /// A cookie name with the prefix that makes browsers insist on its attributes, where TLS makes that possible.
    pub(super) fn cookie_name(&self, prefix: &str, name: &str) -> String {
        if self.https { format!("{prefix}{name}") } else { name.to_owned() }
    }

    /// A `Set-Cookie` value: HttpOnly, SameSite=Lax, Secure where TLS is.
    pub(super) fn set_cookie(&self, name: String, value: &str, path: &'static str, seconds: i64) -> String {
        Cookie::build((name, value.to_owned()))
            .path(path)
            .http_only(true)
            .same_site(SameSite::Lax)
            .secure(self.https)
            .max_age(time::Duration::seconds(seconds))
            .build()
            .to_string()
    }
}

/// A cookie's value.
pub(super) fn read_cookie(headers: &HeaderMap, name: &str) -> Option<Secret<String>> {
    CookieJar::from_headers(headers).get(name).map(|cookie| Secret::new(cookie.value().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_and_our_own_are_ours() {
        let site = Site::of("https://Keyward.example.com:8443");
        for host in [
            "localhost",
            "localhost:8081",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8081",
            "LOCALHOST",
            "keyward.example.com",
            "keyward.example.com:8443",
        ] {
            assert!(site.is_ours(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "evil.keyward.example.com",
            "localhost.example.com",
            "localhost@example.com",
            "example.com@localhost",
            "127.0.0.1.example.com",
            "127.0.0.2",
            ":8081",
            "::1",
            "localhost:port",
            "local host",
        ] {
            assert!(!site.is_ours(host), "{host}");
        }
        assert!(Site::of("http://[fd00::1]:8081").is_ours("[fd00::1]:8081"));
    }

    #[test]
    fn cookies_are_bound_to_tls_where_there_is_tls() {
        let plain = Site::of("http://127.0.0.1:8081");
        let name = plain.cookie_name("__Host-", "a");
        assert_eq!(plain.set_cookie(name, "v", "/", 60), "a=v; HttpOnly; SameSite=Lax; Path=/; Max-Age=60");
        let tls = Site::of("https://keyward.example.com");
        let name = tls.cookie_name("__Host-", "a");
        assert_eq!(
            tls.set_cookie(name, "v", "/", 60),
            "__Host-a=v; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=60"
        );
    }
}

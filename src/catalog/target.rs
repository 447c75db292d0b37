//! What a request to a target is made of: the base URL it can't leave, and the credential that goes in.

use std::fmt;

use http::{HeaderName, HeaderValue};
use url::{Host, Url};

use super::pattern::Shape;

/// A base URL, taken apart once so that nothing in a request can change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// TLS to the upstream.
    pub https: bool,
    /// Host name or IP literal (no brackets), lower case.
    pub host: Box<str>,
    /// Port, the scheme's own when the URL has none.
    pub port: u16,
    /// The `Host` header: host, and port when it is not the scheme's own.
    pub authority: HeaderValue,
    /// Path prefix without a trailing slash: empty or `/v1.0`.
    pub path: Box<str>,
}

/// Why a URL can't be a base.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BaseError(pub String);

impl Base {
    /// Reads a base URL: https (http only for loopback hosts), no user, query or fragment, a normal path.
    ///
    /// # Errors
    /// Says which of these it breaks.
    pub fn parse(text: &str) -> Result<Self, BaseError> {
        let (url, raw_path) = checked(text)?;
        if url.query().is_some() {
            return Err(BaseError("a base URL can't have a query".into()));
        }
        let path = raw_path.strip_suffix('/').unwrap_or(raw_path);
        if path.contains("//") || path.ends_with('/') {
            return Err(BaseError("the path has an empty segment".into()));
        }
        let (name, literal) = match url.host() {
            Some(Host::Domain(name)) => (name.to_owned(), name.to_owned()),
            Some(Host::Ipv4(address)) => (address.to_string(), address.to_string()),
            Some(Host::Ipv6(address)) => (address.to_string(), format!("[{address}]")),
            None => return Err(BaseError("the URL has no host".into())),
        };
        let authority = match url.port() {
            Some(port) => format!("{literal}:{port}"),
            None => literal,
        };
        Ok(Self {
            https: url.scheme() == "https",
            host: name.into(),
            port: url.port_or_known_default().ok_or_else(|| BaseError("the URL has no port".into()))?,
            authority: HeaderValue::try_from(authority)
                .map_err(|_| BaseError("the host can't stand in a `Host` header".into()))?,
            path: path.into(),
        })
    }

    /// The URL as text, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let default = if self.https { 443 } else { 80 };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        if self.port == default {
            format!("{scheme}://{host}{}", self.path)
        } else {
            format!("{scheme}://{host}:{}{}", self.port, self.path)
        }
    }
}

/// Checks a URL that may have a query: an authorization, token, revocation or identity endpoint.
pub(super) fn check_endpoint(text: &str) -> Result<(), BaseError> {
    checked(text).map(|_| ())
}

/// What holds for every URL of the catalog. The URL parser repairs (drops tabs, turns `\`, walks dots), so the text itself
/// is judged: a URL that would come out different from what is written is refused.
fn checked(text: &str) -> Result<(Url, &str), BaseError> {
    let fail = |problem: &str| Err(BaseError(problem.to_owned()));
    if let Some(c) = text.chars().find(|c| c.is_control() || c.is_whitespace() || matches!(c, '\\' | '{' | '}')) {
        return fail(&format!("the URL holds {c:?}"));
    }
    let Some((_, rest)) = text.split_once("://") else { return fail("must be a URL that starts with https://") };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let raw_path = &tail[..tail.find(['?', '#']).unwrap_or(tail.len())];
    if authority.is_empty() {
        return fail("the URL has no host");
    }
    if authority.contains('@') {
        return fail("the URL can't hold a user or password");
    }
    let url = Url::parse(text).map_err(|cause| BaseError(format!("not a URL: {cause}")))?;
    if url.fragment().is_some() {
        return fail("the URL can't have a fragment");
    }
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address == std::net::Ipv4Addr::LOCALHOST,
        Some(Host::Ipv6(address)) => address == std::net::Ipv6Addr::LOCALHOST,
        None => return fail("the URL has no host"),
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        "http" => return fail("must be https; http is for 127.0.0.1, [::1] and localhost only"),
        _ => return fail("must be a URL that starts with https://"),
    }
    if url.port() == Some(0) || url.host_str().is_some_and(|host| host.ends_with('.') || host.contains("..")) {
        return fail("the URL's host or port can't be connected to");
    }
    for segment in raw_path.split('/') {
        let shape = Shape::of(segment.as_bytes());
        if shape.dots || shape.slash || shape.veiled {
            return fail("the path has a `.` or `..` segment, an encoded slash or an encoded letter");
        }
    }
    if url.path() != raw_path && !(raw_path.is_empty() && url.path() == "/") {
        return fail(&format!("the path must be written as `{}`", url.path()));
    }
    Ok((url, raw_path))
}

/// A credential ready to be put into a request. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Injection {
    /// Headers, marked sensitive; each replaces what the agent sent under that name.
    Headers(Vec<(HeaderName, HeaderValue)>),
    /// One query parameter, percent-encoded (`api_key=…`), and constant headers.
    Query {
        /// Parameter name, as it is compared (any such parameter of the agent's is refused).
        name: Box<str>,
        /// `name=value`, encoded.
        pair: Box<str>,
        /// Constant headers.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
}

impl fmt::Debug for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            |headers: &[(HeaderName, HeaderValue)]| headers.iter().map(|(n, _)| n.to_string()).collect::<Vec<_>>();
        match self {
            Self::Headers(headers) => f.debug_tuple("Headers").field(&names(headers)).finish(),
            Self::Query { name, headers, .. } => {
                f.debug_struct("Query").field("name", name).field("headers", &names(headers)).finish_non_exhaustive()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_taken_apart() {
        let table = [
            ("https://api.example.com", true, "api.example.com", 443, "api.example.com", "", "https://api.example.com"),
            (
                "https://API.example.com/",
                true,
                "api.example.com",
                443,
                "api.example.com",
                "",
                "https://api.example.com",
            ),
            ("https://a.example/v1.0/", true, "a.example", 443, "a.example", "/v1.0", "https://a.example/v1.0"),
            ("https://a.example:443/x", true, "a.example", 443, "a.example", "/x", "https://a.example/x"),
            ("https://a.example:8443", true, "a.example", 8443, "a.example:8443", "", "https://a.example:8443"),
            ("http://127.0.0.1:8082/v1", false, "127.0.0.1", 8082, "127.0.0.1:8082", "/v1", "http://127.0.0.1:8082/v1"),
            ("http://[::1]:9", false, "::1", 9, "[::1]:9", "", "http://[::1]:9"),
            ("http://localhost", false, "localhost", 80, "localhost", "", "http://localhost"),
            ("https://[2001:DB8::1]/x", true, "2001:db8::1", 443, "[2001:db8::1]", "/x", "https://[2001:db8::1]/x"),
            (
                "https://bücher.example",
                true,
                "xn--bcher-kva.example",
                443,
                "xn--bcher-kva.example",
                "",
                "https://xn--bcher-kva.example",
            ),
            ("https://a.example/a%20b", true, "a.example", 443, "a.example", "/a%20b", "https://a.example/a%20b"),
        ];
        for (text, https, host, port, authority, path, url) in table {
            let base = Base::parse(text).unwrap();
            assert_eq!((base.https, &*base.host, base.port, &*base.path), (https, host, port, path), "{text}");
            assert_eq!(base.authority, authority, "{text}");
            assert_eq!(base.url(), url, "{text}");
            assert_eq!(Base::parse(&base.url()).unwrap(), base, "{text}");
        }
    }

    #[test]
    fn a_base_url_that_could_mislead_is_refused() {
        for text in [
            "",
            "api.example.com",
            "/v1",
            "http://api.example.com",
            "http://127.0.0.2",
            "http://localhost.example.com",
            "ftp://a.example",
            "https:/a.example",
            "https:///a.example",
            "https://",
            "https://user@a.example",
            "https://user:pass@a.example",
            "https://@a.example",
            "https://a.example?x=1",
            "https://a.example/x?",
            "https://a.example/#x",
            "https://a.example/../x",
            "https://a.example/x/./y",
            "https://a.example/%2e%2e/x",
            "https://a.example/x%2fy",
            "https://a.example/x%5Cy",
            "https://a.example/x%252fy",
            "https://a.example\\x",
            "https://a.example//x",
            "https://a.example/x//",
            "https://a.example/x y",
            " https://a.example",
            "https://a.example/\tx",
            "https://a.example/é",
            "https://a.example:0",
            "https://a.example:99999",
            "https://a.example.",
            "https://a..example",
            "https://{host}/x",
        ] {
            assert!(Base::parse(text).is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn an_endpoint_may_have_a_query() {
        assert!(check_endpoint("https://a.example/me?$select=id,mail").is_ok());
        assert!(check_endpoint("https://a.example/me#x").is_err());
        assert!(check_endpoint("http://a.example/me").is_err());
    }

    #[test]
    fn debug_of_an_injection_does_not_show_it() {
        let query = Injection::Query { name: "key".into(), pair: "key=hush".into(), headers: Vec::new() };
        let header = Injection::Headers(vec![(http::header::AUTHORIZATION, HeaderValue::from_static("Bearer hush"))]);
        assert!(!format!("{query:?} {header:?}").contains("hush"));
    }
}

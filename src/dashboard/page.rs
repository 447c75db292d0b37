//! What every page has: a frame, and headers that keep the browser on our side.

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, LOCATION, REFERRER_POLICY, SET_COOKIE, X_FRAME_OPTIONS,
};
use http::{HeaderValue, StatusCode};

use crate::admin::AdminState;
use crate::ids::OrgId;
use crate::store::Page;

use super::problem::Problem;
use super::words::Flash;

/// What a handler answers.
pub(super) type Reply = Result<Response, Problem>;

/// Rows of one list on one page.
pub(super) const ROWS: u32 = 200;

/// Nothing but our own files; nothing inline; no frame; forms go to ourselves.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'; \
     frame-ancestors 'none'; base-uri 'none'";
/// The same for pages with a button that ends at a provider: Chromium holds redirects of a form to `form-action`
/// too. A provider's host may depend on a person's input, so the scheme is all that can be said of it; loopback is for
/// the sandbox.
const POLICY_TO_PROVIDERS: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self' https: \
     http://127.0.0.1:* http://localhost:*; frame-ancestors 'none'; base-uri 'none'";

/// The frame of a page.
pub(super) struct Shell {
    /// In the window's title.
    pub title: String,
    /// The marked entry of the navigation: `integrations`, `targets`, `keys`, `audit`.
    pub section: &'static str,
    /// Shows the navigation.
    pub signed_in: bool,
    /// What just happened.
    pub flash: Option<Flash>,
}

impl Shell {
    /// A page for somebody who is signed in.
    pub fn new(title: impl Into<String>, section: &'static str) -> Self {
        Self { title: title.into(), section, signed_in: true, flash: None }
    }
    /// A page for anybody: no navigation.
    pub fn alone(title: impl Into<String>) -> Self {
        Self { title: title.into(), section: "", signed_in: false, flash: None }
    }
    /// With the message that the query's `done` stands for.
    pub fn flash(mut self, code: Option<&str>) -> Self {
        self.flash = code.and_then(Flash::of);
        self
    }
}

/// A rendered page.
pub(super) fn html(page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => Html(text).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, "The page could not be made. Keyward's log says why.").into_response()
        }
    }
}

/// A rendered page with a button whose POST is redirected to a provider.
pub(super) fn html_to_providers(page: &impl Template) -> Response {
    let mut reply = html(page);
    reply.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY_TO_PROVIDERS));
    reply
}

/// 303 to `location`, with cookies.
pub(super) fn see_other(location: &str, cookies: &[String]) -> Reply {
    let mut reply = StatusCode::SEE_OTHER.into_response();
    let location = HeaderValue::try_from(location)
        .map_err(|_| Problem::internal("a redirect has characters that a header can't hold"))?;
    reply.headers_mut().insert(LOCATION, location);
    for cookie in cookies {
        // Header errors don't repeat the value, which is secret here.
        let mut cookie =
            HeaderValue::try_from(cookie).map_err(|_| Problem::internal("a cookie can't stand in a header"))?;
        cookie.set_sensitive(true);
        reply.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(reply)
}

/// Puts the protecting headers on whatever a handler answered.
///
/// The referrer policy is `same-origin` and not `no-referrer`: with the latter, browsers send `Origin: null` with our own
/// forms, and where there is no `Sec-Fetch-Site` either (plain http beyond loopback) no POST could prove its origin.
/// Providers and other sites learn nothing either way.
pub(super) async fn protect(mut reply: Response) -> Response {
    const FIXED: [(HeaderName, &str); 4] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "same-origin"),
        (X_FRAME_OPTIONS, "DENY"),
        (CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in FIXED {
        reply.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    reply
}

/// The organization that the dashboard shows.
pub(super) async fn organization(state: &AdminState) -> Result<OrgId, Problem> {
    let found = state.store.organization("default").await?;
    found.map(|row| row.id).ok_or_else(|| Problem::internal("the organization `default` is missing"))
}

/// The wanted piece of a list.
pub(super) fn piece(after: Option<&str>) -> Page {
    Page { limit: ROWS, after: after.map(str::to_owned) }
}

/// `path?name=value&…` with everything encoded; empty values are left out.
pub(super) fn link(path: &str, query: &[(&str, &str)]) -> String {
    let mut encoded = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
        encoded.append_pair(name, value);
    }
    match encoded.finish() {
        query if query.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_answer_is_protected_and_may_keep_its_own_caching() {
        let reply = protect(([(CACHE_CONTROL, "public")], "x").into_response()).await;
        assert_eq!(reply.headers()[CACHE_CONTROL], "public");
        assert_eq!(reply.headers()[X_FRAME_OPTIONS], "DENY");
        assert_eq!(reply.headers()[REFERRER_POLICY], "same-origin");
        let policy = reply.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
        assert!(!policy.contains("  ") && !POLICY_TO_PROVIDERS.contains("  "));
        assert_eq!(protect("x".into_response()).await.headers()[CACHE_CONTROL], "no-store");
    }

    #[test]
    fn links_are_encoded() {
        assert_eq!(link("/audit", &[("target", "a&b=c"), ("key", "")]), "/audit?target=a%26b%3Dc");
        assert_eq!(link("/audit", &[]), "/audit");
    }

    #[test]
    fn a_redirect_refuses_line_breaks() {
        assert!(see_other("/a\r\nset-cookie: x", &[]).is_err());
    }
}

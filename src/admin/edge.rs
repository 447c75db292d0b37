//! What every request of this listener goes through, before and after its handler:
//!
//! ```text
//! request id ▸ Host is ours ▸ same origin ▸ time limit ▸ panic net ▸ handler ▸ safe default headers
//! ```

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use tower_http::catch_panic::CatchPanicLayer;

use crate::ids::RequestId;

use super::auth::{bearer_of, has_session_cookie};
use super::error::{ApiError, REQUEST};
use super::site::Site;

const REQUEST_ID: HeaderName = HeaderName::from_static("keyward-request-id");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Bytes of a request body that are read.
pub(super) const BODY_LIMIT: usize = 1024 * 1024;
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Puts the edge around routes.
pub(super) fn around(routes: Router, site: Site) -> Router {
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(Arc::new(site), pass))
}

async fn pass(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    let id = RequestId::next();
    request.extensions_mut().insert(id);
    let method = request.method().clone();
    // The route, not the path: a path may hold a one-time link.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = REQUEST
        .scope(id, async {
            if let Err(error) = check_host(&site, &request).and_then(|()| check_origin(&site, &request)) {
                return error.into_response();
            }
            tokio::time::timeout(TIME_LIMIT, next.run(request)).await.unwrap_or_else(|_| too_slow().into_response())
        })
        .await;
    let status = response.status().as_u16();
    let route = route.as_ref().map_or("-", MatchedPath::as_str);
    tracing::debug!(request.id = %id, method = %method, route, status, "{method} {route} was answered {status}");
    finish(id, &mut response);
    response
}

/// Headers of every answer; what a page has set itself is left alone.
fn finish(id: RequestId, response: &mut Response) {
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    // With `no-referrer` browsers send `Origin: null` with a page's own forms (Fetch, "append a request `Origin`
    // header"), and the same-origin check would refuse them where there is no `Sec-Fetch-Site`.
    let is_page = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    let referrer = if is_page { "same-origin" } else { "no-referrer" };
    headers.entry(header::REFERRER_POLICY).or_insert(HeaderValue::from_static(referrer));
}

/// A foreign `Host` means a name that points at our address without being ours (DNS rebinding).
fn check_host(site: &Site, request: &Request) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(ApiError::bad_request("the request needs exactly one `Host` header"));
    };
    let ours = host.to_str().is_ok_and(|host| site.is_ours(host));
    // The absolute form (RFC 9112 §3.2.2) names a host of its own.
    let absolute = request.uri().authority().is_none_or(|authority| site.is_ours(authority.as_str()));
    if ours && absolute {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, "misdirected_request", "this host name is not Keyward's")
        .hint("Use a loopback name, or set [admin] public_url to the address that people use."))
}

/// A state-changing request of a browser must come from our own pages. A token in `Authorization` is proof enough on the
/// API: no page of another site can make a browser send it. Without token and cookie there is nothing to abuse there, and
/// the answer will be 401. Pages read cookies only, so there nothing but the proof counts (also for signing in).
fn check_origin(site: &Site, request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let is_api = request.uri().path().starts_with("/api/");
    if is_api && (bearer_of(headers).is_some() || !has_session_cookie(site, headers)) {
        return Ok(());
    }
    if is_same_origin(headers) { Ok(()) } else { Err(cross_site()) }
}

/// Whether a browser says that the request comes from a page of this origin. No word at all is not enough: every
/// browser sends `Origin` with what is not a GET.
fn is_same_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return site == "same-origin" || site == "none";
    }
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else { return false };
    let Ok(origin) = origin.parse::<Uri>() else { return false };
    matches!(origin.scheme_str(), Some("http" | "https"))
        && origin.authority().is_some_and(|authority| authority.as_str().eq_ignore_ascii_case(host))
}

/// Whether a browser says that another site asked for this (also for a GET).
pub(super) fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none")
}

/// 403 `cross_site`.
pub(super) fn cross_site() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "cross_site", "this request did not come from Keyward's own pages")
        .hint("Programs use `Authorization: Bearer kwa_…` instead of a session.")
}

fn too_slow() -> ApiError {
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "this took too long and was given up")
        .retry_after(Duration::from_secs(5))
}

async fn no_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
        .hint("/openapi.json describes the API.")
}

async fn no_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not know this method")
        .hint("The `Allow` header names those that it knows.")
}

#[expect(clippy::needless_pass_by_value, reason = "the form that the layer calls")]
fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response {
    let words = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    ApiError::internal(anyhow::anyhow!("a handler panicked: {words}")).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::{get, post};
    use tower::ServiceExt;

    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    fn app() -> Router {
        let routes = Router::new()
            .route("/api/thing", get(|| async { "thing" }).post(|| async { "made" }))
            .route("/form", post(|| async { axum::response::Html("<p>done") }))
            .route("/panic", get(|| async { panic!("oh") as () }))
            .route("/slow", get(|| async { tokio::time::sleep(Duration::from_secs(3600)).await }));
        around(routes, Site::of("https://keyward.example.com"))
    }

    async fn ask(method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, serde_json::Value) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = axum::body::to_bytes(response.into_body(), 65536).await.unwrap();
        (status, headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn unknown_routes_and_methods_answer_in_the_error_shape() {
        for (method, path, status, code) in
            [("GET", "/nowhere", 404, "not_found"), ("DELETE", "/api/thing", 405, "method_not_allowed")]
        {
            let (seen, headers, body) = ask(method, path, &[("host", "localhost")]).await;
            assert_eq!((seen, body["detail"]["code"].as_str()), (status, Some(code)));
            assert_eq!(headers["keyward-error"], code);
            assert_eq!(body["request_id"], headers["keyward-request-id"].to_str().unwrap());
            if status == 405 {
                assert_eq!(headers["allow"], "GET,HEAD,POST");
            }
        }
    }

    #[tokio::test]
    async fn a_foreign_host_is_misdirected_and_a_missing_one_is_bad() {
        let cases: [(Pairs, u16, Option<&str>); 5] = [
            (&[("host", "localhost:8081")], 200, None),
            (&[("host", "keyward.example.com")], 200, None),
            (&[("host", "rebound.example.com")], 421, Some("misdirected_request")),
            (&[], 400, Some("bad_request")),
            (&[("host", "localhost"), ("host", "localhost")], 400, Some("bad_request")),
        ];
        for (headers, status, code) in cases {
            let (seen, _, body) = ask("GET", "/api/thing", headers).await;
            assert_eq!((seen, body["detail"]["code"].as_str()), (status, code), "{headers:?}");
        }
        let (seen, ..) = ask("GET", "http://rebound.example.com/api/thing", &[("host", "localhost")]).await;
        assert_eq!(seen, 421);
    }

    #[tokio::test]
    async fn a_browser_must_prove_where_a_change_comes_from() {
        const SESSION: (&str, &str) = ("cookie", "__Host-keyward_session=x");
        let cases: [(&str, Pairs, u16); 14] = [
            ("/api/thing", &[], 200),
            ("/api/thing", &[("sec-fetch-site", "cross-site")], 200),
            ("/api/thing", &[SESSION], 403),
            ("/api/thing", &[SESSION, ("sec-fetch-site", "cross-site")], 403),
            ("/api/thing", &[SESSION, ("sec-fetch-site", "same-site")], 403),
            ("/api/thing", &[SESSION, ("sec-fetch-site", "same-origin")], 200),
            ("/api/thing", &[SESSION, ("origin", "null")], 403),
            ("/api/thing", &[SESSION, ("origin", "https://evil.example.com")], 403),
            ("/api/thing", &[SESSION, ("origin", "https://keyward.example.com")], 200),
            ("/api/thing", &[SESSION, ("authorization", "Bearer kwa_x")], 200),
            ("/api/thing", &[SESSION, ("authorization", "Basic eDp5")], 403),
            ("/form", &[], 403),
            ("/form", &[("authorization", "Bearer kwa_x")], 403),
            ("/form", &[("sec-fetch-site", "same-origin")], 200),
        ];
        for (path, headers, status) in cases {
            let headers = [&[("host", "keyward.example.com")], headers].concat();
            let (seen, _, body) = ask("POST", path, &headers).await;
            assert_eq!(seen, status, "{path} {headers:?}");
            if status == 403 {
                assert_eq!(body["detail"]["code"], "cross_site");
            }
        }
        let (seen, ..) = ask("GET", "/api/thing", &[("host", "localhost"), SESSION]).await;
        assert_eq!(seen, 200);
    }

    #[tokio::test]
    async fn a_panic_and_a_hang_are_answers_too() {
        let (status, _, body) = ask("GET", "/panic", &[("host", "localhost")]).await;
        assert_eq!((status, body["detail"]["code"].as_str()), (500, Some("internal")));
        assert!(body["request_id"].is_string());
        tokio::time::pause();
        let (status, _, body) = ask("GET", "/slow", &[("host", "localhost")]).await;
        assert_eq!((status, body["detail"]["code"].as_str()), (504, Some("timeout")));
    }

    #[tokio::test]
    async fn every_answer_has_safe_headers() {
        let (_, headers, _) = ask("GET", "/api/thing", &[("host", "localhost")]).await;
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        let (_, headers, _) = ask("POST", "/form", &[("host", "localhost"), ("sec-fetch-site", "same-origin")]).await;
        assert_eq!(headers["referrer-policy"], "same-origin");
    }
}

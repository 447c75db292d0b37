//! Who calls: the admin token, or a dashboard session. A wrong token and an unknown session look alike.

use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::audit::{Actor, Record};
use crate::ids::{self, OrgId};
use crate::secret::{Secret, sha256};
use crate::store::SessionRow;

use super::AdminState;
use super::error::ApiError;
use super::site::{Site, read_cookie};

/// The session cookie's name (`__Host-` in front of it when the public URL is https).
pub const SESSION_COOKIE: &str = "keyward_session";

const SESSION_LIFE: Duration = Duration::from_secs(12 * 60 * 60);

/// A caller of the API: `Authorization: Bearer kwa_…`, or a session cookie. For a state-changing request with a session,
/// same-origin proof was checked by a layer.
pub struct Caller {
    /// For the audit trail.
    pub actor: Actor,
}

impl FromRequestParts<AdminState> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, ApiError> {
        // A request with a bearer token stands or falls by it: a cookie beside it doesn't count, because the same-origin
        // check lets such requests pass. Other schemes are a reverse proxy's business.
        if let Some(token) = bearer_of(&parts.headers) {
            if is_admin_token(state, token) {
                return Ok(Self { actor: Actor::AdminToken });
            }
            if state.sign_ins.note_wrong_bearer(Instant::now()) {
                note(state, &Actor::Anonymous, "admin.sign_in_failed", "api").await;
            }
            return Err(ApiError::invalid_token());
        }
        if has_session(state, &parts.headers).await? {
            return Ok(Self { actor: Actor::Session });
        }
        Err(ApiError::invalid_token())
    }
}

/// A signed-in browser. Without one, the reply is a redirect to `/login?next=…`.
pub struct SignedIn {
    /// For the audit trail.
    pub actor: Actor,
}

impl FromRequestParts<AdminState> for SignedIn {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, Response> {
        match has_session(state, &parts.headers).await {
            Ok(true) => Ok(Self { actor: Actor::Session }),
            Ok(false) => Err(to_login(&parts.method, parts.uri.path_and_query().map_or("/", |text| text.as_str()))),
            Err(error) => Err(error.into_response()),
        }
    }
}

/// Checks an admin token and makes a session (12 hours). Answers the `Set-Cookie` value.
///
/// # Errors
/// `invalid_token` (401), after a bounded wait that grows with failures; `rate_limited` (429) after ten failures in a
/// minute; or our side's failure.
pub async fn sign_in(state: &AdminState, presented: &str) -> Result<String, ApiError> {
    let wait = state.sign_ins.begin(Instant::now()).map_err(|wait| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "too many sign-ins failed").retry_after(wait)
    })?;
    if !is_admin_token(state, presented) {
        note(state, &Actor::Anonymous, "admin.sign_in_failed", "dashboard").await;
        tokio::time::sleep(wait).await;
        return Err(ApiError::invalid_token());
    }
    state.sign_ins.succeeded();
    let cookie = Secret::new(URL_SAFE_NO_PAD.encode(ids::random::<32>()));
    let now = state.clock.now();
    let session =
        SessionRow { hash: sha256(cookie.expose().as_bytes()), created_at: now, expires_at: now.after(SESSION_LIFE) };
    state.store.insert_session(&session).await?;
    note(state, &Actor::Session, "admin.signed_in", "dashboard").await;
    Ok(session_cookie(&Site::of(&state.public_url), cookie.expose(), SESSION_LIFE.as_secs() as i64))
}

/// Ends the session of these cookies. Answers the `Set-Cookie` value that clears it.
///
/// # Errors
/// Our side's failure.
pub async fn sign_out(state: &AdminState, headers: &HeaderMap) -> Result<String, ApiError> {
    let site = Site::of(&state.public_url);
    if let Some(cookie) = read_cookie(headers, &session_name(&site)) {
        state.store.delete_session(&sha256(cookie.expose().as_bytes())).await?;
    }
    Ok(session_cookie(&site, "", 0))
}

/// The token of the one `Authorization: Bearer …` header.
pub(super) fn bearer_of(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let (scheme, token) = line.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether a session's cookie is there; says nothing about its worth.
pub(super) fn has_session_cookie(site: &Site, headers: &HeaderMap) -> bool {
    read_cookie(headers, &session_name(site)).is_some()
}

fn is_admin_token(state: &AdminState, presented: &str) -> bool {
    verify_slices_are_equal(&sha256(presented.as_bytes()), &state.token_hash).is_ok()
}

async fn has_session(state: &AdminState, headers: &HeaderMap) -> Result<bool, ApiError> {
    let name = session_name(&Site::of(&state.public_url));
    let Some(cookie) = read_cookie(headers, &name) else { return Ok(false) };
    let hash = sha256(cookie.expose().as_bytes());
    Ok(state.store.session(&hash, state.clock.now()).await?.is_some())
}

fn session_name(site: &Site) -> String {
    site.cookie_name("__Host-", SESSION_COOKIE)
}

fn session_cookie(site: &Site, value: &str, seconds: i64) -> String {
    site.set_cookie(session_name(site), value, "/", seconds)
}

/// To the login page, and back from there where going back makes sense.
fn to_login(method: &Method, path: &str) -> Response {
    let location = if *method == Method::GET && path != "/" {
        let next: String = url::form_urlencoded::byte_serialize(path.as_bytes()).collect();
        format!("/login?next={next}")
    } else {
        "/login".to_owned()
    };
    let mut response = StatusCode::SEE_OTHER.into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Records a sign-in, in the first organization: the token is nobody else's yet.
async fn note(state: &AdminState, actor: &Actor, action: &'static str, via: &str) {
    let organization = match state.store.organization("default").await {
        Ok(row) => row.map(|row| row.id),
        Err(error) => {
            tracing::warn!(%error, "a sign-in is recorded without its organization: {error}");
            None
        }
    };
    let record = Record::new(state.clock.now(), organization.unwrap_or_else(OrgId::new), actor, action);
    let mut row = record.detail(serde_json::json!({ "via": via })).into_row();
    row.organization = organization;
    state.audit.note(row);
}

/// Failed sign-ins of this process: ten a minute, then none until time has passed.
#[derive(Default)]
pub struct SignIns {
    dashboard: Bucket,
    api: Bucket,
}

impl SignIns {
    /// Takes a place for an attempt. Answers how long a failed one has to wait; refused, how long all have to.
    fn begin(&self, now: Instant) -> Result<Duration, Duration> {
        self.dashboard.take(now)
    }
    /// The attempt was none of those that are counted.
    fn succeeded(&self) {
        self.dashboard.give_back();
    }
    /// Whether a wrong bearer token is to be recorded: a bounded number is. Tokens on the API are not slowed down: a
    /// program with an old token in a loop would lock everybody out.
    fn note_wrong_bearer(&self, now: Instant) -> bool {
        self.api.take(now).is_ok()
    }
}

/// A token bucket, kept as the moment at which it will be full again.
#[derive(Default)]
struct Bucket(std::sync::Mutex<Option<Instant>>);

impl Bucket {
    const SIZE: u32 = 10;
    const REFILL: Duration = Duration::from_secs(6);
    const SLOWEST: Duration = Duration::from_secs(1);

    /// Takes a token: `Ok` with a wait that grows as the bucket empties, `Err` with the time until there is one.
    fn take(&self, now: Instant) -> Result<Duration, Duration> {
        let mut full_at = self.lock();
        let start = full_at.map_or(now, |at| at.max(now));
        let missing = start - now;
        let most = Self::REFILL * (Self::SIZE - 1);
        if missing > most {
            return Err(missing - most);
        }
        *full_at = Some(start + Self::REFILL);
        Ok(Self::SLOWEST.mul_f64(missing.as_secs_f64() / most.as_secs_f64()))
    }

    fn give_back(&self) {
        let mut full_at = self.lock();
        *full_at = full_at.and_then(|at| at.checked_sub(Self::REFILL));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.clone(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_bearer_is_read_from_one_header_only() {
        let auth = header::AUTHORIZATION;
        assert_eq!(bearer_of(&headers(&[(auth.clone(), "Bearer kwa_a")])), Some("kwa_a"));
        assert_eq!(bearer_of(&headers(&[(auth.clone(), "bearer  kwa_a ")])), Some("kwa_a"));
        assert_eq!(bearer_of(&headers(&[(auth.clone(), "Basic a2V5")])), None);
        assert_eq!(bearer_of(&headers(&[(auth.clone(), "Bearer")])), None);
        assert_eq!(bearer_of(&headers(&[(auth.clone(), "Bearer a"), (auth, "Bearer b")])), None);
        assert_eq!(bearer_of(&HeaderMap::new()), None);
    }

    #[test]
    fn session_cookies_are_what_browsers_guard_best() {
        let tls = Site::of("https://keyward.example.com");
        assert_eq!(
            session_cookie(&tls, "abc", 43_200),
            "__Host-keyward_session=abc; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=43200"
        );
        let plain = Site::of("http://127.0.0.1:8081");
        assert_eq!(session_cookie(&plain, "", 0), "keyward_session=; HttpOnly; SameSite=Lax; Path=/; Max-Age=0");
        let ours = headers(&[(header::COOKIE, "a=b; keyward_session=x")]);
        assert!(has_session_cookie(&plain, &ours));
        assert!(!has_session_cookie(&tls, &ours), "a cookie without the prefix is not taken where TLS is");
    }

    #[test]
    fn signing_in_leads_back_to_the_page() {
        let location = |method: Method, path| {
            let response = to_login(&method, path);
            assert_eq!(response.status(), 303);
            response.headers()[header::LOCATION].to_str().unwrap().to_owned()
        };
        assert_eq!(location(Method::GET, "/keys?a=b&c=d"), "/login?next=%2Fkeys%3Fa%3Db%26c%3Dd");
        assert_eq!(location(Method::GET, "/"), "/login");
        assert_eq!(location(Method::POST, "/keys"), "/login");
    }

    #[test]
    fn ten_failures_a_minute_and_no_more() {
        let bucket = Bucket::default();
        let start = Instant::now();
        let mut last = None;
        for _ in 0..10 {
            let wait = bucket.take(start).unwrap();
            assert!(last <= Some(wait) && wait <= Duration::from_secs(1), "the wait grows and is bounded");
            last = Some(wait);
        }
        assert_eq!(bucket.take(start), Err(Duration::from_secs(6)));
        assert!(bucket.take(start + Duration::from_secs(6)).is_ok());
        assert!(bucket.take(start + Duration::from_secs(6)).is_err());
        assert_eq!(
            bucket.take(start + Duration::from_secs(3600)),
            Ok(Duration::ZERO),
            "an hour later all is forgotten"
        );
    }

    #[test]
    fn a_sign_in_that_works_costs_nothing() {
        let sign_ins = SignIns::default();
        let now = Instant::now();
        for _ in 0..50 {
            sign_ins.begin(now).unwrap();
            sign_ins.succeeded();
        }
        assert_eq!(sign_ins.begin(now), Ok(Duration::ZERO));
    }
}

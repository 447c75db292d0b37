//! The switches over HTTP, for a shell and for browser tests. Loopback like everything here; a page from elsewhere that
//! was pointed at this address by DNS is told apart by its `Host`.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::faults::{Fault, Place};
use super::tokens::Rotation;
use super::{Counters, Sandbox};

pub(super) fn router() -> Router<Sandbox> {
    Router::new()
        .route("/counters", get(counters))
        .route("/recorded", get(recorded))
        .route("/faults", post(set_fault).delete(clear_faults))
        .route("/rotation", post(set_rotation))
        .route("/ttl", post(set_ttl))
        .route("/revoke", post(revoke))
        .route("/expire", post(expire))
        .layer(from_fn(own_host_only))
}

async fn own_host_only(request: Request, next: Next) -> Response {
    if is_own_host(request.headers()) {
        next.run(request).await
    } else {
        StatusCode::MISDIRECTED_REQUEST.into_response()
    }
}

fn is_own_host(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    matches!(name, "localhost" | "[::1]" | "127.0.0.1") && !cross_site
}

async fn counters(State(sandbox): State<Sandbox>) -> Json<Counters> {
    Json(sandbox.counters())
}

/// The recorder's lines without values of credentials: this goes to a terminal.
async fn recorded(State(sandbox): State<Sandbox>) -> Json<Value> {
    let all = sandbox.recorded();
    let shown = all.iter().map(|request| {
        let headers = request.headers.iter().map(|(name, value)| {
            let value = if name == "authorization" { "…".into() } else { String::from_utf8_lossy(value) };
            json!([name, value])
        });
        json!({
            "at": request.at,
            "method": request.method,
            "target": request.target,
            "headers": headers.collect::<Vec<_>>(),
            "body_length": request.body_length,
            "body_complete": request.body_complete,
        })
    });
    Json(shown.collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultWanted {
    on: Place,
    fault: String,
    /// Left out: until it is cleared.
    times: Option<usize>,
    status: Option<u16>,
    retry_after: Option<String>,
    ms: Option<u64>,
    bytes: Option<u64>,
    location: Option<String>,
    body: Option<Value>,
    scopes: Option<Vec<String>>,
    token_type: Option<String>,
}

impl FaultWanted {
    fn fault(&self) -> Option<Fault> {
        let wait = Duration::from_millis(self.ms.unwrap_or(1000));
        let size = self.bytes.unwrap_or(1 << 30);
        Some(match self.fault.as_str() {
            "status" => Fault::Status { status: self.status.unwrap_or(503), retry_after: self.retry_after.clone() },
            "json" => Fault::Json(
                self.status.unwrap_or(400),
                self.body.clone().unwrap_or_else(|| json!({ "error": "invalid_grant" })),
            ),
            "raw_body" => Fault::RawBody {
                status: self.status.unwrap_or(200),
                content_type: String::from("application/json"),
                body: self.body.as_ref().and_then(Value::as_str).unwrap_or("{").to_owned().into(),
            },
            "html" => Fault::Html200,
            "empty_body" => Fault::EmptyBody,
            "redirect" => {
                Fault::Redirect(self.status.unwrap_or(307), self.location.clone().unwrap_or_else(|| "/".into()))
            }
            "big_body" => Fault::BigBody(size),
            "gzip_bomb" => Fault::GzipBomb(size),
            "reset" => Fault::Reset,
            "hang" => Fault::Hang,
            "slow" => Fault::Slow(wait),
            "slow_after_work" => Fault::SlowAfterWork(wait),
            "hang_after_work" => Fault::HangAfterWork,
            "reset_after_work" => Fault::ResetAfterWork,
            "cut_body" => Fault::CutBody,
            "trickle" => Fault::Trickle(wait),
            "form_encoded" => Fault::FormEncoded,
            "alter" => Fault::Alter(self.body.as_ref()?.as_object()?.clone()),
            "wrong_token_type" => Fault::WrongTokenType(self.token_type.clone().unwrap_or_else(|| "DPoP".into())),
            "repeat_refresh_token" => Fault::RepeatRefreshToken,
            "smaller_scope" => Fault::SmallerScope(self.scopes.clone()?),
            _ => return None,
        })
    }
}

async fn set_fault(State(sandbox): State<Sandbox>, body: Bytes) -> Result<StatusCode, Mistake> {
    let wanted: FaultWanted = read(&body)?;
    let fault = wanted
        .fault()
        .ok_or_else(|| Mistake(format!("no such fault, or a member of it is missing: {}", wanted.fault)))?;
    match wanted.times {
        Some(times) => sandbox.faults().times(wanted.on, fault, times.min(100_000)),
        None => sandbox.faults().set(wanted.on, fault),
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn clear_faults(State(sandbox): State<Sandbox>) -> StatusCode {
    sandbox.faults().clear();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
enum RotationWanted {
    None,
    Soft,
    Strict,
    Grace { seconds: u64 },
    Family,
}

async fn set_rotation(State(sandbox): State<Sandbox>, body: Bytes) -> Result<StatusCode, Mistake> {
    sandbox.set_rotation(match read(&body)? {
        RotationWanted::None => Rotation::None,
        RotationWanted::Soft => Rotation::Soft,
        RotationWanted::Strict => Rotation::Strict,
        RotationWanted::Grace { seconds } => Rotation::Grace(Duration::from_secs(seconds)),
        RotationWanted::Family => Rotation::Family,
    });
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TtlWanted {
    access_seconds: Option<u64>,
    /// Zero: for ever.
    refresh_seconds: Option<u64>,
}

async fn set_ttl(State(sandbox): State<Sandbox>, body: Bytes) -> Result<StatusCode, Mistake> {
    let wanted: TtlWanted = read(&body)?;
    if let Some(seconds) = wanted.access_seconds {
        sandbox.set_access_ttl(Duration::from_secs(seconds));
    }
    if let Some(seconds) = wanted.refresh_seconds {
        sandbox.set_refresh_ttl((seconds > 0).then(|| Duration::from_secs(seconds)));
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    person: String,
}

async fn revoke(State(sandbox): State<Sandbox>, body: Bytes) -> Result<StatusCode, Mistake> {
    sandbox.revoke_all_of(&read::<Person>(&body)?.person);
    Ok(StatusCode::NO_CONTENT)
}

async fn expire(State(sandbox): State<Sandbox>, body: Bytes) -> Result<StatusCode, Mistake> {
    sandbox.expire_access_of(&read::<Person>(&body)?.person);
    Ok(StatusCode::NO_CONTENT)
}

/// JSON whatever the content type says: `curl -d` should do.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Mistake> {
    serde_json::from_slice(body).map_err(|error| Mistake(error.to_string()))
}

struct Mistake(String);

impl IntoResponse for Mistake {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(json!({ "message": self.0 }))).into_response()
    }
}

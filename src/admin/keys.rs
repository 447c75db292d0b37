//! Agent keys: made, shown once, changed, rotated, revoked.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{AgentKey, KeyChange, NewKey};
use crate::clock::Timestamp;
use crate::config::RateLimit;
use crate::ids::KeyId;
use crate::store::KeyRow;

use super::AdminState;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id, Nothing, Query, Scope, nullable};
use super::list::{List, PageQuery};
use super::openapi::Refusals;

const GRACE_MOST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new()
        .routes(routes!(list_keys, create_key))
        .routes(routes!(get_key, update_key, revoke_key))
        .routes(routes!(rotate_key))
}

/// An agent key's record; the key itself is shown once and stored nowhere.
#[derive(Serialize, ToSchema)]
#[schema(as = Key)]
struct KeyView {
    /// Id.
    id: KeyId,
    /// For people.
    name: String,
    /// The key's first characters, to recognise it by.
    prefix: String,
    /// Whether it is accepted.
    status: KeyStatus,
    /// Refused from then on.
    expires_at: Option<Timestamp>,
    /// Addresses it may come from; empty: any.
    #[schema(value_type = Vec<String>)]
    allowed_ips: Vec<IpNet>,
    /// What it may use up; `null`: what `[proxy.limits.per_key]` says.
    rate_limit: Option<RateLimit>,
    /// Made at.
    created_at: Timestamp,
    /// Last seen, to the minute.
    last_used_at: Option<Timestamp>,
    /// Revoked at.
    revoked_at: Option<Timestamp>,
}

/// A key's record with the key: the only time that it is shown.
#[derive(Serialize, ToSchema)]
#[schema(as = KeyWithSecret)]
struct MadeKey {
    /// The key. It can't be shown again.
    key: String,
    #[serde(flatten)]
    record: KeyView,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum KeyStatus {
    /// Accepted.
    Active,
    /// Past its end.
    Expired,
    /// Revoked.
    Revoked,
}

/// A key to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewKey)]
struct NewKeyBody {
    /// For people, 1 to 200 characters.
    name: String,
    /// Refused from then on; default never.
    expires_at: Option<Timestamp>,
    /// Networks (`10.0.0.0/8`) and addresses it may come from; default any.
    #[serde(default)]
    allowed_ips: Vec<String>,
    /// What it may use up; default what `[proxy.limits.per_key]` says.
    rate_limit: Option<RateLimit>,
}

/// Changes to a key; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyChange)]
struct KeyChangeBody {
    /// For people, 1 to 200 characters.
    name: Option<String>,
    /// Refused from then on; `null`: never.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Timestamp>)]
    expires_at: Option<Option<Timestamp>>,
    /// Networks and addresses it may come from; empty: any.
    allowed_ips: Option<Vec<String>>,
    /// What it may use up; `null`: what `[proxy.limits.per_key]` says.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<RateLimit>)]
    rate_limit: Option<Option<RateLimit>>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RotateQuery {
    /// How long the old key counts on: `30s`, `5m`, `2h`, `1d`, at most `30d`; default `0s`.
    grace: Option<String>,
}

/// List keys
#[utoipa::path(
    get, path = "/api/organizations/{org}/keys", tag = "keys",
    params(("org" = String, Path, description = "Organization: name or id"), PageQuery),
    responses(Refusals, (status = 200, body = List<KeyView>, description = "Oldest first, revoked ones too.")),
)]
async fn list_keys(
    scope: Scope,
    State(state): State<AdminState>,
    Query(query): Query<PageQuery>,
) -> Result<Json<List<KeyView>>, ApiError> {
    let now = state.clock.now();
    let rows = state.store.keys(scope.org, &query.page()?).await?;
    Ok(List::of(rows, |row| show(row, now)))
}

/// Create a key
#[utoipa::path(
    post, path = "/api/organizations/{org}/keys", tag = "keys",
    params(("org" = String, Path, description = "Organization: name or id")),
    request_body = NewKeyBody,
    responses(Refusals, (status = 201, body = MadeKey, description = "The one answer that holds the key.")),
)]
async fn create_key(
    scope: Scope,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
    Body(body): Body<NewKeyBody>,
) -> Result<(StatusCode, Json<MadeKey>), ApiError> {
    let new = NewKey {
        name: body.name,
        expires_at: body.expires_at,
        allowed_ips: networks(&body.allowed_ips)?,
        rate_limit: body.rate_limit,
    };
    let made = state.access.create_key(scope.org, new, &scope.actor()).await?;
    Ok((StatusCode::CREATED, Json(show_made(made, state.clock.now()))))
}

/// Get a key
#[utoipa::path(
    get, path = "/api/organizations/{org}/keys/{id}", tag = "keys",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = KeyId, Path)),
    responses(
        Refusals,
        (status = 200, body = KeyView, description = "The key's record."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `key_not_found`."),
    ),
)]
async fn get_key(
    scope: Scope,
    Id(id): Id<KeyId>,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<KeyView>, ApiError> {
    let row = state.store.key(scope.org, id).await?.ok_or_else(ApiError::key_not_found)?;
    Ok(Json(show(row, state.clock.now())))
}

/// Change a key
#[utoipa::path(
    patch, path = "/api/organizations/{org}/keys/{id}", tag = "keys",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = KeyId, Path)),
    request_body = KeyChangeBody,
    responses(
        Refusals,
        (status = 200, body = KeyView, description = "As it is now."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `key_not_found`."),
    ),
)]
async fn update_key(
    scope: Scope,
    Id(id): Id<KeyId>,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
    Body(body): Body<KeyChangeBody>,
) -> Result<Json<KeyView>, ApiError> {
    let change = KeyChange {
        name: body.name,
        expires_at: body.expires_at,
        allowed_ips: body.allowed_ips.as_deref().map(networks).transpose()?,
        rate_limit: body.rate_limit,
    };
    let row = state.access.update_key(scope.org, id, change, &scope.actor()).await?;
    Ok(Json(show(row, state.clock.now())))
}

/// Revoke a key
///
/// The next request with it is refused. Its record stays.
#[utoipa::path(
    delete, path = "/api/organizations/{org}/keys/{id}", tag = "keys",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = KeyId, Path)),
    responses(
        Refusals,
        (status = 200, body = KeyView, description = "The record of the revoked key."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `key_not_found`."),
    ),
)]
async fn revoke_key(
    scope: Scope,
    Id(id): Id<KeyId>,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<KeyView>, ApiError> {
    let row = state.access.revoke_key(scope.org, id, &scope.actor()).await?;
    Ok(Json(show(row, state.clock.now())))
}

/// Give a key a new secret
#[utoipa::path(
    post, path = "/api/organizations/{org}/keys/{id}/rotate", tag = "keys",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = KeyId, Path), RotateQuery),
    responses(
        Refusals,
        (status = 200, body = MadeKey, description = "The one answer that holds the new key."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `key_not_found`."),
    ),
)]
async fn rotate_key(
    scope: Scope,
    Id(id): Id<KeyId>,
    State(state): State<AdminState>,
    Query(query): Query<RotateQuery>,
) -> Result<Json<MadeKey>, ApiError> {
    let grace = grace(query.grace.as_deref())?;
    let made = state.access.rotate_key(scope.org, id, grace, &scope.actor()).await?;
    Ok(Json(show_made(made, state.clock.now())))
}

fn show(row: KeyRow, now: Timestamp) -> KeyView {
    let status = match (row.revoked_at, row.expires_at) {
        (Some(_), _) => KeyStatus::Revoked,
        (None, Some(end)) if end <= now => KeyStatus::Expired,
        (None, _) => KeyStatus::Active,
    };
    KeyView {
        id: row.id,
        name: row.name,
        prefix: row.prefix,
        status,
        expires_at: row.expires_at,
        allowed_ips: row.allowed_ips,
        rate_limit: row.rate_limit,
        created_at: row.created_at,
        last_used_at: row.last_used_at,
        revoked_at: row.revoked_at,
    }
}

fn show_made((row, key): (KeyRow, AgentKey), now: Timestamp) -> MadeKey {
    MadeKey { key: key.expose().to_owned(), record: show(row, now) }
}

/// Networks, and single addresses for convenience.
fn networks(texts: &[String]) -> Result<Vec<IpNet>, ApiError> {
    let read = |(at, text): (usize, &String)| {
        let net = text.parse::<IpNet>().ok().or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)));
        net.ok_or_else(|| {
            ApiError::bad_request(format!("body `allowed_ips[{at}]`: expected an address or a network"))
                .hint("Such as `203.0.113.7`, `10.0.0.0/8` or `2001:db8::/32`.")
        })
    };
    texts.iter().enumerate().map(read).collect()
}

fn grace(text: Option<&str>) -> Result<Duration, ApiError> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let unit = text.char_indices().last().map_or(0, |(at, _)| at);
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => 0,
    };
    let digits = number.bytes().all(|b| b.is_ascii_digit());
    let span = number.parse::<u64>().ok().filter(|_| digits && seconds > 0);
    let span = span.and_then(|n| n.checked_mul(seconds)).map(Duration::from_secs).filter(|span| *span <= GRACE_MOST);
    span.ok_or_else(|| {
        ApiError::bad_request("query `grace`: expected a time of at most `30d`")
            .hint("Such as `30s`, `5m`, `2h` or `1d`.")
    })
}

#[cfg(test)]
mod tests {
    use super::super::extract::read_json;
    use super::*;

    fn row() -> KeyRow {
        KeyRow {
            id: KeyId::new(),
            organization: crate::ids::OrgId::new(),
            name: "agent".into(),
            hash: [0; 32],
            prefix: "kw_abc…".into(),
            expires_at: None,
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap()],
            rate_limit: None,
            previous: None,
            created_at: Timestamp::from_millis(0),
            last_used_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn a_keys_status_says_whether_it_is_accepted() {
        let at = Timestamp::from_millis;
        for (revoked, end, status) in [
            (None, None, KeyStatus::Active),
            (None, Some(at(11)), KeyStatus::Active),
            (None, Some(at(10)), KeyStatus::Expired),
            (Some(at(5)), None, KeyStatus::Revoked),
            (Some(at(5)), Some(at(1)), KeyStatus::Revoked),
        ] {
            let row = KeyRow { revoked_at: revoked, expires_at: end, ..row() };
            assert_eq!(show(row, at(10)).status, status);
        }
    }

    #[test]
    fn the_key_is_shown_beside_its_record_once() {
        let key = AgentKey::generate();
        let shown = key.expose().to_owned();
        let json = serde_json::to_value(show_made((row(), key), Timestamp::from_millis(0))).unwrap();
        assert_eq!((json["key"].as_str(), json["name"].as_str()), (Some(shown.as_str()), Some("agent")));
        assert_eq!(json["allowed_ips"][0], "10.0.0.0/8");
        assert!(json["rate_limit"].is_null() && json.get("rate_limit").is_some());
        let json = serde_json::to_value(show(row(), Timestamp::from_millis(0))).unwrap();
        assert!(json.get("key").is_none() && json.get("hash").is_none());
    }

    #[test]
    fn a_rate_limit_is_read_shown_and_taken_away() {
        let body: NewKeyBody = read_json(br#"{"name":"a","rate_limit":{"requests":5}}"#).unwrap();
        let view = show(KeyRow { rate_limit: body.rate_limit, ..row() }, Timestamp::from_millis(0));
        assert_eq!(serde_json::to_value(view).unwrap()["rate_limit"], serde_json::json!({"requests": 5, "per": "1m"}));
        let read = |json: &str| read_json::<KeyChangeBody>(json.as_bytes()).unwrap().rate_limit;
        assert_eq!(read("{}"), None);
        assert_eq!(read(r#"{"rate_limit":null}"#), Some(None));
        assert!(read(r#"{"rate_limit":{"concurrent":2}}"#).is_some_and(|limit| limit.is_some()));
        let Err(error) = read_json::<NewKeyBody>(br#"{"name":"a","rate_limit":{"requests":0}}"#) else { panic!() };
        assert!(error.status == 400 && error.message.contains("rate_limit"), "{}", error.message);
    }

    #[test]
    fn a_change_can_take_an_end_away() {
        let read = |json: &str| read_json::<KeyChangeBody>(json.as_bytes()).unwrap().expires_at;
        assert_eq!(read("{}"), None);
        assert_eq!(read(r#"{"expires_at":null}"#), Some(None));
        assert_eq!(read(r#"{"expires_at":"1970-01-01T00:00:01Z"}"#), Some(Some(Timestamp::from_millis(1_000))));
    }

    #[test]
    fn addresses_are_networks_too() {
        let nets = networks(&["203.0.113.7".into(), "10.0.0.0/8".into(), "2001:db8::/32".into()]).unwrap();
        assert_eq!(nets[0].to_string(), "203.0.113.7/32");
        let error = networks(&["10.0.0.0/8".into(), "everywhere".into()]).unwrap_err();
        assert!(error.message.contains("allowed_ips[1]"));
    }

    #[test]
    fn grace_is_a_number_and_a_unit() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("5m", 300), ("2h", 7200), ("30d", 2_592_000)] {
            assert_eq!(grace(Some(text)).unwrap().as_secs(), seconds, "{text}");
        }
        assert_eq!(grace(None).unwrap(), Duration::ZERO);
        for text in ["", "5", "m", "5 m", "-5m", "+5m", "1.5h", "31d", "99999999999999999999s", "5ü", "5w"] {
            assert!(grace(Some(text)).is_err(), "{text}");
        }
    }
}

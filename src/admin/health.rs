//! For machines that watch: alive, ready, metrics, and the API's description.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::store::Status;
use crate::telemetry::{AccountCounts, Metrics};

use super::AdminState;
use super::auth::Caller;
use super::error::{ApiError, ErrorBody};
use super::openapi::{PlainRefusals, openapi_json};

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(openapi))
}

/// How it goes.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok`.
    status: &'static str,
}

/// Whether Keyward runs
#[utoipa::path(
    get, path = "/healthz", tag = "health", security(()),
    responses(
        (status = 200, body = Health, description = "It runs."),
        (status = "default", body = ErrorBody, description = "Refused."),
    ),
)]
async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether Keyward can serve
#[utoipa::path(
    get, path = "/readyz", tag = "health", security(()),
    responses(
        (status = 200, body = Health, description = "It can."),
        (status = 503, body = ErrorBody, description = "`not_ready`: starting, stopping, or without its store."),
        (status = "default", body = ErrorBody, description = "Refused."),
    ),
)]
async fn readyz(State(state): State<AdminState>) -> Result<Json<Health>, ApiError> {
    let not_ready = |why: &str| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why).retry_after(Duration::from_secs(1))
    };
    if !state.ready.load(Ordering::Acquire) {
        return Err(not_ready("Keyward is starting or stopping"));
    }
    match tokio::time::timeout(Duration::from_secs(2), state.store.ping()).await {
        Ok(Ok(())) => Ok(Json(Health { status: "ok" })),
        Ok(Err(error)) => {
            tracing::warn!(%error, "not ready: {error}");
            Err(not_ready("the store does not answer"))
        }
        Err(_) => Err(not_ready("the store does not answer")),
    }
}

/// Metrics
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses(
        PlainRefusals,
        (status = 200, content_type = "application/openmetrics-text", body = String, description = "OpenMetrics text."),
    ),
)]
async fn metrics(_: Caller, State(state): State<AdminState>) -> Response {
    // When the store does not answer, the last known numbers stand: metrics are wanted most when something is wrong.
    if let Ok(counted) = state.store.account_counts().await {
        let of = |wanted| counted.iter().find(|(status, _)| *status == wanted).map_or(0, |(_, count)| *count);
        state.metrics.set_accounts(AccountCounts {
            connected: of(Status::Connected),
            degraded: of(Status::Degraded),
            disconnected: of(Status::Disconnected),
        });
    }
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], state.metrics.encode()).into_response()
}

/// This description
#[utoipa::path(
    get, path = "/openapi.json", tag = "health", security(()),
    responses(
        (status = 200, body = Object, description = "OpenAPI 3.1."),
        (status = "default", body = ErrorBody, description = "Refused."),
    ),
)]
async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi_json()).into_response()
}

//! The one error shape of the API (`design.md` §3.1): status, stable code, words, hint. Causes are logged once, here.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::access::AccessError;
use crate::accounts::{Accounts, ConnectError, DisconnectError, RefreshError, TokenError};
use crate::ids::{AccountId, RequestId};
use crate::store::{self, Reason};

/// Says that Keyward made this answer, and why.
pub(super) const KEYWARD_ERROR: HeaderName = HeaderName::from_static("keyward-error");

tokio::task_local! {
    /// The request that this task answers: set by the listener's edge, so that an error made anywhere can name it.
    pub(super) static REQUEST: RequestId;
}

/// An error answer.
#[derive(Debug)]
pub struct ApiError {
    /// Status.
    pub status: StatusCode,
    /// Stable code.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// When to try again (`Retry-After`).
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error with these parts.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), hint: None, retry_after: None }
    }
    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// With a time after which trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, span: Duration) -> Self {
        self.retry_after = Some(span);
        self
    }

    /// 400: the request can't be understood or accepted; says where.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 500: our side failed. The cause goes to the log, never to the caller.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        let cause = cause.into();
        let request = current_request();
        tracing::error!(request.id = %request, error = format!("{cause:#}"), "request {request} failed: {cause:#}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Keyward could not do this")
            .hint("The log holds the cause under this request id.")
    }

    /// 401: no token, a wrong one, or no session: all alike.
    pub(super) fn invalid_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_token", "the admin token is missing or wrong")
            .hint("Send `Authorization: Bearer kwa_…`, or sign in at /login.")
    }
    pub(super) fn organization_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "organization_not_found", "there is no such organization")
            .hint("GET /api/organizations lists them; the first one is `default`.")
    }
    pub(super) fn provider_not_found(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "provider_not_found", format!("there is no provider `{id}`"))
            .hint("GET /api/organizations/{org}/integrations lists them.")
    }
    pub(super) fn account_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "account_not_found", "there is no such account")
    }
    pub(super) fn key_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "key_not_found", "there is no such key")
    }
    pub(super) fn target_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "target_not_found", "there is no such target")
    }
    pub(super) fn already_exists(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "already_exists", message)
    }
}

/// The request being answered; a new id outside of one.
fn current_request() -> RequestId {
    REQUEST.try_with(|id| *id).unwrap_or_else(|_| RequestId::next())
}

/// The body of every error answer.
#[derive(serde::Serialize, utoipa::ToSchema)]
#[schema(as = Error)]
pub(super) struct ErrorBody {
    /// What went wrong.
    detail: ErrorDetail,
    /// The request, as in `Keyward-Request-Id` and the log.
    request_id: RequestId,
}

/// What went wrong.
#[derive(serde::Serialize, utoipa::ToSchema)]
struct ErrorDetail {
    /// Stable, for programs.
    code: &'static str,
    /// For people.
    message: String,
    /// What to do about it.
    hint: Option<String>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let detail = ErrorDetail { code: self.code, message: self.message, hint: self.hint };
        let body = ErrorBody { detail, request_id: current_request() };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(KEYWARD_ERROR, HeaderValue::from_static(self.code));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(span) = self.retry_after {
            // Whole seconds, never 0: the caller would come straight back.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(span.as_millis().div_ceil(1000).max(1) as u64));
        }
        response
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Conflict => Self::already_exists("it already exists"),
            store::Error::NotFound => Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such thing"),
            other => Self::internal(other),
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::KeyNotFound => Self::key_not_found(),
            AccessError::TargetNotFound => Self::target_not_found(),
            AccessError::AlreadyExists(what) => Self::already_exists(format!("`{what}` already exists")),
            AccessError::ManagedTarget => Self::new(
                StatusCode::CONFLICT,
                "managed_target",
                "this target comes with an account or with gateway.toml and can't be changed here",
            )
            .hint("Disconnect its account, or edit gateway.toml. Grants to it can be changed freely."),
            AccessError::BadRequest(why) => Self::bad_request(why),
            AccessError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<ConnectError> for ApiError {
    fn from(error: ConnectError) -> Self {
        let message = error.to_string();
        match error {
            ConnectError::UnknownProvider(id) => Self::provider_not_found(&id),
            ConnectError::BadRequest(why) => Self::bad_request(why),
            ConnectError::AccountNotFound => Self::account_not_found(),
            ConnectError::NotConfigured { variables: [id, secret], .. } => {
                Self::new(StatusCode::NOT_IMPLEMENTED, "provider_not_configured", message)
                    .hint(format!("Set {id} and {secret}, then restart Keyward."))
            }
            ConnectError::InvalidState => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_state", message).hint("Begin connecting again.")
            }
            ConnectError::Denied { code } => Self::new(StatusCode::BAD_REQUEST, "access_denied", message).hint(code),
            ConnectError::ExchangeFailed { code } => {
                Self::new(StatusCode::BAD_REQUEST, "exchange_failed", message).hint(code)
            }
            ConnectError::AnotherIdentity => Self::new(StatusCode::CONFLICT, "another_identity", message)
                .hint("Sign in at the provider as the account's own identity, or connect this one as a new account."),
            ConnectError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<DisconnectError> for ApiError {
    fn from(error: DisconnectError) -> Self {
        match error {
            DisconnectError::NotFound => Self::account_not_found(),
            DisconnectError::NeedsConfirmation { grants } => {
                let message = if grants == 1 {
                    "1 grant uses this account's targets and would go with it".to_owned()
                } else {
                    format!("{grants} grants use this account's targets and would go with it")
                };
                Self::new(StatusCode::CONFLICT, "needs_confirmation", message)
                    .hint("Send the same request with `?confirm=true` to disconnect all the same.")
            }
            DisconnectError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl ApiError {
    /// Why an account could not be checked or refreshed. Needs the service for the reconnect link.
    pub fn refresh(error: RefreshError, accounts: &Accounts) -> Self {
        match error {
            RefreshError::NotFound => Self::account_not_found(),
            RefreshError::Token(error) => Self::token(error, |id| accounts.reconnect_url(id)),
            RefreshError::Internal(cause) => Self::internal(cause),
        }
    }

    fn token(error: TokenError, reconnect_url: impl FnOnce(AccountId) -> String) -> Self {
        match error {
            TokenError::Disconnected { account, .. } => {
                Self::new(StatusCode::CONFLICT, "account_disconnected", "a person must reconnect this account")
                    .hint(reconnect_url(account))
            }
            TokenError::Unavailable { reason, retry_after } => {
                let error = Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "token_unavailable",
                    if reason == Reason::ProviderMisconfigured {
                        "the provider refuses Keyward's client settings"
                    } else {
                        "the provider can't be reached right now"
                    },
                )
                .retry_after(retry_after);
                if reason == Reason::ProviderMisconfigured {
                    error.hint("Check the provider's client id and secret.")
                } else {
                    error.hint("Try again after the time in Retry-After.")
                }
            }
            TokenError::Gone => Self::account_not_found(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parts(error: ApiError) -> (StatusCode, http::HeaderMap, serde_json::Value) {
        let response = error.into_response();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = axum::body::to_bytes(response.into_body(), 65536).await.unwrap();
        (status, headers, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn the_shape_is_the_contracts_and_names_the_request() {
        let id = RequestId::next();
        let (status, headers, body) = REQUEST.scope(id, parts(ApiError::invalid_token())).await;
        assert_eq!(status, 401);
        assert_eq!(headers["keyward-error"], "invalid_token");
        assert_eq!(headers["www-authenticate"], "Bearer");
        assert_eq!(body["detail"]["code"], "invalid_token");
        assert!(body["detail"]["message"].is_string() && body["detail"]["hint"].is_string());
        assert_eq!(body["request_id"], id.to_string());
    }

    #[tokio::test]
    async fn an_internal_cause_is_never_shown() {
        let (status, _, body) = parts(ApiError::internal(anyhow::anyhow!("the password is hunter2"))).await;
        assert_eq!(status, 500);
        assert!(!body.to_string().contains("hunter2"));
    }

    #[test]
    fn every_service_error_has_its_status_and_code() {
        let account = AccountId::new();
        let cases: Vec<(ApiError, u16, &str, Option<&str>)> = vec![
            (AccessError::KeyNotFound.into(), 404, "key_not_found", None),
            (AccessError::TargetNotFound.into(), 404, "target_not_found", None),
            (AccessError::AlreadyExists("crm".into()).into(), 409, "already_exists", None),
            (AccessError::ManagedTarget.into(), 409, "managed_target", Some("gateway.toml")),
            (AccessError::BadRequest("no".into()).into(), 400, "bad_request", None),
            (ConnectError::UnknownProvider("x".into()).into(), 404, "provider_not_found", None),
            (ConnectError::AccountNotFound.into(), 404, "account_not_found", None),
            (
                ConnectError::NotConfigured {
                    name: "Acme".into(),
                    variables: ["OAUTH_ACME_CLIENT_ID".into(), "OAUTH_ACME_CLIENT_SECRET".into()],
                }
                .into(),
                501,
                "provider_not_configured",
                Some("OAUTH_ACME_CLIENT_ID and OAUTH_ACME_CLIENT_SECRET"),
            ),
            (ConnectError::InvalidState.into(), 400, "invalid_state", None),
            (ConnectError::Denied { code: "access_denied".into() }.into(), 400, "access_denied", None),
            (
                ConnectError::ExchangeFailed { code: "invalid_grant".into() }.into(),
                400,
                "exchange_failed",
                Some("invalid_grant"),
            ),
            (ConnectError::AnotherIdentity.into(), 409, "another_identity", None),
            (DisconnectError::NotFound.into(), 404, "account_not_found", None),
            (DisconnectError::NeedsConfirmation { grants: 3 }.into(), 409, "needs_confirmation", Some("?confirm=true")),
            (
                ApiError::token(TokenError::Disconnected { account, reason: Reason::Revoked }, |id| format!("/r/{id}")),
                409,
                "account_disconnected",
                Some("/r/acc_"),
            ),
            (ApiError::token(TokenError::Gone, |_| String::new()), 404, "account_not_found", None),
            (store::Error::Conflict.into(), 409, "already_exists", None),
        ];
        for (error, status, code, hint) in cases {
            assert_eq!((error.status.as_u16(), error.code), (status, code));
            if let Some(part) = hint {
                assert!(error.hint.as_deref().unwrap_or_default().contains(part), "{code}: {:?}", error.hint);
            }
        }
        assert!(ApiError::from(DisconnectError::NeedsConfirmation { grants: 3 }).message.starts_with("3 grants"));
    }

    #[tokio::test]
    async fn a_passing_failure_says_when_to_come_back() {
        let wait = Duration::from_millis(1_200);
        for (wait, shown) in [(wait, "2"), (Duration::ZERO, "1")] {
            let error = TokenError::Unavailable { reason: Reason::ProviderUnavailable, retry_after: wait };
            let (status, headers, body) = parts(ApiError::token(error, |_| String::new())).await;
            assert_eq!((status.as_u16(), body["detail"]["code"].as_str()), (503, Some("token_unavailable")));
            assert_eq!(headers["retry-after"], shown);
        }
    }
}

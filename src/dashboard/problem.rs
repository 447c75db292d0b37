//! What went wrong, as a page in words. Causes go to the log, once, here; a page never shows them.

use askama::Template;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::access::AccessError;
use crate::accounts::{ConnectError, DisconnectError, RefreshError};
use crate::admin::error::ApiError;
use crate::{catalog, store};

use super::page::{Shell, html};
use super::words;

/// A request that came to nothing.
#[derive(Debug)]
pub(super) struct Problem {
    pub status: StatusCode,
    pub code: &'static str,
    pub title: &'static str,
    pub message: String,
    pub hint: Option<String>,
}

#[derive(Template)]
#[template(path = "problem.html")]
pub(super) struct ProblemPage {
    pub shell: Shell,
    pub code: &'static str,
    pub message: String,
    pub hint: Option<String>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, title: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, title, message: message.into(), hint: None }
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// The form or link can't be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", "That can't be done", message)
    }
    /// There is no such thing.
    pub fn not_found(code: &'static str, message: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, "Not here", message)
    }
    /// Our side failed; `cause` is for the log only.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(cause = %cause, "a dashboard page failed: {cause}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something went wrong",
            "Keyward could not do this. Its log says why.",
        )
    }
    /// A connect link that can't be used (any more).
    pub fn link_over() -> Self {
        Self::new(
            StatusCode::GONE,
            "invalid_state",
            "This link is over",
            "A connect link works once and for ten minutes. This one was used, has expired, or never was.",
        )
        .hint("Ask the person who sent it for a new one.")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let shell = Shell::alone(self.title);
        let page = ProblemPage { shell, code: self.code, message: self.message, hint: self.hint };
        let mut reply = html(&page);
        if reply.status() == StatusCode::OK {
            *reply.status_mut() = self.status;
        }
        reply
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        Self::internal(error)
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        // Whoever made it has logged its cause.
        Self {
            status: error.status,
            code: error.code,
            title: "That did not work",
            message: error.message,
            hint: error.hint,
        }
    }
}

impl From<ConnectError> for Problem {
    fn from(error: ConnectError) -> Self {
        let (code, message, hint) = words::failure(words::failure_code(&error));
        let title = "Failed to connect integration";
        let page = |status| Self::new(status, code, title, message).hint(hint);
        match error {
            ConnectError::NotConfigured { name, variables: [id, secret] } => {
                Self::new(StatusCode::NOT_IMPLEMENTED, code, title, format!("{name} is not configured."))
                    .hint(format!("Set {id} and {secret}, then start Keyward again."))
            }
            ConnectError::BadRequest(problem) => Self::bad_request(problem),
            ConnectError::UnknownProvider(_) | ConnectError::AccountNotFound => page(StatusCode::NOT_FOUND),
            ConnectError::InvalidState => page(StatusCode::GONE),
            ConnectError::Denied { .. } | ConnectError::ExchangeFailed { .. } => page(StatusCode::BAD_REQUEST),
            ConnectError::AnotherIdentity => page(StatusCode::CONFLICT),
            ConnectError::Internal(cause) => Self::internal(format!("{cause:#}")),
        }
    }
}

impl From<DisconnectError> for Problem {
    fn from(error: DisconnectError) -> Self {
        match error {
            DisconnectError::NotFound => Self::not_found("account_not_found", "There is no such account."),
            DisconnectError::NeedsConfirmation { grants } => Self::new(
                StatusCode::CONFLICT,
                "needs_confirmation",
                "Please confirm",
                format!("{grants} grants use this account's targets and would go with it."),
            ),
            DisconnectError::Internal(cause) => Self::internal(format!("{cause:#}")),
        }
    }
}

impl From<RefreshError> for Problem {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::NotFound => Self::not_found("account_not_found", "There is no such account."),
            RefreshError::Token(cause) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "token_unavailable",
                "Not now",
                format!("The account can't be used at the moment: {cause}."),
            ),
            RefreshError::Internal(cause) => Self::internal(format!("{cause:#}")),
        }
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::KeyNotFound => Self::not_found("key_not_found", "There is no such key."),
            AccessError::TargetNotFound => Self::not_found("target_not_found", "There is no such target."),
            AccessError::AlreadyExists(slug) => Self::new(
                StatusCode::CONFLICT,
                "already_exists",
                "The name is taken",
                format!("A target named {slug} exists already."),
            )
            .hint("Choose another slug."),
            AccessError::ManagedTarget => Self::new(
                StatusCode::CONFLICT,
                "managed_target",
                "This target is managed",
                "It comes and goes with its account or with gateway.toml and can't be changed here.",
            ),
            AccessError::BadRequest(problem) => Self::bad_request(problem),
            AccessError::Internal(cause) => Self::internal(format!("{cause:#}")),
        }
    }
}

/// A provider by the name in a path.
pub(super) fn known<'c>(catalog: &'c catalog::Catalog, id: &str) -> Result<&'c catalog::Provider, Problem> {
    let found = catalog.provider(id).map(std::sync::Arc::as_ref);
    found.ok_or_else(|| Problem::not_found("provider_not_found", "There is no such provider."))
}

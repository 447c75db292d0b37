//! Who calls: the admin token, or a dashboard session. A wrong token and an unknown session look alike.

use axum::extract::FromRequestParts;
use axum::response::Response;
use http::request::Parts;

use crate::audit::Actor;

use super::AdminState;
use super::error::ApiError;

/// The session cookie's name (`__Host-` in front of it when the public URL is https).
pub const SESSION_COOKIE: &str = "keyward_session";

/// A caller of the API: `Authorization: Bearer kwa_…`, or a session cookie. For a state-changing request with a session,
/// same-origin proof was checked by a layer.
pub struct Caller {
    /// For the audit trail.
    pub actor: Actor,
}

impl FromRequestParts<AdminState> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(_parts: &mut Parts, _state: &AdminState) -> Result<Self, ApiError> {
        todo!()
    }
}

/// A signed-in browser. Without one, the reply is a redirect to `/login?next=…`.
pub struct SignedIn {
    /// For the audit trail.
    pub actor: Actor,
}

impl FromRequestParts<AdminState> for SignedIn {
    type Rejection = Response;
    async fn from_request_parts(_parts: &mut Parts, _state: &AdminState) -> Result<Self, Response> {
        todo!()
    }
}

/// Checks an admin token and makes a session (12 hours). Answers the `Set-Cookie` value.
///
/// # Errors
/// `invalid_token` (401), after a bounded wait that grows with failures, or our side's failure.
pub async fn sign_in(_state: &AdminState, _presented: &str) -> Result<String, ApiError> {
    todo!()
}

/// Ends the session of these cookies. Answers the `Set-Cookie` value that clears it.
///
/// # Errors
/// Our side's failure.
pub async fn sign_out(_state: &AdminState, _headers: &http::HeaderMap) -> Result<String, ApiError> {
    todo!()
}

//! Every answer that is Keyward's own "no": one enum, one table, one shape. Nothing of an upstream's, a provider's or a
//! database's error text gets in here, so nothing of it can get out.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::access::{Limited, NoRoom, Reject, Stale};
use crate::accounts::TokenError;
use crate::audit::AuditUnavailable;
use crate::ids::{AccountId, RequestId};
use crate::net::DialError;
use crate::store::Reason;

/// Keyward's code, on each of its own answers.
pub(super) const ERROR: HeaderName = HeaderName::from_static("keyward-error");
/// The request's id, on every answer.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("keyward-request-id");

/// Why a request is not answered by its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Malformed; says how.
    BadRequest(&'static str),
    /// A path that servers may read differently; says how.
    BadPath(&'static str),
    /// Two different keys.
    AmbiguousKey,
    /// The key where it does not belong.
    KeyInRequest,
    /// Absent, malformed, unknown, revoked, expired: all alike.
    InvalidKey,
    /// The key's `allowed_ips`.
    AddressNotAllowed,
    /// Unknown, or not this key's: alike to the byte.
    TargetNotFound,
    /// No such route.
    NotFound,
    /// The grant or the fence refuses this method and path.
    NotPermitted,
    /// The key or its grant went while the request ran.
    Withdrawn,
    /// Not here; says which methods are.
    MethodNotAllowed(&'static str),
    /// The agent was too slow.
    Timeout,
    /// A body over the limit.
    PayloadTooLarge,
    /// A URL over the limit.
    UriTooLong,
    /// An `Expect` that can't be met.
    ExpectationFailed,
    /// Something of HTTP that this gateway does not do; says what.
    NotImplemented(&'static str),
    /// No connection, or none that lived until the answer.
    UpstreamUnreachable,
    /// The connection must not be made: the address is private.
    UpstreamForbidden,
    /// What came back is not HTTP, or not an answer to this.
    UpstreamInvalid,
    /// Nothing came back in time.
    UpstreamTimeout,
    /// A person must reconnect the account.
    AccountDisconnected(AccountId),
    /// No token now.
    TokenUnavailable {
        /// The operator's settings are at fault, rather than the provider.
        misconfigured: bool,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The key has used up what it may.
    RateLimited {
        /// When to ask again.
        retry_after: Duration,
    },
    /// More requests are under way than may be.
    Overloaded,
    /// The target takes only so many requests at once, and none of them ended in time.
    TargetBusy,
    /// Nothing may be done unrecorded.
    AuditUnavailable,
    /// Nothing may be decided on keys and grants that may be long out of date.
    StoreUnavailable,
    /// Our side failed.
    Internal,
}

/// A refusal as it is told.
struct Problem {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
}

const SEE_BOOTSTRAP: &str = "GET /bootstrap lists what this key may use.";

impl Refusal {
    /// The table. `reconnect` gives the page where a person reconnects an account.
    fn problem(&self, reconnect: impl FnOnce(AccountId) -> String) -> Problem {
        let (status, code, message, hint): (u16, _, &'static str, Option<&'static str>) = match self {
            Self::BadRequest(problem) => (400, "bad_request", problem, None),
            Self::BadPath(problem) => (
                400,
                "bad_path",
                problem,
                Some("Paths are forwarded byte for byte, so only paths that every server reads alike are taken."),
            ),
            Self::AmbiguousKey => {
                (400, "ambiguous_key", "The request presents two different keys.", Some("Send the agent key once."))
            }
            Self::KeyInRequest => (
                400,
                "key_in_request",
                "The agent key stands in the URL or in a header where it does not belong.",
                Some(
                    "Send it as `Authorization: Bearer kw_…` and nowhere else; consider it leaked if it was in a URL.",
                ),
            ),
            Self::InvalidKey => (
                401,
                "invalid_key",
                "The agent key is missing or not valid.",
                Some("Send a current key as `Authorization: Bearer kw_…`."),
            ),
            Self::AddressNotAllowed => {
                (403, "address_not_allowed", "This key may not be used from this address.", None)
            }
            Self::TargetNotFound => {
                (404, "target_not_found", "There is no such target for this key.", Some(SEE_BOOTSTRAP))
            }
            Self::NotFound => (
                404,
                "not_found",
                "There is nothing here.",
                Some("Requests go to /proxy/{target}/{path}; GET /bootstrap lists the targets."),
            ),
            Self::NotPermitted => (
                403,
                "not_permitted",
                "This key may not send this method and path to this target.",
                Some(SEE_BOOTSTRAP),
            ),
            Self::Withdrawn => (
                403,
                "not_permitted",
                "The key or its grant was withdrawn before the target answered.",
                Some("It is not known whether the request had an effect."),
            ),
            Self::MethodNotAllowed(_) => (405, "method_not_allowed", "This method is not taken here.", None),
            Self::Timeout => (408, "timeout", "The request's body did not arrive in time.", None),
            Self::PayloadTooLarge => (413, "payload_too_large", "The request's body is over the limit.", None),
            Self::UriTooLong => (414, "uri_too_long", "The request's URL is over 8 KiB.", None),
            Self::ExpectationFailed => (417, "expectation_failed", "Only `Expect: 100-continue` can be met.", None),
            Self::NotImplemented(problem) => (501, "not_implemented", problem, None),
            Self::UpstreamUnreachable => (
                502,
                "upstream_unreachable",
                "The target could not be reached, or went away before it answered.",
                Some("It is not known whether the request had an effect if it was already sent."),
            ),
            Self::UpstreamForbidden => (
                502,
                "upstream_unreachable",
                "The target's address is not one that may be reached from here.",
                Some("An operator can allow private ranges with `[egress] allow` in gateway.toml."),
            ),
            Self::UpstreamInvalid => {
                (502, "upstream_invalid", "The target answered with something that is not a valid answer.", None)
            }
            Self::UpstreamTimeout => (
                504,
                "upstream_timeout",
                "The target did not answer in time.",
                Some("It is not known whether the request had an effect."),
            ),
            Self::AccountDisconnected(account) => {
                return Problem {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    code: "account_disconnected",
                    message: "The account behind this target is disconnected; a person must reconnect it.".into(),
                    hint: Some(format!("Ask a person to reconnect it at {}", reconnect(*account)).into()),
                };
            }
            Self::TokenUnavailable { misconfigured, .. } => (
                503,
                "token_unavailable",
                "No access token can be had for the account behind this target right now.",
                Some(if *misconfigured {
                    "The provider refuses this gateway's client settings; an operator must correct them."
                } else {
                    "The provider can't be reached or is failing; try again later."
                }),
            ),
            Self::RateLimited { .. } => (
                429,
                "rate_limited",
                "This key has reached its limit of requests.",
                Some("Wait for as many seconds as `Retry-After` says."),
            ),
            Self::Overloaded => (
                503,
                "overloaded",
                "More requests are under way than can be taken.",
                Some("Nothing was forwarded; try again shortly."),
            ),
            Self::TargetBusy => (
                503,
                "overloaded",
                "As many requests are under way to this target as it may get at once.",
                Some("Nothing was forwarded; try again shortly."),
            ),
            Self::AuditUnavailable => (
                503,
                "audit_unavailable",
                "The audit trail can't be written now, so nothing is forwarded.",
                Some("Try again shortly."),
            ),
            Self::StoreUnavailable => (
                503,
                "store_unavailable",
                "Keys and grants can't be checked now, so nobody is let in.",
                Some("Try again shortly."),
            ),
            Self::Internal => (500, "internal_error", "Keyward failed on this request.", None),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Problem { status, code, message: message.into(), hint: hint.map(Into::into) }
    }

    /// The whole answer, and its code for the record.
    pub(super) fn answer(
        &self,
        request: RequestId,
        reconnect: impl FnOnce(AccountId) -> String,
    ) -> (Response<Bytes>, &'static str) {
        let Problem { status, code, message, hint } = self.problem(reconnect);
        let body = serde_json::json!({
            "detail": {"code": code, "message": message, "hint": hint},
            "request_id": request,
        });
        let mut response = Response::new(Bytes::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ERROR, HeaderValue::from_static(code));
        // What follows on a connection after a request that is not sound may not be read as what it was meant to be.
        if let Self::BadRequest(_) | Self::BadPath(_) | Self::NotImplemented(_) | Self::MethodNotAllowed(_) = self {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        match self {
            Self::InvalidKey => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::MethodNotAllowed(allowed) => {
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            Self::TokenUnavailable { retry_after, .. } | Self::RateLimited { retry_after } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(retry_after.as_millis().div_ceil(1000).max(1) as u64));
            }
            Self::Overloaded | Self::TargetBusy => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::AuditUnavailable | Self::StoreUnavailable => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
            }
            _ => {}
        }
        (response, code)
    }
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        match reject {
            Reject::InvalidKey => Self::InvalidKey,
            Reject::AddressNotAllowed => Self::AddressNotAllowed,
        }
    }
}

impl From<Limited> for Refusal {
    fn from(Limited { retry_after }: Limited) -> Self {
        Self::RateLimited { retry_after }
    }
}

impl From<NoRoom> for Refusal {
    fn from(NoRoom: NoRoom) -> Self {
        Self::TargetBusy
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Disconnected { account, .. } => Self::AccountDisconnected(account),
            TokenError::Unavailable { reason, retry_after } => {
                Self::TokenUnavailable { misconfigured: reason == Reason::ProviderMisconfigured, retry_after }
            }
            // Its targets and grants are going with it; this instance has just not seen it yet.
            TokenError::Gone => Self::TargetNotFound,
        }
    }
}

impl From<Stale> for Refusal {
    fn from(_: Stale) -> Self {
        Self::StoreUnavailable
    }
}

impl From<AuditUnavailable> for Refusal {
    fn from(_: AuditUnavailable) -> Self {
        Self::AuditUnavailable
    }
}

impl From<DialError> for Refusal {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Refused(_) => Self::UpstreamForbidden,
            DialError::Timeout => Self::UpstreamTimeout,
            DialError::Resolve | DialError::Connect(_) => Self::UpstreamUnreachable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(refusal: &Refusal) -> (Response<Bytes>, serde_json::Value) {
        let request = RequestId::next();
        let (response, code) = refusal.answer(request, |account| format!("http://admin/{account}"));
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(response.headers()[ERROR], code);
        assert_eq!(body["detail"]["code"], code);
        assert_eq!(body["request_id"], request.to_string());
        (response, body)
    }

    #[test]
    fn each_refusal_has_its_status_and_code() {
        let table = [
            (Refusal::BadRequest("x"), 400, "bad_request"),
            (Refusal::BadPath("x"), 400, "bad_path"),
            (Refusal::AmbiguousKey, 400, "ambiguous_key"),
            (Refusal::KeyInRequest, 400, "key_in_request"),
            (Refusal::InvalidKey, 401, "invalid_key"),
            (Refusal::AddressNotAllowed, 403, "address_not_allowed"),
            (Refusal::NotPermitted, 403, "not_permitted"),
            (Refusal::Withdrawn, 403, "not_permitted"),
            (Refusal::TargetNotFound, 404, "target_not_found"),
            (Refusal::NotFound, 404, "not_found"),
            (Refusal::MethodNotAllowed("GET"), 405, "method_not_allowed"),
            (Refusal::Timeout, 408, "timeout"),
            (Refusal::PayloadTooLarge, 413, "payload_too_large"),
            (Refusal::UriTooLong, 414, "uri_too_long"),
            (Refusal::ExpectationFailed, 417, "expectation_failed"),
            (Refusal::NotImplemented("x"), 501, "not_implemented"),
            (Refusal::UpstreamUnreachable, 502, "upstream_unreachable"),
            (Refusal::UpstreamForbidden, 502, "upstream_unreachable"),
            (Refusal::UpstreamInvalid, 502, "upstream_invalid"),
            (Refusal::UpstreamTimeout, 504, "upstream_timeout"),
            (Refusal::RateLimited { retry_after: Duration::ZERO }, 429, "rate_limited"),
            (Refusal::Overloaded, 503, "overloaded"),
            (Refusal::TargetBusy, 503, "overloaded"),
            (Refusal::AuditUnavailable, 503, "audit_unavailable"),
            (Refusal::StoreUnavailable, 503, "store_unavailable"),
            (Refusal::Internal, 500, "internal_error"),
        ];
        for (refusal, status, code) in table {
            let (response, body) = told(&refusal);
            assert_eq!((response.status().as_u16(), body["detail"]["code"].as_str()), (status, Some(code)));
            assert!(body["detail"]["message"].as_str().is_some_and(|message| !message.is_empty()));
        }
    }

    #[test]
    fn what_to_do_next_is_said_where_a_program_looks() {
        assert_eq!(told(&Refusal::InvalidKey).0.headers()[WWW_AUTHENTICATE], "Bearer");
        assert_eq!(told(&Refusal::MethodNotAllowed("GET, HEAD")).0.headers()[ALLOW], "GET, HEAD");
        let retry_after = Duration::from_millis(2_100);
        let (response, _) = told(&TokenError::Unavailable { reason: Reason::ProviderUnavailable, retry_after }.into());
        assert_eq!((response.status().as_u16(), &response.headers()[RETRY_AFTER]), (503, &HeaderValue::from(3)));
        let account = AccountId::new();
        let (response, body) = told(&TokenError::Disconnected { account, reason: Reason::RefreshRejected }.into());
        assert_eq!(response.status().as_u16(), 503);
        assert!(body["detail"]["hint"].as_str().unwrap().ends_with(&format!("http://admin/{account}")));
    }

    #[test]
    fn causes_become_refusals() {
        assert_eq!(Refusal::from(Reject::InvalidKey), Refusal::InvalidKey);
        assert_eq!(Refusal::from(Reject::AddressNotAllowed), Refusal::AddressNotAllowed);
        assert_eq!(Refusal::from(TokenError::Gone), Refusal::TargetNotFound);
        assert_eq!(Refusal::from(AuditUnavailable), Refusal::AuditUnavailable);
        assert_eq!(Refusal::from(DialError::Timeout), Refusal::UpstreamTimeout);
        assert_eq!(Refusal::from(DialError::Refused([10, 0, 0, 1].into())), Refusal::UpstreamForbidden);
    }
}

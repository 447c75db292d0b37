//! OAuth 2.0 as a client: authorization URLs, code exchange, refresh, revocation, identity — against a
//! [`Provider`](crate::catalog::Provider) and its oddities. Says what an answer *means*; what to do about it is
//! `accounts`' business. Stores nothing.

mod answer;
mod authorize;
mod identity;
mod refusal;
mod strict;
#[cfg(test)]
mod testing;
mod token;

pub use answer::{Extras, Tokens};
pub use authorize::{Authorization, AuthorizeRequest, Verifier};
pub use identity::Identity;
pub(crate) use refusal::shown_code;
pub use token::OAuthClient;

use std::time::Duration;

use crate::secret::Secret;

/// What went wrong, by what the caller can do about it (`invariants.md` §2's classes T, P and C).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wait and try again. Never a reason to disconnect.
    #[error("the provider can't be used right now: {why}")]
    Transient {
        /// For the log; from a closed list of our words, never the provider's text.
        why: &'static str,
        /// The provider's own wish, capped to 1 s … 1 h.
        retry_after: Option<Duration>,
        /// The call may have had its effect (a rotation) although no usable answer came.
        ambiguous: bool,
    },
    /// The provider refused the grant itself: a person must connect again.
    #[error("the provider refused the grant: {code}")]
    Rejected {
        /// The provider's error code, `[a-z_]{1,64}`.
        code: String,
        /// The refusal says that signing in again is what is needed (`interaction_required`…).
        sign_in: bool,
    },
    /// The provider refuses the operator's client or request: the configuration must change.
    #[error("the provider refused the client's settings: {code}")]
    Misconfigured {
        /// The provider's error code, `[a-z_]{1,64}`.
        code: String,
    },
    /// A refusal that nobody understands. Wait and try again as after passing trouble; if nothing else ever comes, a
    /// person should look.
    #[error("the provider answered with an error that is not known: {code}")]
    Unknown {
        /// The provider's error code, `[a-z_]{1,64}`.
        code: String,
    },
    /// A success whose access token can't be used, with a refresh token beside it: the one that was sent may be spent,
    /// so this one must be kept.
    #[error("{cause}")]
    Unusable {
        /// The refresh token.
        refresh: Secret<String>,
        /// What the answer means otherwise.
        cause: Box<Error>,
    },
}

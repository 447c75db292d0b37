//! A fresh token for a grant.

use std::sync::Arc;
use std::time::Duration;

use crate::access::Grant;
use crate::ids::AccountId;
use crate::store::Reason;

use super::{Accounts, Bearer};

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// A person must reconnect the account.
    #[error("the account is disconnected")]
    Disconnected {
        /// The account.
        account: AccountId,
        /// Why.
        reason: Reason,
    },
    /// The token ended and a new one can't be had now.
    #[error("no token can be had now")]
    Unavailable {
        /// `provider_unavailable` or `provider_misconfigured`.
        reason: Reason,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The account is gone.
    #[error("the account is gone")]
    Gone,
}

impl Accounts {
    /// The credential for a granted request: from memory when fresh; after a (shared) refresh when not. Waits
    /// `refresh.wait` at most; leaving early cancels nothing.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn token(self: &Arc<Self>, _grant: &Grant) -> Result<Bearer, TokenError> {
        todo!()
    }

    /// The upstream answered 401 to the token of `generation`: refreshes once (or finds that somebody already did).
    /// `Ok(None)`: nothing newer can be had (a static credential, or a token that was refused right after a refresh).
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn doubt(self: &Arc<Self>, _grant: &Grant, _generation: i64) -> Result<Option<Bearer>, TokenError> {
        todo!()
    }
}

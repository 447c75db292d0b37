//! A fresh token for a grant.
//!
//! ```text
//! slot: fresh ─▶ use it          soon ─▶ use it, and poke a refresh          dead, empty ─▶ join the account's flight
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::access::{Credential, Grant};
use crate::ids::AccountId;
use crate::store::Reason;

use super::cache::{Held, Slot};
use super::flight::Why;
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
    pub async fn token(self: &Arc<Self>, grant: &Grant) -> Result<Bearer, TokenError> {
        let account = match &grant.target().credential {
            Credential::Ready(ready) => return Ok(Bearer { ready: Arc::clone(ready), generation: 0 }),
            Credential::Account { account, .. } => *account,
        };
        let slot = self.cache.slot(account);
        if let Some(answer) = self.at_hand(account, &slot) {
            return answer;
        }
        let answer = self.wait_for(account, &slot, Why::Dead).await;
        // What came from the store may be old already, as after a start.
        drop(self.at_hand(account, &slot));
        answer
    }

    /// The upstream answered 401 to the token of `generation`: refreshes once (or finds that somebody already did).
    /// `Ok(None)`: nothing newer can be had (a static credential, or a refresh that gave nothing newer). Never changes
    /// the account's status by itself: what the token endpoint says does.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn doubt(self: &Arc<Self>, grant: &Grant, generation: i64) -> Result<Option<Bearer>, TokenError> {
        let Credential::Account { account, .. } = grant.target().credential else {
            return Ok(None);
        };
        let slot = self.cache.slot(account);
        if let Some(Held::Live { bearer, .. }) = slot.held().as_deref()
            && bearer.generation > generation
        {
            return Ok(Some(bearer.clone()));
        }
        // An upstream that refuses a token which a doubt has just brought will refuse the next one too.
        if slot.is_trusted(generation, self.parts.clock.monotonic()) {
            return Ok(None);
        }
        let bearer = self.wait_for(account, &slot, Why::Doubted(generation)).await?;
        if bearer.generation == generation {
            return Ok(None);
        }
        slot.trust(bearer.generation, self.parts.clock.monotonic());
        Ok(Some(bearer))
    }

    /// What the slot answers without waiting; pokes a refresh when the token is old.
    fn at_hand(self: &Arc<Self>, account: AccountId, slot: &Arc<Slot>) -> Option<Result<Bearer, TokenError>> {
        match slot.held().as_deref() {
            Some(Held::Live { bearer, soon, dead }) => {
                let now = self.parts.clock.monotonic();
                slot.used(now);
                if now >= *dead {
                    return None;
                }
                if now >= *soon && slot.may_try(now) {
                    drop(self.join(account, slot, Why::Soon));
                }
                Some(Ok(bearer.clone()))
            }
            Some(Held::Disconnected { reason }) => Some(Err(TokenError::Disconnected { account, reason: *reason })),
            None => None,
        }
    }

    /// Joins (or starts) the account's flight and waits for what it brings, `refresh.wait` at most.
    pub(super) async fn wait_for(
        self: &Arc<Self>,
        account: AccountId,
        slot: &Arc<Slot>,
        why: Why,
    ) -> Result<Bearer, TokenError> {
        let unavailable = || TokenError::Unavailable {
            reason: slot.trouble().reason.unwrap_or(Reason::ProviderUnavailable),
            retry_after: Duration::from_secs(1),
        };
        let deadline = tokio::time::Instant::now() + self.parts.config.wait;
        // Somebody else's flight may have wanted less than this caller does; then the next one is joined, or begun.
        loop {
            let (mut flight, mine) = self.join(account, slot, why);
            let landed = tokio::time::timeout_at(deadline, flight.wait_for(Option::is_some)).await;
            let Ok(Ok(outcome)) = landed else {
                // Still up (its own limits end it), or its task was lost with the runtime.
                return Err(unavailable());
            };
            let outcome = outcome.clone().unwrap_or_else(|| Err(unavailable()));
            let satisfied = match (&outcome, why) {
                (Ok(bearer), Why::Doubted(generation)) => bearer.generation > generation,
                (Ok(_), Why::Asked) => false,
                _ => true,
            };
            if mine || satisfied {
                return outcome;
            }
        }
    }
}

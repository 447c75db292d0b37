//! Checks on demand: does the token work, and does a refresh?

use std::sync::Arc;

use serde_json::json;

use crate::audit::{Actor, Record};
use crate::clock::Timestamp;
use crate::ids::{AccountId, OrgId};
use crate::oauth;
use crate::store::{AccountRow, AccountTokens, Validity};

use super::flight::Why;
use super::{Accounts, TokenError};

/// What a check saw.
#[derive(Debug)]
pub struct Validation {
    /// The provider accepted the token, or refused it; `None`: it could not be asked, and nothing new is known.
    pub is_valid: Option<bool>,
    /// The account afterwards.
    pub account: AccountRow,
    /// When the provider last really answered.
    pub checked_at: Option<Timestamp>,
}

/// What can be learned about an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The provider said this of the token of this generation.
    Told(i64, Validity),
    /// The account is disconnected: nobody is asked.
    Ended,
    /// The provider could not be asked.
    Nothing,
}

impl Seen {
    fn is_valid(self) -> Option<bool> {
        match self {
            Self::Told(_, validity) => Some(validity == Validity::Valid),
            Self::Ended => Some(false),
            Self::Nothing => None,
        }
    }

    fn without_token(error: &TokenError) -> Result<Self, RefreshError> {
        match error {
            TokenError::Disconnected { .. } => Ok(Self::Ended),
            TokenError::Unavailable { .. } => Ok(Self::Nothing),
            TokenError::Gone => Err(RefreshError::NotFound),
        }
    }
}

/// Why an account could not be checked or refreshed.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// No such account.
    #[error("there is no such account")]
    NotFound,
    /// The account or its provider is in no state for it.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Our side failed.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl From<crate::store::Error> for RefreshError {
    fn from(error: crate::store::Error) -> Self {
        Self::Internal(error.into())
    }
}

impl Accounts {
    /// Asks the provider who the token belongs to (after a refresh when it is old, after one forced refresh when it is
    /// refused) and notes the result.
    ///
    /// # Errors
    /// [`RefreshError`]; a disconnected account is a result (`is_valid: false`), not an error, and so is a provider that
    /// can't be asked (`is_valid: None`; `validity` and `checked_at` are then what they were).
    pub async fn validate(
        self: &Arc<Self>,
        org: OrgId,
        id: AccountId,
        actor: Actor,
    ) -> Result<Validation, RefreshError> {
        let before = self.parts.store.account(org, id).await?.ok_or(RefreshError::NotFound)?;
        let seen = self.check(&before).await?;
        let now = self.parts.clock.now();
        if let Seen::Told(generation, validity) = seen {
            self.parts.store.set_validity(id, generation, validity, now).await?;
        }
        let account = self.parts.store.account(org, id).await?.ok_or(RefreshError::NotFound)?;
        let validity = (seen != Seen::Nothing).then_some(account.validity);
        let record = Record::new(now, org, &actor, "account.validated").account(id);
        self.parts.audit.note(record.detail(json!({"validity": validity})).into_row());
        Ok(Validation { is_valid: seen.is_valid(), checked_at: account.checked_at, account })
    }

    async fn check(self: &Arc<Self>, before: &AccountRow) -> Result<Seen, RefreshError> {
        let asked = match self.living(before.id, Why::Dead).await {
            Ok(row) => row,
            Err(error) => return Seen::without_token(&error),
        };
        match self.seen(&asked, before).await {
            // It may only be a token that the provider withdrew: a refresh tells.
            Seen::Told(generation, Validity::Invalid) => match self.living(before.id, Why::Doubted(generation)).await {
                Ok(row) if row.account.generation > generation => Ok(self.seen(&row, before).await),
                Ok(_) => Ok(Seen::Nothing),
                Err(error) => Seen::without_token(&error),
            },
            seen => Ok(seen),
        }
    }

    /// Refreshes now, whatever the token's age.
    ///
    /// # Errors
    /// [`RefreshError`].
    pub async fn refresh_now(
        self: &Arc<Self>,
        org: OrgId,
        id: AccountId,
        actor: Actor,
    ) -> Result<AccountRow, RefreshError> {
        let before = self.parts.store.account(org, id).await?.ok_or(RefreshError::NotFound)?;
        let record = Record::new(self.parts.clock.now(), org, &actor, "account.refresh_asked").account(id);
        self.parts.audit.note(record.into_row());
        self.living(id, Why::Asked).await?;
        let after = self.parts.store.account(org, id).await?.ok_or(RefreshError::NotFound)?;
        if after.generation == before.generation {
            let slot = self.cache.slot(id);
            let retry_after = slot.wait(self.parts.clock.monotonic());
            let reason = after.reason.unwrap_or(crate::store::Reason::ProviderUnavailable);
            return Err(TokenError::Unavailable { reason, retry_after }.into());
        }
        Ok(after)
    }

    /// The row with a living token, after a flight.
    async fn living(self: &Arc<Self>, id: AccountId, why: Why) -> Result<AccountTokens, TokenError> {
        let slot = self.cache.slot(id);
        self.wait_for(id, &slot, why).await?;
        match self.parts.store.tokens(id).await {
            Ok(Some(row)) => Ok(row),
            _ => Err(TokenError::Gone),
        }
    }

    /// What the provider says of the row's token.
    async fn seen(&self, row: &AccountTokens, before: &AccountRow) -> Seen {
        let generation = row.account.generation;
        let provider = self.parts.catalog.provider(&row.account.provider);
        let (Some(provider), Some(token)) = (provider, self.opened(row, "access_token")) else { return Seen::Nothing };
        if provider.identity.url.is_none() {
            // There is nobody to ask, unless the token has just been fetched.
            let fetched = generation > before.generation;
            return if fetched { Seen::Told(generation, Validity::Valid) } else { Seen::Nothing };
        }
        match self.parts.oauth.identity(provider, &row.account.captures, &token, None).await {
            Ok(identity) if identity.subject == row.account.subject => Seen::Told(generation, Validity::Valid),
            Ok(_) | Err(oauth::Error::Rejected { .. }) => Seen::Told(generation, Validity::Invalid),
            Err(_) => Seen::Nothing,
        }
    }
}

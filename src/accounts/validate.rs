//! Checks on demand: does the token work, and does a refresh?

use std::sync::Arc;

use serde_json::json;

use crate::audit::{Actor, Record};
use crate::clock::Timestamp;
use crate::ids::{AccountId, OrgId};
use crate::oauth;
use crate::store::{AccountRow, AccountTokens, Status, Validity};

use super::flight::Why;
use super::{Accounts, TokenError};

/// What a check saw.
#[derive(Debug)]
pub struct Validation {
    /// The provider accepted the token.
    pub is_valid: bool,
    /// The account afterwards.
    pub account: AccountRow,
    /// When.
    pub checked_at: Timestamp,
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
    /// can't be reached (`validity` is then what it was).
    pub async fn validate(
        self: &Arc<Self>,
        org: OrgId,
        id: AccountId,
        actor: Actor,
    ) -> Result<Validation, RefreshError> {
        let account = self.parts.store.account(org, id).await?.ok_or(RefreshError::NotFound)?;
        let seen = match self.living(id, Why::Dead).await {
            Ok(row) => self.seen(&row).await,
            Err(TokenError::Gone) => return Err(RefreshError::NotFound),
            Err(TokenError::Disconnected { .. }) => Some(Validity::Invalid),
            Err(TokenError::Unavailable { .. }) => None,
        };
        // A token that the provider refuses may only be one that it withdrew: a refresh tells.
        let seen = match seen {
            Some(Validity::Invalid) if account.status != Status::Disconnected => {
                match self.living(id, Why::Doubted(account.generation)).await {
                    Ok(row) if row.account.generation > account.generation => self.seen(&row).await,
                    Ok(_) | Err(TokenError::Unavailable { .. }) => None,
                    Err(TokenError::Gone) => return Err(RefreshError::NotFound),
                    Err(TokenError::Disconnected { .. }) => Some(Validity::Invalid),
                }
            }
            other => other,
        };
        let now = self.parts.clock.now();
        if let Some(validity) = seen {
            self.parts.store.set_validity(id, validity, now).await?;
        }
        let record = Record::new(now, org, &actor, "account.validated").account(id);
        self.parts.audit.note(record.detail(json!({"validity": seen})).into_row());
        let account = self.parts.store.account(org, id).await?.ok_or(RefreshError::NotFound)?;
        Ok(Validation { is_valid: seen == Some(Validity::Valid), account, checked_at: now })
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

    /// What the provider says of the row's token; `None`: nothing that tells.
    async fn seen(&self, row: &AccountTokens) -> Option<Validity> {
        let provider = self.parts.catalog.provider(&row.account.provider)?;
        let token = self.opened(row, "access_token")?;
        // Without an identity endpoint there is nobody to ask; a token that lives is all that can be said.
        if provider.identity.url.is_none() {
            return Some(Validity::Valid);
        }
        match self.parts.oauth.identity(provider, &row.account.captures, &token, None).await {
            Ok(identity) if identity.subject == row.account.subject => Some(Validity::Valid),
            Ok(_) | Err(oauth::Error::Rejected { .. }) => Some(Validity::Invalid),
            Err(
                oauth::Error::Transient { .. } | oauth::Error::Misconfigured { .. } | oauth::Error::Unusable { .. },
            ) => None,
        }
    }
}

//! Checks on demand: does the token work, and does a refresh?

use std::sync::Arc;

use crate::audit::Actor;
use crate::clock::Timestamp;
use crate::ids::{AccountId, OrgId};
use crate::store::AccountRow;

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

impl Accounts {
    /// Asks the provider who the token belongs to (after a refresh when it is old, after one forced refresh when it is
    /// refused) and notes the result.
    ///
    /// # Errors
    /// [`RefreshError`]; a disconnected account is a result (`is_valid: false`), not an error.
    pub async fn validate(
        self: &Arc<Self>,
        _org: OrgId,
        _id: AccountId,
        _actor: Actor,
    ) -> Result<Validation, RefreshError> {
        todo!()
    }

    /// Refreshes now, whatever the token's age.
    ///
    /// # Errors
    /// [`RefreshError`].
    pub async fn refresh_now(
        self: &Arc<Self>,
        _org: OrgId,
        _id: AccountId,
        _actor: Actor,
    ) -> Result<AccountRow, RefreshError> {
        todo!()
    }
}

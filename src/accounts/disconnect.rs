//! The end of an account: gone here at once, revoked at the provider by a stored job that is retried until done.

use std::sync::Arc;

use crate::audit::Actor;
use crate::ids::{AccountId, OrgId};
use crate::store::TargetRef;

use super::Accounts;

/// Why an account was not disconnected.
#[derive(Debug, thiserror::Error)]
pub enum DisconnectError {
    /// No such account.
    #[error("there is no such account")]
    NotFound,
    /// Grants would go with it, and nobody said that this is all right.
    #[error("{grants} grants use this account's targets")]
    NeedsConfirmation {
        /// How many.
        grants: i64,
    },
    /// Our side failed.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl Accounts {
    /// Erases tokens, targets and grants in one transaction, reloads the policy, and queues the revocation.
    ///
    /// # Errors
    /// [`DisconnectError`].
    pub async fn disconnect(
        self: &Arc<Self>,
        _org: OrgId,
        _id: AccountId,
        _confirm: bool,
        _actor: Actor,
    ) -> Result<Vec<TargetRef>, DisconnectError> {
        todo!()
    }

    /// The loop that works off revocations; ends when stopping begins.
    pub async fn run_revocations(self: Arc<Self>) {
        todo!()
    }

    /// One round of it: claims due jobs, tries each once. Answers how many were tried.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn step_revocations(&self) -> anyhow::Result<usize> {
        todo!()
    }
}

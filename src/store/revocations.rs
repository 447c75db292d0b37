//! Tokens to be revoked at their provider: queued by a disconnect, retried until done.

use crate::clock::Timestamp;
use crate::ids::{AccountId, JobId, OrgId};
use crate::vault::Sealed;

use super::{AuditRow, Captures, Result, Store};

/// One token to revoke.
#[derive(Clone)]
pub struct RevocationRow {
    /// Id.
    pub id: JobId,
    /// Organization.
    pub organization: OrgId,
    /// The account it was of.
    pub account: AccountId,
    /// Provider id.
    pub provider: String,
    /// The account's inputs and captured values.
    pub captures: Captures,
    /// `refresh_token` or `access_token` (RFC 7009 §2.1).
    pub token_kind: String,
    /// The token. Place: table `revocations`, the id, column `token`.
    pub token: Sealed,
    /// Tries so far.
    pub attempts: i64,
    /// Made at.
    pub created_at: Timestamp,
}

impl Store {
    /// Claims up to `limit` jobs that are due: their next try is set to `retry_at`, so that no other instance takes
    /// them meanwhile.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn claim_revocations(
        &self,
        _limit: u32,
        _now: Timestamp,
        _retry_at: Timestamp,
    ) -> Result<Vec<RevocationRow>> {
        todo!()
    }
    /// Deletes a job and writes its outcome to the account's trail.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn finish_revocation(&self, _id: JobId, _record: &AuditRow) -> Result<()> {
        todo!()
    }
    /// Counts a failed try and sets when the next is due; `record` on the first failure.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn postpone_revocation(&self, _id: JobId, _next_at: Timestamp, _record: Option<&AuditRow>) -> Result<()> {
        todo!()
    }
}

//! An account goes: tokens, managed targets and grants with it; what must still be revoked is queued.

use crate::clock::Timestamp;
use crate::ids::{AccountId, JobId, OrgId, TargetId};
use crate::vault::Sealed;

use super::db::{execute, fetch_all, fetch_optional};
use super::{AuditRow, Error, Result, Store, TargetRef, audit, policy};

/// What disconnecting did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disconnected {
    /// Done; the targets that went.
    Done(Vec<TargetRef>),
    /// Grants exist and `confirm` was not given: nothing was changed.
    NeedsConfirmation {
        /// How many grants would go.
        grants: i64,
    },
}

impl Store {
    /// One transaction: tokens erased, generation bumped, row marked removed, managed targets and their grants deleted,
    /// a revocation queued for each sealed token given, policy revision bumped, record written.
    ///
    /// # Errors
    /// [`super::Error::NotFound`].
    pub async fn disconnect(
        &self,
        org: OrgId,
        id: AccountId,
        confirm: bool,
        revocations: &[(JobId, &'static str, Sealed)],
        now: Timestamp,
        record: &AuditRow,
    ) -> Result<Disconnected> {
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        // A refresh under way can't bring it back: its save asks for this generation and for a row not removed.
        let removed = fetch_optional!(
            &mut tx,
            (String, String),
            "update accounts set removed_at = $3, updated_at = $3, status = 'disconnected', reason = 'revoked', \
             validity = 'invalid', access_token = null, refresh_token = null, access_expires_at = null, \
             access_ttl_ms = null, refresh_expires_at = null, lease_owner = null, lease_until = null, \
             refresh_started_at = null, generation = generation + 1 \
             where organization = $1 and id = $2 and removed_at is null returning provider, captures",
            org,
            id,
            now.millis()
        )?;
        let Some((provider, captures)) = removed else { return Err(Error::NotFound) };

        if !confirm {
            let sql = "select count(*) from grants where target in (select id from targets where account = $1)";
            let grants = fetch_optional!(&mut tx, (i64,), sql, id)?.map_or(0, |(grants,)| grants);
            if grants > 0 {
                return Ok(Disconnected::NeedsConfirmation { grants });
            }
        }
        execute!(&mut tx, "delete from token_candidates where account = $1", id)?;
        // The grants go with the targets: `on delete cascade`.
        let mut gone = fetch_all!(
            &mut tx,
            (TargetId, String, String, String),
            "delete from targets where account = $1 returning id, slug, capability, name",
            id
        )?;
        gone.sort_by(|one, other| one.2.cmp(&other.2));
        for (job, token_kind, token) in revocations {
            execute!(
                &mut tx,
                "insert into revocations (id, organization, account, provider, captures, token_kind, token, attempts, \
                 next_at, created_at) values ($1, $2, $3, $4, $5, $6, $7, 0, $8, $8)",
                job,
                org,
                id,
                provider.as_str(),
                captures.as_str(),
                *token_kind,
                token.as_bytes(),
                now.millis()
            )?;
        }
        audit::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await?;
        let targets = gone.into_iter().map(|(id, slug, capability, name)| TargetRef { id, slug, capability, name });
        Ok(Disconnected::Done(targets.collect()))
    }
}

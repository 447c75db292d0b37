//! An account goes: tokens, managed targets and grants with it; what must still be revoked is queued.

use crate::clock::Timestamp;
use crate::ids::{AccountId, CandidateId, JobId, OrgId, TargetId};
use crate::vault::Sealed;

use super::db::{Session, execute, fetch_all, fetch_optional};
use super::{AuditRow, Error, Result, Store, TargetRef, audit_insert, policy};

/// A disconnect as it was decided: from one state of the account, with the tokens of that state to be revoked.
pub struct Disconnect {
    /// Organization.
    pub organization: OrgId,
    /// The account.
    pub account: AccountId,
    /// The generation that it was decided from.
    pub generation: i64,
    /// The candidates that were there then.
    pub candidates: Vec<CandidateId>,
    /// Also when grants go with it.
    pub confirm: bool,
    /// To be queued.
    pub revocations: Vec<NewRevocation>,
    /// Now.
    pub at: Timestamp,
}

/// A token to be revoked.
#[derive(Clone)]
pub struct NewRevocation {
    /// The job's id.
    pub id: JobId,
    /// `refresh_token` or `access_token` (RFC 7009 §2.1).
    pub token_kind: &'static str,
    /// Sealed. Place: table `revocations`, the id, column `token`.
    pub token: Sealed,
}

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
    /// The account has other tokens by now than it was decided from: nothing was changed. Decide anew.
    Moved,
}

impl Store {
    /// One transaction: tokens and candidates erased, generation bumped, row marked removed, managed targets and their
    /// grants deleted, revocations queued, policy revision bumped, record written.
    ///
    /// # Errors
    /// [`super::Error::NotFound`].
    pub async fn disconnect(&self, wish: &Disconnect, record: &AuditRow) -> Result<Disconnected> {
        let (org, id) = (wish.organization, wish.account);
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        // A refresh under way can't bring it back: its save asks for this generation and for a row not removed.
        let removed = fetch_optional!(
            &mut tx,
            (String, String, String),
            "update accounts set removed_at = $3, updated_at = $3, status = 'disconnected', reason = 'revoked', \
             validity = 'invalid', access_token = null, refresh_token = null, access_expires_at = null, \
             access_ttl_ms = null, refresh_expires_at = null, lease_owner = null, lease_until = null, \
             refresh_started_at = null, refresh_failures = 0, next_attempt_at = null, unknown_since = null, \
             generation = generation + 1 \
             where organization = $1 and id = $2 and removed_at is null and generation = $4 \
             returning provider, subject, captures",
            org,
            id,
            wish.at.millis(),
            wish.generation,
        )?;
        let Some((provider, subject, captures)) = removed else {
            let sql = "select id from accounts where organization = $1 and id = $2 and removed_at is null";
            let there = fetch_optional!(&mut tx, (AccountId,), sql, org, id)?;
            return there.map(|_| Disconnected::Moved).ok_or(Error::NotFound);
        };
        let sql = "delete from token_candidates where account = $1 returning id";
        let candidates = fetch_all!(&mut tx, (CandidateId,), sql, id)?;
        if candidates.iter().any(|(candidate,)| !wish.candidates.contains(candidate)) {
            return Ok(Disconnected::Moved);
        }
        if !wish.confirm {
            let sql = "select count(*) from grants where target in (select id from targets where account = $1)";
            let grants = fetch_optional!(&mut tx, (i64,), sql, id)?.map_or(0, |(grants,)| grants);
            if grants > 0 {
                return Ok(Disconnected::NeedsConfirmation { grants });
            }
        }
        let targets = delete_targets(&mut tx, id).await?;
        for job in &wish.revocations {
            execute!(
                &mut tx,
                "insert into revocations (id, organization, account, provider, subject, captures, token_kind, token, \
                 attempts, next_at, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $9)",
                job.id,
                org,
                id,
                provider.as_str(),
                subject.as_str(),
                captures.as_str(),
                job.token_kind,
                job.token.as_bytes(),
                wish.at.millis()
            )?;
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await?;
        Ok(Disconnected::Done(targets))
    }
}

/// The grants go with the targets: `on delete cascade`.
async fn delete_targets(tx: &mut Session, account: AccountId) -> Result<Vec<TargetRef>> {
    let mut gone = fetch_all!(
        tx,
        (TargetId, String, String, String),
        "delete from targets where account = $1 returning id, slug, capability, name",
        account
    )?;
    gone.sort_by(|one, other| one.2.cmp(&other.2));
    let targets = gone.into_iter().map(|(id, slug, capability, name)| TargetRef { id, slug, capability, name });
    Ok(targets.collect())
}

//! A finished connect flow becomes an account, or an account that was there already comes back to life.

use crate::ids::{AccountId, OrgId, TargetId};
use crate::vault::Sealed;

use super::codec::{json, millis, word};
use super::db::{Session, execute, fetch_all};
use super::targets::{self, TargetKind, TargetRow};
use super::{AccountRow, AuditRow, Error, NewTokens, Result, Store, accounts, audit_insert, policy};

/// A finished connect flow, saved in one transaction: account, tokens, managed targets, audit record.
#[derive(Clone)]
pub struct SaveConnected {
    /// The account as it shall be; `status` and `reason` are ignored (it is connected now). `generation` is the one that
    /// this was made from; a new account starts at 1. `targets` are all wanted ones: those that exist by capability keep
    /// id, slug and grants, others that exist go.
    pub account: AccountRow,
    /// Its tokens. They replace everything that is stored, candidates included: what an earlier authorization gave does
    /// not belong to this one.
    pub tokens: NewTokens,
    /// `true`: the row exists and has this generation (reconnect in place); `false`: it must not exist.
    pub existing: bool,
}

impl Store {
    /// Saves a finished connect flow and bumps the policy revision; answers the account as stored.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when the row is not as `existing` and `generation` say, or a slug is taken.
    pub async fn save_connected(&self, save: &SaveConnected, record: &AuditRow) -> Result<AccountRow> {
        let account = &save.account;
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        let saved = if save.existing {
            let time = self.database_now(&mut tx).await?;
            update_account(&mut tx, account, &save.tokens, time).await?
        } else {
            insert_account(&mut tx, account, &save.tokens).await?
        };
        if saved == 0 {
            return Err(Error::Conflict);
        }
        execute!(&mut tx, "delete from token_candidates where account = $1", account.id)?;
        match_targets(&mut tx, account).await?;
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        let stored = read_back(&mut tx, account.organization, account.id).await?;
        tx.commit().await?;
        Ok(stored)
    }
}

async fn read_back(tx: &mut Session, org: OrgId, id: AccountId) -> Result<AccountRow> {
    accounts::account(tx, org, id).await?.ok_or(Error::NotFound)
}

async fn insert_account(tx: &mut Session, account: &AccountRow, tokens: &NewTokens) -> Result<u64> {
    execute!(
        tx,
        "insert into accounts (id, organization, provider, subject, email, display_name, status, reason, validity, \
         checked_at, scopes, missing_scopes, preset, access_token, refresh_token, access_expires_at, access_ttl_ms, \
         refresh_expires_at, owner, captures, generation, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, 'connected', null, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
         1, $19, $20)",
        account.id,
        account.organization,
        account.provider.as_str(),
        account.subject.as_str(),
        account.email.as_deref(),
        account.display_name.as_deref(),
        word(account.validity),
        millis(account.checked_at),
        json(tokens.scopes.as_ref().unwrap_or(&account.scopes)),
        json(&account.missing_scopes),
        word(account.preset),
        tokens.access.as_bytes(),
        tokens.refresh.as_ref().map(Sealed::as_bytes),
        tokens.access_expires_at.millis(),
        tokens.access_ttl_ms,
        millis(tokens.refresh_expires_at),
        account.owner,
        json(&account.captures),
        account.created_at.millis(),
        account.updated_at.millis(),
    )
}

/// A refresh that is under way loses its right to save: the generation grows.
///
/// The earlier refresh token goes, also when the new authorization brought none. Kept, it would refresh the account with
/// what a person has just replaced (more scopes, perhaps; or a token that is dead, which is why they came). So a provider
/// that hands out a refresh token at the first consent only must be made to ask for consent each time (Google:
/// `prompt = "consent"`, in the catalog); where it isn't, the account ends as `sign_in_needed` with its access token.
async fn update_account(tx: &mut Session, account: &AccountRow, tokens: &NewTokens, time: i64) -> Result<u64> {
    execute!(
        tx,
        "update accounts set subject = $4, email = $5, display_name = $6, status = 'connected', reason = null, \
         validity = $7, checked_at = $8, scopes = $9, missing_scopes = $10, preset = $11, access_token = $12, \
         refresh_token = $13, access_expires_at = $14, access_ttl_ms = $15, refresh_expires_at = $16, \
         owner = $17, captures = $18, updated_at = $19, \
         generation = generation + 1, lease_owner = null, lease_until = null, refresh_started_at = null, \
         refresh_failures = 0, next_attempt_at = null, unknown_since = null, standing_at = $21, \
         reconnect_soon_at = null \
         where id = $1 and organization = $2 and provider = $3 and removed_at is null and generation = $20",
        account.id,
        account.organization,
        account.provider.as_str(),
        account.subject.as_str(),
        account.email.as_deref(),
        account.display_name.as_deref(),
        word(account.validity),
        millis(account.checked_at),
        json(tokens.scopes.as_ref().unwrap_or(&account.scopes)),
        json(&account.missing_scopes),
        word(account.preset),
        tokens.access.as_bytes(),
        tokens.refresh.as_ref().map(Sealed::as_bytes),
        tokens.access_expires_at.millis(),
        tokens.access_ttl_ms,
        millis(tokens.refresh_expires_at),
        account.owner,
        json(&account.captures),
        account.updated_at.millis(),
        account.generation,
        time,
    )
}

/// Makes the managed targets those that the account names.
async fn match_targets(tx: &mut Session, account: &AccountRow) -> Result<()> {
    let sql = "select id, capability from targets where account = $1";
    let standing = fetch_all!(&mut *tx, (TargetId, String), sql, account.id)?;
    let wanted = |capability: &str| account.targets.iter().find(|target| target.capability == capability);
    for (id, capability) in &standing {
        match wanted(capability) {
            Some(target) => {
                let sql = "update targets set name = $2, updated_at = $3 where id = $1";
                execute!(&mut *tx, sql, id, target.name.as_str(), account.updated_at.millis())?
            }
            None => execute!(&mut *tx, "delete from targets where id = $1", id)?,
        };
    }
    for target in &account.targets {
        if standing.iter().any(|(_, capability)| *capability == target.capability) {
            continue;
        }
        let row = TargetRow {
            id: target.id,
            organization: Some(account.organization),
            slug: target.slug.clone(),
            name: target.name.clone(),
            kind: TargetKind::Managed {
                account: account.id,
                provider: account.provider.clone(),
                capability: target.capability.clone(),
            },
            created_at: account.updated_at,
            updated_at: account.updated_at,
        };
        targets::insert(tx, &row).await?;
    }
    Ok(())
}

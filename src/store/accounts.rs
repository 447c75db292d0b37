//! Connected accounts, read. How they come, change and go is in `connected`, `refreshed` and `disconnect`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::catalog::Preset;
use crate::clock::Timestamp;
use crate::ids::{AccountId, KeyId, OrgId, TargetId, UserId};
use crate::vault::Sealed;

use super::codec::{read_json, read_time, read_word, word};
use super::db::{Session, fetch_all};
use super::{Error, Page, Paged, Result, Store};

/// Whether an account can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All is well.
    Connected,
    /// The last refresh failed for a passing reason, or the client settings are wrong; served while the token lives.
    Degraded,
    /// A person must reconnect.
    Disconnected,
}

/// Why an account is degraded or disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Degraded: the provider can't be reached or fails.
    ProviderUnavailable,
    /// Degraded: the provider refuses the operator's client settings.
    ProviderMisconfigured,
    /// Degraded: for a day the provider has answered with nothing but an error that is not known.
    Failing,
    /// Disconnected: the provider refused the refresh token.
    RefreshRejected,
    /// Disconnected: the provider wants the person to sign in again.
    SignInNeeded,
    /// Disconnected: a rotated token was lost between the provider's answer and its storing.
    LostInWindow,
    /// Disconnected: revoked.
    Revoked,
}

/// What the dashboard's badge shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Validity {
    /// Seen working.
    Valid,
    /// Seen refused.
    Invalid,
    /// Not known.
    Unknown,
}

/// Inputs and captured values by name: fills `{name}` in the provider's URLs.
pub type Captures = BTreeMap<String, String>;

/// A managed target of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRef {
    /// Target id.
    pub id: TargetId,
    /// Slug.
    pub slug: String,
    /// Capability id.
    pub capability: String,
    /// For people: `ada@example.com — Mail`.
    pub name: String,
}

/// One connected account, without its tokens.
#[derive(Debug, Clone)]
pub struct AccountRow {
    /// Id.
    pub id: AccountId,
    /// Organization.
    pub organization: OrgId,
    /// Provider id.
    pub provider: String,
    /// What never changes about the identity.
    pub subject: String,
    /// E-mail address.
    pub email: Option<String>,
    /// For people.
    pub display_name: Option<String>,
    /// Status.
    pub status: Status,
    /// Set exactly when the status is not `connected`.
    pub reason: Option<Reason>,
    /// Validity.
    pub validity: Validity,
    /// When validity was last learned.
    pub checked_at: Option<Timestamp>,
    /// Granted scopes.
    pub scopes: Vec<String>,
    /// Asked for and not granted.
    pub missing_scopes: Vec<String>,
    /// Connected capabilities and what was asked for them.
    pub preset: Preset,
    /// When the access token ends, by the database's clock.
    pub access_expires_at: Option<Timestamp>,
    /// When the refresh token ends, if known.
    pub refresh_expires_at: Option<Timestamp>,
    /// Whose account it is.
    pub owner: Option<UserId>,
    /// Inputs and captured values.
    pub captures: Captures,
    /// Grows with every change of tokens; what a save compares with.
    pub generation: i64,
    /// Managed targets, by capability.
    pub targets: Vec<TargetRef>,
    /// When connected first.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
}

/// An account's sealed tokens as one consistent read. `row` places: table `accounts`, the id's text, columns
/// `access_token` and `refresh_token`.
#[derive(Clone)]
pub struct AccountTokens {
    /// Everything else about the account.
    pub account: AccountRow,
    /// Sealed access token.
    pub access: Option<Sealed>,
    /// Sealed refresh token.
    pub refresh: Option<Sealed>,
    /// Life of the access token when it was received, in ms (the margin is a share of it).
    pub access_ttl_ms: Option<i64>,
    /// When the access token ends, on this process's monotonic clock: no later than a whole life from this read, whatever
    /// the clocks say. `None`: there is none, or it is over.
    pub access_ends: Option<Duration>,
    /// Before when no refresh is tried, by the database's clock: the last one failed.
    pub next_attempt_at: Option<Timestamp>,
}

/// Which accounts.
#[derive(Debug, Clone, Default)]
pub struct AccountFilter {
    /// Of this provider.
    pub provider: Option<String>,
    /// In this status.
    pub status: Option<Status>,
}

/// `select_accounts!("conditions" …)`: the columns of [`Columns`], one line for each managed target (or one without), in
/// one statement, so an account and its targets are always of one moment. `also` names further columns of `a`.
macro_rules! select_accounts {
    (also $columns:literal, $conditions:literal) => {
        concat!(
            "select a.id, a.organization, a.provider, a.subject, a.email, a.display_name, a.status, a.reason, \
             a.validity, a.checked_at, a.scopes, a.missing_scopes, a.preset, a.access_expires_at, \
             a.refresh_expires_at, a.owner, a.captures, a.generation, a.created_at, a.updated_at, ",
            $columns,
            "t.id as target_id, t.slug as target_slug, t.capability as target_capability, t.name as target_name \
             from (select * from accounts where removed_at is null and ",
            $conditions,
            ") a left join targets t on t.account = a.id order by a.id, t.capability"
        )
    };
    ($conditions:literal) => {
        select_accounts!(also "", $conditions)
    };
}

#[derive(sqlx::FromRow)]
struct Columns {
    id: AccountId,
    organization: OrgId,
    provider: String,
    subject: String,
    email: Option<String>,
    display_name: Option<String>,
    status: String,
    reason: Option<String>,
    validity: String,
    checked_at: Option<i64>,
    scopes: String,
    missing_scopes: String,
    preset: String,
    access_expires_at: Option<i64>,
    refresh_expires_at: Option<i64>,
    owner: Option<UserId>,
    captures: String,
    generation: i64,
    created_at: i64,
    updated_at: i64,
    target_id: Option<TargetId>,
    target_slug: Option<String>,
    target_capability: Option<String>,
    target_name: Option<String>,
}

#[derive(sqlx::FromRow)]
struct TokenColumns {
    #[sqlx(flatten)]
    account: Columns,
    access_token: Option<Vec<u8>>,
    refresh_token: Option<Vec<u8>>,
    access_ttl_ms: Option<i64>,
    next_attempt_at: Option<i64>,
}

impl Columns {
    fn target(&mut self) -> Option<TargetRef> {
        Some(TargetRef {
            id: self.target_id?,
            slug: self.target_slug.take()?,
            capability: self.target_capability.take()?,
            name: self.target_name.take()?,
        })
    }
}

impl TryFrom<Columns> for AccountRow {
    type Error = Error;

    fn try_from(row: Columns) -> Result<Self> {
        Ok(Self {
            id: row.id,
            organization: row.organization,
            provider: row.provider,
            subject: row.subject,
            email: row.email,
            display_name: row.display_name,
            status: read_word("accounts.status", &row.status)?,
            reason: row.reason.map(|reason| read_word("accounts.reason", &reason)).transpose()?,
            validity: read_word("accounts.validity", &row.validity)?,
            checked_at: read_time(row.checked_at),
            scopes: read_json("accounts.scopes", &row.scopes)?,
            missing_scopes: read_json("accounts.missing_scopes", &row.missing_scopes)?,
            preset: read_word("accounts.preset", &row.preset)?,
            access_expires_at: read_time(row.access_expires_at),
            refresh_expires_at: read_time(row.refresh_expires_at),
            owner: row.owner,
            captures: read_json("accounts.captures", &row.captures)?,
            generation: row.generation,
            targets: Vec::new(),
            created_at: Timestamp::from_millis(row.created_at),
            updated_at: Timestamp::from_millis(row.updated_at),
        })
    }
}

/// Puts the lines of one account, which follow each other, together.
fn gathered(lines: Vec<Columns>) -> Result<Vec<AccountRow>> {
    let mut accounts: Vec<AccountRow> = Vec::new();
    for mut line in lines {
        let target = line.target();
        match accounts.last_mut() {
            Some(account) if account.id == line.id => account.targets.extend(target),
            _ => {
                let mut account = AccountRow::try_from(line)?;
                account.targets.extend(target);
                accounts.push(account);
            }
        }
    }
    Ok(accounts)
}

/// When a token ends, on the clock that says `here` where the database's says `now`.
fn ends(account: &AccountRow, ttl_ms: Option<i64>, here: i64, now: i64) -> Option<Duration> {
    let left = account.access_expires_at?.millis().saturating_sub(now).min(ttl_ms.unwrap_or(0));
    let ends = here.saturating_add(left);
    (left > 0).then(|| Duration::from_millis(u64::try_from(ends).unwrap_or(0)))
}

/// One account, in whatever unit of work is going on.
pub(super) async fn account(session: &mut Session, org: OrgId, id: AccountId) -> Result<Option<AccountRow>> {
    let sql = select_accounts!("organization = $1 and id = $2");
    Ok(gathered(fetch_all!(session, Columns, sql, org, id)?)?.pop())
}

impl Store {
    /// Accounts of an organization (removed ones are gone for every reader).
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn accounts(&self, org: OrgId, filter: &AccountFilter, page: &Page) -> Result<Paged<AccountRow>> {
        let mut read = self.db.read().await?;
        let sql = select_accounts!(
            "organization = $1 and id > $2 and ($3 is null or provider = $3) and ($4 is null or status = $4) \
             order by id limit $5"
        );
        let (provider, status) = (filter.provider.as_deref(), filter.status.map(word));
        let lines = fetch_all!(&mut read, Columns, sql, org, page.after(), provider, status, page.rows())?;
        Ok(page.cut(gathered(lines)?, |account| account.id.to_string()))
    }

    /// One account.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn account(&self, org: OrgId, id: AccountId) -> Result<Option<AccountRow>> {
        account(&mut self.db.read().await?, org, id).await
    }

    /// The account of this identity, if there is one.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn account_by_subject(&self, org: OrgId, provider: &str, subject: &str) -> Result<Option<AccountRow>> {
        let mut read = self.db.read().await?;
        let sql = select_accounts!("organization = $1 and provider = $2 and subject = $3");
        Ok(gathered(fetch_all!(&mut read, Columns, sql, org, provider, subject)?)?.pop())
    }

    /// The accounts behind a key's grants, for bootstrap: one query.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn accounts_of_key(&self, key: KeyId) -> Result<Vec<AccountRow>> {
        let mut read = self.db.read().await?;
        let sql = select_accounts!(
            "id in (select granted.account from grants join targets granted on granted.id = grants.target \
             where grants.agent_key = $1)"
        );
        gathered(fetch_all!(&mut read, Columns, sql, key)?)
    }

    /// An account with its sealed tokens; `None` when it is gone or removed.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn tokens(&self, id: AccountId) -> Result<Option<AccountTokens>> {
        let mut read = self.db.read().await?;
        let (here, now) = (self.time.monotonic(), self.database_now(&mut read).await?);
        let sql =
            select_accounts!(also "a.access_token, a.refresh_token, a.access_ttl_ms, a.next_attempt_at, ", "id = $1");
        let mut lines = fetch_all!(&mut read, TokenColumns, sql, id)?;
        let Some(last) = lines.last_mut() else { return Ok(None) };
        let (access, refresh) = (last.access_token.take(), last.refresh_token.take());
        let (access_ttl_ms, next_attempt_at) = (last.access_ttl_ms, read_time(last.next_attempt_at));
        let account = gathered(lines.into_iter().map(|line| line.account).collect())?.pop();
        Ok(account.map(|account| AccountTokens {
            access_ends: access.as_ref().and(ends(&account, access_ttl_ms, here, now)),
            account,
            access: access.map(Sealed::from_bytes),
            refresh: refresh.map(Sealed::from_bytes),
            access_ttl_ms,
            next_attempt_at,
        }))
    }
}

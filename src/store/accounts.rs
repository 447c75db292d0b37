//! Connected accounts: rows, tokens, states.

use std::collections::BTreeMap;

use crate::catalog::Preset;
use crate::clock::Timestamp;
use crate::ids::{AccountId, JobId, OrgId, TargetId, UserId};
use crate::vault::Sealed;

use super::{AuditRow, Page, Paged, Result, Store};

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
    /// When the access token ends.
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
}

/// New tokens of an account.
#[derive(Clone)]
pub struct NewTokens {
    /// Sealed access token.
    pub access: Sealed,
    /// Sealed refresh token; `None` keeps the stored one.
    pub refresh: Option<Sealed>,
    /// When the access token ends.
    pub access_expires_at: Timestamp,
    /// Its whole life in ms.
    pub access_ttl_ms: i64,
    /// When the refresh token ends; `None` keeps what is stored.
    pub refresh_expires_at: Option<Timestamp>,
    /// Granted scopes when the answer said; `None` keeps what is stored.
    pub scopes: Option<Vec<String>>,
}

/// A finished connect flow, saved in one transaction: account, tokens, managed targets, audit record.
#[derive(Clone)]
pub struct SaveConnected {
    /// The account as it shall be; `generation` is ignored (a new account starts at 1, a reconnected one grows),
    /// `targets` are all wanted ones (those that exist by capability keep id, slug and grants).
    pub account: AccountRow,
    /// Its tokens.
    pub tokens: NewTokens,
    /// `true`: the row exists (reconnect in place); `false`: it must not.
    pub existing: bool,
}

/// Which accounts.
#[derive(Debug, Clone, Default)]
pub struct AccountFilter {
    /// Of this provider.
    pub provider: Option<String>,
    /// In this status.
    pub status: Option<Status>,
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
}

impl Store {
    /// Accounts of an organization (removed ones are gone for every reader).
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn accounts(&self, _org: OrgId, _filter: &AccountFilter, _page: &Page) -> Result<Paged<AccountRow>> {
        todo!()
    }

    /// One account.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn account(&self, _org: OrgId, _id: AccountId) -> Result<Option<AccountRow>> {
        todo!()
    }

    /// The account of this identity, if there is one.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn account_by_subject(&self, _org: OrgId, _provider: &str, _subject: &str) -> Result<Option<AccountRow>> {
        todo!()
    }

    /// The accounts behind a key's grants, for bootstrap: one query.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn accounts_of_key(&self, _key: crate::ids::KeyId) -> Result<Vec<AccountRow>> {
        todo!()
    }

    /// An account with its sealed tokens; `None` when it is gone or removed.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn tokens(&self, _id: AccountId) -> Result<Option<AccountTokens>> {
        todo!()
    }

    /// Saves a finished connect flow and bumps the policy revision; answers the account as stored.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when `existing` is wrong about the row or a slug is taken.
    pub async fn save_connected(&self, _save: &SaveConnected, _record: &AuditRow) -> Result<AccountRow> {
        todo!()
    }

    /// Compare-and-set: saves refreshed tokens when the generation still is `generation` and the account is there;
    /// status becomes `connected`, validity `valid`. Answers whether it was saved (the generation is then one more).
    ///
    /// # Errors
    /// [`super::Error::Database`]: unknown whether it was saved.
    pub async fn save_tokens(
        &self,
        _id: AccountId,
        _generation: i64,
        _tokens: &NewTokens,
        _now: Timestamp,
        _record: Option<&AuditRow>,
    ) -> Result<bool> {
        todo!()
    }

    /// Sets the status when the generation still is `generation` and the status or reason really changes; writes
    /// `record` in the same transaction. Answers whether it changed (so that one event is told once).
    ///
    /// # Errors
    /// [`super::Error::Database`].
    #[expect(clippy::too_many_arguments, reason = "a condition, a new state and its record")]
    pub async fn set_status(
        &self,
        _id: AccountId,
        _generation: i64,
        _status: Status,
        _reason: Option<Reason>,
        _validity: Validity,
        _now: Timestamp,
        _record: &AuditRow,
    ) -> Result<bool> {
        todo!()
    }

    /// Notes what a check saw.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn set_validity(&self, _id: AccountId, _validity: Validity, _now: Timestamp) -> Result<()> {
        todo!()
    }

    /// One transaction: tokens erased, generation bumped, row marked removed, managed targets and their grants deleted,
    /// a revocation queued for each sealed token given, policy revision bumped, record written.
    ///
    /// # Errors
    /// [`super::Error::NotFound`].
    pub async fn disconnect(
        &self,
        _org: OrgId,
        _id: AccountId,
        _confirm: bool,
        _revocations: &[(JobId, &'static str, Sealed)],
        _now: Timestamp,
        _record: &AuditRow,
    ) -> Result<Disconnected> {
        todo!()
    }
}

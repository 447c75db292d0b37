//! An account as the API, the dashboard and bootstrap show it: everywhere the same, never with a token.

use crate::clock::Timestamp;
use crate::ids::{AccountId, UserId};
use crate::store::{AccountRow, Reason, Status, Validity};

use super::Accounts;

/// One managed target of an account.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct AccountTarget {
    /// Slug: `/proxy/{slug}/…`.
    pub slug: String,
    /// Capability id.
    pub capability: String,
    /// For people.
    pub name: String,
}

/// One account.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
#[schema(as = Account)]
pub struct AccountView {
    /// Id.
    pub id: AccountId,
    /// Provider id.
    pub provider: String,
    /// Provider name.
    pub provider_name: String,
    /// What never changes about the identity at the provider.
    pub subject: String,
    /// E-mail address.
    pub email: Option<String>,
    /// For people.
    pub display_name: Option<String>,
    /// Status.
    pub status: Status,
    /// Why it is not `connected`.
    pub reason: Option<Reason>,
    /// What the badge shows.
    pub validity: Validity,
    /// When validity was last learned.
    pub checked_at: Option<Timestamp>,
    /// Granted scopes.
    pub scopes: Vec<String>,
    /// Asked for and not granted.
    pub missing_scopes: Vec<String>,
    /// When the access token ends.
    pub access_expires_at: Option<Timestamp>,
    /// When the refresh token ends, if known.
    pub refresh_expires_at: Option<Timestamp>,
    /// Whose account it is.
    pub owner: Option<UserId>,
    /// Managed targets.
    pub targets: Vec<AccountTarget>,
    /// Connected first.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
}

impl Accounts {
    /// The shown form of a row.
    #[must_use]
    pub fn view(&self, row: AccountRow) -> AccountView {
        let provider_name = self
            .parts
            .catalog
            .provider(&row.provider)
            .map_or_else(|| row.provider.clone(), |provider| provider.name.clone());
        AccountView {
            id: row.id,
            provider: row.provider,
            provider_name,
            subject: row.subject,
            email: row.email,
            display_name: row.display_name,
            status: row.status,
            reason: row.reason,
            validity: row.validity,
            checked_at: row.checked_at,
            scopes: row.scopes,
            missing_scopes: row.missing_scopes,
            access_expires_at: row.access_expires_at,
            refresh_expires_at: row.refresh_expires_at,
            owner: row.owner,
            targets: row
                .targets
                .into_iter()
                .map(|target| AccountTarget { slug: target.slug, capability: target.capability, name: target.name })
                .collect(),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }

    /// Where a person goes to connect this account again; holds no secret.
    #[must_use]
    pub fn reconnect_url(&self, id: AccountId) -> String {
        format!("{}/integrations?reconnect={id}", self.parts.public_url)
    }
}

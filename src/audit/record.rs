//! What is written down.

use std::borrow::Cow;
use std::fmt;

use crate::clock::Timestamp;
use crate::ids::{AccountId, AuditId, KeyId, OrgId};
use crate::store::AuditRow;

/// Who does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// An agent, by its key's id.
    Agent(KeyId),
    /// Somebody with the admin token.
    AdminToken,
    /// Somebody signed in to the dashboard.
    Session,
    /// Keyward itself.
    System,
    /// Nobody that is known.
    Anonymous,
}

impl Actor {
    fn word(&self) -> Cow<'static, str> {
        match self {
            Self::Agent(key) => key.to_string().into(),
            Self::AdminToken => "admin_token".into(),
            Self::Session => "session".into(),
            Self::System => "system".into(),
            Self::Anonymous => "anonymous".into(),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.word())
    }
}

/// An act, about to be written with its change. `action` is a stable word: `account.connected`, `key.created`…
#[derive(Debug, Clone)]
pub struct Record {
    row: AuditRow,
}

impl Record {
    /// An act of `actor` at `at`.
    #[must_use]
    pub fn new(at: Timestamp, organization: OrgId, actor: &Actor, action: &'static str) -> Self {
        Self::of(at, Some(organization), actor, action)
    }

    fn of(at: Timestamp, organization: Option<OrgId>, actor: &Actor, action: &'static str) -> Self {
        Self {
            row: AuditRow {
                id: AuditId::at(at.millis()),
                organization,
                at,
                actor: Some(actor.word()),
                action: action.into(),
                request: None,
                key: None,
                target: None,
                account: None,
                method: None,
                path: None,
                status: None,
                code: None,
                bytes_in: None,
                bytes_out: None,
                duration_us: None,
                detail: None,
            },
        }
    }

    /// Says that `lost` records are missing around `at`: the trail itself must not look whole when it is not.
    #[must_use]
    pub fn gap(at: Timestamp, lost: u64) -> Self {
        let mut record = Self::of(at, None, &Actor::System, "audit.gap");
        record.row.detail = Some(serde_json::json!({ "lost": lost }));
        record
    }

    /// About this key.
    #[must_use]
    pub fn key(mut self, key: KeyId) -> Self {
        self.row.key = Some(key);
        self
    }
    /// About this target.
    #[must_use]
    pub fn target(mut self, slug: &str) -> Self {
        self.row.target = Some(slug.into());
        self
    }
    /// About this account.
    #[must_use]
    pub fn account(mut self, account: AccountId) -> Self {
        self.row.account = Some(account);
        self
    }
    /// What else belongs to it: a JSON object without secrets.
    #[must_use]
    pub fn detail(mut self, detail: serde_json::Value) -> Self {
        self.row.detail = Some(detail);
        self
    }
    /// The form that is stored.
    #[must_use]
    pub fn into_row(self) -> AuditRow {
        self.row
    }
}

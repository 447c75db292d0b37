//! The audit trail: appended in batches, read newest first, pruned by age.

use crate::clock::Timestamp;
use crate::ids::{AccountId, AuditId, KeyId, OrgId, RequestId};

use super::{Page, Paged, Result, Store};

/// One record. Holds no secret, no query string, no body.
#[derive(Debug, Clone)]
pub struct AuditRow {
    /// Id; sorts by time.
    pub id: AuditId,
    /// Organization; `None`: it could not be told (an unknown key).
    pub organization: Option<OrgId>,
    /// When.
    pub at: Timestamp,
    /// Who: a key's id, `admin_token`, `session`, `system`, `anonymous`.
    pub actor: String,
    /// What: `request`, `account.connected`, `key.created`…
    pub action: String,
    /// The agent's request, if it is one.
    pub request: Option<RequestId>,
    /// The key that asked, or that the act was about.
    pub key: Option<KeyId>,
    /// The target's slug.
    pub target: Option<String>,
    /// The account.
    pub account: Option<AccountId>,
    /// HTTP method.
    pub method: Option<String>,
    /// Path below the target, without the query.
    pub path: Option<String>,
    /// Status answered.
    pub status: Option<i64>,
    /// Keyward's code, when Keyward refused.
    pub code: Option<String>,
    /// Bytes of the request body.
    pub bytes_in: Option<i64>,
    /// Bytes of the answer body.
    pub bytes_out: Option<i64>,
    /// From the request's head to the answer's last byte, in µs.
    pub duration_us: Option<i64>,
    /// A JSON object with what else belongs to the act.
    pub detail: Option<serde_json::Value>,
}

/// Which records.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// About this key.
    pub key: Option<KeyId>,
    /// About this target.
    pub target: Option<String>,
    /// About this account.
    pub account: Option<AccountId>,
    /// At or after.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// With this status.
    pub status: Option<i64>,
}

impl Store {
    /// Appends records, all or none.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn append_audit(&self, _rows: &[AuditRow]) -> Result<()> {
        todo!()
    }
    /// Records of an organization, newest first.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn audit(&self, _org: OrgId, _filter: &AuditFilter, _page: &Page) -> Result<Paged<AuditRow>> {
        todo!()
    }
    /// Deletes records older than `before`, a bounded number at a time; answers how many.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn prune_audit(&self, _before: Timestamp) -> Result<u64> {
        todo!()
    }
}

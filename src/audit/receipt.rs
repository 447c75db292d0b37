//! One request's record in the making: opened first, rides on the answer's body, closes once — also on drop.

use http::{Method, StatusCode};

use crate::ids::{AccountId, KeyId, OrgId, RequestId};

use super::Audit;

/// Records can't be written now, so nothing may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit trail can't be written")]
pub struct AuditUnavailable;

/// One request's record in the making.
pub struct Receipt {
    _audit: Audit,
    request: RequestId,
}

impl Receipt {
    /// The request's id.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.request
    }
    /// What was asked for: method, the target's slug as given, the path below it without query.
    pub fn asked(&mut self, _method: &Method, _slug: &str, _path: &str) {
        todo!()
    }
    /// Who asked.
    pub fn agent(&mut self, _key: KeyId, _organization: OrgId) {
        todo!()
    }
    /// The account that it uses.
    pub fn account(&mut self, _account: AccountId) {
        todo!()
    }
    /// The answer's status, and Keyward's code when Keyward refused.
    pub fn answered(&mut self, _status: StatusCode, _code: Option<&'static str>) {
        todo!()
    }
    /// Request body bytes that went by.
    pub fn sent(&mut self, _bytes: u64) {
        todo!()
    }
    /// Answer body bytes that went by.
    pub fn received(&mut self, _bytes: u64) {
        todo!()
    }
    /// The answer ended whole. A receipt that is dropped without this says `aborted`.
    pub fn finished(&mut self) {
        todo!()
    }
}

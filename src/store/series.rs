//! What records have in common: who did what to what. One agent's calls differ in when they were and what came of them,
//! so the rest is written once per slice of time, as a series, and each record names it. That makes records a third
//! smaller, and most of what a record costs is its bytes.

use crate::ids::{AccountId, KeyId};
use crate::secret::sha256;

use super::AuditRow;

/// The labels of a series.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Series<'a> {
    pub(super) actor: Option<&'a str>,
    pub(super) action: &'a str,
    pub(super) key: Option<KeyId>,
    pub(super) target: Option<&'a str>,
    pub(super) account: Option<AccountId>,
    pub(super) method: Option<&'a str>,
}

impl<'a> Series<'a> {
    /// The series that a record belongs to.
    pub(super) fn of(row: &'a AuditRow) -> Self {
        Self {
            actor: row.actor.as_deref(),
            action: &row.action,
            key: row.key,
            target: row.target.as_deref(),
            account: row.account,
            method: row.method.as_deref(),
        }
    }

    /// The number that stands for it, the same wherever it is reckoned: two instances write one series once. 64 bits of a
    /// hash: within a slice no two meet by accident, and nobody finds labels that have a given number.
    pub(super) fn number(&self) -> i64 {
        let key = self.key.as_ref().map(KeyId::as_bytes);
        let account = self.account.as_ref().map(AccountId::as_bytes);
        let texts = [self.actor, Some(self.action), self.target, self.method].map(|text| text.map(str::as_bytes));
        let mut labels = Vec::with_capacity(128);
        for label in [key, account].into_iter().chain(texts) {
            // A label can't look like two, nor like none.
            let length = label.map_or(u64::MAX, |bytes| bytes.len() as u64);
            labels.extend_from_slice(&length.to_be_bytes());
            labels.extend_from_slice(label.unwrap_or_default());
        }
        let hash = sha256(&labels);
        i64::from_be_bytes(*hash.first_chunk().expect("a hash is longer"))
    }
}

//! Which records are about a key, a target or an account, without an index of records.
//!
//! An index entry for each record and each thing that it is about costs several times the record itself: every entry goes
//! to another page, and every page is written twice. So time is cut into slices, and it is written down once per slice
//! that something occurs in it; a busy key costs one entry in eight seconds. Whoever looks for its records looks through
//! the slices that are named, newest first. An entry only says where to look, so one too many does no harm: the records
//! themselves decide.

use crate::clock::Timestamp;
use crate::ids::{AccountId, AuditId, KeyId, OrgId};
use crate::secret::sha256;

use super::{AuditFilter, AuditRow};

/// Milliseconds of a slice, as a power of two. Longer ones cost less to write and more to look through. Part of what is
/// stored: another length makes old records unfindable.
const SLICE_BITS: u32 = 13;

/// How much earlier than its moment a record's id may be, because somebody set the clock back.
const CLOCK_STEP: i64 = 60 * 60 * 1000;

/// The slice of a record.
pub(super) fn slice(id: AuditId) -> i64 {
    id.millis() >> SLICE_BITS
}

/// The first slice in which there may be records of this moment or later ones: ids are made at the moment that the record
/// tells, or after it.
pub(super) fn first_slice(since: Timestamp) -> i64 {
    since.millis().saturating_sub(CLOCK_STEP) >> SLICE_BITS
}

/// Something that records can be found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum About<'a> {
    Key(KeyId),
    Account(AccountId),
    Target(OrgId, &'a str),
}

impl<'a> About<'a> {
    /// What a record is about; nothing when it belongs to nobody, for nobody looks for those.
    pub(super) fn of_row(row: &'a AuditRow) -> impl Iterator<Item = Self> {
        let target = row.target.as_deref();
        let about = row.organization.map(|org| Self::all(org, row.key, row.account, target));
        about.into_iter().flatten()
    }

    /// What a filter asks for, the rarest first as far as one can guess.
    pub(super) fn of_filter(org: OrgId, filter: &'a AuditFilter) -> impl Iterator<Item = Self> {
        Self::all(org, filter.key, filter.account, filter.target.as_deref())
    }

    fn all(
        org: OrgId,
        key: Option<KeyId>,
        account: Option<AccountId>,
        target: Option<&'a str>,
    ) -> impl Iterator<Item = Self> {
        let target = target.map(|slug| Self::Target(org, slug));
        [account.map(Self::Account), target, key.map(Self::Key)].into_iter().flatten()
    }

    /// The number that stands for it. That two things share one is as unlikely as harmless.
    pub(super) fn subject(self) -> i64 {
        match self {
            Self::Key(id) => random_end(id.as_bytes()),
            Self::Account(id) => random_end(id.as_bytes()),
            Self::Target(org, slug) => random_end(&sha256(&[org.as_bytes(), slug.as_bytes()].concat())),
        }
    }
}

fn random_end(bytes: &[u8]) -> i64 {
    i64::from_be_bytes(*bytes.last_chunk().expect("ids and hashes are longer"))
}

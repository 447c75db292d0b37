//! Connect flows under way: made, opened in one browser, taken once.

use crate::catalog::Preset;
use crate::clock::Timestamp;
use crate::ids::{AccountId, FlowId, OrgId, UserId};
use crate::vault::Sealed;

use super::{Captures, Result, Store};

/// One attempt to connect an account.
#[derive(Clone)]
pub struct FlowRow {
    /// Id; stands in the link of our page.
    pub id: FlowId,
    /// Organization.
    pub organization: OrgId,
    /// Provider id.
    pub provider: String,
    /// Capability ids wanted.
    pub capabilities: Vec<String>,
    /// What is asked for them.
    pub preset: Preset,
    /// Reconnect this account and no other.
    pub account: Option<AccountId>,
    /// Inputs given by the person.
    pub inputs: Captures,
    /// Whose account it will be.
    pub owner: Option<UserId>,
    /// Who asked, as the audit trail names them.
    pub actor: String,
    /// SHA-256 of the state, once opened.
    pub state_hash: Option<[u8; 32]>,
    /// SHA-256 of the browser's cookie, once opened.
    pub cookie_hash: Option<[u8; 32]>,
    /// Sealed PKCE verifier, once opened. Place: table `flows`, the id, column `verifier`.
    pub verifier: Option<Sealed>,
    /// Made at.
    pub created_at: Timestamp,
    /// Over at.
    pub expires_at: Timestamp,
}

/// What opening a flow in a browser adds.
pub struct FlowOpened {
    /// SHA-256 of the state.
    pub state_hash: [u8; 32],
    /// SHA-256 of the cookie.
    pub cookie_hash: [u8; 32],
    /// Sealed verifier.
    pub verifier: Sealed,
}

impl Store {
    /// Stores a new flow.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn insert_flow(&self, _flow: &FlowRow) -> Result<()> {
        todo!()
    }
    /// Reads a flow that is not over.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn flow(&self, _id: FlowId, _now: Timestamp) -> Result<Option<FlowRow>> {
        todo!()
    }
    /// Binds a flow to the browser that opens it. `false` when it was opened before, is over or gone.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn open_flow(&self, _id: FlowId, _opened: &FlowOpened, _now: Timestamp) -> Result<bool> {
        todo!()
    }
    /// Deletes and answers the flow with this state: the first caller gets it, nobody else ever. Expired ones are
    /// answered too (the caller says so to the person).
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn take_flow(&self, _state_hash: &[u8; 32]) -> Result<Option<FlowRow>> {
        todo!()
    }
    /// Deletes flows that ended before `now`.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn prune_flows(&self, _now: Timestamp) -> Result<u64> {
        todo!()
    }
}

//! Connect flows under way: made, opened in one browser, taken once.

use crate::catalog::Preset;
use crate::clock::Timestamp;
use crate::ids::{AccountId, FlowId, OrgId, UserId};
use crate::vault::Sealed;

use super::codec::{json, read_hash, read_json, read_word, word};
use super::db::{execute, fetch_optional};
use super::{Captures, Error, Result, Store};

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

/// The columns of [`Columns`].
macro_rules! columns {
    () => {
        "id, organization, provider, capabilities, preset, account, inputs, owner, actor, state_hash, cookie_hash, \
         verifier, created_at, expires_at"
    };
}

#[derive(sqlx::FromRow)]
struct Columns {
    id: FlowId,
    organization: OrgId,
    provider: String,
    capabilities: String,
    preset: String,
    account: Option<AccountId>,
    inputs: String,
    owner: Option<UserId>,
    actor: String,
    state_hash: Option<Vec<u8>>,
    cookie_hash: Option<Vec<u8>>,
    verifier: Option<Vec<u8>>,
    created_at: i64,
    expires_at: i64,
}

impl TryFrom<Columns> for FlowRow {
    type Error = Error;

    fn try_from(row: Columns) -> Result<Self> {
        Ok(Self {
            id: row.id,
            organization: row.organization,
            provider: row.provider,
            capabilities: read_json("flows.capabilities", &row.capabilities)?,
            preset: read_word("flows.preset", &row.preset)?,
            account: row.account,
            inputs: read_json("flows.inputs", &row.inputs)?,
            owner: row.owner,
            actor: row.actor,
            state_hash: row.state_hash.map(|hash| read_hash("flows.state_hash", &hash)).transpose()?,
            cookie_hash: row.cookie_hash.map(|hash| read_hash("flows.cookie_hash", &hash)).transpose()?,
            verifier: row.verifier.map(Sealed::from_bytes),
            created_at: Timestamp::from_millis(row.created_at),
            expires_at: Timestamp::from_millis(row.expires_at),
        })
    }
}

impl Store {
    /// Stores a new flow.
    ///
    /// # Errors
    /// [`super::Error::NotFound`] when there is no such organization.
    pub async fn insert_flow(&self, flow: &FlowRow) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            concat!(
                "insert into flows (",
                columns!(),
                ") values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
            ),
            flow.id,
            flow.organization,
            flow.provider.as_str(),
            json(&flow.capabilities),
            word(flow.preset),
            flow.account,
            json(&flow.inputs),
            flow.owner,
            flow.actor.as_str(),
            flow.state_hash.as_ref().map(|hash| &hash[..]),
            flow.cookie_hash.as_ref().map(|hash| &hash[..]),
            flow.verifier.as_ref().map(Sealed::as_bytes),
            flow.created_at.millis(),
            flow.expires_at.millis(),
        )?;
        tx.commit().await
    }

    /// Reads a flow that is not over.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn flow(&self, id: FlowId, now: Timestamp) -> Result<Option<FlowRow>> {
        let mut read = self.db.read().await?;
        let sql = concat!("select ", columns!(), " from flows where id = $1 and expires_at > $2");
        fetch_optional!(&mut read, Columns, sql, id, now.millis())?.map(FlowRow::try_from).transpose()
    }

    /// Binds a flow to the browser that opens it. `false` when it was opened before, is over or gone.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn open_flow(&self, id: FlowId, opened: &FlowOpened, now: Timestamp) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let bound = execute!(
            &mut tx,
            "update flows set state_hash = $2, cookie_hash = $3, verifier = $4 \
             where id = $1 and state_hash is null and expires_at > $5",
            id,
            &opened.state_hash[..],
            &opened.cookie_hash[..],
            opened.verifier.as_bytes(),
            now.millis()
        )?;
        tx.commit().await?;
        Ok(bound == 1)
    }

    /// Deletes and answers the flow with this state: the first caller gets it, nobody else ever. Expired ones are
    /// answered too (the caller says so to the person).
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn take_flow(&self, state_hash: &[u8; 32]) -> Result<Option<FlowRow>> {
        let mut tx = self.db.write().await?;
        let sql = concat!("delete from flows where state_hash = $1 returning ", columns!());
        let taken = fetch_optional!(&mut tx, Columns, sql, &state_hash[..])?;
        tx.commit().await?;
        taken.map(FlowRow::try_from).transpose()
    }

    /// Deletes flows that ended before `now`.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn prune_flows(&self, now: Timestamp) -> Result<u64> {
        let mut tx = self.db.write().await?;
        let gone = execute!(&mut tx, "delete from flows where expires_at < $1", now.millis())?;
        tx.commit().await?;
        Ok(gone)
    }
}

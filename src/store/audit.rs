//! The audit trail: appended in batches, read newest first, pruned by age.

use sqlx::QueryBuilder;

use crate::clock::Timestamp;
use crate::ids::{AccountId, AuditId, KeyId, OrgId, RequestId};

use super::codec::read_json;
use super::db::{Session, execute, on, within};
use super::{Error, Page, Paged, Result, Store};

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

/// Rows that one statement inserts: four texts, each prepared once, and far below both databases' limit of arguments.
const PIECES: [usize; 4] = [500, 50, 10, 1];

/// Rows that one pruning deletes: short enough that nobody waits for the writer.
const PRUNE: i64 = 5_000;

#[derive(sqlx::FromRow)]
struct Columns {
    id: AuditId,
    organization: Option<OrgId>,
    at: i64,
    actor: String,
    action: String,
    request: Option<RequestId>,
    agent_key: Option<KeyId>,
    target: Option<String>,
    account: Option<AccountId>,
    method: Option<String>,
    path: Option<String>,
    status: Option<i64>,
    code: Option<String>,
    bytes_in: Option<i64>,
    bytes_out: Option<i64>,
    duration_us: Option<i64>,
    detail: Option<String>,
}

impl TryFrom<Columns> for AuditRow {
    type Error = Error;

    fn try_from(row: Columns) -> Result<Self> {
        Ok(Self {
            id: row.id,
            organization: row.organization,
            at: Timestamp::from_millis(row.at),
            actor: row.actor,
            action: row.action,
            request: row.request,
            key: row.agent_key,
            target: row.target,
            account: row.account,
            method: row.method,
            path: row.path,
            status: row.status,
            code: row.code,
            bytes_in: row.bytes_in,
            bytes_out: row.bytes_out,
            duration_us: row.duration_us,
            detail: row.detail.map(|detail| read_json("audit.detail", &detail)).transpose()?,
        })
    }
}

/// What becomes of a record whose id stands there already. Either way whoever could not learn whether a batch was stored
/// may send it again.
#[derive(Clone, Copy)]
enum Again {
    /// It is left alone: it may say more than this one.
    Keep,
    /// It is a call's intent, and this one says what became of it.
    Settle,
}

impl Again {
    fn clause(self) -> &'static str {
        match self {
            Self::Keep => " on conflict (id) do nothing",
            Self::Settle => {
                " on conflict (id) do update set status = excluded.status, code = excluded.code, \
                 bytes_in = excluded.bytes_in, bytes_out = excluded.bytes_out, duration_us = excluded.duration_us"
            }
        }
    }
}

/// Inserts records beside the change that they describe.
pub(super) async fn insert(tx: &mut Session, rows: &[AuditRow]) -> Result<()> {
    insert_or(tx, rows, Again::Keep).await
}

async fn insert_or(tx: &mut Session, mut rows: &[AuditRow], again: Again) -> Result<()> {
    while let Some(size) = PIECES.into_iter().find(|size| *size <= rows.len()) {
        let (piece, rest) = rows.split_at(size);
        rows = rest;
        on!(&mut *tx, connection => {
            let mut query = QueryBuilder::new(
                "insert into audit (id, organization, at, actor, action, request, agent_key, target, account, \
                 method, path, status, code, bytes_in, bytes_out, duration_us, detail) ",
            );
            query.push_values(piece, |mut values, row| {
                values.push_bind(row.id);
                values.push_bind(row.organization);
                values.push_bind(row.at.millis());
                values.push_bind(row.actor.as_str());
                values.push_bind(row.action.as_str());
                values.push_bind(row.request);
                values.push_bind(row.key);
                values.push_bind(row.target.as_deref());
                values.push_bind(row.account);
                values.push_bind(row.method.as_deref());
                values.push_bind(row.path.as_deref());
                values.push_bind(row.status);
                values.push_bind(row.code.as_deref());
                values.push_bind(row.bytes_in);
                values.push_bind(row.bytes_out);
                values.push_bind(row.duration_us);
                values.push_bind(row.detail.as_ref().map(ToString::to_string));
            });
            query.push(again.clause());
            within(query.build().execute(connection)).await?;
        });
    }
    Ok(())
}

impl Store {
    /// Appends records, all or none; one whose intent stands there already completes it. After an error the same records
    /// may be sent again: none is stored twice.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn append_audit(&self, rows: &[AuditRow]) -> Result<()> {
        let mut tx = self.db.write().await?;
        insert_or(&mut tx, rows, Again::Settle).await?;
        tx.commit().await
    }

    /// Appends the intents of calls that are about to leave, all or none. One whose outcome stands there already is left
    /// alone.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn append_intents(&self, rows: &[AuditRow]) -> Result<()> {
        let mut tx = self.db.write().await?;
        insert_or(&mut tx, rows, Again::Keep).await?;
        tx.commit().await
    }

    /// Records of an organization, newest first.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn audit(&self, org: OrgId, filter: &AuditFilter, page: &Page) -> Result<Paged<AuditRow>> {
        let mut read = self.db.read().await?;
        let rows = on!(&mut read, connection => {
            let mut query = QueryBuilder::new(
                "select id, organization, at, actor, action, request, agent_key, target, account, method, path, \
                 status, code, bytes_in, bytes_out, duration_us, detail from audit where organization = ",
            );
            query.push_bind(org);
            // Only the conditions that are wanted, so that each finds its index.
            if let Some(key) = filter.key {
                query.push(" and agent_key = ").push_bind(key);
            }
            if let Some(target) = filter.target.as_deref() {
                query.push(" and target = ").push_bind(target);
            }
            if let Some(account) = filter.account {
                query.push(" and account = ").push_bind(account);
            }
            if let Some(since) = filter.since {
                query.push(" and at >= ").push_bind(since.millis());
            }
            if let Some(until) = filter.until {
                query.push(" and at < ").push_bind(until.millis());
            }
            if let Some(status) = filter.status {
                query.push(" and status = ").push_bind(status);
            }
            if let Some(after) = page.after.as_deref() {
                query.push(" and id < ").push_bind(after);
            }
            query.push(" order by id desc limit ").push_bind(page.rows());
            within(query.build_query_as::<Columns>().persistent(false).fetch_all(connection)).await?
        });
        let rows = rows.into_iter().map(AuditRow::try_from).collect::<Result<_>>()?;
        Ok(page.cut(rows, |row: &AuditRow| row.id.to_string()))
    }

    /// Deletes records older than `before`, a bounded number at a time; answers how many.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn prune_audit(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.db.write().await?;
        let gone = execute!(
            &mut tx,
            "delete from audit where id in (select id from audit where at < $1 order by at limit $2)",
            before.millis(),
            PRUNE
        )?;
        tx.commit().await?;
        Ok(gone)
    }
}

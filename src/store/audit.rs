//! The audit trail: appended in batches, read newest first, pruned by age.

use std::borrow::Cow;
use std::sync::Arc;

use sqlx::QueryBuilder;

use crate::clock::Timestamp;
use crate::ids::{AccountId, AuditId, KeyId, OrgId, RequestId};

use super::about::{self, About};
use super::audit_insert::{Again, insert_or};
use super::codec::{read_id, read_json};
use super::db::{execute, fetch_all, on, within};
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
    /// Who: `admin_token`, `session`, `system`, `anonymous`; `None`: the key that asked.
    pub actor: Option<Cow<'static, str>>,
    /// What: `request`, `account.connected`, `key.created`…
    pub action: Cow<'static, str>,
    /// The agent's request, if it is one.
    pub request: Option<RequestId>,
    /// The key that asked, or that the act was about.
    pub key: Option<KeyId>,
    /// The target's slug.
    pub target: Option<Arc<str>>,
    /// The account.
    pub account: Option<AccountId>,
    /// HTTP method.
    pub method: Option<Cow<'static, str>>,
    /// Path below the target, without the query.
    pub path: Option<Arc<str>>,
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

impl AuditRow {
    /// Who, in a word or by the key's id.
    #[must_use]
    pub fn actor(&self) -> Cow<'static, str> {
        match (&self.actor, self.key) {
            (Some(actor), _) => actor.clone(),
            (None, Some(key)) => key.to_string().into(),
            (None, None) => "anonymous".into(),
        }
    }
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

/// The action of an agent's request.
pub const REQUEST: &str = "request";

/// The organization of records that belong to none.
pub(super) const NOBODY: &[u8] = &[];

/// Rows that one pruning deletes: short enough that nobody waits for the writer.
const PRUNE: i64 = 5_000;

#[derive(sqlx::FromRow)]
struct Columns {
    organization: Vec<u8>,
    id: Vec<u8>,
    at: i64,
    actor: Option<String>,
    action: String,
    request: Option<Vec<u8>>,
    agent_key: Option<Vec<u8>>,
    target: Option<String>,
    account: Option<Vec<u8>>,
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
        let organization = Some(row.organization).filter(|org| !org.is_empty());
        let id: AuditId = read_id("audit.id", &row.id)?;
        let request = match row.request {
            Some(request) => Some(read_id("audit.request", &request)?),
            // Its own, unless it says another.
            None => (row.action == REQUEST).then(|| id.into()),
        };
        Ok(Self {
            id,
            organization: organization.map(|org| read_id("audit.organization", &org)).transpose()?,
            at: Timestamp::from_millis(row.at),
            actor: row.actor.map(Cow::Owned),
            action: row.action.into(),
            request,
            key: row.agent_key.map(|id| read_id("audit.agent_key", &id)).transpose()?,
            target: row.target.map(Arc::from),
            account: row.account.map(|id| read_id("audit.account", &id)).transpose()?,
            method: row.method.map(Cow::Owned),
            path: row.path.map(Arc::from),
            status: row.status,
            code: row.code,
            bytes_in: row.bytes_in,
            bytes_out: row.bytes_out,
            duration_us: row.duration_us,
            detail: row.detail.map(|detail| read_json("audit.detail", &detail)).transpose()?,
        })
    }
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
        let after = match page.after.as_deref().map(str::parse::<AuditId>) {
            Some(Ok(id)) => Some(id),
            // No record has such an id, so none comes after it.
            Some(Err(_)) => return Ok(Paged { items: Vec::new(), next: None }),
            None => None,
        };
        let mut about = About::of_filter(org, filter);
        let first = about.next();
        let mut read = self.db.read().await?;
        let rows = on!(&mut read, connection => {
            let mut query = QueryBuilder::new(
                "select a.organization, a.id, a.at, l.actor, l.action, a.request, l.agent_key, l.target, l.account, \
                 l.method, a.path, a.status, a.code, a.bytes_in, a.bytes_out, a.duration_us, a.detail from ",
            );
            // Slice by slice of those where there may be some. SQLite keeps a cross join in the order that it is written.
            let slice = match first {
                Some(about) => {
                    query.push("audit_about s cross join audit a cross join audit_series l where s.subject = ");
                    query.push_bind(about.subject());
                    query.push(" and a.slice = s.slice and ");
                    "s.slice"
                }
                None => {
                    query.push("audit a cross join audit_series l where ");
                    "a.slice"
                }
            };
            query.push("l.slice = a.slice and l.series = a.series and a.organization = ").push_bind(org.as_bytes());
            for about in about {
                query.push(" and exists (select 1 from audit_about o where o.slice = s.slice and o.subject = ");
                query.push_bind(about.subject()).push(")");
            }
            // Both databases find their place in the index by these; other forms of the same make them read a slice from
            // its newest record on.
            if let Some(after) = &after {
                let at = about::slice(*after);
                if first.is_some() {
                    query.push(" and s.slice <= ").push_bind(at).push(" and a.id < ").push_bind(after.as_bytes());
                } else {
                    query.push(" and (a.slice, a.id) < (").push_bind(at).push(", ");
                    query.push_bind(after.as_bytes()).push(")");
                }
            }
            if let Some(since) = filter.since {
                query.push(format_args!(" and {slice} >= ")).push_bind(about::first_slice(since));
                query.push(" and a.at >= ").push_bind(since.millis());
            }
            if let Some(until) = filter.until {
                query.push(" and a.at < ").push_bind(until.millis());
            }
            if let Some(key) = &filter.key {
                query.push(" and l.agent_key = ").push_bind(key.as_bytes());
            }
            if let Some(target) = filter.target.as_deref() {
                query.push(" and l.target = ").push_bind(target);
            }
            if let Some(account) = &filter.account {
                query.push(" and l.account = ").push_bind(account.as_bytes());
            }
            if let Some(status) = filter.status {
                query.push(" and a.status = ").push_bind(status);
            }
            query.push(format_args!(" order by {slice} desc, a.id desc limit ")).push_bind(page.rows());
            within(query.build_query_as::<Columns>().persistent(false).fetch_all(connection)).await?
        });
        let rows = rows.into_iter().map(AuditRow::try_from).collect::<Result<_>>()?;
        Ok(page.cut(rows, |row: &AuditRow| row.id.to_string()))
    }

    /// Deletes records that were written before this, a bounded number at a time; answers how many.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn prune_audit(&self, before: Timestamp) -> Result<u64> {
        let end = AuditId::first_of(before.millis());
        let mut all = 0;
        loop {
            let gone = self.prune_records(end).await?;
            all += gone;
            if gone < PRUNE as u64 {
                break;
            }
        }
        // What records of these slices shared, now that none of them is left.
        while self.prune_slices(about::slice(end)).await? > 0 {}
        Ok(all)
    }

    async fn prune_records(&self, end: AuditId) -> Result<u64> {
        let mut tx = self.db.write().await?;
        let organizations = fetch_all!(&mut tx, (OrgId,), "select id from organizations order by id")?;
        let organizations = organizations.iter().map(|(org,)| org.as_bytes()).chain([NOBODY]);
        let mut gone = 0;
        for organization in organizations {
            gone += execute!(
                &mut tx,
                "delete from audit where organization = $1 and (slice, id) in (select slice, id from audit \
                 where organization = $1 and (slice, id) < ($2, $3) order by slice, id limit $4)",
                organization,
                about::slice(end),
                end.as_bytes(),
                PRUNE - gone as i64
            )?;
        }
        tx.commit().await?;
        Ok(gone)
    }

    async fn prune_slices(&self, end: i64) -> Result<u64> {
        let mut tx = self.db.write().await?;
        let gone = execute!(
            &mut tx,
            "delete from audit_about where (subject, slice) in \
             (select subject, slice from audit_about where slice < $1 order by slice limit $2)",
            end,
            PRUNE
        )? + execute!(
            &mut tx,
            "delete from audit_series where (slice, series) in \
             (select slice, series from audit_series where slice < $1 order by slice limit $2)",
            end,
            PRUNE
        )?;
        tx.commit().await?;
        Ok(gone)
    }
}

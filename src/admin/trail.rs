//! The audit trail, read.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::clock::Timestamp;
use crate::ids::{AccountId, AuditId, KeyId, RequestId};
use crate::store::{AuditFilter, AuditRow, Page};

use super::AdminState;
use super::error::ApiError;
use super::extract::{Query, Scope};
use super::list::{List, page};
use super::openapi::Refusals;

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(list_audit))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// About this key.
    key: Option<KeyId>,
    /// About this target.
    target: Option<String>,
    /// About this account.
    account: Option<AccountId>,
    /// At or after.
    since: Option<Timestamp>,
    /// Before.
    until: Option<Timestamp>,
    /// Answered with this status.
    #[param(minimum = 100, maximum = 599)]
    status: Option<i64>,
    /// Entries wanted, 1 to 200; default 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl AuditQuery {
    fn checked(self) -> Result<(AuditFilter, Page), ApiError> {
        if self.status.is_some_and(|status| !(100..=599).contains(&status)) {
            return Err(ApiError::bad_request("query `status`: expected 100 to 599"));
        }
        let page = page(self.limit, self.cursor)?;
        let filter = AuditFilter {
            key: self.key,
            target: self.target,
            account: self.account,
            since: self.since,
            until: self.until,
            status: self.status,
        };
        Ok((filter, page))
    }
}

/// One record: a request of an agent, or an act.
#[derive(Serialize, ToSchema)]
struct AuditRecord {
    /// Id; sorts by time.
    id: AuditId,
    /// When.
    at: Timestamp,
    /// Who: a key's id, `admin_token`, `session`, `system`, `anonymous`.
    actor: String,
    /// What: `request`, `account.connected`, `key.created`…
    action: String,
    /// The agent's request, as in `Keyward-Request-Id`.
    request_id: Option<RequestId>,
    /// The key that asked, or that the act was about.
    key: Option<KeyId>,
    /// The target's slug.
    target: Option<String>,
    /// The account.
    account: Option<AccountId>,
    /// HTTP method.
    method: Option<String>,
    /// Path below the target, without the query.
    path: Option<String>,
    /// Status answered.
    status: Option<i64>,
    /// Keyward's code, when Keyward refused.
    code: Option<String>,
    /// Bytes of the request body.
    bytes_in: Option<i64>,
    /// Bytes of the answer body.
    bytes_out: Option<i64>,
    /// From the request's head to the answer's last byte, in µs.
    duration_us: Option<i64>,
    /// What else belongs to the act.
    #[schema(value_type = Option<Object>)]
    detail: Option<serde_json::Value>,
}

impl From<AuditRow> for AuditRecord {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id,
            at: row.at,
            actor: row.actor().into_owned(),
            action: row.action.into_owned(),
            request_id: row.request,
            key: row.key,
            target: row.target.as_deref().map(str::to_owned),
            account: row.account,
            method: row.method.map(Cow::into_owned),
            path: row.path.as_deref().map(str::to_owned),
            status: row.status,
            code: row.code,
            bytes_in: row.bytes_in,
            bytes_out: row.bytes_out,
            duration_us: row.duration_us,
            detail: row.detail,
        }
    }
}

/// Read the audit trail
#[utoipa::path(
    get, path = "/api/organizations/{org}/audit", tag = "audit",
    params(("org" = String, Path, description = "Organization: name or id"), AuditQuery),
    responses(Refusals, (status = 200, body = List<AuditRecord>, description = "Newest first.")),
)]
async fn list_audit(
    scope: Scope,
    State(state): State<AdminState>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<List<AuditRecord>>, ApiError> {
    let (filter, page) = query.checked()?;
    // Some records are written a moment after their answer; who asks now reads those too.
    state.audit.flush().await;
    let rows = state.store.audit(scope.org, &filter, &page).await?;
    Ok(List::of(rows, AuditRecord::from))
}

#[cfg(test)]
mod tests {
    use super::super::extract::read_query;
    use super::*;

    #[test]
    fn a_filter_is_read_from_the_query() {
        let key = KeyId::new();
        let query = format!("key={key}&target=crm&since=1970-01-01T00:00:01Z&status=403&limit=10&cursor=aud_1");
        let (filter, page) = read_query::<AuditQuery>(&query).unwrap().checked().unwrap();
        assert_eq!((filter.key, filter.target.as_deref(), filter.status), (Some(key), Some("crm"), Some(403)));
        assert_eq!((filter.since, filter.until), (Some(Timestamp::from_millis(1_000)), None));
        assert_eq!((page.limit, page.after.as_deref()), (10, Some("aud_1")));
    }

    #[test]
    fn a_filter_that_can_not_be_read_is_refused() {
        for (query, part) in [
            ("key=acc_1", "`key`"),
            ("since=yesterday", "`since`"),
            ("status=ok", "`status`"),
            ("status=42", "`status`"),
            ("limit=0", "`limit`"),
            ("who=me", "`who`"),
        ] {
            let error = read_query::<AuditQuery>(query).and_then(AuditQuery::checked).unwrap_err();
            assert!(error.message.contains(part), "{query}: {}", error.message);
        }
    }
}

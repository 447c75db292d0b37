//! The audit trail: who did what, newest first.

use std::collections::BTreeMap;
use std::time::Duration;

use askama::Template;
use axum::extract::State;
use serde_json::Value;

use crate::admin::AdminState;
use crate::admin::auth::SignedIn;
use crate::clock::Timestamp;
use crate::store::{AuditFilter, AuditRow};

use super::fields::{Asked, Fields};
use super::page::{Reply, Shell, html, link, organization, piece};
use super::problem::Problem;
use super::when::When;
use super::words::Tone;

#[derive(Template)]
#[template(path = "audit.html")]
pub(super) struct AuditPage {
    pub shell: Shell,
    pub filter: FilterForm,
    pub records: Vec<RecordLine>,
    pub next: Option<String>,
}

/// The filter as it was typed.
#[derive(Default)]
pub(super) struct FilterForm {
    pub key: String,
    pub target: String,
    pub account: String,
    pub status: String,
    pub since: String,
    pub until: String,
}

/// One record.
pub(super) struct RecordLine {
    pub at: When,
    pub who: String,
    pub action: String,
    pub target: String,
    /// `GET /me/messages`, or what else belongs to an act.
    pub what: String,
    pub result: String,
    pub tone: Tone,
    pub took: String,
}

impl RecordLine {
    /// A record, with the names of keys where they are known.
    pub fn new(row: AuditRow, names: &BTreeMap<String, String>, now: Timestamp) -> Self {
        let actor = row.actor().into_owned();
        let what = match (row.method, row.path, row.detail) {
            (Some(method), path, _) => format!("{method} {}", path.unwrap_or_default()),
            (None, _, Some(detail)) => told(&detail),
            (None, _, None) => row.account.map(|account| account.to_string()).unwrap_or_default(),
        };
        let tone = match row.status {
            Some(200..400) => "good",
            Some(400..500) => "warn",
            Some(_) => "bad",
            None => "dim",
        };
        let status = row.status.map(|status| status.to_string());
        Self {
            at: When::new(row.at, now),
            who: names.get(&actor).cloned().unwrap_or(actor),
            action: row.action.into_owned(),
            target: row.target.as_deref().unwrap_or_default().to_owned(),
            what,
            result: [status, row.code].into_iter().flatten().collect::<Vec<_>>().join(" "),
            tone,
            took: row.duration_us.map(duration).unwrap_or_default(),
        }
    }
}

/// `GET /audit`.
pub(super) async fn show(State(state): State<AdminState>, _: SignedIn, Asked(query): Asked) -> Reply {
    let org = organization(&state).await?;
    let form = typed(&query);
    state.audit.flush().await;
    let rows = state.store.audit(org, &filter(&form)?, &piece(query.one("after"))).await?;
    let keys = state.store.keys(org, &piece(None)).await?;
    let names = keys.items.into_iter().map(|key| (key.id.to_string(), key.name)).collect();
    let now = state.clock.now();
    let next = rows.next.map(|after| further(&form, &after));
    let records = rows.items.into_iter().map(|row| RecordLine::new(row, &names, now)).collect();
    Ok(html(&AuditPage { shell: Shell::new("Audit", "audit"), filter: form, records, next }))
}

fn typed(query: &Fields) -> FilterForm {
    let text = |name| query.one(name).unwrap_or_default().to_owned();
    FilterForm {
        key: text("key"),
        target: text("target"),
        account: text("account"),
        status: text("status"),
        since: text("since"),
        until: text("until"),
    }
}

fn filter(form: &FilterForm) -> Result<AuditFilter, Problem> {
    Ok(AuditFilter {
        key: value(&form.key, "Key is an id such as key_01…", |text| text.parse().ok())?,
        target: value(&form.target, "", |text| Some(text.to_owned()))?,
        account: value(&form.account, "Account is an id such as acc_01…", |text| text.parse().ok())?,
        since: value(&form.since, "Since is a day such as 2026-11-20.", day)?,
        // A person who says "until Friday" means all of Friday.
        until: value(&form.until, "Until is a day such as 2026-11-20.", |text| {
            day(text).map(|day| day.after(Duration::from_secs(24 * 60 * 60)))
        })?,
        status: value(&form.status, "Status is a number such as 403.", |text| text.parse().ok())?,
    })
}

fn value<T>(text: &str, words: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Problem> {
    match text {
        "" => Ok(None),
        text => read(text).map(Some).ok_or_else(|| Problem::bad_request(words)),
    }
}

fn day(text: &str) -> Option<Timestamp> {
    Timestamp::parse(&format!("{text}T00:00:00Z")).ok()
}

fn further(form: &FilterForm, after: &str) -> String {
    let query = [
        ("key", form.key.as_str()),
        ("target", &form.target),
        ("account", &form.account),
        ("status", &form.status),
        ("since", &form.since),
        ("until", &form.until),
        ("after", after),
    ];
    link("/audit", &query)
}

/// A detail as text: `provider: sandbox, scopes: ["Mail.Read"]`.
fn told(detail: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match detail {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect::<Vec<_>>().join(", ")
        }
        other => text(other),
    }
}

fn duration(micros: i64) -> String {
    match micros {
        ..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_reads_what_was_typed() {
        let form = typed(&Fields::parse(b"status=403&since=2026-11-20&until=2026-11-20&target=crm"));
        let read = filter(&form).unwrap();
        assert_eq!(read.status, Some(403));
        assert_eq!(read.until.unwrap().since(read.since.unwrap()), Duration::from_secs(86_400));
        assert_eq!(
            further(&form, "aud_1"),
            "/audit?target=crm&status=403&since=2026-11-20&until=2026-11-20&after=aud_1"
        );
        assert!(filter(&FilterForm { key: "ada".into(), ..FilterForm::default() }).is_err());
    }

    #[test]
    fn details_are_text() {
        let detail = serde_json::json!({ "provider": "sandbox", "reconnected": true });
        assert_eq!(told(&detail), "provider: sandbox, reconnected: true");
        assert_eq!(told(&serde_json::json!([1])), "[1]");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(900), "900 µs");
        assert_eq!(duration(12_345), "12 ms");
        assert_eq!(duration(2_340_000), "2.3 s");
    }
}

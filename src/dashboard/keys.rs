//! Agent keys, and what each may use.

use std::collections::BTreeMap;
use std::time::Duration;

use askama::Template;
use axum::extract::{Path, State};
use ipnet::IpNet;

use crate::access::{AccessError, AgentKey, NewKey};
use crate::admin::AdminState;
use crate::admin::auth::SignedIn;
use crate::clock::Timestamp;
use crate::config::RateLimit;
use crate::ids::{KeyId, OrgId};
use crate::store::{GrantAccess, KeyRow};

use super::fields::{Asked, Posted};
use super::page::{Reply, Shell, html, link, organization, piece, see_other};
use super::problem::Problem;
use super::targets::origins;
use super::when::When;
use super::words::{self, Tone};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Template)]
#[template(path = "keys.html")]
pub(super) struct KeysPage {
    pub shell: Shell,
    pub keys: Vec<KeyLine>,
    pub next: Option<String>,
}

#[derive(Template)]
#[template(path = "key.html")]
pub(super) struct KeyPage {
    pub shell: Shell,
    pub key: KeyLine,
    pub switches: Vec<Switch>,
    pub next: Option<String>,
    /// Where the access form goes back to.
    pub after: String,
}

#[derive(Template)]
#[template(path = "new_key.html")]
pub(super) struct NewKeyPage {
    pub shell: Shell,
    pub key: KeyLine,
    /// The one moment at which it is shown.
    pub secret: String,
    pub proxy_url: String,
    /// Until when the key before it counts.
    pub old_until: Option<When>,
}

/// One key.
pub(super) struct KeyLine {
    pub id: String,
    pub name: String,
    pub prefix: String,
    pub state: (Tone, &'static str),
    pub usable: bool,
    pub revocable: bool,
    pub created: When,
    pub last_used: Option<When>,
    pub expires: Option<When>,
    pub addresses: Vec<String>,
    pub limits: Option<String>,
    pub old_until: Option<When>,
}

/// One target's switch on a key's page.
pub(super) struct Switch {
    pub slug: String,
    pub name: String,
    pub origin: String,
    /// `none`, `read`, `write`.
    pub access: &'static str,
}

impl KeyLine {
    /// A key at this moment.
    pub fn new(row: &KeyRow, now: Timestamp) -> Self {
        let expired = row.expires_at.is_some_and(|end| now >= end);
        let state = match (row.revoked_at, expired) {
            (Some(_), _) => ("bad", "Revoked"),
            (None, true) => ("warn", "Expired"),
            (None, false) => ("good", "Active"),
        };
        let when = |at: Timestamp| When::new(at, now);
        Self {
            id: row.id.to_string(),
            name: row.name.clone(),
            prefix: row.prefix.clone(),
            state,
            usable: row.revoked_at.is_none() && !expired,
            revocable: row.revoked_at.is_none(),
            created: when(row.created_at),
            last_used: row.last_used_at.map(when),
            expires: row.expires_at.map(when),
            addresses: row.allowed_ips.iter().map(ToString::to_string).collect(),
            limits: row.rate_limit.map(|limit| limit.to_string()),
            old_until: row.previous.filter(|(_, until)| *until > now).map(|(_, until)| when(until)),
        }
    }
}

/// `GET /keys`.
pub(super) async fn list(State(state): State<AdminState>, _: SignedIn, Asked(query): Asked) -> Reply {
    let org = organization(&state).await?;
    let rows = state.store.keys(org, &piece(query.one("after"))).await?;
    let now = state.clock.now();
    Ok(html(&KeysPage {
        shell: Shell::new("Agent keys", "keys").flash(query.one("done")),
        keys: rows.items.iter().map(|row| KeyLine::new(row, now)).collect(),
        next: rows.next.map(|after| link("/keys", &[("after", &after)])),
    }))
}

/// `POST /keys`: makes a key and shows it, this once. No redirect: the key would have to be kept for the next page.
pub(super) async fn create(State(state): State<AdminState>, user: SignedIn, Posted(form): Posted) -> Reply {
    let org = organization(&state).await?;
    let new = NewKey {
        name: form.one("name").unwrap_or_default().to_owned(),
        expires_at: life(form.one("life"))?.map(|span| state.clock.now().after(span)),
        allowed_ips: addresses(&form.lines("addresses"))?,
        rate_limit: limits(form.one("requests"), form.one("concurrent"))?,
    };
    let (row, key) = state.access.create_key(org, new, &user.actor).await?;
    Ok(reveal(&state, "Key created", &row, &key))
}

/// `POST /keys/{id}/rotate`: a new secret for the key, shown this once.
pub(super) async fn rotate(
    State(state): State<AdminState>,
    user: SignedIn,
    Path(id): Path<String>,
    Posted(form): Posted,
) -> Reply {
    let org = organization(&state).await?;
    let grace = life(form.one("grace"))?.unwrap_or_default();
    let (row, key) = state.access.rotate_key(org, key_id(&id)?, grace, &user.actor).await?;
    Ok(reveal(&state, "Key rotated", &row, &key))
}

/// `POST /keys/{id}/revoke`.
pub(super) async fn revoke(State(state): State<AdminState>, user: SignedIn, Path(id): Path<String>) -> Reply {
    let org = organization(&state).await?;
    state.access.revoke_key(org, key_id(&id)?, &user.actor).await?;
    see_other("/keys?done=key_revoked", &[])
}

/// `GET /keys/{id}`.
pub(super) async fn show(
    State(state): State<AdminState>,
    _: SignedIn,
    Path(id): Path<String>,
    Asked(query): Asked,
) -> Reply {
    let org = organization(&state).await?;
    let row = key(&state, org, key_id(&id)?).await?;
    let grants: BTreeMap<String, GrantAccess> =
        state.store.grants_of_key(org, row.id).await?.into_iter().map(|grant| (grant.slug, grant.access)).collect();
    let after = query.one("after").unwrap_or_default();
    let targets = state.store.targets(org, &piece(query.one("after"))).await?;
    let origins = origins(&state, org, &targets.items).await?;
    let switches = targets.items.into_iter().zip(origins).map(|(target, origin)| Switch {
        access: words::access(grants.get(&target.slug).copied()),
        origin,
        name: target.name,
        slug: target.slug,
    });
    let path = format!("/keys/{}", row.id);
    Ok(html(&KeyPage {
        shell: Shell::new(row.name.clone(), "keys").flash(query.one("done")),
        key: KeyLine::new(&row, state.clock.now()),
        switches: switches.collect(),
        next: targets.next.map(|next| link(&path, &[("after", &next)])),
        after: after.to_owned(),
    }))
}

/// `POST /keys/{id}/access`: applies the switches that were moved. Each says what it was when the page was made, so an
/// old page does not undo what somebody else has changed meanwhile.
pub(super) async fn save_access(
    State(state): State<AdminState>,
    user: SignedIn,
    Path(id): Path<String>,
    Posted(form): Posted,
) -> Reply {
    let org = organization(&state).await?;
    let id = key_id(&id)?;
    let was: BTreeMap<&str, &str> = form.prefixed("was.").collect();
    for (slug, wanted) in form.prefixed("access.").filter(|(slug, wanted)| was.get(slug) != Some(wanted)) {
        let access = match wanted {
            "none" => None,
            "read" => Some(GrantAccess::Read),
            "write" => Some(GrantAccess::Write),
            _ => return Err(Problem::bad_request("Access is none, read, or read and write.")),
        };
        match access {
            Some(access) => drop(state.access.put_grant(org, id, slug, access, &user.actor).await?),
            // Gone already is what was wanted.
            None => match state.access.delete_grant(org, id, slug, &user.actor).await {
                Ok(()) | Err(AccessError::TargetNotFound) => {}
                Err(error) => return Err(error.into()),
            },
        }
    }
    let after = form.one("after").unwrap_or_default();
    see_other(&link(&format!("/keys/{id}"), &[("after", after), ("done", "access_saved")]), &[])
}

fn reveal(state: &AdminState, title: &str, row: &KeyRow, key: &AgentKey) -> axum::response::Response {
    let line = KeyLine::new(row, state.clock.now());
    html(&NewKeyPage {
        shell: Shell::new(title, "keys"),
        secret: key.expose().to_owned(),
        proxy_url: state.proxy_url.clone(),
        old_until: row
            .previous
            .filter(|(_, until)| *until > state.clock.now())
            .map(|(_, until)| When::new(until, state.clock.now())),
        key: line,
    })
}

async fn key(state: &AdminState, org: OrgId, id: KeyId) -> Result<KeyRow, Problem> {
    state.store.key(org, id).await?.ok_or_else(|| AccessError::KeyNotFound.into())
}

fn key_id(text: &str) -> Result<KeyId, Problem> {
    text.parse().map_err(|_| AccessError::KeyNotFound.into())
}

/// A span from a list: the forms offer these and no others.
fn life(choice: Option<&str>) -> Result<Option<Duration>, Problem> {
    Ok(match choice {
        None | Some("never" | "now") => None,
        Some("hour") => Some(DAY / 24),
        Some("day") => Some(DAY),
        Some("week") => Some(7 * DAY),
        Some("month") => Some(30 * DAY),
        Some("quarter") => Some(90 * DAY),
        Some("year") => Some(365 * DAY),
        Some(_) => return Err(Problem::bad_request("Choose one of the offered spans.")),
    })
}

/// Networks, or single addresses.
fn addresses(lines: &[&str]) -> Result<Vec<IpNet>, Problem> {
    let read = |line: &&str| line.parse().or_else(|_| line.parse().map(|ip: std::net::IpAddr| IpNet::from(ip)));
    let wrong =
        |line: &&str| Problem::bad_request(format!("{line} is no address and no network such as 192.0.2.0/24."));
    lines.iter().map(|line| read(line).map_err(|_| wrong(line))).collect()
}

/// Requests a minute, and at once.
fn limits(requests: Option<&str>, concurrent: Option<&str>) -> Result<Option<RateLimit>, Problem> {
    if requests.is_none() && concurrent.is_none() {
        return Ok(None);
    }
    let read = |text: Option<&str>| text.map(str::parse).transpose();
    let numbers = read(requests).and_then(|requests| Ok((requests, read(concurrent)?)));
    let (requests, concurrent) = numbers.map_err(|_| Problem::bad_request("A limit is a whole number."))?;
    RateLimit::new(requests, None, concurrent).map(Some).map_err(Problem::bad_request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_be_networks_or_single() {
        let read = addresses(&["192.0.2.7", "2001:db8::/32"]).unwrap();
        assert_eq!(read[0].to_string(), "192.0.2.7/32");
        assert_eq!(read[1].to_string(), "2001:db8::/32");
        assert!(addresses(&["example.com"]).is_err());
    }

    #[test]
    fn limits_are_whole_numbers_or_absent() {
        assert_eq!(limits(None, None).unwrap(), None);
        let read = limits(Some("600"), Some("10")).unwrap().unwrap();
        assert_eq!(read.to_string(), "600 requests per 1m, 10 at once");
        for (requests, concurrent) in [(Some("0"), None), (None, Some("many")), (Some("-1"), None), (Some("1e3"), None)]
        {
            assert!(limits(requests, concurrent).is_err(), "{requests:?} {concurrent:?}");
        }
    }

    #[test]
    fn only_offered_spans_are_taken() {
        assert_eq!(life(Some("week")).unwrap(), Some(7 * DAY));
        assert_eq!(life(Some("never")).unwrap(), None);
        assert!(life(Some("9999999999")).is_err());
    }
}

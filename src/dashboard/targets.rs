//! What agents address: managed targets to look at, static ones to add and delete.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::{Path, State};

use crate::access::NewTarget;
use crate::admin::AdminState;
use crate::admin::auth::SignedIn;
use crate::config::{Protection, StaticCredential, Transport};
use crate::ids::{AccountId, OrgId};
use crate::secret::Secret;
use crate::store::{TargetKind, TargetRow};

use super::fields::{Asked, Fields, Posted};
use super::page::{Reply, Shell, html, link, organization, piece, see_other};
use super::problem::Problem;

#[derive(Template)]
#[template(path = "targets.html")]
pub(super) struct TargetsPage {
    pub shell: Shell,
    pub targets: Vec<TargetCard>,
    pub next: Option<String>,
}

/// One target.
pub(super) struct TargetCard {
    pub slug: String,
    pub name: String,
    pub proxy_url: String,
    /// `Managed by Microsoft 365 · ada@example.com`.
    pub origin: String,
    /// Only of a static target.
    pub details: Option<StaticDetails>,
}

/// What an administrator gave.
pub(super) struct StaticDetails {
    pub base_url: String,
    pub credential: String,
    pub fence: Vec<String>,
}

/// `GET /targets`.
pub(super) async fn show(State(state): State<AdminState>, _: SignedIn, Asked(query): Asked) -> Reply {
    let org = organization(&state).await?;
    let rows = state.store.targets(org, &piece(query.one("after"))).await?;
    let origins = origins(&state, org, &rows.items).await?;
    let cards = rows.items.into_iter().zip(origins).map(|(row, origin)| TargetCard {
        proxy_url: format!("{}/proxy/{}", state.proxy_url, row.slug),
        slug: row.slug,
        name: row.name,
        origin,
        details: match row.kind {
            TargetKind::Static { base_url, credential_kind, fence, .. } => {
                Some(StaticDetails { base_url, credential: credential_kind, fence })
            }
            TargetKind::Managed { .. } | TargetKind::System => None,
        },
    });
    Ok(html(&TargetsPage {
        shell: Shell::new("Targets", "targets").flash(query.one("done")),
        targets: cards.collect(),
        next: rows.next.map(|after| link("/targets", &[("after", &after)])),
    }))
}

/// `POST /targets`.
pub(super) async fn create(State(state): State<AdminState>, user: SignedIn, Posted(form): Posted) -> Reply {
    let org = organization(&state).await?;
    let slug = form.one("slug").unwrap_or_default();
    let new = NewTarget {
        slug: slug.to_owned(),
        name: form.one("name").unwrap_or(slug).to_owned(),
        base_url: form.one("base_url").unwrap_or_default().to_owned(),
        credential: credential(&form)?,
        fence: form.lines("fence").into_iter().map(str::to_owned).collect(),
        protection: Protection::default(),
        transport: Transport::default(),
    };
    state.access.create_target(org, new, &user.actor).await?;
    see_other("/targets?done=target_created", &[])
}

/// `POST /targets/{slug}/delete`.
pub(super) async fn delete(State(state): State<AdminState>, user: SignedIn, Path(slug): Path<String>) -> Reply {
    let org = organization(&state).await?;
    state.access.delete_target(org, &slug, &user.actor).await?;
    see_other("/targets?done=target_deleted", &[])
}

/// Where each target comes from, in words. Each account is read once.
pub(super) async fn origins(state: &AdminState, org: OrgId, targets: &[TargetRow]) -> Result<Vec<String>, Problem> {
    let mut people: BTreeMap<AccountId, String> = BTreeMap::new();
    let mut origins = Vec::with_capacity(targets.len());
    for target in targets {
        origins.push(match &target.kind {
            TargetKind::Static { .. } => "Static".to_owned(),
            TargetKind::System => "From gateway.toml".to_owned(),
            TargetKind::Managed { account, provider, .. } => {
                if !people.contains_key(account) {
                    let row = state.store.account(org, *account).await?;
                    let who = row.map(|row| row.email.or(row.display_name).unwrap_or(row.subject));
                    people.insert(*account, who.unwrap_or_default());
                }
                let name = state.catalog.provider(provider).map_or(provider.as_str(), |found| found.name.as_str());
                match people.get(account).map_or("", String::as_str) {
                    "" => format!("Managed by {name}"),
                    who => format!("Managed by {name} · {who}"),
                }
            }
        });
    }
    Ok(origins)
}

/// The credential that the form describes. Only the fields of the chosen kind count.
fn credential(form: &Fields) -> Result<StaticCredential, Problem> {
    let text = |name: &str, what: &str| {
        let given = form.one(name).map(str::to_owned);
        given.ok_or_else(|| Problem::bad_request(format!("The credential's {what} is missing.")))
    };
    let secret = |name: &str, what: &str| text(name, what).map(Secret::new);
    Ok(match form.one("credential").unwrap_or("none") {
        "bearer" => StaticCredential::Bearer(secret("token", "token")?),
        "basic" => StaticCredential::Basic {
            username: text("username", "user name")?,
            // Some APIs take a key as the user name, and no password.
            password: Secret::new(form.one("password").unwrap_or_default().to_owned()),
        },
        "header" => StaticCredential::Headers(BTreeMap::from([(
            text("header_name", "header name")?,
            secret("header_value", "header value")?,
        )])),
        "query" => StaticCredential::Query {
            name: text("query_name", "parameter name")?,
            value: secret("query_value", "parameter value")?,
        },
        "none" => StaticCredential::None,
        _ => return Err(Problem::bad_request("Choose one of the offered kinds of credential.")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_kind_counts() {
        let form = Fields::parse(b"credential=bearer&token=abc&username=x&password=y");
        assert!(matches!(credential(&form).unwrap(), StaticCredential::Bearer(token) if token.expose() == "abc"));
        let form = Fields::parse(b"credential=header&header_name=X-Api-Key&header_value=v");
        let StaticCredential::Headers(headers) = credential(&form).unwrap() else { panic!("not headers") };
        assert_eq!(headers["X-Api-Key"].expose(), "v");
        assert!(credential(&Fields::parse(b"credential=query&query_name=key")).is_err());
        assert!(credential(&Fields::parse(b"credential=magic")).is_err());
        assert!(matches!(credential(&Fields::default()), Ok(StaticCredential::None)));
    }
}

//! The end of an account: first what would go with it, then, confirmed, the deed.

use askama::Template;
use axum::extract::{Path, State};

use crate::admin::AdminState;
use crate::admin::auth::SignedIn;
use crate::ids::{AccountId, OrgId};
use crate::store::AccountRow;

use super::fields::Posted;
use super::integrations::{AccountCard, account_id};
use super::page::{Reply, Shell, html, organization, piece, see_other};
use super::problem::Problem;

#[derive(Template)]
#[template(path = "disconnect.html")]
pub(super) struct DisconnectPage {
    pub shell: Shell,
    pub account: AccountCard,
    pub grants: Vec<GrantLine>,
    /// There are more keys than were looked at.
    pub partial: bool,
}

/// One grant that would go.
pub(super) struct GrantLine {
    pub key: String,
    pub prefix: String,
    pub target: String,
}

/// `GET /accounts/{id}/disconnect`.
pub(super) async fn ask(State(state): State<AdminState>, _: SignedIn, Path(id): Path<String>) -> Reply {
    let org = organization(&state).await?;
    let row = account(&state, org, account_id(&id)?).await?;
    let (grants, partial) = grants_of(&state, org, &row).await?;
    let account = AccountCard::new(state.accounts.view(row), &state.proxy_url, state.clock.now());
    let shell = Shell::new("Disconnect account", "integrations");
    Ok(html(&DisconnectPage { shell, account, grants, partial }))
}

/// `POST /accounts/{id}/disconnect`.
pub(super) async fn confirmed(
    State(state): State<AdminState>,
    user: SignedIn,
    Path(id): Path<String>,
    Posted(form): Posted,
) -> Reply {
    let org = organization(&state).await?;
    let confirm = form.one("confirm") == Some("yes");
    state.accounts.disconnect(org, account_id(&id)?, confirm, user.actor).await?;
    see_other("/integrations?done=disconnected", &[])
}

async fn account(state: &AdminState, org: OrgId, id: AccountId) -> Result<AccountRow, Problem> {
    let found = state.store.account(org, id).await?;
    found.ok_or_else(|| Problem::not_found("account_not_found", "There is no such account."))
}

/// The grants to an account's targets, among the first keys; and whether there are more keys.
async fn grants_of(state: &AdminState, org: OrgId, account: &AccountRow) -> Result<(Vec<GrantLine>, bool), Problem> {
    let keys = state.store.keys(org, &piece(None)).await?;
    let mut lines = Vec::new();
    for key in keys.items.iter().filter(|key| key.revoked_at.is_none()) {
        for grant in state.store.grants_of_key(org, key.id).await? {
            if let Some(target) = account.targets.iter().find(|target| target.id == grant.target) {
                lines.push(GrantLine {
                    key: key.name.clone(),
                    prefix: key.prefix.clone(),
                    target: target.name.clone(),
                });
            }
        }
    }
    Ok((lines, keys.next.is_some()))
}

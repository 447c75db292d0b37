//! A target as the API shows it: where it goes and how it is guarded, put together from the row, the catalog, the account
//! and `gateway.toml`. Never its secret.

use std::collections::HashMap;
use std::num::NonZeroU32;

use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::Provider;
use crate::clock::Timestamp;
use crate::config::{Protection, StaticCredential, Transport};
use crate::ids::{AccountId, OrgId};
use crate::store::{Captures, TargetKind, TargetRow};

use super::AdminState;
use super::error::ApiError;

/// A target. Its secret is never shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Target)]
pub(super) struct TargetView {
    /// `/proxy/{slug}/…`.
    slug: String,
    /// For people.
    name: String,
    /// Where it comes from.
    kind: Kind,
    /// Where requests go.
    base_url: String,
    /// What goes into a request.
    credential: CredentialView,
    /// What may be reached at all: `GET /me/**`.
    fence: Vec<String>,
    /// Requests at once, from one instance; `null`: any number.
    #[schema(value_type = Option<u32>)]
    concurrency: Option<NonZeroU32>,
    /// Its secret is hidden in the bodies of answers.
    reflect_guard: bool,
    /// HTTP/2 is not offered to it.
    http1_only: bool,
    /// WebSocket handshakes are forwarded.
    websocket: bool,
    /// Answers keep their `Set-Cookie`.
    set_cookie: bool,
    /// Managed: its account.
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<AccountId>,
    /// Managed: the account's provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    /// Managed: the slice of the provider's API.
    #[serde(skip_serializing_if = "Option::is_none")]
    capability: Option<String>,
    /// Made at.
    created_at: Timestamp,
    /// Last change.
    updated_at: Timestamp,
}

impl TargetView {
    /// `secret`: there is one of the operator's own, which is guarded unless that is switched off.
    fn protected(&mut self, protection: Protection, secret: bool) {
        self.concurrency = protection.concurrency;
        self.reflect_guard = protection.reflect_guard.unwrap_or(secret);
    }

    fn transport(&mut self, transport: Transport) {
        self.http1_only = transport.http1_only;
        self.websocket = transport.websocket;
        self.set_cookie = transport.set_cookie;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TargetKind)]
enum Kind {
    /// Made and removed with an account.
    Managed,
    /// Made by an administrator.
    Static,
    /// In `gateway.toml`.
    System,
}

/// The kind of a credential, without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CredentialKind)]
struct CredentialView {
    /// `account` (managed: the account's access token), `bearer`, `basic`, `headers`, `query`, `none`.
    kind: String,
}

/// Shows rows; remembers the accounts that it had to ask for.
pub(super) struct Shown<'a> {
    state: &'a AdminState,
    org: OrgId,
    captures: HashMap<AccountId, Captures>,
}

impl<'a> Shown<'a> {
    pub(super) fn new(state: &'a AdminState, org: OrgId) -> Self {
        Self { state, org, captures: HashMap::new() }
    }

    pub(super) async fn show(&mut self, row: TargetRow) -> Result<TargetView, ApiError> {
        let mut view = TargetView {
            slug: row.slug,
            name: row.name,
            kind: Kind::Static,
            base_url: String::new(),
            credential: CredentialView { kind: String::new() },
            fence: Vec::new(),
            concurrency: None,
            reflect_guard: false,
            http1_only: false,
            websocket: false,
            set_cookie: false,
            account_id: None,
            provider: None,
            capability: None,
            created_at: row.created_at,
            updated_at: row.updated_at,
        };
        match row.kind {
            TargetKind::Static { base_url, credential_kind, credential, fence, protection, transport } => {
                view.transport(transport);
                view.base_url = base_url;
                view.credential.kind = credential_kind;
                view.fence = fence;
                view.protected(protection, credential.is_some());
            }
            TargetKind::System => {
                view.kind = Kind::System;
                // Another instance's newer gateway.toml may know a slug that this one's doesn't.
                if let Some(target) = self.state.access.system_target(&view.slug) {
                    view.base_url.clone_from(&target.base_url);
                    view.credential.kind = kind_of(&target.credential).to_owned();
                    view.fence.clone_from(&target.fence);
                    view.protected(target.protection, !matches!(target.credential, StaticCredential::None));
                    view.transport(target.transport);
                }
            }
            TargetKind::Managed { account, provider, capability } => {
                view.kind = Kind::Managed;
                view.credential.kind = "account".to_owned();
                let state = self.state;
                let known = state.catalog.provider(&provider);
                if let Some((provider, known)) = known.and_then(|p| Some((p, p.capabilities.get(&capability)?))) {
                    view.base_url = self.filled(provider, &known.base_url, account).await?;
                    view.fence.clone_from(&known.fence_text);
                    view.protected(known.protection, false);
                    view.transport(known.transport);
                }
                view.account_id = Some(account);
                view.provider = Some(provider);
                view.capability = Some(capability);
            }
        }
        Ok(view)
    }

    /// A provider's URL with the values that requests of this account go by.
    async fn filled(&mut self, provider: &Provider, url: &str, account: AccountId) -> Result<String, ApiError> {
        if !url.contains('{') {
            return Ok(url.to_owned());
        }
        if !self.captures.contains_key(&account) {
            let row = self.state.store.account(self.org, account).await?;
            self.captures.insert(account, row.map(|row| row.captures).unwrap_or_default());
        }
        // A value that is missing leaves the target without an address; the name of what is missing says most.
        Ok(provider.fill(url, &self.captures[&account]).unwrap_or_else(|_| url.to_owned()))
    }
}

pub(super) fn kind_of(credential: &StaticCredential) -> &'static str {
    match credential {
        StaticCredential::Bearer(_) => "bearer",
        StaticCredential::Basic { .. } => "basic",
        StaticCredential::Headers(_) => "headers",
        StaticCredential::Query { .. } => "query",
        StaticCredential::None => "none",
    }
}

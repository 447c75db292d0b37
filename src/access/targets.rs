//! The acts that change static targets. Managed ones come and go with their account, system ones with `gateway.toml`.

use std::num::NonZeroU32;

use serde_json::json;

use crate::audit::Actor;
use crate::catalog::Base;
use crate::config::{Protection, StaticCredential, Transport};
use crate::ids::{OrgId, TargetId};
use crate::store::{self, TargetKind, TargetRow};

use super::acts::checked_name;
use super::{Access, AccessError, compile, credential};

/// A static target to be made.
pub struct NewTarget {
    /// `[a-z0-9-]{1,96}`.
    pub slug: String,
    /// For people.
    pub name: String,
    /// Base URL.
    pub base_url: String,
    /// Credential.
    pub credential: StaticCredential,
    /// Patterns; empty: `/**`.
    pub fence: Vec<String>,
    /// How it is looked after.
    pub protection: Protection,
    /// How it is spoken to.
    pub transport: Transport,
}

/// Changes to a static target; `None` leaves a field.
#[derive(Default)]
pub struct TargetChange {
    /// New name.
    pub name: Option<String>,
    /// New base URL; needs the credential again (a stored secret is never sent somewhere new unseen).
    pub base_url: Option<String>,
    /// New credential.
    pub credential: Option<StaticCredential>,
    /// New fence.
    pub fence: Option<Vec<String>>,
    /// New number of requests at once (`Some(None)`: any).
    pub concurrency: Option<Option<NonZeroU32>>,
    /// Whether its secret is hidden in the bodies of answers.
    pub reflect_guard: Option<bool>,
    /// Whether HTTP/2 is not offered.
    pub http1_only: Option<bool>,
    /// Whether WebSocket handshakes are forwarded.
    pub websocket: Option<bool>,
    /// Whether answers keep their `Set-Cookie`.
    pub set_cookie: Option<bool>,
}

fn checked_base(url: &str) -> Result<String, AccessError> {
    Base::parse(url).map(|base| base.url()).map_err(|problem| AccessError::BadRequest(format!("base_url: {problem}")))
}

fn checked_fence(fence: &[String]) -> Result<Vec<String>, AccessError> {
    compile::open_fence(fence)
        .map(|fence| fence.inside_text)
        .map_err(|problem| AccessError::BadRequest(format!("fence: {problem}")))
}

fn checked_protection(protection: Protection) -> Result<Protection, AccessError> {
    let range = Protection::CONCURRENCY;
    if protection.concurrency.is_some_and(|concurrency| !range.contains(&concurrency.get())) {
        let why = format!("concurrency: a number from {} to {} is wanted", range.start(), range.end());
        return Err(AccessError::BadRequest(why));
    }
    Ok(protection)
}

fn checked_credential(credential: &StaticCredential) -> Result<(), AccessError> {
    let checked = credential::injection(credential);
    checked.map(drop).map_err(|problem| AccessError::BadRequest(format!("credential: {problem:#}")))
}

impl Access {
    /// Makes a static target.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn create_target(&self, org: OrgId, new: NewTarget, actor: &Actor) -> Result<TargetRow, AccessError> {
        let slug_ok = (1..=96).contains(&new.slug.len())
            && new.slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !slug_ok {
            return Err(AccessError::BadRequest("slug: 1 to 96 characters of a-z, 0-9 and -".to_owned()));
        }
        checked_credential(&new.credential)?;
        let id = TargetId::new();
        let now = self.clock.now();
        let target = TargetRow {
            id,
            organization: Some(org),
            slug: new.slug,
            name: checked_name(&new.name)?,
            kind: TargetKind::Static {
                base_url: checked_base(&new.base_url)?,
                credential_kind: credential::kind(&new.credential).to_owned(),
                credential: credential::seal(&self.vault, &id.to_string(), &new.credential)?,
                fence: checked_fence(&new.fence)?,
                protection: checked_protection(new.protection)?,
                transport: new.transport,
            },
            created_at: now,
            updated_at: now,
        };
        let record = self.record(org, actor, "target.created").target(&target.slug).into_row();
        match self.store.insert_target(&target, &record).await {
            Err(store::Error::Conflict) => return Err(AccessError::AlreadyExists(target.slug)),
            other => other?,
        }
        self.reload().await?;
        Ok(target)
    }

    async fn static_target(&self, org: OrgId, slug: &str) -> Result<TargetRow, AccessError> {
        let target = self.store.target(org, slug).await?.ok_or(AccessError::TargetNotFound)?;
        match target.kind {
            TargetKind::Static { .. } => Ok(target),
            TargetKind::Managed { .. } | TargetKind::System => Err(AccessError::ManagedTarget),
        }
    }

    /// Changes a static target.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn update_target(
        &self,
        org: OrgId,
        slug: &str,
        change: TargetChange,
        actor: &Actor,
    ) -> Result<TargetRow, AccessError> {
        let mut target = self.static_target(org, slug).await?;
        let id = target.id.to_string();
        let TargetKind::Static { base_url, credential_kind, credential, fence, protection, transport } =
            &mut target.kind
        else {
            return Err(AccessError::ManagedTarget);
        };
        let mut changed = Vec::new();
        if let Some(url) = change.base_url {
            let url = checked_base(&url)?;
            if url != *base_url && credential.is_some() && change.credential.is_none() {
                let why = "base_url: give the credential again; a stored one is not sent to another address";
                return Err(AccessError::BadRequest(why.to_owned()));
            }
            *base_url = url;
            changed.push("base_url");
        }
        if let Some(new) = change.credential {
            checked_credential(&new)?;
            *credential_kind = credential::kind(&new).to_owned();
            *credential = credential::seal(&self.vault, &id, &new)?;
            changed.push("credential");
        }
        if let Some(new) = change.fence {
            *fence = checked_fence(&new)?;
            changed.push("fence");
        }
        if let Some(concurrency) = change.concurrency {
            *protection = checked_protection(Protection { concurrency, ..*protection })?;
            changed.push("concurrency");
        }
        if let Some(reflect_guard) = change.reflect_guard {
            protection.reflect_guard = Some(reflect_guard);
            changed.push("reflect_guard");
        }
        if let Some(http1_only) = change.http1_only {
            transport.http1_only = http1_only;
            changed.push("http1_only");
        }
        if let Some(websocket) = change.websocket {
            transport.websocket = websocket;
            changed.push("websocket");
        }
        if let Some(set_cookie) = change.set_cookie {
            transport.set_cookie = set_cookie;
            changed.push("set_cookie");
        }
        if let Some(name) = change.name {
            target.name = checked_name(&name)?;
            changed.push("name");
        }
        target.updated_at = self.clock.now();
        let record = self.record(org, actor, "target.updated").target(slug).detail(json!({"changed": changed}));
        match self.store.update_target(&target, &record.into_row()).await {
            Err(store::Error::NotFound) => return Err(AccessError::TargetNotFound),
            other => other?,
        }
        self.reload().await?;
        Ok(target)
    }

    /// Deletes a static target and its grants.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn delete_target(&self, org: OrgId, slug: &str, actor: &Actor) -> Result<(), AccessError> {
        let target = self.static_target(org, slug).await?;
        let record = self.record(org, actor, "target.deleted").target(slug).into_row();
        if !self.store.delete_target(org, target.id, &record).await? {
            return Err(AccessError::TargetNotFound);
        }
        Ok(self.reload().await?)
    }
}

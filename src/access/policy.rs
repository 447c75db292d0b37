//! The immutable snapshot: who a key is, and what it may do.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use http::Method;
use ipnet::IpNet;
use tokio::sync::OwnedSemaphorePermit;

use crate::catalog::{Base, Inject, Patterns, Provider, Ready};
use crate::clock::Timestamp;
use crate::config::Transport;
use crate::ids::{AccountId, KeyId, OrgId, TargetId};
use crate::net::ClientTls;
use crate::store::{Captures, GrantAccess};

use super::keys::{BuildAsItIs, KeyHash, hash_presented};
use super::limits::{KeyLimit, Limited, Room};

/// Everything that decides a request.
#[derive(Default)]
pub struct Policy {
    pub(super) revision: i64,
    pub(super) agents: HashSet<ByHash, BuildAsItIs>,
    /// Of keys that have any, for the view after this one.
    pub(super) limits: HashMap<KeyId, Arc<KeyLimit>>,
    /// Of targets that take only so much, for the view after this one.
    pub(super) rooms: HashMap<TargetId, Arc<Room>>,
}

/// An agent, to be looked up by its hash: an entry is a pointer, so that those of many thousand keys are near.
pub(super) struct ByHash(pub(super) Arc<Agent>);

impl Borrow<KeyHash> for ByHash {
    fn borrow(&self) -> &KeyHash {
        &self.0.hash
    }
}

impl Hash for ByHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash.hash(state);
    }
}

impl PartialEq for ByHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.hash == other.0.hash
    }
}

impl Eq for ByHash {}

/// An identified agent: whoever shows the key with this hash. In its grace after a rotation, a key has a second one.
#[derive(Clone)]
pub struct Agent {
    pub(super) hash: KeyHash,
    /// Refused from then on.
    pub(super) until: Option<Timestamp>,
    /// Key id.
    pub key: KeyId,
    /// Organization.
    pub organization: OrgId,
    /// The key's name, for people.
    pub name: Box<str>,
    /// Addresses it may come from; empty: any.
    pub allowed_ips: Vec<IpNet>,
    pub(super) limit: Option<Arc<KeyLimit>>,
    pub(super) grants: HashMap<Arc<str>, Granted>,
}

#[derive(Clone)]
pub(super) struct Granted {
    pub(super) target: Arc<Target>,
    pub(super) access: GrantAccess,
}

/// A target, compiled.
pub struct Target {
    /// Id.
    pub id: TargetId,
    /// Slug.
    pub slug: Arc<str>,
    /// For people.
    pub name: Box<str>,
    /// Where requests go.
    pub base: Base,
    /// Which requests.
    pub fence: Arc<Fence>,
    /// What goes into a request.
    pub credential: Credential,
    /// Where it comes from.
    pub kind: TargetKind,
    /// How much it takes at once; `None`: anything.
    pub room: Option<Arc<Room>>,
    /// Whether what goes into a request is hidden in the body of its answer.
    pub reflect_guard: bool,
    /// How it is spoken to.
    pub transport: Transport,
    /// Trust and identity, where the target has its own.
    pub tls: Option<ClientTls>,
    /// The last change: a connection that was made before belongs to what the target was then.
    pub changed: Timestamp,
}

/// Which requests a target takes; shared by all targets of a capability.
#[derive(Debug, Default)]
pub struct Fence {
    /// What may be reached at all.
    pub inside: Patterns,
    /// As written.
    pub inside_text: Vec<String>,
    /// What counts as reading.
    pub read: Patterns,
    /// As written.
    pub read_text: Vec<String>,
}

impl Fence {
    /// Whether this access allows this request. `path` is raw, without a query.
    #[must_use]
    pub fn permits(&self, access: GrantAccess, method: &Method, path: &str) -> bool {
        self.inside.matches(method, path) && (access == GrantAccess::Write || self.read.matches(method, path))
    }
}

/// What goes into a request.
pub enum Credential {
    /// The access token of an account, put in like this.
    Account {
        /// The account.
        account: AccountId,
        /// How its token goes in.
        inject: Inject,
    },
    /// Ready.
    Ready(Arc<Ready>),
}

/// Where a target comes from.
pub enum TargetKind {
    /// Made with an account.
    Managed {
        /// Its provider.
        provider: Arc<Provider>,
        /// Capability id.
        capability: Box<str>,
        /// The account's inputs and captured values.
        captures: Captures,
    },
    /// Made by an administrator.
    Static,
    /// In `gateway.toml`.
    System,
}

/// An agent that has shown its key: only [`Policy::identify`] makes one.
pub struct Caller {
    agent: Arc<Agent>,
    from: IpAddr,
}

impl Deref for Caller {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.agent
    }
}

/// The right to send one request to one target: only [`Policy::verdict`] makes one.
#[derive(Clone)]
pub struct Grant {
    target: Arc<Target>,
    key: KeyId,
    access: GrantAccess,
    hash: KeyHash,
    from: IpAddr,
}

impl Grant {
    /// Where the request goes.
    #[must_use]
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }
    /// Whose request it is.
    #[must_use]
    pub fn key(&self) -> KeyId {
        self.key
    }
    /// How much the agent may do there.
    #[must_use]
    pub fn access(&self) -> GrantAccess {
        self.access
    }

    /// Whether it covers a WebSocket at this path: the target lets them through, and the grant may write, or the target's
    /// capability says with the method `WEBSOCKET` that this one is reading.
    #[must_use]
    pub fn permits_websocket(&self, path: &str) -> bool {
        let reading = || {
            let method = Method::from_bytes(b"WEBSOCKET");
            method.is_ok_and(|method| self.target.fence.read.matches(&method, path))
        };
        self.target.transport.websocket && (self.access == GrantAccess::Write || reading())
    }

    #[cfg(test)]
    pub(crate) fn to(target: Arc<Target>) -> Self {
        let from = IpAddr::from([127, 0, 0, 1]);
        Self { target, key: KeyId::new(), access: GrantAccess::Write, hash: KeyHash([0; 32]), from }
    }
}

/// Why an agent is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Absent, malformed, unknown, revoked, expired: all alike.
    InvalidKey,
    /// Not from this address.
    AddressNotAllowed,
}

/// What may happen to a request.
pub enum Verdict {
    /// It may be sent.
    Allow(Grant),
    /// There is no such target, or none that this key may know of.
    TargetNotFound,
    /// The fence or the access level refuses this method and path. Holds the target, for the record.
    NotPermitted(Arc<Target>),
}

impl Policy {
    /// The revision that this view was read at.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Who presents this key, from there, now.
    ///
    /// # Errors
    /// [`Reject`].
    pub fn identify(&self, presented: &[u8], from: IpAddr, now: Timestamp) -> Result<Caller, Reject> {
        let hash = hash_presented(presented).ok_or(Reject::InvalidKey)?;
        let agent = Arc::clone(self.agent(&hash, from, now)?);
        Ok(Caller { agent, from })
    }

    fn agent(&self, hash: &KeyHash, from: IpAddr, now: Timestamp) -> Result<&Arc<Agent>, Reject> {
        let ByHash(agent) = self.agents.get(hash).ok_or(Reject::InvalidKey)?;
        if agent.until.is_some_and(|until| now >= until) {
            return Err(Reject::InvalidKey);
        }
        let from = from.to_canonical();
        if !agent.allowed_ips.is_empty() && !agent.allowed_ips.iter().any(|net| net.contains(&from)) {
            return Err(Reject::AddressNotAllowed);
        }
        Ok(agent)
    }

    /// Whether a grant that was given before would be given now: its key still works from there, and still has the
    /// target with no less access.
    #[must_use]
    pub fn upholds(&self, grant: &Grant, now: Timestamp) -> bool {
        let Ok(agent) = self.agent(&grant.hash, grant.from, now) else { return false };
        agent.grants.get(&*grant.target.slug).is_some_and(|granted| {
            let as_much = grant.access == GrantAccess::Read || granted.access == GrantAccess::Write;
            granted.target.id == grant.target.id && as_much
        })
    }

    /// What may happen to this request. `path` is the raw path below the target: starts with `/`, no query.
    #[must_use]
    pub fn verdict(&self, agent: &Caller, slug: &str, method: &Method, path: &str) -> Verdict {
        let Some(granted) = agent.grants.get(slug) else {
            return Verdict::TargetNotFound;
        };
        let target = &granted.target;
        if !target.fence.permits(granted.access, method, path) {
            return Verdict::NotPermitted(Arc::clone(target));
        }
        let (target, key, access) = (Arc::clone(target), agent.key, granted.access);
        Verdict::Allow(Grant { target, key, access, hash: agent.hash, from: agent.from })
    }
}

impl Agent {
    /// Counts one request against the key's limits. What it answers is to be kept until the answer's last byte is gone:
    /// it takes up one of the key's places.
    ///
    /// # Errors
    /// [`Limited`].
    pub fn admit(&self) -> Result<Option<OwnedSemaphorePermit>, Limited> {
        self.limit.as_ref().map_or(Ok(None), |limit| limit.admit())
    }

    /// What this agent may use, by slug.
    #[must_use]
    pub fn targets(&self) -> Vec<(&Arc<Target>, GrantAccess)> {
        let mut targets: Vec<_> = self.grants.values().map(|granted| (&granted.target, granted.access)).collect();
        targets.sort_by(|a, b| a.0.slug.cmp(&b.0.slug));
        targets
    }
}

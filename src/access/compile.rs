//! Rows in, [`Policy`] out. Only what a grant can reach is compiled. A row that can't be used (its provider left the
//! catalog, its credential does not open) is left out with a warning: it must not stop the others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use anyhow::Context;

use crate::catalog::{Base, Catalog, Injection, Patterns, Provider, Ready};
use crate::clock::Clock;
use crate::config::{Protection, RateLimit, StaticCredential, SystemTarget, TargetTls, Transport};
use crate::ids::{AccountId, KeyId, TargetId};
use crate::net::ClientTls;
use crate::store::{self, PolicyAccount, PolicyRows, PolicyTarget};
use crate::vault::Vault;

use super::credential;
use super::keys::{BuildAsItIs, KeyHash};
use super::limits::{KeyLimit, Room};
use super::policy::{Agent, ByHash, Credential, Fence, Granted, Policy, Target, TargetKind};

/// What stays the same over all snapshots.
pub(super) struct Compiler {
    providers: HashMap<String, (Arc<Provider>, Fences)>,
    system: HashMap<String, System>,
    /// Of keys without limits of their own.
    per_key: Option<RateLimit>,
    clock: Clock,
}

/// A provider's fences, by capability.
type Fences = HashMap<String, Arc<Fence>>;

struct System {
    base: Base,
    fence: Arc<Fence>,
    ready: Arc<Ready>,
    protection: Protection,
    /// Whether there is a secret in what is injected.
    secret: bool,
    transport: Transport,
    tls: Option<ClientTls>,
}

impl Compiler {
    pub(super) fn new(
        catalog: &Catalog,
        system: &BTreeMap<String, SystemTarget>,
        per_key: Option<RateLimit>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let providers = catalog.iter().map(|provider| (provider.id.clone(), with_fences(provider))).collect();
        let system = system
            .iter()
            .map(|(slug, target)| {
                let compiled = compile_system(target).with_context(|| format!("gateway.toml: targets.{slug}"))?;
                Ok((slug.clone(), compiled))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { providers, system, per_key, clock })
    }

    /// `before` is the view that this one takes the place of: what its limits have counted goes on counting.
    #[expect(clippy::mutable_key_type, reason = "agents are looked up by their hash, which never changes")]
    pub(super) fn compile(&self, rows: PolicyRows, vault: &Vault, before: &Policy) -> Policy {
        let accounts: HashMap<AccountId, &PolicyAccount> = rows.accounts.iter().map(|row| (row.id, row)).collect();
        let rows_by_id: HashMap<TargetId, &PolicyTarget> = rows.targets.iter().map(|row| (row.id, row)).collect();
        let mut targets: HashMap<TargetId, Option<Arc<Target>>> = HashMap::new();
        let mut grants: HashMap<_, HashMap<Arc<str>, Granted>> = HashMap::new();
        for grant in rows.grants {
            let target = targets.entry(grant.target).or_insert_with(|| {
                let row = rows_by_id.get(&grant.target)?;
                match self.target(row, &accounts, vault, before) {
                    Ok(target) => Some(Arc::new(target)),
                    Err(problem) => {
                        tracing::warn!(
                            target.slug = row.slug,
                            problem = format!("{problem:#}"),
                            "a target can't be used"
                        );
                        None
                    }
                }
            });
            if let Some(target) = target {
                let granted = Granted { target: Arc::clone(target), access: grant.access };
                grants.entry(grant.key).or_default().insert(Arc::clone(&target.slug), granted);
            }
        }
        let mut agents = HashSet::with_capacity_and_hasher(rows.keys.len(), BuildAsItIs::default());
        let mut limits = HashMap::new();
        for key in rows.keys {
            let limit = self.limit(key.id, key.rate_limit, before);
            limits.extend(limit.clone().map(|limit| (key.id, limit)));
            let agent = Agent {
                hash: KeyHash(key.hash),
                until: key.expires_at,
                key: key.id,
                organization: key.organization,
                name: key.name.into(),
                allowed_ips: key.allowed_ips,
                limit,
                grants: grants.remove(&key.id).unwrap_or_default(),
            };
            if let Some((hash, until)) = key.previous {
                let until = key.expires_at.map_or(until, |end| end.min(until));
                let previous = Agent { hash: KeyHash(hash), until: Some(until), ..agent.clone() };
                agents.insert(ByHash(Arc::new(previous)));
            }
            agents.insert(ByHash(Arc::new(agent)));
        }
        let rooms = targets.into_values().flatten().filter_map(|target| Some((target.id, target.room.clone()?)));
        Policy { revision: rows.revision, agents, limits, rooms: rooms.collect() }
    }

    fn limit(&self, key: KeyId, own: Option<RateLimit>, before: &Policy) -> Option<Arc<KeyLimit>> {
        let numbers = own.or(self.per_key)?;
        let same = before.limits.get(&key).filter(|limit| limit.has(numbers));
        Some(same.map_or_else(|| Arc::new(KeyLimit::new(numbers, &self.clock)), Arc::clone))
    }

    fn target(
        &self,
        row: &PolicyTarget,
        accounts: &HashMap<AccountId, &PolicyAccount>,
        vault: &Vault,
        before: &Policy,
    ) -> anyhow::Result<Target> {
        let (mut tls, mut secret) = (None, false);
        let (base, fence, credential, kind, protection, transport) = match &row.kind {
            store::TargetKind::Managed { account, provider, capability } => {
                let (provider, fences) =
                    self.providers.get(provider).with_context(|| format!("no provider `{provider}` in the catalog"))?;
                let data = accounts.get(account).context("its account is gone")?;
                let slice = provider
                    .capabilities
                    .get(capability)
                    .with_context(|| format!("{} has no capability `{capability}`", provider.id))?;
                let url =
                    provider.fill(&slice.base_url, &data.captures).map_err(|problem| anyhow::anyhow!("{problem}"))?;
                let fence = fences.get(capability).cloned().unwrap_or_default();
                let credential = Credential::Account { account: *account, inject: provider.inject.clone() };
                let kind = TargetKind::Managed {
                    provider: Arc::clone(provider),
                    capability: capability.as_str().into(),
                    captures: data.captures.clone(),
                };
                (Base::parse(&url)?, fence, credential, kind, slice.protection, slice.transport)
            }
            store::TargetKind::Static { base_url, credential: sealed, fence, protection, transport, .. } => {
                secret = sealed.is_some();
                let injection = match sealed {
                    Some(sealed) => {
                        let row = row.id.to_string();
                        credential::injection(&credential::unseal(vault, &row, sealed)?)?
                    }
                    None => Injection::Headers(Vec::new()),
                };
                let fence = Arc::new(open_fence(fence)?);
                let credential = Credential::Ready(Arc::new(Ready::new(injection)));
                (Base::parse(base_url)?, fence, credential, TargetKind::Static, *protection, *transport)
            }
            store::TargetKind::System => {
                let system = self.system.get(&row.slug).context("not in gateway.toml any more")?;
                let credential = Credential::Ready(Arc::clone(&system.ready));
                tls.clone_from(&system.tls);
                secret = system.secret;
                let (base, fence) = (system.base.clone(), Arc::clone(&system.fence));
                (base, fence, credential, TargetKind::System, system.protection, system.transport)
            }
        };
        let (slug, name) = (row.slug.as_str().into(), row.name.as_str().into());
        let room = room(row.id, protection, before);
        let reflect_guard = protection.reflect_guard.unwrap_or(secret);
        let (id, changed) = (row.id, row.updated_at);
        Ok(Target { id, slug, name, base, fence, credential, kind, room, reflect_guard, transport, tls, changed })
    }
}

/// The one that the target had before, while it takes as many.
fn room(target: TargetId, protection: Protection, before: &Policy) -> Option<Arc<Room>> {
    let concurrency = protection.concurrency?;
    let same = before.rooms.get(&target).filter(|room| room.has(concurrency));
    Some(same.map_or_else(|| Arc::new(Room::new(concurrency)), Arc::clone))
}

fn with_fences(provider: &Arc<Provider>) -> (Arc<Provider>, Fences) {
    let fences = provider
        .capabilities
        .iter()
        .map(|(id, capability)| {
            let fence = Fence {
                inside: capability.fence.clone(),
                inside_text: capability.fence_text.clone(),
                read: capability.read.clone(),
                read_text: capability.read_text.clone(),
            };
            (id.clone(), Arc::new(fence))
        })
        .collect();
    (Arc::clone(provider), fences)
}

/// A fence without a capability: reading is `GET` and `HEAD`.
pub(super) fn open_fence(patterns: &[String]) -> anyhow::Result<Fence> {
    let inside_text = if patterns.is_empty() { vec!["/**".to_owned()] } else { patterns.to_vec() };
    let read_text = vec!["GET /**".to_owned(), "HEAD /**".to_owned()];
    Ok(Fence { inside: Patterns::parse(&inside_text)?, inside_text, read: Patterns::parse(&read_text)?, read_text })
}

fn compile_system(target: &SystemTarget) -> anyhow::Result<System> {
    Ok(System {
        base: Base::parse(&target.base_url).context("base_url")?,
        fence: Arc::new(open_fence(&target.fence).context("fence")?),
        ready: Arc::new(Ready::new(credential::injection(&target.credential).context("credential")?)),
        protection: target.protection,
        secret: !matches!(target.credential, StaticCredential::None),
        transport: target.transport,
        tls: target.tls.as_ref().map(compile_tls).transpose()?,
    })
}

fn compile_tls(tls: &TargetTls) -> anyhow::Result<ClientTls> {
    let authorities: Vec<_> = tls.authorities.iter().map(|path| path.as_path()).collect();
    let client = tls.client.as_ref().map(|files| (files.cert.as_path(), files.key.as_path()));
    ClientTls::new(&authorities, client).context("ca_file, client_cert, client_key")
}

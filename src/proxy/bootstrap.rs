//! `GET /bootstrap`: what an agent needs to know at the start of its work. `GET /verify`: whether its key works.

use std::collections::HashMap;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use serde::Serialize;

use super::refusal::Refusal;
use super::{Gateway, ReplyBody, call, fixed};
use crate::access::{Agent, Credential, Target, TargetKind};
use crate::audit::Receipt;
use crate::catalog::Capability;
use crate::clock::Timestamp;
use crate::ids::{AccountId, KeyId, OrgId};
use crate::net::Line;
use crate::store::{AccountRow, GrantAccess, KeyRow, OrganizationRow, Reason, Status};

#[derive(Serialize)]
struct Organization {
    id: OrgId,
    name: String,
}

#[derive(Serialize)]
struct Key {
    id: KeyId,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

#[derive(Serialize)]
struct Bootstrap {
    organization: Organization,
    key: Key,
    targets: Vec<Usable>,
    instructions: String,
}

#[derive(Serialize)]
struct Verified {
    valid: bool,
    key: Key,
    organization: Organization,
    targets: usize,
}

/// A target as this key may use it.
#[derive(Serialize)]
struct Usable {
    slug: String,
    name: String,
    proxy_url: String,
    base_url: String,
    access: GrantAccess,
    capability: Option<String>,
    integration: Option<Integration>,
    allowed: Vec<String>,
    hint: Option<String>,
    examples: Vec<String>,
}

#[derive(Serialize)]
struct Integration {
    provider: String,
    provider_name: String,
    account: Option<String>,
    status: Status,
    reason: Option<Reason>,
    connect_url: String,
}

/// What the store adds to the snapshot.
struct Stored {
    organization: OrganizationRow,
    key: Option<KeyRow>,
    accounts: HashMap<AccountId, AccountRow>,
}

impl Gateway {
    /// Answers `/bootstrap` and `/verify`.
    pub(super) async fn told(&self, request: Request<Incoming>, line: &Line) -> Response<ReplyBody> {
        let Some(under_way) = self.load.enter() else { return self.shed() };
        let Ok(mut receipt) = self.shared.audit.open(request.method()).await else {
            return self.refuse(&Refusal::AuditUnavailable, None);
        };
        receipt.asked(request.method(), "", request.uri().path());
        let mut response = match self.tell(&request, line, &mut receipt).await {
            Ok(response) => fixed(response, receipt.request_id(), Some(receipt), None),
            Err(refusal) => self.refuse(&refusal, Some(receipt)),
        };
        response.body_mut().keep(under_way);
        response
    }

    async fn tell(
        &self,
        request: &Request<Incoming>,
        line: &Line,
        receipt: &mut Receipt,
    ) -> Result<Response<Bytes>, Refusal> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Refusal::MethodNotAllowed("GET, HEAD"));
        }
        call::check_form(request.uri())?;
        let agent = self.identify(request.headers(), line.peer().0.ip(), receipt)?;
        let whole = request.uri().path() == "/bootstrap";
        let stored = self.stored(&agent, whole).await?;
        let organization = Organization { id: stored.organization.id, name: stored.organization.name };
        let expires_at = stored.key.and_then(|key| key.expires_at);
        let key = Key { id: agent.key, name: agent.name.to_string(), expires_at };
        if !whole {
            return json(&Verified { valid: true, key, organization, targets: agent.targets().len() });
        }
        let shared = &self.shared;
        let connect_url = |account| shared.accounts.reconnect_url(account);
        let targets = agent.targets();
        let targets = targets
            .into_iter()
            .map(|(target, access)| usable(target, access, &shared.public_url, &stored.accounts, connect_url))
            .collect();
        let instructions = instructions(&shared.public_url, &shared.admin_url);
        let bootstrap = Bootstrap { organization, key, targets, instructions };
        if wants_markdown(request.headers()) { Ok(markdown(&bootstrap)) } else { json(&bootstrap) }
    }

    /// Reads on the main runtime, where the database's connections live.
    async fn stored(&self, agent: &Agent, whole: bool) -> Result<Stored, Refusal> {
        let store = self.shared.store.clone();
        let (key, organization) = (agent.key, agent.organization);
        let read = async move {
            let row = store.organization(&organization.to_string()).await?;
            let key_row = store.key(organization, key).await?;
            let accounts = if whole { store.accounts_of_key(key).await? } else { Vec::new() };
            Ok::<_, crate::store::Error>((row, key_row, accounts))
        };
        match self.shared.shutdown.spawn(read).await {
            Ok(Ok((Some(organization), key, accounts))) => {
                let accounts = accounts.into_iter().map(|account| (account.id, account)).collect();
                Ok(Stored { organization, key, accounts })
            }
            // Gone since the snapshot was made, and its keys with it.
            Ok(Ok((None, ..))) => Err(Refusal::InvalidKey),
            Ok(Err(error)) => {
                tracing::error!(%error, "reading what a key may use failed");
                Err(Refusal::Internal)
            }
            Err(error) => {
                tracing::error!(%error, "reading what a key may use was cut off");
                Err(Refusal::Internal)
            }
        }
    }
}

fn usable(
    target: &Target,
    access: GrantAccess,
    public_url: &str,
    accounts: &HashMap<AccountId, AccountRow>,
    connect_url: impl Fn(AccountId) -> String,
) -> Usable {
    let proxy_url = format!("{public_url}/proxy/{}", target.slug);
    let described = match &target.kind {
        TargetKind::Managed { provider, capability, .. } => Some((provider, provider.capabilities.get(&**capability))),
        TargetKind::Static | TargetKind::System => None,
    };
    let account = match &target.credential {
        Credential::Account { account, .. } => accounts.get(account),
        Credential::Ready(_) => None,
    };
    let integration = described.zip(account).map(|((provider, _), account)| Integration {
        provider: provider.id.clone(),
        provider_name: provider.name.clone(),
        account: account.email.clone(),
        status: account.status,
        reason: account.reason,
        connect_url: connect_url(account.id),
    });
    let capability = described.and_then(|(_, capability)| capability);
    Usable {
        slug: target.slug.to_string(),
        name: target.name.to_string(),
        base_url: target.base.url(),
        access,
        capability: match &target.kind {
            TargetKind::Managed { capability, .. } => Some(capability.to_string()),
            TargetKind::Static | TargetKind::System => None,
        },
        integration,
        allowed: allowed(&target.fence.inside_text, &target.fence.read_text, access),
        hint: capability.and_then(|capability| capability.hint.clone()),
        examples: capability.map(|capability| examples(capability, target, access, &proxy_url)).unwrap_or_default(),
        proxy_url,
    }
}

/// Two of the catalog's examples that this grant permits, as they are sent.
fn examples(capability: &Capability, target: &Target, access: GrantAccess, proxy_url: &str) -> Vec<String> {
    let permitted = |method: &str, path: &str| {
        let path = path.split('?').next().unwrap_or(path);
        Method::from_bytes(method.as_bytes()).is_ok_and(|method| target.fence.permits(access, &method, path))
    };
    let lines = capability.examples.iter().filter_map(|example| example.split_once(' '));
    let lines = lines.filter(|(method, path)| permitted(method, path));
    lines.take(2).map(|(method, path)| format!("{method} {proxy_url}{path}")).collect()
}

/// The patterns that a grant of this access permits. For reading, a pattern over every path (`GET /**`) is spelled out
/// along the fence; a narrower one stands for itself (it counts only inside the fence).
fn allowed(fence: &[String], read: &[String], access: GrantAccess) -> Vec<String> {
    if access == GrantAccess::Write {
        return fence.to_vec();
    }
    let parted = |text: &str| match text.split_once(' ') {
        Some((method, path)) => (Some(method.to_owned()), path.trim_start().to_owned()),
        None => (None, text.to_owned()),
    };
    let mut patterns = Vec::new();
    for (method, path) in read.iter().map(|text| parted(text)) {
        if path != "/**" {
            patterns.push(method.map_or_else(|| path.clone(), |method| format!("{method} {path}")));
            continue;
        }
        for (fenced, path) in fence.iter().map(|text| parted(text)) {
            let both = match (&method, fenced) {
                (Some(one), Some(other)) if *one != other => continue,
                (method, fenced) => method.clone().or(fenced),
            };
            patterns.push(both.map_or_else(|| path.clone(), |method| format!("{method} {path}")));
        }
    }
    patterns
}

fn instructions(public_url: &str, admin_url: &str) -> String {
    format!(
        "You call other services through this gateway and never hold their tokens. Send requests to a target's proxy_url \
         followed by the path of the service's own API, with the header `Authorization: Bearer <your key>` and nothing \
         else to authenticate; the gateway puts the credential in. Only methods and paths under `allowed` are taken: 403 \
         not_permitted means this key may not, so do not try to get around it. An answer with the header Keyward-Error \
         is the gateway's own; any other is the service's. 503 account_disconnected means that a person has to reconnect \
         the account: give them the connect_url and go on with something else. Honour Retry-After. Never put the key \
         into a URL or a body. This page: {public_url}/bootstrap. People manage accounts and keys at {admin_url}."
    )
}

fn wants_markdown(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|range| {
            range.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("text/markdown"))
        })
    })
}

fn json(value: &impl Serialize) -> Result<Response<Bytes>, Refusal> {
    let body = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        Refusal::Internal
    })?;
    Ok(reply("application/json", body))
}

fn reply(media: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn markdown(bootstrap: &Bootstrap) -> Response<Bytes> {
    reply("text/markdown; charset=utf-8", as_text(bootstrap))
}

fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Names come from people and providers: on one line, and nothing that reads as markup.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).filter(|c| !matches!(c, '`' | '#' | '<' | '>')).collect()
}

fn as_text(bootstrap: &Bootstrap) -> String {
    let mut text = String::new();
    let Bootstrap { organization, key, targets, instructions } = bootstrap;
    let _ = writeln!(text, "# Keyward\n\n{instructions}\n");
    let _ = writeln!(text, "- Organization: {}\n- Key: {} ({})", line(&organization.name), line(&key.name), key.id);
    if let Some(expires_at) = key.expires_at {
        let _ = writeln!(text, "- The key ends at {expires_at}");
    }
    if targets.is_empty() {
        let _ = writeln!(text, "\nThis key has no targets yet; a person has to grant some.");
    }
    for target in targets {
        let _ = writeln!(text, "\n## {}\n\n- URL: `{}`", line(&target.name), target.proxy_url);
        let _ = writeln!(text, "- Stands for: {}\n- Access: {}", target.base_url, word(&target.access));
        if let Some(integration) = &target.integration {
            let account = integration.account.as_deref().map(line).unwrap_or_default();
            let status = word(&integration.status);
            let _ = writeln!(text, "- Account: {} {account} ({status})", line(&integration.provider_name));
            if integration.status != Status::Connected {
                let _ = writeln!(text, "- To reconnect, a person opens {}", integration.connect_url);
            }
        }
        let _ = writeln!(text, "- Allowed: `{}`", target.allowed.join("`, `"));
        if let Some(hint) = &target.hint {
            let _ = writeln!(text, "- {}", line(hint));
        }
        for example in &target.examples {
            let _ = writeln!(text, "- Example: `{example}`");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn what_is_allowed_is_spelled_out_for_the_access() {
        let fence = texts(&["/me/messages/**", "POST /me/sendMail"]);
        let read = texts(&["GET /**", "HEAD /**", "POST /search/query"]);
        assert_eq!(allowed(&fence, &read, GrantAccess::Write), fence);
        assert_eq!(
            allowed(&fence, &read, GrantAccess::Read),
            texts(&["GET /me/messages/**", "HEAD /me/messages/**", "POST /search/query"])
        );
        assert_eq!(allowed(&texts(&["/**"]), &texts(&["/**"]), GrantAccess::Read), texts(&["/**"]));
    }

    #[test]
    fn markdown_is_given_to_those_who_ask() {
        for (accept, wanted) in [
            ("text/markdown", true),
            ("application/json, text/markdown;q=0.9", true),
            ("TEXT/Markdown", true),
            ("*/*", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(wants_markdown(&headers), wanted, "{accept}");
        }
        assert!(!wants_markdown(&HeaderMap::new()));
    }

    fn bootstrap() -> Bootstrap {
        Bootstrap {
            organization: Organization { id: OrgId::new(), name: "default".into() },
            key: Key { id: KeyId::new(), name: "helper\n# injected".into(), expires_at: None },
            targets: vec![Usable {
                slug: "ada-mail".into(),
                name: "ada@example.com — Mail".into(),
                proxy_url: "http://127.0.0.1:8080/proxy/ada-mail".into(),
                base_url: "https://api.example.com/v1".into(),
                access: GrantAccess::Read,
                capability: Some("mail".into()),
                integration: Some(Integration {
                    provider: "example".into(),
                    provider_name: "Example".into(),
                    account: Some("ada@example.com".into()),
                    status: Status::Disconnected,
                    reason: Some(Reason::RefreshRejected),
                    connect_url: "http://127.0.0.1:8081/integrations?reconnect=acc_1".into(),
                }),
                allowed: texts(&["GET /me/**"]),
                hint: Some("Newest first.".into()),
                examples: texts(&["GET http://127.0.0.1:8080/proxy/ada-mail/me/messages?$top=5"]),
            }],
            instructions: instructions("http://127.0.0.1:8080", "http://127.0.0.1:8081"),
        }
    }

    #[test]
    fn bootstrap_has_the_documented_fields() {
        let value = serde_json::to_value(bootstrap()).unwrap();
        assert_eq!(value["organization"]["name"], "default");
        assert!(value["key"].get("expires_at").is_none());
        let target = &value["targets"][0];
        for field in ["slug", "name", "proxy_url", "base_url", "access", "capability", "allowed", "hint", "examples"] {
            assert!(!target[field].is_null(), "{field}");
        }
        assert_eq!(target["access"], "read");
        assert_eq!(target["integration"]["status"], "disconnected");
        assert_eq!(target["integration"]["reason"], "refresh_rejected");
        assert!(value["instructions"].as_str().unwrap().contains("account_disconnected"));
    }

    #[test]
    fn the_text_says_the_same_and_names_can_not_add_to_it() {
        let text = as_text(&bootstrap());
        assert!(text.contains("## ada@example.com — Mail") && text.contains("`GET /me/**`"), "{text}");
        assert!(text.contains("integrations?reconnect=acc_1") && text.contains("Access: read"), "{text}");
        assert!(!text.contains("\n# injected"), "{text}");
    }
}

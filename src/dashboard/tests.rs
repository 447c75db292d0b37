//! Every page, with values that somebody hostile chose: nothing of theirs is markup, nothing of ours is inline.

use std::collections::BTreeMap;

use askama::Template;

use crate::accounts::AccountView;
use crate::clock::Timestamp;
use crate::config::RateLimit;
use crate::ids::{AccountId, AuditId, FlowId, KeyId, OrgId};
use crate::store::{AuditRow, KeyRow, Reason, Status, Validity};

use super::audit::{AuditPage, FilterForm, RecordLine};
use super::callback::{ConnectedPage, ConnectingPage, FailedPage};
use super::connect::LinkPage;
use super::disconnect::{DisconnectPage, GrantLine};
use super::integrations::{AccountCard, InputField, IntegrationsPage, ProviderCard, TargetLine};
use super::keys::{KeyLine, KeyPage, KeysPage, NewKeyPage, Switch};
use super::page::Shell;
use super::problem::ProblemPage;
use super::session::LoginPage;
use super::targets::{StaticDetails, TargetCard, TargetsPage};
use super::when::When;
use super::words;

const HOSTILE: &str = "<script>alert(1)</script>\"onmouseover=\"alert(2)' style='x";
const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

fn hostile() -> String {
    HOSTILE.to_owned()
}

fn account(status: Status) -> AccountCard {
    let view = AccountView {
        id: AccountId::new(),
        provider: "sandbox".into(),
        provider_name: hostile(),
        subject: hostile(),
        email: Some(hostile()),
        display_name: Some(hostile()),
        status,
        reason: (status != Status::Connected).then_some(Reason::RefreshRejected),
        validity: Validity::Valid,
        checked_at: Some(NOW),
        scopes: vec![hostile()],
        missing_scopes: vec![hostile(), "mail.send".into()],
        access_expires_at: None,
        refresh_expires_at: None,
        owner: None,
        targets: Vec::new(),
        created_at: NOW,
        updated_at: NOW,
    };
    let slug = "ada-mail-x7k2qd";
    let target =
        TargetLine { name: hostile(), slug: slug.into(), proxy_url: format!("http://127.0.0.1:8080/proxy/{slug}") };
    AccountCard { targets: vec![target], ..AccountCard::new(view, "http://127.0.0.1:8080", NOW) }
}

fn provider(configured: bool, accounts: Vec<AccountCard>) -> ProviderCard {
    let input = || InputField { name: "tenant".into(), label: hostile(), default: hostile() };
    ProviderCard {
        id: "sandbox".into(),
        name: hostile(),
        initials: words::initials(HOSTILE),
        configured,
        variables: ["OAUTH_SANDBOX_CLIENT_ID".into(), "OAUTH_SANDBOX_CLIENT_SECRET".into()],
        capabilities: vec![("mail".into(), hostile())],
        needed: vec![input()],
        more: vec![input()],
        accounts,
    }
}

fn key() -> KeyLine {
    let row = KeyRow {
        id: KeyId::new(),
        organization: OrgId::new(),
        name: hostile(),
        hash: [7; 32],
        prefix: "kw_Ab3xyz…".into(),
        expires_at: Some(NOW.after(std::time::Duration::from_secs(60))),
        allowed_ips: vec!["192.0.2.0/24".parse().unwrap()],
        rate_limit: RateLimit::new(Some(600), None, Some(10)).ok(),
        previous: Some(([8; 32], NOW.after(std::time::Duration::from_secs(60)))),
        created_at: NOW,
        last_used_at: Some(NOW),
        revoked_at: None,
    };
    KeyLine::new(&row, NOW)
}

fn record() -> RecordLine {
    let row = AuditRow {
        id: AuditId::new(),
        organization: None,
        at: NOW,
        actor: Some(hostile().into()),
        action: "request".into(),
        request: None,
        key: None,
        target: Some(hostile().into()),
        account: None,
        method: Some("GET".into()),
        path: Some(hostile().into()),
        status: Some(403),
        code: Some("not_permitted".into()),
        bytes_in: None,
        bytes_out: None,
        duration_us: Some(1500),
        detail: None,
    };
    RecordLine::new(row, &BTreeMap::new(), NOW)
}

/// Every page struct, rendered.
fn pages() -> Vec<(&'static str, String)> {
    let shell = || Shell::new(HOSTILE, "keys").flash(Some("valid"));
    let alone = || Shell::alone(HOSTILE);
    let next = || Some("/x?after=1&b=2".to_owned());
    let switches = ["none", "read", "write"].map(|access| Switch {
        slug: format!("crm-{access}"),
        name: hostile(),
        origin: hostile(),
        access,
    });
    let details = StaticDetails { base_url: hostile(), credential: "bearer".into(), fence: vec![hostile()] };
    let target = TargetCard {
        slug: "crm".into(),
        name: hostile(),
        proxy_url: "http://127.0.0.1:8080/proxy/crm".into(),
        origin: hostile(),
        details: Some(details),
    };
    let integrations = IntegrationsPage {
        shell: shell(),
        reconnect: Some(account(Status::Disconnected)),
        providers: vec![
            provider(true, vec![account(Status::Connected), account(Status::Degraded), account(Status::Disconnected)]),
            provider(false, vec![account(Status::Connected)]),
            provider(true, vec![]),
        ],
        waiting: vec![provider(false, vec![])],
        next: next(),
    };
    let link = LinkPage {
        shell: alone(),
        flow: FlowId::new().to_string(),
        provider_name: hostile(),
        initials: "S".into(),
        asked_by: words::asked_by(HOSTILE),
        capabilities: vec![hostile(), "Calendar".into()],
        preset: "Read",
        account: Some(hostile()),
        expires: When::new(NOW, NOW),
    };
    let connecting = ConnectingPage {
        shell: alone(),
        provider: "sandbox".into(),
        provider_name: hostile(),
        fields: vec![("state".into(), hostile()), (hostile(), hostile())],
    };
    let connected = |account| ConnectedPage {
        shell: alone(),
        provider: "sandbox".into(),
        provider_name: hostile(),
        account,
        reconnected: true,
    };
    let (code, message, hint) = words::failure("denied");
    let failed =
        FailedPage { shell: alone(), provider: "sandbox".into(), provider_name: hostile(), code, message, hint };
    let grant = GrantLine { key: hostile(), prefix: "kw_Ab3xyz…".into(), target: hostile() };
    let disconnect =
        DisconnectPage { shell: shell(), account: account(Status::Connected), grants: vec![grant], partial: true };
    let problem = ProblemPage { shell: alone(), code: "bad_request", message: hostile(), hint: Some(hostile()) };
    let login = LoginPage { shell: alone(), next: hostile(), problem: Some(hostile()) };
    let keys = KeysPage { shell: shell(), keys: vec![key()], next: next() };
    let one_key = KeyPage { shell: shell(), key: key(), switches: switches.into(), next: next(), after: hostile() };
    let new_key = NewKeyPage {
        shell: shell(),
        key: key(),
        secret: "kw_secret".into(),
        proxy_url: "http://127.0.0.1:8080".into(),
        old_until: Some(When::new(NOW, NOW)),
    };
    let targets = TargetsPage { shell: shell(), targets: vec![target], next: next() };
    let filter = FilterForm { key: hostile(), target: hostile(), ..FilterForm::default() };
    let audit = AuditPage { shell: shell(), filter, records: vec![record()], next: next() };
    vec![
        ("integrations", integrations.render().unwrap()),
        ("link", link.render().unwrap()),
        ("connecting", connecting.render().unwrap()),
        ("connected", connected(Some(account(Status::Connected))).render().unwrap()),
        ("connected, nobody signed in", connected(None).render().unwrap()),
        ("failed", failed.render().unwrap()),
        ("disconnect", disconnect.render().unwrap()),
        ("problem", problem.render().unwrap()),
        ("login", login.render().unwrap()),
        ("keys", keys.render().unwrap()),
        ("key", one_key.render().unwrap()),
        ("new key", new_key.render().unwrap()),
        ("targets", targets.render().unwrap()),
        ("audit", audit.render().unwrap()),
    ]
}

/// The tags of a page: name and attribute names with their values. Strict on purpose: our templates quote every value.
fn tags(html: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '/' || *c == '!').collect();
        assert!(!name.is_empty(), "a bare < in the page: {:.60}", rest);
        rest = &rest[name.len()..];
        let mut attributes = Vec::new();
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('>') {
                rest = after;
                break;
            }
            let end = rest.find(|c: char| c.is_whitespace() || c == '=' || c == '>').unwrap();
            let attribute = rest[..end].to_ascii_lowercase();
            rest = &rest[end..];
            let mut value = String::new();
            if let Some(after) = rest.strip_prefix("=\"") {
                let end = after.find('"').unwrap();
                value = after[..end].to_owned();
                rest = &after[end + 1..];
            } else {
                assert!(!rest.starts_with('='), "an unquoted value of {attribute} in <{name}>");
            }
            attributes.push((attribute, value));
        }
        tags.push((name.to_ascii_lowercase(), attributes));
    }
    tags
}

#[test]
fn pages_escape_what_they_show_and_hold_nothing_inline() {
    for (page, html) in pages() {
        assert!(html.contains("&#60;script&#62;"), "{page} shows the hostile text, escaped");
        assert!(!html.contains("alert(1)</script>") && !html.contains("javascript:"), "{page}");
        for (tag, attributes) in tags(&html) {
            assert_ne!(tag, "style", "{page}");
            let has = |name: &str| attributes.iter().any(|(have, _)| have == name);
            assert!(tag != "script" || has("src"), "{page} has an inline script");
            for (name, value) in &attributes {
                assert!(!name.starts_with("on") && name != "style", "{page}: {name}={value}");
                assert!(name != "src" || value.starts_with("/static/"), "{page}: {value}");
                let ours = value.starts_with('/') && !value.starts_with("//") || value.starts_with('#');
                assert!(!["href", "action"].contains(&name.as_str()) || ours, "{page}: {name}={value}");
            }
        }
    }
}

#[test]
fn every_input_has_a_name_to_read() {
    for (page, html) in pages() {
        let tags = tags(&html);
        let labels: Vec<&String> = tags
            .iter()
            .filter(|(tag, _)| tag == "label")
            .flat_map(|(_, attributes)| attributes.iter().filter(|(name, _)| name == "for").map(|(_, value)| value))
            .collect();
        for (tag, attributes) in &tags {
            let value = |name: &str| attributes.iter().find(|(have, _)| have == name).map(|(_, value)| value);
            let wrapped = ["checkbox", "radio", "hidden"];
            let needs = ["input", "select", "textarea"].contains(&tag.as_str())
                && !value("type").is_some_and(|kind| wrapped.contains(&kind.as_str()));
            assert!(!needs || value("id").is_some_and(|id| labels.contains(&id)), "{page}: {tag} {attributes:?}");
        }
    }
}

#[test]
fn the_router_has_no_conflicts() {
    let _ = super::router();
}

#[test]
fn only_the_signed_in_see_the_navigation() {
    for (page, html) in pages() {
        let alone = ["link", "connecting", "connected", "connected, nobody signed in", "failed", "problem", "login"];
        assert_eq!(html.contains("aria-label=\"Main\""), !alone.contains(&page), "{page}");
    }
}

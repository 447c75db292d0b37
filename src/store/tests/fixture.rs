//! Fresh databases, and rows to put into them.

use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;

use crate::catalog::Preset;
use crate::clock::Timestamp;
use crate::config::{Protection, StoreUrl, Transport};
use crate::ids::{AccountId, AuditId, FlowId, InstanceId, JobId, KeyId, OrgId, TargetId, random};
use crate::secret::{Secret, sha256};
use crate::store::*;
use crate::vault::Sealed;

/// A store of its own for one test.
pub(super) struct Fixture {
    pub(super) store: Store,
    pub(super) url: StoreUrl,
    /// The organization `default`.
    pub(super) org: OrgId,
    _folder: Option<TempDir>,
    drop_with: Option<(PgConnectOptions, String)>,
}

/// Runs a test on a fresh SQLite, and on a fresh Postgres when there is one.
pub(super) async fn on_each<F: Future<Output = ()>>(test: impl Fn(std::sync::Arc<Fixture>) -> F) {
    for fixture in [Some(sqlite().await), postgres().await].into_iter().flatten() {
        let fixture = std::sync::Arc::new(fixture);
        test(fixture.clone()).await;
        fixture.store.close().await;
        if let Some((server, name)) = &fixture.drop_with {
            let mut connection = server.connect().await.unwrap();
            let drop = format!("drop database if exists {name} with (force)");
            sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await.unwrap();
        }
    }
}

async fn sqlite() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let url = StoreUrl::Sqlite(folder.path().join("made/on/the/way/keyward.db"));
    opened(url, Some(folder), None).await
}

async fn postgres() -> Option<Fixture> {
    let server = std::env::var("KEYWARD_TEST_POSTGRES").ok()?;
    let options = PgConnectOptions::from_str(&server).unwrap();
    let name = format!("kw_test_{:016x}", u64::from_be_bytes(random()));
    let mut connection = options.connect().await.unwrap();
    sqlx::query(AssertSqlSafe(format!("create database {name}"))).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let mut url = url::Url::parse(&server).unwrap();
    url.set_path(&name);
    Some(opened(StoreUrl::Postgres(Secret::new(url.into())), None, Some((options, name))).await)
}

async fn opened(url: StoreUrl, folder: Option<TempDir>, drop_with: Option<(PgConnectOptions, String)>) -> Fixture {
    let store = Store::open(&url, at(0)).await.unwrap();
    let org = store.organization("default").await.unwrap().unwrap().id;
    Fixture { store, url, org, _folder: folder, drop_with }
}

impl Fixture {
    /// A second tenant, to see that it sees nothing.
    pub(super) async fn other_org(&self) -> OrgId {
        let org = OrganizationRow { id: OrgId::new(), name: "other".into(), created_at: at(0) };
        self.store.insert_organization(&org, &record(None, "organization.created")).await.unwrap();
        org.id
    }

    pub(super) async fn saved_account(&self, subject: &str) -> AccountRow {
        let save = SaveConnected { account: account(self.org, subject), tokens: tokens("first"), existing: false };
        self.store.save_connected(&save, &record(Some(self.org), "account.connected")).await.unwrap()
    }

    pub(super) async fn saved_key(&self, name: &str) -> KeyRow {
        let key = key(self.org, name);
        self.store.insert_key(&key, &record(Some(self.org), "key.created")).await.unwrap();
        key
    }

    pub(super) async fn granted(&self, key: &KeyRow, target: &TargetRef) {
        let grant = GrantRow {
            key: key.id,
            target: target.id,
            slug: target.slug.clone(),
            access: GrantAccess::Read,
            created_at: at(5),
        };
        self.store.put_grant(self.org, &grant, &record(Some(self.org), "grant.changed")).await.unwrap();
    }

    /// Throws everything away, the schema too.
    pub(super) async fn empty(&self) {
        match &self.url {
            StoreUrl::Sqlite(path) => {
                for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
                    std::fs::remove_file(entry.unwrap().path()).unwrap();
                }
            }
            StoreUrl::Postgres(url) => {
                let mut connection = PgConnectOptions::from_str(url.expose()).unwrap().connect().await.unwrap();
                sqlx::query("drop schema public cascade").execute(&mut connection).await.unwrap();
                sqlx::query("create schema public").execute(&mut connection).await.unwrap();
            }
        }
    }

    /// The lease of an account, at once; who has it.
    pub(super) async fn leased(&self, id: AccountId) -> InstanceId {
        let owner = InstanceId::new();
        let taken = self.store.take_lease_at_once(id, owner, 60_000).await.unwrap();
        assert!(matches!(taken, Taken::Won(_)), "{taken:?}");
        owner
    }

    /// A passing failure of an account of the first generation. Answers whether it counted.
    pub(super) async fn failed(&self, id: AccountId, reason: Reason, pause: Duration) -> bool {
        let owner = self.leased(id).await;
        let failed = Failed { generation: 1, owner, reason, pause, unknown_since: None };
        let noted = self.store.note_failure(id, &failed, at(7), &record(Some(self.org), "account.degraded")).await;
        self.store.release_lease(id, owner, false).await.unwrap();
        noted.unwrap()
    }

    /// The end of an account of the first generation. Answers whether it counted.
    pub(super) async fn ended(&self, id: AccountId) -> bool {
        let ended = rejected(self.leased(id).await);
        let noted = self.store.end_account(id, &ended, at(7), &record(Some(self.org), "account.disconnected")).await;
        self.store.release_lease(id, ended.owner, false).await.unwrap();
        noted.unwrap()
    }

    /// How often this was recorded.
    pub(super) async fn recorded(&self, action: &str) -> usize {
        let page = Page { limit: 200, after: None };
        let records = self.store.audit(self.org, &AuditFilter::default(), &page).await.unwrap();
        records.items.iter().filter(|row| row.action == action).count()
    }
}

pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + millis)
}

pub(super) fn sealed(text: &str) -> Sealed {
    Sealed::from_bytes(text.as_bytes().to_vec())
}

pub(super) fn all() -> Page {
    Page { limit: 200, after: None }
}

pub(super) fn rejected(owner: InstanceId) -> Ended {
    Ended { generation: 1, owner, reason: Reason::RefreshRejected, checked_at: Some(at(7)) }
}

/// The record of a recovery.
pub(super) fn recovered(_: Reason) -> AuditRow {
    record(None, "account.recovered")
}

pub(super) fn tokens(text: &str) -> NewTokens {
    NewTokens {
        access: sealed(&format!("access {text}")),
        refresh: Some(sealed(&format!("refresh {text}"))),
        access_expires_at: at(3_600_000),
        access_ttl_ms: 3_600_000,
        refresh_expires_at: None,
        scopes: None,
        missing_scopes: None,
    }
}

pub(super) fn target_ref(slug: &str, capability: &str) -> TargetRef {
    TargetRef { id: TargetId::new(), slug: slug.into(), capability: capability.into(), name: format!("{slug}'s name") }
}

pub(super) fn account(org: OrgId, subject: &str) -> AccountRow {
    AccountRow {
        id: AccountId::new(),
        organization: org,
        provider: "acme".into(),
        subject: subject.into(),
        email: Some(format!("{subject}@example.com")),
        display_name: None,
        status: Status::Connected,
        reason: None,
        validity: Validity::Valid,
        checked_at: Some(at(1)),
        scopes: vec!["mail.read".into(), "offline".into()],
        missing_scopes: vec![],
        preset: Preset::Read,
        access_expires_at: None,
        refresh_expires_at: None,
        owner: None,
        captures: Captures::from([("tenant".into(), "common".into())]),
        generation: 0,
        targets: vec![
            target_ref(&format!("{subject}-mail"), "mail"),
            target_ref(&format!("{subject}-calendar"), "calendar"),
        ],
        created_at: at(1),
        updated_at: at(1),
    }
}

pub(super) fn key(org: OrgId, name: &str) -> KeyRow {
    KeyRow {
        id: KeyId::new(),
        organization: org,
        name: name.into(),
        hash: random(),
        prefix: "kw_Ab3x".into(),
        expires_at: None,
        allowed_ips: vec![],
        rate_limit: None,
        previous: None,
        created_at: at(1),
        last_used_at: None,
        revoked_at: None,
    }
}

pub(super) fn static_target(org: OrgId, slug: &str) -> TargetRow {
    TargetRow {
        id: TargetId::new(),
        organization: Some(org),
        slug: slug.into(),
        name: "CRM".into(),
        kind: TargetKind::Static {
            base_url: "https://api.example.com/v2".into(),
            credential_kind: "bearer".into(),
            credential: Some(sealed("credential")),
            fence: vec!["/**".into()],
            protection: Protection::default(),
            transport: Transport::default(),
        },
        created_at: at(1),
        updated_at: at(1),
    }
}

pub(super) fn flow(org: OrgId) -> FlowRow {
    FlowRow {
        id: FlowId::new(),
        organization: org,
        provider: "acme".into(),
        capabilities: vec!["mail".into()],
        preset: Preset::Write,
        account: Some(AccountId::new()),
        inputs: Captures::from([("tenant".into(), "common".into())]),
        owner: None,
        actor: "admin_token".into(),
        state_hash: None,
        cookie_hash: None,
        verifier: None,
        created_at: at(0),
        expires_at: at(600_000),
    }
}

pub(super) fn opening(state: &str) -> FlowOpened {
    FlowOpened { state_hash: sha256(state.as_bytes()), cookie_hash: sha256(b"cookie"), verifier: sealed("verifier") }
}

pub(super) fn revocation() -> NewRevocation {
    NewRevocation { id: JobId::new(), token_kind: "refresh_token", token: sealed("to revoke") }
}

/// Disconnecting an account as it was read.
pub(super) fn leaving(account: &AccountRow, revocations: &[NewRevocation]) -> Disconnect {
    Disconnect {
        organization: account.organization,
        account: account.id,
        generation: account.generation,
        candidates: Vec::new(),
        confirm: true,
        revocations: revocations.to_vec(),
        at: at(40),
    }
}

pub(super) fn revived(org: OrgId) -> AuditRow {
    record(Some(org), "account.degraded")
}

pub(super) fn record(org: Option<OrgId>, action: &str) -> AuditRow {
    AuditRow {
        id: AuditId::at(at(10).millis()),
        organization: org,
        at: at(10),
        actor: Some("admin_token".into()),
        action: action.to_owned().into(),
        request: None,
        key: None,
        target: None,
        account: None,
        method: None,
        path: None,
        status: None,
        code: None,
        bytes_in: None,
        bytes_out: None,
        duration_us: None,
        detail: None,
    }
}

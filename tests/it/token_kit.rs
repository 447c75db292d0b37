//! What the tests about tokens share: people on a stage whose clock is held, and a door before the token endpoint that
//! can be shut.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use keyward::clock::{Clock, Timestamp};
use keyward::ids::CandidateId;
use keyward::store::AccountTokens;
use keyward::vault::{Keyring, Place, Vault};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::harness::{ADMIN, Answer, Backend, Key, Keyward, SEALING, Settings, World, slug};

/// How long the sandbox's access tokens live.
pub const HOUR: Duration = Duration::from_secs(3600);
/// Nothing in these tests takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running Keyward on a held clock, with one agent key.
pub struct Stage {
    pub kw: Keyward,
    pub key: Key,
}

/// A connected account whose targets the stage's key may write to.
pub struct Person {
    pub email: String,
    pub id: String,
    /// The mail target's.
    pub slug: String,
    /// The calendar target's.
    pub calendar: String,
    /// The access token that the connect flow brought.
    pub first_token: String,
}

/// An account's own acts: what tells people that something happened.
const TOLD: [&str; 4] = ["account.degraded", "account.disconnected", "account.recovered", "account.scope_reduced"];

impl Stage {
    /// `toml`: what `gateway.toml` says besides.
    pub async fn new(backend: Backend, toml: &str) -> Self {
        let world = World::with_clock(backend, held()).await;
        Self::in_world(world, toml).await
    }

    pub async fn in_world(world: World, toml: &str) -> Self {
        let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
        let app = world.instance(&settings).await;
        let kw = Keyward { world, app, settings };
        let key = kw.new_key().await;
        Self { kw, key }
    }

    /// Connects somebody, lets the key at their targets, and has it used once.
    pub async fn person(&self, name: &str) -> Person {
        let email = format!("{name}@example.com");
        let account = self.kw.connect(&email).await;
        for target in account["targets"].as_array().unwrap() {
            self.kw.grant(&self.key, target["slug"].as_str().unwrap(), "write").await;
        }
        let id = account["id"].as_str().unwrap().to_owned();
        let first_token = self.tokens(&id).await.0;
        let person =
            Person { email, slug: slug(&account, "mail"), calendar: slug(&account, "calendar"), id, first_token };
        assert_eq!(self.used(&person, "the first request").await, person.first_token);
        person
    }

    pub fn advance(&self, span: Duration) {
        self.kw.world.clock.advance(span);
    }

    /// Past the end of every token, and past the time for which the keeper looks after an account that was used: from
    /// here on tokens are refreshed when somebody asks.
    pub fn expire(&self) {
        self.advance(HOUR + Duration::from_secs(60));
    }

    pub fn now(&self) -> Timestamp {
        self.kw.world.clock.now()
    }

    /// Disconnects somebody, so that what comes is about others alone.
    pub async fn leave(&self, person: &Person) {
        self.kw.api("DELETE", &format!("/accounts/{}?confirm=true", person.id), None).await;
    }

    /// What an agent gets that reads the person's mail.
    pub async fn get(&self, person: &Person) -> Answer {
        self.kw.agent(&self.key, "GET", &format!("/proxy/{}/me/messages", person.slug)).await
    }

    /// As [`Stage::get`]; must be the mail, and answers the access token that the upstream saw.
    pub async fn used(&self, person: &Person, what: &str) -> String {
        let answer = self.get(person).await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        assert!(answer.json()["value"].is_array(), "{what}: {}", answer.text());
        self.last_token()
    }

    /// Waits until requests use another token than `old`, which a refresh that nobody waits for brings about.
    pub async fn renewed(&self, person: &Person, old: &str, what: &str) -> String {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let token = self.used(person, what).await;
            if token != old {
                return token;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: still the old token");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The access token of the last request that reached the upstream.
    pub fn last_token(&self) -> String {
        let recorded = self.kw.sandbox().recorded();
        bearer(recorded.last().unwrap().header("authorization")[0])
    }

    /// Calls of the token endpoint, answered or not.
    pub fn calls(&self) -> u64 {
        self.kw.sandbox().counters().token_arrived
    }

    pub async fn account(&self, person: &Person) -> Value {
        self.kw.api("GET", &format!("/accounts/{}", person.id), None).await
    }

    /// Waits until the account is as wanted, which a refresh that nobody waits for brings about.
    pub async fn until(&self, person: &Person, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let account = self.account(person).await;
            if wanted(&account) {
                return account;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {account}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What was told about the account, oldest first, as `action reason`.
    pub async fn told(&self, person: &Person) -> Vec<String> {
        let mut all = Vec::new();
        for record in self.records(person).await {
            let action = record["action"].as_str().unwrap();
            if TOLD.contains(&action) {
                let detail = &record["detail"];
                let why = detail["reason"].as_str().or(detail["after"].as_str()).unwrap_or_default();
                all.push(format!("{action} {why}").trim_end().to_owned());
            }
        }
        all.reverse();
        all
    }

    /// All audit records about the account, newest first.
    async fn records(&self, person: &Person) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/audit?limit=200&account={}{cursor}", person.id);
            let page = self.kw.api("GET", &path, None).await;
            all.extend(page["items"].as_array().unwrap().iter().cloned());
            let Some(next) = page["next_cursor"].as_str() else { return all };
            cursor = format!("&cursor={next}");
        }
    }

    /// The status word and the reason.
    pub async fn state(&self, person: &Person) -> (String, String) {
        let account = self.account(person).await;
        let word = |name: &str| account[name].as_str().unwrap_or_default().to_owned();
        (word("status"), word("reason"))
    }

    /// The stored row.
    pub async fn row(&self, id: &str) -> AccountTokens {
        self.kw.app.store().tokens(id.parse().unwrap()).await.unwrap().unwrap()
    }

    /// The access and the refresh token that are stored, opened.
    pub async fn tokens(&self, id: &str) -> (String, String) {
        let row = self.row(id).await;
        let vault = vault();
        let open = |column, sealed| {
            let place = Place { table: "accounts", row: id, column };
            vault.open_text(place, sealed).unwrap().expose().clone()
        };
        (open("access_token", &row.access.unwrap()), open("refresh_token", &row.refresh.unwrap()))
    }

    /// Nothing that must not be seen is in this text.
    pub async fn assert_clean(&self, person: &Person, text: &str, what: &str) {
        let (access, refresh) = self.tokens(&person.id).await;
        let client = self.kw.sandbox().client_secret();
        for secret in [access.as_str(), &refresh, &person.first_token, client, &self.key.secret, ADMIN, CANARY] {
            assert!(!text.contains(secret), "{what}: {text}");
        }
    }

    /// As [`Stage::assert_clean`] of everything that can be read about the account.
    pub async fn assert_nothing_shows(&self, person: &Person, what: &str) {
        let path = format!("/audit?limit=200&account={}", person.id);
        for text in [self.account(person).await, self.kw.api("GET", &path, None).await] {
            self.assert_clean(person, &text.to_string(), what).await;
        }
    }

    /// Puts a refresh token among the account's candidates, as an instance does that came too late with it.
    pub async fn candidate(&self, person: &Person, token: &str) {
        let id = CandidateId::new();
        let row = id.to_string();
        let sealed = vault().seal(Place { table: "token_candidates", row: &row, column: "token" }, token.as_bytes());
        let store = self.kw.app.store();
        store
            .insert_candidate(id, person.id.parse().unwrap(), &sealed, self.now(), |_| {
                unreachable!("the account has not ended")
            })
            .await
            .unwrap();
    }

    /// Leaves a refresh token in a file for the next start, as a process does that could not store it before its end.
    pub fn spill(&self, person: &Person, token: &str) -> PathBuf {
        let id = CandidateId::new().to_string();
        let sealed = vault().seal(Place { table: "token_candidates", row: &id, column: "token" }, token.as_bytes());
        let folder = self.kw.world.dir.path().join("keyward.spill");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(&id);
        let token = base64::engine::general_purpose::STANDARD.encode(sealed.as_bytes());
        std::fs::write(&file, serde_json::json!({"account": person.id, "token": token}).to_string()).unwrap();
        file
    }

    /// Runs statements on the store, behind Keyward's back.
    pub async fn sql(&self, statements: &[&str]) {
        use sqlx::{AssertSqlSafe, Connection, Executor};
        let world = &self.kw.world;
        if is_postgres(world) {
            let mut connection = sqlx::PgConnection::connect(&world.store_url).await.unwrap();
            for statement in statements {
                connection.execute(AssertSqlSafe((*statement).to_owned())).await.unwrap();
            }
            return;
        }
        let file = world.dir.path().join("keyward.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).busy_timeout(PATIENCE);
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        for statement in statements {
            connection.execute(AssertSqlSafe((*statement).to_owned())).await.unwrap();
        }
    }

    /// From now on a statement that sets this column of an account fails, as on a full disk.
    pub async fn break_column(&self, column: &str) {
        if is_postgres(&self.kw.world) {
            let function = "create function no_room() returns trigger language plpgsql \
                            as $$ begin raise exception 'CANARY-of-the-store'; end $$";
            let trigger = format!(
                "create trigger no_room before update of {column} on accounts for each row execute function no_room()"
            );
            self.sql(&[function, &trigger]).await;
        } else {
            let trigger = format!(
                "create trigger no_room before update of {column} on accounts \
                 begin select raise(abort, 'CANARY-of-the-store'); end"
            );
            self.sql(&[&trigger]).await;
        }
    }

    /// There is room again.
    pub async fn mend(&self) {
        if is_postgres(&self.kw.world) {
            self.sql(&["drop trigger no_room on accounts", "drop function no_room()"]).await;
        } else {
            self.sql(&["drop trigger no_room"]).await;
        }
    }
}

/// In every error text of the provider's and the store's; never in anything of Keyward's.
pub const CANARY: &str = "CANARY-of-the";

fn vault() -> Vault {
    Vault::new(Keyring::parse(&SEALING.to_owned().into()).unwrap())
}

fn is_postgres(world: &World) -> bool {
    world.store_url.starts_with("postgres")
}

/// A clock that stands at now.
pub fn held() -> Clock {
    Clock::held(Clock::system().now())
}

/// The token of an `Authorization: Bearer …`.
pub fn bearer(value: &[u8]) -> String {
    String::from_utf8(value.strip_prefix(b"Bearer ").unwrap().to_vec()).unwrap()
}

/// A moment of an account's JSON.
pub fn moment(account: &Value, name: &str) -> Timestamp {
    Timestamp::parse(account[name].as_str().unwrap()).unwrap()
}

/// A place before the sandbox that counts who comes through, over TLS or not.
pub struct Door {
    pub address: SocketAddr,
    came: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Door {
    /// Leads to `sandbox`; `port` 0 takes a free one.
    pub async fn open(port: u16, sandbox: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let came = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&came);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                through(stream, sandbox).await;
                            }
                        }
                        None => through(stream, sandbox).await,
                    }
                });
            }
        });
        Self { address, came, task }
    }

    /// Connections so far.
    pub fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }

    /// Connecting is refused from here on. Answers the port.
    pub async fn shut(self) -> u16 {
        self.task.abort();
        let _ = self.task.await;
        self.address.port()
    }
}

async fn through(mut stream: impl AsyncRead + AsyncWrite + Unpin, sandbox: SocketAddr) {
    let mut inner = TcpStream::connect(sandbox).await.unwrap();
    let _ = copy_bidirectional(&mut stream, &mut inner).await;
}

/// A certificate authority of the test's own.
pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A server's side of TLS with a certificate for `name`, over for ever when `expired`.
    pub fn server(&self, name: &str, expired: bool) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

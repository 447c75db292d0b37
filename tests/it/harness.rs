//! A whole Keyward for one test: real sockets on free ports, a store of its own (SQLite, or a fresh Postgres database), the
//! sandbox as the outside world. Everything is driven from outside, as agents, operators and browsers would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use keyward::app::App;
use keyward::clock::Clock;
use keyward::config::{Config, Env};
use keyward::sandbox::Sandbox;
use keyward::shutdown::Shutdown;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use url::Url;

/// The admin token of every test.
pub const ADMIN: &str = "kwa_a-token-for-tests-and-nothing-else";
/// The sealing keys of every test.
pub const SEALING: &str = "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Where a test's records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// SQLite always; Postgres when `KEYWARD_TEST_POSTGRES` names a server (as `scripts/test` does).
pub fn backends() -> Vec<Backend> {
    let mut all = vec![Backend::Sqlite];
    if std::env::var_os("KEYWARD_TEST_POSTGRES").is_some() {
        all.push(Backend::Postgres);
    }
    all
}

/// The outside world and a store that several instances may share.
pub struct World {
    pub sandbox: Sandbox,
    pub clock: Clock,
    pub outside: Shutdown,
    pub dir: tempfile::TempDir,
    pub store_url: String,
    database: Option<String>,
}

/// One running instance in a world.
pub struct Keyward {
    pub world: World,
    pub app: App,
    /// The settings it was started with, for starting another like it.
    pub settings: Settings,
}

/// What a test changes about an instance.
#[derive(Clone)]
pub struct Settings {
    /// More of `gateway.toml`, after what the harness writes.
    pub toml: String,
    /// More environment.
    pub env: BTreeMap<String, String>,
    /// Whether upstreams on loopback may be reached.
    pub loopback: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { toml: String::new(), env: BTreeMap::new(), loopback: true }
    }
}

/// An agent key.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: String,
    pub secret: String,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
    /// The code of an answer that Keyward made; checks the whole shape of it.
    pub fn refusal(&self) -> String {
        let code = self.header("keyward-error").to_owned();
        let body = self.json();
        assert_eq!(body["detail"]["code"], code, "{body}");
        assert!(body["detail"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        assert_eq!(body["request_id"], self.header("keyward-request-id"), "{body}");
        assert!(self.header("keyward-request-id").starts_with("req_"));
        code
    }
}

impl World {
    pub async fn new(backend: Backend) -> Self {
        Self::with_clock(backend, Clock::system()).await
    }

    pub async fn with_clock(backend: Backend, clock: Clock) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let outside = Shutdown::new();
        let sandbox = Sandbox::start("127.0.0.1:0".parse().unwrap(), &outside).await.unwrap();
        sandbox.set_clock(clock.clone());
        let (store_url, database) = match backend {
            Backend::Sqlite => ("sqlite://keyward.db".to_owned(), None),
            Backend::Postgres => {
                let name = format!("kw_it_{}", keyward::ids::random::<8>().map(|b| format!("{b:02x}")).concat());
                let url = std::env::var("KEYWARD_TEST_POSTGRES").unwrap();
                postgres(&url, &format!("create database {name}")).await;
                let mut url = Url::parse(&url).unwrap();
                url.set_path(&name);
                (url.to_string(), Some(name))
            }
        };
        Self { sandbox, clock, outside, dir, store_url, database }
    }

    pub fn config(&self, settings: &Settings) -> Config {
        let allow = if settings.loopback { r#"["127.0.0.0/8", "::1/128"]"# } else { "[]" };
        let postgres = self.store_url.starts_with("postgres");
        // Dotted, so that a test may open `[store]` itself.
        let store = if postgres { String::new() } else { format!("store.url = \"{}\"\n", self.store_url) };
        let text = format!(
            "{store}proxy.listen = \"127.0.0.1:0\"\nproxy.workers = 1\nadmin.listen = \"127.0.0.1:0\"\negress.allow = {allow}\n\
             [providers.sandbox.inputs.origin]\ndefault = \"{}\"\n{}\n",
            self.sandbox.origin(),
            settings.toml
        );
        let mut env = BTreeMap::from([
            ("KEYWARD_ADMIN_TOKEN".to_owned(), ADMIN.to_owned()),
            ("KEYWARD_SEALING_KEYS".to_owned(), SEALING.to_owned()),
            ("OAUTH_SANDBOX_CLIENT_ID".to_owned(), self.sandbox.client_id().to_owned()),
            ("OAUTH_SANDBOX_CLIENT_SECRET".to_owned(), self.sandbox.client_secret().to_owned()),
        ]);
        if postgres {
            env.insert("KEYWARD_STORE_URL".to_owned(), self.store_url.clone());
        }
        env.extend(settings.env.clone());
        Config::parse(&text, "test.toml", self.dir.path(), Env::from_iter(env)).unwrap()
    }

    pub async fn instance(&self, settings: &Settings) -> App {
        App::start(self.config(settings), self.clock.clone()).await.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.outside.stop_now();
        if let Some(name) = self.database.take() {
            let url = std::env::var("KEYWARD_TEST_POSTGRES").unwrap_or_default();
            // A thread of its own: dropping happens in async code, and the database should be gone even after a panic.
            let _ = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(postgres(&url, &format!("drop database if exists {name} with (force)")));
            })
            .join();
        }
    }
}

async fn postgres(url: &str, statement: &str) {
    use sqlx::{Connection, Executor};
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(statement.to_owned())).await.unwrap();
    connection.close().await.unwrap();
}

impl Keyward {
    /// On SQLite, with nothing unusual.
    pub async fn start() -> Self {
        Self::with(Backend::Sqlite, Settings::default()).await
    }

    pub async fn with(backend: Backend, settings: Settings) -> Self {
        let world = World::new(backend).await;
        let app = world.instance(&settings).await;
        Self { world, app, settings }
    }

    /// On a clock that the test moves; the sandbox goes by it too.
    pub async fn with_clock(backend: Backend, settings: Settings, clock: Clock) -> Self {
        let world = World::with_clock(backend, clock).await;
        let app = world.instance(&settings).await;
        Self { world, app, settings }
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.world.sandbox
    }

    /// Stops the gateway and everything around it.
    pub async fn stop(self) {
        self.app.stop().await;
        self.world.outside.stop_now();
    }

    /// A call of the admin API with the admin token.
    pub async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        admin(self.app.admin_address(), method, path, body).await
    }

    /// As [`Keyward::admin`] below `/api/organizations/default`; anything but 2xx fails the test.
    pub async fn api(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = self.admin(method, &format!("/api/organizations/default{path}"), body).await;
        assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.text());
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    /// Connects `person` at the sandbox (reading and writing, all capabilities): the whole flow, pasted back.
    pub async fn connect(&self, person: &str) -> Value {
        connect(self.app.admin_address(), person, "preset=write").await
    }

    pub async fn new_key(&self) -> Key {
        let key = self.api("POST", "/keys", Some(json!({"name": "test"}))).await;
        Key { id: key["id"].as_str().unwrap().to_owned(), secret: key["key"].as_str().unwrap().to_owned() }
    }

    pub async fn grant(&self, key: &Key, slug: &str, access: &str) {
        self.api("PUT", &format!("/keys/{}/grants/{slug}", key.id), Some(json!({"access": access}))).await;
    }

    /// A static target on the sandbox's `/tools`, with a bearer credential; its slug is `tools`.
    pub async fn tools(&self) {
        let base_url = format!("{}/tools", self.sandbox().origin());
        let credential = json!({"kind": "bearer", "token": "the-injected-token"});
        let target = json!({"slug": "tools", "name": "Tools", "base_url": base_url, "credential": credential});
        self.api("POST", "/targets", Some(target)).await;
    }

    /// An account, and a key that may write to all of its targets.
    pub async fn connected(&self) -> (Value, Key) {
        let account = self.connect("ada@example.com").await;
        let key = self.new_key().await;
        for target in account["targets"].as_array().unwrap() {
            self.grant(&key, target["slug"].as_str().unwrap(), "write").await;
        }
        (account, key)
    }

    /// A request of an agent.
    pub async fn agent(&self, key: &Key, method: &str, path: &str) -> Answer {
        let request = agent_request(key, method, path).body(Full::default()).unwrap();
        call(self.app.proxy_address(), request).await
    }

    /// Audit records of requests, newest first.
    pub async fn audit(&self, query: &str) -> Vec<Value> {
        self.api("GET", &format!("/audit?limit=200{query}"), None).await["items"].as_array().unwrap().clone()
    }
}

/// The slug of an account's target for a capability.
pub fn slug(account: &Value, capability: &str) -> String {
    let targets = account["targets"].as_array().unwrap();
    let target = targets.iter().find(|target| target["capability"] == capability).unwrap();
    target["slug"].as_str().unwrap().to_owned()
}

pub fn agent_request(key: &Key, method: &str, path: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header(header::HOST, "keyward.test")
        .header(header::AUTHORIZATION, format!("Bearer {}", key.secret))
}

pub async fn admin(address: SocketAddr, method: &str, path: &str, body: Option<Value>) -> Answer {
    let mut request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header(header::HOST, address.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {ADMIN}"));
    let body = match body {
        Some(body) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Full::from(body.to_string())
        }
        None => Full::default(),
    };
    call(address, request.body(body).unwrap()).await
}

/// One request on a connection of its own.
pub async fn call(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let exchange = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        driver.abort();
        Answer { status: parts.status, headers: parts.headers, body }
    };
    tokio::time::timeout(Duration::from_secs(60), exchange).await.expect("an answer within a minute")
}

/// Begins a flow by API and opens its page as a browser would; answers the provider's URL and the flow's cookie.
pub async fn open_flow(admin_address: SocketAddr, query: &str) -> (Url, String) {
    let path = format!("/api/organizations/default/integrations/sandbox/auth_link?{query}");
    let link = admin(admin_address, "GET", &path, None).await;
    assert_eq!(link.status, StatusCode::OK, "{}", link.text());
    let page = Url::parse(link.json()["authorization_url"].as_str().unwrap()).unwrap();
    let request = Request::post(page.path())
        .header(header::HOST, admin_address.to_string())
        .header(header::ORIGIN, format!("http://{admin_address}"))
        .body(Full::default())
        .unwrap();
    let opened = call(admin_address, request).await;
    assert_eq!(opened.status, StatusCode::SEE_OTHER, "{}", opened.text());
    let cookie = opened.header("set-cookie").split(';').next().unwrap().to_owned();
    (Url::parse(opened.header("location")).unwrap(), cookie)
}

/// Answers the sandbox's consent page; answers the URL that the browser is sent back to.
pub async fn consent(authorization: &Url, person: &str, decision: &str) -> Url {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in authorization.query_pairs() {
        if name == "scope" {
            for scope in value.split(' ') {
                form.append_pair("granted", scope);
            }
        }
        form.append_pair(&name, &value);
    }
    form.append_pair("person", person).append_pair("decision", decision);
    let request = Request::post(authorization.path())
        .header(header::HOST, authorization.authority())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::from(form.finish()))
        .unwrap();
    let address = authorization.socket_addrs(|| None).unwrap()[0];
    let answer = call(address, request).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text());
    Url::parse(answer.header("location")).unwrap()
}

/// One value of a URL's query.
pub fn query(url: &Url, name: &str) -> String {
    url.query_pairs().find(|(key, _)| key == name).map_or_else(String::new, |(_, value)| value.into_owned())
}

/// The whole connect flow with the admin token and paste-back.
pub async fn connect(admin_address: SocketAddr, person: &str, options: &str) -> Value {
    let (authorization, _) = open_flow(admin_address, options).await;
    let back = consent(&authorization, person, "allow").await;
    let answer = paste_back(admin_address, &back).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()
}

pub async fn paste_back(admin_address: SocketAddr, back: &Url) -> Answer {
    let body = json!({"code": query(back, "code"), "state": query(back, "state")});
    let path = "/api/organizations/default/integrations/sandbox/callback";
    admin(admin_address, "POST", path, Some(body)).await
}

//! How Keyward starts and what it holds with 100,000 accounts and 10,000 keys, and what a failing provider gets to feel.
//!
//! `cargo bench --bench scale` (about two minutes; `-- start` or `-- failing` for one part). Whole processes and real
//! sockets; figures are for comparing two builds on one machine, never for a test.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that can't go on has failed; its figures are its output"
)]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use keyward::access::NewKey;
use keyward::accounts::{Begin, Callback, Proof};
use keyward::app::App;
use keyward::audit::Actor;
use keyward::catalog::Preset;
use keyward::clock::Clock;
use keyward::config::{Config, Env};
use keyward::ids::{AccountId, KeyId, TargetId};
use keyward::sandbox::{Fault, Sandbox};
use keyward::secret::Secret;
use keyward::shutdown::Shutdown;
use keyward::store::GrantAccess;
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::net::TcpStream;

const ACCOUNTS: usize = 100_000;
const KEYS: usize = 10_000;
const SEALING: &str = "bench:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn main() {
    let asked: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    // `cargo test` runs benches to see that they start.
    if std::env::args().any(|arg| arg == "--test") || !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let wants = |part: &str| asked.is_empty() || asked.iter().any(|arg| arg == part);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if wants("start") {
        runtime.block_on(start());
    }
    if wants("failing") {
        runtime.block_on(failing());
    }
}

fn config(folder: &std::path::Path, sandbox: &Sandbox) -> Config {
    let text = format!(
        "proxy.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\negress.allow = [\"127.0.0.0/8\"]\n\
         [providers.sandbox.inputs.origin]\ndefault = \"{}\"\n",
        sandbox.origin()
    );
    let env = Env::from_iter([
        ("KEYWARD_ADMIN_TOKEN", "kwa_a-token-for-benches-and-nothing-else"),
        ("KEYWARD_SEALING_KEYS", SEALING),
        ("OAUTH_SANDBOX_CLIENT_ID", sandbox.client_id()),
        ("OAUTH_SANDBOX_CLIENT_SECRET", sandbox.client_secret()),
    ]);
    Config::parse(&text, "bench.toml", folder, env).unwrap()
}

/// A process that is ended whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fills a store, starts the binary on it, and says how long it took to be ready and how much memory it holds then.
async fn start() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Shutdown::new();
    let sandbox = Sandbox::start("127.0.0.1:0".parse().unwrap(), &outside).await.unwrap();
    let app = App::start(config(folder.path(), &sandbox), Clock::system()).await.unwrap();
    let org = app.store().organization("default").await.unwrap().unwrap().id;
    app.stop().await;
    let path = folder.path().join("keyward.db");
    let mut db = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    db.execute("begin").await.unwrap();
    let mut targets = Vec::with_capacity(ACCOUNTS * 2);
    let far = 4_000_000_000_000_i64;
    for n in 0..ACCOUNTS {
        let id = AccountId::new();
        sqlx::query(
            "insert into accounts (id, organization, provider, subject, email, status, validity, scopes, missing_scopes, \
             preset, access_token, refresh_token, access_expires_at, access_ttl_ms, captures, generation, created_at, \
             updated_at) values ($1, $2, 'sandbox', $3, $4, 'connected', 'valid', '[]', '[]', 'write', $5, $5, $6, \
             3600000, '{}', 1, 0, 0)",
        )
        .bind(id)
        .bind(org)
        .bind(format!("subject-{n}"))
        .bind(format!("person-{n}@example.com"))
        .bind(vec![7_u8; 120])
        .bind(far)
        .execute(&mut db)
        .await
        .unwrap();
        for capability in ["mail", "calendar"] {
            let target = TargetId::new();
            sqlx::query(
                "insert into targets (id, organization, slug, name, kind, account, provider, capability, created_at, \
                 updated_at) values ($1, $2, $3, $3, 'managed', $4, 'sandbox', $5, 0, 0)",
            )
            .bind(target)
            .bind(org)
            .bind(format!("person-{n}-{capability}"))
            .bind(id)
            .bind(capability)
            .execute(&mut db)
            .await
            .unwrap();
            targets.push(target);
        }
    }
    for n in 0..KEYS {
        let key = KeyId::new();
        let hash = keyward::secret::sha256(format!("key {n}").as_bytes()).to_vec();
        sqlx::query(
            "insert into keys (id, organization, name, hash, prefix, allowed_ips, created_at) \
             values ($1, $2, $3, $4, 'kw_…', '[]', 0)",
        )
        .bind(key)
        .bind(org)
        .bind(format!("key {n}"))
        .bind(hash)
        .execute(&mut db)
        .await
        .unwrap();
        for grant in 0..5 {
            sqlx::query("insert into grants (agent_key, target, access, created_at) values ($1, $2, 'write', 0)")
                .bind(key)
                .bind(targets[(n * 5 + grant) % targets.len()])
                .execute(&mut db)
                .await
                .unwrap();
        }
    }
    db.execute("commit").await.unwrap();
    db.close().await.unwrap();

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = folder.path().join("gateway.toml");
    let text = format!("proxy.listen = \"127.0.0.1:{port}\"\nadmin.listen = \"127.0.0.1:0\"\n");
    std::fs::write(&file, text).unwrap();
    for round in 1..=3 {
        let begun = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_keyward"))
            .args(["serve", "--config"])
            .arg(&file)
            .env_clear()
            .env("KEYWARD_ADMIN_TOKEN", "kwa_a-token-for-benches-and-nothing-else")
            .env("KEYWARD_SEALING_KEYS", SEALING)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let running = Running(child);
        while !ready(port).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = begun.elapsed();
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
        let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        println!(
            "start {round}: {ACCOUNTS} accounts, {KEYS} keys, {} grants: ready after {} ms, {}",
            KEYS * 5,
            took.as_millis(),
            resident.split_whitespace().collect::<Vec<_>>().join(" ")
        );
    }
    outside.stop_now();
}

async fn ready(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let Ok((mut sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await else {
        return false;
    };
    tokio::spawn(connection);
    let request = Request::get("/readyz").header("host", "bench").body(Full::<Bytes>::default()).unwrap();
    sender.send_request(request).await.is_ok_and(|answer| answer.status() == 200)
}

/// 2,000 requests a second for a minute against an account whose provider fails.
async fn failing() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Shutdown::new();
    let sandbox = Sandbox::start("127.0.0.1:0".parse().unwrap(), &outside).await.unwrap();
    sandbox.set_access_ttl(Duration::from_secs(2));
    sandbox.set_recording(false);
    let app = App::start(config(folder.path(), &sandbox), Clock::system()).await.unwrap();
    let org = app.store().organization("default").await.unwrap().unwrap();
    let begun = app
        .accounts()
        .begin(Begin {
            organization: org.id,
            provider: "sandbox".to_owned(),
            capabilities: Vec::new(),
            preset: Some(Preset::Write),
            account: None,
            inputs: std::collections::BTreeMap::new(),
            actor: Actor::System,
        })
        .await
        .unwrap();
    let opened = app.accounts().open(begun.flow).await.unwrap();
    let mut back: std::collections::BTreeMap<String, String> =
        consent(&opened.authorization_url).await.query_pairs().into_owned().collect();
    let callback = Callback {
        provider: "sandbox".to_owned(),
        state: back.remove("state").map(Secret::new),
        code: back.remove("code").map(Secret::new),
        error: None,
        iss: back.remove("iss"),
        rest: back,
    };
    let connected = app.accounts().finish(callback, Proof::Cookie(Some(opened.cookie))).await.unwrap();
    let new = NewKey { name: "bench".to_owned(), expires_at: None, allowed_ips: Vec::new(), rate_limit: None };
    let (key, secret) = app.access().create_key(org.id, new, &Actor::System).await.unwrap();
    let mail = connected.account.targets.iter().find(|target| target.capability == "mail").unwrap();
    app.access().put_grant(org.id, key.id, &mail.slug, GrantAccess::Read, &Actor::System).await.unwrap();
    sandbox.faults().token(Fault::Status { status: 503, retry_after: None });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = sandbox.counters().token_arrived;

    let (served, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let seconds = 60;
    let mut load = Vec::new();
    for _ in 0..20 {
        let (address, path) = (app.proxy_address(), format!("/proxy/{}/me/messages", mail.slug));
        let (authorization, served, refused) =
            (format!("Bearer {}", secret.expose()), Arc::clone(&served), Arc::clone(&refused));
        load.push(tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            // 100 a second on each of 20 connections.
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            for _ in 0..seconds * 100 {
                tick.tick().await;
                let request = Request::get(&path)
                    .header("host", "bench")
                    .header("authorization", &authorization)
                    .body(Full::<Bytes>::default())
                    .unwrap();
                sender.ready().await.unwrap();
                let answer = sender.send_request(request).await.unwrap();
                let counter = if answer.status() == 200 { &served } else { &refused };
                counter.fetch_add(1, Ordering::Relaxed);
                answer.into_body().collect().await.unwrap();
            }
        }));
    }
    let clock = Instant::now();
    for task in load {
        task.await.unwrap();
    }
    let requests = served.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed);
    println!(
        "failing provider: {requests} requests in {:.0} s ({} refused with a code), {} token calls for the account",
        clock.elapsed().as_secs_f64(),
        refused.load(Ordering::Relaxed),
        sandbox.counters().token_arrived - before
    );
    app.stop().await;
    outside.stop_now();
}

/// Ada allows everything.
async fn consent(authorization_url: &str) -> url::Url {
    let url = url::Url::parse(authorization_url).unwrap();
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in url.query_pairs() {
        if name == "scope" {
            for scope in value.split(' ') {
                form.append_pair("granted", scope);
            }
        }
        form.append_pair(&name, &value);
    }
    form.append_pair("person", "ada@example.com").append_pair("decision", "allow");
    let stream = TcpStream::connect(url.socket_addrs(|| None).unwrap()[0]).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(url.path())
        .header("host", url.authority())
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(form.finish())))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    url::Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap()
}

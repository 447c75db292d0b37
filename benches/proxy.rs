//! What Keyward costs, measured on one machine in one run: `cargo bench --bench proxy`, or with some of the words `relay`,
//! `waiters` and `admission` behind `--` for a part of it. Absolute figures are this machine's; believe the ratios.
//!
//! - `relay`: 1 KiB over kept connections with a cached token, straight to the origin and through Keyward in turns.
//! - `waiters`: 1,000 requests that all wait for one expired token, at a provider that takes a second.
//! - `admission`: from the presented key to the decision, among 10,000 keys.

#![expect(clippy::unwrap_used, reason = "a measurement that can't go on has failed")]
#![expect(clippy::print_stdout, reason = "the tables are the result")]

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/it/harness.rs"]
mod harness;
mod load;

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use http::Method;
use keyward::access::{AgentKey, Verdict};
use keyward::clock::Timestamp;
use keyward::ids::KeyId;
use keyward::sandbox::Fault;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Executor};

use harness::{Backend, Key, Keyward, Settings, slug};
use load::{Client, load, on_a_thread};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of one measured span.
const SPAN: Duration = Duration::from_secs(1);
/// Turns of direct and through.
const ROUNDS: usize = 4;
const WAITERS: usize = 1_000;
const KEYS: usize = 10_000;
const DECISIONS: usize = 2_000_000;
/// Keys that are presented one after the other.
const AT_HAND: usize = 16;
/// How long the provider takes in `waiters`.
const PROVIDER: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo says `--bench` for `cargo bench` alone; tests of all targets run this program too.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let wanted = |part: &str| {
        let mut named = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
        named.peek().is_none() || named.any(|argument| argument == part)
    };
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum }).unwrap();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let world = runtime.worker_threads(2).thread_name("bench-main").enable_all().build().unwrap();
    let origin = load::origin();
    let keyward = world.block_on(start(origin));
    if wanted("relay") {
        world.block_on(relay(&keyward, origin));
    }
    if wanted("waiters") {
        world.block_on(waiters(&keyward));
    }
    if wanted("admission") {
        world.block_on(admission(&keyward));
    }
    world.block_on(keyward.stop());
}

/// A gateway whose mail goes to our origin: the token is a real one, the upstream is a cheap one.
async fn start(origin: SocketAddr) -> Keyward {
    let toml = format!("[providers.sandbox.capabilities.mail]\nbase_url = \"http://{origin}\"\n");
    Keyward::with(Backend::Sqlite, Settings { toml, ..Settings::default() }).await
}

/// The bytes that an agent sends to read its mail.
fn request(key: &Key, mail: &str) -> String {
    format!(
        "GET /proxy/{mail}/me/messages?$top=5 HTTP/1.1\r\nhost: keyward.example.com\r\nauthorization: Bearer {}\r\n\
         accept: application/json\r\nuser-agent: bench\r\n\r\n",
        key.secret
    )
}

// ── relay ───────────────────────────────────────────────────────────────────────────────────────────────────────

async fn relay(keyward: &Keyward, origin: SocketAddr) {
    let (account, key) = keyward.connected().await;
    let through = request(&key, &slug(&account, "mail"));
    let direct = through.replace(&format!("/proxy/{}", slug(&account, "mail")), "");
    let proxy = keyward.app.proxy_address();
    load(proxy, &through, 8, SPAN / 4);
    println!("relay: 1 KiB, kept connections, cached token; {ROUNDS} rounds of {SPAN:?} each way, medians");
    println!(
        "connections        way  requests/s   p50 µs   p99 µs   CPU µs: proxy    rest   through/direct: requests/s, p50"
    );
    for connections in [1, 16, 64] {
        let (mut straight, mut proxied) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            // First one, then the other first: drift of the machine hits both.
            for way in if round % 2 == 0 { [false, true] } else { [true, false] } {
                let before = Spent::now();
                if way {
                    proxied.push(Row::of(&load(proxy, &through, connections, SPAN), &before));
                } else {
                    straight.push(Row::of(&load(origin, &direct, connections, SPAN), &before));
                }
                // What was written down is stored before the other way is measured.
                keyward.app.audit().flush().await;
            }
        }
        let ratio = |of: fn(&Row) -> f64| median(proxied.iter().zip(&straight).map(|(a, b)| of(a) / of(b)));
        let show = |way: &str, rows: &[Row], cpu: bool| {
            let of = |field: fn(&Row) -> f64| median(rows.iter().map(field));
            print!(
                "{connections:>11} {way:>10} {:>11.0} {:>8.0} {:>8.0}",
                of(|r| r.rate),
                of(|r| r.p50),
                of(|r| r.p99)
            );
            if cpu {
                print!("   {:>13.1} {:>7.1}", of(|r| r.proxy), of(|r| r.rest));
            }
        };
        show("direct", &straight, false);
        println!();
        show("through", &proxied, true);
        println!("   {:>15.2}, {:.2}", ratio(|r| r.rate), ratio(|r| r.p50));
    }
    println!(
        "(on few cores, both ends and the audit trail's database share them with the proxy: CPU counts, not requests/s)\n"
    );
}

struct Row {
    rate: f64,
    p50: f64,
    p99: f64,
    proxy: f64,
    rest: f64,
}

impl Row {
    fn of(seen: &load::Seen, before: &Spent) -> Self {
        let (after, requests) = (Spent::now(), seen.requests() as f64);
        Self {
            rate: seen.per_second(),
            p50: seen.micros(0.5),
            p99: seen.micros(0.99),
            proxy: (after.proxy - before.proxy) / requests,
            rest: (after.rest - before.rest) / requests,
        }
    }
}

/// CPU time of Keyward's threads in µs, by the kernel's count: the worker that serves agents, and the threads that write
/// the audit trail. Zero where the kernel does not tell.
#[derive(Default)]
struct Spent {
    proxy: f64,
    rest: f64,
}

impl Spent {
    fn now() -> Self {
        let mut spent = Self::default();
        for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            let (name, times) = (read("comm"), read("schedstat"));
            let micros = times.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e3;
            if name.starts_with("keyward-proxy") {
                spent.proxy += micros;
            } else if name.starts_with("sqlx-") || name.starts_with("bench-main") {
                spent.rest += micros;
            }
        }
        spent
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

// ── waiters ─────────────────────────────────────────────────────────────────────────────────────────────────────

async fn waiters(keyward: &Keyward) {
    println!("waiters: {WAITERS} requests at once on one expired token, a provider that takes {PROVIDER:?}");
    println!("round   token calls   first answer   last answer   (ms after the token's arrival)");
    for round in 1..=3 {
        let sandbox = keyward.sandbox();
        sandbox.set_access_ttl(Duration::from_secs(1));
        let account = keyward.connect(&format!("ada+waiter{round}@example.com")).await;
        let key = keyward.new_key().await;
        let mail = slug(&account, "mail");
        keyward.grant(&key, &mail, "read").await;
        sandbox.set_access_ttl(Duration::from_secs(3600));
        sandbox.faults().token_times(Fault::SlowAfterWork(PROVIDER), 1);
        tokio::time::sleep(Duration::from_millis(1100)).await;

        let before = sandbox.counters().token_arrived;
        let (address, request) = (keyward.app.proxy_address(), request(&key, &mail));
        let asked = on_a_thread("bench-load", all_at_once(address, request));
        sandbox.wait_for_token_calls(before + 1).await;
        let arrives = Instant::now() + PROVIDER;
        let answers = tokio::task::spawn_blocking(|| asked.join().unwrap()).await.unwrap();
        let calls = sandbox.counters().token_arrived - before;
        let after = |at: Option<&Instant>| at.unwrap().saturating_duration_since(arrives).as_secs_f64() * 1e3;
        println!("{round:>5} {calls:>13} {:>14.1} {:>13.1}", after(answers.iter().min()), after(answers.iter().max()));
        assert_eq!((answers.len(), calls), (WAITERS, 1));
    }
    println!();
}

/// Opens the connections first, then asks on all of them; answers when each answer was whole.
async fn all_at_once(address: SocketAddr, request: String) -> Vec<Instant> {
    let mut clients = Vec::with_capacity(WAITERS);
    for _ in 0..WAITERS {
        clients.push(Client::connect(address, &request).await);
    }
    let ask = |mut client: Client| async move {
        client.ask().await;
        Instant::now()
    };
    let tasks: Vec<_> = clients.into_iter().map(|client| tokio::task::spawn_local(ask(client))).collect();
    let mut answers = Vec::with_capacity(WAITERS);
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

// ── admission ───────────────────────────────────────────────────────────────────────────────────────────────────

async fn admission(keyward: &Keyward) {
    let account = keyward.connect("ada+admission@example.com").await;
    let mail = slug(&account, "mail");
    let first = keyward.new_key().await;
    keyward.grant(&first, &mail, "read").await;
    let keys = many_keys(keyward, &first).await;
    let access = keyward.app.access();
    let reloaded = Instant::now();
    access.reload().await.unwrap();
    println!(
        "admission: {KEYS} keys with a grant each, {DECISIONS} decisions (snapshot read in {:?})",
        reloaded.elapsed()
    );

    let from = IpAddr::from([127, 0, 0, 1]);
    let clock = &keyward.world.clock;
    let measure = |what: &str, key_of: &dyn Fn(usize) -> usize| {
        let mut spent = Duration::ZERO;
        for turn in (0..DECISIONS).step_by(AT_HAND) {
            // A key that is presented has just been read from a socket.
            let presented: [Vec<u8>; AT_HAND] =
                std::array::from_fn(|next| keys[key_of(turn + next)].expose().as_bytes().to_vec());
            let start = Instant::now();
            for key in &presented {
                let policy = access.snapshot().unwrap();
                let agent = policy.identify(black_box(key), from, clock.now()).unwrap();
                let verdict =
                    policy.verdict(&agent, black_box(&mail), &Method::GET, black_box("/me/messages/AAMkAGI2"));
                assert!(matches!(black_box(verdict), Verdict::Allow(_)));
            }
            spent += start.elapsed();
        }
        println!("  {what:<28} {:>5.0} ns", spent.as_nanos() as f64 / DECISIONS as f64);
    };
    measure("the same key", &|_| 0);
    // 7919 shares no factor with the number of keys: all of them, in an order that no prefetcher follows.
    measure("another key each time", &|turn| turn * 7919 % KEYS);
}

/// Keys as `like`, with its grants: written in one transaction, because an act for each would read the policy 10,000 times.
async fn many_keys(keyward: &Keyward, like: &Key) -> Vec<AgentKey> {
    let keys: Vec<AgentKey> = (0..KEYS).map(|_| AgentKey::generate()).collect();
    let file = SqliteConnectOptions::new().filename(keyward.world.dir.path().join("keyward.db"));
    let mut connection = SqliteConnection::connect_with(&file.busy_timeout(Duration::from_secs(5))).await.unwrap();
    connection.execute("begin immediate").await.unwrap();
    for key in &keys {
        let id = KeyId::new();
        let text = "insert into keys (id, organization, name, hash, prefix, allowed_ips, created_at) \
                    select $1, organization, name, $2, prefix, allowed_ips, $3 from keys where id = $4";
        let now = Timestamp::default().millis();
        let made = sqlx::query(text).bind(id).bind(key.hash().to_vec()).bind(now).bind(&like.id);
        assert_eq!(made.execute(&mut connection).await.unwrap().rows_affected(), 1);
        let text = "insert into grants (agent_key, target, access, created_at) \
                    select $1, target, access, created_at from grants where agent_key = $2";
        let granted = sqlx::query(text).bind(id).bind(&like.id);
        assert_eq!(granted.execute(&mut connection).await.unwrap().rows_affected(), 1);
    }
    connection.execute("commit").await.unwrap();
    connection.close().await.unwrap();
    keys
}

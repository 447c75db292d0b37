//! When the database fails: nothing is asked of a provider that could not be stored, what came is kept until it is stored,
//! traffic with tokens in memory goes on for a while and then fails closed, and all heals without a restart.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use keyward::clock::{Clock, Timestamp};
use keyward::sandbox::{Fault, Rotation};
use serde_json::Value;
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::{Answer, Backend, Key, Keyward, Settings, World, slug};

const HOURS: Duration = Duration::from_secs(2 * 3600);

fn held() -> Clock {
    Clock::held(Timestamp::from_millis(1_795_000_000_000))
}

async fn sqlite(toml: &str) -> (Keyward, Value, Key) {
    let settings = Settings { toml: toml.to_owned(), ..Settings::default() };
    let kw = Keyward::with_clock(Backend::Sqlite, settings, held()).await;
    kw.sandbox().set_rotation(Rotation::Strict);
    let (account, key) = kw.connected().await;
    (kw, account, key)
}

async fn mail(kw: &Keyward, account: &Value, key: &Key) -> Answer {
    kw.agent(key, "GET", &format!("/proxy/{}/me/messages?$top=1", slug(account, "mail"))).await
}

/// Holds SQLite's write lock until it is dropped, as a full disk or a stuck backup would.
struct WriteLock(SqliteConnection);

impl WriteLock {
    async fn take(world: &World) -> Self {
        let path = world.dir.path().join("keyward.db");
        let mut connection = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        connection.execute("begin immediate").await.unwrap();
        Self(connection)
    }

    async fn release(mut self) {
        self.0.execute("rollback").await.unwrap();
        self.0.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_of_a_provider_that_could_not_be_stored() {
    let (kw, account, key) = sqlite("[refresh]\nwait = \"7s\"").await;
    assert_eq!(mail(&kw, &account, &key).await.status, 200);
    let lock = WriteLock::take(&kw.world).await;
    assert_eq!(mail(&kw, &account, &key).await.status, 200, "a token in memory needs no database");
    kw.world.clock.advance(HOURS);
    let answer = mail(&kw, &account, &key).await;
    assert_eq!(answer.refusal(), "token_unavailable");
    assert!(!answer.header("retry-after").is_empty());
    assert_eq!(kw.sandbox().counters().refresh_calls(), 0, "no call whose result could not be stored");
    lock.release().await;
    assert_eq!(mail(&kw, &account, &key).await.status, 200, "healed without a restart");
    assert_eq!(kw.sandbox().counters().refresh_calls(), 1);
    kw.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_can_not_be_stored_is_kept_until_it_is() {
    let (kw, account, key) = sqlite("[refresh]\nwait = \"500ms\"").await;
    kw.sandbox().faults().token_times(Fault::SlowAfterWork(Duration::from_millis(400)), 1);
    kw.world.clock.advance(HOURS);
    let asked = mail(&kw, &account, &key);
    let locked = async {
        kw.sandbox().wait_for_token_calls(2).await;
        WriteLock::take(&kw.world).await
    };
    let (answer, lock) = tokio::join!(asked, locked);
    assert_eq!(answer.refusal(), "token_unavailable", "the waiter is let go, the refresh goes on");
    // Longer than one try of the store takes: the first save has failed when the lock goes.
    tokio::time::sleep(Duration::from_secs(6)).await;
    lock.release().await;
    let begun = Instant::now();
    while mail(&kw, &account, &key).await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(15), "the tokens are lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counters = kw.sandbox().counters();
    assert_eq!((counters.refresh_calls(), counters.reuse_detected), (1, 0), "the one result was stored in the end");
    kw.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_can_not_be_stored_before_the_end_waits_sealed_for_the_next_start() {
    let (kw, account, key) =
        sqlite("[refresh]\nwait = \"500ms\"\ntimeout = \"3s\"\n[shutdown]\ndeadline = \"1s\"").await;
    kw.sandbox().faults().token_times(Fault::SlowAfterWork(Duration::from_millis(400)), 1);
    kw.world.clock.advance(HOURS);
    let asked = mail(&kw, &account, &key);
    let locked = async {
        kw.sandbox().wait_for_token_calls(2).await;
        WriteLock::take(&kw.world).await
    };
    let (_, lock) = tokio::join!(asked, locked);
    let Keyward { world, app, settings } = kw;
    app.stop().await;
    lock.release().await;
    let spilled: Vec<_> = std::fs::read_dir(world.dir.path().join("keyward.spill")).unwrap().collect();
    assert_eq!(spilled.len(), 1, "one sealed token waits");

    let app = world.instance(&settings).await;
    let kw = Keyward { world, app, settings };
    let begun = Instant::now();
    loop {
        let answer = mail(&kw, &account, &key).await;
        if answer.status == 200 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", answer.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(std::fs::read_dir(kw.world.dir.path().join("keyward.spill")).unwrap().count(), 0);
    kw.stop().await;
}

/// A TCP relay that can be frozen: bytes stop, connections stay, as with a server behind a dead switch.
struct Relay {
    address: SocketAddr,
    frozen: watch::Sender<bool>,
}

impl Relay {
    async fn to(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let frozen = watch::Sender::new(false);
        let state = frozen.subscribe();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (state, upstream) = (state.clone(), upstream.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(upstream).await else { return };
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    tokio::join!(pump(near_read, far_write, state.clone()), pump(far_read, near_write, state));
                });
            }
        });
        Self { address, frozen }
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 || frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..read]).await.is_err()
        {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_stalls_is_survived_and_then_fails_closed() {
    if std::env::var_os("KEYWARD_TEST_POSTGRES").is_none() {
        return;
    }
    let mut world = World::with_clock(Backend::Postgres, held()).await;
    let mut url = url::Url::parse(&world.store_url).unwrap();
    let relay = Relay::to(format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432))).await;
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(relay.address.port())).unwrap();
    world.store_url = url.to_string();
    let settings = Settings {
        toml: "[store]\nmax_stale = \"4s\"\n[refresh]\nwait = \"1s\"\n[shutdown]\ndeadline = \"2s\"".to_owned(),
        ..Settings::default()
    };
    let app = world.instance(&settings).await;
    let kw = Keyward { world, app, settings };
    kw.sandbox().set_rotation(Rotation::Strict);
    let (account, key) = kw.connected().await;
    assert_eq!(mail(&kw, &account, &key).await.status, 200);

    relay.frozen.send_replace(true);
    let begun = Instant::now();
    assert_eq!(mail(&kw, &account, &key).await.status, 200, "a token in memory needs no database");
    let closed = loop {
        let answer = mail(&kw, &account, &key).await;
        if answer.status != 200 {
            break answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "never fails closed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(closed.refusal(), "store_unavailable");
    assert!(begun.elapsed() > Duration::from_secs(3), "not before max_stale");
    // Long enough for every connection of the pool to be given up on.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(kw.sandbox().counters().refresh_calls(), 0);

    relay.frozen.send_replace(false);
    kw.world.clock.advance(HOURS);
    let begun = Instant::now();
    loop {
        let answer = mail(&kw, &account, &key).await;
        if answer.status == 200 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", answer.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(kw.sandbox().counters().refresh_calls(), 1, "healed without a restart");
    kw.stop().await;
}

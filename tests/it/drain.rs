//! Stopping: what runs is finished, nothing new is taken, and it ends in time.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;
use keyward::app::App;
use keyward::clock::{Clock, Timestamp};
use keyward::sandbox::Fault;
use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::{Backend, Key, Keyward, Settings, World, admin, agent_request, call, connect, slug};
use crate::wire::{Process, Strict, Upstream, Wire, eventually, head, holds};

/// An answer that begins and never ends.
async fn endless() -> Upstream {
    Upstream::start(|mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        line.say("9\r\ndata: 0\n\n\r\n").await;
        line.until(b"never").await;
    })
    .await
}

async fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_finished_and_nothing_new_is_taken() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let (proxy, people) = (k.app.proxy_address(), k.app.admin_address());
    // A kept connection between requests, one in the middle of an answer, one in the middle of an upload.
    let mut idle = k.wire().await;
    idle.send(head(&key, "GET /proxy/tools/1k", &[])).await;
    assert_eq!(idle.answer().await.status, 200);
    let mut slow = k.wire().await;
    slow.send(head(&key, "GET /proxy/tools/slow?ms=1500", &[])).await;
    let mut trickle = k.wire().await;
    trickle.send(head(&key, "GET /proxy/tools/trickle?bytes=30&interval_ms=50", &[])).await;
    let mut upload = k.wire().await;
    upload.send(head(&key, "POST /proxy/tools/echo", &["Content-Length: 100000"])).await;
    k.sandbox().wait_for_upstream_calls(4).await;

    let begun = Instant::now();
    let Keyward { world, app, .. } = k;
    let stopping = tokio::spawn(app.stop());
    assert!(idle.rest().await.is_empty(), "a connection without a request is closed");
    assert!(begun.elapsed() < Duration::from_secs(1), "at once");
    // Each worker closes its listener in its own time.
    let refuse = |address: SocketAddr| std::net::TcpStream::connect(address).is_err();
    eventually("nobody listens", || refuse(proxy) && refuse(people)).await;
    assert!(!stopping.is_finished());

    upload.send(vec![b'x'; 100_000]).await;
    let uploaded = upload.answer().await;
    assert_eq!((uploaded.status.as_u16(), &uploaded.json()["body_length"]), (200, &json!(100_000)));
    let answer = slow.answer().await;
    assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "better late\n"));
    assert_eq!(trickle.answer().await.body.len(), 30);
    for wire in [&mut upload, &mut slow, &mut trickle] {
        assert!(wire.rest().await.is_empty(), "closed after its answer");
    }
    stopping.await.unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "it does not wait for the deadline: {took:?}");
    world.outside.stop_now();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_end_is_cut_at_the_deadline() {
    let k = Keyward::configured("[shutdown]\ndeadline = \"1s\"").await;
    let upstream = endless().await;
    let key = k.with_upstream(&upstream).await;
    let mut wire = k.wire().await;
    wire.send(head(&key, "GET /proxy/raw/events", &[])).await;
    wire.until(b"data: 0\n\n").await;
    let begun = Instant::now();
    let Keyward { world, app, .. } = k;
    let (rest, ()) = tokio::join!(wire.rest(), app.stop());
    let took = begun.elapsed();
    assert!(!holds(&rest, b"0\r\n\r\n"), "a cut is no clean end");
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    eventually("the upstream is left", || upstream.ended() == 1).await;
    world.outside.stop_now();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stop_does_not_wait() {
    for pause in ["0s", "20s"] {
        let k = Keyward::configured(&format!("[shutdown]\ndeadline = \"30s\"\npause = \"{pause}\"")).await;
        let upstream = endless().await;
        let key = k.with_upstream(&upstream).await;
        let mut wire = k.wire().await;
        wire.send(head(&key, "GET /proxy/raw/events", &[])).await;
        wire.until(b"data: 0\n\n").await;
        let Keyward { world, app, .. } = k;
        let shutdown = app.shutdown().clone();
        let stopping = tokio::spawn(app.stop());
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!stopping.is_finished(), "{pause}: it waits for the stream");
        let begun = Instant::now();
        shutdown.stop_now();
        shutdown.stop_now();
        stopping.await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(3), "{pause}: {:?}", begun.elapsed());
        wire.rest().await;
        world.outside.stop_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_under_way_gets_its_last_seconds() {
    let clock = Clock::held(Timestamp::from_millis(1_795_000_000_000));
    let settings = Settings { toml: "[shutdown]\ndeadline = \"300ms\"".into(), ..Settings::default() };
    let k = Keyward::with_clock(Backend::Sqlite, settings, clock.clone()).await;
    let (account, key) = k.connected().await;
    let path = format!("/proxy/{}/me/messages?$top=1", slug(&account, "mail"));
    assert_eq!(k.agent(&key, "GET", &path).await.status, 200);
    let calls = k.sandbox().counters().token_arrived;
    clock.advance(Duration::from_secs(2 * 3600));
    // The refresh token is spent at once; the new one comes after the deadline.
    k.sandbox().faults().token_times(Fault::SlowAfterWork(Duration::from_secs(2)), 1);
    let mut wire = k.wire().await;
    wire.send(head(&key, &format!("GET {path}"), &[])).await;
    k.sandbox().wait_for_token_calls(calls + 1).await;
    let Keyward { world, app, settings } = k;
    let begun = Instant::now();
    app.stop().await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "it was waited for: {:?}", begun.elapsed());
    assert!(wire.next(false).await.is_none(), "the request was cut");

    // The next start finds the new token: nothing is refreshed, nothing was lost.
    let app = world.instance(&settings).await;
    let request = agent_request(&key, "GET", &path).body(Full::<Bytes>::default()).unwrap();
    assert_eq!(call(app.proxy_address(), request).await.status, 200);
    let counters = world.sandbox.counters();
    assert_eq!((counters.token_arrived, counters.reuse_detected), (calls + 1, 0));
    app.stop().await;
    world.outside.stop_now();
}

async fn key_for(admin_address: SocketAddr, targets: &[&str]) -> Key {
    let api = "/api/organizations/default";
    let made = admin(admin_address, "POST", &format!("{api}/keys"), Some(json!({"name": "agent"}))).await.json();
    let key = Key { id: made["id"].as_str().unwrap().into(), secret: made["key"].as_str().unwrap().into() };
    for target in targets {
        let path = format!("{api}/keys/{}/grants/{target}", key.id);
        assert!(admin(admin_address, "PUT", &path, Some(json!({"access": "write"}))).await.status.is_success());
    }
    key
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_drains_on_the_first_signal_and_ends_on_the_second() {
    let world = World::new(Backend::Sqlite).await;
    let upstream = endless().await;
    let toml = format!(
        "[targets.tools]\nbase_url = \"{}/tools\"\n[targets.raw]\nbase_url = \"{}\"\n",
        world.sandbox.origin(),
        upstream.url()
    );
    // One signal: the slow request is finished, then the process ends by itself.
    let mut process = Process::start(&world, &toml, &[], "info").await;
    connect(process.admin, "ada@example.com", "preset=write").await;
    let key = key_for(process.admin, &["tools", "raw"]).await;
    let mut slow = Wire::connect(process.proxy).await;
    slow.send(head(&key, "GET /proxy/tools/slow?ms=1000", &[])).await;
    let calls = world.sandbox.counters();
    world.sandbox.wait_for_upstream_calls(calls.api_calls + 1).await;
    process.terminate();
    assert_eq!(slow.answer().await.text(), "better late\n");
    assert_eq!(process.ended().await, Some(0));
    assert!(refuses(process.proxy).await);

    // Two: a stream is cut although the deadline is far.
    let mut process = Process::start(&world, &format!("{toml}[shutdown]\ndeadline = \"10m\"\n"), &[], "info").await;
    let mut stream = Wire::connect(process.proxy).await;
    stream.send(head(&key, "GET /proxy/raw/events", &[])).await;
    stream.until(b"data: 0\n\n").await;
    process.terminate();
    eventually("the first signal counts", || std::net::TcpStream::connect(process.proxy).is_err()).await;
    assert!(process.child.try_wait().unwrap().is_none());
    process.terminate();
    let begun = Instant::now();
    assert_eq!(process.ended().await, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!holds(&stream.rest().await, b"0\r\n\r\n"));
    world.outside.stop_now();
}

/// What became of the requests of some agents.
#[derive(Default)]
struct Told {
    /// Paths of those that were answered, and the request ids of the answers.
    answered: BTreeSet<String>,
    ids: BTreeSet<String>,
    /// Paths of those whose connection ended, or that were refused, before anything of an answer.
    given_back: BTreeSet<String>,
}

impl Told {
    fn answer(&mut self, path: String, status: u16, id: &str) {
        assert_eq!(status, 200, "{path}");
        assert!(self.answered.insert(path) && self.ids.insert(id.to_owned()));
    }

    fn of(all: Vec<Self>) -> Self {
        let mut one = Self::default();
        for told in all {
            one.answered.extend(told.answered);
            one.ids.extend(told.ids);
            one.given_back.extend(told.given_back);
        }
        one
    }

    /// What went upstream was answered, whole, and what was answered is on record; what was not answered never left, and
    /// may be sent again by whoever sent it.
    async fn check(&self, strict: &Strict, admin_address: SocketAddr) {
        let left: Vec<String> = strict.seen().into_iter().map(|seen| path_of(&seen.line)).collect();
        let once: BTreeSet<String> = left.iter().cloned().collect();
        assert_eq!((left.len(), once), (self.answered.len(), self.answered.clone()), "nothing left twice");
        assert!(self.answered.is_disjoint(&self.given_back));
        let records = recorded(admin_address).await;
        let missing: Vec<_> = self.ids.difference(&records).collect();
        assert!(missing.is_empty(), "{} of {} are not on record", missing.len(), self.ids.len());
    }
}

fn path_of(line: &str) -> String {
    line.split(' ').nth(1).unwrap().to_owned()
}

/// The ids of all requests to `raw` that are on record as answered with 200.
async fn recorded(admin_address: SocketAddr) -> BTreeSet<String> {
    let (mut ids, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let path = format!("/api/organizations/default/audit?limit=200&target=raw&status=200{cursor}");
        let page = admin(admin_address, "GET", &path, None).await.json();
        for record in page["items"].as_array().unwrap() {
            assert!(ids.insert(record["request_id"].as_str().unwrap().to_owned()), "twice: {record}");
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

/// Requests on one kept connection, each after the answer to the one before, until the connection ends.
async fn keeps_asking(address: SocketAddr, key: Key, agent: usize) -> Told {
    let (mut told, mut wire) = (Told::default(), Wire::connect(address).await);
    for number in 0.. {
        let path = format!("/kept/{agent}/{number}");
        if !wire.send(head(&key, &format!("GET /proxy/raw{path}"), &[])).await || !begins(&wire).await {
            told.given_back.insert(path);
            return told;
        }
        let answer = wire.answer().await;
        told.answer(path, answer.status.as_u16(), answer.header("keyward-request-id"));
        if answer.header("connection") == "close" {
            assert!(wire.rest().await.is_empty());
            return told;
        }
    }
    told
}

/// Requests on a new connection each, until there are none to be had.
async fn keeps_coming(address: SocketAddr, key: Key, agent: usize) -> Told {
    let mut told = Told::default();
    for number in 0.. {
        let path = format!("/new/{agent}/{number}");
        let Ok(tcp) = TcpStream::connect(address).await else { break };
        let mut wire = Wire::over(tcp);
        if wire.send(head(&key, &format!("GET /proxy/raw{path}"), &[])).await && begins(&wire).await {
            let answer = wire.answer().await;
            told.answer(path, answer.status.as_u16(), answer.header("keyward-request-id"));
        } else {
            told.given_back.insert(path);
        }
    }
    told
}

/// Whether there is an answer at all. What has begun must go on to its end.
async fn begins(wire: &Wire) -> bool {
    wire.tcp.peek(&mut [0]).await.is_ok_and(|length| length > 0)
}

async fn stops(app: App) -> Instant {
    let begun = Instant::now();
    app.stop().await;
    begun
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_under_load_loses_no_request() {
    let k = Keyward::start().await;
    let strict = Strict::start().await;
    let key = k.with_upstream(&strict.upstream).await;
    let address = k.app.proxy_address();
    let kept = join_all((0..8).map(|agent| tokio::spawn(keeps_asking(address, key.clone(), agent))));
    let new = join_all((0..4).map(|agent| tokio::spawn(keeps_coming(address, key.clone(), agent))));
    eventually("the load is there", || strict.seen().len() >= 300).await;
    let Keyward { world, app, settings } = k;
    let (begun, kept, new) = tokio::join!(stops(app), kept, new);
    assert!(begun.elapsed() < Duration::from_secs(10), "nothing waits for the deadline");
    let told = Told::of(kept.into_iter().chain(new).map(Result::unwrap).collect());
    assert!(told.answered.len() >= 300);

    let app = world.instance(&settings).await;
    told.check(&strict, app.admin_address()).await;
    app.stop().await;
    world.outside.stop_now();
}

type Sender = h2::client::SendRequest<Bytes>;

fn get(key: &Key, path: &str) -> Request<()> {
    let request = Request::get(format!("http://keyward.test/proxy/raw{path}"));
    request.header("authorization", format!("Bearer {}", key.secret)).body(()).unwrap()
}

/// Status, request id and length of a whole answer.
async fn whole(answer: h2::client::ResponseFuture) -> Result<(u16, String, usize), h2::Error> {
    let (parts, mut body) = answer.await?.into_parts();
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap_or_else(|error| panic!("an answer that has begun is cut: {error}"));
        body.flow_control().release_capacity(data.len())?;
        length += data.len();
    }
    let id = parts.headers["keyward-request-id"].to_str().unwrap().to_owned();
    Ok((parts.status.as_u16(), id, length))
}

/// Requests on streams of one connection, each after the answer to the one before, until no more may be opened.
async fn keeps_opening(mut sender: Sender, key: Key, agent: usize, answers: Arc<AtomicUsize>) -> Told {
    let mut told = Told::default();
    for number in 0.. {
        let path = format!("/stream/{agent}/{number}");
        let Ok(mut ready) = sender.ready().await else { break };
        let Ok((answer, _)) = ready.send_request(get(&key, &path), true) else { break };
        sender = ready;
        match whole(answer).await {
            Ok((status, id, _)) => told.answer(path, status, &id),
            Err(error) => {
                let unprocessed = error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM);
                assert!(unprocessed, "{path}: {error}");
                told.given_back.insert(path);
                break;
            }
        }
        answers.fetch_add(1, Ordering::SeqCst);
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_under_load_loses_no_stream() {
    let k = Keyward::start().await;
    let strict = Strict::start().await;
    let key = k.with_upstream(&strict.upstream).await;
    let mut drivers = Vec::new();
    let (mut agents, answers) = (Vec::new(), Arc::<AtomicUsize>::default());
    let mut under_way = Vec::new();
    for number in 0..3 {
        let tcp = TcpStream::connect(k.app.proxy_address()).await.unwrap();
        let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
        drivers.push(tokio::spawn(connection));
        // A request whose body is not whole yet when the stop comes.
        let mut upload = get(&key, &format!("/upload/{number}"));
        *upload.method_mut() = http::Method::POST;
        under_way.push(sender.clone().ready().await.unwrap().send_request(upload, false).unwrap());
        for agent in 0..6 {
            let agent = keeps_opening(sender.clone(), key.clone(), number * 10 + agent, Arc::clone(&answers));
            agents.push(tokio::spawn(agent));
        }
    }
    eventually("the load is there", || answers.load(Ordering::SeqCst) >= 300).await;
    eventually("the uploads have begun", || strict.upstream.seen().matches("POST /upload/").count() == 3).await;
    let Keyward { world, app, settings } = k;
    let stopping = tokio::spawn(stops(app));
    // All of them end: no stream can be opened any more.
    let mut told = Told::of(join_all(agents).await.into_iter().map(Result::unwrap).collect());
    assert!(!stopping.is_finished(), "the uploads are waited for");
    for (number, (answer, mut body)) in under_way.into_iter().enumerate() {
        body.reserve_capacity(1000);
        assert!(poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap() >= 1000);
        body.send_data(Bytes::from(vec![b'x'; 1000]), true).unwrap();
        let (status, id, length) = whole(answer).await.unwrap();
        assert!(length > 0);
        told.answer(format!("/upload/{number}"), status, &id);
    }
    assert!(stopping.await.unwrap().elapsed() < Duration::from_secs(10), "nothing waits for the deadline");
    for driver in drivers {
        driver.await.unwrap().unwrap();
    }
    let uploads: Vec<_> = strict.whole().into_iter().filter(|seen| seen.line.starts_with("POST")).collect();
    assert!(uploads.len() == 3 && uploads.iter().all(|seen| seen.body.len() == 1000));

    let app = world.instance(&settings).await;
    told.check(&strict, app.admin_address()).await;
    app.stop().await;
    world.outside.stop_now();
}

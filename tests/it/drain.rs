//! Stopping: what runs is finished, nothing new is taken, and it ends in time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use keyward::clock::{Clock, Timestamp};
use keyward::sandbox::Fault;
use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::{Backend, Key, Keyward, Settings, World, admin, agent_request, call, connect, slug};
use crate::wire::{Process, Upstream, Wire, eventually, head, holds};

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

async fn refuses(address: std::net::SocketAddr) -> bool {
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
    assert!(refuses(proxy).await && refuses(people).await);
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
    let k = Keyward::with_clock(Backend::Sqlite, settings.clone(), clock.clone()).await;
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
    let Keyward { world, app, .. } = k;
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

async fn key_for(admin_address: std::net::SocketAddr, targets: &[&str]) -> Key {
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

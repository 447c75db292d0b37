//! Agents that take their time, and many of them: good traffic is answered all the while, and what they hold is given back.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::{ADMIN, Backend, Key, Keyward, World, admin};
use crate::wire::{Process, Upstream, Wire, ask, eventually, head};

const SHORT: &str = "[proxy.timeouts]\nhead = \"1s\"\nidle = \"1s\"";

async fn good(k: &Keyward, key: &Key) {
    assert_eq!(k.agent(key, "GET", "/proxy/tools/1k").await.status, 200);
}

/// So many connections, each having sent this.
async fn crowd(k: &Keyward, count: usize, sent: &[u8]) -> Vec<Wire> {
    let mut wires = Vec::with_capacity(count);
    for _ in 0..count {
        let mut wire = k.wire().await;
        assert!(wire.send(sent).await);
        wires.push(wire);
    }
    wires
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_are_cut_off() {
    let k = Keyward::configured(SHORT).await;
    let key = k.with_tools().await;
    let wires = crowd(&k, 200, b"GET / HTTP/1.1\r\nHost: a\r\n").await;
    good(&k, &key).await;
    // Each goes on with a line now and then, which does not prolong it.
    let slow = wires.into_iter().map(|mut wire| async move {
        while wire.send("X-Slow: a\r\n").await {
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(300), wire.next(false)).await {
                return answer.is_none_or(|answer| answer.status == 408);
            }
        }
        true
    });
    let ends = futures_util::future::join_all(slow).await;
    assert!(ends.into_iter().all(|end| end));
    good(&k, &key).await;
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_are_cut_off() {
    let k = Keyward::configured(SHORT).await;
    let key = k.with_tools().await;
    let (line, seen) = ("POST /proxy/tools/echo", k.seen());
    let sized = [&head(&key, line, &["Content-Length: 10"])[..], b"abc"].concat();
    let chunked = [&head(&key, line, &["Transfer-Encoding: chunked"])[..], b"3\r\nabc\r\n"].concat();
    for sent in [sized, chunked] {
        let wires = crowd(&k, 50, &sent).await;
        good(&k, &key).await;
        for mut wire in wires {
            assert_eq!(wire.answer().await.refusal(), "timeout");
            assert!(wire.rest().await.is_empty());
        }
    }
    good(&k, &key).await;
    let recorded = k.sandbox().recorded().split_off(seen);
    assert!(recorded.iter().all(|request| request.method != "POST" || !request.body_complete), "no end was made up");
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_who_do_not_read_hold_up_nobody_else() {
    let k = Keyward::configured(SHORT).await;
    let upstream = Upstream::start(|mut line| async move {
        line.head().await;
        line.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
        while line.say(&chunk).await {}
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    let other = k.with_tools().await;
    let wires = crowd(&k, 30, &head(&key, "GET /proxy/raw/endless", &[])).await;
    eventually("all are being answered", || upstream.accepted() == 30).await;
    good(&k, &other).await;
    drop(wires);
    eventually("the upstream is rid of them", || upstream.ended() == 30).await;
    good(&k, &other).await;
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_idle_connections_cost_nobody_else() {
    let k = Keyward::configured(SHORT).await;
    let key = k.with_tools().await;
    let count = usize::try_from(getrlimit(Resource::Nofile).current.unwrap_or(4096) / 4).unwrap().min(1000);
    let mut silent = crowd(&k, count, b"").await;
    good(&k, &key).await;
    let request = head(&key, "GET /proxy/tools/1k", &[]);
    let mut kept = crowd(&k, 50, &request).await;
    for wire in &mut kept {
        assert_eq!(wire.answer().await.status, 200);
    }
    for wire in &mut silent {
        assert_eq!(wire.answer().await.status, 408);
    }
    for wire in &mut kept {
        wire.send(&request).await;
        assert_eq!(wire.answer().await.status, 200, "between requests there is more time");
    }
    k.stop().await;
}

/// Without file descriptors left, nobody new is let in; whoever is in is served, and so is everybody once there are some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_out_of_descriptors_passes() {
    let world = World::new(Backend::Sqlite).await;
    let process = Process::start(&world, "[proxy.timeouts]\nhead = \"60s\"", &[], "info").await;
    let api = async |method: &str, path: &str, body| {
        let answer = admin(process.admin, method, &format!("/api/organizations/default{path}"), Some(body)).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
        answer
    };
    let target = json!({"slug": "tools", "base_url": format!("{}/tools", world.sandbox.origin()), "credential": {"kind": "none"}});
    api("POST", "/targets", target).await;
    let made = api("POST", "/keys", json!({"name": "test"})).await.json();
    let key = Key { id: made["id"].as_str().unwrap().to_owned(), secret: made["key"].as_str().unwrap().to_owned() };
    api("PUT", &format!("/keys/{}/grants/tools", key.id), json!({"access": "read"})).await;
    assert!(!key.secret.contains(ADMIN));

    let request = head(&key, "GET /proxy/tools/1k", &[]);
    let mut inside = Wire::connect(process.proxy).await;
    inside.send(&request).await;
    assert_eq!(inside.answer().await.status, 200);
    let pid = Pid::from_child(&process.child);
    let open = || std::fs::read_dir(format!("/proc/{}/fd", process.child.id())).unwrap().count() as u64;
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(open() + 10), maximum }).unwrap();
    let mut crowd = Vec::new();
    for _ in 0..60 {
        crowd.push(TcpStream::connect(process.proxy).await.unwrap());
    }
    let log = || std::fs::read_to_string(&process.log).unwrap();
    eventually("accepting fails", || log().contains("accepting a connection failed")).await;
    for _ in 0..5 {
        inside.send(&request).await;
        assert_eq!(inside.answer().await.status, 200, "who is in is served");
    }
    drop(crowd);
    assert_eq!(ask(process.proxy, &request).await.status, 200, "those who came have gone");
    let _ = prlimit(Some(pid), Resource::Nofile, before);
    assert_eq!(ask(process.proxy, &request).await.status, 200);
    assert!(log().matches("accepting a connection failed").count() < 200, "it is not said over and over");
}

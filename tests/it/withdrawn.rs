//! What runs is cut when the key or the grant behind it goes, within seconds and on every instance.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Key, Keyward, Settings, World, backends};
use crate::wire::{Upstream, Wire, eventually, head, holds};

/// Promised: five seconds.
const LIMIT: Duration = Duration::from_secs(5);

/// An upstream that begins an answer, keeps it coming, and never ends it.
async fn endless() -> Upstream {
    Upstream::start(|mut line| async move {
        let head = line.head().await;
        if holds(&head, b"/quiet") {
            line.until(b"never").await;
            return;
        }
        line.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while line.say("7\r\ndata: \n\r\n").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

async fn stream(k: &Keyward, address: std::net::SocketAddr, key: &Key) -> Wire {
    let mut wire = Wire::connect(address).await;
    wire.send(head(key, "GET /proxy/raw/events", &[])).await;
    assert!(holds(&wire.until(b"data: \n").await, b"HTTP/1.1 200 "), "{}", k.app.proxy_address());
    wire
}

async fn cut(wire: &mut Wire, since: Instant) {
    let rest = wire.rest().await;
    assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
    assert!(!holds(&rest, b"0\r\n\r\n"), "an abort is no end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_with_their_key_and_with_their_grant() {
    for backend in backends() {
        let world = World::new(backend).await;
        let settings = Settings::default();
        let app = world.instance(&settings).await;
        let second = world.instance(&settings).await;
        let k = Keyward { world, app, settings };
        let upstream = endless().await;
        let key = k.with_upstream(&upstream).await;
        let [other, lowered, kept, rotated] =
            [k.new_key().await, k.new_key().await, k.new_key().await, k.new_key().await];
        for key in [&other, &lowered, &kept, &rotated] {
            k.grant(key, "raw", "write").await;
        }
        // The second instance learns of them by itself.
        let mut here = Vec::new();
        let mut there = Vec::new();
        for key in [&key, &other, &lowered, &rotated] {
            here.push(stream(&k, k.app.proxy_address(), key).await);
        }
        eventually("the second instance knows", || {
            second.access().snapshot().is_ok_and(|now| now.revision() == k.app.access().snapshot().unwrap().revision())
        })
        .await;
        there.push(stream(&k, second.proxy_address(), &key).await);
        there.push(stream(&k, second.proxy_address(), &other).await);
        let mut stays = stream(&k, k.app.proxy_address(), &kept).await;
        let mut quiet = k.wire().await;
        quiet.send(head(&key, "GET /proxy/raw/quiet", &[])).await;
        eventually("it arrived", || upstream.seen().contains("/quiet")).await;

        let since = Instant::now();
        k.api("DELETE", &format!("/keys/{}", key.id), None).await;
        k.api("DELETE", &format!("/keys/{}/grants/raw", other.id), None).await;
        k.grant(&lowered, "raw", "read").await;
        k.api("POST", &format!("/keys/{}/rotate", rotated.id), None).await;
        for wire in here.iter_mut().chain(&mut there) {
            cut(wire, since).await;
        }
        let refused = quiet.answer().await;
        assert_eq!((refused.status.as_u16(), &*refused.refusal()), (403, "not_permitted"));
        // Nobody else's.
        for _ in 0..3 {
            assert!(holds(&stays.until(b"data: \n").await, b"data: \n"));
        }
        let records = k.audit(&format!("&key={}", key.id)).await;
        let mine: Vec<_> = records.iter().filter(|record| record["path"] == "/events").collect();
        assert!(mine.iter().any(|record| record["code"] == "aborted" && record["status"] == json!(200)), "{mine:?}");
        drop(stays);
        second.stop().await;
        k.stop().await;
    }
}

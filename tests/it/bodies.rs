//! Bodies stream both ways, whole or visibly not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use keyward::secret::sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use crate::harness::{Keyward, agent_request, call};
use crate::wire::{Strict, Upstream, eventually, head};

const FIVE: usize = 5 << 20;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 256) as u8).collect()
}

/// Something that does not compress and repeats nowhere.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn chunked(body: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + body.len() / 16);
    let (mut rest, mut sizes) = (body, sizes.iter().cycle());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
        rest = after;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_arrive_byte_for_byte_both_ways() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    let body = noise(FIVE);
    let sum = sha256(&body);
    // Up, with a length and in chunks, with the limits of what is held in between.
    for length in [0, 1, 65_535, 65_536, 65_537, FIVE] {
        let part = &body[..length];
        for with_length in [true, false] {
            let framing =
                if with_length { format!("Content-Length: {length}") } else { "Transfer-Encoding: chunked".into() };
            let start = head(&key, "POST /proxy/tools/echo", &[&framing, "Connection: close"]);
            let rest = if with_length { part.to_vec() } else { chunked(part, &[1, 100_000, 7, 65_536]) };
            let answer = k.ask([start, rest].concat()).await;
            assert_eq!(answer.status, 200, "{length} {framing}: {}", answer.text());
            let sent = k.sandbox().recorded().pop().unwrap();
            assert_eq!((sent.body_length, sent.body_complete), (length as u64, true), "{length} {framing}");
            assert_eq!(sent.body_sha256, sha256(part), "{length} {framing}");
        }
    }
    // Down.
    for query in ["", "?chunked=true"] {
        let answer = k.agent(&key, "GET", &format!("/proxy/tools/bytes/{FIVE}{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, FIVE));
        assert_eq!(sha256(&answer.body), sha256(&pattern(FIVE)), "{query}");
        assert_eq!(answer.headers.contains_key("content-length"), query.is_empty());
    }
    // Both at once.
    let request = agent_request(&key, "POST", "/proxy/tools/mirror").body(Full::from(body)).unwrap();
    let answer = call(k.app.proxy_address(), request).await;
    assert_eq!((answer.body.len(), sha256(&answer.body)), (FIVE, sum));
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_one_by_one() {
    let k = Keyward::start().await;
    let (go, allowed) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
    let (gate, count) = (Arc::clone(&go), Arc::clone(&allowed));
    let upstream = Upstream::start(move |mut line| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        async move {
            line.head().await;
            line.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            for n in 0..10 {
                gate.acquire().await.unwrap().forget();
                count.fetch_add(1, Ordering::SeqCst);
                line.say(format!("9\r\ndata: {n}\n\n\r\n")).await;
            }
            line.say("0\r\n\r\n").await;
        }
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    let mut wire = k.wire().await;
    wire.send(head(&key, "GET /proxy/raw/events", &["Accept: text/event-stream", "Connection: close"])).await;
    // The head is there before any event.
    let start = String::from_utf8(wire.until(b"\r\n\r\n").await).unwrap();
    assert!(start.starts_with("HTTP/1.1 200 ") && start.contains("content-type: text/event-stream"), "{start}");
    for n in 0..10 {
        assert_eq!(allowed.load(Ordering::SeqCst), n, "nothing was sent ahead");
        go.add_permits(1);
        let event = wire.until(b"\n\n").await;
        assert!(event.ends_with(format!("data: {n}\n\n").as_bytes()), "{}", String::from_utf8_lossy(&event));
    }
    assert!(wire.rest().await.ends_with(b"0\r\n\r\n"));
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_answered_early_serves_no_other_request() {
    let k = Keyward::start().await;
    // Reads a request's head, answers, and reads on only when all has been asked.
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let upstream = Upstream::narrow(move |mut line| {
        let gate = Arc::clone(&gate);
        async move {
            line.head().await;
            line.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
            gate.acquire().await.unwrap().forget();
            assert_eq!(line.exactly(220 * 1024).await, None, "what nobody waits for is not sent");
        }
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    // All of these are more than the system takes; of some, the rest is with us, and of some still with the agent.
    for (number, size) in [220, 240, 300, 4000].into_iter().enumerate() {
        let length = format!("Content-Length: {}", size * 1024);
        let request = [head(&key, "POST /proxy/raw/x", &[&length]), noise(size * 1024)].concat();
        for again in 1..=2 {
            let (mut reading, mut writing) = TcpStream::connect(k.app.proxy_address()).await.unwrap().into_split();
            let sent = request.clone();
            let writer = tokio::spawn(async move {
                let _ = writing.write_all(&sent).await;
                writing
            });
            let mut answer = Vec::new();
            while !answer.ends_with(b"big") {
                let read = reading.read_buf(&mut answer);
                let read = tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer in time");
                assert!(read.unwrap() > 0, "{size} KiB: {}", String::from_utf8_lossy(&answer));
            }
            assert!(answer.starts_with(b"HTTP/1.1 413 "), "{size} KiB: {}", String::from_utf8_lossy(&answer));
            assert_eq!(upstream.accepted(), number * 2 + again, "{size} KiB");
            writer.abort();
        }
    }
    go.add_permits(8);
    eventually("all of its connections are ended", || upstream.ended() == 8).await;
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_written_to_its_end_while_its_answer_comes() {
    // By the fast path, by hyper, and more than the system takes at once.
    for (size, odd) in [(64, "X-Odd: 1"), (64, "X_Odd: 1"), (400, "X-Odd: 1")] {
        let k = Keyward::start().await;
        let body = noise(size * 1024);
        let upstream = Upstream::narrow(move |mut line| async move {
            while !line.head().await.is_empty() {
                line.say("HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n").await;
                let sum = sha256(&line.exactly(size * 1024).await.unwrap());
                line.say(sum).await;
            }
        })
        .await;
        let key = k.with_upstream(&upstream).await;
        let length = format!("Content-Length: {}", body.len());
        for _ in 0..2 {
            let answer = k.ask([&head(&key, "POST /proxy/raw/x", &[&length, odd])[..], &body].concat()).await;
            assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &sha256(&body)[..]), "{size} KiB, {odd}");
        }
        assert_eq!(upstream.accepted(), 1, "{size} KiB, {odd}: the connection serves again");
        k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_cut_is_not_made_whole() {
    let k = Keyward::start().await;
    let strict = Strict::start().await;
    let key = k.with_upstream(&strict.upstream).await;
    for (what, line, body, streamed) in [
        ("a length", "Content-Length: 200000", noise(100_000), true),
        ("a length, nothing yet", "Content-Length: 200000", Vec::new(), true),
        ("chunks", "Transfer-Encoding: chunked", b"5\r\nhello\r\n".to_vec(), true),
        ("in a chunk", "Transfer-Encoding: chunked", b"5\r\nhe".to_vec(), true),
        ("before the last line", "Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n".to_vec(), true),
        ("a short one", "Content-Length: 10", b"hello".to_vec(), false),
    ] {
        let before = strict.seen().len();
        let mut wire = k.wire().await;
        wire.send([&head(&key, "POST /proxy/raw/cut", &[line])[..], &body].concat()).await;
        if streamed {
            eventually(what, || strict.upstream.requests() > before).await;
        }
        drop(wire);
        if streamed {
            eventually(what, || strict.seen().len() > before).await;
            assert_eq!(strict.seen()[before].fault, Some("a body that was cut"), "{what}");
        }
        // A body that is held whole first is not sent at all.
        let after = strict.seen().len();
        assert_eq!(after - before, usize::from(streamed), "{what}");
        let next = k.agent(&key, "GET", "/proxy/raw/next").await;
        assert_eq!(next.text(), format!("answer {}", after + 1), "{what}");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_is_cut_for_the_agent() {
    let k = Keyward::start().await;
    let key = k.with_tools().await;
    for (path, arrives) in [
        ("/proxy/tools/cut?after=1000", 1000),
        ("/proxy/tools/cut?after=1000&chunked=true", 1000),
        ("/proxy/tools/cut?after=300000", 300_000),
        ("/proxy/tools/cut?after=0&of=10", 0),
    ] {
        let mut wire = k.wire().await;
        wire.send(head(&key, &format!("GET {path}"), &["Connection: close"])).await;
        let start = wire.until(b"\r\n\r\n").await;
        // What is cut right behind its head may be cut before the head has left.
        let nothing = arrives == 0 && start.is_empty();
        assert!(start.starts_with(b"HTTP/1.1 200 ") || nothing, "{path}: {}", String::from_utf8_lossy(&start));
        let body = wire.rest().await;
        assert!(!body.ends_with(b"0\r\n\r\n"), "{path}: no clean end");
        assert!(body.len() >= arrives, "{path}: {} bytes", body.len());
        let start = String::from_utf8(start).unwrap();
        if let Some(length) = start.lines().find_map(|line| line.strip_prefix("content-length: ")) {
            assert!(body.len() < length.parse().unwrap(), "{path}");
        }
        assert_eq!(k.agent(&key, "GET", "/proxy/tools/1k").await.body.len(), 1024, "{path}: the next one is well");
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_leaves_ends_the_exchange_upstream() {
    let k = Keyward::start().await;
    let upstream = Upstream::start(|mut line| async move {
        let head = line.head().await;
        if head.starts_with(b"GET /silent") {
            line.until(b"never").await;
            return;
        }
        line.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        if head.starts_with(b"GET /pausing") {
            line.say("5\r\nhello\r\n").await;
            line.until(b"never").await;
            return;
        }
        let piece = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
        while line.say(&piece).await {}
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    for (n, path) in ["/silent", "/pausing", "/endless"].into_iter().enumerate() {
        let mut wire = k.wire().await;
        wire.send(head(&key, &format!("GET /proxy/raw{path}"), &[])).await;
        if path == "/silent" {
            eventually(path, || upstream.requests() > n).await;
        } else {
            wire.until(b"\r\n\r\n").await;
            wire.until(if path == "/pausing" { b"hello" } else { b"xxxxx" }).await;
        }
        assert_eq!(upstream.ended(), n, "{path}: still running");
        drop(wire);
        eventually(path, || upstream.ended() > n).await;
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_refused_however_long_it_says_it_is() {
    let k = Keyward::configured("[proxy.limits]\nrequest_body = \"256 KiB\"").await;
    let strict = Strict::start().await;
    let key = k.with_upstream(&strict.upstream).await;
    let limit = 256 << 10;
    let post = |line: &str| head(&key, "POST /proxy/raw/x", &[line, "Connection: close"]);
    for (what, request) in [
        ("said", [post(&format!("Content-Length: {}", limit + 1)), noise(limit + 1)].concat()),
        ("said, not sent", post(&format!("Content-Length: {}", 1_u64 << 40))),
    ] {
        let answer = k.ask(request).await;
        assert_eq!((answer.status.as_u16(), answer.refusal().as_str()), (413, "payload_too_large"), "{what}");
        assert_eq!(strict.upstream.accepted(), 0, "{what}");
    }
    let answer = k.ask([post("Transfer-Encoding: chunked"), chunked(&noise(limit + 1), &[10_000])].concat()).await;
    assert_eq!((answer.status.as_u16(), answer.refusal().as_str()), (413, "payload_too_large"));
    let answer = k.ask([post("Transfer-Encoding: chunked"), chunked(&noise(4 * limit), &[65_536])].concat()).await;
    assert_eq!((answer.status.as_u16(), answer.refusal().as_str()), (413, "payload_too_large"));
    assert!(strict.whole().is_empty(), "no clean end was made up");
    // The limit itself is not over it.
    for (line, body) in [
        (format!("Content-Length: {limit}"), noise(limit)),
        ("Transfer-Encoding: chunked".to_owned(), chunked(&noise(limit), &[10_000])),
    ] {
        let answer = k.ask([post(&line), body].concat()).await;
        assert_eq!(answer.status, 200, "{line}: {}", answer.text());
        assert_eq!(strict.whole().pop().unwrap().body, noise(limit));
    }
    k.stop().await;
}

/// What the kernel may hold of two connections in one direction, in their send and receive buffers, and a little that the
/// gateway may hold.
fn bound() -> u64 {
    let most = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        text.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(32 << 20)
    };
    2 * (most("tcp_rmem") + most("tcp_wmem")) + (1 << 20)
}

/// Waits until a count stands still, and answers it.
async fn at_rest(count: &AtomicU64) -> u64 {
    let (mut last, mut since) = (count.load(Ordering::SeqCst), Instant::now());
    while since.elapsed() < Duration::from_millis(700) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = count.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_the_sender_back() {
    let held = bound();
    let all = 8 * held;
    let k = Keyward::start().await;
    let written = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&written);
    let upstream = Upstream::start(move |mut line| {
        let count = Arc::clone(&count);
        async move {
            let head = line.head().await;
            if head.starts_with(b"POST /unread") {
                std::future::pending::<()>().await;
            }
            line.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {all}\r\n\r\n")).await;
            let piece = vec![b'x'; 64 << 10];
            while let Ok(length @ 1..) = line.tcp.write(&piece).await {
                count.fetch_add(length as u64, Ordering::SeqCst);
            }
        }
    })
    .await;
    let key = k.with_upstream(&upstream).await;

    // Down: the agent reads nothing, and what the upstream gets rid of is bounded; then it goes on.
    let mut agent = TcpStream::connect(k.app.proxy_address()).await.unwrap();
    agent.write_all(&head(&key, "GET /proxy/raw/endless", &[])).await.unwrap();
    eventually("the answer begins", || written.load(Ordering::SeqCst) > 0).await;
    let first = at_rest(&written).await;
    assert!(first < held, "{first} bytes were taken for an agent that reads nothing");
    let mut read = 0u64;
    let mut piece = vec![0u8; 64 << 10];
    while read < 2 * held {
        let length = agent.read(&mut piece).await.unwrap();
        assert_ne!(length, 0);
        read += length as u64;
    }
    let second = at_rest(&written).await;
    assert!(second > first && second < read + held, "{first} {read} {second}");
    drop(agent);
    eventually("the upstream's end", || upstream.ended() == 1).await;

    // Up: the upstream reads nothing of the body.
    let mut wire = k.wire().await;
    wire.send(head(&key, "POST /proxy/raw/unread", &[&format!("Content-Length: {all}")])).await;
    let sent = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&sent);
    let writer = tokio::spawn(async move {
        while let Ok(length @ 1..) = wire.tcp.write(&piece).await {
            counting.fetch_add(length as u64, Ordering::SeqCst);
        }
    });
    eventually("the upload begins", || sent.load(Ordering::SeqCst) > 0).await;
    let taken = at_rest(&sent).await;
    assert!(taken < held, "{taken} bytes were taken for an upstream that reads nothing");
    writer.abort();
    // Held back like this, the gateway does not read, so it can't see the agent leave.
    k.app.shutdown().stop_now();
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_end_here() {
    let k = Keyward::start().await;
    let upstream = Upstream::saying(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a=b\r\n\r\n",
    )
    .await;
    let key = k.with_upstream(&upstream).await;
    // As hyper reads it, and on the fast path; neither connection upstream is the worse for it.
    for (connections, lines) in [(1, &["TE: trailers", "Connection: TE, close"][..]), (2, &["Connection: close"])] {
        for _ in 0..2 {
            let mut wire = k.wire().await;
            wire.send(head(&key, "GET /proxy/raw/x", lines)).await;
            let answer = String::from_utf8(wire.rest().await).unwrap();
            assert!(answer.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{answer}");
            assert!(!answer.to_lowercase().contains("x-sum") && !answer.contains("a=b"), "{answer}");
        }
        assert_eq!(upstream.accepted(), connections);
    }
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_waits_to_be_asked_for_is_asked_for_once_it_is_wanted() {
    let k = Keyward::start().await;
    let strict = Strict::start().await;
    let key = k.with_upstream(&strict.upstream).await;
    for length in [5, 200_000] {
        let lines = [&*format!("Content-Length: {length}"), "Expect: 100-continue", "Connection: close"];
        let mut wire = k.wire().await;
        wire.send(head(&key, "POST /proxy/raw/x", &lines)).await;
        assert_eq!(wire.answer().await.status, 100, "{length}");
        wire.send(noise(length)).await;
        let answer = wire.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let sent = strict.whole().pop().unwrap();
        assert_eq!((sent.values("expect").len(), sent.body == noise(length)), (0, true), "{length}");

        // A refusal comes without it, and the connection is not used on: nobody knows what follows.
        for (path, code) in [("/proxy/none/x", "target_not_found"), ("/proxy/raw/../x", "bad_path")] {
            let mut wire = k.wire().await;
            wire.send(head(&key, &format!("POST {path}"), &lines[..2])).await;
            let answer = wire.answer().await;
            assert_eq!(answer.refusal(), code);
            assert!(wire.rest().await.is_empty());
        }
    }
    assert_eq!(strict.seen().len(), 2);
    k.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_body_is_over_arrives() {
    let k = Keyward::start().await;
    let (told, mut tell) = mpsc::unbounded_channel();
    let upstream = Upstream::start(move |mut line| {
        let told = told.clone();
        async move {
            line.head().await;
            line.say("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
            let _ = told.send(());
            line.until(b"never").await;
        }
    })
    .await;
    let key = k.with_upstream(&upstream).await;
    for n in 1..=3 {
        let mut wire = k.wire().await;
        wire.send(head(&key, "POST /proxy/raw/x", &["Content-Length: 5000000"])).await;
        wire.send(vec![b'x'; 100_000]).await;
        tell.recv().await.unwrap();
        let answer = wire.answer().await;
        assert_eq!((answer.status.as_u16(), &*answer.text()), (403, "no"));
        // The rest of the upload belongs to nobody: neither connection serves again.
        wire.send(head(&key, "GET /proxy/raw/y", &[])).await;
        assert_eq!(upstream.accepted(), n);
    }
    eventually("the upstream's connections end", || upstream.ended() == 3).await;
    assert!(!upstream.seen().contains("/y "));
    let request = agent_request(&key, "POST", "/proxy/raw/x").body(Full::from(Bytes::from(vec![0; 64]))).unwrap();
    assert_eq!(call(k.app.proxy_address(), request).await.status, 403);
    k.stop().await;
}

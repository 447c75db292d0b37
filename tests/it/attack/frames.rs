//! What hostile agents send over HTTP/2.

use std::time::Duration;

use crate::harness::{Key, Keyward};
use crate::http2::{Frames, GOAWAY, HEADERS, RESET, frame, packed};
use crate::wire::Strict;

const DATA: u8 = 0;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const WHOLE: u8 = END_STREAM | END_HEADERS;

/// How a row ends.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum End {
    /// The stream is reset, and the connection goes on.
    Reset,
    /// The connection ends.
    GoAway,
    /// Refused with 400 (RFC 7541 appendix A, 12).
    Refused,
    /// Answered with 200 (8).
    Served,
    /// Closed without a word.
    Closed,
    Other,
}

struct Field {
    k: Keyward,
    strict: Strict,
    key: Key,
    bearer: String,
}

impl Field {
    async fn new() -> Self {
        let k = Keyward::start().await;
        let strict = Strict::start().await;
        let key = k.with_upstream(&strict.upstream).await;
        let bearer = format!("Bearer {}", key.secret);
        Self { k, strict, key, bearer }
    }

    /// A whole request's lines.
    fn lines(&self) -> Vec<(&str, &str)> {
        vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "keyward.test"),
            (":path", "/proxy/raw/x"),
            ("authorization", &self.bearer),
        ]
    }

    async fn open(&self) -> Frames {
        Frames::open(self.k.app.proxy_address()).await
    }

    /// Sends this behind the preface and reads how it ends.
    async fn end(&self, bytes: &[u8]) -> End {
        let mut frames = self.open().await;
        frames.send(bytes).await;
        match frames.next(&[HEADERS, RESET, GOAWAY]).await {
            None => End::Closed,
            Some((RESET, ..)) => End::Reset,
            Some((GOAWAY, ..)) => End::GoAway,
            Some((_, _, payload)) => match payload.first() {
                Some(0x88) => End::Served,
                Some(0x8c) => End::Refused,
                _ => End::Other,
            },
        }
    }

    async fn run(&self, table: Vec<(&str, Vec<u8>, End)>) -> usize {
        let mut wrong = Vec::new();
        let rows = table.len();
        for (name, bytes, expected) in table {
            let before = self.strict.upstream.raw().len();
            let end = self.end(&bytes).await;
            if end != expected {
                wrong.push(format!("{name}: {end:?}, not {expected:?}"));
            }
            let seen = self.strict.upstream.raw().split_off(before);
            // What is wrong with trailers shows when the body has begun to go out.
            let cut = name.contains("trailers") && !seen.ends_with(b"0\r\n\r\n");
            if !(expected == End::Served || seen.is_empty() || cut) {
                wrong.push(format!("{name}: {}", String::from_utf8_lossy(&seen)));
            }
            let answer = self.k.agent(&self.key, "GET", "/proxy/raw/clean").await;
            assert_eq!(answer.text(), format!("answer {}", self.strict.seen().len()), "{name}");
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        rows
    }

    async fn done(self) {
        let raw = self.strict.upstream.seen();
        assert!(!raw.contains("kw_") && !raw.contains("evil"));
        for seen in self.strict.seen() {
            assert_eq!(seen.fault, None);
            assert_eq!(seen.values("host"), [self.strict.upstream.address.to_string()]);
            assert_eq!(seen.values("authorization"), ["Bearer the-injected-token"]);
        }
        self.k.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads() {
    let field = Field::new().await;
    let ask = |lines: &[(&str, &str)]| frame(HEADERS, WHOLE, 1, &packed(lines));
    let with = |more: &[(&str, &str)]| ask(&[&field.lines()[..], more].concat());
    let without = |name: &str| ask(&field.lines().into_iter().filter(|(line, _)| *line != name).collect::<Vec<_>>());
    let instead = |name: &str, value: &str| {
        ask(&field
            .lines()
            .into_iter()
            .map(|(line, old)| (line, if line == name { value } else { old }))
            .collect::<Vec<_>>())
    };
    let first = |more: &[(&str, &str)]| ask(&[more, &field.lines()[..]].concat());
    let reset = End::Reset;
    let key = field.key.secret.clone();
    let table = vec![
        ("a request", with(&[]), End::Served),
        ("te: trailers", with(&[("te", "trailers")]), End::Served),
        ("a host that agrees", with(&[("host", "keyward.test")]), End::Served),
        (
            "no :authority but a host",
            {
                let mut lines: Vec<_> = field.lines().into_iter().filter(|(line, _)| *line != ":authority").collect();
                lines.push(("host", "keyward.test"));
                ask(&lines)
            },
            End::Served,
        ),
        ("connection", with(&[("connection", "close")]), reset),
        ("connection, naming the key's header", with(&[("connection", "authorization")]), reset),
        ("keep-alive", with(&[("keep-alive", "timeout=1")]), reset),
        ("proxy-connection", with(&[("proxy-connection", "keep-alive")]), reset),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")]), reset),
        ("upgrade", with(&[("upgrade", "websocket")]), reset),
        ("te: gzip", with(&[("te", "gzip")]), reset),
        ("a capital", with(&[("X-Capital", "1")]), End::GoAway),
        ("a space in a name", with(&[("a b", "1")]), End::GoAway),
        ("a colon in a name", with(&[("a:b", "1")]), End::GoAway),
        ("no name", with(&[("", "1")]), End::GoAway),
        ("a line end in a name", with(&[("a\r\nhost", "evil")]), End::GoAway),
        ("a line end in a value", with(&[("a", "b\r\nhost: evil")]), End::GoAway),
        ("a line feed in a value", with(&[("a", "b\nhost: evil")]), End::GoAway),
        ("a zero byte in a value", with(&[("a", "b\0c")]), End::GoAway),
        ("a line end in the path", instead(":path", "/proxy/raw/x HTTP/1.1\r\nhost: evil"), reset),
        ("a space in the path", instead(":path", "/proxy/raw/x HTTP/1.1"), reset),
        ("a line end in the method", instead(":method", "GET / HTTP/1.1\r\nhost: evil"), End::GoAway),
        ("a space in the method", instead(":method", "GET /evil"), End::GoAway),
        ("no :method", without(":method"), reset),
        ("no :scheme", without(":scheme"), reset),
        ("no :path", without(":path"), reset),
        ("no :authority and no host", without(":authority"), End::Refused),
        (":method twice", first(&[(":method", "GET")]), reset),
        (":path twice", first(&[(":path", "/proxy/raw/x")]), reset),
        (":scheme twice", first(&[(":scheme", "http")]), reset),
        (":authority twice", first(&[(":authority", "evil.example.org")]), reset),
        (":path behind the others", with(&[(":path", "/proxy/raw/evil")]), reset),
        ("an unknown pseudo header", first(&[(":evil", "1")]), End::GoAway),
        (":status", first(&[(":status", "200")]), reset),
        (":protocol", first(&[(":protocol", "websocket")]), reset),
        ("no path", instead(":path", ""), reset),
        ("a path without a slash", instead(":path", "proxy/raw/x"), reset),
        ("an asterisk", instead(":path", "*"), End::Refused),
        ("a whole URL for a path", instead(":path", "http://evil.example.org/proxy/raw/x"), reset),
        ("dots", instead(":path", "/proxy/raw/../x"), End::Refused),
        ("a backslash", instead(":path", "/proxy/raw/x\\y"), End::Refused),
        ("a backslash in the query", instead(":path", "/proxy/raw/x?a\\b"), End::Refused),
        // Cut off before anybody decides on it, as `/x` would be decided on.
        ("a fragment", instead(":path", "/proxy/raw/x#y"), End::Served),
        ("raw UTF-8", instead(":path", "/proxy/raw/m\u{fc}"), End::Refused),
        ("raw UTF-8 in the query", instead(":path", "/proxy/raw/x?m\u{fc}"), End::Refused),
        ("no authority in :authority", instead(":authority", ""), reset),
        ("a user in :authority", instead(":authority", "a@keyward.test"), End::Refused),
        ("a path in :authority", instead(":authority", "keyward.test/x"), reset),
        ("an odd port in :authority", instead(":authority", "keyward.test:x"), End::Refused),
        ("another host", with(&[("host", "evil.example.org")]), End::Refused),
        ("two hosts", with(&[("host", "keyward.test"), ("host", "keyward.test")]), End::Refused),
        ("a twin of the length", with(&[("content_length", "5")]), End::Refused),
        ("a twin of the key's header", with(&[("x_api_key", "theirs")]), End::Refused),
        ("the key twice", with(&[("authorization", &field.bearer)]), End::Refused),
        ("the key in a cookie", with(&[("cookie", &key)]), End::Refused),
        ("the key in the path", instead(":path", &format!("/proxy/raw/{key}")), End::Refused),
        ("a length and no body", with(&[("content-length", "5")]), reset),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "0")]), End::Refused),
        ("a length that is none", with(&[("content-length", "+0")]), reset),
    ];
    let rows = field.run(table).await;
    assert!(rows >= 59, "{rows}");
    field.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames() {
    let field = Field::new().await;
    let block = packed(&field.lines());
    let post: Vec<_> =
        field.lines().into_iter().map(|(name, value)| (name, if value == "GET" { "POST" } else { value })).collect();
    let posting = |more: &[(&str, &str)], rest: &[Vec<u8>]| {
        [frame(HEADERS, END_HEADERS, 1, &packed(&[&post[..], more].concat())), rest.concat()].concat()
    };
    let data = |flags: u8, text: &str| frame(DATA, flags, 1, text.as_bytes());
    let head = |flags: u8, stream: u32| frame(HEADERS, flags, stream, &block);
    let setting = |id: u16, value: u32| frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let update = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let table = vec![
        ("a body", posting(&[("content-length", "5")], &[data(END_STREAM, "hello")]), End::Served),
        (
            "a body and trailers",
            posting(&[], &[data(0, "hello"), frame(HEADERS, WHOLE, 1, &packed(&[("authorization", "evil")]))]),
            End::Served,
        ),
        ("a padded body", posting(&[], &[frame(DATA, END_STREAM | PADDED, 1, b"\x02hello\0\0")]), End::Served),
        ("a length too long", posting(&[("content-length", "6")], &[data(END_STREAM, "hello")]), End::Reset),
        ("a length too short", posting(&[("content-length", "4")], &[data(END_STREAM, "hello")]), End::Reset),
        ("a length of nothing", posting(&[("content-length", "0")], &[data(END_STREAM, "hello")]), End::Reset),
        ("stream 0", head(WHOLE, 0), End::GoAway),
        ("an even stream", head(WHOLE, 2), End::GoAway),
        ("DATA for no stream", data(END_STREAM, "hello"), End::GoAway),
        ("DATA on stream 0", frame(DATA, 0, 0, b"hello"), End::GoAway),
        ("RST_STREAM for no stream", frame(RESET, 0, 1, &[0; 4]), End::GoAway),
        ("RST_STREAM on stream 0", frame(RESET, 0, 0, &[0; 4]), End::GoAway),
        ("RST_STREAM too short", [head(END_HEADERS, 1), frame(RESET, 0, 1, &[0; 3])].concat(), End::GoAway),
        ("CONTINUATION alone", frame(CONTINUATION, END_HEADERS, 1, &block), End::GoAway),
        (
            "CONTINUATION of another stream",
            [head(END_STREAM, 1), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            End::GoAway,
        ),
        ("another frame within a head", [head(END_STREAM, 1), frame(PING, 0, 0, &[0; 8])].concat(), End::GoAway),
        ("a head within a head", [head(END_STREAM, 1), head(WHOLE, 3)].concat(), End::GoAway),
        ("PUSH_PROMISE", frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block].concat()), End::GoAway),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), End::GoAway),
        ("SETTINGS of odd length", frame(SETTINGS, 0, 0, &[0; 5]), End::GoAway),
        ("an ACK of SETTINGS with more", frame(SETTINGS, 1, 0, &[0; 6]), End::GoAway),
        ("a window over 2^31", setting(4, 0x8000_0000), End::GoAway),
        ("frames below 2^14", setting(5, 100), End::GoAway),
        ("frames over 2^24", setting(5, 0x0100_0000), End::GoAway),
        ("push neither on nor off", setting(2, 2), End::GoAway),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), End::GoAway),
        ("PING too short", frame(PING, 0, 0, &[0; 7]), End::GoAway),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), End::GoAway),
        ("a window grown by nothing", update(0, 0), End::GoAway),
        ("a window grown too large", update(0, 0x7fff_ffff), End::GoAway),
        ("WINDOW_UPDATE for no stream", update(1, 1), End::GoAway),
        ("WINDOW_UPDATE too short", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), End::GoAway),
        ("PRIORITY too short", frame(PRIORITY, 0, 1, &[0; 4]), End::GoAway),
        ("a frame that is too large", frame(DATA, 0, 1, &vec![0; 20_000]), End::GoAway),
        ("more padding than frame", posting(&[], &[frame(DATA, PADDED, 1, b"\xffhello")]), End::GoAway),
        ("an index that is not there", frame(HEADERS, WHOLE, 1, &[0xff, 0x7f]), End::GoAway),
        ("an index of 0", frame(HEADERS, WHOLE, 1, &[0x80]), End::GoAway),
        (
            "a table that grows too large",
            frame(HEADERS, WHOLE, 1, &[&[0x3f, 0xff, 0xff, 0x7f][..], &block].concat()),
            End::GoAway,
        ),
        (
            "an integer without an end",
            frame(HEADERS, WHOLE, 1, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            End::GoAway,
        ),
        ("a string that ends too soon", frame(HEADERS, WHOLE, 1, &[0x00, 0x7e, b'a']), End::GoAway),
        ("bad Huffman", frame(HEADERS, WHOLE, 1, &[0x00, 0x81, 0x00, 0x81, 0x00]), End::GoAway),
        // The parser passes over it, and trailers end here.
        (
            "a pseudo header in trailers",
            posting(&[], &[data(0, "x"), frame(HEADERS, WHOLE, 1, &packed(&[(":path", "/evil")]))]),
            End::Served,
        ),
        (
            "trailers without an end",
            posting(&[], &[data(0, "x"), frame(HEADERS, END_HEADERS, 1, &packed(&[("a", "b")]))]),
            End::Reset,
        ),
        ("DATA behind the end", [head(WHOLE, 1), data(END_STREAM, "x")].concat(), End::GoAway),
    ];
    let rows = field.run(table).await;
    assert!(rows >= 44, "{rows}");
    field.done().await;
}

/// Floods end the connection that they come over, and nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods() {
    let field = Field::new().await;
    let block = packed(&field.lines());
    // PING and SETTINGS, each of which asks for an answer that is never taken.
    for (name, one) in [("PING", frame(PING, 0, 0, &[0; 8])), ("SETTINGS", frame(SETTINGS, 0, 0, &[]))] {
        let mut frames = field.open().await;
        let flood: Vec<u8> = one.iter().copied().cycle().take(one.len() * 1000).collect();
        let mut sent = 0;
        // Either it is cut off, or nothing more of it is read: the kernel's buffers fill up, and we stop.
        while sent < 2000 {
            match tokio::time::timeout(Duration::from_millis(500), frames.send(&flood)).await {
                Ok(true) => sent += 1,
                Ok(false) | Err(_) => break,
            }
        }
        assert!(sent < 2000, "{name}: all of it was taken");
        assert_eq!(field.k.agent(&field.key, "GET", "/proxy/raw/clean").await.status, 200, "{name}");
    }
    // Frames of no data: they cost nothing to send and end nothing.
    let mut frames = field.open().await;
    let post: Vec<_> =
        field.lines().into_iter().map(|(name, value)| (name, if value == "GET" { "POST" } else { value })).collect();
    frames.send(&frame(HEADERS, END_HEADERS, 1, &packed(&post))).await;
    for _ in 0..100 {
        if !frames.send(&frame(DATA, 0, 1, &[]).repeat(1000)).await {
            break;
        }
    }
    assert_eq!(field.k.agent(&field.key, "GET", "/proxy/raw/clean").await.status, 200, "empty DATA");
    drop(frames);
    // One long line in the table, named over and over: far over the limit once unpacked.
    let mut bomb = vec![0x40, 1, b'a', 0x7f, 0x81, 0x1e];
    bomb.extend([b'x'; 4000]);
    bomb.extend([0xbe; 4000]);
    let end = field.end(&frame(HEADERS, WHOLE, 1, &[&block[..], &bomb].concat())).await;
    assert!(matches!(end, End::Other | End::GoAway | End::Reset), "{end:?}");
    // Heads that never end, and one that ends after many parts.
    let mut frames = field.open().await;
    frames.send(&frame(HEADERS, END_STREAM, 1, &block)).await;
    for _ in 0..1000 {
        frames.send(&frame(CONTINUATION, 0, 1, &[]).repeat(100)).await;
    }
    frames.send(&frame(CONTINUATION, END_HEADERS, 1, &[])).await;
    let end = frames.next(&[HEADERS, GOAWAY]).await;
    assert!(!matches!(end, Some((HEADERS, ..))), "empty CONTINUATION frames are counted: {end:?}");
    // A window of nothing: the answer waits, and the connection next to it does not.
    let mut frames = field.open().await;
    frames.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    frames.send(&frame(HEADERS, WHOLE, 1, &block)).await;
    assert!(matches!(frames.next(&[HEADERS]).await, Some((_, 1, _))));
    assert_eq!(field.k.agent(&field.key, "GET", "/proxy/raw/clean").await.status, 200, "a closed window");
    frames.send(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0])).await;
    assert!(matches!(frames.next(&[DATA]).await, Some((_, 1, text)) if text.starts_with(b"answer ")));
    assert!(!field.strict.upstream.seen().contains("kw_"));
    field.k.stop().await;
}

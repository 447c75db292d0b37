//! What holds for any request, tried with many. The same ones in each run.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;

use super::kit::CANARY;
use crate::harness::{Key, Keyward};
use crate::wire::{Strict, Wire, holds};

struct Field {
    k: Keyward,
    strict: Strict,
    key: Key,
    runner: TestRunner,
}

impl Field {
    async fn new() -> Self {
        // A length that chance has made is waited for.
        let k = Keyward::configured("[proxy.timeouts]\nhead = \"1s\"\nidle = \"1s\"").await;
        let strict = Strict::start().await;
        let base = format!("{}/v1/base", strict.upstream.url());
        k.target("raw", &base, json!({"kind": "bearer", "token": CANARY})).await;
        let key = k.new_key().await;
        k.grant(&key, "raw", "write").await;
        Self { k, strict, key, runner: TestRunner::deterministic() }
    }

    fn any<S: Strategy>(&mut self, strategy: &S) -> S::Value {
        strategy.new_tree(&mut self.runner).unwrap().current()
    }

    /// Sends it and reads what comes; answers whether it was passed on.
    async fn sent(&self, bytes: &[u8]) -> bool {
        let before = self.strict.seen().len();
        let mut wire: Wire = self.k.wire().await;
        wire.send(bytes).await;
        if let Some(answer) = wire.next(false).await {
            let answer = format!("{:?} {}", answer.headers, answer.text());
            assert!(!answer.contains(CANARY) && !answer.contains(&self.key.secret), "{answer}");
        }
        self.strict.seen().len() > before
    }

    fn checked(&self) {
        let raw = self.strict.upstream.raw();
        assert!(!holds(&raw, self.key.secret.as_bytes()), "the key");
        let host = self.strict.upstream.address.to_string();
        for seen in self.strict.seen() {
            assert_eq!(seen.fault, None, "{seen:?}");
            assert_eq!(seen.values("host"), [&host], "{seen:?}");
            assert_eq!(seen.values("authorization"), [format!("Bearer {CANARY}")], "{seen:?}");
        }
        let times = memchr::memmem::find_iter(&raw, CANARY).count();
        assert_eq!(times, self.strict.seen().len(), "the credential, once in each request");
    }
}

/// Header lines as agents send them, and worse.
fn lines() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        9 => "[A-Za-z][A-Za-z0-9-]{0,12}",
        1 => prop::sample::select(vec![
            "Host", "Authorization", "X-Api-Key", "Api-Key", "Connection", "Content-Length", "Transfer-Encoding", "TE", "Trailer", "Upgrade",
            "Expect", "Cookie", "Proxy-Authorization", "X_Api_Key", "Content_Length", "X-Forwarded-Host", "X-Original-URL", "Keyward-Approval",
        ]).prop_map(str::to_owned),
    ];
    let value = prop_oneof![
        9 => "[ -~]{0,20}",
        1 => prop::sample::select(vec!["chunked", "0", "close", "keep-alive", "host", "authorization", "100-continue", "trailers", "websocket", "a\tb", "\u{fc}"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec((name, value).prop_map(|(name, value)| format!("{name}: {value}\r\n")), 0..4)
        .prop_map(|lines| lines.concat())
}

/// I1: wherever the bytes of the key stand in a head, they do not arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_arrives_from_nowhere_in_a_head() {
    let mut field = Field::new().await;
    let secret = field.key.secret.clone();
    let mut passed = 0;
    for round in 0..500 {
        let more = field.any(&lines());
        let head = format!(
            "GET /proxy/raw/a/b?c=d HTTP/1.1\r\nHost: keyward.test\r\nAuthorization: Bearer {secret}\r\n{more}Connection: close\r\n\r\n"
        );
        let at = field.any(&(0..head.len()));
        let at = (at..head.len()).find(|at| head.is_char_boundary(*at)).unwrap_or(0);
        // Sometimes in place of what stands there, sometimes among it.
        let rest = if round % 2 == 0 { at } else { (at + secret.len()).min(head.len() - 4) };
        let rest = (rest.max(at)..head.len()).find(|at| head.is_char_boundary(*at)).unwrap_or(at);
        let sent = [&head.as_bytes()[..at], secret.as_bytes(), &head.as_bytes()[rest..]].concat();
        passed += usize::from(field.sent(&sent).await);
    }
    assert!(passed < 400, "most of it is refused: {passed}");
    field.checked();
    field.k.stop().await;
}

/// I15, I17, I18: what passes arrives under the base and byte for byte, at the target, with our credential once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_arrives_where_it_should_and_as_it_was() {
    let mut field = Field::new().await;
    let target = prop_oneof![
        3 => "(/[a-zA-Z0-9~!$&'()*+,;=:@-][a-zA-Z0-9._~!$&'()*+,;=:@-]{0,8}){0,4}(\\?[a-zA-Z0-9._~/?%&=+{}|\"^`<>-]{0,12})?",
        2 => "/([a-zA-Z./;]|%2e|%2F|%5c|%00|%25|%[0-9a-f]{2}){0,10}",
        1 => "[ -~]{0,16}",
        1 => "\\PC{0,8}",
    ];
    let method =
        prop_oneof![4 => Just("GET".to_owned()), 1 => Just("DELETE".to_owned()), 1 => "[A-Z]{1,8}", 1 => "[!-~]{1,8}"];
    let mut passed = 0;
    for _ in 0..700 {
        let (method, target, more) = (field.any(&method), field.any(&target), field.any(&lines()));
        let head = format!(
            "{method} /proxy/raw{target} HTTP/1.1\r\nHost: keyward.test\r\nAuthorization: Bearer {}\r\n{more}Connection: close\r\n\r\n",
            field.key.secret
        );
        let before = field.strict.seen().len();
        if field.sent(head.as_bytes()).await {
            passed += 1;
            let seen = field.strict.seen().split_off(before);
            assert_eq!(seen.len(), 1, "{head}");
            let slash = if target.is_empty() || target.starts_with('?') { "/" } else { "" };
            assert_eq!(seen[0].line, format!("{method} /v1/base{slash}{target}"), "{head}");
        }
    }
    assert!(passed > 100, "some of it passes: {passed}");
    field.checked();
    field.k.stop().await;
}

//! The rows' form, and how a table is run.

use serde_json::json;

use crate::harness::{Answer, Key, Keyward};
use crate::wire::{Strict, Wire, holds};

/// The credential that the gateway puts in; occurs nowhere else.
pub const CANARY: &str = "canary-3f9c0d5e7a41b862";

/// What one row claims.
pub struct Case {
    name: String,
    sent: Vec<u8>,
    /// Status, and code of a refusal.
    said: Vec<(u16, &'static str)>,
    stays: bool,
    seen: Seen,
}

enum Seen {
    /// These requests and nothing else: what each says beside what the gateway says in all of them.
    Whole(Vec<Request>),
    /// At most the start of one, and no end.
    Cut,
}

/// A request as the upstream should see it.
#[derive(Clone)]
pub struct Request {
    line: String,
    lines: Vec<String>,
    body: Vec<u8>,
}

/// A request with no more lines than the gateway's own.
pub fn request(line: &str) -> Request {
    Request { line: line.to_owned(), lines: Vec::new(), body: Vec::new() }
}

impl Request {
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// A body of known length.
    pub fn sized(mut self, body: &str) -> Self {
        self.body = body.into();
        self.line(&format!("content-length: {}", body.len()))
    }

    /// A body in one chunk.
    pub fn chunked(mut self, body: &str) -> Self {
        self.body = format!("{:X}\r\n{body}\r\n0\r\n\r\n", body.len()).into();
        self.line("transfer-encoding: chunked")
    }

    /// Its bytes, the head's lines in alphabetical order.
    fn bytes(&self, host: &str) -> Vec<u8> {
        let own = [format!("host: {host}"), format!("authorization: Bearer {CANARY}")];
        let mut lines: Vec<&str> = self.lines.iter().chain(&own).map(String::as_str).collect();
        lines.sort_unstable();
        [format!("{} HTTP/1.1\r\n{}\r\n\r\n", self.line, lines.join("\r\n")).as_bytes(), &self.body].concat()
    }
}

/// Refused: the connection is closed, and nothing reaches the upstream.
pub fn refused(name: &str, sent: impl AsRef<[u8]>, status: u16, code: &'static str) -> Case {
    Case { stays: false, ..declined(name, sent, status, code) }
}

/// Refused, but well-formed: the connection stays.
pub fn declined(name: &str, sent: impl AsRef<[u8]>, status: u16, code: &'static str) -> Case {
    Case {
        name: name.to_owned(),
        sent: sent.as_ref().to_vec(),
        said: vec![(status, code)],
        stays: true,
        seen: Seen::Whole(Vec::new()),
    }
}

/// Passed on, as this.
pub fn passed(name: &str, sent: impl AsRef<[u8]>, seen: Request) -> Case {
    Case { seen: Seen::Whole(vec![seen]), ..declined(name, sent, 200, "") }
}

/// A body that goes wrong: no whole request is made of it, and whatever was begun is cut.
pub fn cut(name: &str, sent: impl AsRef<[u8]>) -> Case {
    Case { seen: Seen::Cut, ..refused(name, sent, 400, "bad_request") }
}

/// Several requests on a connection.
pub fn several(name: &str, sent: &[Vec<u8>], said: &[(u16, &'static str)], stays: bool, seen: &[Request]) -> Case {
    Case { name: name.to_owned(), sent: sent.concat(), said: said.to_vec(), stays, seen: Seen::Whole(seen.to_vec()) }
}

/// A gateway and an upstream that reads by the letter. Of two keys, one attacks and the other is the neighbour.
pub struct Field {
    pub k: Keyward,
    pub strict: Strict,
    pub key: Key,
    neighbour: Key,
    /// Requests that were answered by the upstream.
    asked: usize,
}

impl Field {
    pub async fn new() -> Self {
        let k = Keyward::start().await;
        let strict = Strict::start().await;
        // Without the guard against reflection, which asks for plain bodies: what an agent sends is all that arrives.
        let credential = json!({"kind": "bearer", "token": CANARY});
        let target =
            json!({"slug": "raw", "base_url": strict.upstream.url(), "credential": credential, "reflect_guard": false});
        k.api("POST", "/targets", Some(target)).await;
        let (key, neighbour) = (k.new_key().await, k.new_key().await);
        for key in [&key, &neighbour] {
            k.grant(key, "raw", "write").await;
        }
        Self { k, strict, key, neighbour, asked: 0 }
    }

    /// Runs a table; answers how many rows it had. `KEY` in what is sent stands for the attacker's key.
    pub async fn run(&mut self, table: Vec<Case>) -> usize {
        let rows = table.len();
        for case in table {
            self.one(case).await;
        }
        rows
    }

    async fn one(&mut self, case: Case) {
        let (name, host) = (&case.name, self.strict.upstream.address.to_string());
        let before = self.strict.upstream.raw().len();
        let mut wire = self.k.wire().await;
        wire.send(with_key(&case.sent, &self.key.secret)).await;
        for (status, code) in &case.said {
            let answer =
                wire.next(false).await.unwrap_or_else(|| panic!("{name}: no answer, {status} {code} expected"));
            self.check(name, &answer, *status, code);
        }
        if case.stays {
            wire.send(with_key(&get("/proxy/raw/probe", ""), &self.key.secret)).await;
            let answer = wire.next(false).await.unwrap_or_else(|| panic!("{name}: the connection has not stayed"));
            self.check(name, &answer, 200, "");
        }
        if !case.stays {
            let rest = wire.rest().await;
            assert!(rest.is_empty(), "{name}: more came: {}", String::from_utf8_lossy(&rest));
        }
        match case.seen {
            Seen::Whole(mut requests) => {
                requests.extend(case.stays.then(|| request("GET /probe")));
                self.asked += requests.len();
                let expected: Vec<u8> = requests.iter().flat_map(|request| request.bytes(&host)).collect();
                let seen = sorted(&self.strict.upstream.raw()[before..]);
                assert_eq!(String::from_utf8_lossy(&seen), String::from_utf8_lossy(&expected), "{name}");
            }
            Seen::Cut => {
                let seen = self.strict.upstream.raw().split_off(before);
                assert!(!seen.ends_with(b"0\r\n\r\n"), "{name}: {}", String::from_utf8_lossy(&seen));
            }
        }
        // Whoever comes next gets their own answer.
        let neighbour = self.k.agent(&self.neighbour, "GET", "/proxy/raw/neighbour").await;
        assert_eq!(neighbour.status, 200, "{name}: {}", neighbour.text());
        let number: usize = neighbour.text().strip_prefix("answer ").unwrap().parse().unwrap();
        assert_eq!(number, self.strict.seen().len(), "{name}");
        assert_eq!(self.strict.seen().last().unwrap().line, "GET /neighbour", "{name}");
        self.asked += 1;
    }

    fn check(&self, name: &str, answer: &Answer, status: u16, code: &str) {
        let found = (answer.status.as_u16(), answer.header("keyward-error"));
        assert_eq!(found, (status, code), "{name}: {}", answer.text());
        if code.is_empty() {
            assert!(answer.text().starts_with("answer "), "{name}: {}", answer.text());
        } else {
            assert_eq!(answer.refusal(), code, "{name}");
        }
        for secret in [CANARY, &*self.key.secret] {
            assert!(!holds(format!("{:?} {}", answer.headers, answer.text()).as_bytes(), secret.as_bytes()), "{name}");
        }
    }

    /// What must be true of all that arrived: no key, one credential and one host in each request, and as many requests as
    /// there were answers.
    pub async fn done(self) {
        let (seen, raw) = (self.strict.seen(), self.strict.upstream.raw());
        for key in [&self.key, &self.neighbour] {
            assert!(!holds(&raw, key.secret.as_bytes()));
        }
        assert!(!holds(&raw, b"kw_") && !holds(&raw, b"smuggled"));
        let whole: Vec<_> = seen.iter().filter(|seen| seen.fault.is_none()).collect();
        assert_eq!(whole.len(), self.asked, "requests and answers");
        let host = self.strict.upstream.address.to_string();
        for seen in seen.iter().filter(|seen| !seen.headers.is_empty()) {
            assert_eq!(seen.values("host"), [&host], "{seen:?}");
            assert_eq!(seen.values("authorization"), [format!("Bearer {CANARY}")], "{seen:?}");
        }
        let times = memchr::memmem::find_iter(&raw, CANARY).count();
        assert_eq!(times, memchr::memmem::find_iter(&raw, "authorization: ").count(), "once in each request");
        self.k.stop().await;
    }
}

fn with_key(bytes: &[u8], key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + key.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, b"KEY") {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(key.as_bytes());
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    out
}

/// A GET with more lines, each ending with CRLF.
pub fn get(path: &str, lines: &str) -> Vec<u8> {
    whole(&format!("GET {path}"), lines, "")
}

/// A POST to `/x` with more lines and a body.
pub fn post(lines: &str, body: &str) -> Vec<u8> {
    whole("POST /proxy/raw/x", lines, body)
}

pub fn whole(line: &str, lines: &str, body: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nHost: keyward.test\r\nAuthorization: Bearer KEY\r\n{lines}\r\n{body}").into_bytes()
}

/// The requests of a stream with the lines of each head in alphabetical order; everything else as it is.
fn sorted(mut raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = memchr::memmem::find(raw, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&raw[..end]).into_owned();
        let mut lines: Vec<&str> = head.split("\r\n").collect();
        lines[1..].sort_unstable();
        out.extend_from_slice(lines.join("\r\n").as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        raw = &raw[end + 4..];
        let length =
            lines.iter().find_map(|line| line.strip_prefix("content-length: ")).map(|text| text.parse().unwrap());
        let body = if lines.contains(&"transfer-encoding: chunked") {
            memchr::memmem::find(raw, b"0\r\n\r\n").map_or(raw.len(), |at| at + 5)
        } else {
            length.unwrap_or(0)
        };
        let (body, rest) = raw.split_at(body.min(raw.len()));
        out.extend_from_slice(body);
        raw = rest;
    }
    out.extend_from_slice(raw);
    out
}

impl Field {
    pub async fn wire(&self) -> Wire {
        self.k.wire().await
    }
}

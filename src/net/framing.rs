//! A look at what an agent sends over HTTP/1.1, before the parser behind it does. The parser resolves doubtful framing by
//! itself: a length is forgotten when chunks are announced, equal lengths become one, a line may end with a line feed alone,
//! a fragment is cut off. We would rather refuse what two readers could read in two ways (RFC 9112 §6.3, §11.2).
//!
//! Follows the whole stream, bodies too, because a head may come in the same segment as the one before it: where a head
//! begins is known only to who has counted the body in front of it. One pass; a body of known length is skipped, and a line
//! is copied only when it comes in pieces.

use http::StatusCode;

use super::chunks::{Chunks, step};
use super::multiplex::Fault;

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";
const HOST: &[u8] = b"host:";
/// What is kept of a line that comes in pieces; no line that is looked at may be longer.
const KEPT: usize = 512;
/// The longest host name, a colon and a port (RFC 1035 §2.3.4).
const HOST_BYTES: usize = 255 + 6;

const fn bad(words: &'static str) -> Fault {
    (StatusCode::BAD_REQUEST, "bad_request", words)
}

const BOTH: Fault = bad("The request has both Content-Length and Transfer-Encoding.");
const LENGTHS: Fault = bad("The request has more than one Content-Length.");
const BAD_LENGTH: Fault = bad("The request's Content-Length is not a plain number.");
const CODINGS: Fault = bad("The request has more than one Transfer-Encoding.");
const BAD_CODING: Fault = bad("The request's Transfer-Encoding is not `chunked`.");
const OTHER_CODING: Fault =
    (StatusCode::NOT_IMPLEMENTED, "not_implemented", "Only the transfer coding `chunked` is understood.");
const HOSTS: Fault = bad("The request must have exactly one Host.");
const BAD_HOST: Fault = bad("The request's Host is not a host name with or without a port.");
const LINE_FEED: Fault = bad("A line of the request's head ends with a line feed alone.");
const FOLDED: Fault = bad("A line of the request's head begins with a space.");
const FRAGMENT: Fault =
    bad("The request's URL has a fragment (`#`); encode it as %23 if it belongs to the path or query.");
const LOST: Fault = bad("The request's head could not be followed.");

/// Follows one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Framing {
    state: State,
    head: Head,
    /// The start of a line whose end has not come.
    line: Vec<u8>,
    /// Heads that were whole and fine.
    heads: u64,
    /// Of these and of the one that was not, how many have become requests.
    taken: u64,
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Before or in a request line.
    #[default]
    First,
    /// In the lines after it.
    Lines,
    /// So much of a body is still to come.
    Body(u64),
    Chunks(Chunks),
    /// Nothing that follows will be read as a request.
    Over,
    /// Nor as a body.
    Broken,
}

/// What the head under way has said.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    /// Bytes of the line under way.
    seen: usize,
    /// The last two of them.
    tail: [u8; 2],
    fragment: bool,
    old: bool,
    host: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    /// Looks at more bytes of the connection. Answers how many of them may be read: all, up to where a body's chunks are
    /// no chunks.
    pub(super) fn feed(&mut self, all: &[u8]) -> usize {
        let mut bytes = all;
        while !bytes.is_empty() {
            bytes = match self.state {
                State::First | State::Lines => self.in_head(bytes),
                State::Body(left) => {
                    let skipped = left.min(bytes.len() as u64);
                    self.state = if left == skipped { State::First } else { State::Body(left - skipped) };
                    // Not more than there are.
                    &bytes[skipped as usize..]
                }
                State::Chunks(chunks) => self.in_chunks(chunks, bytes),
                State::Over => return all.len(),
                State::Broken => return all.len() - bytes.len(),
            };
        }
        all.len()
    }

    /// Nothing more may be read.
    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// The next head has become a request. Answers what is wrong with it.
    pub(super) fn take(&mut self) -> Option<Fault> {
        self.taken += 1;
        if self.taken <= self.heads {
            return None;
        }
        // Without a fault, the parser has found a head where we found none.
        Some(self.fault.unwrap_or(LOST))
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_between(&self) -> bool {
        self.state == State::First && self.head.seen == 0
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    fn refuse(&mut self, fault: Fault) {
        self.fault = Some(fault);
        self.state = State::Over;
        self.line = Vec::new();
    }

    fn in_head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (part, rest, whole) = match memchr::memchr(b'\n', bytes) {
            Some(at) => (&bytes[..at], &bytes[at + 1..], true),
            None => (bytes, &[][..], false),
        };
        let first = self.state == State::First;
        if first {
            self.head.fragment |= memchr::memchr(b'#', part).is_some();
        }
        let begun = self.head.seen > 0;
        self.head.seen = self.head.seen.saturating_add(part.len());
        self.head.tail = match part {
            [.., one, two] => [*one, *two],
            [one] => [self.head.tail[1], *one],
            [] => self.head.tail,
        };
        if !first && (begun || !whole) {
            let room = KEPT.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
        }
        if whole {
            if first {
                self.first_line();
            } else if begun {
                let line = std::mem::take(&mut self.line);
                self.line(&line);
            } else {
                self.line(part);
            }
        }
        rest
    }

    fn first_line(&mut self) {
        let head = self.head;
        self.head = Head::default();
        if head.tail[1] != b'\r' || head.seen == 0 {
            return self.refuse(LINE_FEED);
        }
        // Empty lines before a request line are skipped (RFC 9112 §2.2).
        if head.seen == 1 {
            return;
        }
        if head.fragment {
            return self.refuse(FRAGMENT);
        }
        self.head.old = head.tail[0] == b'0';
        self.state = State::Lines;
    }

    /// A line after the first, or the start of a long one.
    fn line(&mut self, line: &[u8]) {
        let (seen, last) = (self.head.seen, self.head.tail[1]);
        self.head.seen = 0;
        if seen == 0 || last != b'\r' {
            return self.refuse(LINE_FEED);
        }
        if seen == 1 {
            return self.end();
        }
        // Also when all of it is here: how the bytes arrive makes no difference.
        let whole = seen <= KEPT;
        let line = if whole { &line[..seen - 1] } else { line };
        let fault = match line[0] | 0x20 {
            b'c' => value(line, LENGTH).and_then(|value| self.length(value, whole)),
            b't' => value(line, ENCODING).and_then(|value| self.coding(value, whole)),
            b'h' => value(line, HOST).and_then(|value| self.host(value, whole)),
            // A tab with that bit is a closing parenthesis.
            b' ' | b')' => matches!(line[0], b' ' | b'\t').then_some(FOLDED),
            _ => None,
        };
        if let Some(fault) = fault {
            self.refuse(fault);
        }
    }

    fn length(&mut self, value: &[u8], whole: bool) -> Option<Fault> {
        if self.head.chunked {
            return Some(BOTH);
        }
        if self.head.length.is_some() {
            return Some(LENGTHS);
        }
        let digits = whole && !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse::<u64>().ok());
        self.head.length = length.filter(|length| i64::try_from(*length).is_ok());
        self.head.length.is_none().then_some(BAD_LENGTH)
    }

    fn coding(&mut self, value: &[u8], whole: bool) -> Option<Fault> {
        if self.head.length.is_some() {
            return Some(BOTH);
        }
        if self.head.chunked {
            return Some(CODINGS);
        }
        self.head.chunked = true;
        if whole && !self.head.old && value.eq_ignore_ascii_case(b"chunked") {
            return None;
        }
        Some(if whole && is_compressed(value) { OTHER_CODING } else { BAD_CODING })
    }

    fn host(&mut self, value: &[u8], whole: bool) -> Option<Fault> {
        if std::mem::replace(&mut self.head.host, true) {
            return Some(HOSTS);
        }
        (!whole || !is_host(value)).then_some(BAD_HOST)
    }

    /// A head is whole.
    fn end(&mut self) {
        let head = std::mem::take(&mut self.head);
        // HTTP/1.0 does without (RFC 9112 §3.2), health checks among them.
        if !head.host && !head.old {
            return self.refuse(HOSTS);
        }
        self.heads += 1;
        self.state = match head.length {
            _ if head.chunked => State::Chunks(Chunks::Start),
            Some(length) if length > 0 => State::Body(length),
            _ => State::First,
        };
    }

    fn in_chunks<'a>(&mut self, chunks: Chunks, bytes: &'a [u8]) -> &'a [u8] {
        if let Chunks::Data(left) = chunks {
            let skipped = left.min(bytes.len() as u64);
            let next = if left == skipped { Chunks::DataReturn } else { Chunks::Data(left - skipped) };
            self.state = State::Chunks(next);
            return &bytes[skipped as usize..];
        }
        let next = step(chunks, bytes[0]);
        self.state = match next {
            Some(Some(next)) => State::Chunks(next),
            Some(None) => State::First,
            None => State::Broken,
        };
        &bytes[usize::from(next.is_some())..]
    }
}

/// The value of a line of this name, without the white space around it (RFC 9112 §5.1).
fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = line.get(name.len()..).filter(|_| line[..name.len()].eq_ignore_ascii_case(name))?;
    let space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !space(byte)).map_or(start, |at| at + 1);
    Some(&value[start..end])
}

/// Codings that are known and not done (RFC 9112 §7.2), and chunks around them.
fn is_compressed(value: &[u8]) -> bool {
    let mut codings = value.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let known = |coding: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
            .iter()
            .any(|known| coding.eq_ignore_ascii_case(known))
    };
    codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"))
        && codings.clone().next().is_some()
        && codings.all(known)
}

/// `host [ ":" port ]` (RFC 9110 §7.2), and no more characters than host names have.
pub fn is_host(value: &[u8]) -> bool {
    if value.is_empty() || value.len() > HOST_BYTES {
        return false;
    }
    let (host, port) = if let [b'[', rest @ ..] = value {
        let Some(end) = memchr::memchr(b']', rest) else { return false };
        let address = std::str::from_utf8(&rest[..end]).ok().and_then(|text| text.parse::<std::net::Ipv6Addr>().ok());
        if address.is_none() {
            return false;
        }
        (None, &rest[end + 1..])
    } else {
        let end = memchr::memchr(b':', value).unwrap_or(value.len());
        (Some(&value[..end]), &value[end..])
    };
    let named = |host: &[u8]| {
        !host.is_empty() && host.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    };
    let numbered = |port: &[u8]| {
        let text = port.strip_prefix(b":").filter(|digits| digits.iter().all(u8::is_ascii_digit));
        text.and_then(|digits| std::str::from_utf8(digits).ok()).is_some_and(|text| text.parse::<u16>().is_ok())
    };
    host.is_none_or(named) && (port.is_empty() || numbered(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of each of so many requests, the stream coming in pieces of this size.
    fn verdicts(stream: &[u8], size: usize, requests: usize) -> (Vec<Option<Fault>>, bool) {
        let mut framing = Framing::default();
        let mut whole = true;
        for part in stream.chunks(size.max(1)) {
            whole &= framing.feed(part) == part.len();
        }
        ((0..requests).map(|_| framing.take()).collect(), whole)
    }

    #[test]
    fn doubtful_heads_are_seen_however_the_bytes_arrive() {
        let post = |lines: &str| format!("POST /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let long = "x".repeat(600);
        let table: Vec<(String, Option<Fault>)> = vec![
            (post(""), None),
            (format!("\r\n\r\n{}", post("Content-Length: 3\r\n")), None),
            (post("Transfer-Encoding:chunked\r\nX-Content-Length: 3\r\n"), None),
            (post("Transfer-Encoding: \t Chunked \r\n"), None),
            (post("content-length: 03\r\n"), None),
            (post("X: #\\\u{fc}\r\n"), None),
            (post(&format!("X: {long}\r\n")), None),
            ("GET / HTTP/1.0\r\n\r\n".into(), None),
            (post("Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 3\r\n"), Some(BOTH)),
            (post("Content-Length: 3\r\nTransfer-encoding: chunked\r\n"), Some(BOTH)),
            (post("Content-Length: 3\r\na: b\r\nContent-Length: 3\r\n"), Some(LENGTHS)),
            (post("Content-Length: +3\r\n"), Some(BAD_LENGTH)),
            (post("Content-Length: 3, 3\r\n"), Some(BAD_LENGTH)),
            (post("Content-Length:\r\n"), Some(BAD_LENGTH)),
            (post("Content-Length: 99999999999999999999\r\n"), Some(BAD_LENGTH)),
            (post("Content-Length: 9223372036854775808\r\n"), Some(BAD_LENGTH)),
            (post(&format!("Content-Length: {}\r\n", "0".repeat(600))), Some(BAD_LENGTH)),
            (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), Some(CODINGS)),
            (post("Transfer-Encoding: chunked, chunked\r\n"), Some(BAD_CODING)),
            (post("Transfer-Encoding: identity\r\n"), Some(BAD_CODING)),
            (post("Transfer-Encoding: chunked;q=1\r\n"), Some(BAD_CODING)),
            (post("Transfer-Encoding:\r\n"), Some(BAD_CODING)),
            (post("Transfer-Encoding: gzip, chunked\r\n"), Some(OTHER_CODING)),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Some(BAD_CODING)),
            ("GET / HTTP/1.1\r\n\r\n".into(), Some(HOSTS)),
            (post("host: a\r\n"), Some(HOSTS)),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), Some(BAD_HOST)),
            (format!("GET / HTTP/1.1\r\nHost: {long}\r\n\r\n"), Some(BAD_HOST)),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n".into(), Some(LINE_FEED)),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n".into(), Some(LINE_FEED)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n".into(), Some(LINE_FEED)),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Some(LINE_FEED)),
            (post("X: a\r\n b\r\n"), Some(FOLDED)),
            (post("X: a\r\n\tb\r\n"), Some(FOLDED)),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".into(), Some(FRAGMENT)),
        ];
        for (head, expected) in table {
            for size in [1, 2, 3, 17, 500, head.len()] {
                assert_eq!(verdicts(head.as_bytes(), size, 1).0, [expected], "{head:?} by {size}");
            }
        }
    }

    #[test]
    fn a_head_behind_a_body_is_found_and_what_is_a_body_is_no_head() {
        let bad = "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n";
        let length = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{bad}", bad.len());
        let chunks = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x} ;x=\"y\"\r\n{bad}\r\n000\r\nX: y\r\n\r\n",
            bad.len()
        );
        for first in [length, chunks] {
            let stream = format!("{first}{first}{bad}{first}");
            for size in [1, 2, 7, 64, stream.len()] {
                let (verdicts, whole) = verdicts(stream.as_bytes(), size, 3);
                assert_eq!((verdicts, whole), (vec![None, None, Some(HOSTS)], true), "{stream:?} by {size}");
            }
        }
    }

    #[test]
    fn chunks_that_are_none_end_the_stream() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (body, fine) in [
            ("5\r\nhello\r\n0\r\n\r\n", true),
            ("5;a=b\r\nhello\r\n0;x\r\nA: b\r\n\r\n", true),
            ("5 \t;a\r\nhello\r\n0\r\n\r\n", true),
            ("5 \r\nhello\r\n0\r\n\r\n", false),
            ("5\nhello\r\n0\r\n\r\n", false),
            (" 5\r\nhello\r\n0\r\n\r\n", false),
            ("0x5\r\nhello\r\n0\r\n\r\n", false),
            ("5\r\nhello!\r\n0\r\n\r\n", false),
            ("5\r\nhello\n0\r\n\r\n", false),
            ("5;a\nb\r\nhello\r\n0\r\n\r\n", false),
            ("10000000000000000\r\nhello\r\n0\r\n\r\n", false),
            ("0\r\nA: b\n\r\n", false),
            ("\r\n", false),
        ] {
            let stream = format!("{head}{body}");
            for size in [1, 4, stream.len()] {
                assert_eq!(verdicts(stream.as_bytes(), size, 1), (vec![None], fine), "{body:?} by {size}");
            }
        }
    }

    #[test]
    fn what_stands_before_a_bad_chunk_may_be_read() {
        let mut framing = Framing::default();
        let stream = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx";
        assert_eq!((framing.feed(stream), framing.feed(b"0\r\n\r\n")), (stream.len() - 1, 0));
        assert_eq!(framing.take(), None);
    }

    #[test]
    fn a_request_that_was_not_seen_coming_is_refused() {
        let mut framing = Framing::default();
        framing.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((framing.take(), framing.take()), (None, Some(LOST)));
    }

    #[test]
    fn hosts_are_names_and_ports() {
        for host in
            ["a", "A.example.com", "a.example.com:8080", "127.0.0.1:1", "[::1]", "[::1]:8080", "my_host:0", "a."]
        {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ":80",
            "a:",
            "a:b",
            "a:80:80",
            "a:65536",
            "a:-1",
            "a:+1",
            "a b",
            "a,b",
            "a/b",
            "a\\b",
            "u@a",
            "a?b",
            "a#b",
            "[::1",
            "[::1]a",
            "[a]",
            "::1",
            "\u{fc}",
            "a%2f",
            "[::1%25eth0]",
            "http://a",
            "\"a\"",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }
}

//! WebSockets (RFC 6455) over HTTP/1.1: the handshake is checked on both sides, then bytes pass both ways. What they say is not
//! our business; that they end is: with a pause, with the grant, with the process.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::load::UnderWay;
use super::upstream::Lease;
use super::{Refusal, key};
use crate::audit::Receipt;
use crate::net::Stream;

/// Bytes held of each direction.
const BUFFER: usize = 16 * 1024;

/// A handshake that an agent began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handshake {
    /// What the target's `Sec-WebSocket-Accept` has to be.
    accept: String,
    /// Offered subprotocols, as written.
    protocols: Vec<String>,
}

/// An upstream's connection after its 101, and what was read of it already.
pub(super) type Switched = oneshot::Receiver<(Box<dyn Stream>, Bytes)>;

/// Whether a list of words has this one.
fn names(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let words = headers.get_all(name).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    words.map(<[u8]>::trim_ascii).any(|word| word.eq_ignore_ascii_case(wanted.as_bytes()))
}

/// The only line of this name.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

fn words(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for line in headers.get_all(name) {
        all.extend(line.to_str().ok()?.split(',').map(|word| word.trim().to_owned()));
    }
    Some(all)
}

impl Handshake {
    /// Reads the handshake of a request that wants one (RFC 6455 §4.2.1). Any other offer to upgrade may be ignored (RFC 9110
    /// §7.8); a WebSocket client can do nothing without an answer to its own.
    pub(super) fn of(method: &Method, version: Version, headers: &HeaderMap) -> Result<Option<Box<Self>>, Refusal> {
        if !headers.contains_key(UPGRADE) || !names(headers, &UPGRADE, "websocket") {
            return Ok(None);
        }
        let bad = |words| Err(Refusal::BadRequest(words));
        if *method != Method::GET || version != Version::HTTP_11 {
            return bad("A WebSocket begins with GET, over HTTP/1.1.");
        }
        if !names(headers, &CONNECTION, "upgrade") {
            return bad("A WebSocket's handshake names `Upgrade` in `Connection`.");
        }
        let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
        if length || headers.contains_key(TRANSFER_ENCODING) {
            return bad("A WebSocket's handshake has no body.");
        }
        if only(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
            return bad("Only Sec-WebSocket-Version 13 is understood.");
        }
        let nonce = only(headers, &SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
        let Some(nonce) = nonce.filter(|nonce| STANDARD.decode(nonce).is_ok_and(|bytes| bytes.len() == 16)) else {
            return bad("The Sec-WebSocket-Key is not 16 bytes in base64.");
        };
        let Some(protocols) = words(headers, &SEC_WEBSOCKET_PROTOCOL) else {
            return bad("The Sec-WebSocket-Protocol is not valid.");
        };
        // Browsers can set no other header, so keys are put there; it would travel on.
        if protocols.iter().any(|word| key::is_in(word)) {
            return Err(Refusal::KeyInRequest);
        }
        Ok(Some(Box::new(Self { accept: accept(nonce), protocols })))
    }

    /// Checks the target's 101 (RFC 6455 §4.1).
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let accepted =
            only(headers, &SEC_WEBSOCKET_ACCEPT).is_some_and(|value| value.as_bytes() == self.accept.as_bytes());
        let chosen = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().count();
        let offered = only(headers, &SEC_WEBSOCKET_PROTOCOL)
            .is_some_and(|chosen| self.protocols.iter().any(|protocol| chosen.as_bytes() == protocol.as_bytes()));
        let switched = names(headers, &UPGRADE, "websocket") && names(headers, &CONNECTION, "upgrade");
        if accepted && switched && (chosen == 0 || offered) { Ok(()) } else { Err(Refusal::UpstreamInvalid) }
    }
}

/// Says that the connection is to become a WebSocket; ours on either side, whatever was said there before.
pub(super) fn upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// RFC 6455 §4.2.2: the key and this fixed text, in SHA-1.
fn accept(nonce: &str) -> String {
    let text = format!("{nonce}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// Two connections, joined. The receipt closes with it: as whole when both sides have ended, else as aborted.
struct Joined {
    agent: Box<dyn Stream>,
    upstream: Box<dyn Stream>,
    up: Pipe,
    down: Pipe,
    lease: Lease,
    receipt: Receipt,
}

/// Moves bytes until both sides have ended, one breaks off, nothing moves for too long, or the grant goes.
/// What rides on it, ends with it.
pub(super) async fn join(
    agent: (Box<dyn Stream>, Bytes),
    switched: Switched,
    lease: Lease,
    (mut receipt, _under_way): (Receipt, UnderWay),
) {
    let Ok(upstream) = switched.await else {
        receipt.sent(lease.sent());
        return;
    };
    let (up, down) = (Pipe::new(&agent.1), Pipe::new(&upstream.1));
    let mut joined = Joined { agent: agent.0, upstream: upstream.0, up, down, lease, receipt };
    let whole = poll_fn(|cx| joined.poll(cx)).await;
    if whole {
        joined.receipt.finished();
    }
}

impl Joined {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.lease.poll_passed(cx).is_ready() {
            return Poll::Ready(false);
        }
        let before = (self.up.moved, self.down.moved);
        let up = self.up.poll(cx, &mut *self.agent, &mut *self.upstream);
        let down = self.down.poll(cx, &mut *self.upstream, &mut *self.agent);
        if before != (self.up.moved, self.down.moved) {
            self.lease.progress();
        }
        match (up, down) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(false),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(true),
            _ => Poll::Pending,
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.receipt.sent(self.up.moved);
        self.receipt.received(self.down.moved);
    }
}

/// One direction.
struct Pipe {
    held: BytesMut,
    ended: bool,
    shut: bool,
    moved: u64,
}

impl Pipe {
    fn new(ahead: &Bytes) -> Self {
        Self { held: BytesMut::from(&ahead[..]), ended: false, shut: false, moved: 0 }
    }

    /// Ready once everything has gone over and the other side knows that it was all.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut dyn Stream, to: &mut dyn Stream) -> Poll<io::Result<()>> {
        // A bounded number of turns: a peer that never stops must not hold the thread.
        for _ in 0..16 {
            while !self.held.is_empty() {
                let length = ready!(Pin::new(&mut *to).poll_write(cx, &self.held))?;
                if length == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                let _ = self.held.split_to(length);
                self.moved += length as u64;
            }
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            let mut space = [0u8; BUFFER];
            let mut buf = ReadBuf::new(&mut space);
            match AsyncRead::poll_read(Pin::new(&mut *from), cx, &mut buf) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    ready!(AsyncWrite::poll_flush(Pin::new(&mut *to), cx))?;
                    return Poll::Pending;
                }
            }
            self.ended = buf.filled().is_empty();
            self.held.extend_from_slice(buf.filled());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn asked() -> Vec<(&'static str, &'static str)> {
        vec![
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", SAMPLE),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "chat, superchat"),
        ]
    }

    fn read(lines: &[(&'static str, &str)]) -> Result<Option<Box<Handshake>>, Refusal> {
        Handshake::of(&Method::GET, Version::HTTP_11, &headers(lines))
    }

    #[test]
    fn a_handshake_is_read_and_a_malformed_one_refused() {
        let handshake = read(&asked()).unwrap().unwrap();
        // The example of RFC 6455 §1.3.
        assert_eq!(handshake.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(read(&[("upgrade", "h2c"), ("connection", "upgrade")]), Ok(None));
        assert!(Handshake::of(&Method::POST, Version::HTTP_11, &headers(&asked())).is_err());
        assert!(Handshake::of(&Method::GET, Version::HTTP_10, &headers(&asked())).is_err());
        for (name, value) in [
            ("connection", "keep-alive"),
            ("sec-websocket-key", "short"),
            ("sec-websocket-key", ""),
            ("sec-websocket-version", "8"),
            ("sec-websocket-version", "13, 8"),
        ] {
            let changed: Vec<_> =
                asked().into_iter().map(|line| if line.0 == name { (name, value) } else { line }).collect();
            assert!(matches!(read(&changed), Err(Refusal::BadRequest(_))), "{name}: {value}");
        }
        for more in [
            ("sec-websocket-key", SAMPLE),
            ("sec-websocket-version", "13"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
        ] {
            let lines = [asked(), vec![more]].concat();
            assert!(matches!(read(&lines), Err(Refusal::BadRequest(_))), "{more:?}");
        }
        let key = "kw_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAaBcDeF";
        assert_eq!(read(&[asked(), vec![("sec-websocket-protocol", key)]].concat()), Err(Refusal::KeyInRequest));
    }

    #[test]
    fn only_the_right_101_is_one() {
        let handshake = read(&asked()).unwrap().unwrap();
        let right = vec![
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ];
        assert!(handshake.check(&headers(&right)).is_ok());
        assert!(handshake.check(&headers(&[right.clone(), vec![("sec-websocket-protocol", "chat")]].concat())).is_ok());
        for more in [("sec-websocket-protocol", "other"), ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")] {
            assert!(handshake.check(&headers(&[right.clone(), vec![more]].concat())).is_err(), "{more:?}");
        }
        for gone in ["connection", "upgrade", "sec-websocket-accept"] {
            let lines: Vec<_> = right.iter().copied().filter(|(name, _)| *name != gone).collect();
            assert!(handshake.check(&headers(&lines)).is_err(), "{gone}");
        }
        let wrong = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", SAMPLE)];
        assert!(handshake.check(&headers(&wrong)).is_err());
    }
}

//! What was put into a request must not come back in its answer: an upstream that repeats what it was sent would tell the
//! agent the secret. In an answer's head the secret's exact bytes are always hidden; in its body where the target is
//! guarded. Hiding is writing `*` over them, so every length stays what it was.
//!
//! ```text
//!        a piece of the body            and the next
//!   …"auth": "Bearer sk-4f  │  9a1c77", "id": 1…        the secret is sk-4f9a1c77
//!                     └──┬─┘
//!            begins the secret, so it is held back until the next piece tells: at most one byte less than the secret
//! ```
//!
//! Not found, because it is not the secret's bytes: what is compressed (that is why `identity` is asked for), escaped,
//! encoded otherwise, or shorter than 8 bytes.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, response};
use hyper::body::{Body, Frame};
use hyper::ext::ReasonPhrase;
use memchr::memmem::Finder;

use crate::access::Target;
use crate::catalog::Secrets;

/// Asks for an answer whose bytes can be looked at.
pub(super) fn ask_plainly(target: &Target, fields: &mut HeaderMap) {
    if target.reflect_guard {
        fields.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
}

/// Hides what was put into the request from the head of its answer.
pub(super) fn hide_in_head(parts: &mut response::Parts, secrets: &Secrets) {
    for secret in secrets.iter() {
        let mut in_name = false;
        for (name, value) in &mut parts.headers {
            in_name |= holds(name.as_str().as_bytes(), secret);
            if *name != CONTENT_LENGTH && holds(value.as_bytes(), secret) {
                *value = hidden(value, secret);
            }
        }
        if in_name {
            let gone = |name: &&HeaderName| holds(name.as_str().as_bytes(), secret);
            let gone: Vec<_> = parts.headers.keys().filter(gone).cloned().collect();
            for name in gone {
                parts.headers.remove(name);
            }
        }
        if parts.extensions.get::<ReasonPhrase>().is_some_and(|reason| holds(reason.as_bytes(), secret)) {
            parts.extensions.remove::<ReasonPhrase>();
        }
    }
}

fn holds(text: &[u8], secret: &Finder<'_>) -> bool {
    text.len() >= secret.needle().len() && secret.find(text).is_some()
}

fn hidden(value: &HeaderValue, secret: &Finder<'_>) -> HeaderValue {
    let mut mask = Mask::of(&Secrets::of_bytes([secret.needle()]));
    let shown = mask.feed(Bytes::copy_from_slice(value.as_bytes()), true);
    HeaderValue::from_maybe_shared(shown).unwrap_or(HeaderValue::from_static("*"))
}

/// Whether an answer's bytes are not those of its text.
pub(super) fn is_compressed(headers: &HeaderMap) -> bool {
    !headers.get_all(CONTENT_ENCODING).iter().all(|coding| is_identity(coding.as_bytes()))
}

/// Whether a `Content-Encoding` changes nothing.
pub(super) fn is_identity(coding: &[u8]) -> bool {
    coding.eq_ignore_ascii_case(b"identity")
}

/// Whether what was put into the request stands anywhere in these bytes.
pub(super) fn tells(secrets: &Secrets, bytes: &[u8]) -> bool {
    secrets.iter().any(|secret| holds(bytes, secret))
}

/// What hides the request's secrets in the body of a guarded target's answer, where that is possible.
pub(super) fn mask(slug: &str, secrets: &Secrets, compressed: bool) -> Option<Box<Mask>> {
    if compressed {
        tracing::debug!(target.slug = %slug, "an answer is compressed all the same; it passes as it is");
        return None;
    }
    (!secrets.is_empty()).then(|| Box::new(Mask::of(secrets)))
}

/// Hides secrets in a body that comes in pieces. Its `Debug` does not show them.
pub(super) struct Mask {
    secrets: Secrets,
    /// The end of what came, as it came: it begins a secret.
    held: Vec<u8>,
    /// How much of `held` belongs to a secret that was found already.
    covered: usize,
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mask").field("secrets", &self.secrets.len()).finish_non_exhaustive()
    }
}

impl Mask {
    pub(super) fn of(secrets: &Secrets) -> Self {
        Self { secrets: secrets.clone(), held: Vec::new(), covered: 0 }
    }

    /// The next piece of the body behind, without its secrets.
    pub(super) fn poll<B>(&mut self, body: &mut B, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        loop {
            let piece = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.feed(data, body.is_end_stream()),
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                None if self.is_empty() => return Poll::Ready(None),
                None => self.feed(Bytes::new(), true),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            };
            // All of it may be held back.
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
    }

    /// Whether nothing is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether a piece can be shown as it is, and leaves nothing to hold back.
    pub(super) fn passes(&self, piece: &[u8], last: bool) -> bool {
        self.held.is_empty()
            && self.secrets.iter().all(|secret| secret.find(piece).is_none())
            && (last || self.begun(piece) == 0)
    }

    /// Takes a piece, gives what can be shown of all that came. With the last one nothing is held back.
    pub(super) fn feed(&mut self, piece: Bytes, last: bool) -> Bytes {
        let whole = if self.held.is_empty() {
            piece
        } else {
            let mut whole = BytesMut::with_capacity(self.held.len() + piece.len());
            whole.extend_from_slice(&self.held);
            whole.extend_from_slice(&piece);
            whole.freeze()
        };
        let keep = if last { 0 } else { self.begun(&whole) };
        let shown = whole.len() - keep;
        let found = self.find(&whole);
        // One that lies in what is held back altogether will be found again.
        let cut = found.iter().filter(|(start, _)| *start < shown).map(|(_, end)| *end);
        let end = cut.max().unwrap_or(0).max(self.covered);
        self.held.clear();
        self.held.extend_from_slice(&whole[shown..]);
        let covered = std::mem::replace(&mut self.covered, end.saturating_sub(shown));
        let mut piece = whole;
        piece.truncate(shown);
        if covered == 0 && found.is_empty() {
            return piece;
        }
        let mut piece = piece.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        for (start, end) in found.into_iter().chain([(0, covered)]) {
            let (start, end) = (start.min(shown), end.min(shown));
            piece[start..end].fill(b'*');
        }
        piece.freeze()
    }

    /// Where secrets begin and end, also such that lie over each other.
    fn find(&self, text: &[u8]) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for secret in self.secrets.iter() {
            let mut from = 0;
            while let Some(at) = secret.find(&text[from..]) {
                found.push((from + at, from + at + secret.needle().len()));
                from += at + 1;
            }
        }
        found
    }

    /// How many bytes at the end of a text could be the beginning of a secret.
    fn begun(&self, text: &[u8]) -> usize {
        let begun = |secret: &Finder<'_>| {
            let secret = secret.needle();
            let most = text.len().min(secret.len() - 1);
            (1..=most).rev().find(|length| text.ends_with(&secret[..*length])).unwrap_or(0)
        };
        self.secrets.iter().map(begun).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Injection;

    fn bearer(token: &str) -> Secrets {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        value.set_sensitive(true);
        Secrets::of(&Injection::Headers(vec![(HeaderName::from_static("authorization"), value)]))
    }

    #[test]
    fn a_head_tells_nothing() {
        let (mut parts, ()) = http::Response::new(()).into_parts();
        for (name, value) in [
            ("x-echo", "Bearer the-token"),
            ("x-echo", "the-tokenthe-token"),
            ("location", "https://api.example.com/?key=the-token&x=1"),
            ("x-the-token-x", "1"),
            ("x-other", "Bearer the-toke"),
            ("content-type", "text/plain"),
        ] {
            parts.headers.append(name, HeaderValue::from_static(value));
        }
        parts.extensions.insert(ReasonPhrase::from_static(b"No the-token here"));
        hide_in_head(&mut parts, &bearer("the-token"));
        let echoed: Vec<_> = parts.headers.get_all("x-echo").iter().collect();
        assert_eq!(echoed, ["Bearer *********", "******************"]);
        assert_eq!(parts.headers["location"], "https://api.example.com/?key=*********&x=1");
        assert_eq!(parts.headers["x-other"], "Bearer the-toke");
        assert_eq!(parts.headers.len(), 5);
        assert!(parts.extensions.get::<ReasonPhrase>().is_none());
    }

    #[test]
    fn a_length_stays_a_length() {
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("12345678"));
        hide_in_head(&mut parts, &bearer("12345678"));
        assert_eq!(parts.headers[CONTENT_LENGTH], "12345678");
    }

    /// What a mask makes of these pieces, checking each time that no more is held back than must be.
    fn masked(secrets: &[&[u8]], pieces: &[&[u8]], told_end: bool) -> Vec<u8> {
        let mut mask = Mask::of(&Secrets::of_bytes(secrets.iter().copied()));
        let mut shown = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            let last = told_end && at + 1 == pieces.len();
            shown.extend_from_slice(&mask.feed(Bytes::copy_from_slice(piece), last));
            assert!(mask.is_empty() || secrets.iter().any(|secret| secret.starts_with(&mask.held)));
            assert!(mask.is_empty() || secrets.iter().any(|secret| mask.held.len() < secret.len()));
        }
        shown.extend_from_slice(&mask.feed(Bytes::new(), true));
        shown
    }

    /// The same, seen at once.
    fn expected(secrets: &[&[u8]], text: &[u8]) -> Vec<u8> {
        let mut shown = text.to_vec();
        for secret in secrets {
            for (at, window) in text.windows(secret.len()).enumerate() {
                if window == *secret {
                    shown[at..at + secret.len()].fill(b'*');
                }
            }
        }
        shown
    }

    #[test]
    fn a_secret_is_found_wherever_it_is_cut() {
        let cases: [(&[&[u8]], &[u8]); 6] = [
            (&[b"sk-4f9a1c77"], b"{\"auth\": \"Bearer sk-4f9a1c77\", \"next\": \"sk-4f9a1c7\"}"),
            (&[b"aab"], b"aaab aabaab aaaab aa"),
            (&[b"abab"], b"ababab abababab aba"),
            (&[b"abcabd"], b"abcabcabdabcab"),
            (&[b"token-one", b"one-more"], b"token-one-more token-on token-one"),
            (&[b"abc", b"abcdefgh", b"cdx"], b"abcdefghi abcdx abcdefg"),
        ];
        for (secrets, text) in cases {
            let expected = expected(secrets, text);
            for first in 0..=text.len() {
                for second in first..=text.len() {
                    let pieces = [&text[..first], &text[first..second], &text[second..]];
                    assert_eq!(masked(secrets, &pieces, true), expected, "{first} {second}");
                    assert_eq!(masked(secrets, &pieces, false), expected, "{first} {second}");
                }
            }
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(masked(secrets, &bytes, true), expected);
        }
    }

    #[test]
    fn what_holds_no_beginning_of_a_secret_is_not_copied_and_not_kept() {
        let mut mask = Mask::of(&Secrets::of_bytes([&b"the-injected-token"[..]]));
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        let shown = mask.feed(piece.clone(), false);
        assert!(std::ptr::eq(piece.as_ptr(), shown.as_ptr()) && shown.len() == piece.len());
        assert_eq!(mask.feed(Bytes::from_static(b"data: {\"n\":1}\n\n"), false), "data: {\"n\":1}\n\n");
        assert!(mask.is_empty());
    }

    struct Pieces(VecDeque<&'static str>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))))
        }
    }

    #[test]
    fn a_body_that_only_begins_a_secret_ends_whole() {
        let mut mask = Mask::of(&Secrets::of_bytes([&b"secret"[..]]));
        let mut body = Pieces(VecDeque::from(["s", "e", "c", "secr"]));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut shown = Vec::new();
        while let Poll::Ready(Some(Ok(frame))) = mask.poll(&mut body, &mut cx) {
            shown.push(frame.into_data().unwrap());
        }
        assert_eq!(shown, ["sec", "secr"]);
        assert!(mask.is_empty());
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            secrets in proptest::collection::vec("[ab]{2,6}", 1..4),
            pieces in proptest::collection::vec("[abc]{0,7}", 0..8),
            told_end in any::<bool>(),
        ) {
            let secrets: Vec<&[u8]> = secrets.iter().map(String::as_bytes).collect();
            let whole = pieces.concat();
            let pieces: Vec<&[u8]> = pieces.iter().map(String::as_bytes).collect();
            prop_assert_eq!(masked(&secrets, &pieces, told_end), expected(&secrets, whole.as_bytes()));
        }
    }
}

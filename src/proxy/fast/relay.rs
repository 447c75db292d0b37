//! An answer's body on its way from the upstream's framing into ours.

use std::io::Write as _;

use bytes::Bytes;

use crate::net::Unchunk;
use crate::proxy::reflect::Mask;

/// So little is copied behind a head sooner than written from where it is.
const COPIED: usize = 4096;

/// How an upstream says where its body ends (RFC 9112 §6.3).
#[derive(Debug)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// After so many more bytes.
    Length(u64),
    /// With the last chunk.
    Chunked(Unchunk),
    /// When the connection ends.
    Close,
}

/// A body that ends before its end, or that is not what it was said to be.
#[derive(Debug, thiserror::Error)]
#[error("the answer's body broke off")]
pub(super) struct Broken;

/// A body under way.
#[derive(Debug)]
pub(super) struct Relay {
    framing: Framing,
    /// Hides the request's secrets, where that is wanted.
    mask: Option<Box<Mask>>,
    received: u64,
    over: bool,
    /// How much of the input can be written as it is.
    clear: usize,
}

impl Relay {
    pub(super) fn new(framing: Framing, mask: Option<Box<Mask>>) -> Self {
        let over = matches!(framing, Framing::None | Framing::Length(0));
        Self { framing, mask, received: 0, over, clear: 0 }
    }

    /// Bytes of the body that came.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// How much is to come, as far as one can guess.
    pub(super) fn expects(&self) -> u64 {
        if let Framing::Length(left) = self.framing { left } else { self.received }
    }

    /// Whether what [`Relay::take`] gave and what goes straight is the rest of it.
    pub(super) fn is_last(&self) -> bool {
        match self.framing {
            Framing::Length(left) if !self.over => self.clear as u64 == left,
            _ => self.over,
        }
    }

    /// Moves what `input` holds of the body to `out`, in our framing, but for what can go [straight](Self::straight). With
    /// `ended` nothing more will come.
    pub(super) fn take(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>, ended: bool) -> Result<(), Broken> {
        if self.over {
            return Ok(());
        }
        match &mut self.framing {
            Framing::None => self.over = true,
            Framing::Length(left) => {
                let length = part(*left, input);
                let last = length as u64 == *left;
                let worth = out.is_empty() || length > COPIED;
                if worth && self.mask.as_ref().is_none_or(|mask| mask.passes(&input[..length], last)) {
                    self.clear = length;
                    return if ended && length == 0 { Err(Broken) } else { Ok(()) };
                }
                *left -= length as u64;
                self.over = *left == 0;
                self.received += length as u64;
                shown(&mut self.mask, &input[..length], self.over, |data| out.extend_from_slice(data));
                input.drain(..length);
            }
            Framing::Chunked(unchunk) => {
                let mut length = 0;
                unchunk.clone().feed(input, |data| length += data.len()).map_err(|_bad| Broken)?;
                let mut whole = Vec::new();
                let into = if self.mask.is_some() { &mut whole } else { &mut *out };
                if self.mask.is_none() {
                    chunk_size(into, length);
                }
                let taken = unchunk.feed(input, |data| into.extend_from_slice(data)).map_err(|_bad| Broken)?;
                input.drain(..taken);
                self.over = unchunk.is_over();
                self.received += length as u64;
                if self.mask.is_none() {
                    chunk_end(out, length);
                } else {
                    shown(&mut self.mask, &whole, self.over, |data| chunk(out, data));
                }
            }
            Framing::Close => {
                self.over = ended;
                self.received += input.len() as u64;
                shown(&mut self.mask, input, ended, |data| chunk(out, data));
                input.clear();
            }
        }
        if self.over && matches!(self.framing, Framing::Chunked(_) | Framing::Close) {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        if ended && !self.over { Err(Broken) } else { Ok(()) }
    }

    /// How much of the input can be written as it is.
    pub(super) fn straight(&self) -> usize {
        self.clear
    }

    /// So much of it was written.
    pub(super) fn passed(&mut self, length: usize) {
        self.clear -= length;
        if let Framing::Length(left) = &mut self.framing {
            *left -= length as u64;
            self.over = *left == 0;
            self.received += length as u64;
        }
    }
}

/// How much of `input` belongs to a body of which so much is left.
fn part(left: u64, input: &[u8]) -> usize {
    usize::try_from(left).map_or(input.len(), |left| left.min(input.len()))
}

/// Gives what of `data` may be shown.
fn shown(mask: &mut Option<Box<Mask>>, data: &[u8], last: bool, give: impl FnOnce(&[u8])) {
    match mask {
        Some(mask) if !mask.passes(data, last) => give(&mask.feed(Bytes::copy_from_slice(data), last)),
        _ => give(data),
    }
}

fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    chunk_size(out, data.len());
    out.extend_from_slice(data);
    chunk_end(out, data.len());
}

/// A chunk of no data would be the last one.
fn chunk_size(out: &mut Vec<u8>, length: usize) {
    if length > 0 {
        out.reserve(length + 20);
        let _ = write!(out, "{length:x}\r\n");
    }
}

fn chunk_end(out: &mut Vec<u8>, length: usize) {
    if length > 0 {
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Secrets;

    /// What an agent gets of a body that comes in pieces of this size; and what is left over.
    fn relayed(framing: Framing, mask: bool, body: &[u8], size: usize) -> Result<(String, String), Broken> {
        let mask = mask.then(|| Box::new(Mask::of(&Secrets::of_bytes([&b"secret-token"[..]]))));
        let mut relay = Relay::new(framing, mask);
        let (mut input, mut out, mut got) = (Vec::new(), b"head ".to_vec(), Vec::new());
        let mut pieces = body.chunks(size);
        let mut ended = false;
        loop {
            relay.take(&mut input, &mut out, ended)?;
            let straight = relay.straight();
            got.append(&mut out);
            got.extend(input.drain(..straight));
            relay.passed(straight);
            if relay.is_last() {
                break;
            }
            match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => ended = true,
            }
        }
        input.extend(pieces.flatten());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ok((text(got), text(input)))
    }

    fn unchunked(text: &str) -> String {
        let (mut unchunk, mut body) = (Unchunk::default(), Vec::new());
        let length = unchunk.feed(text.strip_prefix("head ").unwrap().as_bytes(), |data| body.extend_from_slice(data));
        assert!(unchunk.is_over() && length == Ok(text.len() - 5), "{text:?}");
        String::from_utf8(body).unwrap()
    }

    #[test]
    fn bodies_arrive_in_our_framing_however_they_come() {
        let chunks = "5\r\nhello\r\n6;a=b\r\n, you \r\n0d\r\nsecret-tokens\r\n0\r\nA: b\r\n\r\nnext";
        for (mask, said) in [(false, "hello, you secret-tokens"), (true, "hello, you ************s")] {
            for size in [1, 2, 3, 7, 100] {
                let length = Framing::Length(24);
                let (got, left) = relayed(length, mask, b"hello, you secret-tokensnext", size).unwrap();
                assert_eq!((&*got, &*left), (&*format!("head {said}"), "next"), "by {size}");
                let (got, left) = relayed(Framing::Chunked(Unchunk::default()), mask, chunks.as_bytes(), size).unwrap();
                assert_eq!((&*unchunked(&got), &*left), (said, "next"), "by {size}");
                let (got, left) = relayed(Framing::Close, mask, b"hello, you secret-tokens", size).unwrap();
                assert_eq!((&*unchunked(&got), &*left), (said, ""), "by {size}");
            }
        }
        assert_eq!(relayed(Framing::None, false, b"next", 4).unwrap(), ("head ".into(), "next".into()));
        assert_eq!(relayed(Framing::Length(0), true, b"next", 4).unwrap(), ("head ".into(), "next".into()));
        assert_eq!(relayed(Framing::Close, true, b"", 1).unwrap().0, "head 0\r\n\r\n");
    }

    #[test]
    fn a_body_that_breaks_off_is_broken() {
        for mask in [false, true] {
            for size in [1, 100] {
                assert!(relayed(Framing::Length(6), mask, b"hello", size).is_err());
                for body in ["5\r\nhello\r\n", "5\r\nhel", "5\r\nhello\r\n0\r\n", "x", ""] {
                    assert!(relayed(Framing::Chunked(Unchunk::default()), mask, body.as_bytes(), size).is_err());
                }
            }
        }
    }
}

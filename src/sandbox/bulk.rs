//! Bodies of any size, made on the way, and ones that are larger than anybody should accept.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::header;

/// A repeating 0, 1 … 255, so that a lost or doubled piece shows.
static PATTERN: [u8; 65536] = {
    let mut bytes = [0; 65536];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at % 256) as u8;
        at += 1;
    }
    bytes
};

static LETTERS: [u8; 65536] = [b'a'; 65536];

/// `length` bytes of the pattern.
pub(super) fn pattern(length: u64) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    repeated(&PATTERN, length)
}

fn repeated(piece: &'static [u8], length: u64) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    stream::unfold(length, move |left| async move {
        let size = left.min(piece.len() as u64);
        (size > 0).then(|| (Ok(Bytes::from_static(&piece[..size as usize])), left - size))
    })
}

/// The start of a token answer, and then no end of letters.
pub(super) fn big(length: u64) -> Response {
    let start = Bytes::from_static(b"{\"access_token\":\"");
    let rest = length.saturating_sub(start.len() as u64);
    let body = stream::iter([Ok(start)]).chain(repeated(&LETTERS, rest));
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response()
}

/// One deflate block of fixed codes (RFC 1951 §3.2.6): the letter `a`, then "258 bytes from one byte back" again and
/// again. Each such copy takes 13 bits, so eight of them make a pattern of 13 bytes.
pub(super) fn gzip_bomb(length: u64) -> Response {
    let copies = length.div_ceil(258).max(8);
    let mut bits = Bits::default();
    bits.push(0b1, 1); // the last block
    bits.push(0b01, 2); // fixed codes
    bits.push_code(0x30 + u32::from(b'a'), 8);
    for _ in 0..copies {
        bits.push_code(0b1100_0101, 8); // length 258
        bits.push_code(0, 5); // distance 1
    }
    bits.push_code(0, 7); // end of block
    let mut body = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    body.extend(bits.done());
    body.extend([0; 8]); // check sum and length: see the variant's note
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_ENCODING, "gzip")];
    (headers, body).into_response()
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    held: u32,
    count: u32,
}

impl Bits {
    /// Numbers go in with the lowest bit first.
    fn push(&mut self, value: u32, count: u32) {
        self.held |= value << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push((self.held & 0xff) as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// Huffman codes go in with the highest bit first.
    fn push_code(&mut self, code: u32, count: u32) {
        self.push(code.reverse_bits() >> (32 - count), count);
    }

    fn done(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.push(0, 8 - self.count);
        }
        self.bytes
    }
}

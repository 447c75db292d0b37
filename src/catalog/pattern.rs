//! Method and path patterns: what a fence is made of. `GET /me/messages/**`, `/users/*/messages`.
//!
//! Matching is on the raw path, byte for byte. The gateway sends the path it judged, so nothing is decoded here; what an
//! upstream could decode into a step out of the fence (`..`, `%2e%2e`, `a%2f..%2fb`, `..;x`) is matched by no wildcard, nor is
//! a letter in disguise (`%73end` for `send`), which would slip past a rule that names it.

use http::Method;

/// One pattern: an optional method, then a path in which `*` stands for one segment and a last `**` for any rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    method: Option<Method>,
    segments: Vec<Segment>,
    /// Ends with `/**`.
    rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    /// One `*`, perhaps with text before or after it: `*`, `events:*`, `*:batchGet`.
    Star {
        before: Box<str>,
        after: Box<str>,
    },
}

/// Why a text is not a pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct PatternError(pub String);

impl Pattern {
    /// Reads `[METHOD ]/path`.
    ///
    /// # Errors
    /// When the text does not have that form.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let fail = |problem: &str| Err(PatternError(format!("`{text}` {problem}")));
        let (method, path) = match text.split_once(' ') {
            Some((method, path)) => (Some(method), path),
            None => (None, text),
        };
        let method = match method {
            Some(word) if !word.is_empty() && word.len() <= 20 && word.bytes().all(|b| b.is_ascii_uppercase()) => {
                Some(Method::from_bytes(word.as_bytes()).map_err(|_| PatternError(format!("`{text}` has no method")))?)
            }
            Some(_) => return fail("must be a path, or a method in capitals, one space and a path"),
            None => None,
        };
        let Some(path) = path.strip_prefix('/') else { return fail("has no path that starts with `/`") };
        if let Some(c) = path.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '?' | '#' | '\\' | '{' | '}')) {
            return fail(&format!("holds {c:?}, which can't be in a pattern's path"));
        }

        let mut words: Vec<&str> = path.split('/').collect();
        let rest = words.last() == Some(&"**");
        if rest {
            words.pop();
        }
        let mut segments = Vec::with_capacity(words.len());
        for (index, word) in words.iter().enumerate() {
            if word.is_empty() && (rest || index + 1 < words.len()) {
                return fail("has an empty segment");
            }
            if word.contains("**") {
                return fail("has `**` somewhere else than as its whole last segment");
            }
            let shape = Shape::of(word.as_bytes());
            if shape.dots {
                return fail("has a segment that reads as `.` or `..`");
            }
            if shape.veiled {
                return fail("has a letter or digit written as `%…`");
            }
            segments.push(match word.split_once('*') {
                None => Segment::Literal((*word).into()),
                Some((_, after)) if after.contains('*') => return fail("has two `*` in one segment"),
                Some((before, after)) => Segment::Star { before: before.into(), after: after.into() },
            });
        }
        Ok(Self { method, segments, rest })
    }

    /// Whether a request is inside. `path` is raw, starts with `/`, has no query.
    #[must_use]
    pub fn matches(&self, method: &Method, path: &str) -> bool {
        if self.method.as_ref().is_some_and(|own| own != method) {
            return false;
        }
        let Some(path) = path.as_bytes().strip_prefix(b"/") else { return false };
        let mut words = path.split(|byte| *byte == b'/');
        for segment in &self.segments {
            if !words.next().is_some_and(|word| segment.matches(word)) {
                return false;
            }
        }
        if self.rest { words.all(|word| Shape::of(word).stays()) } else { words.next().is_none() }
    }
}

impl Segment {
    fn matches(&self, word: &[u8]) -> bool {
        match self {
            Self::Literal(own) => own.as_bytes() == word,
            Self::Star { before, after } => {
                word.len() > before.len() + after.len()
                    && word.starts_with(before.as_bytes())
                    && word.ends_with(after.as_bytes())
                    && Shape::of(word) == Shape::default()
            }
        }
    }
}

/// How a server may read a segment after decoding it, once or often, and after dropping `;parameters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Some part of it is `.` or `..`.
    pub dots: bool,
    /// It holds an encoded or reversed slash: it may be read as several segments.
    pub slash: bool,
    /// It starts with `;`: without its parameters nothing is left.
    pub hollow: bool,
    /// It holds a character as `%…` that needs none (RFC 3986 §2.3: letter, digit, `-`, `.`, `_`): a disguise.
    pub veiled: bool,
}

impl Shape {
    /// Whether it is what it looks like, one segment or more, and steps nowhere else.
    fn stays(self) -> bool {
        !self.dots && !self.veiled
    }

    pub(super) fn of(segment: &[u8]) -> Self {
        let mut shape = Self::default();
        // Plain segments are nearly all there are; one look decides.
        if !segment.starts_with(b".") && !segment.iter().any(|b| matches!(b, b'%' | b'\\' | b';')) {
            return shape;
        }
        let mut rest = segment;
        shape.hollow = read(rest).0 == b';';
        // The part between slashes, up to its first `;`: how many dots, and whether there are only dots.
        let (mut dots, mut only_dots, mut in_name) = (0usize, true, true);
        while !rest.is_empty() {
            shape.veiled |= is_veiled(rest);
            let (byte, length) = read(rest);
            rest = &rest[length..];
            match byte {
                b'/' | b'\\' => {
                    shape.slash = true;
                    shape.dots |= only_dots && (1..=2).contains(&dots);
                    (dots, only_dots, in_name) = (0, true, true);
                }
                b';' => in_name = false,
                b'.' if in_name => dots += 1,
                _ if in_name => only_dots = false,
                _ => {}
            }
        }
        shape.dots |= only_dots && (1..=2).contains(&dots);
        shape
    }
}

/// Whether the text starts with a character that is encoded without need. `~` is left out: older encoders do that.
fn is_veiled(bytes: &[u8]) -> bool {
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    if bytes.first() != Some(&b'%') {
        return false;
    }
    let (Some(high), Some(low)) = (digit(1), digit(2)) else { return false };
    char::from_u32(high * 16 + low).is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

/// The first character as the most eager decoder would read it, and how many bytes it takes. Only the characters that
/// steer a path are decoded; `%25` is peeled off as often as it stands there.
fn read(bytes: &[u8]) -> (u8, usize) {
    let Some(&first) = bytes.first() else { return (0, 0) };
    if first != b'%' {
        return (first, 1);
    }
    let mut at = 1;
    while bytes[at..].starts_with(b"25") {
        at += 2;
    }
    let code = bytes.get(at..at + 2).map(<[u8]>::to_ascii_lowercase);
    let byte = match code.as_deref() {
        Some(b"2e") => b'.',
        Some(b"2f") => b'/',
        Some(b"5c") => b'\\',
        Some(b"3b") => b';',
        _ => return (b'%', 1),
    };
    (byte, at + 2)
}

/// Several patterns; a request is inside when one of them matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// Reads every text.
    ///
    /// # Errors
    /// The first text that is not a pattern.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, PatternError> {
        texts.iter().map(|text| Pattern::parse(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }
    /// Whether one of them matches.
    #[must_use]
    pub fn matches(&self, method: &Method, path: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(method, path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_matches_what_it_says() {
        let table: &[(&str, &str, &[&str], &[&str])] = &[
            (
                "/me/messages/**",
                "GET",
                &["/me/messages", "/me/messages/", "/me/messages/x", "/me/messages/x/y%20z"],
                &[
                    "/me/message",
                    "/me/messagesx",
                    "/Me/messages",
                    "/me//messages",
                    "/me/messages/..",
                    "/me/messages/../events",
                    "/me/messages/./x",
                    "/me/messages/%2e%2e/events",
                    "/me/messages/%2E./events",
                    "/me/messages/x%2f..%2f..%2fevents",
                    "/me/messages/x%5C..%5cevents",
                    "/me/messages/x\\..\\..\\events",
                    "/me/messages/%252e%252e/events",
                    "/me/messages/..;a=b/events",
                    "/me/messages/1/%73end",
                    "/me/messages/1/%53end",
                    "/me/messages/a%2Eb",
                    "me/messages",
                    "",
                ],
            ),
            (
                "/**",
                "GET",
                &["/", "/x", "/x/y", "/...", "/.well-known/x", "/a%2Fb", "//x"],
                &["", "x", "/..", "/x/%2e"],
            ),
            (
                "/users/*/messages",
                "GET",
                &["/users/ada@example.com/messages", "/users/a%20b/messages", "/users/%7Eada%25/messages"],
                &[
                    "/users//messages",
                    "/users/messages",
                    "/users/a/b/messages",
                    "/users/a%2Fb/messages",
                    "/users/a%5cb/messages",
                    "/users/../messages",
                    "/users/%2e/messages",
                    "/users/;x/messages",
                    "/users/a/messages/",
                    "/users/a/messages/1",
                ],
            ),
            ("/v1/events:*", "GET", &["/v1/events:search"], &["/v1/events:", "/v1/event:search", "/v1/events:a%2fb"]),
            ("/v1/*:batchGet", "GET", &["/v1/people:batchGet"], &["/v1/:batchGet", "/v1/people:batchget"]),
            ("/v1/a*z", "GET", &["/v1/abz"], &["/v1/az", "/v1/abc"]),
            ("/.*", "GET", &["/.x", "/..."], &["/..", "/."]),
            ("/", "GET", &["/"], &["/x", "//", ""]),
            ("/items/", "GET", &["/items/"], &["/items", "/items/x"]),
            ("GET /x", "GET", &["/x"], &["/y"]),
            ("POST /x", "GET", &[], &["/x"]),
        ];
        for (text, method, inside, outside) in table {
            let pattern = Pattern::parse(text).unwrap();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            for path in *inside {
                assert!(pattern.matches(&method, path), "{text} must match {path}");
            }
            for path in *outside {
                assert!(!pattern.matches(&method, path), "{text} must not match {path}");
            }
        }
    }

    #[test]
    fn texts_that_are_no_patterns_are_refused() {
        for text in [
            "",
            "me",
            "GET",
            "GET me",
            "get /me",
            "GET  /me",
            " /me",
            "GET /me x",
            "/me//x",
            "/me/**/x",
            "/me/x**",
            "/me/***",
            "/a*b*c",
            "/me?x=1",
            "/me#x",
            "/me/../x",
            "/me/%2e%2E/x",
            "/me/%73end",
            "/./x",
            "/me\\x",
            "/{id}/x",
            "/mé",
            "//**",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text:?} must be refused");
        }
        let error = Patterns::parse(&["/ok", "nope"]).unwrap_err();
        assert_eq!(error.to_string(), "`nope` has no path that starts with `/`");
    }

    #[test]
    fn several_patterns_match_when_one_does() {
        let patterns = Patterns::parse(&["GET /a", "/b/**"]).unwrap();
        assert!(patterns.matches(&Method::GET, "/a"));
        assert!(!patterns.matches(&Method::POST, "/a"));
        assert!(patterns.matches(&Method::POST, "/b/c"));
        assert!(!Patterns::default().matches(&Method::GET, "/a"));
    }

    /// The path as the most eager server could read it: decoded until nothing changes, reversed slashes turned,
    /// parameters dropped, dots walked.
    fn eager(path: &str) -> Vec<String> {
        let mut text = path.to_owned();
        loop {
            let mut next = text.clone();
            for (code, plain) in [("%2e", "."), ("%2f", "/"), ("%5c", "\\"), ("%3b", ";"), ("%25", "%")] {
                next = next.replace(code, plain).replace(&code.to_uppercase(), plain);
            }
            if next == text {
                break;
            }
            text = next;
        }
        let mut walked = Vec::new();
        for segment in text.replace('\\', "/").split('/') {
            match segment.split(';').next().unwrap_or_default() {
                "" | "." => {}
                ".." => {
                    walked.pop();
                }
                name => walked.push(name.to_owned()),
            }
        }
        walked
    }

    fn nasty_path() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "/", "/", "/", "me", "messages", "users", "x", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", ";",
            "%3B", "%25", "%252e", "25", "2e", "%20", "a", ":",
        ]);
        let head = prop::sample::select(vec!["", "/me/messages", "/me/messages/", "/users/"]);
        let tail = prop::sample::select(vec!["", "/messages", "/messages/"]);
        (head, prop::collection::vec(pieces, 0..8), tail).prop_map(|(h, p, t)| format!("{h}{}{t}", p.concat()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn a_matched_path_never_leaves_the_literal_prefix(path in nasty_path()) {
            if Pattern::parse("/me/messages/**").unwrap().matches(&Method::GET, &path) {
                prop_assert_eq!(&eager(&path)[..2], ["me", "messages"]);
            }
            if Pattern::parse("/users/*/messages/**").unwrap().matches(&Method::GET, &path) {
                let walked = eager(&path);
                prop_assert!(walked[0] == "users" && walked[2] == "messages", "{:?}", walked);
            }
            if Pattern::parse("/users/*/messages").unwrap().matches(&Method::GET, &path) {
                let walked = eager(&path);
                prop_assert!(walked.len() == 3 && walked[0] == "users" && walked[2] == "messages", "{:?}", walked);
            }
        }
    }
}

//! URLs with `{name}` in them: finding the holes, and which values may fill which.
//!
//! A value must not change more of a URL than the template gives away. In most places it is one plain word. Only a
//! hole at the very start stands for a whole origin (`https://eu.example.com`), because there the template says so.

use std::sync::LazyLock;

use regex_lite::Regex;

use super::Base;

/// A piece of a template.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Hole { name: &'a str, place: Place },
}

/// Where in the URL a hole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At the start: scheme, host and port.
    Origin,
    /// In the host, with nothing fixed after it: it decides where requests go.
    OpenHost,
    /// In the host, before a fixed `.example.com`.
    Subdomain,
    /// In the path or query.
    Rest,
}

impl Place {
    /// Whether the value decides which host is spoken to.
    pub(super) fn chooses_host(self) -> bool {
        matches!(self, Self::Origin | Self::OpenHost)
    }
}

static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\A[A-Za-z0-9._-]{1,128}\z").expect("a constant"));

/// Takes a template apart.
pub(super) fn parts(template: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut at = 0;
    let mut after_origin = false;
    while at < template.len() {
        let rest = &template[at..];
        if after_origin && !rest.starts_with('/') {
            return Err("after a leading `{…}`, which stands for a whole origin, a `/` must follow".into());
        }
        after_origin = false;
        match rest.find(['{', '}']) {
            Some(0) if rest.starts_with('{') => {
                let Some(end) = rest.find('}') else { return Err("a `{` has no `}`".into()) };
                let name = &rest[1..end];
                if !is_name(name) {
                    return Err(format!("`{{{name}}}` is not a name in braces (a-z, 0-9 and _)"));
                }
                parts.push(Part::Hole { name, place: place(template, at, at + end + 1) });
                after_origin = at == 0;
                at += end + 1;
            }
            Some(0) => return Err("a `}` has no `{`".into()),
            found => {
                let end = found.unwrap_or(rest.len());
                parts.push(Part::Text(&rest[..end]));
                at += end;
            }
        }
    }
    Ok(parts)
}

fn place(template: &str, start: usize, end: usize) -> Place {
    if start == 0 {
        return Place::Origin;
    }
    let Some(host_at) = template.find("://").map(|at| at + 3) else { return Place::Rest };
    let host_end = template[host_at..].find(['/', '?', '#']).map_or(template.len(), |at| host_at + at);
    if start >= host_end {
        return Place::Rest;
    }
    // What stands after the last hole of the host must be a domain of its own: `.example.com`, not `.com`.
    let tail = &template[end..host_end];
    let fixed = &tail[tail.rfind('}').map_or(0, |at| at + 1)..];
    match fixed.strip_prefix('.').map(|domain| domain.split('.').collect::<Vec<_>>()) {
        Some(labels) if labels.len() >= 2 && labels.iter().all(|label| !label.is_empty()) => Place::Subdomain,
        _ => Place::OpenHost,
    }
}

/// Names of inputs and captured values.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// What goes into the URL for a value, or why it may not. `loopback` allows an http origin on this machine.
pub(super) fn admit(value: &str, place: Place, loopback: bool) -> Result<String, String> {
    if place == Place::Origin {
        let base = Base::parse(value).map_err(|cause| cause.to_string())?;
        if !base.path.is_empty() {
            return Err("must be an origin such as https://api.example.com, without a path".into());
        }
        if !base.https && !loopback {
            return Err("must be an https origin".into());
        }
        return Ok(base.url());
    }
    if !is_word(value) {
        return Err("must be 1 to 128 letters, digits, `.`, `_` or `-`".into());
    }
    Ok(value.to_owned())
}

/// A value that can't end or leave the place it is put in.
pub(super) fn is_word(value: &str) -> bool {
    WORD.is_match(value) && value != "." && value != ".."
}

/// A regular expression that the whole value must match.
pub(super) fn whole(pattern: &str) -> Result<Regex, String> {
    // Alone first: `a)|(b` must not become right by the brackets put around it.
    Regex::new(pattern)
        .and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")))
        .map_err(|cause| format!("not a regular expression: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(template: &str) -> Vec<Place> {
        let parts = parts(template).unwrap();
        parts
            .into_iter()
            .filter_map(|part| if let Part::Hole { place, .. } = part { Some(place) } else { None })
            .collect()
    }

    #[test]
    fn a_hole_knows_its_place() {
        assert_eq!(places("{origin}/oauth/{tenant}"), [Place::Origin, Place::Rest]);
        assert_eq!(places("https://{shop}/admin"), [Place::OpenHost]);
        assert_eq!(places("https://{shop}.com/admin"), [Place::OpenHost]);
        assert_eq!(places("https://{shop}example.com/admin"), [Place::OpenHost]);
        assert_eq!(places("https://{a}.{b}/x"), [Place::OpenHost, Place::OpenHost]);
        assert_eq!(places("https://{shop}.example.com"), [Place::Subdomain]);
        assert_eq!(places("https://api.example.com/{realm}?x={realm}"), [Place::Rest, Place::Rest]);
        assert_eq!(places("https://api.example.com?x={realm}"), [Place::Rest]);
    }

    #[test]
    fn broken_templates_are_refused() {
        for text in [
            "https://a.example/{",
            "https://a.example/}",
            "https://a.example/{A}",
            "https://a.example/{}",
            "{a}.b",
            "{a}{b}",
        ] {
            assert!(parts(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_stay_in_their_place() {
        for bad in ["", ".", "..", "a/b", "a?b", "a#b", "a@b", "a:b", "a%2fb", "a b", "a\nb", "ä", &"x".repeat(129)] {
            assert!(admit(bad, Place::Rest, true).is_err(), "{bad:?}");
            assert!(admit(bad, Place::OpenHost, true).is_err(), "{bad:?}");
        }
        assert_eq!(admit("acme.example.com", Place::OpenHost, false).unwrap(), "acme.example.com");
        assert_eq!(admit("https://eu.example.com/", Place::Origin, false).unwrap(), "https://eu.example.com");
        assert!(admit("https://eu.example.com/x", Place::Origin, false).is_err());
        assert!(admit("http://127.0.0.1:1", Place::Origin, false).is_err());
        assert!(admit("http://127.0.0.1:1", Place::Origin, true).is_ok());
    }

    #[test]
    fn a_pattern_must_match_the_whole_value() {
        assert!(!whole("[a-z]+").unwrap().is_match("ab1"));
        assert!(!whole("^[a-z]+$").unwrap().is_match("ab\n"));
        assert!(whole("a|bc").unwrap().is_match("bc"));
        assert!(whole("a)|(b").is_err());
        assert!(whole("(").is_err());
    }
}

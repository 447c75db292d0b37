//! Checking URLs with `{name}` in them when they are loaded: which names may stand where, and what comes out.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::Keys;
use super::template::{self, Part, Place};
use super::{Base, BaseError, Captured, Input, target};

/// What is known when a URL is needed; each step knows what the ones before did.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Known {
    Inputs,
    Callback,
    Token,
    Identity,
}

/// The names that may stand in braces.
pub(super) struct Names<'a> {
    pub(super) inputs: &'a BTreeMap<String, Input>,
    pub(super) captured: &'a BTreeMap<String, Captured>,
}

impl Names<'_> {
    /// Checks an endpoint. An empty one was noted as missing already.
    pub(super) fn check(&self, keys: &Keys<'_>, key: &str, url: &str, known: Known) {
        if let Some(filled) = self.filled(keys, key, url, known)
            && let Err(cause) = target::check_endpoint(&filled)
        {
            keys.bad(key, explain(&cause, url, &filled));
        }
    }

    pub(super) fn check_base(&self, keys: &Keys<'_>, key: &str, url: &str) {
        if let Some(filled) = self.filled(keys, key, url, Known::Identity)
            && let Err(cause) = Base::parse(&filled)
        {
            keys.bad(key, explain(&cause, url, &filled));
        }
    }

    /// The URL with defaults, and samples where there are none, put in.
    fn filled(&self, keys: &Keys<'_>, key: &str, url: &str, known: Known) -> Option<String> {
        if url.is_empty() {
            return None;
        }
        let parts = match template::parts(url) {
            Ok(parts) => parts,
            Err(problem) => {
                keys.bad(key, problem);
                return None;
            }
        };
        let mut filled = String::new();
        let mut problems = BTreeSet::new();
        for part in parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Hole { name, place } => match self.sample(name, place, known) {
                    Ok(value) => filled.push_str(&value),
                    Err(problem) => {
                        problems.insert(format!("`{{{name}}}` {problem}"));
                    }
                },
            }
        }
        for problem in &problems {
            keys.bad(key, problem);
        }
        problems.is_empty().then_some(filled)
    }

    fn sample(&self, name: &str, place: Place, known: Known) -> Result<String, String> {
        let sample = if place == Place::Origin { "https://sample.example.com" } else { "sample" };
        if let Some(input) = self.inputs.get(name) {
            if place.chooses_host() && input.pattern.is_none() {
                return Err("decides which host is spoken to; give the input a `pattern`".into());
            }
            return input.default.as_ref().map_or_else(
                || Ok(sample.to_owned()),
                |value| {
                    template::admit(value, place, true)
                        .map_err(|problem| format!("has a default that can't stand here: it {problem}"))
                },
            );
        }
        let (from, when) = match self.captured.get(name) {
            Some(Captured::Callback(_)) => (Known::Callback, "the callback"),
            Some(Captured::Token(_)) => (Known::Token, "the token answer"),
            Some(Captured::Identity(_)) => (Known::Identity, "the identity answer"),
            None => return Err("is neither an input nor a captured value".into()),
        };
        if from > known {
            return Err(format!("comes from {when}, which is later than this URL is needed"));
        }
        // Anybody can write a callback; the client secret and tokens would go wherever it says.
        if from == Known::Callback && place.chooses_host() {
            return Err("comes from the callback and must not decide which host is spoken to".into());
        }
        Ok(sample.to_owned())
    }
}

/// The mistake may be in a default: then the URL as it came out helps.
fn explain(cause: &BaseError, url: &str, filled: &str) -> String {
    if url == filled { cause.to_string() } else { format!("{cause} (with its defaults it is {filled})") }
}

//! `[capabilities.<id>]` → [`Capability`]: base URL, presets, fence, and what is told to a model.

use std::num::NonZeroU32;

use http::Method;

use crate::config::{Protection, Transport};

use super::check::scopes;
use super::keys::Keys;
use super::names::Names;
use super::{Capability, Pattern, Patterns};

pub(super) fn capability(id: &str, mut keys: Keys<'_>, names: &Names<'_>) -> Capability {
    if !(1..=32).contains(&id.len()) || !id.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        keys.bad("name", format!("`{id}` is not a capability's id: 1 to 32 of a-z, 0-9 and -"));
    }
    let name = keys.need("name");
    let base_url = keys.need("base_url");
    names.check_base(&keys, "base_url", &base_url);
    let mut presets = keys.inside("scopes");
    let scopes_read = scopes(&mut presets, "read");
    let scopes_write = scopes(&mut presets, "write");
    presets.finish();
    let fence_text = keys.texts("fence").unwrap_or_default();
    let fence = patterns(&keys, "fence", &fence_text);
    if fence_text.is_empty() {
        keys.bad("fence", "a capability needs at least one pattern; `/**` is the whole API");
    }
    let read_text = keys.texts("read").unwrap_or_else(|| vec!["GET /**".into(), "HEAD /**".into()]);
    let read = patterns(&keys, "read", &read_text);
    let protection = Protection {
        concurrency: keys.number("concurrency", Protection::CONCURRENCY).and_then(NonZeroU32::new),
        reflect_guard: keys.flag("reflect_guard"),
    };
    let transport = Transport {
        http1_only: keys.flag("http1_only").unwrap_or(false),
        websocket: keys.flag("websocket").unwrap_or(false),
        set_cookie: keys.flag("set_cookie").unwrap_or(false),
    };
    let ask = keys.texts("ask").unwrap_or_default();
    patterns(&keys, "ask", &ask);
    let hint = keys.text("hint");
    let mut examples = keys.texts("examples").unwrap_or_default();
    // An operator who narrows the fence need not rewrite our examples: those now outside are left out.
    let narrowed = keys.is_own("fence") && !keys.is_own("examples");
    let mut index = 0;
    examples.retain(|example| {
        let verdict = check_example(example, &fence);
        if let Err(problem) = &verdict
            && !narrowed
        {
            keys.bad(&format!("examples[{index}]"), problem);
        }
        index += 1;
        verdict.is_ok()
    });
    keys.finish();
    let id = id.to_owned();
    Capability {
        id,
        name,
        base_url,
        scopes_read,
        scopes_write,
        fence,
        fence_text,
        read,
        read_text,
        protection,
        transport,
        ask,
        hint,
        examples,
    }
}

fn patterns(keys: &Keys<'_>, key: &str, texts: &[String]) -> Patterns {
    for (index, text) in texts.iter().enumerate() {
        if let Err(cause) = Pattern::parse(text) {
            keys.bad(&format!("{key}[{index}]"), cause.to_string());
        }
    }
    Patterns::parse(texts).unwrap_or_default()
}

fn check_example(example: &str, fence: &Patterns) -> Result<(), String> {
    let form = || format!("`{example}` must be a method, one space and a path: `GET /me/messages?$top=5`");
    let (method, target) = example.split_once(' ').ok_or_else(form)?;
    let is_method = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
    let method = Method::from_bytes(method.as_bytes()).ok().filter(|_| is_method).ok_or_else(form)?;
    if !target.starts_with('/') || target.contains(|c: char| !c.is_ascii_graphic() || c == '#') {
        return Err(form());
    }
    let path = target.split('?').next().unwrap_or(target);
    if fence.matches(&method, path) { Ok(()) } else { Err(format!("`{example}` is outside the capability's fence")) }
}

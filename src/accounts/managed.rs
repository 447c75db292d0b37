//! Managed targets: one per capability of an account, with a slug that tells whose and what.

use crate::catalog::Provider;
use crate::ids::{AccountId, TargetId};
use crate::store::TargetRef;

/// Longest slug that is accepted in a URL.
const SLUG: usize = 96;

/// The targets an account shall have: those that exist stay as they are (so that URLs and grants go on working), and each
/// further capability gets one. `label` is what people call the account.
pub(super) fn targets(
    provider: &Provider,
    account: AccountId,
    label: &str,
    existing: &[TargetRef],
    capabilities: &[String],
) -> Vec<TargetRef> {
    let mut targets = existing.to_vec();
    for capability in capabilities.iter().filter_map(|id| provider.capabilities.get(id)) {
        if targets.iter().any(|target| target.capability == capability.id) {
            continue;
        }
        targets.push(TargetRef {
            id: TargetId::new(),
            slug: slug(label, &capability.id, account),
            capability: capability.id.clone(),
            name: format!("{label} — {}", capability.name),
        });
    }
    targets
}

/// `ada-example-com-mail-x7k2qd`: the label, the capability, and enough of the account's id that two accounts with one
/// name differ.
fn slug(label: &str, capability: &str, account: AccountId) -> String {
    let id = account.to_string().to_ascii_lowercase();
    let tail = &id[id.len() - 6..];
    let end = format!("{}-{tail}", dashed(capability, SLUG - tail.len() - 1));
    match dashed(label, SLUG.saturating_sub(end.len() + 1)) {
        label if label.is_empty() => end,
        label => format!("{label}-{end}"),
    }
}

/// Lower case; every run of anything else than `[a-z0-9]` is one dash; at most `most` bytes, no dash at either end.
fn dashed(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.truncate(most);
    out.truncate(out.trim_end_matches('-').len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> AccountId {
        "acc_01JD3X7M0GZ2V8Q4W5T6R9S1AB".parse().unwrap()
    }

    #[test]
    fn slugs_tell_whose_and_what() {
        for (label, capability, expected) in [
            ("ada@example.com", "mail", "ada-example-com-mail-r9s1ab"),
            ("Ada.Lovelace+x@Example.COM", "google_ads", "ada-lovelace-x-example-com-google-ads-r9s1ab"),
            ("--Ada  (work)--", "mail", "ada-work-mail-r9s1ab"),
            ("Ådå", "mail", "d-mail-r9s1ab"),
            ("世界", "mail", "mail-r9s1ab"),
            ("", "mail", "mail-r9s1ab"),
            ("12345", "mail", "12345-mail-r9s1ab"),
        ] {
            assert_eq!(slug(label, capability, account()), expected, "{label}");
        }
    }

    #[test]
    fn slugs_are_never_longer_than_a_url_takes() {
        for length in 0..300 {
            for capability in ["m".to_owned(), "c".repeat(64), "c".repeat(200)] {
                let slug = slug(&"a@".repeat(length), &capability, account());
                assert!(slug.len() <= SLUG, "{slug}");
                assert!(slug.ends_with("-r9s1ab") && !slug.contains("--") && !slug.starts_with('-'), "{slug}");
            }
        }
    }
}

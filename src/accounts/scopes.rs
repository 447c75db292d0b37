//! What was asked for and not granted.

/// Wanted scopes that are not among the granted ones.
///
/// Providers do not give back the words they were asked with: Microsoft may put the resource's URL in front and leaves
/// `offline_access` out, Google writes `email` and `profile` as URLs, GitHub folds `user:email` into `user`. None of
/// these is missing. A wrong "not missing" costs a hint in the dashboard, a wrong "missing" a person's trust in it.
pub(super) fn missing(wanted: &[String], granted: &[String]) -> Vec<String> {
    wanted
        .iter()
        .filter(|wanted| !always_there(wanted) && !granted.iter().any(|g| covers(g, wanted)))
        .cloned()
        .collect()
}

/// Scopes about the sign-in itself, which answers often leave out: whether they were granted shows in what came back.
fn always_there(scope: &str) -> bool {
    matches!(scope, "openid" | "profile" | "email" | "address" | "phone" | "offline_access")
}

fn covers(granted: &str, wanted: &str) -> bool {
    let (granted, wanted) = (granted.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    granted == wanted
        || granted.strip_suffix(&wanted).is_some_and(|front| front.starts_with("https://") && front.ends_with('/'))
        || wanted.strip_prefix(&granted).is_some_and(|rest| rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_really_missing_is_told() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (wanted, granted, expected) in [
            ("a b", "b a", ""),
            ("a b", "a", "b"),
            ("a b", "", "a b"),
            ("", "a", ""),
            ("Mail.Read offline_access openid", "https://graph.microsoft.com/Mail.Read", ""),
            ("Mail.Read", "mail.read", ""),
            ("Mail.Read", "https://graph.microsoft.com/Mail.ReadBasic", "Mail.Read"),
            ("Mail.Read", "https://graph.microsoft.com/XMail.Read", "Mail.Read"),
            ("user:email repo", "user", "repo"),
            ("user", "user:email", "user"),
            ("https://mail.example.com/", "https://mail.example.com/", ""),
        ] {
            assert_eq!(missing(&list(wanted), &list(granted)), list(expected), "{wanted} of {granted}");
        }
    }
}

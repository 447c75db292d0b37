//! States, results and reasons in words. What stands in a URL is a code of a closed list, never a text.

use crate::accounts::ConnectError;
use crate::catalog::{Preset, Provider};
use crate::store::{GrantAccess, Reason, Status, Validity};

/// How something looks: the class of its dot or box.
pub(super) type Tone = &'static str;

/// What just happened, above a page.
#[derive(Clone, Copy)]
pub(super) struct Flash {
    /// Class.
    pub tone: Tone,
    /// Words.
    pub text: &'static str,
}

impl Flash {
    /// The message of a code; codes that we didn't make say nothing.
    pub fn of(code: &str) -> Option<Self> {
        let (tone, text) = match code {
            "connected" => ("good", "Integration connected."),
            "connect_failed" => ("bad", "The integration was not connected."),
            "choose_capability" => ("warn", "Nothing was chosen. Tick at least one capability, then connect."),
            "valid" => ("good", "Checked: the provider accepts the account."),
            "invalid" => ("bad", "Checked: the provider does not accept the account. Reconnect it."),
            "not_checked" => {
                ("warn", "The provider can't be asked just now. What was known of the account still counts.")
            }
            "refreshed" => ("good", "The account has a fresh access token."),
            "refresh_refused" => ("bad", "The provider refused to renew access. Reconnect the account."),
            "refresh_later" => {
                ("warn", "The provider can't give a new token just now. Nothing was lost; try again soon.")
            }
            "misconfigured" => ("warn", "The provider refuses this installation's client settings."),
            "account_gone" => ("warn", "That account is not here any more."),
            "disconnected" => ("good", "The account was disconnected and its tokens were erased."),
            "access_saved" => ("good", "Access saved. It counts from the next request."),
            "key_revoked" => ("good", "The key was revoked. The next request with it is refused."),
            "target_created" => ("good", "Target added. Give a key access to it to use it."),
            "target_deleted" => ("good", "Target deleted, and every grant to it."),
            _ => return None,
        };
        Some(Self { tone, text })
    }
}

/// A status badge.
pub(super) fn status(status: Status) -> (Tone, &'static str) {
    match status {
        Status::Connected => ("good", "Connected"),
        Status::Degraded => ("warn", "Degraded"),
        Status::Disconnected => ("bad", "Disconnected"),
    }
}

/// A validity badge.
pub(super) fn validity(validity: Validity) -> (Tone, &'static str) {
    match validity {
        Validity::Valid => ("good", "Valid"),
        Validity::Invalid => ("bad", "Invalid"),
        Validity::Unknown => ("dim", "Unknown"),
    }
}

/// Why an account is not well, and what to do.
pub(super) fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::ProviderUnavailable => {
            "The provider can't be reached or fails. Requests go on while the current token lives, and it heals by itself."
        }
        Reason::ProviderMisconfigured => {
            "The provider refuses this installation's client id or secret. An operator must correct them; nothing is lost."
        }
        Reason::Failing => {
            "For a day the provider has answered with an error that Keyward does not know. Nothing is lost and it is tried \
             again; if it stays, reconnect it or look at the provider's side."
        }
        Reason::RefreshRejected => "The provider refused to renew access. Reconnect it; every grant stays.",
        Reason::SignInNeeded => "The provider wants the person to sign in again. Reconnect it; every grant stays.",
        Reason::LostInWindow => {
            "A new token was lost on its way between the provider and Keyward. Reconnect it; every grant stays."
        }
        Reason::Revoked => "Access was withdrawn at the provider. Reconnect it; every grant stays.",
    }
}

/// How much was asked for.
pub(super) fn preset(preset: Preset) -> &'static str {
    match preset {
        Preset::Read => "Read",
        Preset::Write => "Read and write",
    }
}

/// The value of a grant's switch.
pub(super) fn access(access: Option<GrantAccess>) -> &'static str {
    match access {
        None => "none",
        Some(GrantAccess::Read) => "read",
        Some(GrantAccess::Write) => "write",
    }
}

/// Who asked for a connect link, by the audit trail's name for them.
pub(super) fn asked_by(actor: &str) -> &'static str {
    match actor {
        "admin_token" => "An administrator of this Keyward",
        "session" => "Somebody signed in to this dashboard",
        agent if agent.starts_with(crate::ids::KeyId::PREFIX) => "An agent that uses this Keyward",
        _ => "This Keyward",
    }
}

/// Up to two letters that stand for a provider.
pub(super) fn initials(name: &str) -> String {
    let words = name.split(|c: char| !c.is_alphanumeric()).filter_map(|word| word.chars().next());
    words.take(2).flat_map(char::to_uppercase).collect()
}

/// The two variables that configure a provider.
pub(super) fn variables(provider: &Provider) -> [String; 2] {
    ["ID", "SECRET"].map(|what| format!("OAUTH_{}_CLIENT_{what}", provider.env))
}

/// The code of a failed connection, as it stands in a URL.
pub(super) fn failure_code(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::UnknownProvider(_) => "unknown_provider",
        ConnectError::BadRequest(_) => "bad_request",
        ConnectError::AccountNotFound => "account_not_found",
        ConnectError::NotConfigured { .. } => "provider_not_configured",
        ConnectError::InvalidState => "invalid_state",
        ConnectError::Denied { code } if code == "access_denied" => "denied",
        ConnectError::Denied { .. } => "refused",
        ConnectError::ExchangeFailed { .. } => "exchange_failed",
        ConnectError::AnotherIdentity => "another_identity",
        ConnectError::Internal(_) => "internal",
    }
}

/// A failed connection: the code as we know it, what happened, what to do.
pub(super) fn failure(code: &str) -> (&'static str, &'static str, &'static str) {
    match code {
        "denied" => (
            "denied",
            "Access was not allowed on the provider's page.",
            "Nothing was changed. Start again to allow it.",
        ),
        "refused" => (
            "refused",
            "The provider ended the sign-in with an error of its own.",
            "Start again. If it stays, check the app's settings at the provider: redirect URI, scopes, who may use it.",
        ),
        "invalid_state" => (
            "invalid_state",
            "This connection attempt is over, was used already, or was begun in another browser.",
            "Start again, and finish within ten minutes in the same browser.",
        ),
        "exchange_failed" => (
            "exchange_failed",
            "The provider did not accept the exchange, or did not say whose account it is.",
            "Start again. If it stays, check the client id and secret that Keyward was given.",
        ),
        "another_identity" => (
            "another_identity",
            "You signed in with another account than the one to reconnect.",
            "Reconnect it with the same account, or connect this one as a new integration.",
        ),
        "account_not_found" => {
            ("account_not_found", "The account to reconnect is not here any more.", "Connect it as a new integration.")
        }
        "provider_not_configured" => (
            "provider_not_configured",
            "This provider is not configured.",
            "An operator must set its client id and secret; the integrations page names the variables.",
        ),
        "unknown_provider" => {
            ("unknown_provider", "There is no such provider.", "Choose one on the integrations page.")
        }
        "bad_request" => ("bad_request", "The provider's answer can't be understood.", "Start again."),
        _ => ("internal", "Keyward could not finish it.", "Start again. Keyward's log says what went wrong."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_words_of_its_own() {
        let errors = [
            ConnectError::UnknownProvider("x".into()),
            ConnectError::BadRequest("x".into()),
            ConnectError::AccountNotFound,
            ConnectError::NotConfigured { name: "x".into(), variables: ["a".into(), "b".into()] },
            ConnectError::InvalidState,
            ConnectError::Denied { code: "access_denied".into() },
            ConnectError::Denied { code: "server_error".into() },
            ConnectError::ExchangeFailed { code: "invalid_grant".into() },
            ConnectError::AnotherIdentity,
            ConnectError::Internal(anyhow::anyhow!("hush")),
        ];
        for error in errors {
            let code = failure_code(&error);
            assert_eq!(failure(code).0, code);
        }
        assert_eq!(failure("<script>").0, "internal");
    }

    #[test]
    fn initials_are_letters_of_the_name() {
        assert_eq!(initials("Microsoft 365"), "M3");
        assert_eq!(initials("slack"), "S");
        assert_eq!(initials("—"), "");
    }

    #[test]
    fn only_our_codes_have_a_message() {
        assert!(Flash::of("valid").is_some());
        assert!(Flash::of("You won! Visit https://example.com").is_none());
    }
}

//! The end of a connect flow: from the callback to a saved account.
//!
//! ```text
//! take the flow ▸ proof, provider, time, issuer ▸ spend the code ▸ who is it? ▸ save ▸ reload
//! ```

use std::sync::Arc;

use aws_lc_rs::constant_time;
use serde_json::json;
use time::{Month, OffsetDateTime};

use crate::audit::{Actor, Record};
use crate::catalog::{Captured, Provider};
use crate::clock::Timestamp;
use crate::ids::AccountId;
use crate::oauth::{self, Identity, Tokens};
use crate::secret::sha256;
use crate::store::{self, AccountRow, AuditRow, Captures, FlowRow, SaveConnected, Status, Validity};

use super::connect::{Callback, ConnectError, Connected, Proof, internal, verifier_place};
use super::{Accounts, managed, scopes};

/// How often an account is looked at anew that changes between reading and saving.
const TRIES: u32 = 10;

/// What the provider told about the account.
struct Told {
    identity: Identity,
    tokens: Tokens,
    captures: Captures,
}

impl Accounts {
    pub(super) async fn finish_task(
        self: Arc<Self>,
        callback: Callback,
        proof: Proof,
    ) -> Result<Connected, ConnectError> {
        let state = callback.state.as_ref().ok_or(ConnectError::InvalidState)?;
        // Taken before anything else: whatever comes of it, this state is never good for a second try.
        let taken = self.parts.store.take_flow(&sha256(state.expose().as_bytes())).await.map_err(internal)?;
        let flow = taken.ok_or(ConnectError::InvalidState)?;
        let outcome = self.conclude(&flow, &callback, &proof).await;
        if let Err(error) = &outcome {
            self.note_failure(&flow, error);
        }
        outcome
    }

    async fn conclude(
        self: &Arc<Self>,
        flow: &FlowRow,
        callback: &Callback,
        proof: &Proof,
    ) -> Result<Connected, ConnectError> {
        if !may_finish(flow, callback, proof, self.parts.clock.now()) {
            return Err(ConnectError::InvalidState);
        }
        let provider = self.parts.catalog.provider(&flow.provider).ok_or(ConnectError::InvalidState)?;
        if !issuer_fits(provider, &flow.inputs, callback.iss.as_deref()) {
            return Err(ConnectError::InvalidState);
        }
        if let Some(error) = callback.error.as_deref() {
            return Err(ConnectError::Denied { code: oauth::shown_code(error) });
        }
        let told = self.ask(provider, flow, callback).await?;
        self.keep_connected(provider, flow, told).await
    }

    /// Spends the code and asks who it is.
    async fn ask(&self, provider: &Provider, flow: &FlowRow, callback: &Callback) -> Result<Told, ConnectError> {
        let code = callback.code.as_ref().filter(|code| !code.expose().is_empty());
        let code = code.ok_or_else(|| failed("missing_code"))?;
        let sealed = flow.verifier.as_ref().ok_or(ConnectError::InvalidState)?;
        let verifier = self.parts.vault.open_text(verifier_place(&flow.id.to_string()), sealed).map_err(internal)?;
        let redirect_uri = self.redirect_uri(&provider.id);
        // What the tokens' ends are counted by; and no code is spent while the store does not answer.
        self.parts.store.now().await.map_err(internal)?;
        let oauth = &self.parts.oauth;
        let tokens = oauth
            .exchange(provider, &flow.inputs, code, &redirect_uri, Some(&verifier))
            .await
            .map_err(|error| refused(&error))?;

        let mut captures = flow.inputs.clone();
        for (name, from) in &provider.captured {
            let value = match from {
                Captured::Callback(pointer) => query_value(&callback.rest, pointer),
                Captured::Token(pointer) => tokens.extras.pointer(pointer),
                Captured::Identity(_) => None,
            };
            captures.extend(value.map(|value| (name.clone(), value)));
        }
        let identity = oauth
            .identity(provider, &captures, &tokens.access, Some(&tokens.extras))
            .await
            .map_err(|error| refused(&error))?;
        captures.extend(identity.captured.clone());
        // Captured values come from outside (one kind even through the browser): they are judged now, not by the first
        // agent's request.
        for capability in flow.capabilities.iter().filter_map(|id| provider.capabilities.get(id)) {
            provider.fill(&capability.base_url, &captures).map_err(|_| failed("bad_captured_value"))?;
        }
        Ok(Told { identity, tokens, captures })
    }

    async fn keep_connected(
        self: &Arc<Self>,
        provider: &Arc<Provider>,
        flow: &FlowRow,
        told: Told,
    ) -> Result<Connected, ConnectError> {
        let mut tries = 0;
        let renewable = told.tokens.refresh.is_some();
        let (account, reconnected) = loop {
            tries += 1;
            let existing = match self.existing(provider, flow, &told.identity).await {
                Err(refused @ (ConnectError::AnotherIdentity | ConnectError::AccountNotFound)) => {
                    self.give_back(Arc::clone(provider), told);
                    return Err(refused);
                }
                existing => existing?,
            };
            let save = self.compose(provider, flow, &told, existing.as_ref());
            let record = self.connected_record(flow, &save);
            match self.parts.store.save_connected(&save, &record).await {
                Ok(account) => break (account, save.existing),
                // Somebody connected, refreshed or removed the same identity at this very moment: look again.
                Err(store::Error::Conflict) if tries < TRIES => {}
                Err(cause) => return Err(internal(cause)),
            }
        };
        tracing::info!(account.id = %account.id, provider = account.provider, reconnected, "an account is connected");
        // Some providers never give one, and their access tokens last. Where one was expected, this tells why the account
        // ends with its access token.
        if !renewable {
            tracing::info!(account.id = %account.id, provider = account.provider, "the provider gave no refresh token");
        }
        let reloaded = self.parts.access.reload().await;
        // The next request reads the row: the old token in memory may be refused already.
        self.cache.forget(account.id);
        reloaded?;
        Ok(Connected { account, reconnected })
    }

    /// The account that this flow is about, if it is there: the one to reconnect, or the one with this subject.
    async fn existing(
        &self,
        provider: &Provider,
        flow: &FlowRow,
        identity: &Identity,
    ) -> Result<Option<AccountRow>, ConnectError> {
        let store = &self.parts.store;
        let Some(id) = flow.account else {
            let found = store.account_by_subject(flow.organization, &provider.id, &identity.subject).await;
            return found.map_err(internal);
        };
        let account = store.account(flow.organization, id).await.map_err(internal)?;
        let account = account.ok_or(ConnectError::AccountNotFound)?;
        if account.provider != provider.id || account.subject != identity.subject {
            return Err(ConnectError::AnotherIdentity);
        }
        Ok(Some(account))
    }

    /// The account as it shall be: as new, or in place of the one that is there. What is not known anew stays.
    fn compose(
        &self,
        provider: &Provider,
        flow: &FlowRow,
        told: &Told,
        existing: Option<&AccountRow>,
    ) -> SaveConnected {
        let now = self.parts.clock.now();
        let id = existing.map_or_else(AccountId::new, |account| account.id);
        let email = told.identity.email.clone().or_else(|| existing?.email.clone());
        let display_name = told.identity.name.clone().or_else(|| existing?.display_name.clone());
        let label = email.as_ref().or(display_name.as_ref()).unwrap_or(&told.identity.subject);
        let before = existing.map(|account| account.targets.as_slice()).unwrap_or_default();
        let targets = managed::targets(provider, id, label, before, &flow.capabilities);

        let connected: Vec<String> = targets.iter().map(|target| target.capability.clone()).collect();
        // An answer without scopes grants what was asked for (RFC 6749 §5.1).
        let asked = || provider.scopes(&flow.capabilities, flow.preset);
        let granted = told.tokens.scopes.clone().unwrap_or_else(asked);
        let missing_scopes = scopes::missing(&provider.scopes(&connected, flow.preset), &granted);

        let mut tokens = self.seal(id, &told.tokens);
        tokens.scopes = Some(granted.clone());
        tokens.refresh_expires_at = tokens.refresh_expires_at.filter(|_| tokens.refresh.is_some());
        let mut captures = existing.map(|account| account.captures.clone()).unwrap_or_default();
        captures.extend(told.captures.clone());
        let account = AccountRow {
            id,
            organization: flow.organization,
            provider: provider.id.clone(),
            subject: told.identity.subject.clone(),
            email,
            display_name,
            status: Status::Connected,
            reason: None,
            // Without an identity endpoint nobody has seen the token work.
            validity: if provider.identity.url.is_some() { Validity::Valid } else { Validity::Unknown },
            checked_at: Some(now),
            scopes: granted,
            missing_scopes,
            preset: flow.preset,
            access_expires_at: Some(tokens.access_expires_at),
            refresh_expires_at: tokens.refresh_expires_at,
            owner: existing.and_then(|account| account.owner).or(flow.owner),
            captures,
            generation: existing.map_or(0, |account| account.generation),
            targets,
            created_at: existing.map_or(now, |account| account.created_at),
            updated_at: now,
        };
        SaveConnected { account, tokens, existing: existing.is_some() }
    }

    fn connected_record(&self, flow: &FlowRow, save: &SaveConnected) -> AuditRow {
        let account = &save.account;
        let now = self.parts.clock.now();
        let capabilities: Vec<_> = account.targets.iter().map(|target| &target.capability).collect();
        let mut detail = json!({
            "provider": account.provider,
            "capabilities": capabilities,
            "missing_scopes": account.missing_scopes,
            "renewable": save.tokens.refresh.is_some(),
        });
        let action = if save.existing { "account.reconnected" } else { "account.connected" };
        if !save.existing {
            // How far back whoever listens for new accounts should read.
            detail["backfill_since"] = json!(months_before(now, 3));
        }
        let record = Record::new(now, flow.organization, &Actor::System, action).account(account.id).detail(detail);
        AuditRow { actor: Some(flow.actor.clone().into()), ..record.into_row() }
    }

    fn note_failure(&self, flow: &FlowRow, error: &ConnectError) {
        let provider_code = match error {
            ConnectError::Denied { code } | ConnectError::ExchangeFailed { code } => Some(code),
            _ => None,
        };
        if let ConnectError::Internal(cause) = error {
            tracing::error!(flow.id = %flow.id, %cause, "a connect flow can't be finished");
        }
        let detail = json!({"provider": flow.provider, "provider_code": provider_code});
        let mut record =
            Record::new(self.parts.clock.now(), flow.organization, &Actor::System, "account.connect_failed")
                .detail(detail);
        if let Some(account) = flow.account {
            record = record.account(account);
        }
        let code = Some(failure_code(error).to_owned());
        self.parts.audit.note(AuditRow { actor: Some(flow.actor.clone().into()), code, ..record.into_row() });
    }

    /// Revokes tokens that nobody will use, unless an account that works hangs on the same grant. Best effort, and
    /// nobody waits for it.
    fn give_back(self: &Arc<Self>, provider: Arc<Provider>, told: Told) {
        let accounts = Arc::clone(self);
        self.parts.shutdown.spawn(async move {
            match accounts.shares_grant(&provider, &told.identity.subject, None).await {
                Ok(false) => {}
                Ok(true) => return,
                Err(cause) => return tracing::warn!(%cause, "unwanted tokens are not revoked"),
            }
            let (token, kind) = match &told.tokens.refresh {
                Some(refresh) => (refresh, "refresh_token"),
                None => (&told.tokens.access, "access_token"),
            };
            if let Err(cause) = accounts.parts.oauth.revoke(&provider, &told.captures, token, kind).await {
                tracing::warn!(provider = provider.id, %cause, "unwanted tokens can't be revoked");
            }
        });
    }
}

/// Whether this callback belongs to this flow, in this browser (or by this administrator), now.
fn may_finish(flow: &FlowRow, callback: &Callback, proof: &Proof, now: Timestamp) -> bool {
    let proven = match proof {
        Proof::Administrator { organization } => *organization == flow.organization,
        Proof::Cookie(cookie) => match (cookie, &flow.cookie_hash) {
            (Some(cookie), Some(hash)) => {
                constant_time::verify_slices_are_equal(&sha256(cookie.expose().as_bytes()), hash).is_ok()
            }
            _ => false,
        },
    };
    proven && callback.provider == flow.provider && now < flow.expires_at
}

/// RFC 9207 §2.4: a simple comparison. Not every server that has an issuer sends it, so its absence proves nothing; the
/// redirect URI of its own that each provider has holds against mix-up there.
fn issuer_fits(provider: &Provider, captures: &Captures, iss: Option<&str>) -> bool {
    match (&provider.oauth.issuer, iss) {
        (Some(issuer), Some(iss)) => provider.fill(issuer, captures).is_ok_and(|issuer| issuer == iss),
        _ => true,
    }
}

/// The query value that a JSON pointer with one step names (`/realmId`).
fn query_value(query: &Captures, pointer: &str) -> Option<String> {
    let name = pointer.strip_prefix('/')?.replace("~1", "/").replace("~0", "~");
    query.get(&name).filter(|value| !value.is_empty()).cloned()
}

fn failed(code: &str) -> ConnectError {
    ConnectError::ExchangeFailed { code: code.to_owned() }
}

fn refused(error: &oauth::Error) -> ConnectError {
    match error {
        oauth::Error::Rejected { code, .. } | oauth::Error::Misconfigured { code } => failed(code),
        oauth::Error::Unknown { code } => {
            tracing::warn!(code, "a code could not be exchanged");
            failed("provider_unavailable")
        }
        oauth::Error::Transient { why, .. } => {
            tracing::warn!(why, "a code could not be exchanged");
            failed("provider_unavailable")
        }
        oauth::Error::Unusable { cause, .. } => refused(cause),
    }
}

/// The word for the audit trail.
const fn failure_code(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::UnknownProvider(_) => "provider_not_found",
        ConnectError::BadRequest(_) => "bad_request",
        ConnectError::AccountNotFound => "account_not_found",
        ConnectError::NotConfigured { .. } => "provider_not_configured",
        ConnectError::InvalidState => "invalid_state",
        ConnectError::Denied { .. } => "denied",
        ConnectError::ExchangeFailed { .. } => "exchange_failed",
        ConnectError::AnotherIdentity => "another_identity",
        ConnectError::Internal(_) => "internal",
    }
}

/// The same day and time some months earlier; the month's last day where it has no such day.
fn months_before(moment: Timestamp, months: u8) -> Timestamp {
    let nanos = i128::from(moment.millis()) * 1_000_000;
    let Ok(then) = OffsetDateTime::from_unix_timestamp_nanos(nanos) else { return moment };
    let (mut year, mut month): (i32, Month) = (then.year(), then.month());
    for _ in 0..months {
        month = month.previous();
        if month == Month::December {
            year -= 1;
        }
    }
    let day = then.day().min(month.length(year));
    let earlier = time::Date::from_calendar_date(year, month, day).map(|date| then.replace_date(date));
    earlier.map_or(moment, |earlier| {
        Timestamp::from_millis(i64::try_from(earlier.unix_timestamp_nanos() / 1_000_000).unwrap_or(moment.millis()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Preset;
    use crate::ids::{FlowId, OrgId};
    use crate::secret::Secret;

    fn flow() -> FlowRow {
        FlowRow {
            id: FlowId::new(),
            organization: OrgId::new(),
            provider: "acme".into(),
            capabilities: Vec::new(),
            preset: Preset::Read,
            account: None,
            inputs: Captures::new(),
            owner: None,
            actor: "session".into(),
            state_hash: Some([1; 32]),
            cookie_hash: Some(sha256(b"cookie")),
            verifier: None,
            created_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(1_000),
        }
    }

    fn callback(provider: &str) -> Callback {
        Callback { provider: provider.into(), state: None, code: None, error: None, iss: None, rest: Captures::new() }
    }

    #[test]
    fn only_the_browser_that_began_it_finishes_it_and_only_in_time() {
        let flow = flow();
        let cookie = |text: &str| Proof::Cookie(Some(Secret::new(text.to_owned())));
        let at = Timestamp::from_millis;
        assert!(may_finish(&flow, &callback("acme"), &cookie("cookie"), at(999)));
        assert!(!may_finish(&flow, &callback("acme"), &cookie("cookie"), at(1_000)));
        assert!(!may_finish(&flow, &callback("other"), &cookie("cookie"), at(1)));
        assert!(!may_finish(&flow, &callback("acme"), &cookie("cooky"), at(1)));
        assert!(!may_finish(&flow, &callback("acme"), &cookie(""), at(1)));
        assert!(!may_finish(&flow, &callback("acme"), &Proof::Cookie(None), at(1)));
        let unbound = FlowRow { cookie_hash: None, ..flow.clone() };
        assert!(!may_finish(&unbound, &callback("acme"), &Proof::Cookie(None), at(1)));
        let ours = Proof::Administrator { organization: flow.organization };
        assert!(may_finish(&flow, &callback("acme"), &ours, at(1)));
        let theirs = Proof::Administrator { organization: OrgId::new() };
        assert!(!may_finish(&flow, &callback("acme"), &theirs, at(1)));
    }

    #[test]
    fn query_values_are_found_by_pointer() {
        let query: Captures = [("realmId", "7"), ("a/b", "8"), ("empty", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(query_value(&query, "/realmId").as_deref(), Some("7"));
        assert_eq!(query_value(&query, "/a~1b").as_deref(), Some("8"));
        assert_eq!(query_value(&query, "/empty"), None);
        assert_eq!(query_value(&query, "realmId"), None);
    }

    #[test]
    fn three_months_are_counted_in_the_calendar() {
        for (moment, expected) in [
            ("2026-05-31T10:00:00.5Z", "2026-02-28T10:00:00.5Z"),
            ("2024-05-31T10:00:00Z", "2024-02-29T10:00:00Z"),
            ("2026-01-15T00:00:00Z", "2025-10-15T00:00:00Z"),
            ("2026-12-01T00:00:00Z", "2026-09-01T00:00:00Z"),
        ] {
            let parse = |text| Timestamp::parse(text).unwrap();
            assert_eq!(months_before(parse(moment), 3), parse(expected), "{moment}");
        }
    }
}

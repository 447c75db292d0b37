//! From a stored row to a slot: whether its token lives, and how it becomes a ready credential. Nothing else fills a slot,
//! so nobody ever sees a token that is not stored.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Ready;
use crate::secret::Secret;
use crate::store::{AccountTokens, Reason, Status};
use crate::vault::Place;

use super::cache::{Held, Slot};
use super::flight::Why;
use super::{Accounts, Bearer, TokenError};

impl Accounts {
    /// Answers from the row alone, when no refresh is needed or none is possible.
    pub(super) fn settle(&self, slot: &Slot, row: &AccountTokens, why: Why) -> Option<Result<Bearer, TokenError>> {
        let account = &row.account;
        if let (Status::Disconnected, reason) = (account.status, account.reason) {
            let reason = reason.unwrap_or(Reason::RefreshRejected);
            slot.publish(Held::Disconnected { reason });
            return Some(Err(TokenError::Disconnected { account: account.id, reason }));
        }
        let now = self.parts.clock.monotonic();
        let enough = match why {
            Why::Dead => self.lives(row).is_some(),
            Why::Soon => self.lives(row).is_some_and(|(soon, _)| now < soon),
            Why::Doubted(generation) => account.generation > generation && self.lives(row).is_some(),
            Why::Troubled => account.status == Status::Connected && self.lives(row).is_some(),
            Why::Unresolved | Why::Asked => false,
        };
        enough.then(|| self.publish(slot, row).ok_or(TokenError::Gone))
    }

    /// Until when the row's token is fresh and alive (monotonic); `None` when it is dead or not there.
    pub(super) fn lives(&self, row: &AccountTokens) -> Option<(Duration, Duration)> {
        let dead = row.access_ends.filter(|ends| *ends > self.parts.clock.monotonic())?;
        let ttl = Duration::from_millis(u64::try_from(row.access_ttl_ms.unwrap_or(0)).unwrap_or(0));
        let margin = self.parts.config.before_expiry.min(ttl / 4);
        Some((dead.saturating_sub(margin), dead))
    }

    /// Puts the row's token into the slot, when it lives.
    pub(super) fn publish(&self, slot: &Slot, row: &AccountTokens) -> Option<Bearer> {
        let (soon, dead) = self.lives(row)?;
        let token = self.opened(row, "access_token")?;
        let provider = self.parts.catalog.provider(&row.account.provider)?;
        let injection = match provider.inject.prepare(&token) {
            Ok(injection) => injection,
            Err(problem) => {
                tracing::error!(account.id = %row.account.id, %problem, "a token can't be put into a request");
                return None;
            }
        };
        let bearer = Bearer { ready: Arc::new(Ready::new(injection)), generation: row.account.generation };
        slot.publish(Held::Live { bearer: bearer.clone(), soon, dead });
        Some(bearer)
    }

    pub(super) fn opened(&self, row: &AccountTokens, column: &'static str) -> Option<Secret<String>> {
        let sealed = if column == "access_token" { row.access.as_ref()? } else { row.refresh.as_ref()? };
        let id = row.account.id.to_string();
        match self.parts.vault.open_text(Place { table: "accounts", row: &id, column }, sealed) {
            Ok(token) => Some(token),
            Err(cause) => {
                tracing::error!(account.id = %id, %cause, "a stored token does not open");
                None
            }
        }
    }
}

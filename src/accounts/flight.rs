//! Flights: at most one refresh of an account at a time in this process, as a tracked task that no caller's leaving cancels.
//! Whoever comes while it is up waits on its watch channel.

use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::{Semaphore, watch};

use crate::ids::AccountId;

use super::cache::Slot;
use super::{Accounts, Bearer, TokenError};

/// Why a flight is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The token is dead, or nothing is in memory: any living token will do.
    Dead,
    /// The token is old: one outside its margin will do.
    Soon,
    /// The last refresh failed in passing: a new one, so that the account heals by itself.
    Troubled,
    /// A refresh began and its result was never stored: a new one at once, while an old refresh token may still count.
    Unresolved,
    /// An upstream refused the token of this generation: a newer one is needed.
    Doubted(i64),
    /// A person asked: a new one in any case, whatever the backoff says.
    Asked,
}

/// What a flight brought.
pub(super) type Landing = Option<Result<Bearer, TokenError>>;

/// Refreshes under way by account, and how many calls each provider gets at once.
#[derive(Default)]
pub(super) struct Flights {
    by_account: DashMap<AccountId, watch::Receiver<Landing>>,
    by_provider: DashMap<String, Arc<Semaphore>>,
}

impl Flights {
    pub(super) fn permits(&self, provider: &str, most: usize) -> Arc<Semaphore> {
        let made = self.by_provider.entry(provider.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(most)));
        Arc::clone(&made)
    }
}

impl Accounts {
    /// The account's flight: the one that is up, or a new one (`true`).
    pub(super) fn join(
        self: &Arc<Self>,
        account: AccountId,
        slot: &Arc<Slot>,
        why: Why,
    ) -> (watch::Receiver<Landing>, bool) {
        match self.flights.by_account.entry(account) {
            Entry::Occupied(flight) => (flight.get().clone(), false),
            Entry::Vacant(place) => {
                let (landing, flight) = watch::channel(None);
                place.insert(flight.clone());
                let (accounts, slot) = (Arc::clone(self), Arc::clone(slot));
                self.parts.shutdown.spawn(async move {
                    // Taken down on every way out, a panic included: an account must never wait for a dead flight.
                    let down = TakeDown { accounts: &accounts, account };
                    let outcome = accounts.fly(account, &slot, why).await;
                    // Down before it lands: whoever comes after this outcome starts anew.
                    drop(down);
                    landing.send_replace(Some(outcome));
                });
                (flight, true)
            }
        }
    }
}

struct TakeDown<'a> {
    accounts: &'a Accounts,
    account: AccountId,
}

impl Drop for TakeDown<'_> {
    fn drop(&mut self) {
        self.accounts.flights.by_account.remove(&self.account);
    }
}

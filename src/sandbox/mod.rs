//! A small, honest stand-in for the outside world: an OAuth server and a mail and calendar API in the shape of
//! Microsoft Graph, with faults that can be switched on. `keyward dev`, the tests and the benches use it.
//!
//! It listens on loopback only, keeps everything in memory and knows nothing of the gateway: only the ground layer is
//! imported here. It is strict where a real provider is strict (PKCE, single-use codes, scopes, reuse of refresh
//! tokens), because a forgiving stand-in would hide our mistakes.
//!
//! ```text
//! /.well-known/oauth-authorization-server   /oauth/{authorize,token,revoke}     oauth.rs consent.rs tokens.rs
//! /v1.0/me /v1.0/me/messages /v1.0/me/events /v1.0/users/{email}/…              api.rs mail.rs calendar.rs
//! /tools/…      an upstream without a bearer: sizes, streams, odd answers       tools.rs websocket.rs
//! /control/…    the switches of this module, for a shell                        control.rs
//! ```

mod api;
mod bulk;
mod calendar;
mod consent;
mod control;
mod counters;
mod faults;
mod mail;
mod oauth;
mod people;
mod recorder;
mod server;
mod spoil;
#[cfg(test)]
mod tests;
mod tokens;
mod tools;
mod websocket;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::clock::{Clock, Timestamp};
use crate::ids::random;
use crate::secret::Secret;
use crate::shutdown::Shutdown;

pub use counters::{Counters, FamilyCount};
pub use faults::{Fault, Faults, Place};
pub use people::{PEOPLE, TEAM};
pub use recorder::Recorded;
pub use tokens::{Granted, Rotation};

/// A running sandbox. Clones are the same one.
#[derive(Clone)]
pub struct Sandbox(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    origin: String,
    client_id: String,
    client_secret: Secret<String>,
    clock: Mutex<Clock>,
    tokens: Mutex<tokens::Tokens>,
    mailboxes: Mutex<HashMap<String, mail::Mailbox>>,
    calendars: Mutex<HashMap<String, calendar::Calendar>>,
    faults: Faults,
    recorder: recorder::Recorder,
    counters: watch::Sender<Counters>,
    shutdown: Shutdown,
}

impl Sandbox {
    /// Binds `listen` (port 0 takes a free one) and serves until `shutdown`. Requests that still run two seconds
    /// after the soft stage began are cut.
    ///
    /// # Errors
    /// When the address is not a loopback one, or can't be bound.
    pub async fn start(listen: SocketAddr, shutdown: &Shutdown) -> io::Result<Self> {
        if !listen.ip().is_loopback() {
            let message = format!("the sandbox listens on loopback only, {listen} is not; use 127.0.0.1");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let sandbox = Self(Arc::new(Inner {
            address,
            origin: format!("http://{address}"),
            client_id: tokens::opaque("sandbox-client-", 6),
            client_secret: Secret::new(tokens::opaque("sbx_cs_", 32)),
            clock: Mutex::new(Clock::system()),
            tokens: Mutex::default(),
            mailboxes: Mutex::default(),
            calendars: Mutex::default(),
            faults: Faults::default(),
            recorder: recorder::Recorder::default(),
            counters: watch::Sender::new(Counters::default()),
            shutdown: shutdown.clone(),
        }));
        let router = server::router(&sandbox);
        shutdown.spawn(server::run(listener, router, shutdown.clone()));
        Ok(sandbox)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// `http://127.0.0.1:PORT`, which is also the issuer.
    #[must_use]
    pub fn origin(&self) -> String {
        self.0.origin.clone()
    }

    /// The one registered client. Any loopback redirect URI is its own.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.0.client_id
    }

    /// The client's secret, new at every start.
    #[must_use]
    pub fn client_secret(&self) -> &str {
        self.0.client_secret.expose()
    }

    /// The switches for trouble.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// How refresh tokens rotate from the next refresh on. Tokens rotated before keep the rule of their time.
    pub fn set_rotation(&self, rotation: Rotation) {
        self.tokens().rotation = rotation;
    }

    /// How long access tokens issued from now on live; one hour at the start.
    pub fn set_access_ttl(&self, ttl: Duration) {
        self.tokens().access_ttl = ttl;
    }

    /// How long refresh tokens issued from now on live, said as `refresh_token_expires_in`; at the start for ever.
    pub fn set_refresh_ttl(&self, ttl: Option<Duration>) {
        self.tokens().refresh_ttl = ttl;
    }

    /// Whose time decides on expiry; the system's at the start.
    pub fn set_clock(&self, clock: Clock) {
        *lock(&self.0.clock) = clock;
    }

    /// Switches the recorder off or on (it is on at the start). Benches switch it off.
    pub fn set_recording(&self, on: bool) {
        self.0.recorder.set_on(on);
    }

    /// A snapshot of everything counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.counters.borrow().clone()
    }

    /// Resolves as soon as the counters satisfy `done`, at once if they already do.
    pub async fn wait_until(&self, mut done: impl FnMut(&Counters) -> bool) {
        let mut changes = self.0.counters.subscribe();
        // The sender lives in `self`, so the channel can't close under us.
        let _ = changes.wait_for(|counters| done(counters)).await;
    }

    /// Resolves when `n` calls of the token endpoint have arrived since the start, answered or not.
    pub async fn wait_for_token_calls(&self, n: u64) {
        self.wait_until(|counters| counters.token_arrived >= n).await;
    }

    /// Resolves when `n` requests have arrived at `/v1.0` or `/tools` since the start, answered or not.
    pub async fn wait_for_upstream_calls(&self, n: u64) {
        self.wait_until(|counters| counters.api_calls + counters.tool_calls >= n).await;
    }

    /// The last 1000 requests to `/v1.0` and `/tools`, oldest first. Bodies are described as far as they were read.
    #[must_use]
    pub fn recorded(&self) -> Vec<Recorded> {
        self.0.recorder.recorded()
    }

    /// Issues tokens without a browser, as if `person` had just agreed to `scopes`. Any e-mail address is a person here.
    pub async fn grant(&self, person: &str, scopes: &[&str]) -> Granted {
        let scopes: Vec<String> = scopes.iter().map(|&scope| scope.to_owned()).collect();
        let now = self.now();
        let issued = self.tokens().grant(person, scopes, now);
        self.count(|counters| counters.family(issued.family, person));
        issued
    }

    /// As if the person withdrew consent at the provider: every token of theirs is dead.
    pub fn revoke_all_of(&self, person: &str) {
        let dead = self.tokens().revoke_person(person);
        self.count(|counters| dead.iter().for_each(|family| counters.family_revoked(*family)));
    }

    /// As if the provider lost patience early: the person's access tokens are refused, refresh tokens still work.
    pub fn expire_access_of(&self, person: &str) {
        self.tokens().expire_access(person);
    }

    fn now(&self) -> Timestamp {
        lock(&self.0.clock).now()
    }

    fn tokens(&self) -> MutexGuard<'_, tokens::Tokens> {
        lock(&self.0.tokens)
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.0.counters.send_modify(change);
    }

    /// The mailbox of `email`, made with its sample messages at the first look.
    fn with_mailbox<T>(&self, email: &str, work: impl FnOnce(&mut mail::Mailbox) -> T) -> T {
        let now = self.now();
        let mut all = lock(&self.0.mailboxes);
        work(all.entry(email.to_owned()).or_insert_with(|| mail::Mailbox::sample(email, now)))
    }

    /// The calendar of `email`, made with its sample events at the first look.
    fn with_calendar<T>(&self, email: &str, work: impl FnOnce(&mut calendar::Calendar) -> T) -> T {
        let now = self.now();
        let mut all = lock(&self.0.calendars);
        work(all.entry(email.to_owned()).or_insert_with(|| calendar::Calendar::sample(email, now)))
    }
}

/// A panic elsewhere must not turn into a panic in every later request of a test.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An id in the manner of Graph: long, opaque, with characters that a careless proxy would re-encode.
fn graph_id(seed: &[u8]) -> String {
    use base64::Engine as _;
    let hash = crate::secret::sha256(seed);
    format!("AAMk{}AAA=", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&hash[..24]))
}

fn fresh_graph_id() -> String {
    graph_id(&random::<16>())
}

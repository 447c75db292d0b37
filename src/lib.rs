//! Keyward: a gateway that lets AI agents use people's accounts without ever holding their tokens.
//!
//! An agent holds one scoped key and calls `/proxy/{target}/…`. Keyward finds the target, checks the grant, puts a fresh
//! access token into the request, sends it on and streams the answer back. People connect and disconnect accounts on a
//! second, private listener. When a provider refuses a refresh, the account is marked disconnected and one click brings it
//! back with every grant intact.
//!
//! # The map
//!
//! ```text
//!                     main.rs  cli/
//!                          │
//!   5  assembly           app/                       knows everything, decides nothing
//!                          │
//!        ┌─────────────────┼──────────────┬──────────────┐
//!   4  proxy             admin ◀────── dashboard       sandbox     edges: speak to somebody
//!        └────┬────────────┘                             │
//!   3  access     accounts     audit                     │         services: decide and do
//!        └────┬──────┴───────────┘                       │
//!   2  store     vault     catalog     oauth             │         facts: what is stored or written down
//!        └────┬──────┴────────┘                          │
//!   1  ids  secret  clock  shutdown  config  telemetry  net        ground: knows nothing of gateways
//! ```
//!
//! A module imports from layers below it. Imports within a layer are only these: `store → vault` (`Sealed` and its `Place`),
//! `oauth → catalog` (`Provider`), `accounts → access` (`Grant`: a token is given for a grant, never for an id),
//! `access, accounts → audit` (`Record`), `dashboard → admin` (a button and an API call do the same thing). `sandbox` imports
//! the ground alone: it plays the outside world. Below never calls above; loops are started in `app` alone.
//!
//! # The walk of a request
//!
//! ```text
//! Call ──identify──▶ Agent ──verdict──▶ Grant ──token──▶ Bearer ──build──▶ Outbound ──send──▶ Reply
//! ```
//!
//! It is `proxy::Gateway::forward`, one short function; requests of HTTP/1.1 that leave nothing to interpret walk the same steps
//! in `proxy/fast`, from bytes to bytes, without hyper. Each step takes what the one before made, and nobody can skip one,
//! because the types can't be made elsewhere. A `Receipt` is opened first and rides on the answer's body: when the last
//! byte is gone, or the agent hangs up, exactly one audit record is written.
//!
//! The hot path is `proxy/` (above all `proxy/fast`), `access/policy.rs`, `accounts/cache.rs` and `audit/receipt.rs`: no
//! database, no lock that cores share, no timer of its own. Everything else is written to be read.

pub mod access;
pub mod accounts;
pub mod admin;
pub mod app;
pub mod audit;
pub mod catalog;
pub mod clock;
pub mod config;
pub mod dashboard;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod ids;
pub mod net;
pub mod oauth;
pub mod proxy;
pub mod sandbox;
pub mod secret;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod vault;

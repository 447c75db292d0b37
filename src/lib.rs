//! Keyward: a gateway that lets AI agents use people's accounts without ever holding their tokens.

pub mod access;
pub mod accounts;
pub mod admin;
pub mod audit;
pub mod catalog;
pub mod clock;
pub mod config;
pub mod ids;
pub mod net;
pub mod oauth;
pub mod proxy;
pub mod secret;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod vault;

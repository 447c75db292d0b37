//! Keyward: a gateway that lets AI agents use people's accounts without ever holding their tokens.

pub mod catalog;
pub mod clock;
pub mod config;
pub mod ids;
pub mod sandbox;
pub mod secret;
pub mod shutdown;
pub mod store;
pub mod vault;

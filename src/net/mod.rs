//! Sockets: how connections come in, how they go out, and where they may not go. Knows nothing of gateways.

mod client;
mod framing;
mod guard;
mod serve;
mod socket;
mod ticker;
mod tls;
mod words;

pub use client::{Client, ClientError, ClientLimits};
pub use guard::{DialError, Guard};
pub use serve::{Listener, Peer, ServeLimits, serve};
pub use ticker::{Deadline, Moment, Ticker, Ticks};
pub use tls::{TlsError, client_config};

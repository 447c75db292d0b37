//! Sockets: how connections come in, how they go out, and where they may not go. Knows nothing of gateways.

mod client;
mod connection;
mod exchange;
mod framing;
mod guard;
mod handshake;
mod identity;
mod multiplex;
mod serve;
mod socket;
mod ticker;
mod tls;
mod words;

pub use client::{Client, ClientError, ClientLimits};
pub use exchange::{Line, Peer, Stream, Tunnel};
pub use guard::{DialError, Guard};
pub use identity::Identity;
pub use multiplex::LocalTasks;
pub use serve::{Listener, ServeLimits, serve};
pub use ticker::{Deadline, Moment, Ticker, Ticks};
pub use tls::{ClientTls, TlsError};

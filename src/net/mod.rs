//! Sockets: how connections come in, how they go out, and where they may not go. Knows nothing of gateways.

mod chunks;
mod client;
mod connection;
mod exchange;
mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guard;
mod handshake;
mod head;
mod identity;
mod listener;
mod multiplex;
mod plain;
mod serve;
mod socket;
mod ticker;
mod tls;
mod turns;
mod words;

pub use chunks::{BadChunk, Unchunk};
pub use client::{Client, ClientError, ClientLimits};
pub use exchange::{Line, Peer, Stream, Tunnel};
pub use framing::is_host;
pub use guard::{DialError, Guard};
pub use head::{Head, Parsed};
pub use identity::Identity;
pub use listener::Listener;
pub use multiplex::LocalTasks;
pub use plain::{After, Buffers, FastPath, Gone, More, Plain};
pub use serve::{ServeLimits, serve};
pub use ticker::{Deadline, Moment, Ticker, Ticks};
pub use tls::{ClientTls, TlsError};
pub use turns::Stint;

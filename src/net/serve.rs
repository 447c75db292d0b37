//! The accept loop that both listeners share: permits, first-byte and head deadlines, graceful end.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::shutdown::Shutdown;

/// A bound socket.
pub struct Listener(std::net::TcpListener);

impl Listener {
    /// Binds `address`; with `shared`, further listeners may bind the same one (`SO_REUSEPORT`) and the kernel spreads
    /// connections over them. Port 0 picks a free port.
    ///
    /// # Errors
    /// What the system says, with the address.
    pub fn bind(_address: SocketAddr, _shared: bool) -> std::io::Result<Self> {
        todo!()
    }
    /// Where it is bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Who is at the other end; every request carries one in its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Limits of a listener.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// From a connection's start, or a request's first byte, to the end of the head.
    pub head: Duration,
    /// Between requests of a kept connection.
    pub keep_alive: Duration,
    /// Bytes of a head.
    pub head_bytes: usize,
    /// Header lines.
    pub headers: usize,
}

/// Serves HTTP/1.1 until the soft stop, then lets running exchanges finish until the hard stop. Runs on the current
/// thread's `LocalSet`: each connection is a local task, so the service need not be `Send`.
pub async fn serve<S, F, B>(_listener: Listener, _limits: ServeLimits, _shutdown: Shutdown, _service: S)
where
    S: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    todo!()
}

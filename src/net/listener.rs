//! A socket that connections come to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};

/// Connections that wait in the kernel for us to accept them.
const BACKLOG: i32 = 4096;

/// A bound socket.
pub struct Listener(pub(super) std::net::TcpListener);

impl Listener {
    /// Binds `address`; with `shared`, further listeners may bind the same one (`SO_REUSEPORT`) and the kernel spreads
    /// connections over them. Port 0 picks a free port.
    ///
    /// # Errors
    /// What the system says, with the address.
    pub fn bind(address: SocketAddr, shared: bool) -> io::Result<Self> {
        use socket2::{Domain, Protocol, Socket, Type};

        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if shared {
                socket.set_reuse_port(true)?;
            }
            socket.set_nonblocking(true)?;
            // Connections inherit it.
            socket.set_tcp_nodelay(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(Self(socket.into()))
        };
        bind().map_err(|error: io::Error| io::Error::new(error.kind(), format!("can't listen on {address}: {error}")))
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Has the system make room for so many descriptors, or as many as it allows. Their table grows by itself too, but where
    /// threads share it, whoever needs the next one then waits 10 to 20 ms (`synchronize_rcu` in Linux's `expand_fdtable`).
    pub fn reserve_descriptors(&self, count: usize) {
        let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let last = (count as u64).min(allowed.saturating_sub(1));
        let _ = fcntl_dupfd_cloexec(&self.0, RawFd::try_from(last).unwrap_or(RawFd::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_send_small_pieces_at_once() {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), true).unwrap();
        let _peer = std::net::TcpStream::connect(listener.address().unwrap()).unwrap();
        listener.0.set_nonblocking(false).unwrap();
        assert!(listener.0.accept().unwrap().0.nodelay().unwrap());
    }
}

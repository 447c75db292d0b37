//! TLS handshakes of a listener. Each has a deadline, and only so many run at once on a thread: one more cuts the one that has
//! taken longest, so that those who never finish make room for those who do.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::serve::House;
use super::socket::Watch;
use super::ticker::Deadline;

/// The handshakes of one thread.
pub(super) struct Handshakes {
    acceptor: TlsAcceptor,
    /// Oldest first.
    under_way: RefCell<VecDeque<Deadline>>,
    limit: usize,
}

/// One of them; out of the way when dropped.
struct UnderWay<'a> {
    all: &'a Handshakes,
    deadline: Deadline,
}

impl Handshakes {
    pub(super) fn new(config: Arc<ServerConfig>, limit: usize) -> Self {
        Self { acceptor: TlsAcceptor::from(config), under_way: RefCell::default(), limit: limit.max(1) }
    }

    fn begin(&self, deadline: &Deadline) -> UnderWay<'_> {
        let mut under_way = self.under_way.borrow_mut();
        if under_way.len() >= self.limit
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.pass();
        }
        under_way.push_back(deadline.clone());
        UnderWay { all: self, deadline: deadline.clone() }
    }

    /// Shakes hands; nothing when that fails, takes too long or is cut.
    pub(super) async fn shake(&self, tcp: TcpStream, watch: &Watch, house: &House) -> Option<TlsStream<TcpStream>> {
        watch.shaking();
        let _under_way = self.begin(&watch.deadline);
        let mut accept = pin!(self.acceptor.accept(tcp));
        let tls = poll_fn(|cx| {
            if house.is_cut() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(result) = accept.as_mut().poll(cx) {
                return Poll::Ready(result.ok());
            }
            watch.deadline.poll_passed(cx).map(|()| None)
        })
        .await?;
        watch.ready();
        Some(tls)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.all.under_way.borrow_mut().retain(|other| !other.is(&self.deadline));
    }
}

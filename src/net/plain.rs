//! A connection of HTTP/1.1 as somebody sees it who serves its plain exchanges: those whose bytes leave nothing to interpret.
//! At the first request that is not plain the connection is handed over to hyper, for good; what was read of that request
//! is read again there, so that nothing is decided twice differently.
//!
//! ```text
//!  bytes ──▶ fast path ──plain──▶ answered here ──▶ next request
//!               │ anything else
//!               ▼
//!             hyper
//! ```

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio_util::io::poll_read_buf;

use super::exchange::{Peer, Stream};
use super::serve::{House, Stop};
use super::socket::Watch;

/// Serves the plain exchanges of connections.
pub trait FastPath {
    /// Serves one connection until it is over, or somebody else has to.
    fn serve<'a>(&'a self, connection: Plain<'a>) -> Pin<Box<dyn Future<Output = After> + 'a>>;
}

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// hyper goes on with what is unread.
    HandOver,
    /// Everything is said: close it, so that all of it arrives.
    Over,
    /// Something was left unfinished: cut it, so that this shows.
    Cut,
}

/// How waiting for more of a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// There is more.
    Came,
    /// It has to be said that it is late, or cut short.
    Odd,
    /// There will be none.
    Over,
}

/// The agent hung up, takes nothing, or the time for stopping has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent is gone")]
pub struct Gone;

/// Buffers that belong to exchanges rather than to connections: an idle connection has none.
#[derive(Default)]
pub struct Buffers {
    small: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
}

/// Bytes of a small buffer, what it may have grown to, and how many are kept on a thread.
const SMALL: usize = 8 * 1024;
const MOST_SMALL: usize = 4 * SMALL;
const SMALL_KEPT: usize = 512;
/// The same of large ones: what a body of some size is moved with.
const LARGE: usize = 128 * 1024;
const MOST_LARGE: usize = 2 * LARGE;
const LARGE_KEPT: usize = 32;

impl Buffers {
    /// An empty buffer with some room.
    pub fn take(&self) -> Vec<u8> {
        self.small.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(SMALL))
    }

    /// An empty buffer with much room.
    pub fn take_large(&self) -> Vec<u8> {
        self.large.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(LARGE))
    }

    /// Takes one back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let (kept, most) = match buffer.capacity() {
            SMALL..=MOST_SMALL => (&self.small, SMALL_KEPT),
            LARGE..=MOST_LARGE => (&self.large, LARGE_KEPT),
            // What has grown further is not worth keeping.
            _ => return,
        };
        let mut kept = kept.borrow_mut();
        if kept.len() < most {
            kept.push(buffer);
        }
    }
}

/// A connection whose plain exchanges are being served.
pub struct Plain<'a> {
    pub(super) io: &'a mut dyn Stream,
    pub(super) input: &'a mut Vec<u8>,
    pub(super) watch: &'a Watch,
    pub(super) house: &'a House,
    pub(super) peer: Peer,
}

/// What is read ahead of requests that nobody has asked for yet, at most.
const AHEAD: usize = 64 * 1024;

impl Plain<'_> {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// What was read and is not served yet.
    pub fn input(&mut self) -> &mut Vec<u8> {
        self.input
    }

    /// Whether no further request should be taken.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.house.stop.get() != Stop::Not
    }

    /// Waits for more of a request. A connection that waits for the first byte of one has no buffer.
    pub async fn more(&mut self, buffers: &Buffers) -> More {
        poll_fn(|cx| {
            let between = self.input.is_empty();
            if self.house.is_cut() {
                return Poll::Ready(More::Over);
            }
            if self.input.capacity() == 0 {
                *self.input = buffers.take();
            }
            match poll_read_buf(Pin::new(&mut *self.io), cx, self.input) {
                Poll::Ready(Ok(0)) if !between => Poll::Ready(More::Odd),
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(More::Over),
                Poll::Ready(Ok(_)) => {
                    self.watch.begun();
                    Poll::Ready(More::Came)
                }
                Poll::Pending => {
                    if between {
                        buffers.give(std::mem::take(self.input));
                        if self.is_stopping() {
                            return Poll::Ready(More::Over);
                        }
                    }
                    let late = if self.watch.is_idle() { More::Over } else { More::Odd };
                    self.watch.deadline.poll_passed(cx).map(|()| late)
                }
            }
        })
        .await
    }

    /// A request is whole and will be answered here.
    pub fn begin(&self) {
        self.watch.serving();
    }

    /// Its answer is written; what was read of it, `length` bytes, is done with.
    pub fn end(&mut self, length: usize) {
        self.input.drain(..length);
        self.watch.answered(true);
        if !self.input.is_empty() {
            self.watch.begun();
        }
    }

    /// Waits for `work` for as long as the agent does.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn during<R>(&mut self, work: impl Future<Output = R>) -> Result<R, Gone> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(result) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(result));
            }
            self.poll_gone(cx).map(Err)
        })
        .await
    }

    /// Ready when there is nobody to answer any more. Reads a little ahead: how else would one know.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if self.house.is_cut() {
            return Poll::Ready(Gone);
        }
        while self.input.len() < AHEAD {
            match poll_read_buf(Pin::new(&mut *self.io), cx, self.input) {
                Poll::Pending => break,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Gone),
                Poll::Ready(Ok(_)) => {}
            }
        }
        self.watch.deadline.poll_passed(cx).map(|()| Gone)
    }

    /// Writes some of `first` and of what is `then`; answers how much.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, first: &[u8], then: &[u8]) -> Poll<Result<usize, Gone>> {
        let io = Pin::new(&mut *self.io);
        let wrote = match (first, then) {
            (bytes, []) | ([], bytes) => io.poll_write(cx, bytes),
            _ => io.poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(then)]),
        };
        self.watch.wrote(wrote.is_ready());
        match wrote {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(Gone)),
            Poll::Ready(Ok(length)) => Poll::Ready(Ok(length)),
            Poll::Pending => self.poll_cut(cx),
        }
    }

    /// Sees to it that what was written leaves, and does not wait in a layer of TLS.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        match Pin::new(&mut *self.io).poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed.map_err(|_: io::Error| Gone)),
            Poll::Pending => self.poll_cut(cx),
        }
    }

    fn poll_cut<T>(&self, cx: &mut Context<'_>) -> Poll<Result<T, Gone>> {
        if self.house.is_cut() {
            return Poll::Ready(Err(Gone));
        }
        ready!(self.watch.deadline.poll_passed(cx));
        Poll::Ready(Err(Gone))
    }
}

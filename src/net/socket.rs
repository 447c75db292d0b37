//! A connection's socket that keeps an eye on where the connection stands, so that one coarse ticker can end those that
//! take too long. hyper's own head timeout arms a timer per request and does not run before the first byte.
//!
//! ```text
//!        head whole            answer's last byte handed over
//!  Head ───────────▶ Busy ─────────────────────────────▶ Idle ──first byte──▶ Head
//!   │ head             │ no limit, but a peer that          │ keep_alive
//!   ▼ 408              ▼ takes nothing: keep_alive          ▼ closed
//! ```

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::framing::Framing;
use super::ticker::{Deadline, Ticks};
use super::words::unreadable;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// A head is awaited: the first one, or one whose first byte has come.
    Head,
    /// A request is being answered.
    Busy,
    /// Between requests.
    Idle,
    /// Our side has said everything; the peer may still be sending.
    Linger,
}

/// The limits of the phases.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans {
    pub(super) head: Ticks,
    pub(super) keep_alive: Ticks,
    pub(super) linger: Ticks,
}

/// What socket, service and connection task know together.
pub(super) struct Watch {
    phase: Cell<Phase>,
    stalled: Cell<bool>,
    had_body: Cell<bool>,
    /// A request was taken, and its answer is not all on its way yet.
    owed: Cell<bool>,
    framing: RefCell<Framing>,
    spans: Spans,
    pub(super) deadline: Deadline,
}

impl Watch {
    pub(super) fn new(deadline: Deadline, spans: Spans) -> Rc<Self> {
        deadline.arm(spans.head);
        Rc::new(Self {
            phase: Cell::new(Phase::Head),
            stalled: Cell::new(false),
            had_body: Cell::new(false),
            owed: Cell::new(false),
            framing: RefCell::default(),
            spans,
            deadline,
        })
    }

    /// A head is whole. Answers what is wrong with it.
    pub(super) fn busy(&self, has_body: bool) -> Option<&'static str> {
        self.phase.set(Phase::Busy);
        self.had_body.set(has_body);
        self.owed.set(true);
        self.deadline.disarm();
        self.framing.take().fault()
    }

    /// The answer has been handed over whole.
    pub(super) fn answered(&self) {
        self.phase.set(Phase::Idle);
        self.deadline.arm(self.spans.keep_alive);
    }

    /// Whether the peer could still be told that its head came too late: nothing of an earlier answer is on its way.
    pub(super) fn may_be_told(&self) -> bool {
        self.phase.get() == Phase::Head && !self.stalled.get()
    }

    fn read(&self, bytes: &[u8]) {
        if self.phase.get() == Phase::Idle {
            self.phase.set(Phase::Head);
            self.deadline.arm(self.spans.head);
        }
        if self.phase.get() == Phase::Head {
            self.framing.borrow_mut().feed(bytes);
        }
    }

    fn wrote(&self, taken: bool) {
        if !taken {
            if !self.stalled.replace(true) && self.phase.get() == Phase::Busy {
                self.deadline.arm(self.spans.keep_alive);
            }
        } else if self.stalled.replace(false) {
            match self.phase.get() {
                Phase::Busy => self.deadline.disarm(),
                Phase::Idle => self.deadline.arm(self.spans.keep_alive),
                Phase::Head | Phase::Linger => {}
            }
        }
    }

    /// Everything handed over has been written.
    fn flushed(&self) {
        if self.phase.get() != Phase::Busy {
            self.owed.set(false);
        }
    }

    /// What is written while no answer is due is the parser's own refusal of a head, a bare status line. The answer to
    /// say instead, in the shape of every other one.
    fn unasked(&self, written: &[u8]) -> Option<Vec<u8>> {
        if self.owed.get() || !matches!(self.phase.get(), Phase::Head | Phase::Idle) {
            return None;
        }
        let status = StatusCode::from_bytes(written.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()?;
        // The rest of what the peer sends was not read; see `linger`.
        self.had_body.set(true);
        Some(unreadable(status))
    }

    /// Whether to wait for the peer to close first: closing over unread bytes resets the connection, and the reset can
    /// overtake the answer (RFC 9112 §9.6). Only a request with a body leaves any, or a head that was not read whole.
    fn linger(&self) -> bool {
        if self.phase.get() != Phase::Linger && self.had_body.get() {
            self.phase.set(Phase::Linger);
            self.deadline.arm(self.spans.linger);
        }
        self.phase.get() == Phase::Linger
    }
}

/// The socket.
pub(super) struct Socket {
    tcp: TcpStream,
    watch: Rc<Watch>,
    sent_fin: bool,
}

impl Socket {
    pub(super) fn new(tcp: TcpStream, watch: Rc<Watch>) -> Self {
        Self { tcp, watch, sent_fin: false }
    }

    /// Last words, as far as they go out at once.
    pub(super) fn tell(&self, text: &[u8]) {
        let _ = self.tcp.try_write(text);
    }

    /// Writes `words` for `length` bytes that were to be written. Nothing else is on its way, so there is room for them.
    fn say_instead(&self, words: &[u8], length: usize) -> Poll<io::Result<usize>> {
        self.tell(words);
        self.watch.owed.set(true);
        Poll::Ready(Ok(length))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        if !read.is_empty() {
            self.watch.read(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(words) = self.watch.unasked(buf) {
            return self.say_instead(&words, buf.len());
        }
        let result = Pin::new(&mut self.tcp).poll_write(cx, buf);
        self.watch.wrote(result.is_ready());
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let words = bufs.first().and_then(|first| self.watch.unasked(first));
        if let Some(words) = words {
            return self.say_instead(&words, bufs.iter().map(|buf| buf.len()).sum());
        }
        let result = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.watch.wrote(result.is_ready());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.tcp).poll_flush(cx))?;
        self.watch.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_fin {
            ready!(Pin::new(&mut self.tcp).poll_shutdown(cx))?;
            self.sent_fin = true;
        }
        if !self.watch.linger() {
            return Poll::Ready(Ok(()));
        }
        let mut space = [0u8; 4096];
        // A bounded number of reads a turn: a peer that never stops must not hold the thread.
        for _ in 0..16 {
            let mut buf = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

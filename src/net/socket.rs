//! A connection's socket that keeps an eye on where the connection stands, so that one coarse ticker can end those that
//! take too long. hyper's own head timeout arms a timer per request and does not run before the first byte.
//!
//! ```text
//!        head whole            answer's last byte handed over
//!  Head ───────────▶ Busy ─────────────────────────────▶ Idle ──first byte──▶ Head
//!   │ head             │ no limit, but a peer that          │ keep_alive
//!   ▼ 408              ▼ takes nothing: keep_alive          ▼ closed
//! ```
//!
//! Over HTTP/2 there is no Head: a connection is Busy while it has streams, else Idle, and bytes alone don't count.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exchange::{Peer, Tunnel};
use super::framing::Framing;
use super::multiplex::Fault;
use super::plain::Plain;
use super::serve::House;
use super::ticker::{Deadline, Ticks};
use super::turns::{InTurn, Turns};
use super::words::unreadable;

/// How a client of HTTP/2 begins (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read before it is known which protocol it is.
const FIRST: usize = 4096;
/// Streams that may end before their answer, beyond those that are answered, until the connection is over: opening
/// and resetting streams is cheap for the peer and is not for whom the requests go to (CVE-2023-44487).
const RESETS: u32 = 100;

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
    pub(super) handshake: Ticks,
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
    /// Streams under way, over HTTP/2.
    streams: Cell<Option<u32>>,
    /// What takes the connection over once a 101 is written.
    pub(super) tunnel: RefCell<Option<Tunnel>>,
    resets: Cell<u32>,
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
            streams: Cell::new(None),
            tunnel: RefCell::default(),
            resets: Cell::new(0),
            spans,
            deadline,
        })
    }

    /// A TLS handshake begins.
    pub(super) fn shaking(&self) {
        self.deadline.arm(self.spans.handshake);
    }

    /// The first head may come now.
    pub(super) fn ready(&self) {
        self.deadline.arm(self.spans.head);
    }

    /// It is HTTP/2 from here on.
    pub(super) fn multiplexed(&self) {
        self.streams.set(Some(0));
        self.phase.set(Phase::Idle);
    }

    /// It is no HTTP at all from here on, and has no time of its own.
    pub(super) fn handed_over(&self) {
        self.multiplexed();
        self.deadline.disarm();
    }

    /// Whether it is HTTP/2.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.streams.get().is_some()
    }

    /// The connection is about to be closed; what is under way gets this much longer.
    pub(super) fn closing(&self) {
        self.resets.set(u32::MAX);
        self.deadline.arm(self.spans.linger);
    }

    fn opened(&self, streams: u32) {
        self.streams.set(Some(streams + 1));
        self.phase.set(Phase::Busy);
        if self.resets.get() < RESETS && !self.stalled.get() {
            self.deadline.disarm();
        }
    }

    fn closed(&self, streams: u32, answered: bool) {
        let streams = streams.saturating_sub(1);
        self.streams.set(Some(streams));
        if self.resets.get() == u32::MAX {
            return;
        }
        let resets = self.resets.get();
        self.resets.set(if answered { resets.saturating_sub(1) } else { resets + 1 });
        if self.resets.get() >= RESETS {
            self.deadline.pass();
        } else if streams == 0 {
            self.phase.set(Phase::Idle);
            self.deadline.arm(self.spans.keep_alive);
        }
    }

    /// A head is whole. Answers what is wrong with it.
    pub(super) fn busy(&self, has_body: bool) -> Option<Fault> {
        if let Some(streams) = self.streams.get() {
            self.opened(streams);
            return None;
        }
        self.phase.set(Phase::Busy);
        self.owed.set(true);
        self.deadline.disarm();
        let fault = self.framing.borrow_mut().take();
        // What is behind a head that is refused is not read.
        self.had_body.set(has_body || fault.is_some());
        fault
    }

    /// An exchange is over: its answer has been handed over, or (over HTTP/2) given up before there was one.
    pub(super) fn answered(&self, answered: bool) {
        if let Some(streams) = self.streams.get() {
            return self.closed(streams, answered);
        }
        self.phase.set(Phase::Idle);
        self.deadline.arm(self.spans.keep_alive);
    }

    /// Some of the next head has come.
    pub(super) fn begun(&self) {
        if self.phase.get() == Phase::Idle {
            self.phase.set(Phase::Head);
            self.deadline.arm(self.spans.head);
        }
    }

    /// A head is whole and is answered without the parser behind.
    pub(super) fn serving(&self) {
        self.phase.set(Phase::Busy);
        self.deadline.disarm();
    }

    /// Whether the connection is between requests.
    pub(super) fn is_idle(&self) -> bool {
        self.phase.get() == Phase::Idle
    }

    /// Whether there is more to come of a request that has begun, or of the first one.
    pub(super) fn is_owed_more(&self) -> bool {
        match self.phase.get() {
            Phase::Head => true,
            Phase::Busy => self.had_body.get() && !self.is_multiplexed(),
            Phase::Idle | Phase::Linger => false,
        }
    }

    /// Whether the peer could still be told that its head came too late: nothing of an earlier answer is on its way.
    pub(super) fn may_be_told(&self) -> bool {
        self.phase.get() == Phase::Head && !self.stalled.get()
    }

    /// Notes what was read; answers how much of it may be believed.
    fn read(&self, bytes: &[u8]) -> usize {
        if self.is_multiplexed() {
            return bytes.len();
        }
        self.begun();
        self.framing.borrow_mut().feed(bytes)
    }

    pub(super) fn wrote(&self, taken: bool) {
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
        if self.owed.get() || self.is_multiplexed() || !matches!(self.phase.get(), Phase::Head | Phase::Idle) {
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

/// The socket, in clear or under TLS.
pub(super) struct Socket<T> {
    io: InTurn<T>,
    watch: Rc<Watch>,
    /// Read already, to find out which protocol it is.
    ahead: Vec<u8>,
    sent_fin: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Socket<T> {
    pub(super) fn new(io: T, watch: Rc<Watch>, turns: &Rc<Turns>) -> Self {
        Self { io: InTurn::new(io, Rc::clone(&watch), turns), watch, ahead: Vec::new(), sent_fin: false }
    }

    /// Whether the peer begins as a client of HTTP/2 does. What was read stays to be read.
    pub(super) fn poll_preface(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let length = self.ahead.len().min(PREFACE.len());
            if self.ahead[..length] != PREFACE[..length] || length == PREFACE.len() {
                return Poll::Ready(Ok(length == PREFACE.len() && self.ahead.starts_with(PREFACE)));
            }
            let mut space = [0u8; FIRST];
            let mut buf = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(false));
            }
            self.ahead.extend_from_slice(buf.filled());
        }
    }

    /// Whether anything has come yet.
    pub(super) fn is_silent(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Whether the time of a head is over and it is not whole.
    pub(super) fn has_late_head(&self) -> bool {
        self.watch.may_be_told()
            && self.watch.deadline.passed()
            && memchr::memmem::find(&self.ahead, b"\r\n\r\n").is_none()
    }

    /// The connection for whoever serves its plain exchanges.
    pub(super) fn plain<'a>(&'a mut self, house: &'a House, peer: Peer) -> Plain<'a> {
        Plain { io: &mut self.io, input: &mut self.ahead, watch: &self.watch, house, peer }
    }

    /// Closes the connection once the peer has everything.
    pub(super) async fn close(mut self, house: &House) {
        let watch = Rc::clone(&self.watch);
        watch.had_body.set(!self.ahead.is_empty());
        poll_fn(|cx| {
            if house.is_cut() || Pin::new(&mut self).poll_shutdown(cx).is_ready() {
                return Poll::Ready(());
            }
            watch.deadline.poll_passed(cx)
        })
        .await;
    }

    /// Last words, as far as they go out at once.
    pub(super) fn tell(&mut self, text: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        if Pin::new(&mut self.io).poll_write(&mut cx, text).is_ready() {
            let _ = Pin::new(&mut self.io).poll_flush(&mut cx);
        }
    }

    /// Writes `words` for `length` bytes that were to be written. Nothing else is on its way, so there is room for them.
    fn say_instead(&mut self, words: &[u8], length: usize) -> Poll<io::Result<usize>> {
        self.tell(words);
        self.watch.owed.set(true);
        Poll::Ready(Ok(length))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.watch.framing.borrow().is_broken() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let length = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..length]);
            this.ahead.drain(..length);
            if this.ahead.is_empty() {
                this.ahead = Vec::new();
            }
        }
        let read = &buf.filled()[before..];
        if !read.is_empty() {
            let fine = this.watch.read(read);
            if fine == 0 {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            buf.set_filled(before + fine);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(words) = self.watch.unasked(buf) {
            return self.say_instead(&words, buf.len());
        }
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
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
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.watch.wrote(result.is_ready());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.watch.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_fin {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            self.sent_fin = true;
        }
        if !self.watch.linger() {
            return Poll::Ready(Ok(()));
        }
        let mut space = [0u8; 4096];
        // A bounded number of reads a turn: a peer that never stops must not hold the thread.
        for _ in 0..16 {
            let mut buf = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

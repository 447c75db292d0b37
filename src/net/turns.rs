//! Turns for what would keep a thread from everybody else: crowds and large bodies. Thousands of connections may have
//! something to say, or end, in one moment, and to see to one costs as much as to answer a request: a few at a time have
//! their turn, and whatever else is ready on the thread goes in between. Whoever is not called yet only stands in line; its
//! task is not woken.
//!
//! ```text
//!  line: ended more more ended more …       turn: a few of them are called
//!            request                        the system is asked what is new, the request is answered
//!                                           turn: a few more
//! ```

use std::cell::Cell;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, spawn_local, yield_now};
use tokio::time::Instant;

use super::socket::Watch;

/// Places of a turn at least.
pub(super) const FEW: usize = 2;
/// And at most.
const MANY: usize = 32;
/// What all that is ready takes in a turn, for each place.
const EACH: Duration = Duration::from_micros(200);

/// Lets everything else that is ready go first; answers how many connections may come, are late, go on slowly or end in the
/// turn that follows. The more the longer it took: where much else is to be done they must get on too.
pub(super) async fn next_turn() -> usize {
    let begun = Instant::now();
    yield_now().await;
    places(begun.elapsed())
}

fn places(turn: Duration) -> usize {
    usize::try_from(turn.as_micros() / EACH.as_micros()).unwrap_or(MANY).clamp(FEW, MANY)
}

/// The turns of one thread.
pub(super) struct Turns {
    line: UnboundedSender<Arc<Ticket>>,
    over: Cell<bool>,
}

impl Turns {
    /// # Panics
    /// Outside a `LocalRuntime` or `LocalSet`.
    pub(super) fn new() -> Rc<Self> {
        let (line, waiting) = unbounded_channel();
        spawn_local(deal(waiting));
        Rc::new(Self { line, over: Cell::new(false) })
    }

    /// From here on nobody waits, once woken: what was sent before a stop is read.
    pub(super) fn end(&self) {
        self.over.set(true);
    }

    fn ticket(&self) -> Arc<Ticket> {
        Arc::new(Ticket { line: self.line.clone(), standing: AtomicU8::new(AWAY), task: AtomicWaker::new() })
    }
}

/// Calls those in line, first come, first served: a few, and a few more once all that is ready has been served.
async fn deal(mut line: UnboundedReceiver<Arc<Ticket>>) {
    let mut left = FEW;
    while let Some(ticket) = line.recv().await {
        left -= usize::from(ticket.call());
        if left == 0 {
            left = next_turn().await;
        }
    }
}

/// Where the holder of a ticket stands: nowhere, in line, or called.
const AWAY: u8 = 0;
const IN_LINE: u8 = 1;
const CALLED: u8 = 2;

/// A socket's ticket for one turn. As a waker it joins the line, and its task is woken when it is called.
struct Ticket {
    line: UnboundedSender<Arc<Ticket>>,
    standing: AtomicU8,
    task: AtomicWaker,
}

impl Ticket {
    fn join(self: &Arc<Self>) {
        let joins = self.standing.compare_exchange(AWAY, IN_LINE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if joins && self.line.send(Arc::clone(self)).is_err() {
            // Nobody calls any more.
            self.call();
        }
    }

    /// Answers whether there is somebody to be called.
    fn call(self: &Arc<Self>) -> bool {
        self.standing.store(CALLED, Ordering::Release);
        self.task.wake();
        Arc::strong_count(self) > 1
    }

    fn poll_called(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.task.register(cx.waker());
        if self.standing.load(Ordering::Acquire) == CALLED { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Wake for Ticket {
    fn wake(self: Arc<Self>) {
        self.join();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.join();
    }
}

/// How much of a body was moved since others had their turn.
#[derive(Debug, Default)]
pub struct Stint {
    moved: usize,
    /// Over when all that was ready has been served.
    rest: Option<JoinHandle<()>>,
}

/// Bytes of a body that are moved in a turn.
const STINT: usize = 128 * 1024;

impl Stint {
    /// So many bytes more were moved.
    pub fn moved(&mut self, bytes: usize) {
        self.moved += bytes;
    }

    /// Pending when it was enough for a turn, until the next one.
    ///
    /// # Panics
    /// Outside a `LocalRuntime` or `LocalSet`.
    pub fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.moved >= STINT {
            self.moved = 0;
            // A task of its own: whoever moves the body may be woken by what comes of it before it is its turn.
            self.rest = Some(spawn_local(yield_now()));
        }
        if let Some(rest) = &mut self.rest {
            let _ = ready!(Pin::new(rest).poll(cx));
            self.rest = None;
        }
        Poll::Ready(())
    }
}

/// A peer's socket, of which those that keep others waiting take turns: what is read of a request after its beginning and
/// was not there at once, and the end.
pub(super) struct InTurn<T> {
    io: T,
    watch: Rc<Watch>,
    turns: Rc<Turns>,
    /// What the socket waits with for the rest of a request, or its task for a turn.
    ticket: Option<Arc<Ticket>>,
    end: Option<End>,
}

/// How reading ended, and whether that had its turn.
struct End {
    failed: Option<io::ErrorKind>,
    told: bool,
}

impl<T> InTurn<T> {
    pub(super) fn new(io: T, watch: Rc<Watch>, turns: &Rc<Turns>) -> Self {
        Self { io, watch, turns: Rc::clone(turns), ticket: None, end: None }
    }

    /// Pending while a ticket was not called. Answers whether one was.
    fn poll_called(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(ticket) = &self.ticket else { return Poll::Ready(false) };
        if !self.turns.over.get() {
            ready!(ticket.poll_called(cx));
        }
        self.ticket = None;
        Poll::Ready(true)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.end.as_ref().is_none_or(|end| !end.told) {
            self.ticket.get_or_insert_with(|| self.turns.ticket()).join();
            ready!(self.poll_called(cx));
        }
        self.end.get_or_insert(End { failed: None, told: true }).told = true;
        Poll::Ready(())
    }

    fn poll_wrote(&mut self, cx: &mut Context<'_>, wrote: io::Result<usize>) -> Poll<io::Result<usize>> {
        if wrote.is_err() {
            // Until then the next try fails as this one did.
            ready!(self.poll_end(cx));
        }
        Poll::Ready(wrote)
    }
}

impl<T: AsyncRead + Unpin> InTurn<T> {
    /// Reads; where the rest of a request is waited for, whoever sends it gets in line and does not wake the task.
    fn poll_read_in_turn(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() || !self.watch.is_owed_more() || self.turns.over.get() {
            return read;
        }
        // A second time, with the ticket as waker. Most reads find something at the first and need none.
        let ticket = self.turns.ticket();
        let read = Pin::new(&mut self.io).poll_read(&mut Context::from_waker(&Waker::from(Arc::clone(&ticket))), buf);
        if read.is_pending() {
            ticket.task.register(cx.waker());
            self.ticket = Some(ticket);
        }
        read
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for InTurn<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.end.is_none() {
            let called = ready!(this.poll_called(cx));
            let before = buf.remaining();
            let read = ready!(this.poll_read_in_turn(cx, buf));
            if read.is_ok() && (buf.remaining() < before || before == 0) {
                return Poll::Ready(Ok(()));
            }
            this.end = Some(End { failed: read.err().map(|error| error.kind()), told: called });
        }
        ready!(this.poll_end(cx));
        let failed = this.end.as_ref().and_then(|end| end.failed);
        Poll::Ready(failed.map_or(Ok(()), |kind| Err(kind.into())))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for InTurn<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = ready!(Pin::new(&mut this.io).poll_write(cx, buf));
        this.poll_wrote(cx, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs));
        this.poll_wrote(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::LocalSet;

    use super::*;
    use crate::net::socket::Spans;
    use crate::net::ticker::{Ticker, Ticks};

    fn socket<T>(io: T, turns: &Rc<Turns>) -> InTurn<T> {
        let span = Ticks::of(Duration::from_secs(10));
        let spans = Spans { handshake: span, head: span, keep_alive: span, linger: span };
        InTurn::new(io, Watch::new(Ticker::new().deadline(), spans), turns)
    }

    /// What a task that is always ready and a crowd did, in order: `.` for a turn of the one, `x` for a byte or an end that
    /// one of the crowd read.
    async fn course<T: AsyncRead + Unpin + 'static>(crowd: Vec<T>, ready: impl AsyncFnOnce()) -> String {
        let (course, turns) = (Rc::new(RefCell::new(String::new())), Turns::new());
        let readers: Vec<_> = crowd
            .into_iter()
            .map(|io| {
                let (mut socket, course) = (socket(io, &turns), Rc::clone(&course));
                spawn_local(async move {
                    let _ = socket.read(&mut [0; 8]).await.unwrap();
                    course.borrow_mut().push('x');
                })
            })
            .collect();
        let said = Rc::clone(&course);
        let busy = spawn_local(async move {
            loop {
                said.borrow_mut().push('.');
                yield_now().await;
            }
        });
        ready().await;
        for reader in readers {
            reader.await.unwrap();
        }
        busy.abort();
        course.take()
    }

    fn longest(course: &str) -> usize {
        course.split('.').map(str::len).max().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_ends_lets_others_go_in_between() {
        LocalSet::new()
            .run_until(async {
                let course = course((0..100).map(|_| tokio::io::empty()).collect(), async || ()).await;
                assert!(course.matches('x').count() == 100 && longest(&course) <= FEW * 2, "{course}");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_goes_on_slowly_lets_others_go_in_between() {
        LocalSet::new()
            .run_until(async {
                let (crowd, mut peers): (Vec<_>, Vec<_>) = (0..100).map(|_| tokio::io::duplex(8)).unzip();
                let course = course(crowd, async || {
                    // All have looked once, and found nothing.
                    for _ in 0..10 {
                        yield_now().await;
                    }
                    for peer in &mut peers {
                        peer.write_all(b"x").await.unwrap();
                    }
                })
                .await;
                assert!(course.matches('x').count() == 100 && longest(&course) <= FEW * 2, "{course}");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_alone_is_called_at_once() {
        LocalSet::new()
            .run_until(async {
                let course = course(vec![tokio::io::empty()], async || ()).await;
                assert!(course.find('x').is_some_and(|turn| turn <= 2), "{course}");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_stays_one_while_it_waits() {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
        LocalSet::new()
            .run_until(async {
                let turns = Turns::new();
                let all: Vec<_> = (0..FEW * 3)
                    .map(|_| {
                        let mut socket = socket(Broken, &turns);
                        spawn_local(async move { socket.read(&mut [0; 8]).await.unwrap_err().kind() })
                    })
                    .collect();
                for one in all {
                    assert_eq!(one.await.unwrap(), io::ErrorKind::ConnectionReset);
                }
            })
            .await;
    }

    #[test]
    fn a_long_turn_has_more_places() {
        let micros = [0, 399, 400, 4_000, 1_000_000];
        assert_eq!(micros.map(|micros| places(Duration::from_micros(micros))), [FEW, FEW, 2, 20, MANY]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_is_not_cut_short_by_who_wakes_for_something_else() {
        LocalSet::new()
            .run_until(async {
                let mut stint = Stint::default();
                stint.moved(STINT - 1);
                let mut polls = 0;
                poll_fn(|cx| stint.poll_rest(cx).map(|()| polls += 1)).await;
                assert_eq!(polls, 1, "not yet");
                stint.moved(1);
                poll_fn(|cx| {
                    polls += 1;
                    for _ in 0..10 {
                        if stint.poll_rest(cx).is_ready() {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Pending
                })
                .await;
                assert!(polls > 2, "it rested");
            })
            .await;
    }
}

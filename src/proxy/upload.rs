//! A request's body on its way out: held whole when it is small, so that it could be sent once more; otherwise counted,
//! limited and watched while it streams. Trailers end here.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::Refusal;
use super::upstream::Pace;
use crate::net::{Deadline, Stint, Ticker, Ticks};

/// Bodies of a known length up to this are held.
pub(super) const HELD: u64 = 64 * 1024;

/// What hyper sends as a request's body.
pub(super) enum RequestBody {
    /// Nothing, or all of it.
    Held(Option<Bytes>),
    /// As it comes.
    Streamed {
        /// From the agent.
        incoming: Incoming,
        /// What the exchange needs to know of it.
        upload: Rc<Upload>,
        /// When it is somebody else's turn.
        stint: Stint,
    },
}

/// How a streamed body is getting on.
pub(super) struct Upload {
    sent: Cell<u64>,
    limit: u64,
    state: Cell<State>,
    /// Bytes that count as progress; what brings fewer in an idle time is too slow.
    least: u64,
    /// What had gone by at the last progress.
    counted: Cell<u64>,
    pace: RefCell<Option<Pace>>,
    /// Who waits for more of it, when nobody else could stop that.
    waiting: RefCell<Option<Waker>>,
}

/// How far a streamed body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// More is to come, and was there when last asked for.
    Running,
    /// More is to come, and the agent is late with it.
    Waiting,
    /// All of it has gone.
    Done,
    /// It went over the limit.
    TooLarge,
    /// It ended before its end.
    Broken,
}

/// Why a body could not be sent whole. The upstream sees an abort, never a clean end.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error("the body is over the limit")]
    TooLarge,
    #[error("the body ended before its end")]
    Broken,
}

impl Upload {
    /// Bytes that went by.
    pub(super) fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// How far it is.
    pub(super) fn state(&self) -> State {
        self.state.get()
    }

    /// Whether enough went by since this was last true, or all there is.
    fn has_moved(&self) -> bool {
        let sent = self.sent.get();
        let moved = self.state.get() == State::Done || sent - self.counted.get() >= self.least;
        if moved {
            self.counted.set(sent);
        }
        moved
    }

    /// Nobody wants the rest of it: what was sent so far ends with an abort.
    pub(super) fn abandon(&self) {
        if self.state.get() != State::Done {
            self.state.set(State::Broken);
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
        }
    }

    /// From now on each part counts as progress of this exchange.
    pub(super) fn paced(&self, pace: &Pace) {
        *self.pace.borrow_mut() = Some(pace.clone());
    }
}

impl RequestBody {
    /// Takes an agent's body: waits for it when it will be held, `idle` at most. One that streams brings `least` bytes in
    /// each such time.
    pub(super) async fn take(
        incoming: Incoming,
        limit: Option<u64>,
        least: u64,
        ticker: &Ticker,
        idle: Ticks,
    ) -> Result<Self, Refusal> {
        if incoming.is_end_stream() {
            return Ok(Self::Held(None));
        }
        if incoming.size_hint().exact().is_some_and(|length| length <= HELD) {
            return Ok(Self::Held(Some(hold(incoming, ticker, idle).await?)));
        }
        let upload = Rc::new(Upload {
            sent: Cell::new(0),
            limit: limit.unwrap_or(u64::MAX),
            state: Cell::new(State::Running),
            least,
            counted: Cell::new(0),
            pace: RefCell::new(None),
            waiting: RefCell::default(),
        });
        Ok(Self::Streamed { incoming, upload, stint: Stint::default() })
    }

    /// The same once more, when all of it is here.
    pub(super) fn again(&self) -> Option<Self> {
        match self {
            Self::Held(bytes) => Some(Self::Held(bytes.clone())),
            Self::Streamed { .. } => None,
        }
    }

    /// Bytes, when all of them are here.
    pub(super) fn held(&self) -> Option<u64> {
        match self {
            Self::Held(bytes) => Some(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed { .. } => None,
        }
    }
}

async fn hold(mut incoming: Incoming, ticker: &Ticker, idle: Ticks) -> Result<Bytes, Refusal> {
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    // Made only when the body is not here yet, as it is when it came along with the head.
    let mut deadline: Option<Deadline> = None;
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut incoming).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => {
                let deadline = deadline.get_or_insert_with(|| {
                    let deadline = ticker.deadline();
                    deadline.arm(idle);
                    deadline
                });
                deadline.poll_passed(cx).map(|()| Err(Refusal::Timeout))
            }
        })
        .await?;
        match frame {
            None => break,
            Some(Err(_)) => return Err(Refusal::BadRequest("The request's body ended before its end.")),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { break };
                if first.is_empty() {
                    first = data;
                } else {
                    if more.is_empty() {
                        more.extend_from_slice(&first);
                    }
                    more.extend_from_slice(&data);
                }
            }
        }
        if incoming.is_end_stream() {
            break;
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let (incoming, upload, stint) = match self.get_mut() {
            Self::Held(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed { incoming, upload, stint } => (incoming, upload, stint),
        };
        if upload.state.get() == State::Broken {
            return Poll::Ready(Some(Err(UploadError::Broken)));
        }
        ready!(stint.poll_rest(cx));
        let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
            upload.state.set(State::Waiting);
            let mut waiting = upload.waiting.borrow_mut();
            if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waiting = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        let (state, frame) = match frame {
            None => (State::Done, None),
            Some(Err(_)) => (State::Broken, Some(Err(UploadError::Broken))),
            Some(Ok(frame)) => match frame.into_data() {
                Err(_trailers) => (State::Done, None),
                Ok(data) => {
                    let sent = upload.sent.get() + data.len() as u64;
                    upload.sent.set(sent);
                    stint.moved(data.len());
                    if sent > upload.limit {
                        (State::TooLarge, Some(Err(UploadError::TooLarge)))
                    } else {
                        let state = if incoming.is_end_stream() { State::Done } else { State::Running };
                        (state, Some(Ok(Frame::data(data))))
                    }
                }
            },
        };
        upload.state.set(state);
        if upload.has_moved()
            && let Some(pace) = upload.pace.borrow().as_ref()
        {
            pace.progress();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Held(bytes) => bytes.is_none(),
            Self::Streamed { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed { incoming, .. } => incoming.size_hint(),
        }
    }
}

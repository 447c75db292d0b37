//! One exchange with an upstream over a connection of its own: the request's bytes out, the answer's bytes in, and an eye on
//! the agent and on the clock meanwhile.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite as _;
use tokio_util::io::poll_read_buf;

use super::Stop;
use super::relay::Relay;
use crate::access::Grant;
use crate::net::{Buffers, Deadline, Gone, Plain, Stint};
use crate::proxy::Refusal;
use crate::proxy::pool::{Direct, Pool};
use crate::proxy::upstream::{Pace, Upstreams};

/// A body of which more than this is to come is moved with a large buffer.
const MUCH: u64 = 16 * 1024;

/// An exchange under way. Dropped without [`Exchange::give_back`], its connection is closed.
pub(super) struct Exchange<'a> {
    direct: Direct,
    pool: Rc<Pool>,
    pace: Pace,
    /// What of the answer has come and was not looked at yet.
    pub(super) input: Vec<u8>,
    buffers: &'a Buffers,
    /// What of the request could not be written before the answer began.
    unsent: Vec<u8>,
    /// All of it was written.
    sent: bool,
}

/// Why there is no answer.
enum Failure {
    /// Nothing of the request was written: it can go over another connection.
    Untouched,
    /// The connection was closed in order.
    Ended,
    /// It broke.
    Broken,
    /// Nothing came in time, or the grant went.
    Late,
    Gone,
}

impl<'a> Exchange<'a> {
    /// Sends a request, over a kept connection if there is one. Nothing is sent twice: another connection is taken only
    /// when not a byte went over the first.
    pub(super) async fn send(
        upstreams: &Upstreams,
        buffers: &'a Buffers,
        agent: &mut Plain<'_>,
        request: &[u8],
        grant: &Grant,
    ) -> Result<Self, Stop> {
        let pool = upstreams.pool(grant.target());
        while let Some(direct) = pool.direct() {
            let mut exchange = Self::begin(upstreams, buffers, Rc::clone(&pool), direct, grant);
            match exchange.first(agent, request).await {
                Ok(()) => return Ok(exchange),
                Err(Failure::Untouched) => {}
                Err(failure) => return Err(exchange.failed(&failure, grant)),
            }
        }
        let direct = agent.during(upstreams.dial_direct(grant.target())).await??;
        let mut exchange = Self::begin(upstreams, buffers, pool, direct, grant);
        match exchange.first(agent, request).await {
            Ok(()) => Ok(exchange),
            Err(failure) => Err(exchange.failed(&failure, grant)),
        }
    }

    fn begin(upstreams: &Upstreams, buffers: &'a Buffers, pool: Rc<Pool>, direct: Direct, grant: &Grant) -> Self {
        let pace = upstreams.pace(&direct.slot);
        direct.slot.begin(grant);
        Self { direct, pool, pace, input: buffers.take(), buffers, unsent: Vec::new(), sent: false }
    }

    /// Writes the request and waits for the first bytes of the answer: they may come before all of it is written.
    async fn first(&mut self, agent: &mut Plain<'_>, request: &[u8]) -> Result<(), Failure> {
        let mut written = 0;
        let first = poll_fn(|cx| {
            while !self.sent {
                match self.poll_write(cx, &request[written..]) {
                    Poll::Ready(Ok(length)) => written += length,
                    Poll::Ready(Err(())) if written == 0 => return Poll::Ready(Err(Failure::Untouched)),
                    // The answer may be there already, and say why.
                    Poll::Ready(Err(())) | Poll::Pending => break,
                }
            }
            self.poll_in_time(cx, agent)
        })
        .await;
        self.unsent.extend_from_slice(&request[written..]);
        first
    }

    /// Goes on writing what is unsent.
    fn write_on(&mut self, cx: &mut Context<'_>) {
        while !self.sent {
            let unsent = std::mem::take(&mut self.unsent);
            let wrote = self.poll_write(cx, &unsent);
            self.unsent = unsent;
            match wrote {
                Poll::Ready(Ok(length)) => drop(self.unsent.drain(..length)),
                // Then it is never all sent, and the connection not used again.
                Poll::Ready(Err(())) | Poll::Pending => return,
            }
        }
    }

    /// Writes some of `bytes`; with the last of them the request is sent.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, ()>> {
        if bytes.is_empty() {
            let flushed = Pin::new(&mut self.direct.io).poll_flush(cx);
            self.sent = flushed.is_ready();
            return flushed.map(|flushed| flushed.map(|()| 0).map_err(drop));
        }
        match Pin::new(&mut self.direct.io).poll_write(cx, bytes) {
            Poll::Ready(Ok(length)) if length > 0 => Poll::Ready(Ok(length)),
            Poll::Ready(_) => Poll::Ready(Err(())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads more of the answer while there is time: also where there is always more.
    fn poll_in_time(&mut self, cx: &mut Context<'_>, agent: &mut Plain<'_>) -> Poll<Result<(), Failure>> {
        if self.direct.slot.deadline.passed() { Poll::Ready(Err(Failure::Late)) } else { self.poll_read(cx, agent) }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, agent: &mut Plain<'_>) -> Poll<Result<(), Failure>> {
        match poll_read_buf(Pin::new(&mut self.direct.io), cx, &mut self.input) {
            Poll::Ready(Ok(length)) if length > 0 => return Poll::Ready(Ok(())),
            Poll::Ready(Ok(_)) => return Poll::Ready(Err(Failure::Ended)),
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Broken)),
            Poll::Pending => {}
        }
        if self.direct.slot.deadline.poll_passed(cx).is_ready() {
            return Poll::Ready(Err(Failure::Late));
        }
        agent.poll_gone(cx).map(|Gone| Err(Failure::Gone))
    }

    /// Waits for more of the answer's head.
    pub(super) async fn more(&mut self, agent: &mut Plain<'_>, grant: &Grant) -> Result<(), Stop> {
        self.input.reserve(1024);
        let more = poll_fn(|cx| {
            self.write_on(cx);
            self.poll_in_time(cx, agent)
        })
        .await;
        more.map_err(|failure| self.failed(&failure, grant))
    }

    /// Hands the body on, after what is in `out` already, but for its last piece: that is left in `out` and in the input. An
    /// error leaves the agent's answer cut short.
    pub(super) async fn relay(
        &mut self,
        agent: &mut Plain<'_>,
        relay: &mut Relay,
        out: &mut Vec<u8>,
    ) -> Result<(), Gone> {
        self.pace.progress();
        self.top_up(relay).await;
        let (mut ended, mut stint) = (false, Stint::default());
        loop {
            relay.take(&mut self.input, out, ended).map_err(|_broken| Gone)?;
            if relay.is_last() {
                return Ok(());
            }
            stint.moved(self.write(agent, relay, out).await?);
            poll_fn(|cx| stint.poll_rest(cx)).await;
            ended = !self.read_on(agent, relay).await?;
        }
    }

    /// Takes what else has come of a large body along with its beginning: one write wakes the agent once.
    async fn top_up(&mut self, relay: &Relay) {
        if relay.expects() <= MUCH || self.input.len() as u64 >= relay.expects() {
            return;
        }
        let mut large = self.buffers.take_large();
        large.extend_from_slice(&self.input);
        self.buffers.give(std::mem::replace(&mut self.input, large));
        poll_fn(|cx| {
            // Whatever becomes of it is seen when more is asked for.
            let _ = poll_read_buf(Pin::new(&mut self.direct.io), cx, &mut self.input);
            Poll::Ready(())
        })
        .await;
    }

    /// Writes what is in `out`, and what can go straight from the input; answers how much.
    async fn write(&mut self, agent: &mut Plain<'_>, relay: &mut Relay, out: &mut Vec<u8>) -> Result<usize, Gone> {
        let (copied, straight) = (out.len(), relay.straight());
        write(agent, out, &self.input[..straight], Some(&self.direct.slot.deadline)).await?;
        out.clear();
        relay.passed(straight);
        self.input.drain(..straight);
        Ok(copied + straight)
    }

    /// The last piece that can go straight, and whether nothing came behind it.
    pub(super) fn last(&mut self, relay: &mut Relay) -> (Vec<u8>, bool) {
        let straight = relay.straight();
        relay.passed(straight);
        let mut piece = std::mem::take(&mut self.input);
        let clean = piece.len() == straight;
        piece.truncate(straight);
        (piece, clean)
    }

    /// Waits for more of the body; `false`: the upstream's connection ended.
    async fn read_on(&mut self, agent: &mut Plain<'_>, relay: &Relay) -> Result<bool, Gone> {
        if self.input.is_empty() && relay.expects() > MUCH {
            let large = self.buffers.take_large();
            self.buffers.give(std::mem::replace(&mut self.input, large));
        }
        self.input.reserve(1024);
        // What is in a layer of TLS must not wait for what the upstream says next.
        let mut flushed = false;
        let more = poll_fn(|cx| {
            self.write_on(cx);
            if !flushed {
                match agent.poll_flush(cx) {
                    Poll::Ready(Ok(())) => flushed = true,
                    Poll::Ready(Err(Gone)) => return Poll::Ready(Err(Failure::Gone)),
                    Poll::Pending => {}
                }
            }
            self.poll_in_time(cx, agent)
        });
        match more.await {
            Ok(()) => {
                self.pace.progress();
                Ok(true)
            }
            Err(Failure::Ended) => Ok(false),
            Err(_) => Err(Gone),
        }
    }

    /// The answer came whole and nothing behind it: the connection may serve again.
    pub(super) fn give_back(self, upstreams: &Upstreams) {
        if self.sent {
            upstreams.keep_direct(&self.pool, self.direct);
        }
    }

    fn failed(&self, failure: &Failure, grant: &Grant) -> Stop {
        let slot = &self.direct.slot;
        let (refusal, error) = match failure {
            Failure::Gone => return Stop::Gone,
            _ if slot.is_withdrawn() => (Refusal::Withdrawn, "its grant went"),
            Failure::Late => (Refusal::UpstreamTimeout, "too late"),
            Failure::Untouched | Failure::Ended | Failure::Broken => {
                (Refusal::UpstreamUnreachable, "the connection ended")
            }
        };
        tracing::info!(target.slug = %grant.target().slug, error, "a target gave no answer");
        Stop::Refused(refusal)
    }
}

/// Writes all of `first` and of what is `then`, while the deadline has not passed.
pub(super) async fn write(
    agent: &mut Plain<'_>,
    mut first: &[u8],
    mut then: &[u8],
    deadline: Option<&Deadline>,
) -> Result<(), Gone> {
    poll_fn(|cx| {
        while !(first.is_empty() && then.is_empty()) {
            let Poll::Ready(written) = agent.poll_write(cx, first, then) else {
                return deadline.map_or(Poll::Pending, |deadline| deadline.poll_passed(cx).map(|()| Err(Gone)));
            };
            let written = written?;
            let of_first = written.min(first.len());
            first = &first[of_first..];
            then = &then[written - of_first..];
        }
        Poll::Ready(Ok(()))
    })
    .await
}

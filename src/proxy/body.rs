//! An answer's body on its way back. The receipt rides on it: when the last byte has been handed over it closes as whole,
//! when the body is dropped before that it closes as aborted, and the upstream's connection is cut.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::load::UnderWay;
use super::reflect::Mask;
use super::upstream::Lease;
use crate::audit::Receipt;
use crate::net::Stint;

/// The body of every answer on the agent listener.
pub struct ReplyBody(Kind, Option<UnderWay>);

enum Kind {
    Upstream(Streamed),
    Fixed(Fixed),
}

impl ReplyBody {
    pub(super) fn upstream(incoming: Incoming, lease: Lease, mask: Option<Box<Mask>>, receipt: Receipt) -> Self {
        Self(Kind::Upstream(Streamed { relay: Relay::new(incoming, lease), mask, receipt }), None)
    }

    /// Of Keyward's own making; without a receipt for answers that are nobody's business, such as health checks.
    pub(super) fn fixed(bytes: Bytes, receipt: Option<Receipt>) -> Self {
        Self(
            Kind::Fixed(Fixed {
                length: bytes.len() as u64,
                bytes: Some(bytes).filter(|bytes| !bytes.is_empty()),
                receipt,
            }),
            None,
        )
    }

    /// Counts its request as under way for as long as it lives.
    pub(super) fn keep(&mut self, under_way: UnderWay) {
        self.1 = Some(under_way);
    }
}

/// An upstream's body and the receipt that waits for its end.
struct Streamed {
    relay: Relay,
    /// Hides the request's secrets, where that is wanted.
    mask: Option<Box<Mask>>,
    receipt: Receipt,
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.relay.close();
        self.receipt.sent(self.relay.sent);
        self.receipt.received(self.relay.received);
        if self.relay.whole {
            self.receipt.finished();
        }
    }
}

/// An upstream's body and the connection that it comes over.
pub(super) struct Relay {
    incoming: Incoming,
    lease: Option<Lease>,
    received: u64,
    sent: u64,
    whole: bool,
    stint: Stint,
}

impl Relay {
    pub(super) fn new(incoming: Incoming, lease: Lease) -> Self {
        Self { incoming, lease: Some(lease), received: 0, sent: 0, whole: false, stint: Stint::default() }
    }

    /// The last byte has been handed over: the connection may serve again.
    fn end(&mut self) {
        self.whole = true;
        if let Some(lease) = self.lease.take() {
            self.sent = lease.sent();
            lease.give_back();
        }
    }

    /// Nothing more will be asked for.
    fn close(&mut self) {
        // Bodies without a byte are never polled.
        if !self.whole && self.received == 0 && self.lease.is_some() && self.incoming.is_end_stream() {
            self.end();
        }
        if let Some(lease) = self.lease.take() {
            self.sent = lease.sent();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}

/// Why an answer's body ends before its end. The agent sees an abort.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The upstream's connection or stream broke off.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// It took too long, or may not go on.
    #[error("the exchange was cut")]
    Late,
}

impl Body for Relay {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        ready!(this.stint.poll_rest(cx));
        let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) else {
            if let Some(lease) = &this.lease {
                ready!(lease.poll_late(cx));
                this.close();
                return Poll::Ready(Some(Err(ReplyError::Late)));
            }
            return Poll::Pending;
        };
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                this.received += data.len() as u64;
                this.stint.moved(data.len());
                if this.incoming.is_end_stream() {
                    this.end();
                } else if let Some(lease) = &this.lease {
                    lease.progress();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            // Trailers end here: there is no saying what they would mean to the other side.
            Some(Ok(Err(_))) | None => {
                this.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                this.close();
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.whole || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A short body that is all here.
struct Fixed {
    bytes: Option<Bytes>,
    length: u64,
    receipt: Option<Receipt>,
}

impl Drop for Fixed {
    fn drop(&mut self) {
        if let Some(receipt) = &mut self.receipt {
            receipt.received(self.length);
            receipt.finished();
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Upstream(Streamed { relay, mask: None, .. }) => Pin::new(relay).poll_frame(cx),
            Kind::Upstream(Streamed { relay, mask: Some(mask), .. }) => mask.poll(relay, cx),
            Kind::Fixed(fixed) => Poll::Ready(fixed.bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Upstream(streamed) => {
                streamed.relay.is_end_stream() && streamed.mask.as_ref().is_none_or(|mask| mask.is_empty())
            }
            Kind::Fixed(fixed) => fixed.bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Upstream(streamed) => streamed.relay.size_hint(),
            Kind::Fixed(fixed) => SizeHint::with_exact(fixed.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}

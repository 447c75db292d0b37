//! An answer's body on its way back. The receipt rides on it: when the last byte has been handed over it closes as whole,
//! when the body is dropped before that it closes as aborted, and the upstream's connection is cut.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::upstream::Lease;
use crate::audit::Receipt;

/// The body of every answer on the agent listener.
pub struct ReplyBody(Kind);

enum Kind {
    Upstream(Streamed),
    Fixed(Fixed),
}

impl ReplyBody {
    pub(super) fn upstream(incoming: Incoming, lease: Lease, receipt: Receipt) -> Self {
        Self(Kind::Upstream(Streamed { incoming, lease: Some(lease), receipt, bytes: 0, sent: 0, whole: false }))
    }

    /// Of Keyward's own making; without a receipt for answers that are nobody's business, such as health checks.
    pub(super) fn fixed(bytes: Bytes, receipt: Option<Receipt>) -> Self {
        Self(Kind::Fixed(Fixed {
            length: bytes.len() as u64,
            bytes: Some(bytes).filter(|bytes| !bytes.is_empty()),
            receipt,
        }))
    }
}

/// Streams an upstream's body.
struct Streamed {
    incoming: Incoming,
    lease: Option<Lease>,
    receipt: Receipt,
    bytes: u64,
    sent: u64,
    whole: bool,
}

impl Streamed {
    fn end(&mut self) {
        self.whole = true;
        if let Some(lease) = self.lease.take() {
            self.sent = lease.sent();
            lease.give_back();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                self.bytes += data.len() as u64;
                if self.incoming.is_end_stream() {
                    self.end();
                } else if let Some(lease) = &self.lease {
                    lease.progress();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            // Trailers end here: there is no saying what they would mean to the other side.
            Some(Ok(Err(_))) | None => {
                self.end();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.cut();
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn cut(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.sent = lease.sent();
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // Bodies without a byte are never polled.
        if !self.whole && self.bytes == 0 && self.incoming.is_end_stream() {
            self.end();
        }
        self.cut();
        self.receipt.sent(self.sent);
        self.receipt.received(self.bytes);
        if self.whole {
            self.receipt.finished();
        }
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
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Upstream(streamed) => streamed.poll(cx),
            Kind::Fixed(fixed) => Poll::Ready(fixed.bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Upstream(streamed) => streamed.whole || streamed.incoming.is_end_stream(),
            Kind::Fixed(fixed) => fixed.bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Upstream(streamed) => streamed.incoming.size_hint(),
            Kind::Fixed(fixed) => SizeHint::with_exact(fixed.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}

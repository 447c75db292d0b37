//! One connection, from its first byte to its last: TLS when the listener has it, then HTTP/2 or HTTP/1.1.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::exchange::{Exchanges, Line, Peer};
use super::plain::After;
use super::serve::{House, Place, Stop};
use super::socket::{Socket, Watch};
use super::words::too_late;

enum End {
    Done,
    Failed,
    Late,
    Cut,
}

/// Serves one connection. The place is taken here, synchronously, before the task first runs.
pub(super) fn connection<S, F, B>(tcp: TcpStream, peer: Peer, house: Rc<House>, service: S) -> impl Future<Output = ()>
where
    S: Fn(Request<Incoming>, Line) -> F + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let place = Place::take(house);
    async move {
        let house = &place.0;
        let watch = Watch::new(house.ticker.deadline(), house.spans);
        let exchanges = Exchanges { service, peer, watch: Rc::clone(&watch), house: Rc::clone(house) };
        let Some(handshakes) = &house.handshakes else {
            return either(Socket::new(tcp, Rc::clone(&watch), &house.turns), exchanges).await;
        };
        // In a box, and so are the other rarer ways: what is here counts for every idle connection in clear.
        let Some(tls) = Box::pin(handshakes.shake(tcp, &watch, house)).await else { return };
        let agreed = tls.get_ref().1.alpn_protocol().map(|protocol| protocol == b"h2");
        let socket = Socket::new(tls, Rc::clone(&watch), &house.turns);
        match agreed {
            Some(true) => Box::pin(http2(socket, exchanges)).await,
            Some(false) => Box::pin(http1(socket, exchanges)).await,
            None => Box::pin(either(socket, exchanges)).await,
        }
    }
}

/// Serves what the client begins with.
async fn either<T, S, F, B>(mut socket: Socket<T>, exchanges: Exchanges<S>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Fn(Request<Incoming>, Line) -> F + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (house, watch) = (&exchanges.house, &exchanges.watch);
    let begun = poll_fn(|cx| {
        if house.is_cut() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(preface) = socket.poll_preface(cx) {
            return Poll::Ready(preface.ok());
        }
        if house.stop.get() == Stop::Soft && socket.is_silent() {
            return Poll::Ready(None);
        }
        watch.deadline.poll_passed(cx).map(|()| {
            socket.tell(&too_late());
            None
        })
    })
    .await;
    match begun {
        // The peer has gone, or is silent and must go.
        _ if socket.is_silent() => {}
        Some(true) => Box::pin(http2(socket, exchanges)).await,
        Some(false) => http1(socket, exchanges).await,
        None => {}
    }
}

/// Serves HTTP/1.1: what is plain on the fast path, if there is one, and the rest by hyper.
async fn http1<T, S, F, B>(mut socket: Socket<T>, exchanges: Exchanges<S>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Fn(Request<Incoming>, Line) -> F,
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let house = &exchanges.house;
    if let Some(fast) = &house.fast {
        match fast.serve(socket.plain(house, exchanges.peer)).await {
            After::HandOver if socket.has_late_head() => return socket.tell(&too_late()),
            After::HandOver => {}
            After::Over => return socket.close(house).await,
            After::Cut => return,
        }
    }
    Box::pin(by_hyper(socket, exchanges)).await;
}

async fn by_hyper<T, S, F, B>(socket: Socket<T>, exchanges: Exchanges<S>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Fn(Request<Incoming>, Line) -> F,
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (house, watch) = (Rc::clone(&exchanges.house), Rc::clone(&exchanges.watch));
    let mut connection = house.http1.serve_connection(TokioIo::new(socket), exchanges);
    let mut told = false;
    let end = poll_fn(|cx| {
        if house.is_cut() {
            return Poll::Ready(End::Cut);
        }
        let mut polled = Pin::new(&mut connection).poll(cx);
        if polled.is_pending() && !told && house.stop.get() == Stop::Soft {
            told = true;
            // Not before what has come was read: hyper closes a connection at once that it has read nothing of.
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(cx);
        }
        if let Poll::Ready(ended) = polled {
            return Poll::Ready(if ended.is_ok() { End::Done } else { End::Failed });
        }
        watch.deadline.poll_passed(cx).map(|()| End::Late)
    })
    .await;
    let tunnel = watch.tunnel.take();
    match (end, tunnel) {
        (End::Late, _) if watch.may_be_told() => connection.into_parts().io.inner_mut().tell(&too_late()),
        (End::Done, Some(tunnel)) => {
            let parts = connection.into_parts();
            watch.handed_over();
            over(tunnel(Box::new(parts.io.into_inner()), parts.read_buf), &house, &watch).await;
        }
        _ => {}
    }
}

/// Waits for a tunnel's end, or the hard stop.
async fn over(mut tunnel: Pin<Box<dyn Future<Output = ()>>>, house: &House, watch: &Watch) {
    poll_fn(|cx| {
        // Never passes; it is how this task hears of the stop.
        let _ = watch.deadline.poll_passed(cx);
        if house.is_cut() { Poll::Ready(()) } else { tunnel.as_mut().poll(cx) }
    })
    .await;
}

/// Ends with GOAWAY, when stopping begins and when its time has passed; what is under way then gets a moment more.
async fn http2<T, S, F, B>(socket: Socket<T>, exchanges: Exchanges<S>)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Fn(Request<Incoming>, Line) -> F + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (house, watch) = (Rc::clone(&exchanges.house), Rc::clone(&exchanges.watch));
    watch.multiplexed();
    let mut connection = pin!(house.http2.serve_connection(TokioIo::new(socket), exchanges));
    let (mut told, mut closing) = (false, false);
    poll_fn(|cx| {
        if house.is_cut() {
            return Poll::Ready(());
        }
        let late = watch.deadline.poll_passed(cx).is_ready();
        if late && closing {
            return Poll::Ready(());
        }
        if !told && (late || house.stop.get() == Stop::Soft) {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        if late {
            closing = true;
            watch.closing();
            let _ = watch.deadline.poll_passed(cx);
        }
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}

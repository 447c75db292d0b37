//! The listener, and [`Line`]: a handle by which a handler can break the connection it was called on. That is why this
//! is our own accept loop and not `axum::serve`.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::{Sandbox, api, consent, control, oauth, recorder, tools};
use crate::shutdown::Shutdown;

/// After the soft stage began, what still runs gets this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// The connection a request came on.
#[derive(Clone, Default)]
pub(super) struct Line(CancellationToken);

impl Line {
    /// Ends the connection with a TCP reset. Never returns: the handler is dropped with the connection.
    pub(super) async fn reset(&self) -> Infallible {
        self.0.cancel();
        std::future::pending().await
    }

    /// Never answers. Ends when the caller hangs up or the sandbox stops.
    pub(super) async fn hang(&self) -> Infallible {
        std::future::pending().await
    }
}

/// Every route.
pub(super) fn router(sandbox: &Sandbox) -> Router {
    let upstream = Router::new()
        .nest("/v1.0", api::router(sandbox))
        .nest("/tools", tools::router())
        .layer(from_fn_with_state(sandbox.clone(), recorder::record));
    upstream
        .merge(oauth::router())
        .merge(consent::router())
        .nest("/control", control::router())
        .with_state(sandbox.clone())
}

/// Takes connections until the soft stage.
pub(super) async fn run(listener: TcpListener, router: Router, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.stopping() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                shutdown.spawn(serve(stream, router.clone(), shutdown.clone()));
            }
            // Out of file descriptors, most likely: trying again at once would only spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(stream: TcpStream, router: Router, shutdown: Shutdown) {
    let _ = stream.set_nodelay(true);
    let line = Line::default();
    let cut = line.0.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(line.clone());
        router.clone().call(request)
    });
    let mut connection =
        http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        _ = &mut connection => return,
        () = cut.cancelled() => {
            // Without lingering, the close is a reset and not an orderly end.
            if let Some(parts) = connection.into_parts() {
                let _ = parts.io.inner().set_zero_linger();
            }
            return;
        }
        () = shutdown.stopping() => {}
    }
    Pin::new(&mut connection).graceful_shutdown();
    tokio::select! {
        _ = &mut connection => {}
        () = shutdown.stopped() => {}
        () = tokio::time::sleep(PATIENCE) => {}
    }
}

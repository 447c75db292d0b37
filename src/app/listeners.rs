//! The listeners' threads: one per proxy worker, each with a runtime, a socket and upstream connections of its own; one
//! for the admin listener, whose handlers run on the main runtime (they use the store).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use axum::response::IntoResponse;
use http::StatusCode;
use rustls::ServerConfig;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tower::ServiceExt;
use url::Url;

use crate::admin::{self, AdminState};
use crate::config::Config;
use crate::dashboard;
use crate::net::{self, FastPath, Listener, ServeLimits};
use crate::proxy::{Gateway, Shared};
use crate::shutdown::Shutdown;

/// Tasks that run before the system is asked for what is new: large bodies, which are always ready for more, must not keep
/// small answers waiting.
const TASKS_IN_A_ROW: u32 = 8;
/// TLS handshakes at once, on each thread.
const HANDSHAKES: usize = 256;

/// One socket per worker on the same address; the kernel spreads connections over them.
pub(super) fn bind_workers(address: SocketAddr, workers: usize) -> anyhow::Result<Vec<Listener>> {
    let said = || format!("proxy.listen: can't listen on {address}");
    let first = Listener::bind(address, workers > 1).with_context(said)?;
    let bound = first.address()?;
    let mut listeners = vec![first];
    for _ in 1..workers {
        listeners.push(Listener::bind(bound, true).with_context(said)?);
    }
    Ok(listeners)
}

/// The configured URL, or the bound address, without a trailing slash.
pub(super) fn public_url(configured: Option<&Url>, bound: SocketAddr, tls: bool) -> String {
    match configured {
        Some(url) => url.as_str().trim_end_matches('/').to_owned(),
        None if tls => format!("https://{bound}"),
        None => format!("http://{bound}"),
    }
}

fn limits(config: &Config, connections: usize) -> ServeLimits {
    let proxy = &config.proxy;
    ServeLimits {
        connections,
        head: proxy.timeouts.head,
        keep_alive: Duration::from_secs(75),
        head_bytes: proxy.limits.head,
        headers: proxy.limits.headers,
        handshake: proxy.timeouts.handshake,
        handshakes: HANDSHAKES,
    }
}

fn spawn<F>(name: String, alive: mpsc::Sender<()>, serve: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<()>
where
    F: Future<Output = ()> + 'static,
{
    let (started, start) = std::sync::mpsc::channel();
    thread::Builder::new()
        .name(name)
        .spawn(move || {
            // The runtime and the future are made on their thread: they need not be `Send`.
            let runtime = Builder::new_current_thread()
                .enable_all()
                .event_interval(TASKS_IN_A_ROW)
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => {
                    let _ = started.send(Ok(()));
                    runtime.block_on(async move { serve().await });
                }
                Err(error) => drop(started.send(Err(error))),
            }
            drop(alive);
        })
        .context("starting a thread")?;
    start.recv().context("a thread ended at once")?.context("starting a runtime")
}

/// Starts the workers. `alive` is held by each until its last connection has ended.
pub(super) fn spawn_workers(
    listeners: Vec<Listener>,
    tls: Option<&Arc<ServerConfig>>,
    shared: &Arc<Shared>,
    config: &Config,
    alive: &mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let each = config.proxy.limits.connections.div_ceil(listeners.len());
    if let Some(listener) = listeners.first() {
        // One for an agent, one for its upstream, and some for everything else.
        listener.reserve_descriptors(config.proxy.limits.connections.saturating_mul(2).saturating_add(512));
    }
    for (number, listener) in listeners.into_iter().enumerate() {
        let (shared, limits, tls) = (Arc::clone(shared), limits(config, each), tls.cloned());
        spawn(format!("keyward-proxy-{number}"), alive.clone(), move || {
            let shutdown = shared.shutdown.clone();
            let gateway = Rc::new(Gateway::new(shared));
            let fast: Rc<dyn FastPath> = Rc::clone(&gateway) as _;
            net::serve(listener, limits, tls, shutdown, Some(fast), move |request, line| {
                let gateway = Rc::clone(&gateway);
                async move { Ok::<_, Infallible>(gateway.serve(request, line).await) }
            })
        })?;
    }
    Ok(())
}

/// Starts the admin listener.
pub(super) fn spawn_admin(
    listener: Listener,
    tls: Option<Arc<ServerConfig>>,
    state: AdminState,
    config: &Config,
    shutdown: &Shutdown,
    alive: mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let router = admin::router(state, dashboard::router());
    let (limits, shutdown) = (limits(config, 512), shutdown.clone());
    spawn("keyward-admin".to_owned(), alive, move || {
        let tasks = shutdown.clone();
        net::serve(listener, limits, tls, shutdown, None, move |mut request, line| {
            request.extensions_mut().insert(line.peer());
            let answer = tasks.spawn(router.clone().oneshot(request.map(Body::new)));
            async move {
                Ok::<_, Infallible>(match answer.await {
                    Ok(Ok(answer)) => answer,
                    // A panic in a handler; the catch-panic layer should have answered.
                    Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                })
            }
        })
    })
}

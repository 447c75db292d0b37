//! The assembly: configuration in, a running gateway out. Knows everything, decides nothing.
//!
//! Start and stop are lists, in the order in which things happen; reading them is reading what depends on what.

mod dev;
mod listeners;
mod loops;
mod opening;
pub mod upkeep;

pub use dev::{DevOptions, dev};
pub use opening::check;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::accounts::{self, Accounts};
use crate::admin::AdminParts;
use crate::audit::Audit;
use crate::clock::Clock;
use crate::config::Config;
use crate::ids::InstanceId;
use crate::net::{self, Guard, Identity, Listener};
use crate::oauth::OAuthClient;
use crate::proxy;
use crate::secret::Secret;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::telemetry::Metrics;

/// A running gateway.
pub struct App {
    proxy_address: SocketAddr,
    admin_address: SocketAddr,
    new_admin_token: Option<Secret<String>>,
    config: Config,
    ready: Arc<AtomicBool>,
    shutdown: Shutdown,
    store: Store,
    access: Arc<Access>,
    accounts: Arc<Accounts>,
    audit: Audit,
    audit_end: tokio_util::sync::CancellationToken,
    /// Both writers of the audit trail.
    audit_writers: JoinHandle<()>,
    /// Yields `None` when every listener thread has ended.
    listeners: mpsc::Receiver<()>,
}

impl App {
    /// Starts a gateway on the current (multi-thread) runtime. Nothing is bound before configuration, keys, store and
    /// catalog are known to be good.
    ///
    /// # Errors
    /// In words for the operator.
    pub async fn start(mut config: Config, clock: Clock) -> anyhow::Result<Self> {
        let shutdown = Shutdown::new();
        let catalog = Arc::new(opening::catalog(&config)?);
        let keyring = opening::keyring(&config)?;
        let store = Store::open(&config.store, clock.now()).await.context("opening the store")?.beside(clock.clone());
        store.now().await.context("asking the database for the time")?;
        let vault = Arc::new(opening::vault(keyring, &store).await?);
        let (token_hash, new_admin_token) = opening::admin_token(&config, &store).await?;
        let proxy_identity = opening::identity(config.proxy.tls.as_ref(), "proxy.tls")?;
        let admin_identity = opening::identity(config.admin.tls.as_ref(), "admin.tls")?;
        let authorities: Vec<_> = config.egress.ca.as_deref().into_iter().collect();
        let tls = net::ClientTls::new(&authorities, None).context("egress.ca")?;
        let guard = Arc::new(Guard::new(config.egress.allow.clone()));
        let metrics = Arc::new(Metrics::default());
        let (audit, writer, journal) = Audit::new(store.clone(), clock.clone(), Arc::clone(&metrics), &config.audit);
        let access = Access::open(
            store.clone(),
            Arc::clone(&vault),
            &catalog,
            clock.clone(),
            std::mem::take(&mut config.targets),
            config.proxy.limits.per_key,
            config.max_stale,
        )
        .await?;

        let workers = listeners::bind_workers(config.proxy.listen, config.proxy.workers)?;
        let proxy_address = workers[0].address()?;
        let admin_listener = Listener::bind(config.admin.listen, false)
            .with_context(|| format!("admin.listen: can't listen on {}", config.admin.listen))?;
        let admin_address = admin_listener.address()?;
        let proxy_url =
            listeners::public_url(config.proxy.public_url.as_ref(), proxy_address, proxy_identity.is_some());
        let admin_url =
            listeners::public_url(config.admin.public_url.as_ref(), admin_address, admin_identity.is_some());

        let ready = Arc::new(AtomicBool::new(false));
        let accounts = Accounts::new(accounts::Parts {
            store: store.clone(),
            vault,
            catalog: Arc::clone(&catalog),
            oauth: OAuthClient::new(
                net::Client::new(Arc::clone(&guard), Arc::clone(tls.http1())),
                config.refresh.timeout,
            ),
            audit: audit.clone(),
            access: Arc::clone(&access),
            metrics: Arc::clone(&metrics),
            clock: clock.clone(),
            instance: InstanceId::new(),
            shutdown: shutdown.clone(),
            spill: config.spill.clone(),
            config: config.refresh.clone(),
            public_url: admin_url.clone(),
        });
        let taken = accounts.take_spilled().await.context("taking back tokens that could not be stored")?;
        if taken > 0 {
            tracing::warn!(taken, "took back tokens that an earlier process could not store");
        }
        let gateway = Arc::new(proxy::Shared {
            access: Arc::clone(&access),
            accounts: Arc::clone(&accounts),
            audit: audit.clone(),
            store: store.clone(),
            metrics: Arc::clone(&metrics),
            guard,
            tls,
            clock: clock.clone(),
            limits: config.proxy.limits.clone(),
            timeouts: config.proxy.timeouts.clone(),
            workers: config.proxy.workers,
            public_url: proxy_url.clone(),
            admin_url: admin_url.clone(),
            ready: Arc::clone(&ready),
            shutdown: shutdown.clone(),
        });
        let admin = Arc::new(AdminParts {
            store: store.clone(),
            access: Arc::clone(&access),
            accounts: Arc::clone(&accounts),
            catalog,
            audit: audit.clone(),
            metrics,
            clock: clock.clone(),
            public_url: admin_url,
            proxy_url,
            token_hash,
            sign_ins: Default::default(),
            ready: Arc::clone(&ready),
        });

        let audit_end = tokio_util::sync::CancellationToken::new();
        let ends = (audit_end.clone().cancelled_owned(), audit_end.clone().cancelled_owned());
        let audit_writers = tokio::spawn(async move {
            tokio::join!(journal.run(ends.0), writer.run(ends.1));
        });
        let (alive, listeners) = mpsc::channel(1);
        let (proxy_tls, admin_tls) = (server_tls(proxy_identity.as_ref())?, server_tls(admin_identity.as_ref())?);
        listeners::spawn_workers(workers, proxy_tls.as_ref(), &gateway, &config, &alive)?;
        listeners::spawn_admin(admin_listener, admin_tls, admin, &config, &shutdown, alive)?;
        for identity in [proxy_identity, admin_identity].into_iter().flatten() {
            shutdown.spawn(identity.run(shutdown.clone()));
        }
        loops::start(&shutdown, &access, &accounts, &store, &clock, &config);
        ready.store(true, Ordering::Release);
        tracing::info!(proxy = %proxy_address, admin = %admin_address, "keyward is ready on {proxy_address} for agents and {admin_address} for people");
        Ok(Self {
            proxy_address,
            admin_address,
            new_admin_token,
            config,
            ready,
            shutdown,
            store,
            access,
            accounts,
            audit,
            audit_end,
            audit_writers,
            listeners,
        })
    }

    /// Where agents connect.
    #[must_use]
    pub fn proxy_address(&self) -> SocketAddr {
        self.proxy_address
    }

    /// Where people connect.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The admin token, when this start made it: to be shown once.
    #[must_use]
    pub fn new_admin_token(&self) -> Option<&Secret<String>> {
        self.new_admin_token.as_ref()
    }

    /// The accounts service.
    #[must_use]
    pub fn accounts(&self) -> &Arc<Accounts> {
        &self.accounts
    }

    /// The access service.
    #[must_use]
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The audit service.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Cuts what still runs when [`App::stop`] waits for it.
    #[must_use]
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Stops: not ready, a pause for load balancers, nothing new, running requests finish until the deadline, running
    /// refreshes get their last seconds, the audit trail is written out, the store is closed.
    pub async fn stop(mut self) {
        self.ready.store(false, Ordering::Release);
        let stopping = &self.config.shutdown;
        if !stopping.pause.is_zero() && !self.shutdown.is_stopping() {
            tokio::select! {
                () = tokio::time::sleep(stopping.pause) => {}
                () = self.shutdown.stopped() => {}
            }
        }
        self.shutdown.stop();
        tokio::select! {
            _ = self.listeners.recv() => {}
            () = self.shutdown.stopped() => {}
            () = tokio::time::sleep(stopping.deadline) => {
                tracing::warn!("the deadline has passed; what still runs is cut");
            }
        }
        self.shutdown.stop_now();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.listeners.recv()).await;
        let last_seconds = self.config.refresh.timeout + Duration::from_secs(5);
        if tokio::time::timeout(last_seconds, self.shutdown.drained()).await.is_err() {
            tracing::error!("tasks did not end in time");
        }
        self.audit_end.cancel();
        if tokio::time::timeout(Duration::from_secs(5), &mut self.audit_writers).await.is_err() {
            tracing::error!("audit records could not be written before the end");
        }
        self.store.close().await;
        tracing::info!("stopped");
    }
}

fn server_tls(identity: Option<&Arc<Identity>>) -> anyhow::Result<Option<Arc<rustls::ServerConfig>>> {
    Ok(identity.map(Identity::server_config).transpose()?)
}

/// Runs a gateway until it is told to stop.
///
/// # Errors
/// What kept it from starting.
pub fn serve(config: Config) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let Some(app) = signals.unless_told(App::start(config, Clock::system())).await? else { return Ok(()) };
        if let Some(token) = app.new_admin_token() {
            let scheme = if app.config.admin.tls.is_some() { "https" } else { "http" };
            opening::say(&format!(
                "\nadmin token  {}\n\nIt is shown this once. Sign in with it at {scheme}://{}/ or set KEYWARD_ADMIN_TOKEN to one of your own.\n",
                token.expose(),
                app.admin_address()
            ));
        }
        run_until_signal(app, signals).await
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("keyward-main")
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// SIGTERM and SIGINT, listened to before anything starts: whoever sees that Keyward is ready may stop it.
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let int = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        Ok(Self { term, int })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// What the work brings; `None`, and the work is left, when a signal comes first.
    async fn unless_told<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Option<T>> {
        tokio::select! {
            biased;
            done = work => done.map(Some),
            () = self.next() => Ok(None),
        }
    }
}

/// The first SIGTERM or SIGINT drains, the second ends.
async fn run_until_signal(app: App, mut signals: Signals) -> anyhow::Result<()> {
    signals.next().await;
    tracing::info!("stopping; a second signal ends at once");
    let shutdown = app.shutdown().clone();
    let mut stopped = std::pin::pin!(app.stop());
    tokio::select! {
        () = &mut stopped => return Ok(()),
        () = signals.next() => {}
    }
    shutdown.stop_now();
    stopped.await;
    Ok(())
}

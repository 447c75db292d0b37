//! Stopping in two stages, and the one place where tasks are started.
//!
//! *Soft*: take nothing new, finish what runs. *Hard*: the deadline has passed, let go. Every task is in one tracker,
//! so that stopping can wait for all of them. Tasks run on the main runtime whichever thread asks for them: a proxy
//! worker's own little runtime must never own a refresh or a database connection.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handle on the process's end; clones are the same end.
#[derive(Clone, Debug)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
    tasks: TaskTracker,
    runtime: Handle,
}

impl Shutdown {
    /// Tied to the runtime that this is called on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new() -> Self {
        Self {
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        }
    }

    /// Starts a task that stopping waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn_on(task, &self.runtime)
    }

    /// Resolves when nothing new should be taken.
    pub async fn stopping(&self) {
        self.soft.cancelled().await;
    }

    /// Resolves when the deadline has passed.
    pub async fn stopped(&self) {
        self.hard.cancelled().await;
    }

    /// Whether the soft stage has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Begins the soft stage.
    pub fn stop(&self) {
        self.soft.cancel();
    }

    /// Begins the hard stage (and the soft one, if it had not begun).
    pub fn stop_now(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Waits until every task has ended. New tasks may still be started while waiting.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

//! Calls that may change something are on record before they leave. Everybody who waits shares one commit, and with it
//! one sync of the disk: while a group is being written, the next one gathers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::store::{AuditRow, Store};
use crate::telemetry::Metrics;

use super::{AuditUnavailable, PATIENCE};

/// Intents that may wait; more than that and agents wait for a place.
const QUEUE: usize = 4_096;
/// Intents of one transaction.
const GROUP: usize = 1_000;

struct Intent {
    row: AuditRow,
    /// Closed when nobody waits any more.
    stored: Stored,
}

/// Where intents are handed in.
#[derive(Clone)]
pub(super) struct Intents(mpsc::Sender<Intent>);

/// The half that writes; to be run once.
pub struct Journal {
    queue: mpsc::Receiver<Intent>,
    store: Store,
    metrics: Arc<Metrics>,
}

impl Intents {
    pub(super) fn new(store: Store, metrics: Arc<Metrics>) -> (Self, Journal) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (Self(sender), Journal { queue, store, metrics })
    }

    /// Returns when the row is stored for good.
    pub(super) async fn commit(&self, row: AuditRow) -> Result<(), AuditUnavailable> {
        let (stored, wait) = oneshot::channel();
        let committed = async {
            self.0.send(Intent { row, stored }).await.map_err(|_| AuditUnavailable)?;
            wait.await.map_err(|_| AuditUnavailable)
        };
        timeout(PATIENCE, committed).await.unwrap_or(Err(AuditUnavailable))
    }
}

impl Journal {
    /// Writes until every [`super::Audit`] is gone, or until `end` resolves and what waited by then is written.
    pub async fn run(mut self, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        let mut group = Vec::with_capacity(GROUP);
        loop {
            let got = tokio::select! {
                got = self.queue.recv_many(&mut group, GROUP) => got,
                () = &mut end, if !self.queue.is_closed() => {
                    self.queue.close();
                    continue;
                }
            };
            if got == 0 {
                return;
            }
            self.write(&mut group).await;
        }
    }

    /// Tries until the group is stored, or nobody waits for it any more: a call that was refused needs no intent.
    async fn write(&mut self, group: &mut Vec<Intent>) {
        let mut pause = Duration::from_millis(50);
        let (mut rows, mut waiting) = still_wanted(group.drain(..).map(|intent| (intent.row, intent.stored)));
        while !rows.is_empty() {
            match self.store.append_intents(&rows).await {
                Ok(()) => break,
                Err(cause) => {
                    tracing::error!(calls = rows.len(), %cause, "calls can't be put on record; they wait");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                    (rows, waiting) = still_wanted(rows.into_iter().zip(waiting));
                }
            }
        }
        self.metrics.audit_intents.inc_by(rows.len() as u64);
        for stored in waiting {
            let _ = stored.send(());
        }
    }
}

type Stored = oneshot::Sender<()>;

fn still_wanted(intents: impl Iterator<Item = (AuditRow, Stored)>) -> (Vec<AuditRow>, Vec<Stored>) {
    intents.filter(|(_, stored)| !stored.is_closed()).unzip()
}

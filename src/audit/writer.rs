//! From receipts to rows: a bounded queue, one writer, batches. When the store can't take rows, they wait here and are
//! tried again; the queue fills, agents slow down, and at last they are refused. Nothing is lost silently.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use crate::clock::{Clock, Timestamp};
use crate::config::{self, OnFull};
use crate::ids::KeyId;
use crate::store::{AuditRow, Store};
use crate::telemetry::Metrics;

use super::intents::{Intents, Journal};
use super::receipt::Entry;
use super::{AuditUnavailable, PATIENCE, Receipt, Record};

/// Records that may wait: about 8 MiB of them.
const QUEUE: usize = 16_384;
/// Records of one transaction.
const BATCH: usize = 4_000;
/// How long the first record of a batch waits for company, when nobody wants to read it: a transaction costs a sync of the
/// disk, whatever is in it.
const COMPANY: Duration = Duration::from_millis(200);
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) enum Message {
    /// A request's receipt closed.
    Request(Box<Entry>),
    /// A record that belongs to no change.
    Note(Box<AuditRow>),
    /// Somebody wants to read what was written up to here.
    Flush(oneshot::Sender<()>),
}

/// The audit service; clones are the same.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    queue: mpsc::Sender<Message>,
    /// Told when a batch should not wait for company.
    hurry: Arc<Notify>,
    intents: Intents,
    /// Records lost since the last gap was recorded.
    lost: Arc<AtomicU64>,
    clock: Clock,
    metrics: Arc<Metrics>,
    on_full: OnFull,
}

/// The half that writes; to be run once.
pub struct Writer {
    queue: mpsc::Receiver<Message>,
    hurry: Arc<Notify>,
    store: Store,
    metrics: Arc<Metrics>,
    lost: Arc<AtomicU64>,
    clock: Clock,
    /// When each key's last use was noted, so that a busy key is written once a minute.
    noted: HashMap<KeyId, Timestamp>,
}

impl Audit {
    /// The service and what writes for it.
    #[must_use]
    pub fn new(store: Store, clock: Clock, metrics: Arc<Metrics>, config: &config::Audit) -> (Self, Writer, Journal) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (intents, journal) = Intents::new(store.clone(), Arc::clone(&metrics));
        let lost = Arc::new(AtomicU64::new(0));
        let hurry = Arc::new(Notify::new());
        let inner = Inner {
            queue: sender,
            hurry: Arc::clone(&hurry),
            intents,
            lost: Arc::clone(&lost),
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
            on_full: config.on_full,
        };
        let writer = Writer { queue: receiver, hurry, store, metrics, lost, clock, noted: HashMap::new() };
        (Self(Arc::new(inner)), writer, journal)
    }

    pub(super) fn intents(&self) -> &Intents {
        &self.0.intents
    }

    /// A record is lost: counted, and said in the trail itself with the next batch.
    fn lose(&self) {
        self.0.lost.fetch_add(1, Ordering::Relaxed);
        self.0.metrics.audit_dropped.inc();
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Opens a receipt: starts the clock and reserves a place in the queue, so that closing it can never lose it. Waits
    /// while the queue is full (on purpose: a full queue slows agents), 5 s at most.
    ///
    /// # Errors
    /// [`AuditUnavailable`], when `audit.on_full` is `refuse`; with `drop` the record of a call that only reads is counted
    /// as lost instead.
    pub async fn open(&self, method: &Method) -> Result<Receipt, AuditUnavailable> {
        let at = self.0.clock.now();
        let place = match self.0.queue.clone().try_reserve_owned() {
            Ok(place) => Some(place),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(AuditUnavailable),
            Err(mpsc::error::TrySendError::Full(queue)) => match self.0.on_full {
                OnFull::Drop if method.is_safe() => {
                    self.lose();
                    None
                }
                OnFull::Drop | OnFull::Refuse => match timeout(PATIENCE, queue.reserve_owned()).await {
                    Ok(Ok(place)) => Some(place),
                    _ => return Err(AuditUnavailable),
                },
            },
        };
        Ok(Receipt::new(self.clone(), place, at))
    }

    /// Appends a record that belongs to no change, such as a sign-in that failed. Lost (and counted) when the queue is
    /// full: nobody waits for it.
    pub fn note(&self, row: AuditRow) {
        if self.0.queue.try_send(Message::Note(Box::new(row))).is_err() {
            self.lose();
        }
    }

    /// Waits until everything that was closed before this call can be read (1 s at most, so that reading the trail never
    /// hangs on a database that can't be written).
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        let asked = async {
            if self.0.queue.send(Message::Flush(done)).await.is_ok() {
                self.0.hurry.notify_one();
                let _ = wait.await;
            }
        };
        let _ = timeout(Duration::from_secs(1), asked).await;
    }
}

impl Writer {
    /// Writes until every [`Audit`] is gone, or until `end` resolves and what was in the queue by then is written.
    pub async fn run(mut self, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        let mut batch = Vec::with_capacity(BATCH);
        let mut ending = false;
        loop {
            let got = if ending {
                self.queue.recv_many(&mut batch, BATCH).await
            } else {
                tokio::select! {
                    got = self.queue.recv_many(&mut batch, BATCH) => got,
                    () = &mut end => {
                        // Places that are reserved may still be used; new ones are refused from here on.
                        self.queue.close();
                        ending = true;
                        continue;
                    }
                }
            };
            if got == 0 {
                return;
            }
            let hurry = ending || got == BATCH || batch.iter().any(|message| matches!(message, Message::Flush(_)));
            if !hurry {
                tokio::select! {
                    () = tokio::time::sleep(COMPANY) => {}
                    () = self.hurry.notified() => {}
                    () = &mut end => {
                        self.queue.close();
                        ending = true;
                    }
                }
                while batch.len() < BATCH
                    && let Ok(message) = self.queue.try_recv()
                {
                    batch.push(message);
                }
            }
            self.write(&mut batch).await;
        }
    }

    /// Notes when the keys of these requests were last used, to the minute. Best effort: the records say it exactly.
    async fn note_use(&mut self, rows: &[AuditRow]) {
        let mut used: HashMap<KeyId, Timestamp> = HashMap::new();
        for row in rows.iter().filter(|row| row.request.is_some()) {
            if let Some(key) = row.key
                && self.noted.get(&key).is_none_or(|noted| row.at.since(*noted) >= MINUTE)
            {
                used.insert(key, row.at);
            }
        }
        let used: Vec<_> = used.into_iter().collect();
        if used.is_empty() {
            return;
        }
        match self.store.touch_keys(&used).await {
            Ok(()) => self.noted.extend(used),
            Err(cause) => tracing::warn!(%cause, "the last use of keys can't be noted"),
        }
    }

    async fn write(&mut self, batch: &mut Vec<Message>) {
        let mut rows = Vec::with_capacity(batch.len());
        let mut waiting = Vec::new();
        for message in batch.drain(..) {
            match message {
                Message::Request(entry) => rows.push(entry.into_row()),
                Message::Note(row) => rows.push(*row),
                Message::Flush(done) => waiting.push(done),
            }
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::error!(lost, "audit records were lost, because too many waited to be written");
            rows.push(Record::gap(self.clock.now(), lost).into_row());
        }
        let mut pause = Duration::from_millis(100);
        while !rows.is_empty() {
            match self.store.append_audit(&rows).await {
                Ok(()) => break,
                Err(cause) => {
                    tracing::error!(rows = rows.len(), %cause, "audit records can't be written; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
        self.metrics.audit_records.inc_by(rows.len() as u64);
        self.note_use(&rows).await;
        for done in waiting {
            let _ = done.send(());
        }
    }
}

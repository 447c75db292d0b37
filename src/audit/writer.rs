//! From receipts to rows: a bounded queue, one writer, batches.

use crate::store::AuditRow;

use super::{AuditUnavailable, Receipt};

/// The audit service; clones are the same.
#[derive(Clone)]
pub struct Audit {}

impl Audit {
    /// Opens a receipt: starts the clock and reserves a place in the queue, so that closing it can never lose it. Waits
    /// while the queue is full (on purpose: a full queue slows agents), 5 s at most.
    ///
    /// # Errors
    /// [`AuditUnavailable`].
    pub async fn open(&self) -> Result<Receipt, AuditUnavailable> {
        todo!()
    }

    /// Appends a record that belongs to no change, such as a sign-in that failed. Best effort.
    pub fn note(&self, _row: AuditRow) {
        todo!()
    }
}

//! The audit trail: one record per request and per act. Requests are written off the hot path in batches; those that may
//! change something are on record before they leave, too. Acts are written in the transaction of their change (see the
//! store's methods that take a record).

mod intents;
mod receipt;
mod record;
mod writer;

pub use intents::Journal;
pub use receipt::{AuditUnavailable, METHOD_BYTES, Receipt};
pub use record::{Actor, Record};
pub use writer::{Audit, Writer};

use std::time::Duration;

/// How long a request waits for its record, a place in the queue or a stored intent, before it is refused.
const PATIENCE: Duration = Duration::from_secs(5);

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

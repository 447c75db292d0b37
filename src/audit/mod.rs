//! The audit trail: one record per request and per act. Requests are written off the hot path in batches; acts are
//! written in the transaction of their change (see the store's methods that take a record).

mod receipt;
mod record;
mod writer;

pub use receipt::{AuditUnavailable, METHOD_BYTES, Receipt};
pub use record::{Actor, Record};
pub use writer::{Audit, Writer};

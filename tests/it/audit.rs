//! The audit trail: one record per request and per act.

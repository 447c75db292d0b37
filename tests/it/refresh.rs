//! Token life: margin, single flight, backoff, recovery.

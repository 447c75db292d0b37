//! Disconnecting, validating, reconnecting.

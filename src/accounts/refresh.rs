//! The one place that spends a refresh token.

/// Refreshes under way, by account.
#[derive(Default)]
pub(super) struct Flights {}

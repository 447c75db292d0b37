//! Stopping with requests in flight.

//! Every metric.

/// Every metric.
#[derive(Default)]
pub struct Metrics {}

//! Every metric of the process in one struct, names and help together.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// One label with a value from a fixed list.
type Label = [(&'static str, &'static str); 1];

/// From half a millisecond (Keyward alone) to minutes (streams).
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0];

/// How an agent's request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The upstream answered 2xx, or 101 and the connection was taken over.
    Success,
    /// The upstream answered 3xx.
    Redirect,
    /// The upstream answered 4xx.
    ClientError,
    /// The upstream answered 5xx.
    ServerError,
    /// Keyward answered itself, with a `Keyward-Error`.
    Refused,
    /// One side went away before the end.
    Aborted,
}

/// How a token refresh ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshOutcome {
    /// A new token is stored.
    Ok,
    /// Passing trouble.
    Transient,
    /// The provider refused: the account is disconnected.
    Rejected,
    /// The operator's client settings are wrong.
    Misconfigured,
}

/// Accounts by status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccountCounts {
    /// `connected`.
    pub connected: u64,
    /// `degraded`.
    pub degraded: u64,
    /// `disconnected`.
    pub disconnected: u64,
}

/// The metrics. Counting touches one atomic: the handles are made once, no label is looked up per request.
pub struct Metrics {
    registry: Registry,
    requests: [Counter; 6],
    request_seconds: Histogram,
    refreshes: [Counter; 4],
    accounts: [Gauge; 3],
    /// Requests that were refused because too many were under way; they have no record.
    pub requests_shed: Counter,
    /// Audit records stored.
    pub audit_records: Counter,
    /// Calls put on record before they left.
    pub audit_intents: Counter,
    /// Audit records lost because the queue was full and `[audit] on_full` is `drop`.
    pub audit_dropped: Counter,
}

impl RequestOutcome {
    /// The class of an upstream's status.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            ..300 => Self::Success,
            300..400 => Self::Redirect,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

impl Metrics {
    /// All of them at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("keyward");
        let requests = counters(["2xx", "3xx", "4xx", "5xx", "refused", "aborted"]);
        registry.register("requests", "Requests of agents, by how they ended", requests.0);
        let request_seconds = Histogram::new(SECONDS);
        registry.register(
            "request_seconds",
            "Time from a request's head to the last byte of its answer",
            request_seconds.clone(),
        );
        let requests_shed = Counter::default();
        registry.register(
            "requests_shed",
            "Requests refused unrecorded because too many were under way",
            requests_shed.clone(),
        );
        let refreshes = counters(["ok", "transient", "rejected", "misconfigured"]);
        registry.register("refreshes", "Token refreshes, by how they ended", refreshes.0);
        let audit_records = Counter::default();
        registry.register("audit_records", "Audit records stored", audit_records.clone());
        let audit_intents = Counter::default();
        registry.register("audit_intents", "Calls put on record before they left", audit_intents.clone());
        let audit_dropped = Counter::default();
        registry.register("audit_dropped", "Audit records lost because the queue was full", audit_dropped.clone());
        let by_status = Family::<Label, Gauge>::default();
        let accounts = ["connected", "degraded", "disconnected"]
            .map(|status| by_status.get_or_create_owned(&[("status", status)]));
        registry.register("accounts", "Connected accounts, by status", by_status);
        Self {
            registry,
            requests: requests.1,
            request_seconds,
            refreshes: refreshes.1,
            accounts,
            requests_shed,
            audit_records,
            audit_intents,
            audit_dropped,
        }
    }

    /// Counts one request and the seconds it took.
    pub fn observe_request(&self, outcome: RequestOutcome, seconds: f64) {
        self.requests[outcome as usize].inc();
        self.request_seconds.observe(seconds);
    }

    /// Counts one refresh.
    pub fn observe_refresh(&self, outcome: RefreshOutcome) {
        self.refreshes[outcome as usize].inc();
    }

    /// Says how many accounts there are.
    pub fn set_accounts(&self, counts: AccountCounts) {
        let counts = [counts.connected, counts.degraded, counts.disconnected];
        for (gauge, count) in self.accounts.iter().zip(counts) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// The `Content-Type` of [`Metrics::encode`].
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// All of them as text, for `GET /metrics`.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A family of counters and one handle for each outcome, in the order of the enum.
fn counters<const N: usize>(outcomes: [&'static str; N]) -> (Family<Label, Counter>, [Counter; N]) {
    let family = Family::<Label, Counter>::default();
    let handles = outcomes.map(|outcome| family.get_or_create_owned(&[("outcome", outcome)]));
    (family, handles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::new();
        metrics.observe_request(RequestOutcome::of_status(204), 0.002);
        metrics.observe_request(RequestOutcome::of_status(404), 0.002);
        metrics.observe_request(RequestOutcome::Aborted, 400.0);
        metrics.observe_refresh(RefreshOutcome::Misconfigured);
        metrics.set_accounts(AccountCounts { connected: 3, degraded: 1, disconnected: 0 });
        metrics.audit_records.inc_by(7);
        let text = metrics.encode();
        for line in [
            "keyward_requests_total{outcome=\"2xx\"} 1",
            "keyward_requests_total{outcome=\"3xx\"} 0",
            "keyward_requests_total{outcome=\"4xx\"} 1",
            "keyward_requests_total{outcome=\"refused\"} 0",
            "keyward_requests_total{outcome=\"aborted\"} 1",
            "keyward_request_seconds_count 3",
            "keyward_request_seconds_bucket{le=\"0.0025\"} 2",
            "keyward_refreshes_total{outcome=\"misconfigured\"} 1",
            "keyward_refreshes_total{outcome=\"ok\"} 0",
            "keyward_audit_records_total 7",
            "keyward_audit_dropped_total 0",
            "keyward_accounts{status=\"connected\"} 3",
            "keyward_accounts{status=\"degraded\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn taking_over_a_connection_is_a_success() {
        assert_eq!(RequestOutcome::of_status(101), RequestOutcome::Success);
        assert_eq!(RequestOutcome::of_status(302), RequestOutcome::Redirect);
        assert_eq!(RequestOutcome::of_status(500), RequestOutcome::ServerError);
    }
}

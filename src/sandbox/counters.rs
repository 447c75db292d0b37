//! What the sandbox counted: the numbers that tests assert on, and `/control/counters` shows.

use std::collections::BTreeMap;

use serde::Serialize;

/// A snapshot of the counters since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    /// Calls of the token endpoint that arrived whole, counted before any fault plays.
    pub token_arrived: u64,
    /// Calls of the token endpoint: grant type → outcome → how many. An outcome is `ok`, an OAuth error code as the
    /// server decided it, or `fault` when a fault answered in its place.
    pub token_calls: BTreeMap<String, BTreeMap<String, u64>>,
    /// One entry per consent: the tokens that descend from it.
    pub families: BTreeMap<u64, FamilyCount>,
    /// Dead refresh tokens that were shown again, in any rotation mode.
    pub reuse_detected: u64,
    /// Authorization codes that were shown again.
    pub code_reuse_detected: u64,
    /// Calls of the revocation endpoint by an authenticated client.
    pub revoke_calls: u64,
    /// Tokens that such calls ended.
    pub revocations: u64,
    /// Requests to `/v1.0`, identity calls included.
    pub api_calls: u64,
    /// Requests to `/v1.0/me`.
    pub identity_calls: u64,
    /// Requests to `/v1.0` without a bearer token.
    pub api_without_token: u64,
    /// Requests to `/v1.0` with a token that is unknown, expired or revoked.
    pub api_bad_token: u64,
    /// Requests to `/tools`.
    pub tool_calls: u64,
    /// Faults that played, by name.
    pub faults: BTreeMap<String, u64>,
}

/// What happened to the tokens of one consent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FamilyCount {
    /// Who agreed.
    pub person: String,
    /// Refreshes that were answered with tokens.
    pub refreshes: u64,
    /// Dead refresh tokens of this family that were shown again.
    pub reuse_detected: u64,
    /// Whether the whole family is dead.
    pub revoked: bool,
}

impl Counters {
    /// How many token calls of this grant type had this outcome.
    #[must_use]
    pub fn token(&self, grant_type: &str, outcome: &str) -> u64 {
        self.token_calls.get(grant_type).and_then(|outcomes| outcomes.get(outcome)).copied().unwrap_or(0)
    }

    /// How many refreshes had this outcome (`ok`, `invalid_grant`, `fault`…).
    #[must_use]
    pub fn refreshes(&self, outcome: &str) -> u64 {
        self.token("refresh_token", outcome)
    }

    /// How many refreshes were asked for, whatever came of them.
    #[must_use]
    pub fn refresh_calls(&self) -> u64 {
        self.token_calls.get("refresh_token").map_or(0, |outcomes| outcomes.values().sum())
    }

    pub(super) fn token_outcome(&mut self, grant_type: &str, outcome: &str) {
        *self.token_calls.entry(grant_type.to_owned()).or_default().entry(outcome.to_owned()).or_default() += 1;
    }

    pub(super) fn family(&mut self, family: u64, person: &str) {
        self.families.insert(family, FamilyCount { person: person.to_owned(), ..FamilyCount::default() });
    }

    pub(super) fn refreshed(&mut self, family: u64) {
        self.families.entry(family).or_default().refreshes += 1;
    }

    pub(super) fn reused(&mut self, family: u64) {
        self.reuse_detected += 1;
        self.families.entry(family).or_default().reuse_detected += 1;
    }

    pub(super) fn family_revoked(&mut self, family: u64) {
        self.families.entry(family).or_default().revoked = true;
    }

    pub(super) fn fault(&mut self, name: &str) {
        *self.faults.entry(name.to_owned()).or_default() += 1;
    }
}

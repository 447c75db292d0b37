//! Trouble on demand. Row numbers are those of the table "every provider answer, and what to do" in the list of
//! invariants; what is refused, unresolvable or fails in TLS (rows 20, 22) a test gets from a closed port instead.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::lock;
use super::tokens::Bend;

/// Where a fault plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// `POST /oauth/token`.
    Token,
    /// `POST /oauth/revoke` (row 40).
    Revoke,
    /// `GET /v1.0/me`.
    Identity,
    /// Everything else under `/v1.0`.
    Api,
}

/// One way to go wrong. Those before [`Fault::Slow`] answer *instead of* the work: nothing is rotated and no code
/// is spent. Those after it do the work first, then spoil the answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A status with a short text, and `Retry-After` as given (rows 18, 19; on [`Place::Api`] 401 is row 31, 403 row 32).
    Status {
        /// 429, 408, 425, 5xx…
        status: u16,
        /// The raw value: seconds, a date, nonsense.
        retry_after: Option<String>,
    },
    /// Any JSON with any status (rows 1–17: `invalid_grant` and the other codes, answers without `access_token`…).
    Json(u16, Value),
    /// Any bytes: malformed, duplicate keys, byte order mark, UTF-16, `null` (row 23).
    RawBody {
        /// The status.
        status: u16,
        /// The content type.
        content_type: String,
        /// The bytes.
        body: Bytes,
    },
    /// 200 with an HTML page, as captive portals and maintenance pages do (row 24).
    Html200,
    /// 200 `application/json` and not a byte (row 23).
    EmptyBody,
    /// A redirect with this status to this place (rows 28, 29).
    Redirect(u16, String),
    /// JSON that goes on for this many bytes (row 26).
    BigBody(u64),
    /// The same in gzip, 158 times smaller on the wire (row 26). Its check sum is wrong; nobody should get that far.
    GzipBomb(u64),
    /// A TCP reset once the request was read (row 21; the caller can't know that nothing was done).
    Reset,
    /// No answer, ever (row 21).
    Hang,
    /// Waits, then works and answers. If the caller leaves meanwhile, nothing is done (rows 21, 38).
    Slow(Duration),
    /// Works at once and answers later; the work stands even if the caller leaves (rows 21, 38).
    SlowAfterWork(Duration),
    /// Rotates, then never answers: the ambiguous case (row 21).
    HangAfterWork,
    /// Rotates, then resets (row 21).
    ResetAfterWork,
    /// A valid head, half of the body, then the connection ends (row 23, and truncation of API answers).
    CutBody,
    /// The true answer, one byte per this long (row 27).
    Trickle(Duration),
    /// The true answer form-encoded, as GitHub does it (row 25).
    FormEncoded,
    /// The true answer with these members put over it; `null` removes one. The tokens in it work: odd `expires_in`
    /// (rows 6–8), `refresh_token: ""` (row 4), no `token_type` (row 9), no `access_token` (row 5), larger `scope` (row 12).
    Alter(Map<String, Value>),
    /// The true answer with this `token_type` (rows 9, 10).
    WrongTokenType(String),
    /// A refresh that brings the same refresh token back (row 3). Only at the token endpoint.
    RepeatRefreshToken,
    /// A refresh whose access token is good for these scopes only, and says so (row 11). Only at the token endpoint.
    SmallerScope(Vec<String>),
}

impl Fault {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Json(..) => "json",
            Self::RawBody { .. } => "raw_body",
            Self::Html200 => "html",
            Self::EmptyBody => "empty_body",
            Self::Redirect(..) => "redirect",
            Self::BigBody(_) => "big_body",
            Self::GzipBomb(_) => "gzip_bomb",
            Self::Reset => "reset",
            Self::Hang => "hang",
            Self::Slow(_) => "slow",
            Self::SlowAfterWork(_) => "slow_after_work",
            Self::HangAfterWork => "hang_after_work",
            Self::ResetAfterWork => "reset_after_work",
            Self::CutBody => "cut_body",
            Self::Trickle(_) => "trickle",
            Self::FormEncoded => "form_encoded",
            Self::Alter(_) => "alter",
            Self::WrongTokenType(_) => "wrong_token_type",
            Self::RepeatRefreshToken => "repeat_refresh_token",
            Self::SmallerScope(_) => "smaller_scope",
        }
    }

    /// Whether the work is left out. Asked before the fault plays: some faults never come back to be counted.
    pub(super) fn replaces_work(&self) -> bool {
        matches!(
            self,
            Self::Status { .. }
                | Self::Json(..)
                | Self::RawBody { .. }
                | Self::Html200
                | Self::EmptyBody
                | Self::Redirect(..)
                | Self::BigBody(_)
                | Self::GzipBomb(_)
                | Self::Reset
                | Self::Hang
        )
    }

    /// How the work itself is bent.
    pub(super) fn bend(&self) -> Bend {
        match self {
            Self::RepeatRefreshToken => Bend { repeat_refresh: true, ..Bend::default() },
            Self::SmallerScope(scopes) => Bend { scopes: Some(scopes.clone()), ..Bend::default() },
            _ => Bend::default(),
        }
    }
}

/// The switches. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<[Plan; 4]>>);

#[derive(Debug, Default)]
struct Plan {
    next: VecDeque<Fault>,
    standing: Option<Fault>,
}

impl Faults {
    /// From now on, every call at `place` meets this fault.
    pub fn set(&self, place: Place, fault: Fault) {
        lock(&self.0)[place as usize].standing = Some(fault);
    }

    /// The next `times` calls at `place` meet this fault, before any standing one; may be queued one after another.
    pub fn times(&self, place: Place, fault: Fault, times: usize) {
        lock(&self.0)[place as usize].next.extend(std::iter::repeat_n(fault, times));
    }

    /// A standing fault at the token endpoint.
    pub fn token(&self, fault: Fault) {
        self.set(Place::Token, fault);
    }

    /// A fault for the next calls of the token endpoint.
    pub fn token_times(&self, fault: Fault, times: usize) {
        self.times(Place::Token, fault, times);
    }

    /// A standing fault of the API (`/v1.0`, the identity call excepted).
    pub fn api(&self, fault: Fault) {
        self.set(Place::Api, fault);
    }

    /// A fault for the next calls of the API.
    pub fn api_times(&self, fault: Fault, times: usize) {
        self.times(Place::Api, fault, times);
    }

    /// A standing fault of `GET /v1.0/me`.
    pub fn identity(&self, fault: Fault) {
        self.set(Place::Identity, fault);
    }

    /// A standing fault of the revocation endpoint.
    pub fn revoke(&self, fault: Fault) {
        self.set(Place::Revoke, fault);
    }

    /// All is well again. Answers that are being delayed stay delayed.
    pub fn clear(&self) {
        *lock(&self.0) = Default::default();
    }

    pub(super) fn take(&self, place: Place) -> Option<Fault> {
        let plan = &mut lock(&self.0)[place as usize];
        plan.next.pop_front().or_else(|| plan.standing.clone())
    }
}

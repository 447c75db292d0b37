//! What a key may use up: requests in a time, and requests at once. The same words in `gateway.toml`, in the API and in the
//! store.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::units::parse_duration;

/// Requests in a time, at most.
pub(super) const REQUESTS: RangeInclusive<u32> = 1..=1_000_000;
/// Requests at once, at most.
pub(super) const CONCURRENT: RangeInclusive<u32> = 1..=100_000;
/// What the requests may be counted by.
const PER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
const MINUTE: Duration = Duration::from_secs(60);

/// A key's limits; at least one of the two is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub struct RateLimit {
    /// Requests in a time.
    pub requests: Option<Rate>,
    /// Requests at once, to their answers' last byte.
    pub concurrent: Option<NonZeroU32>,
}

/// So many requests in such a time. All of them may come at once; then they are given back evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub requests: NonZeroU32,
    /// In what time: whole seconds, `1s` to `1d`.
    pub per: Duration,
}

/// A key's limits as they are written. `requests`, `concurrent` or both are needed.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Requests in the time that `per` says, 1 to 1,000,000.
    #[schema(minimum = 1, maximum = 1_000_000)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests: Option<u32>,
    /// A time from `1s` to `1d`; default `1m`.
    #[schema(example = "1m")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    per: Option<String>,
    /// Requests at once, 1 to 100,000.
    #[schema(minimum = 1, maximum = 100_000)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    concurrent: Option<u32>,
}

impl RateLimit {
    /// From its three numbers; `per` is a minute when only `requests` is given.
    ///
    /// # Errors
    /// Says which of them can't be.
    pub fn new(requests: Option<u32>, per: Option<Duration>, concurrent: Option<u32>) -> Result<Self, String> {
        let requests = match (within("requests", requests, &REQUESTS)?, per) {
            (Some(requests), per) => Some(Rate {
                requests,
                per: checked_per(per.unwrap_or(MINUTE)).map_err(|problem| format!("per: {problem}"))?,
            }),
            (None, Some(_)) => return Err("per: says nothing without requests".to_owned()),
            (None, None) => None,
        };
        let concurrent = within("concurrent", concurrent, &CONCURRENT)?;
        if requests.is_none() && concurrent.is_none() {
            return Err("requests, concurrent or both are needed".to_owned());
        }
        Ok(Self { requests, concurrent })
    }
}

fn within(what: &str, number: Option<u32>, range: &RangeInclusive<u32>) -> Result<Option<NonZeroU32>, String> {
    let Some(number) = number else { return Ok(None) };
    let checked = NonZeroU32::new(number).filter(|_| range.contains(&number));
    checked.map(Some).ok_or_else(|| format!("{what}: a number from {} to {} is wanted", range.start(), range.end()))
}

/// Reads what requests are counted by.
pub(super) fn parse_per(text: &str) -> Result<Duration, String> {
    checked_per(parse_duration(text)?)
}

fn checked_per(per: Duration) -> Result<Duration, String> {
    if PER.contains(&per) && per.subsec_nanos() == 0 {
        Ok(per)
    } else {
        Err("whole seconds from \"1s\" to \"1d\" are wanted".to_owned())
    }
}

impl TryFrom<Written> for RateLimit {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let per =
            written.per.as_deref().map(parse_duration).transpose().map_err(|problem| format!("per: {problem}"))?;
        Self::new(written.requests, per, written.concurrent)
    }
}

impl From<RateLimit> for Written {
    fn from(limit: RateLimit) -> Self {
        Self {
            requests: limit.requests.map(|rate| rate.requests.get()),
            per: limit.requests.map(|rate| rate.span()),
            concurrent: limit.concurrent.map(NonZeroU32::get),
        }
    }
}

impl PartialSchema for RateLimit {
    fn schema() -> RefOr<Schema> {
        Written::schema()
    }
}

impl ToSchema for RateLimit {}

impl Rate {
    /// The time in the largest unit that says it whole: `90s`, `1m`, `12h`, `1d`.
    fn span(&self) -> String {
        let seconds = self.per.as_secs();
        let units = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "m")];
        let (size, unit) = units.into_iter().find(|(size, _)| seconds.is_multiple_of(*size)).unwrap_or((1, "s"));
        format!("{}{unit}", seconds / size)
    }
}

/// For people: `600 requests per 1m, 10 at once`.
impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rate) = &self.requests {
            write!(f, "{} requests per {}", rate.requests, rate.span())?;
        }
        match self.concurrent {
            Some(concurrent) if self.requests.is_some() => write!(f, ", {concurrent} at once"),
            Some(concurrent) => write!(f, "{concurrent} requests at once"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<RateLimit, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_reads_back() {
        for (json, stored, told) in [
            (r#"{"requests":600}"#, r#"{"requests":600,"per":"1m"}"#, "600 requests per 1m"),
            (r#"{"requests":1,"per":"1s"}"#, r#"{"requests":1,"per":"1s"}"#, "1 requests per 1s"),
            (r#"{"requests":5,"per":"90s"}"#, r#"{"requests":5,"per":"90s"}"#, "5 requests per 90s"),
            (r#"{"requests":5,"per":"24h"}"#, r#"{"requests":5,"per":"1d"}"#, "5 requests per 1d"),
            (r#"{"concurrent":10}"#, r#"{"concurrent":10}"#, "10 requests at once"),
            (
                r#"{"requests":600,"per":"60s","concurrent":10}"#,
                r#"{"requests":600,"per":"1m","concurrent":10}"#,
                "600 requests per 1m, 10 at once",
            ),
        ] {
            let limit = read(json).unwrap();
            assert_eq!(serde_json::to_string(&limit).unwrap(), stored, "{json}");
            assert_eq!(read(stored), Ok(limit));
            assert_eq!(limit.to_string(), told);
        }
    }

    #[test]
    fn what_limits_nothing_or_can_not_be_kept_is_refused() {
        for (json, problem) in [
            ("{}", "requests, concurrent or both"),
            (r#"{"per":"1m"}"#, "per: says nothing"),
            (r#"{"per":"1m","concurrent":1}"#, "per: says nothing"),
            (r#"{"requests":0}"#, "requests: a number from 1"),
            (r#"{"requests":1000001}"#, "requests: a number from 1"),
            (r#"{"requests":-1}"#, "invalid value"),
            (r#"{"concurrent":0}"#, "concurrent: a number from 1"),
            (r#"{"concurrent":100001}"#, "concurrent: a number from 1"),
            (r#"{"requests":1,"per":"500ms"}"#, "per: whole seconds"),
            (r#"{"requests":1,"per":"1500ms"}"#, "per: whole seconds"),
            (r#"{"requests":1,"per":"25h"}"#, "per: whole seconds"),
            (r#"{"requests":1,"per":"soon"}"#, "per: not a time"),
            (r#"{"requests":1,"burst":5}"#, "unknown field `burst`"),
        ] {
            let told = read(json).unwrap_err();
            assert!(told.contains(problem), "{json}: {told}");
        }
    }
}

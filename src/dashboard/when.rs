//! Moments as people read them: how long ago, with the exact time at hand.

use time::OffsetDateTime;
use time::macros::format_description;

use crate::clock::Timestamp;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// One moment, for a `<time>` element.
pub(super) struct When {
    /// For machines: RFC 3339.
    pub iso: String,
    /// Exact: `2026-11-20 13:04:05 UTC`.
    pub exact: String,
    /// Near: `5 minutes ago`.
    pub near: String,
}

impl When {
    /// `at`, as seen at `now`.
    pub fn new(at: Timestamp, now: Timestamp) -> Self {
        let exact = OffsetDateTime::from_unix_timestamp(at.millis().div_euclid(1000))
            .ok()
            .and_then(|moment| {
                moment.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC")).ok()
            })
            .unwrap_or_default();
        Self { iso: rfc3339(at), near: near(at, now, &exact), exact }
    }
}

/// `Display` of a moment beyond the calendar fails; a page must not.
fn rfc3339(at: Timestamp) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    match write!(text, "{at}") {
        Ok(()) => text,
        Err(_) => String::new(),
    }
}

fn near(at: Timestamp, now: Timestamp, exact: &str) -> String {
    let seconds = (now.millis().saturating_sub(at.millis())) / 1000;
    let (count, unit) = match seconds.unsigned_abs() as i64 {
        away if away < MINUTE => return if seconds >= 0 { "just now" } else { "in a moment" }.to_owned(),
        away if away < HOUR => (away / MINUTE, "minute"),
        away if away < 2 * DAY => (away / HOUR, "hour"),
        away if away < 60 * DAY => (away / DAY, "day"),
        _ => return exact.split(' ').next().unwrap_or_default().to_owned(),
    };
    let plural = if count == 1 { "" } else { "s" };
    if seconds >= 0 { format!("{count} {unit}{plural} ago") } else { format!("in {count} {unit}{plural}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_naturally() {
        let now = Timestamp::from_millis(1_795_000_000_000);
        let near = |seconds: i64| When::new(Timestamp::from_millis(now.millis() + seconds * 1000), now).near;
        assert_eq!(near(-5), "just now");
        assert_eq!(near(-65), "1 minute ago");
        assert_eq!(near(-3 * HOUR), "3 hours ago");
        assert_eq!(near(9 * MINUTE), "in 9 minutes");
        assert_eq!(near(-DAY * 400), "2025-10-14");
        assert_eq!(When::new(now, now).exact, "2026-11-18 11:06:40 UTC");
        assert_eq!(When::new(Timestamp::from_millis(i64::MAX), now).iso, "");
    }
}

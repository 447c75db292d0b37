//! Wall time, which a test can hold still. Waiting is `tokio::time`'s business, never this module's.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A moment: milliseconds since 1970-01-01T00:00:00Z. JSON form: RFC 3339 text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since 1970.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// This much later (stops at the end of time instead of wrapping).
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This much earlier.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long from `earlier` to here; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads RFC 3339 text.
    ///
    /// # Errors
    /// When the text is not a date and time with an offset.
    pub fn parse(text: &str) -> Result<Self, time::error::Parse> {
        let moment = OffsetDateTime::parse(text, &Rfc3339)?;
        Ok(Self((moment.unix_timestamp_nanos() / 1_000_000) as i64))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment =
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000).map_err(|_| fmt::Error)?;
        f.write_str(&moment.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::DateTime)))
            .into()
    }
}

impl utoipa::ToSchema for Timestamp {}

/// Where the time comes from: the system, or a value that a test moves.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<Held>>);

/// Time that passes when it is told to, in ms since 1970, and how far the wall clock was set away from it.
#[derive(Debug)]
struct Held {
    passed: AtomicI64,
    set: AtomicI64,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(None)
    }

    /// A clock that stands at `start` until it is moved with [`Clock::advance`]. Clones move together.
    #[must_use]
    pub fn held(start: Timestamp) -> Self {
        Self(Some(Arc::new(Held { passed: AtomicI64::new(start.millis()), set: AtomicI64::new(0) })))
    }

    /// What time it is.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Some(held) => Timestamp(held.passed.load(Ordering::SeqCst) + held.set.load(Ordering::SeqCst)),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }

    /// Monotonic time since an arbitrary start: what deadlines in memory are kept in, so that a wall clock that jumps
    /// moves none of them. A held clock's monotonic time moves with it.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        match &self.0 {
            Some(held) => Duration::from_millis(u64::try_from(held.passed.load(Ordering::SeqCst)).unwrap_or(0)),
            None => START.get_or_init(Instant::now).elapsed(),
        }
    }

    /// Moves a held clock forward; the system's clock is left alone.
    pub fn advance(&self, span: Duration) {
        if let Some(held) = &self.0 {
            held.passed.fetch_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// Sets the wall time of a held clock, as an operator does or a time server: no time passes. The system's clock is
    /// left alone.
    pub fn set(&self, to: Timestamp) {
        if let Some(held) = &self.0 {
            held.set.store(to.millis() - held.passed.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    /// What other clocks say beside a held one, which goes with them until it is set; `None`: ask them.
    pub(crate) fn beside(&self) -> Option<Timestamp> {
        self.0.as_ref().map(|held| Timestamp(held.passed.load(Ordering::SeqCst)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_clock_moves_only_when_told() {
        let clock = Clock::held(Timestamp::from_millis(1_000));
        let other = clock.clone();
        assert_eq!(clock.now(), other.now());
        clock.advance(Duration::from_secs(2));
        assert_eq!(other.now().millis(), 3_000);
    }

    #[test]
    fn setting_a_held_clock_lets_no_time_pass() {
        let clock = Clock::held(Timestamp::from_millis(5_000));
        let before = clock.monotonic();
        clock.set(Timestamp::from_millis(1_000));
        assert_eq!((clock.now().millis(), clock.monotonic()), (1_000, before));
        clock.advance(Duration::from_secs(1));
        assert_eq!((clock.now().millis(), clock.beside()), (2_000, Some(Timestamp::from_millis(6_000))));
    }

    #[test]
    fn timestamps_read_back() {
        let moment = Timestamp::from_millis(1_795_000_000_123);
        assert_eq!(Timestamp::parse(&moment.to_string()).ok(), Some(moment));
        assert_eq!(moment.since(moment.after(Duration::from_secs(1))), Duration::ZERO);
    }
}

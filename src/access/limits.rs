//! What a key uses up, and what a target has room for. Counted in this process alone: several instances each let through
//! what the limit says. A limit outlives the snapshots that it is in, as long as its numbers stay.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;
use crate::config::{Rate, RateLimit};

/// When to ask again, after a refusal for too many at once: nobody knows when one of them ends.
const SOON: Duration = Duration::from_secs(1);

/// A key has used up what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key's limit is reached")]
pub struct Limited {
    /// When the next request will be let through.
    pub retry_after: Duration,
}

/// A key's limits, and how much of them is used.
pub(super) struct KeyLimit {
    numbers: RateLimit,
    rate: Option<Bucket>,
    slots: Option<Arc<Semaphore>>,
    clock: Monotonic,
}

/// GCRA: as many at once as the limit says in all, given back evenly.
type Bucket = RateLimiter<NotKeyed, InMemoryState, Monotonic, NoOpMiddleware<Duration>>;

/// [`Clock::monotonic`], as governor asks for it.
#[derive(Clone)]
struct Monotonic(Clock);

impl GovernorClock for Monotonic {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}

impl KeyLimit {
    pub(super) fn new(numbers: RateLimit, clock: &Clock) -> Self {
        let clock = Monotonic(clock.clone());
        let rate = numbers.requests.map(|rate| RateLimiter::direct_with_clock(quota(rate), clock.clone()));
        let slots = numbers.concurrent.map(|concurrent| Arc::new(semaphore(concurrent)));
        Self { numbers, rate, slots, clock }
    }

    pub(super) fn has(&self, numbers: RateLimit) -> bool {
        self.numbers == numbers
    }

    /// Counts one request. What it answers takes up one of the places at once until it is dropped.
    pub(super) fn admit(&self) -> Result<Option<OwnedSemaphorePermit>, Limited> {
        // The place first: a request that finds none has used nothing up.
        let place = match &self.slots {
            Some(slots) => Some(Arc::clone(slots).try_acquire_owned().map_err(|_| Limited { retry_after: SOON })?),
            None => None,
        };
        if let Some(rate) = &self.rate
            && let Err(early) = rate.check()
        {
            return Err(Limited { retry_after: early.wait_time_from(self.clock.now()) });
        }
        Ok(place)
    }
}

fn quota(rate: Rate) -> Quota {
    let each = rate.per / rate.requests.get();
    Quota::with_period(each).expect("a million in a second leaves a microsecond for each").allow_burst(rate.requests)
}

fn semaphore(places: NonZeroU32) -> Semaphore {
    Semaphore::new(places.get() as usize)
}

/// A target had no room in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the target has no room for another request")]
pub struct NoRoom;

/// How many requests a target takes at once.
pub struct Room {
    concurrency: NonZeroU32,
    places: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new(concurrency: NonZeroU32) -> Self {
        Self { concurrency, places: Arc::new(semaphore(concurrency)) }
    }

    pub(super) fn has(&self, concurrency: NonZeroU32) -> bool {
        self.concurrency == concurrency
    }

    /// Takes a place until what it answers is dropped; waits its turn for one, `patience` at most.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub async fn enter(&self, patience: Duration) -> Result<OwnedSemaphorePermit, NoRoom> {
        let places = Arc::clone(&self.places);
        match places.clone().try_acquire_owned() {
            Ok(place) => Ok(place),
            Err(_taken) => match tokio::time::timeout(patience, places.acquire_owned()).await {
                Ok(Ok(place)) => Ok(place),
                _ => Err(NoRoom),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn limit(requests: Option<u32>, per: u64, concurrent: Option<u32>) -> (KeyLimit, Clock) {
        let clock = Clock::held(Timestamp::from_millis(1_700_000_000_000));
        let per = requests.map(|_| Duration::from_secs(per));
        (KeyLimit::new(RateLimit::new(requests, per, concurrent).unwrap(), &clock), clock)
    }

    fn wait(limit: &KeyLimit) -> Option<Duration> {
        limit.admit().err().map(|limited| limited.retry_after)
    }

    #[test]
    fn all_may_come_at_once_and_are_given_back_evenly() {
        let (limit, clock) = limit(Some(6), 60, None);
        for _ in 0..6 {
            assert_eq!(wait(&limit), None);
        }
        assert_eq!(wait(&limit), Some(Duration::from_secs(10)));
        clock.advance(Duration::from_millis(9_999));
        assert_eq!(wait(&limit), Some(Duration::from_millis(1)));
        clock.advance(Duration::from_millis(1));
        assert_eq!(wait(&limit), None);
        assert_eq!(wait(&limit), Some(Duration::from_secs(10)));
        clock.advance(Duration::from_secs(3_600));
        for _ in 0..6 {
            assert_eq!(wait(&limit), None);
        }
        assert!(wait(&limit).is_some(), "time that was not used is not saved up");
    }

    #[test]
    fn the_extremes_count_too() {
        for (requests, per) in [(1, 86_400), (1_000_000, 1), (1_000_000, 86_400), (7, 1)] {
            let (limit, clock) = limit(Some(requests), per, None);
            assert!((0..requests).all(|_| wait(&limit).is_none()), "{requests} in {per} s");
            assert!(wait(&limit).is_some_and(|wait| wait <= Duration::from_secs(per)), "{requests} in {per} s");
            clock.advance(Duration::from_secs(per));
            assert!(wait(&limit).is_none());
        }
    }

    #[test]
    fn a_place_is_taken_until_it_is_given_back() {
        let (limit, _) = limit(None, 0, Some(2));
        let first = limit.admit().unwrap();
        let second = limit.admit().unwrap();
        assert_eq!(wait(&limit), Some(SOON));
        drop(first);
        assert!(limit.admit().is_ok());
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_longest_for_room_gets_it() {
        let room = Arc::new(Room::new(NonZeroU32::MIN));
        let patience = Duration::from_secs(5);
        let held = room.enter(patience).await.unwrap();
        assert!(room.enter(patience).await.is_err());
        let (order, mut came) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..3 {
            let (room, order) = (Arc::clone(&room), order.clone());
            tokio::spawn(async move {
                let place = room.enter(patience).await.unwrap();
                order.send(number).unwrap();
                drop(place);
            });
            tokio::task::yield_now().await;
        }
        drop(held);
        for number in 0..3 {
            assert_eq!(came.recv().await, Some(number));
        }
    }

    #[test]
    fn a_request_without_a_place_uses_nothing_up() {
        let (limit, _) = limit(Some(2), 60, Some(1));
        let held = limit.admit().unwrap();
        for _ in 0..5 {
            assert_eq!(wait(&limit), Some(SOON));
        }
        drop(held);
        assert!(limit.admit().is_ok(), "the second of two");
        assert_eq!(wait(&limit), Some(Duration::from_secs(30)));
    }
}

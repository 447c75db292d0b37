//! Coarse deadlines: one timer per thread instead of one per request. Arming a tokio timer earlier than the driver's next
//! wake-up costs a write to its eventfd; arming one of these costs a store to a `Cell`. They pass at the asked-for
//! time or up to one step later, never earlier; where very many are due at once, they take turns.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::turns::{self, FEW};

const STEP: Duration = Duration::from_millis(500);
/// Steps without a deadline after which the tick rests until the next one is made.
const REST: u32 = 120;
const NEVER: u32 = u32::MAX;
const PASSED: u32 = 0;

/// A span in steps, worked out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks(u32);

impl Ticks {
    /// At least this long.
    #[must_use]
    pub fn of(span: Duration) -> Self {
        let steps = span.as_millis().div_ceil(STEP.as_millis());
        Self(u32::try_from(steps).unwrap_or(NEVER / 2).min(NEVER / 2))
    }
}

/// A moment on a ticker's time line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u32);

impl Moment {
    /// The moment that does not come.
    pub const NEVER: Self = Self(NEVER);
}

/// Hands out deadlines of one thread.
pub struct Ticker(Rc<Inner>);

struct Inner {
    now: Rc<Cell<u32>>,
    running: Cell<bool>,
    entries: RefCell<Vec<Rc<Entry>>>,
}

struct Entry {
    now: Rc<Cell<u32>>,
    due: Cell<u32>,
    waker: RefCell<Option<Waker>>,
}

impl Entry {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

impl Ticker {
    /// A ticker at rest.
    #[must_use]
    pub fn new() -> Self {
        Self(Rc::new(Inner {
            now: Rc::new(Cell::new(1)),
            running: Cell::new(false),
            entries: RefCell::new(Vec::new()),
        }))
    }

    /// A deadline that is not armed.
    ///
    /// # Panics
    /// Outside a `LocalRuntime` or `LocalSet`: the first deadline starts the tick there.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        let entry = Rc::new(Entry { now: Rc::clone(&self.0.now), due: Cell::new(NEVER), waker: RefCell::new(None) });
        self.0.entries.borrow_mut().push(Rc::clone(&entry));
        if !self.0.running.replace(true) {
            tokio::task::spawn_local(run(Rc::downgrade(&self.0)));
        }
        Deadline(entry)
    }

    /// The moment `span` from now.
    #[must_use]
    pub fn after(&self, span: Ticks) -> Moment {
        Moment(self.0.now.get().saturating_add(span.0).saturating_add(1))
    }

    /// Wakes every task that waits on a deadline, passed or not.
    pub fn wake_all(&self) {
        for entry in self.0.entries.borrow().iter() {
            entry.wake();
        }
    }
}

impl Default for Ticker {
    fn default() -> Self {
        Self::new()
    }
}

async fn run(ticker: Weak<Inner>) {
    let mut interval = tokio::time::interval_at(Instant::now() + STEP, STEP);
    // A thread that was held up must not let every deadline pass at once afterwards.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut empty = 0;
    loop {
        interval.tick().await;
        let Some(ticker) = ticker.upgrade() else { return };
        empty = if ticker.step() { 0 } else { empty + 1 };
        let (mut from, mut places) = (0, FEW);
        while let Some(next) = ticker.pass(from, places) {
            // Many may be due at once, and each costs something: what else is ready has its turn.
            (from, places) = (next, turns::next_turn().await);
        }
        if empty >= REST {
            ticker.running.set(false);
            return;
        }
    }
}

impl Inner {
    /// One step on; answers whether any deadline is left.
    fn step(&self) -> bool {
        let now = self.now.get().saturating_add(1);
        self.now.set(now);
        let mut entries = self.entries.borrow_mut();
        entries.retain(|entry| Rc::strong_count(entry) > 1);
        !entries.is_empty()
    }

    /// Lets so many deadlines pass that are due, from this one on; answers where to go on.
    fn pass(&self, from: usize, places: usize) -> Option<usize> {
        let (now, mut passed) = (self.now.get(), 0);
        for (number, entry) in self.entries.borrow().iter().enumerate().skip(from) {
            let due = entry.due.get();
            if due == PASSED || due > now {
                continue;
            }
            if passed == places {
                return Some(number);
            }
            passed += 1;
            entry.due.set(PASSED);
            entry.wake();
        }
        None
    }
}

/// One deadline; clones are the same one. One task at a time waits on it.
#[derive(Clone)]
pub struct Deadline(Rc<Entry>);

impl Deadline {
    /// Passes `span` from now, whatever it was set to before.
    pub fn arm(&self, span: Ticks) {
        self.arm_before(span, Moment::NEVER);
    }

    /// Passes `span` from now, or at `end` if that comes first.
    pub fn arm_before(&self, span: Ticks, end: Moment) {
        let due = self.0.now.get().saturating_add(span.0).saturating_add(1);
        self.0.due.set(due.min(end.0));
    }

    /// Does not pass until it is armed again.
    pub fn disarm(&self) {
        self.0.due.set(NEVER);
    }

    /// Whether the two are clones of one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Passes now.
    pub fn pass(&self) {
        self.0.due.set(PASSED);
        self.0.wake();
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.0.due.get() == PASSED
    }

    /// Ready once it has passed.
    pub fn poll_passed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.passed() {
            return Poll::Ready(());
        }
        let mut waker = self.0.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_not_early_and_at_most_a_step_late() {
        LocalSet::new()
            .run_until(async {
                let ticker = Ticker::new();
                for millis in [1, 500, 700, 10_000] {
                    let span = Duration::from_millis(millis);
                    let deadline = ticker.deadline();
                    let start = Instant::now();
                    deadline.arm(Ticks::of(span));
                    poll_fn(|cx| deadline.poll_passed(cx)).await;
                    let waited = start.elapsed();
                    assert!(waited >= span && waited <= span + STEP * 2, "{span:?}: {waited:?}");
                }
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn arming_again_puts_it_off_and_the_tick_starts_again_after_a_rest() {
        LocalSet::new()
            .run_until(async {
                let ticker = Ticker::new();
                let deadline = ticker.deadline();
                deadline.arm(Ticks::of(Duration::from_secs(2)));
                for _ in 0..5 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    assert!(!deadline.passed());
                    deadline.arm(Ticks::of(Duration::from_secs(2)));
                }
                drop(deadline);
                tokio::time::sleep(STEP * (REST + 5)).await;
                assert!(!ticker.0.running.get() && ticker.0.entries.borrow().is_empty());
                let deadline = ticker.deadline();
                deadline
                    .arm_before(Ticks::of(Duration::from_secs(60)), ticker.after(Ticks::of(Duration::from_secs(1))));
                tokio::time::timeout(Duration::from_secs(3), poll_fn(|cx| deadline.poll_passed(cx))).await.unwrap();
            })
            .await;
    }
}

//! What runs on a worker, and whether it still may. A grant is looked at when a request comes; a stream can outlive it. Once a
//! second everything that runs is held against the keys and grants of that moment, and what they no longer allow is cut:
//! nothing is paid per request or per part of a body.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::access::Grant;
use crate::net::Deadline;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Says whether a grant would be given now.
pub(super) type Upheld = Box<dyn Fn(&Grant) -> bool>;

/// Where exchanges run: one for each connection of HTTP/1.1, which it lives with, and one for each stream of HTTP/2.
pub(super) struct Slot {
    pub(super) deadline: Deadline,
    grant: RefCell<Option<Grant>>,
    withdrawn: Cell<bool>,
}

impl Slot {
    /// An exchange begins.
    pub(super) fn begin(&self, grant: &Grant) {
        *self.grant.borrow_mut() = Some(grant.clone());
    }

    /// It is over.
    pub(super) fn end(&self) {
        self.grant.borrow_mut().take();
    }

    /// Whether it was cut because its grant went.
    pub(super) fn is_withdrawn(&self) -> bool {
        self.withdrawn.get()
    }
}

/// All slots of one worker.
pub(super) struct Running(Rc<Inner>);

struct Inner {
    slots: RefCell<Vec<Weak<Slot>>>,
    looking: Cell<bool>,
    upheld: Upheld,
}

impl Running {
    pub(super) fn new(upheld: Upheld) -> Self {
        Self(Rc::new(Inner { slots: RefCell::default(), looking: Cell::new(false), upheld }))
    }

    /// A slot whose exchanges end with this deadline.
    pub(super) fn slot(&self, deadline: Deadline) -> Rc<Slot> {
        let slot = Rc::new(Slot { deadline, grant: RefCell::default(), withdrawn: Cell::new(false) });
        self.0.slots.borrow_mut().push(Rc::downgrade(&slot));
        if !self.0.looking.replace(true) {
            tokio::task::spawn_local(run(Rc::downgrade(&self.0)));
        }
        slot
    }
}

async fn run(running: Weak<Inner>) {
    let mut interval = tokio::time::interval(LOOK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(running) = running.upgrade() else { return };
        if !running.look() {
            running.looking.set(false);
            return;
        }
    }
}

impl Inner {
    /// One look; answers whether anything is left to look at.
    fn look(&self) -> bool {
        let mut slots = self.slots.borrow_mut();
        slots.retain(|slot| {
            let Some(slot) = slot.upgrade() else { return false };
            let upheld = slot.grant.borrow().as_ref().is_none_or(|grant| (self.upheld)(grant));
            if !upheld {
                slot.withdrawn.set(true);
                slot.deadline.pass();
            }
            true
        });
        !slots.is_empty()
    }
}

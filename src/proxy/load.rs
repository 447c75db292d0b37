//! How many requests a worker has under way, and that they are not too many: what is over the share is refused before
//! anything is done for it. Each worker counts its own, so nothing is shared between cores.

use std::cell::Cell;
use std::rc::Rc;

/// One worker's share of `[proxy.limits] requests`.
pub(super) struct Load {
    under_way: Rc<Cell<usize>>,
    most: usize,
}

/// One request under way; to be kept until its answer's last byte is gone.
pub(super) struct UnderWay(Rc<Cell<usize>>);

impl Load {
    pub(super) fn new(most: usize) -> Self {
        Self { under_way: Rc::default(), most }
    }

    /// `None`: as many are under way as may be.
    pub(super) fn enter(&self) -> Option<UnderWay> {
        let under_way = self.under_way.get();
        (under_way < self.most).then(|| {
            self.under_way.set(under_way + 1);
            UnderWay(Rc::clone(&self.under_way))
        })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_request_ends() {
        let load = Load::new(2);
        let (first, second) = (load.enter(), load.enter());
        assert!(first.is_some() && second.is_some() && load.enter().is_none());
        drop(second);
        let third = load.enter();
        assert!(third.is_some() && load.enter().is_none());
        drop((first, third));
        assert_eq!(load.under_way.get(), 0);
    }
}

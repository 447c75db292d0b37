//! Access tokens in memory, as ready header values. Reading one takes no lock and no await.

use std::sync::Arc;

use crate::catalog::Injection;

/// What goes into one request: a ready credential and the generation it is of.
#[derive(Clone)]
pub struct Bearer {
    pub(super) injection: Arc<Injection>,
    pub(super) generation: i64,
}

impl Bearer {
    /// The ready credential.
    #[must_use]
    pub fn injection(&self) -> &Injection {
        &self.injection
    }
    /// Which token this is; grows with each refresh (0: a static credential, which never changes).
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.generation
    }
}

/// Slots by account.
#[derive(Default)]
pub(super) struct Cache {}

//! Several instances on one store.

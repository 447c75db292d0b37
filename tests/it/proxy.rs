//! The proxy pass: who may, where to, what the upstream sees.

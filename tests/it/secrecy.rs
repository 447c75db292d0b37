//! No secret shows anywhere.

//! Header hygiene, both ways.

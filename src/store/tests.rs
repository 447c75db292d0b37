//! What the store promises, asked of both databases: every method, and every race that matters.
//!
//! SQLite always; Postgres when `KEYWARD_TEST_POSTGRES` holds the URL of a superuser's connection. Each test makes a
//! fresh database and drops it at the end.

mod access;
mod accounts;
mod fixture;
mod presence;
mod schema;
mod trail;
mod upkeep;

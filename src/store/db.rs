//! One type over two databases, and the macro that writes each statement once.

use sqlx::{PgPool, SqlitePool};

/// SQLite (one writer, several readers) or Postgres.
#[derive(Clone)]
pub(super) enum Db {
    Sqlite { write: SqlitePool, read: SqlitePool },
    Postgres(PgPool),
}

//! Opening either database: pools, safety settings, migrations.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, PgConnection, SqlitePool};

use crate::config::StoreUrl;

use super::db::{Db, Postgresql, within};
use super::presence::Arrival;
use super::{Error, Result, leases};

// `Migrator::run_direct` below instead of `run`: with the latter's `impl Acquire` the compiler can't see that the future
// may move between threads.
static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

pub(super) const NEWEST_APPLIED: &str = "select max(version) from _sqlx_migrations";

const SQLITE_READERS: u32 = 4;
const SQLITE_WAIT: Duration = Duration::from_secs(5);
/// Between two tries to open a file that others are opening.
const SQLITE_LOOK: Duration = Duration::from_millis(10);
const POSTGRES_CONNECTIONS: u32 = 10;
const POSTGRES_WAIT: Duration = Duration::from_secs(3);

/// How our connections are called in Postgres's list.
const NAME: &str = "keyward";
/// How long a server may take to notice that a connection of ours has gone.
const NOTICE: Duration = Duration::from_millis(200);

pub(super) async fn open(url: &StoreUrl) -> Result<Db> {
    match url {
        StoreUrl::Sqlite(path) => open_sqlite(path).await,
        StoreUrl::Postgres(url) => open_postgres(url.expose()).await,
    }
}

async fn open_sqlite(path: &Path) -> Result<Db> {
    make_file(path).map_err(io_error)?;
    let arrival = Arrival::at(path).map_err(io_error)?;
    // Full: a commit that returns is on the disk. A rotated refresh token that is lost loses the account.
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .foreign_keys(true)
        .busy_timeout(SQLITE_WAIT)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // The undo log of a statement over many rows stays in memory.
        .pragma("temp_store", "memory")
        // Of a new file: records of the audit trail fill larger pages at less cost.
        .page_size(8 * 1024)
        // In pages, 16 MiB of them: those that every batch of audit records touches move into the file less often.
        .pragma("wal_autocheckpoint", "2000");
    let pool = SqlitePoolOptions::new().acquire_timeout(SQLITE_WAIT);
    let write = connected(pool.clone().max_connections(1), &options).await?;

    // One transaction around all: two processes that start at once come one after the other.
    let mut tx = write.begin_with("begin immediate").await?;
    if let Err(problem) = SQLITE.run_direct(None, &mut *tx, false).await {
        let found = sqlx::query_scalar(NEWEST_APPLIED).fetch_one(&mut *tx).await.ok();
        return Err(explained(problem, found, &SQLITE));
    }
    if arrival.is_alone() {
        sqlx::query(leases::END_ALL).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    let presence = Arc::new(arrival.stay().await.map_err(io_error)?);

    let read = connected(pool.max_connections(SQLITE_READERS), &options.pragma("query_only", "on")).await?;
    Ok(Db::Sqlite { write, read, presence })
}

/// A pool with its first connection. Where two processes turn a new file into one with a write-ahead log at the same moment,
/// SQLite refuses one of them at once: its wait is for those who have no lock yet (<https://sqlite.org/c3ref/busy_handler.html>).
async fn connected(pool: SqlitePoolOptions, options: &SqliteConnectOptions) -> Result<SqlitePool> {
    let deadline = Instant::now() + SQLITE_WAIT;
    loop {
        match pool.clone().connect_with(options.clone()).await {
            Err(error) if is_busy(&error) && Instant::now() < deadline => tokio::time::sleep(SQLITE_LOOK).await,
            connected => return Ok(connected?),
        }
    }
}

/// `SQLITE_BUSY`, of whatever kind (<https://sqlite.org/rescode.html>).
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

fn io_error(cause: io::Error) -> Error {
    Error::Database(sqlx::Error::Io(cause))
}

/// Makes the file before SQLite does, so that nobody else may read it; SQLite gives the files beside it the same mode.
/// A file that is there already keeps the mode its owner gave it.
fn make_file(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

async fn open_postgres(url: &str) -> Result<Db> {
    let options = PgConnectOptions::from_str(url)?.application_name(NAME);

    // A connection of its own: a migration may take longer than a statement of ours ever should, and may have to wait
    // for another instance's.
    let mut connection = within(PgConnection::connect_with(&options)).await?;
    if let Err(problem) = POSTGRES.run_direct(None, &mut connection, false).await {
        let found = sqlx::query_scalar(NEWEST_APPLIED).fetch_one(&mut connection).await.ok();
        return Err(explained(problem, found, &POSTGRES));
    }
    within(connection.close()).await?;

    // An instance that froze in a transaction must not hold the others up.
    let options = options.options([("statement_timeout", "5s"), ("idle_in_transaction_session_timeout", "10s")]);
    let pools = PgPoolOptions::new()
        .max_connections(POSTGRES_CONNECTIONS)
        .acquire_timeout(POSTGRES_WAIT)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // Whatever the server's default: a commit that returns is on the disk.
                let durable = "select set_config('synchronous_commit', 'on', false) \
                               where current_setting('synchronous_commit') = 'off'";
                sqlx::query(durable).execute(connection).await.map(|_| ())
            })
        })
        .test_before_acquire(true);
    Ok(Db::Postgres(Arc::new(Postgresql::new(move || pools.clone().connect_lazy_with(options.clone())))))
}

/// Whether an instance has the database open.
pub(super) async fn in_use(url: &StoreUrl) -> Result<bool> {
    let url = match url {
        StoreUrl::Sqlite(path) => return Ok(!Arrival::at(path).map_err(io_error)?.is_alone()),
        StoreUrl::Postgres(url) => url.expose(),
    };
    let mut tries = 5;
    while postgres_in_use(url).await? {
        tries -= 1;
        if tries == 0 {
            return Ok(true);
        }
        tokio::time::sleep(NOTICE).await;
    }
    Ok(false)
}

async fn postgres_in_use(url: &str) -> Result<bool> {
    let options = PgConnectOptions::from_str(url)?.application_name("keyward-looks");
    let mut connection = within(PgConnection::connect_with(&options)).await?;
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and application_name = $1";
    let others: i64 = within(sqlx::query_scalar(sql).bind(NAME).fetch_one(&mut connection)).await?;
    within(connection.close()).await?;
    Ok(others > 0)
}

/// Tells a schema of a newer Keyward from a migration that went wrong.
fn explained(problem: MigrateError, found: Option<i64>, migrator: &Migrator) -> Error {
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
    match (problem, found) {
        (MigrateError::VersionMissing(_), Some(found)) if found > known => Error::NewerSchema { found, known },
        (problem, _) => Error::Migrate(problem),
    }
}

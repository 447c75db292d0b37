//! Moving a store: everything from one database into another, fresh one.
//!
//! All or nothing: whatever is copied stands in one transaction of the destination, which is committed after the counts
//! were compared, every sealed value was opened where it stands now, and the source was seen not to have changed. A copy
//! that fails, is killed or loses its connection leaves the destination as fresh as it was, to be tried again.

use sqlx::{QueryBuilder, Row};

use crate::vault::{Place, Sealed, VaultError};

use super::db::{Session, on};
use super::sealed::Progress;
use super::tables::{self, CHECK, Kind, TABLES, Table};
use super::{Error, Store};

/// Rows of one statement. The widest table has 28 columns, and SQLite takes 32,766 arguments.
const BATCH: usize = 200;

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Rows by table.
    pub rows: Vec<(&'static str, u64)>,
    /// Sealed values, all of which open.
    pub sealed: u64,
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The destination is in use, or was.
    #[error("the destination is not empty: its table {0} holds something; nothing was copied")]
    NotEmpty(&'static str),
    /// Somebody worked on the source.
    #[error(
        "the source changed while it was copied, so a gateway runs on it: stop every one and copy again; nothing was copied"
    )]
    Changed,
    /// The destination did not take all of it.
    #[error("{table}: the source has {source_rows}, the destination {copied}; nothing was copied")]
    Counts {
        /// The table (or column of sealed values).
        table: String,
        /// There.
        source_rows: u64,
        /// Here.
        copied: u64,
    },
    /// Postgres can't hold it.
    #[error("{table}.{column} holds a text with a zero byte, which Postgres can't store; nothing was copied")]
    ZeroByte {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
    },
    /// A sealed value does not open with the keys that were given.
    #[error("row {row} of the source: {cause}; nothing was copied")]
    Sealed {
        /// The row's key.
        row: String,
        /// Why.
        cause: VaultError,
    },
    /// The source could not be read.
    #[error("reading {table} of the source: {cause}; nothing was copied")]
    Read {
        /// The table.
        table: &'static str,
        /// Why.
        cause: Error,
    },
    /// The destination could not be written.
    #[error("writing {table} of the destination: {cause}; nothing was copied")]
    Write {
        /// The table.
        table: &'static str,
        /// Why.
        cause: Error,
    },
    /// The last step went wrong.
    #[error("it is not known whether the copy was stored ({0}); copying again tells: it is refused if it was")]
    Unknown(#[source] Error),
}

/// One value of a row.
enum Cell {
    Text(Option<String>),
    Bigint(Option<i64>),
    Bytes(Option<Vec<u8>>),
}

/// What a store at work can't leave as it is for long.
#[derive(PartialEq, Eq)]
struct Fingerprint {
    rows: Vec<u64>,
    revision: i64,
    /// Sum of the generations, leases, refreshes under way, last change.
    accounts: (i64, i64, i64, i64),
}

impl Store {
    /// Copies everything into `to`, which must be as [`Store::open`] or [`Store::open_as_is`] made it. `opens` is asked
    /// of every sealed value as it stands in the destination. No gateway may run on either.
    ///
    /// # Errors
    /// [`CopyError`]; the destination is unchanged then ([`CopyError::Unknown`] apart).
    pub async fn copy_to(
        &self,
        to: &Self,
        mut opens: impl FnMut(Place<'_>, &Sealed) -> Result<(), VaultError>,
        mut tell: impl FnMut(Progress),
    ) -> Result<Copied, CopyError> {
        // One snapshot of the source, however long it takes.
        let mut source = self.db.snapshot().await.map_err(reading("facts"))?;
        source.be_patient().await.map_err(reading("facts"))?;
        let found = fingerprint(&mut source).await.map_err(reading("accounts"))?;
        let mut sealed = 0;
        for column in tables::sealed_columns().chain([CHECK]) {
            sealed += column.count(&mut source, None).await.map_err(reading(column.table))?;
        }
        let total = found.rows.iter().sum::<u64>() + sealed;
        let mut done = 0;
        let mut tell = |table, more| {
            done += more;
            tell(Progress { table, done, total });
        };

        let mut destination = to.db.write().await.map_err(writing("facts"))?;
        destination.be_patient().await.map_err(writing("facts"))?;
        clear(&mut destination).await?;
        for table in TABLES {
            copy_table(&mut source, &mut destination, table, |rows| tell(table.name, rows)).await?;
        }
        for (table, &rows) in TABLES.iter().zip(&found.rows) {
            let copied = count(&mut destination, table.name).await.map_err(writing(table.name))?;
            equal(table.name.to_owned(), rows, copied)?;
        }
        let mut opened = 0;
        for column in tables::sealed_columns().chain([CHECK]) {
            let mut after = String::new();
            loop {
                let page = column.page(&mut destination, None, &after, BATCH as i64).await;
                let page = page.map_err(writing(column.table))?;
                let Some(last) = page.last() else { break };
                after.clone_from(&last.row);
                for value in &page {
                    opens(column.place(&value.row), &value.value)
                        .map_err(|cause| CopyError::Sealed { row: value.row.clone(), cause })?;
                }
                opened += page.len() as u64;
                tell(column.table, page.len() as u64);
            }
        }
        equal("sealed values".to_owned(), sealed, opened)?;

        drop(source);
        let mut now = self.db.snapshot().await.map_err(reading("facts"))?;
        now.be_patient().await.map_err(reading("facts"))?;
        if fingerprint(&mut now).await.map_err(reading("accounts"))? != found {
            return Err(CopyError::Changed);
        }
        destination.commit_patiently().await.map_err(CopyError::Unknown)?;
        Ok(Copied { rows: TABLES.iter().map(|table| table.name).zip(found.rows).collect(), sealed })
    }
}

/// Takes away what a migration leaves in a fresh schema; refuses a schema that is not fresh.
async fn clear(destination: &mut Session) -> Result<(), CopyError> {
    // Also keeps a second copy into the same place waiting until this one is over.
    let untouched =
        run(destination, "update policy_revision set revision = 0 where single = 1 and revision = 0").await?;
    if untouched == 0 {
        return Err(CopyError::NotEmpty("policy_revision"));
    }
    run(destination, "delete from policy_revision").await?;
    for table in TABLES {
        let rows = count(destination, table.name).await.map_err(writing(table.name))?;
        // Opening a store makes the organization `default`.
        let default = match table.name {
            "organizations" if rows == 1 => {
                run(destination, "delete from organizations where name = 'default'").await?
            }
            _ => 0,
        };
        if rows != default {
            return Err(CopyError::NotEmpty(table.name));
        }
    }
    Ok(())
}

async fn run(destination: &mut Session, sql: &'static str) -> Result<u64, CopyError> {
    let done: Result<u64, sqlx::Error> = on!(destination, connection => {
        sqlx::query(sql).execute(connection).await.map(|done| done.rows_affected())
    });
    done.map_err(|cause| CopyError::Write { table: "policy_revision", cause: cause.into() })
}

async fn copy_table(
    source: &mut Session,
    destination: &mut Session,
    table: &'static Table,
    mut tell: impl FnMut(u64),
) -> Result<(), CopyError> {
    let mut after: Option<Vec<Cell>> = None;
    loop {
        let mut rows = read(source, table, after.take()).await.map_err(reading(table.name))?;
        let Some(last) = rows.last_mut() else { return Ok(()) };
        after = Some(last.iter().take(table.key).map(Cell::copied).collect());
        let read = rows.len();
        if matches!(destination, Session::Postgres(_)) {
            no_zero_bytes(table, &rows)?;
        }
        insert(destination, table, rows).await.map_err(writing(table.name))?;
        tell(read as u64);
    }
}

/// The next rows by primary key.
async fn read(source: &mut Session, table: &Table, after: Option<Vec<Cell>>) -> Result<Vec<Vec<Cell>>, Error> {
    let (all, key) = (table.all_columns(), table.key_columns());
    let rows: Result<Vec<Vec<Cell>>, sqlx::Error> = on!(source, connection => {
        let mut query = QueryBuilder::new(format!("select {all} from {}", table.name));
        if let Some(after) = after {
            query.push(format_args!(" where ({key}) > ("));
            let mut values = query.separated(", ");
            for cell in after {
                bind!(values, cell);
            }
            query.push(")");
        }
        query.push(format_args!(" order by {key} limit {BATCH}"));
        let rows = query.build().persistent(false).fetch_all(connection).await?;
        rows.iter()
            .map(|row| {
                let kinds = table.columns.iter().enumerate();
                kinds
                    .map(|(at, (_, kind))| {
                        Ok(match kind {
                            Kind::Text => Cell::Text(row.try_get(at)?),
                            Kind::Bigint => Cell::Bigint(row.try_get(at)?),
                            Kind::Bytes | Kind::Sealed => Cell::Bytes(row.try_get(at)?),
                        })
                    })
                    .collect()
            })
            .collect()
    });
    Ok(rows?)
}

async fn insert(destination: &mut Session, table: &Table, rows: Vec<Vec<Cell>>) -> Result<(), Error> {
    let all = table.all_columns();
    on!(destination, connection => {
        let mut query = QueryBuilder::new(format!("insert into {} ({all}) ", table.name));
        query.push_values(rows, |mut values, row| {
            for cell in row {
                bind!(values, cell);
            }
        });
        query.build().persistent(false).execute(connection).await?;
    });
    Ok(())
}

async fn count(session: &mut Session, table: &str) -> Result<u64, Error> {
    let rows: i64 = on!(session, connection => {
        let mut query = QueryBuilder::new(format!("select count(*) from {table}"));
        query.build_query_scalar().persistent(false).fetch_one(connection).await?
    });
    Ok(rows.unsigned_abs())
}

async fn fingerprint(session: &mut Session) -> Result<Fingerprint, Error> {
    let mut rows = Vec::new();
    for table in TABLES {
        rows.push(count(session, table.name).await?);
    }
    let (revision, accounts) = on!(session, connection => {
        let revision = sqlx::query_scalar("select revision from policy_revision").fetch_one(&mut *connection).await?;
        let accounts = sqlx::query_as(
            "select cast(coalesce(sum(generation), 0) as bigint), count(lease_owner), count(refresh_started_at), \
             cast(coalesce(max(updated_at), 0) as bigint) from accounts",
        );
        (revision, accounts.fetch_one(connection).await?)
    });
    Ok(Fingerprint { rows, revision, accounts })
}

fn no_zero_bytes(table: &Table, rows: &[Vec<Cell>]) -> Result<(), CopyError> {
    for (cell, (column, _)) in rows.iter().flat_map(|row| row.iter().zip(table.columns)) {
        if matches!(cell, Cell::Text(Some(text)) if text.contains('\0')) {
            return Err(CopyError::ZeroByte { table: table.name, column });
        }
    }
    Ok(())
}

fn equal(table: String, source_rows: u64, copied: u64) -> Result<(), CopyError> {
    if source_rows == copied { Ok(()) } else { Err(CopyError::Counts { table, source_rows, copied }) }
}

fn reading(table: &'static str) -> impl Fn(Error) -> CopyError {
    move |cause| CopyError::Read { table, cause }
}

fn writing(table: &'static str) -> impl Fn(Error) -> CopyError {
    move |cause| CopyError::Write { table, cause }
}

impl Cell {
    fn copied(&self) -> Self {
        match self {
            Self::Text(text) => Self::Text(text.clone()),
            Self::Bigint(number) => Self::Bigint(*number),
            Self::Bytes(bytes) => Self::Bytes(bytes.clone()),
        }
    }
}

/// `bind!(values, cell)`: the cell as the next argument.
macro_rules! bind {
    ($values:ident, $cell:expr) => {
        match $cell {
            Cell::Text(text) => $values.push_bind(text),
            Cell::Bigint(number) => $values.push_bind(number),
            Cell::Bytes(bytes) => $values.push_bind(bytes),
        }
    };
}
use bind;

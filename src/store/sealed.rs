//! Reading sealed values wherever they stand, page by page. What is in them nobody here can tell.

use sqlx::{QueryBuilder, Row};

use crate::vault::{Place, Sealed};

use super::Error;
use super::db::{Session, on};
use super::tables::SealedColumn;

/// One value and the row it stands in.
pub(super) struct Found {
    pub(super) row: String,
    pub(super) value: Sealed,
}

/// How far work on a store has come, for whoever waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The table it is at.
    pub table: &'static str,
    /// Done.
    pub done: u64,
    /// Of so many.
    pub total: u64,
}

impl SealedColumn {
    pub(super) fn place<'a>(&self, row: &'a str) -> Place<'a> {
        Place { table: self.table, row, column: self.column }
    }

    /// Up to `limit` values in rows after `after`, by key. With `unlike`: only those that don't begin with these bytes.
    pub(super) async fn page(
        &self,
        session: &mut Session,
        unlike: Option<&[u8]>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Found>, Error> {
        let Self { table, key, column, .. } = *self;
        let rows: Result<Vec<(String, Vec<u8>)>, sqlx::Error> = on!(session, connection => {
            let mut query = QueryBuilder::new(format!("select {key}, {column} from {table}"));
            query.push(" where ").push(key).push(" > ").push_bind(after);
            narrow!(query, self, unlike);
            query.push(" order by ").push(key).push(" limit ").push_bind(limit);
            let rows = query.build().persistent(false).fetch_all(connection).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        });
        Ok(rows?.into_iter().map(|(row, value)| Found { row, value: Sealed::from_bytes(value) }).collect())
    }

    /// How many values there are, or how many that don't begin with `unlike`.
    pub(super) async fn count(&self, session: &mut Session, unlike: Option<&[u8]>) -> Result<u64, Error> {
        let count: i64 = on!(session, connection => {
            let mut query = QueryBuilder::new(format!("select count(*) from {} where 1 = 1", self.table));
            narrow!(query, self, unlike);
            query.build_query_scalar().persistent(false).fetch_one(connection).await?
        });
        Ok(count.unsigned_abs())
    }
}

/// The conditions that [`SealedColumn::page`] and [`SealedColumn::count`] share.
macro_rules! narrow {
    ($query:ident, $at:expr, $unlike:expr) => {
        $query.push(" and ").push($at.column).push(" is not null");
        if let Some(only) = $at.only {
            $query.push(" and ").push($at.key).push(" = ").push_bind(only);
        }
        if let Some(start) = $unlike {
            $query.push(format_args!(" and substr({}, 1, {}) <> ", $at.column, start.len())).push_bind(start);
        }
    };
}
use narrow;

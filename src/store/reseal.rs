//! Replacing sealed values by the same secrets under another key, while gateways work on the store.
//!
//! Each value is exchanged only if it still is the one that was read, so whatever a gateway stored meanwhile stays. Values
//! that are sealed as wanted are never touched: a run that was killed is resumed by running again.

use sqlx::QueryBuilder;

use crate::vault::{Place, Sealed, VaultError};

use super::db::on;
use super::sealed::Progress;
use super::tables::{self, CHECK, SealedColumn};
use super::{Result, Store};

/// Values of one transaction: short enough that no gateway waits for the writer.
const BATCH: i64 = 100;

/// A gateway that seals with an old key makes new work; after so many walks that is said instead of walking on.
const WALKS: usize = 3;

/// A value that does not open.
#[derive(Debug)]
pub struct Unopened {
    /// Its row's key.
    pub row: String,
    /// Why.
    pub cause: VaultError,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Resealed {
    /// Values that were exchanged.
    pub exchanged: u64,
    /// Values that are still not sealed as wanted.
    pub remaining: u64,
    /// Those among them that could not be opened.
    pub unopened: Vec<Unopened>,
}

impl Store {
    /// How many sealed values do not begin with `wanted`, as everything that the primary key sealed does.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn sealed_otherwise(&self, wanted: &[u8]) -> Result<u64> {
        self.count_otherwise(wanted, tables::sealed_columns().chain([CHECK])).await
    }

    async fn count_otherwise(&self, wanted: &[u8], columns: impl Iterator<Item = SealedColumn>) -> Result<u64> {
        let mut read = self.db.read().await?;
        let mut found = 0;
        for column in columns {
            found += column.count(&mut read, Some(wanted)).await?;
        }
        Ok(found)
    }

    /// Exchanges every sealed value that does not begin with `wanted` for what `seal_again` makes of it. The check of the
    /// sealing keys goes last, when nothing else remains: until then a start without the old key is refused.
    ///
    /// # Errors
    /// [`super::Error::Database`]: what was exchanged before stays exchanged.
    pub async fn reseal(
        &self,
        wanted: &[u8],
        mut seal_again: impl FnMut(Place<'_>, &Sealed) -> Result<Sealed, VaultError>,
        mut tell: impl FnMut(Progress),
    ) -> Result<Resealed> {
        let total = self.sealed_otherwise(wanted).await?;
        let mut done = 0;
        let mut tell = |table, more| {
            // A gateway at work may add to the total; the bar need not run over for that.
            done = u64::min(done + more, total);
            tell(Progress { table, done, total });
        };
        let mut outcome = Resealed::default();
        let mut others = 0;
        for _ in 0..WALKS {
            outcome.unopened.clear();
            for column in tables::sealed_columns() {
                self.reseal_column(column, wanted, &mut seal_again, &mut outcome, |more| tell(column.table, more))
                    .await?;
            }
            others = self.count_otherwise(wanted, tables::sealed_columns()).await?;
            if others <= outcome.unopened.len() as u64 {
                break;
            }
        }
        if others == 0 {
            self.reseal_column(CHECK, wanted, &mut seal_again, &mut outcome, |more| tell(CHECK.table, more)).await?;
        }
        outcome.remaining = self.sealed_otherwise(wanted).await?;
        Ok(outcome)
    }

    async fn reseal_column(
        &self,
        column: SealedColumn,
        wanted: &[u8],
        seal_again: &mut impl FnMut(Place<'_>, &Sealed) -> Result<Sealed, VaultError>,
        outcome: &mut Resealed,
        mut tell: impl FnMut(u64),
    ) -> Result<()> {
        let mut after = String::new();
        loop {
            let mut read = self.db.read().await?;
            let page = column.page(&mut read, Some(wanted), &after, BATCH).await?;
            drop(read);
            let Some(last) = page.last() else { return Ok(()) };
            after.clone_from(&last.row);
            let seen = page.len() as u64;
            let mut changes = Vec::new();
            for found in page {
                match seal_again(column.place(&found.row), &found.value) {
                    Ok(sealed) => changes.push((found.row, found.value, sealed)),
                    Err(cause) => outcome.unopened.push(Unopened { row: found.row, cause }),
                }
            }
            outcome.exchanged += self.exchange(column, &changes).await?;
            tell(seen);
        }
    }

    /// One transaction; a value that is not the old one any more is left alone.
    async fn exchange(&self, at: SealedColumn, changes: &[(String, Sealed, Sealed)]) -> Result<u64> {
        let SealedColumn { table, key, column, .. } = at;
        let mut tx = self.db.write().await?;
        let mut exchanged = 0;
        for (row, old, new) in changes {
            exchanged += on!(&mut tx, connection => {
                let mut query = QueryBuilder::new(format!("update {table} set {column} = "));
                query.push_bind(new.as_bytes());
                query.push(format_args!(" where {key} = ")).push_bind(row.as_str());
                query.push(format_args!(" and {column} = ")).push_bind(old.as_bytes());
                super::db::within(query.build().execute(connection)).await?.rows_affected()
            });
        }
        tx.commit().await?;
        Ok(exchanged)
    }
}

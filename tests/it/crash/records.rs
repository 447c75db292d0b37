//! A look into the store from beside: what is on the disk after a kill, and what the audit trail holds.

use std::collections::BTreeMap;

use keyward::ids::AccountId;
use sqlx::postgres::PgRow;
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions, Connection, FromRow, PgConnection};

use crate::harness::World;

/// What is stored of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub generation: i64,
    pub status: String,
    pub reason: Option<String>,
    /// Until when somebody may be refreshing it, in ms; 0: nobody.
    pub leased_until: i64,
}

/// Whether a gateway is on the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Dead,
    Alive,
}

/// Every account by its id.
pub async fn accounts(world: &World, life: Life) -> BTreeMap<String, Stored> {
    let sql = "select id, generation, status, reason, coalesce(lease_until, 0) from accounts where removed_at is null";
    let rows: Vec<(String, i64, String, Option<String>, i64)> = rows(world, life, sql).await;
    let stored =
        |(id, generation, status, reason, leased_until)| (id, Stored { generation, status, reason, leased_until });
    rows.into_iter().map(stored).collect()
}

/// What time does to the leases of a dead gateway. Postgres only: on SQLite the next start does it.
pub async fn end_leases(world: &World) {
    let mut link = PgConnection::connect(&world.store_url).await.unwrap();
    sqlx::query("update accounts set lease_until = 0 where lease_until is not null").execute(&mut link).await.unwrap();
    link.close().await.unwrap();
}

/// How often each account was told to be disconnected.
pub async fn ends_told(world: &World) -> BTreeMap<String, i64> {
    let sql = "select account, count(*) from audit join audit_series using (slice, series) where action = 'account.disconnected' group by account";
    let told: Vec<(Vec<u8>, i64)> = rows(world, Life::Alive, sql).await;
    let id = |bytes: Vec<u8>| AccountId::try_from(&*bytes).unwrap().to_string();
    told.into_iter().map(|(account, times)| (id(account), times)).collect()
}

async fn rows<T>(world: &World, life: Life, sql: &'static str) -> Vec<T>
where
    T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin,
{
    if world.store_url.starts_with("postgres") {
        let mut link = PgConnection::connect(&world.store_url).await.unwrap();
        let rows = sqlx::query_as(sql).fetch_all(&mut link).await.unwrap();
        link.close().await.unwrap();
        return rows;
    }
    // A dead gateway's files are looked at in a copy: the next start must find them as the kill left them.
    let copy = tempfile::tempdir().unwrap();
    let options = match life {
        Life::Alive => SqliteConnectOptions::new().filename(world.dir.path().join("keyward.db")).read_only(true),
        Life::Dead => {
            for name in ["keyward.db", "keyward.db-wal"] {
                let from = world.dir.path().join(name);
                if from.exists() {
                    std::fs::copy(&from, copy.path().join(name)).unwrap();
                }
            }
            SqliteConnectOptions::new().filename(copy.path().join("keyward.db"))
        }
    };
    let mut link = options.connect().await.unwrap();
    let rows = sqlx::query_as(sql).fetch_all(&mut link).await.unwrap();
    link.close().await.unwrap();
    rows
}

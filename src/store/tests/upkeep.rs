//! The list of all tables, moving a store, re-sealing it.

use sqlx::QueryBuilder;
use tempfile::TempDir;

use super::fixture::*;
use crate::config::StoreUrl;
use crate::ids::CandidateId;
use crate::store::db::{fetch_all, on};
use crate::store::tables::{Kind, TABLES};
use crate::store::*;
use crate::vault::{Place, Sealed, VaultError};

/// Name, type and place in the primary key (from 1, 0: none) of each column, as the database tells.
async fn columns(f: &Fixture, table: &str) -> Vec<(String, String, i64)> {
    let mut read = f.store.db.read().await.unwrap();
    match &f.url {
        StoreUrl::Sqlite(_) => {
            let sql = "select name, type, pk from pragma_table_info($1) order by cid";
            fetch_all!(&mut read, (String, String, i64), sql, table).unwrap()
        }
        StoreUrl::Postgres(_) => {
            let sql = "select c.column_name::text, c.data_type::text, coalesce(k.ordinal_position, 0)::bigint \
                       from information_schema.columns c \
                       left join information_schema.key_column_usage k on k.table_schema = c.table_schema \
                       and k.table_name = c.table_name and k.column_name = c.column_name \
                       and k.constraint_name = c.table_name || '_pkey' \
                       where c.table_schema = 'public' and c.table_name = $1 order by c.ordinal_position";
            fetch_all!(&mut read, (String, String, i64), sql, table).unwrap()
        }
    }
}

async fn names(f: &Fixture, sqlite: &'static str, postgres: &'static str) -> Vec<(String, String)> {
    let mut read = f.store.db.read().await.unwrap();
    let sql = if matches!(f.url, StoreUrl::Sqlite(_)) { sqlite } else { postgres };
    fetch_all!(&mut read, (String, String), sql).unwrap()
}

#[tokio::test]
async fn the_list_of_tables_is_the_schema() {
    on_each(async |f| {
        let tables = names(
            &f,
            "select name, '' from sqlite_master where type = 'table' and name not like 'sqlite_%'",
            "select table_name::text, '' from information_schema.tables where table_schema = 'public'",
        );
        let mut tables: Vec<String> = tables.await.into_iter().map(|(name, _)| name).collect();
        tables.retain(|name| name != "_sqlx_migrations");
        tables.sort();
        let mut listed: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
        listed.sort_unstable();
        assert_eq!(tables, listed);

        for table in TABLES {
            let real = columns(&f, table.name).await;
            let kinds = table.columns.iter().map(|(name, kind)| (*name, *kind));
            assert_eq!(
                real.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(),
                kinds.clone().map(|(name, _)| name).collect::<Vec<_>>(),
                "{}",
                table.name
            );
            for ((name, real, _), (_, kind)) in real.iter().zip(kinds) {
                let wanted: &[&str] = match kind {
                    Kind::Text => &["text"],
                    Kind::Bigint => &["bigint"],
                    Kind::Bytes | Kind::Sealed => &["blob", "bytea"],
                };
                assert!(
                    wanted.contains(&real.to_lowercase().as_str()),
                    "{}.{name} is {real}, not {kind:?}",
                    table.name
                );
                // Whoever adds a column of bytes has to say whether it is sealed.
                if matches!(kind, Kind::Bytes | Kind::Sealed) {
                    let plain = name.ends_with("hash")
                        || (table.name, name.as_str()) == ("facts", "value")
                        || table.name.starts_with("audit");
                    assert_eq!(kind == Kind::Bytes, plain, "{}.{name}", table.name);
                }
            }
            let mut key: Vec<(i64, &str)> =
                real.iter().filter(|(.., pk)| *pk > 0).map(|(name, _, pk)| (*pk, name.as_str())).collect();
            key.sort_unstable();
            assert_eq!(key.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", "), table.key_columns());
        }
    })
    .await;
}

#[tokio::test]
async fn the_list_names_a_table_after_those_it_refers_to() {
    on_each(async |f| {
        let references = names(
            &f,
            "select m.name, k.\"table\" from sqlite_master m, pragma_foreign_key_list(m.name) k where m.type = 'table'",
            "select conrelid::regclass::text, confrelid::regclass::text from pg_constraint where contype = 'f'",
        );
        let place = |name: &str| TABLES.iter().position(|table| table.name == name).unwrap();
        let references = references.await;
        assert!(references.len() >= 8, "{references:?}");
        for (from, to) in references {
            assert!(place(&to) < place(&from), "{from} refers to {to}");
        }
    })
    .await;
}

async fn fresh() -> (Store, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_as_is(&StoreUrl::Sqlite(folder.path().join("new.db"))).await.unwrap();
    (store, folder)
}

#[tokio::test]
async fn only_a_fresh_destination_is_taken() {
    on_each(async |f| {
        f.saved_account("ada").await;
        let (to, _folder) = fresh().await;
        // What starting `store migrate` on it leaves is still fresh.
        to.ensure_organization(at(0)).await.unwrap();
        let copied = f.store.copy_to(&to, |_, _| Ok(()), |_| ()).await.unwrap();
        assert!(copied.rows.contains(&("accounts", 1)), "{copied:?}");
        assert_eq!(to.organizations().await.unwrap(), f.store.organizations().await.unwrap());
        let again = f.store.copy_to(&to, |_, _| Ok(()), |_| ()).await.err().unwrap();
        assert!(matches!(again, CopyError::NotEmpty(_)), "{again}");

        for spoil in ["insert into facts (name, value) values ('a', 'b')", "update policy_revision set revision = 1"] {
            let (used, _folder) = fresh().await;
            let mut tx = used.db.write().await.unwrap();
            on!(&mut tx, connection => { sqlx::query(spoil).execute(connection).await.unwrap(); });
            tx.commit().await.unwrap();
            let refused = f.store.copy_to(&used, |_, _| Ok(()), |_| ()).await.err().unwrap();
            assert!(matches!(refused, CopyError::NotEmpty(_)), "{spoil}: {refused}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_fails_leaves_the_destination_fresh() {
    on_each(async |f| {
        f.saved_account("ada").await;
        let (to, _folder) = fresh().await;
        let closed =
            |place: Place<'_>, _: &Sealed| Err(VaultError::Damaged { table: place.table, column: place.column });
        let refused = f.store.copy_to(&to, closed, |_| ()).await.err().unwrap();
        assert!(matches!(refused, CopyError::Sealed { .. }), "{refused}");
        f.store.copy_to(&to, |_, _| Ok(()), |_| ()).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_changes_meanwhile_is_noticed() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let (to, _folder) = fresh().await;
        let mut refreshed = false;
        let refresh = |_| {
            if !std::mem::replace(&mut refreshed, true) {
                assert!(now(f.store.save_tokens(account.id, 1, &tokens("second"), at(9), &[], recovered)).unwrap());
            }
        };
        let refused = f.store.copy_to(&to, |_, _| Ok(()), refresh).await.err().unwrap();
        assert!(matches!(refused, CopyError::Changed), "{refused}");
        assert!(to.organizations().await.unwrap().is_empty());
    })
    .await;
}

/// Something done from inside a callback, as another instance would do it meanwhile.
fn now<T>(work: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_while_resealing_stays() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        f.store.fact_or_insert("sealing_check", b"old check").await.unwrap();
        let mut seen = Vec::new();
        let again = |place: Place<'_>, old: &Sealed| {
            let old = String::from_utf8(old.as_bytes().to_vec()).unwrap();
            if old == "refresh first" {
                // A gateway that still seals with the old key gets in between.
                assert!(now(f.store.save_tokens(account.id, 1, &tokens("second"), at(9), &[], recovered)).unwrap());
            }
            seen.push(format!("{} {old}", place.column));
            Ok(sealed(&format!("new {old}")))
        };
        let outcome = f.store.reseal(b"new ", again, |_| ()).await.unwrap();
        assert_eq!(outcome.remaining, 0);
        let held = f.store.tokens(account.id).await.unwrap().unwrap();
        assert_eq!(held.refresh.unwrap().as_bytes(), b"new refresh second");
        assert_eq!(held.access.unwrap().as_bytes(), b"new access second");
        assert_eq!(f.store.fact("sealing_check").await.unwrap().unwrap(), b"new old check");
        assert_eq!(seen.last().map(String::as_str), Some("value old check"), "the check goes last");
        assert_eq!(held.account.generation, 2, "a gateway's compare-and-set is not disturbed");
    })
    .await;
}

#[tokio::test]
async fn a_value_that_does_not_open_keeps_the_check_where_it_is() {
    on_each(async |f| {
        f.store.fact_or_insert("sealing_check", b"old check").await.unwrap();
        // More than one batch of everything that works in batches.
        for person in 0..25 {
            let account = f.saved_account(&format!("person {person}")).await;
            for n in person * 10..person * 10 + 10 {
                let token = sealed(&format!("old {n}"));
                f.store.insert_candidate(CandidateId::new(), account.id, &token, at(n), revived).await.unwrap();
            }
        }
        let again = |place: Place<'_>, old: &Sealed| match old.as_bytes() {
            b"old 111" => Err(VaultError::Damaged { table: place.table, column: place.column }),
            old => Ok(Sealed::from_bytes([b"new ", old].concat())),
        };
        let mut steps = Vec::new();
        let outcome = f.store.reseal(b"new ", again, |progress| steps.push(progress)).await.unwrap();
        assert_eq!((outcome.exchanged, outcome.remaining, outcome.unopened.len()), (299, 2, 1));
        assert_eq!(f.store.fact("sealing_check").await.unwrap().unwrap(), b"old check");
        assert!(steps.len() > 3 && steps.iter().all(|step| step.total == 301), "{steps:?}");
        assert!(steps.is_sorted_by_key(|step| step.done));
    })
    .await;
}

#[tokio::test]
async fn an_open_store_is_in_use() {
    on_each(async |f| {
        f.saved_account("ada").await;
        assert!(Store::is_in_use(&f.url).await.unwrap());
        f.store.close().await;
        assert!(!Store::is_in_use(&f.url).await.unwrap());
        let again = Store::open_as_is(&f.url).await.unwrap();
        assert!(again.schema_version().await.unwrap() >= 1);
        assert!(Store::is_in_use(&f.url).await.unwrap());
        again.close().await;
    })
    .await;
}

/// SQLite takes it, Postgres does not: said by name instead of by a database's message.
#[tokio::test]
async fn a_zero_byte_is_named_before_postgres_refuses_it() {
    on_each(async |f| {
        if matches!(f.url, StoreUrl::Sqlite(_)) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let from = Store::open(&StoreUrl::Sqlite(folder.path().join("old.db")), at(0)).await.unwrap();
        let mut tx = from.db.write().await.unwrap();
        on!(&mut tx, connection => {
            let mut query = QueryBuilder::new("update organizations set name = ");
            query.push_bind("a\0b").build().execute(connection).await.unwrap();
        });
        tx.commit().await.unwrap();
        let refused = from.copy_to(&f.store, |_, _| Ok(()), |_| ()).await.err().unwrap();
        assert!(matches!(refused, CopyError::ZeroByte { table: "organizations", column: "name" }), "{refused}");
    })
    .await;
}

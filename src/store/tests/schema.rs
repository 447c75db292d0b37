//! Opening, facts, organizations, sessions.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use super::fixture::*;
use crate::config::StoreUrl;
use crate::ids::OrgId;
use crate::secret::sha256;
use crate::store::*;

#[tokio::test]
async fn a_second_start_finds_what_the_first_made() {
    on_each(async |f| {
        f.store.ping().await.unwrap();
        f.saved_account("ada").await;
        let again = Store::open(&f.url, at(9)).await.unwrap();
        assert_eq!(again.organizations().await.unwrap(), f.store.organizations().await.unwrap());
        assert_eq!(again.organizations().await.unwrap().len(), 1);
        assert_eq!(again.accounts(f.org, &AccountFilter::default(), &all()).await.unwrap().items.len(), 1);
        again.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_may_start_on_an_empty_database_at_once() {
    on_each(async |f| {
        f.store.close().await;
        f.empty().await;
        let starting: Vec<_> = (0..4)
            .map(|n| {
                let f = f.clone();
                tokio::spawn(async move { Store::open(&f.url, at(n)).await.unwrap() })
            })
            .collect();
        for start in starting {
            let store = start.await.unwrap();
            assert_eq!(store.organizations().await.unwrap().len(), 1);
            store.close().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_may_make_the_same_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let file = folder.path().join(format!("{round}.db"));
        let starting: Vec<_> = (0..4)
            .map(|n| {
                let url = StoreUrl::Sqlite(file.clone());
                tokio::spawn(async move { Store::open(&url, at(n)).await })
            })
            .collect();
        for start in starting {
            start.await.unwrap().unwrap_or_else(|error| panic!("round {round}: {error}")).close().await;
        }
    }
}

#[tokio::test]
async fn a_database_of_a_newer_keyward_is_refused() {
    on_each(async |f| {
        let mut tx = f.store.db.write().await.unwrap();
        for version in [7_000i64, 7_001] {
            db::execute!(
                &mut tx,
                "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
                 select $1, 'later', success, checksum, 0 from _sqlx_migrations where version = 1",
                version
            )
            .unwrap();
        }
        tx.commit().await.unwrap();
        let refused = Store::open(&f.url, at(9)).await.err().unwrap();
        assert!(matches!(refused, Error::NewerSchema { found: 7_001, known: 2 }), "{refused}");
    })
    .await;
}

#[tokio::test]
async fn a_sqlite_file_is_for_its_owner_alone() {
    on_each(async |f| {
        let StoreUrl::Sqlite(path) = &f.url else { return };
        f.saved_account("ada").await;
        for suffix in ["", "-wal", "-shm", ".lock"] {
            let file = format!("{}{suffix}", path.display());
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        }
    })
    .await;
}

#[tokio::test]
async fn both_databases_have_the_same_tables_and_columns() {
    let folder = format!("{}/migrations", env!("CARGO_MANIFEST_DIR"));
    let names = |which: &str| {
        let files = std::fs::read_dir(format!("{folder}/{which}")).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names("sqlite"), names("postgres"));
    for name in names("sqlite") {
        let [one, other] = ["sqlite", "postgres"].map(|which| {
            let text = std::fs::read_to_string(format!("{folder}/{which}/{name}"))
                .unwrap()
                .replace(" collate \"C\"", "")
                .replace("bytea", "blob")
                .replace(" without rowid", "");
            text.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n")
        });
        assert_eq!(one, other, "{name}");
    }
}

#[tokio::test]
async fn the_first_fact_stays() {
    on_each(async |f| {
        assert_eq!(f.store.fact("sealing_check").await.unwrap(), None);
        assert_eq!(f.store.fact_or_insert("sealing_check", b"one").await.unwrap(), b"one");
        assert_eq!(f.store.fact_or_insert("sealing_check", b"two").await.unwrap(), b"one");
        assert_eq!(f.store.fact("sealing_check").await.unwrap().as_deref(), Some(&b"one"[..]));
    })
    .await;
}

#[tokio::test]
async fn organizations_are_found_by_name_and_by_id() {
    on_each(async |f| {
        let other = f.other_org().await;
        let names: Vec<String> = f.store.organizations().await.unwrap().into_iter().map(|org| org.name).collect();
        assert_eq!(names, ["default", "other"]);
        assert_eq!(f.store.organization("other").await.unwrap().unwrap().id, other);
        assert_eq!(f.store.organization(&other.to_string()).await.unwrap().unwrap().name, "other");
        assert_eq!(f.store.organization("nobody").await.unwrap(), None);
        let twin = OrganizationRow { id: OrgId::new(), name: "other".into(), created_at: at(3) };
        let taken = f.store.insert_organization(&twin, &record(None, "organization.created")).await;
        assert!(matches!(taken, Err(Error::Conflict)));
    })
    .await;
}

#[tokio::test]
async fn a_session_ends_by_time_or_by_hand() {
    on_each(async |f| {
        let [short, long] = [("short", 100), ("long", 200)].map(|(name, end)| SessionRow {
            hash: sha256(name.as_bytes()),
            created_at: at(0),
            expires_at: at(end),
        });
        f.store.insert_session(&short).await.unwrap();
        f.store.insert_session(&long).await.unwrap();
        let read = f.store.session(&long.hash, at(150)).await.unwrap().unwrap();
        assert_eq!((read.hash, read.created_at, read.expires_at), (long.hash, at(0), at(200)));
        assert!(f.store.session(&short.hash, at(100)).await.unwrap().is_none());
        assert_eq!(f.store.prune_sessions(at(100)).await.unwrap(), 1);
        f.store.delete_session(&long.hash).await.unwrap();
        assert!(f.store.session(&long.hash, at(150)).await.unwrap().is_none());
    })
    .await;
}

/// A service awaits these in tasks that move between threads; a driver's bounds can spoil that silently.
#[tokio::test]
async fn every_unit_of_work_may_move_between_threads() {
    fn moves(_: impl Future + Send) {}
    on_each(async |f| {
        let (store, account) = (&f.store, account(f.org, "ada"));
        let (note, key, page) = (record(None, "nothing"), key(f.org, "builder"), all());
        let save = SaveConnected { account: account.clone(), tokens: tokens("x"), existing: false };
        moves(Store::open(&f.url, at(0)));
        moves(store.fact_or_insert("a", b"b"));
        moves(store.accounts(f.org, &AccountFilter::default(), &page));
        moves(store.tokens(account.id));
        moves(store.save_connected(&save, &note));
        moves(store.save_tokens(account.id, 1, &save.tokens, at(0), std::slice::from_ref(&note), recovered));
        let gone = leaving(&account, &[]);
        moves(store.disconnect(&gone, &note));
        moves(store.candidates(account.id));
        moves(store.claim_revocations(1, at(0), at(1)));
        moves(store.postpone_revocation(revocation().id, at(0), Some(&note)));
        moves(store.update_key(&key, &note));
        moves(store.touch_keys(&[(key.id, at(0))]));
        moves(store.insert_target(&static_target(f.org, "crm"), &note));
        moves(store.sync_system_targets(&[], at(0)));
        moves(store.policy());
        moves(store.audit(f.org, &AuditFilter::default(), &page));
        moves(store.append_audit(&[]));
        moves(store.take_flow(&[0; 32]));
        moves(store.insert_flow(&flow(f.org)));
    })
    .await;
}

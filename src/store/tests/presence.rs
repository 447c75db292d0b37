//! Whose leases a start ends.

use super::fixture::*;
use crate::config::StoreUrl;
use crate::ids::InstanceId;
use crate::store::*;

const HOUR: i64 = 3_600_000;

fn is_sqlite(f: &Fixture) -> bool {
    matches!(f.url, StoreUrl::Sqlite(_))
}

#[tokio::test]
async fn a_start_on_a_store_where_nobody_lives_ends_leases_and_remembers_refreshes() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let taken = f.store.take_lease(account.id, InstanceId::new(), HOUR).await.unwrap();
        assert!(matches!(taken, Taken::Won(Lease { maybe_spent: false, .. })));
        assert!(f.store.unresolved_refreshes(10).await.unwrap().is_empty(), "it is under way");
        f.store.close().await;

        let next = Store::open(&f.url, at(9)).await.unwrap();
        let taken = next.take_lease(account.id, InstanceId::new(), HOUR).await.unwrap();
        if is_sqlite(&f) {
            let Taken::Won(lease) = taken else { panic!("{taken:?}") };
            assert!(lease.maybe_spent, "that a refresh began is not forgotten");
        } else {
            assert_eq!(taken, Taken::Held, "it may be on another machine: its lease ends by its time");
        }
        next.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_start_beside_a_living_instance_leaves_its_leases_alone() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let (here, there) = (InstanceId::new(), InstanceId::new());
        assert!(matches!(f.store.take_lease(account.id, here, HOUR).await.unwrap(), Taken::Won(_)));

        let second = Store::open(&f.url, at(9)).await.unwrap();
        assert_eq!(second.take_lease(account.id, there, HOUR).await.unwrap(), Taken::Held);
        assert!(f.store.renew_lease(account.id, here, HOUR).await.unwrap());

        // Whoever stays keeps the place: a third start is not alone although the first has left.
        f.store.release_lease(account.id, here, false).await.unwrap();
        assert!(matches!(second.take_lease(account.id, there, HOUR).await.unwrap(), Taken::Won(_)));
        f.store.close().await;
        let third = Store::open(&f.url, at(9)).await.unwrap();
        assert_eq!(third.take_lease(account.id, here, HOUR).await.unwrap(), Taken::Held);

        second.close().await;
        third.close().await;
        let last = Store::open(&f.url, at(9)).await.unwrap();
        let unresolved = last.unresolved_refreshes(10).await.unwrap();
        assert_eq!(unresolved.len(), usize::from(is_sqlite(&f)), "found at once by whoever comes next");
        last.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_clone_of_the_store_keeps_the_place() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let first = Store::open(&f.url, at(9)).await.unwrap();
        f.store.close().await;
        let clone = first.clone();
        drop(first);
        assert!(matches!(clone.take_lease(account.id, InstanceId::new(), HOUR).await.unwrap(), Taken::Won(_)));
        let other = Store::open(&f.url, at(9)).await.unwrap();
        assert_eq!(other.take_lease(account.id, InstanceId::new(), HOUR).await.unwrap(), Taken::Held);
        other.close().await;
        clone.close().await;
    })
    .await;
}

//! The audit trail.

use super::fixture::*;
use crate::ids::{AccountId, AuditId, KeyId, OrgId, RequestId};
use crate::store::*;

/// A record with everything in it.
fn full(org: OrgId) -> AuditRow {
    AuditRow {
        request: Some(RequestId::next()),
        key: Some(KeyId::new()),
        target: Some("crm".into()),
        account: Some(AccountId::new()),
        method: Some("POST".into()),
        path: Some("/me/sendMail".into()),
        status: Some(403),
        code: Some("not_permitted".into()),
        bytes_in: Some(12),
        bytes_out: Some(34),
        duration_us: Some(56),
        detail: Some(serde_json::json!({"rule": "ask", "n": [1, null]})),
        ..record(Some(org), "request")
    }
}

#[tokio::test]
async fn a_record_reads_back_as_it_was_written() {
    on_each(async |f| {
        let full = full(f.org);
        f.store.append_audit(std::slice::from_ref(&full)).await.unwrap();
        let read = f.store.audit(f.org, &AuditFilter::default(), &all()).await.unwrap().items;
        assert_eq!(format!("{read:?}"), format!("{:?}", [&full]));

        // An agent's request has the id of its record; an act has none.
        let own = record(Some(f.org), "request");
        let own = AuditRow { request: Some(own.id.into()), ..own };
        let act = record(Some(f.org), "key.created");
        f.store.append_audit(&[own.clone(), act.clone()]).await.unwrap();
        let read = f.store.audit(f.org, &AuditFilter::default(), &all()).await.unwrap().items;
        assert_eq!(format!("{:?}", &read[..2]), format!("{:?}", [act, own]));
    })
    .await;
}

#[tokio::test]
async fn an_outcome_completes_its_intent_whichever_comes_last() {
    on_each(async |f| {
        let own = record(Some(f.org), "request");
        let outcome = AuditRow { request: Some(own.id.into()), status: Some(200), bytes_out: Some(34), ..own };
        let intent = AuditRow { status: None, code: Some("unknown".into()), bytes_out: None, ..outcome.clone() };
        f.store.append_intents(std::slice::from_ref(&intent)).await.unwrap();
        // In one batch with a record that needs more columns.
        let full = full(f.org);
        f.store.append_audit(&[outcome.clone(), full.clone()]).await.unwrap();
        f.store.append_intents(&[intent]).await.unwrap();
        let read = f.store.audit(f.org, &AuditFilter::default(), &all()).await.unwrap().items;
        assert_eq!(format!("{read:?}"), format!("{:?}", [full, outcome]));
    })
    .await;
}

#[tokio::test]
async fn a_batch_sent_again_is_stored_once() {
    on_each(async |f| {
        let rows: Vec<AuditRow> = (0..123).map(|_| record(Some(f.org), "request")).collect();
        f.store.append_audit(&[]).await.unwrap();
        f.store.append_audit(&rows).await.unwrap();
        f.store.append_audit(&rows).await.unwrap();
        assert_eq!(f.recorded("request").await, 123);
    })
    .await;
}

#[tokio::test]
async fn records_come_newest_first_and_by_filter() {
    on_each(async |f| {
        let (key, account) = (KeyId::new(), AccountId::new());
        let rows: Vec<AuditRow> = (0..6)
            .map(|n| AuditRow {
                id: AuditId::at(at(n * 100).millis()),
                at: at(n * 100),
                key: (n % 2 == 0).then_some(key),
                account: (n == 2).then_some(account),
                target: (n > 3).then(|| "crm".into()),
                status: Some(200 + n),
                ..record(Some(f.org), "request")
            })
            .collect();
        let other = f.other_org().await;
        f.store.append_audit(&rows).await.unwrap();
        f.store.append_audit(&[record(Some(other), "request"), record(None, "request")]).await.unwrap();

        let found = async |filter: AuditFilter| {
            let page = f.store.audit(f.org, &filter, &all()).await.unwrap();
            page.items.iter().map(|row| row.status.unwrap_or_default() - 200).collect::<Vec<_>>()
        };
        let any = AuditFilter::default;
        assert_eq!(found(any()).await, [5, 4, 3, 2, 1, 0]);
        assert_eq!(found(AuditFilter { key: Some(key), ..any() }).await, [4, 2, 0]);
        assert_eq!(found(AuditFilter { account: Some(account), ..any() }).await, [2]);
        assert_eq!(found(AuditFilter { target: Some("crm".into()), ..any() }).await, [5, 4]);
        assert_eq!(found(AuditFilter { status: Some(203), ..any() }).await, [3]);
        assert_eq!(found(AuditFilter { since: Some(at(100)), until: Some(at(300)), ..any() }).await, [2, 1]);
        assert_eq!(found(AuditFilter { key: Some(key), target: Some("crm".into()), ..any() }).await, [4]);

        let mut seen = Vec::new();
        let mut page = Page { limit: 4, after: None };
        loop {
            let part = f.store.audit(f.org, &any(), &page).await.unwrap();
            seen.extend(part.items.iter().map(|row| row.id));
            page.after = part.next;
            if page.after.is_none() {
                break;
            }
        }
        assert_eq!(seen, rows.iter().rev().map(|row| row.id).collect::<Vec<_>>());
        assert_eq!(f.store.audit(other, &any(), &all()).await.unwrap().items.len(), 1);

        // Also those of others and of nobody, and the one of the other organization's making.
        assert_eq!(f.store.prune_audit(at(300)).await.unwrap(), 6);
        assert_eq!(found(any()).await, [5, 4, 3]);
    })
    .await;
}

#[tokio::test]
async fn a_filter_finds_its_records_in_every_slice_of_time() {
    on_each(async |f| {
        let (key, other) = (KeyId::new(), KeyId::new());
        let rows: Vec<AuditRow> = (0..40)
            .map(|n| AuditRow {
                id: AuditId::at(at(n * 3_000).millis()),
                at: at(n * 3_000),
                key: Some(if n % 3 == 0 { key } else { other }),
                target: Some(if n % 2 == 0 { "crm" } else { "mail" }.into()),
                status: Some(n),
                ..record(Some(f.org), "request")
            })
            .collect();
        f.store.append_audit(&rows).await.unwrap();
        let found = async |filter: AuditFilter| {
            let mut seen = Vec::new();
            let mut page = Page { limit: 3, after: None };
            loop {
                let part = f.store.audit(f.org, &filter, &page).await.unwrap();
                seen.extend(part.items.iter().map(|row| row.status.unwrap()));
                page.after = part.next;
                if page.after.is_none() {
                    return seen;
                }
            }
        };
        let wanted = |wanted: fn(&i64) -> bool| (0..40).rev().filter(wanted).collect::<Vec<_>>();
        let by_key = AuditFilter { key: Some(key), ..AuditFilter::default() };
        assert_eq!(found(by_key.clone()).await, wanted(|n| n % 3 == 0));
        let both = AuditFilter { target: Some("crm".into()), ..by_key.clone() };
        assert_eq!(found(both).await, wanted(|n| n % 6 == 0));
        let late = AuditFilter { since: Some(at(60_000)), ..by_key.clone() };
        assert_eq!(found(late).await, wanted(|n| n % 3 == 0 && *n >= 20));

        assert_eq!(f.store.prune_audit(at(60_000)).await.unwrap(), 20);
        assert_eq!(found(by_key).await, wanted(|n| n % 3 == 0 && *n >= 20));
        let nonsense = Page { limit: 3, after: Some("aud_1".into()) };
        assert!(f.store.audit(f.org, &AuditFilter::default(), &nonsense).await.unwrap().items.is_empty());
    })
    .await;
}

#[tokio::test]
async fn what_records_share_is_stored_once() {
    on_each(async |f| {
        let key = KeyId::new();
        let rows: Vec<AuditRow> = (0..300)
            .map(|n| AuditRow {
                id: AuditId::at(at(if n < 200 { 0 } else { 60_000 }).millis()),
                key: (n % 3 > 0).then_some(key),
                method: Some(if n % 3 == 1 { "GET" } else { "PUT" }.into()),
                ..record(Some(f.org), "request")
            })
            .collect();
        f.store.append_audit(&rows[..150]).await.unwrap();
        f.store.append_audit(&rows[150..]).await.unwrap();
        let series = async || {
            let mut read = f.store.db.read().await.unwrap();
            db::fetch_all!(&mut read, (i64,), "select series from audit_series").unwrap().len()
        };
        // Three kinds of them, in two slices.
        assert_eq!(series().await, 6);
        // They stay while one of their records does.
        assert_eq!(f.store.prune_audit(at(1)).await.unwrap(), 200);
        assert_eq!((series().await, f.recorded("request").await), (6, 100));
        assert_eq!(f.store.prune_audit(at(60_000)).await.unwrap(), 0);
        assert_eq!((series().await, f.recorded("request").await), (3, 100));
        assert_eq!(f.store.prune_audit(at(120_000)).await.unwrap(), 100);
        assert_eq!(series().await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_trail_from_before_there_were_series_is_kept() {
    on_each(async |f| {
        let full = full(f.org);
        let again = AuditRow { id: AuditId::at(full.id.millis()), request: Some(RequestId::next()), ..full.clone() };
        let bare = record(Some(f.org), "session.opened");
        let written = [full.clone(), again, bare, record(None, "request")];
        f.store.append_audit(&written).await.unwrap();
        let read = async |store: &Store| {
            let by_key = AuditFilter { key: full.key, ..AuditFilter::default() };
            let all = store.audit(f.org, &AuditFilter::default(), &all()).await.unwrap().items;
            (format!("{all:?}"), store.audit(f.org, &by_key, &self::all()).await.unwrap().items.len())
        };
        let before = read(&f.store).await;

        // As the first version kept them.
        let mut tx = f.store.db.write().await.unwrap();
        for sql in [
            "create table audit_before as select a.*, s.actor, s.action, s.agent_key, s.target, s.account, s.method \
             from audit a join audit_series s on s.slice = a.slice and s.series = a.series",
            "drop table audit",
            "drop table audit_series",
            "alter table audit_before rename to audit",
            "delete from _sqlx_migrations where version = 2",
        ] {
            db::execute!(&mut tx, sql).unwrap();
        }
        tx.commit().await.unwrap();
        let migrated = Store::open(&f.url, at(9)).await.unwrap();
        assert_eq!(read(&migrated).await, before);
        assert_eq!(before.1, 2);
        // What nobody can be told of is there too, and the next records find their place.
        let mut tx = migrated.db.read().await.unwrap();
        assert_eq!(db::fetch_all!(&mut tx, (i64,), "select at from audit").unwrap().len(), 4);
        drop(tx);
        migrated.append_audit(&written).await.unwrap();
        assert_eq!(read(&migrated).await, before);
        migrated.close().await;
    })
    .await;
}

#[tokio::test]
async fn organizations_find_their_own_of_what_is_alike() {
    on_each(async |f| {
        let other = f.other_org().await;
        let made = |org| AuditRow { target: Some("shop".into()), ..record(Some(org), "target.created") };
        f.store.append_audit(&[made(f.org), made(other), made(f.org)]).await.unwrap();
        let shop = AuditFilter { target: Some("shop".into()), ..AuditFilter::default() };
        for (org, records) in [(f.org, 2), (other, 1)] {
            assert_eq!(f.store.audit(org, &shop, &all()).await.unwrap().items.len(), records);
        }
    })
    .await;
}

//! Keys, grants, targets, and the policy made of them.

use super::fixture::*;
use crate::config::{Protection, Transport};
use crate::ids::TargetId;
use crate::store::*;

#[tokio::test]
async fn a_key_is_saved_changed_and_stays_revoked() {
    on_each(async |f| {
        let mut key = f.saved_key("builder").await;
        key.name = "robot".into();
        key.expires_at = Some(at(1_000));
        key.allowed_ips = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::1/128".parse().unwrap()];
        key.previous = Some((key.hash, at(500)));
        key.hash = [9; 32];
        let slow_change = key.clone();
        f.store.update_key(&key, &record(Some(f.org), "key.rotated")).await.unwrap();
        let read = f.store.key(f.org, key.id).await.unwrap().unwrap();
        assert_eq!((&read.name, read.hash, read.previous), (&key.name, key.hash, key.previous));
        assert_eq!((read.expires_at, read.allowed_ips), (key.expires_at, key.allowed_ips.clone()));

        key.revoked_at = Some(at(20));
        f.store.update_key(&key, &record(Some(f.org), "key.revoked")).await.unwrap();
        f.store.update_key(&slow_change, &record(Some(f.org), "key.changed")).await.unwrap();
        assert_eq!(f.store.key(f.org, key.id).await.unwrap().unwrap().revoked_at, Some(at(20)));
        assert!(f.store.policy().await.unwrap().keys.is_empty());
        assert_eq!(f.recorded("key.rotated").await, 1);

        let stranger = KeyRow { organization: f.other_org().await, ..key.clone() };
        let refused = f.store.update_key(&stranger, &record(Some(f.org), "key.stolen")).await;
        assert!(matches!(refused, Err(Error::NotFound)));
        assert_eq!(f.recorded("key.stolen").await, 0);
        assert!(f.store.key(stranger.organization, key.id).await.unwrap().is_none());

        let twin = KeyRow { id: crate::ids::KeyId::new(), ..key };
        assert!(matches!(f.store.insert_key(&twin, &record(None, "key.created")).await, Err(Error::Conflict)));
    })
    .await;
}

#[tokio::test]
async fn the_last_use_of_a_key_only_moves_forward() {
    on_each(async |f| {
        let (one, two) = (f.saved_key("one").await, f.saved_key("two").await);
        let revision = f.store.revision().await.unwrap();
        f.store.touch_keys(&[(two.id, at(70)), (one.id, at(60))]).await.unwrap();
        f.store.touch_keys(&[(two.id, at(10))]).await.unwrap();
        assert_eq!(f.store.key(f.org, one.id).await.unwrap().unwrap().last_used_at, Some(at(60)));
        assert_eq!(f.store.key(f.org, two.id).await.unwrap().unwrap().last_used_at, Some(at(70)));
        assert_eq!(f.store.revision().await.unwrap(), revision);
    })
    .await;
}

#[tokio::test]
async fn lists_go_on_where_they_stopped() {
    on_each(async |f| {
        let mut made = Vec::new();
        for name in ["one", "two", "three"] {
            made.push(f.saved_key(name).await.id);
        }
        let mut page = Page { limit: 2, after: None };
        let first = f.store.keys(f.org, &page).await.unwrap();
        assert_eq!(first.items.iter().map(|key| key.id).collect::<Vec<_>>(), made[..2]);
        page.after = first.next;
        let last = f.store.keys(f.org, &page).await.unwrap();
        assert_eq!((last.items[0].id, last.items.len(), last.next), (made[2], 1, None));
        let least = f.store.keys(f.org, &Page { limit: 0, after: None }).await.unwrap();
        assert_eq!((least.items.len(), least.next), (1, Some(made[0].to_string())));
        let most = f.store.keys(f.org, &Page { limit: u32::MAX, after: None }).await.unwrap();
        assert_eq!(most.items.len(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_grant_needs_a_key_and_a_target_of_the_same_organization() {
    on_each(async |f| {
        let key = f.saved_key("builder").await;
        let crm = static_target(f.org, "crm");
        f.store.insert_target(&crm, &record(Some(f.org), "target.created")).await.unwrap();
        f.store.sync_system_targets(&[("models".into(), "Models".into())], at(2)).await.unwrap();
        let system = f.store.target(f.org, "models").await.unwrap().unwrap();
        let other = f.other_org().await;
        let foreign = static_target(other, "crm");
        f.store.insert_target(&foreign, &record(Some(other), "target.created")).await.unwrap();

        let grant =
            |target: TargetId, access| GrantRow { key: key.id, target, slug: String::new(), access, created_at: at(5) };
        let note = || record(Some(f.org), "grant.changed");
        f.store.put_grant(f.org, &grant(system.id, GrantAccess::Read), &note()).await.unwrap();
        f.store.put_grant(f.org, &grant(crm.id, GrantAccess::Read), &note()).await.unwrap();
        f.store.put_grant(f.org, &grant(crm.id, GrantAccess::Write), &note()).await.unwrap();
        for (org, target) in [(f.org, foreign.id), (f.org, TargetId::new()), (other, crm.id), (other, foreign.id)] {
            let refused = f.store.put_grant(org, &grant(target, GrantAccess::Read), &note()).await;
            assert!(matches!(refused, Err(Error::NotFound)));
        }
        assert_eq!(f.recorded("grant.changed").await, 3);

        let grants = f.store.grants_of_key(f.org, key.id).await.unwrap();
        let read: Vec<_> = grants.iter().map(|grant| (grant.slug.as_str(), grant.access)).collect();
        assert_eq!(read, [("crm", GrantAccess::Write), ("models", GrantAccess::Read)]);
        assert!(f.store.grants_of_key(other, key.id).await.unwrap().is_empty());

        let note = record(Some(f.org), "grant.removed");
        assert!(!f.store.delete_grant(other, key.id, crm.id, &note).await.unwrap());
        assert!(f.store.delete_grant(f.org, key.id, crm.id, &note).await.unwrap());
        assert!(!f.store.delete_grant(f.org, key.id, crm.id, &note).await.unwrap());
        assert_eq!(f.store.grants_of_key(f.org, key.id).await.unwrap().len(), 1);
        assert_eq!(f.recorded("grant.removed").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_static_target_lives_under_a_slug_of_its_own() {
    on_each(async |f| {
        f.store.sync_system_targets(&[("models".into(), "Models".into())], at(2)).await.unwrap();
        let mut crm = static_target(f.org, "crm");
        let note = || record(Some(f.org), "target.changed");
        f.store.insert_target(&crm, &note()).await.unwrap();
        for slug in ["crm", "models"] {
            let taken = f.store.insert_target(&static_target(f.org, slug), &note()).await;
            assert!(matches!(taken, Err(Error::Conflict)), "{slug}");
        }
        let other = f.other_org().await;
        f.store.insert_target(&static_target(other, "crm"), &note()).await.unwrap();

        crm.name = "Customers".into();
        crm.kind = TargetKind::Static {
            base_url: "https://crm.example.com".into(),
            credential_kind: "none".into(),
            credential: None,
            fence: vec!["/a".into(), "/b/**".into()],
            protection: Protection { concurrency: std::num::NonZeroU32::new(5), reflect_guard: Some(false) },
            transport: Transport { http1_only: true, websocket: true, set_cookie: true },
        };
        crm.updated_at = at(50);
        f.store.update_target(&crm, &note()).await.unwrap();
        let read = f.store.target(f.org, "crm").await.unwrap().unwrap();
        assert_eq!(
            (read.id, read.name.as_str(), read.created_at, read.updated_at),
            (crm.id, "Customers", at(1), at(50))
        );
        let TargetKind::Static { base_url, credential_kind, credential, fence, protection, transport } = read.kind
        else {
            panic!("static")
        };
        assert!(transport.http1_only && transport.websocket && transport.set_cookie);
        assert_eq!((base_url.as_str(), credential_kind.as_str()), ("https://crm.example.com", "none"));
        assert!(credential.is_none());
        assert_eq!(fence, ["/a", "/b/**"]);
        assert_eq!((protection.concurrency, protection.reflect_guard), (std::num::NonZeroU32::new(5), Some(false)));

        let slugs = |targets: Paged<TargetRow>| targets.items.into_iter().map(|row| row.slug).collect::<Vec<_>>();
        assert_eq!(slugs(f.store.targets(f.org, &all()).await.unwrap()), ["models", "crm"]);
        let first = f.store.targets(f.org, &Page { limit: 1, after: None }).await.unwrap();
        let rest = f.store.targets(f.org, &Page { limit: 1, after: first.next }).await.unwrap();
        assert_eq!((slugs(rest.clone()), rest.next), (vec!["crm".to_owned()], None));

        let key = f.saved_key("builder").await;
        f.granted(&key, &TargetRef { id: crm.id, ..target_ref("crm", "") }).await;
        assert!(!f.store.delete_target(other, crm.id, &note()).await.unwrap());
        assert!(f.store.delete_target(f.org, crm.id, &note()).await.unwrap());
        assert!(!f.store.delete_target(f.org, crm.id, &note()).await.unwrap());
        assert!(f.store.target(f.org, "crm").await.unwrap().is_none());
        assert!(f.store.grants_of_key(f.org, key.id).await.unwrap().is_empty());
        assert!(matches!(f.store.update_target(&crm, &note()).await, Err(Error::NotFound)));
    })
    .await;
}

#[tokio::test]
async fn managed_and_system_targets_are_not_changed_by_hand() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        f.store.sync_system_targets(&[("models".into(), "Models".into())], at(2)).await.unwrap();
        let note = || record(Some(f.org), "target.changed");
        for slug in [account.targets[0].slug.as_str(), "models"] {
            let target = f.store.target(f.org, slug).await.unwrap().unwrap();
            assert!(matches!(f.store.update_target(&target, &note()).await, Err(Error::NotFound)), "{slug}");
            let forged =
                TargetRow { kind: static_target(f.org, slug).kind, organization: Some(f.org), ..target.clone() };
            assert!(matches!(f.store.update_target(&forged, &note()).await, Err(Error::NotFound)), "{slug}");
            assert!(!f.store.delete_target(f.org, target.id, &note()).await.unwrap(), "{slug}");
        }
        assert_eq!(f.recorded("target.changed").await, 0);
    })
    .await;
}

#[tokio::test]
async fn system_targets_follow_the_configuration() {
    on_each(async |f| {
        let named = |slug: &str, name: &str| (slug.to_owned(), name.to_owned());
        f.store.sync_system_targets(&[named("models", "Models"), named("maps", "Maps")], at(2)).await.unwrap();
        let models = f.store.target(f.org, "models").await.unwrap().unwrap();
        let maps = f.store.target(f.org, "maps").await.unwrap().unwrap();
        let key = f.saved_key("builder").await;
        for target in [&models, &maps] {
            f.granted(&key, &TargetRef { id: target.id, ..target_ref(&target.slug, "") }).await;
        }
        let revision = f.store.revision().await.unwrap();
        f.store.sync_system_targets(&[named("maps", "Maps"), named("models", "Models")], at(3)).await.unwrap();
        assert_eq!(f.store.revision().await.unwrap(), revision);

        f.store.sync_system_targets(&[named("models", "All models")], at(4)).await.unwrap();
        assert!(f.store.revision().await.unwrap() > revision);
        let kept = f.store.target(f.org, "models").await.unwrap().unwrap();
        assert_eq!((kept.id, kept.name.as_str()), (models.id, "All models"));
        assert!(f.store.target(f.org, "maps").await.unwrap().is_none());
        assert_eq!(f.store.grants_of_key(f.org, key.id).await.unwrap().len(), 1);

        let account = f.saved_account("ada").await;
        let clash = named(&account.targets[0].slug, "Clash");
        assert!(matches!(f.store.sync_system_targets(&[clash], at(5)).await, Err(Error::Conflict)));
        assert!(f.store.target(f.org, "models").await.unwrap().is_some());
    })
    .await;
}

#[tokio::test]
async fn the_policy_is_everything_that_decides_and_its_revision_moves_with_it() {
    on_each(async |f| {
        let mut last = f.store.policy().await.unwrap().revision;
        let mut moved = async |what: &str| {
            let now = f.store.revision().await.unwrap();
            assert!(now > last, "{what} did not raise the revision");
            last = now;
        };
        let key = f.saved_key("builder").await;
        moved("a new key").await;
        let account = f.saved_account("ada").await;
        moved("a new account").await;
        f.granted(&key, &account.targets[0]).await;
        moved("a grant").await;
        let crm = static_target(f.org, "crm");
        f.store.insert_target(&crm, &record(Some(f.org), "target.created")).await.unwrap();
        moved("a target").await;
        f.store.sync_system_targets(&[("models".into(), "Models".into())], at(2)).await.unwrap();
        moved("a system target").await;
        f.store.update_key(&key, &record(Some(f.org), "key.changed")).await.unwrap();
        moved("a changed key").await;

        let policy = f.store.policy().await.unwrap();
        assert_eq!(policy.revision, f.store.revision().await.unwrap());
        assert_eq!((policy.keys.len(), policy.keys[0].id, policy.keys[0].hash), (1, key.id, key.hash));
        assert_eq!((policy.keys[0].organization, policy.keys[0].name.as_str()), (f.org, "builder"));
        assert_eq!((policy.targets.len(), policy.targets[0].id), (1, account.targets[0].id), "what a grant reaches");
        assert_eq!((policy.grants.len(), policy.grants[0].access), (1, GrantAccess::Read));
        assert_eq!((policy.grants[0].key, policy.grants[0].target), (key.id, account.targets[0].id));
        assert_eq!((policy.accounts.len(), policy.accounts[0].id), (1, account.id));
        assert_eq!((policy.accounts[0].provider.as_str(), &policy.accounts[0].captures), ("acme", &account.captures));

        f.store.delete_grant(f.org, key.id, account.targets[0].id, &record(None, "grant.removed")).await.unwrap();
        moved("a removed grant").await;
        f.store.delete_target(f.org, crm.id, &record(None, "target.removed")).await.unwrap();
        moved("a removed target").await;
        f.store.disconnect(&leaving(&account, &[]), &record(None, "account.gone")).await.unwrap();
        moved("a disconnect").await;
        let policy = f.store.policy().await.unwrap();
        assert_eq!((policy.accounts.len(), policy.grants.len(), policy.targets.len()), (0, 0, 0));
    })
    .await;
}

//! Accounts from connecting to disconnecting, flows, and revocations.

use std::collections::HashSet;
use std::time::Duration;

use super::fixture::*;
use crate::clock::Clock;
use crate::ids::{AccountId, InstanceId, TargetId};
use crate::secret::sha256;
use crate::store::*;

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn a_connected_account_reads_back_as_it_was_saved() {
    on_each(async |f| {
        let mut wanted = account(f.org, "ada");
        wanted.missing_scopes = vec!["mail.send".into()];
        wanted.owner = Some(crate::ids::UserId::new());
        let new = NewTokens { refresh_expires_at: Some(at(9_000_000)), ..tokens("first") };
        let save = SaveConnected { account: wanted.clone(), tokens: new, existing: false };
        let stored = f.store.save_connected(&save, &record(Some(f.org), "account.connected")).await.unwrap();
        let read = f.store.account(f.org, wanted.id).await.unwrap().unwrap();
        assert_eq!(format!("{stored:?}"), format!("{read:?}"));
        wanted.generation = 1;
        wanted.access_expires_at = Some(at(3_600_000));
        wanted.refresh_expires_at = Some(at(9_000_000));
        wanted.targets.sort_by(|one, other| one.capability.cmp(&other.capability));
        assert_eq!(format!("{wanted:?}"), format!("{read:?}"));

        let by_subject = f.store.account_by_subject(f.org, "acme", "ada").await.unwrap().unwrap();
        assert_eq!((by_subject.id, by_subject.targets.len()), (wanted.id, 2));
        assert!(f.store.account_by_subject(f.org, "acme", "grace").await.unwrap().is_none());
        let other = f.other_org().await;
        assert!(f.store.account(other, wanted.id).await.unwrap().is_none());
        assert!(f.store.account_by_subject(other, "acme", "ada").await.unwrap().is_none());

        let kept = f.store.tokens(wanted.id).await.unwrap().unwrap();
        assert_eq!(kept.access.unwrap().as_bytes(), b"access first");
        assert_eq!(kept.refresh.unwrap().as_bytes(), b"refresh first");
        assert_eq!((kept.access_ttl_ms, kept.account.targets.len()), (Some(3_600_000), 2));
        assert!(f.store.tokens(AccountId::new()).await.unwrap().is_none());
        assert_eq!(f.recorded("account.connected").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_new_account_may_not_be_there_and_an_old_one_must() {
    on_each(async |f| {
        let there = f.saved_account("ada").await;
        let note = || record(Some(f.org), "account.doubled");
        let save = |account, existing| SaveConnected { account, tokens: tokens("x"), existing };
        let mut twin = account(f.org, "ada");
        twin.targets.clear();
        assert!(matches!(f.store.save_connected(&save(twin, false), &note()).await, Err(Error::Conflict)));
        let stranger = account(f.org, "grace");
        assert!(matches!(f.store.save_connected(&save(stranger, true), &note()).await, Err(Error::Conflict)));
        let mut grabby = account(f.org, "grace");
        grabby.targets = vec![TargetRef { id: TargetId::new(), ..there.targets[0].clone() }];
        assert!(matches!(f.store.save_connected(&save(grabby, false), &note()).await, Err(Error::Conflict)));
        assert!(f.store.account_by_subject(f.org, "acme", "grace").await.unwrap().is_none());
        assert_eq!(f.recorded("account.doubled").await, 0);
    })
    .await;
}

#[tokio::test]
async fn reconnecting_in_place_keeps_ids_slugs_and_grants() {
    on_each(async |f| {
        let before = f.saved_account("ada").await;
        let key = f.saved_key("builder").await;
        let mail = before.targets.iter().find(|target| target.capability == "mail").unwrap();
        let calendar = before.targets.iter().find(|target| target.capability == "calendar").unwrap();
        f.granted(&key, mail).await;
        f.granted(&key, calendar).await;
        f.ended(before.id).await;

        let mut again = account(f.org, "ada");
        (again.id, again.generation) = (before.id, before.generation);
        let candidate = crate::ids::CandidateId::new();
        f.store.insert_candidate(candidate, before.id, &sealed("candidate"), at(8), revived).await.unwrap();
        again.created_at = at(999);
        again.updated_at = at(20);
        again.email = Some("lovelace@example.com".into());
        again.targets = vec![target_ref("another-slug", "mail"), target_ref("ada-files", "drive")];
        let fresh = NewTokens { refresh: None, ..tokens("second") };
        let save = SaveConnected { account: again, tokens: fresh, existing: true };
        let after = f.store.save_connected(&save, &record(Some(f.org), "account.connected")).await.unwrap();
        let stale = f.store.save_connected(&save, &record(Some(f.org), "account.connected")).await;
        assert!(matches!(stale, Err(Error::Conflict)), "made from an account that is another by now");
        assert_eq!((after.id, after.generation, after.status, after.reason), (before.id, 2, Status::Connected, None));
        assert_eq!((after.created_at, after.updated_at), (at(1), at(20)));
        assert_eq!(after.email.as_deref(), Some("lovelace@example.com"));
        let capabilities: Vec<&str> = after.targets.iter().map(|target| target.capability.as_str()).collect();
        assert_eq!(capabilities, ["drive", "mail"]);
        assert_eq!((after.targets[1].id, &after.targets[1].slug), (mail.id, &mail.slug));
        assert_eq!(after.targets[1].name, "another-slug's name");
        let grants = f.store.grants_of_key(f.org, key.id).await.unwrap();
        assert_eq!(grants.iter().map(|grant| grant.target).collect::<Vec<_>>(), [mail.id]);
        let kept = f.store.tokens(before.id).await.unwrap().unwrap();
        assert_eq!(kept.access.unwrap().as_bytes(), b"access second");
        // What the authorization before gave does not belong to this one.
        assert!(kept.refresh.is_none());
        assert!(f.store.candidates(before.id).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn accounts_are_listed_by_organization_provider_and_status() {
    on_each(async |f| {
        let mut made = Vec::new();
        for subject in ["one", "two", "three"] {
            made.push(f.saved_account(subject).await);
        }
        assert!(f.failed(made[1].id, Reason::ProviderUnavailable, Duration::ZERO).await);

        let listed = async |filter: AccountFilter, page: Page| {
            let listed = f.store.accounts(f.org, &filter, &page).await.unwrap();
            assert!(listed.items.iter().all(|account| account.targets.len() == 2));
            (listed.items.into_iter().map(|account| account.id).collect::<Vec<_>>(), listed.next)
        };
        let ids: Vec<AccountId> = made.iter().map(|account| account.id).collect();
        assert_eq!(listed(AccountFilter::default(), all()).await, (ids.clone(), None));
        let (first, next) = listed(AccountFilter::default(), Page { limit: 2, after: None }).await;
        assert_eq!((&first[..], next.clone()), (&ids[..2], Some(ids[1].to_string())));
        assert_eq!(listed(AccountFilter::default(), Page { limit: 2, after: next }).await, (vec![ids[2]], None));
        let degraded = AccountFilter { provider: Some("acme".into()), status: Some(Status::Degraded) };
        assert_eq!(listed(degraded, all()).await, (vec![ids[1]], None));
        let elsewhere = AccountFilter { provider: Some("other".into()), status: None };
        assert_eq!(listed(elsewhere, all()).await, (vec![], None));
        let other = f.other_org().await;
        assert!(f.store.accounts(other, &AccountFilter::default(), &all()).await.unwrap().items.is_empty());

        let key = f.saved_key("builder").await;
        assert!(f.store.accounts_of_key(key.id).await.unwrap().is_empty());
        for target in made[0].targets.iter().chain(&made[2].targets[..1]) {
            f.granted(&key, target).await;
        }
        let behind = f.store.accounts_of_key(key.id).await.unwrap();
        assert_eq!(behind.iter().map(|account| account.id).collect::<Vec<_>>(), [ids[0], ids[2]]);
        assert!(behind.iter().all(|account| account.targets.len() == 2));
    })
    .await;
}

#[tokio::test]
async fn of_two_saves_of_one_generation_one_wins() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let savers: Vec<_> = (0..8)
            .map(|n| {
                let (store, id) = (f.store.clone(), account.id);
                let note = record(Some(f.org), "account.refreshed");
                let new = NewTokens { scopes: Some(vec![n.to_string()]), ..tokens(&n.to_string()) };
                tokio::spawn(
                    async move { (n, store.save_tokens(id, 1, &new, at(30), &[note], recovered).await.unwrap()) },
                )
            })
            .collect();
        let mut winners = Vec::new();
        for saver in savers {
            let (n, won) = saver.await.unwrap();
            winners.extend(won.then_some(n));
        }
        assert_eq!(winners.len(), 1);
        let kept = f.store.tokens(account.id).await.unwrap().unwrap();
        assert_eq!(kept.access.unwrap().as_bytes(), format!("access {}", winners[0]).as_bytes());
        assert_eq!((kept.account.generation, kept.account.scopes), (2, vec![winners[0].to_string()]));
        assert_eq!(f.recorded("account.refreshed").await, 1);
    })
    .await;
}

#[tokio::test]
async fn saved_tokens_heal_the_account_and_keep_what_is_not_new() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        assert!(f.failed(account.id, Reason::ProviderUnavailable, HOUR).await);
        let told = |after: Reason| {
            assert_eq!(after, Reason::ProviderUnavailable);
            record(Some(f.org), "account.recovered")
        };
        let new = NewTokens { refresh: None, ..tokens("second") };
        assert!(f.store.save_tokens(account.id, 1, &new, at(30), &[], told).await.unwrap());
        assert!(!f.store.save_tokens(account.id, 1, &new, at(31), &[], told).await.unwrap());
        let kept = f.store.tokens(account.id).await.unwrap().unwrap();
        assert_eq!(kept.refresh.unwrap().as_bytes(), b"refresh first");
        assert!(f.store.save_tokens(account.id, 2, &tokens("third"), at(30), &[], told).await.unwrap());
        assert_eq!(f.recorded("account.recovered").await, 1, "told when it really was not connected");
        assert!(matches!(take(&f, account.id).await, Taken::Won(lease) if lease.failures == 0), "no pause is left");
        let kept = f.store.tokens(account.id).await.unwrap().unwrap();
        assert_eq!(kept.refresh.unwrap().as_bytes(), b"refresh third");
        let healed = kept.account;
        assert_eq!((healed.status, healed.reason, healed.validity), (Status::Connected, None, Validity::Valid));
        assert_eq!((healed.checked_at, healed.scopes, healed.generation), (Some(at(30)), account.scopes, 3));
    })
    .await;
}

#[tokio::test]
async fn bad_news_counts_from_whoever_holds_the_lease_and_never_over_the_end() {
    on_each(async |f| {
        let id = f.saved_account("ada").await.id;
        let read = async || f.store.account(f.org, id).await.unwrap().unwrap();
        let note = |action: &str| record(Some(f.org), action);
        let fail = async |generation, owner, reason| {
            let failed = Failed { generation, owner, reason, pause: HOUR, unknown_since: None };
            f.store.note_failure(id, &failed, at(7), &note("account.degraded")).await.unwrap()
        };
        let end =
            async |ended: Ended| f.store.end_account(id, &ended, at(9), &note("account.disconnected")).await.unwrap();
        let owner = f.leased(id).await;
        assert!(!fail(2, owner, Reason::ProviderUnavailable).await, "of another generation");
        assert!(!fail(1, InstanceId::new(), Reason::ProviderUnavailable).await, "without the lease");
        assert!(!end(rejected(InstanceId::new())).await && !end(Ended { generation: 2, ..rejected(owner) }).await);
        assert_eq!((read().await.status, f.recorded("account.degraded").await), (Status::Connected, 0));

        assert!(fail(1, owner, Reason::ProviderUnavailable).await && fail(1, owner, Reason::ProviderUnavailable).await);
        assert_eq!(f.recorded("account.degraded").await, 1, "told once");
        assert!(fail(1, owner, Reason::ProviderMisconfigured).await);
        assert_eq!(f.recorded("account.degraded").await, 2, "another reason is another event");
        let degraded = read().await;
        assert_eq!((degraded.status, degraded.reason), (Status::Degraded, Some(Reason::ProviderMisconfigured)));
        assert_eq!((degraded.validity, degraded.checked_at), (Validity::Valid, Some(at(1))), "nothing was learned");

        assert!(end(rejected(owner)).await && !end(rejected(owner)).await);
        let ended = read().await;
        assert_eq!((ended.status, ended.reason), (Status::Disconnected, Some(Reason::RefreshRejected)));
        assert_eq!((ended.validity, ended.checked_at), (Validity::Invalid, Some(at(7))));
        assert!(!fail(1, owner, Reason::ProviderUnavailable).await, "a passing failure comes too late");
        assert_eq!(read().await.status, Status::Disconnected);
        f.store.set_validity(id, 1, Validity::Valid, at(8)).await.unwrap();
        assert_eq!(read().await.validity, Validity::Invalid);
        assert_eq!(f.recorded("account.disconnected").await, 1);
    })
    .await;
}

#[tokio::test]
async fn tokens_that_came_late_bring_an_account_back_and_others_learn_of_it() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let begun = f.store.now().await.unwrap();
        assert!(f.store.standings(begun).await.unwrap().is_empty());
        assert!(f.ended(account.id).await);
        assert_eq!(f.store.standings(begun).await.unwrap(), [(account.id, true)]);
        let told = |after| {
            assert_eq!(after, Reason::RefreshRejected);
            record(Some(f.org), "account.recovered")
        };
        assert!(f.store.save_tokens(account.id, 1, &tokens("late"), at(30), &[], told).await.unwrap());
        assert_eq!(f.store.standings(begun).await.unwrap(), [(account.id, false)]);
        assert_eq!(f.recorded("account.recovered").await, 1);
        assert!(f.store.standings(begun.after(HOUR)).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn nobody_tries_before_the_pause_is_over_unless_somebody_asks() {
    on_each(async |f| {
        let id = f.saved_account("ada").await.id;
        assert!(f.failed(id, Reason::ProviderUnavailable, HOUR).await);
        let Taken::Resting(pause) = take(&f, id).await else { panic!() };
        assert!(pause > HOUR / 2 && pause <= HOUR, "{pause:?}");
        assert!(f.store.degraded_accounts(10).await.unwrap().is_empty());
        assert!(f.failed(id, Reason::ProviderUnavailable, Duration::ZERO).await, "at once");
        assert_eq!(f.store.degraded_accounts(10).await.unwrap(), [id]);
        assert!(matches!(take(&f, id).await, Taken::Won(lease) if lease.failures == 2));
        assert_eq!(take(&f, id).await, Taken::Held);
    })
    .await;
}

#[tokio::test]
async fn a_clock_that_was_set_back_holds_nobody_up() {
    on_each(async |f| {
        // Written ten years ahead of what the clock says now.
        let years = Duration::from_secs(10 * 365 * 24 * 3600);
        let resting = f.saved_account("resting").await.id;
        assert!(f.failed(resting, Reason::ProviderUnavailable, years).await);
        assert!(matches!(take(&f, resting).await, Taken::Won(_)));

        let leased = f.saved_account("leased").await.id;
        let later = f.store.clone().beside(Clock::held(f.store.now().await.unwrap().after(years)));
        assert!(matches!(later.take_lease(leased, InstanceId::new(), 6_000).await.unwrap(), Taken::Won(_)));
        assert!(matches!(f.store.take_lease(leased, InstanceId::new(), 6_000).await.unwrap(), Taken::Won(_)));

        let token = f.saved_account("token").await.id;
        let fresh = NewTokens { access_expires_at: later.now().await.unwrap().after(HOUR), ..tokens("second") };
        assert!(f.store.save_tokens(token, 1, &fresh, at(30), &[], recovered).await.unwrap());
        let ends = f.store.tokens(token).await.unwrap().unwrap().access_ends.unwrap();
        assert!(ends <= Clock::system().monotonic() + HOUR, "a token never lives longer than its life");
    })
    .await;
}

async fn take(f: &Fixture, id: AccountId) -> Taken {
    f.store.take_lease(id, InstanceId::new(), 6_000).await.unwrap()
}

#[tokio::test]
async fn an_account_has_hope_while_a_refresh_token_is_still_to_be_tried() {
    on_each(async |f| {
        let id = f.saved_account("ada").await.id;
        let read = async || f.store.account(f.org, id).await.unwrap().unwrap();
        let keep = async |token| {
            f.store.insert_candidate(token, id, &sealed("kept"), at(5), revived).await.unwrap();
        };
        let first = crate::ids::CandidateId::new();
        keep(first).await;
        assert!(!f.ended(id).await, "nobody has tried it");
        assert_eq!((read().await.status, f.recorded("account.degraded").await), (Status::Connected, 0));
        f.store.delete_candidate(first).await.unwrap();
        assert!(f.ended(id).await);

        // What comes after the end brings it back to where it can be tried; told once.
        for _ in 0..2 {
            keep(crate::ids::CandidateId::new()).await;
            let account = read().await;
            assert_eq!((account.status, account.validity), (Status::Degraded, Validity::Unknown));
            assert_eq!(f.recorded("account.degraded").await, 1);
        }
        assert_eq!(f.store.degraded_accounts(10).await.unwrap(), [id]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_see_an_account_end_one_says_so() {
    on_each(async |f| {
        let id = f.saved_account("ada").await.id;
        let owner = f.leased(id).await;
        let tellers: Vec<_> = (0..8)
            .map(|_| {
                let (store, note) = (f.store.clone(), record(Some(f.org), "account.disconnected"));
                tokio::spawn(async move { store.end_account(id, &rejected(owner), at(7), &note).await.unwrap() })
            })
            .collect();
        let mut told = 0;
        for teller in tellers {
            told += usize::from(teller.await.unwrap());
        }
        assert_eq!((told, f.recorded("account.disconnected").await), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn disconnecting_asks_first_and_then_takes_everything() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let (one, two) = (f.saved_key("one").await, f.saved_key("two").await);
        f.granted(&one, &account.targets[0]).await;
        f.granted(&one, &account.targets[1]).await;
        f.granted(&two, &account.targets[0]).await;
        let note = || record(Some(f.org), "account.disconnected");
        let job = revocation();
        let disconnect = async |organization, confirm| {
            let wish = Disconnect { organization, confirm, ..leaving(&account, std::slice::from_ref(&job)) };
            f.store.disconnect(&wish, &note()).await
        };
        let revision = f.store.revision().await.unwrap();
        let asked = disconnect(f.org, false).await.unwrap();
        assert_eq!(asked, Disconnected::NeedsConfirmation { grants: 3 });
        assert_eq!((f.recorded("account.disconnected").await, f.store.revision().await.unwrap()), (0, revision));
        assert!(f.store.tokens(account.id).await.unwrap().unwrap().access.is_some());
        let other = f.other_org().await;
        assert!(matches!(disconnect(other, true).await, Err(Error::NotFound)));

        let done = disconnect(f.org, true).await.unwrap();
        assert_eq!(done, Disconnected::Done(account.targets.clone()));
        assert!(matches!(disconnect(f.org, true).await, Err(Error::NotFound)));
        assert!(f.store.account(f.org, account.id).await.unwrap().is_none());
        assert!(f.store.tokens(account.id).await.unwrap().is_none());
        assert!(f.store.target(f.org, &account.targets[0].slug).await.unwrap().is_none());
        assert!(f.store.grants_of_key(f.org, one.id).await.unwrap().is_empty());
        assert_eq!(f.recorded("account.disconnected").await, 1);

        // Nothing that was under way brings it back.
        for generation in 1..=2 {
            assert!(
                !f.store.save_tokens(account.id, generation, &tokens("late"), at(41), &[], recovered).await.unwrap()
            );
            assert!(matches!(take(&f, account.id).await, Taken::Gone));
        }
        f.store.set_validity(account.id, 2, Validity::Valid, at(41)).await.unwrap();
        let save = SaveConnected { account: account.clone(), tokens: tokens("late"), existing: true };
        assert!(matches!(f.store.save_connected(&save, &note()).await, Err(Error::Conflict)));
        assert!(f.store.tokens(account.id).await.unwrap().is_none());

        // What came for it is not kept, but given back.
        let late = crate::ids::CandidateId::new();
        assert!(!f.store.insert_candidate(late, account.id, &sealed("late"), at(41), revived).await.unwrap());
        let given = NewRevocation { token: sealed("late"), ..revocation() };
        assert!(f.store.queue_revocation(account.id, &given, at(60)).await.unwrap());
        assert!(f.store.queue_revocation(account.id, &given, at(60)).await.unwrap(), "once, however often it is said");
        assert!(!f.store.queue_revocation(AccountId::new(), &revocation(), at(60)).await.unwrap());

        // The same person may connect again, as a new account.
        let again = f.saved_account("ada").await;
        assert_ne!(again.id, account.id);

        let jobs = f.store.claim_revocations(10, at(40), at(100)).await.unwrap();
        assert_eq!((jobs.len(), jobs[0].id, jobs[0].account, jobs[0].organization), (1, job.id, account.id, f.org));
        assert_eq!((jobs[0].provider.as_str(), jobs[0].subject.as_str()), ("acme", "ada"));
        assert_eq!(jobs[0].captures, account.captures);
        assert_eq!((jobs[0].token_kind.as_str(), jobs[0].token.as_bytes()), ("refresh_token", &b"to revoke"[..]));
    })
    .await;
}

#[tokio::test]
async fn a_disconnect_counts_for_the_tokens_it_was_decided_from() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let note = || record(Some(f.org), "account.disconnected");
        assert!(f.store.save_tokens(account.id, 1, &tokens("second"), at(30), &[], recovered).await.unwrap());
        let decided = leaving(&account, &[revocation()]);
        assert_eq!(f.store.disconnect(&decided, &note()).await.unwrap(), Disconnected::Moved);

        let candidate = crate::ids::CandidateId::new();
        f.store.insert_candidate(candidate, account.id, &sealed("candidate"), at(31), revived).await.unwrap();
        let decided = Disconnect { generation: 2, ..decided };
        assert_eq!(f.store.disconnect(&decided, &note()).await.unwrap(), Disconnected::Moved);
        assert!(f.store.tokens(account.id).await.unwrap().unwrap().refresh.is_some());
        assert_eq!(f.recorded("account.disconnected").await, 0);
        assert!(f.store.claim_revocations(10, at(50), at(100)).await.unwrap().is_empty());

        let found = f.store.candidates(account.id).await.unwrap();
        assert_eq!((found.len(), found[0].id, found[0].token.as_bytes()), (1, candidate, &b"candidate"[..]));
        let decided = Disconnect { candidates: vec![candidate], ..decided };
        assert_eq!(f.store.disconnect(&decided, &note()).await.unwrap(), Disconnected::Done(account.targets));
        assert!(f.store.candidates(account.id).await.unwrap().is_empty());
        assert_eq!(f.store.claim_revocations(10, at(50), at(100)).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn disconnecting_without_grants_needs_no_confirmation() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let note = record(Some(f.org), "account.disconnected");
        let wish = Disconnect { confirm: false, ..leaving(&account, &[]) };
        let done = f.store.disconnect(&wish, &note).await.unwrap();
        assert_eq!(done, Disconnected::Done(account.targets));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_claimers_never_share_a_revocation() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let jobs: Vec<_> = (0..40).map(|_| revocation()).collect();
        let note = record(Some(f.org), "account.disconnected");
        let wish = Disconnect { at: at(0), ..leaving(&account, &jobs) };
        f.store.disconnect(&wish, &note).await.unwrap();
        assert!(f.store.claim_revocations(10, at(-1), at(100)).await.unwrap().is_empty());

        let claimers: Vec<_> = (0..8)
            .map(|_| {
                let store = f.store.clone();
                tokio::spawn(async move { store.claim_revocations(15, at(0), at(100)).await.unwrap() })
            })
            .collect();
        let mut claimed = Vec::new();
        for claimer in claimers {
            claimed.extend(claimer.await.unwrap().into_iter().map(|job| job.id));
        }
        // On Postgres two claimers may pick the same rows and one leaves empty-handed: the rest is due at once.
        claimed.extend(f.store.claim_revocations(100, at(0), at(100)).await.unwrap().into_iter().map(|job| job.id));
        assert_eq!(claimed.len(), 40);
        assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), 40);

        // One ends, one fails, the rest is tried again when its time has come.
        let (ended, failed) = (jobs[0].id, jobs[1].id);
        let finished = || record(Some(f.org), "account.revoked");
        f.store.finish_revocation(ended, &finished()).await.unwrap();
        f.store.finish_revocation(ended, &finished()).await.unwrap();
        let postponed = record(Some(f.org), "account.revoke_failed");
        f.store.postpone_revocation(failed, at(5_000), Some(&postponed)).await.unwrap();
        f.store.postpone_revocation(failed, at(6_000), None).await.unwrap();
        f.store
            .postpone_revocation(ended, at(5_000), Some(&record(Some(f.org), "account.revoke_failed")))
            .await
            .unwrap();
        assert_eq!((f.recorded("account.revoked").await, f.recorded("account.revoke_failed").await), (1, 1));
        let due = f.store.claim_revocations(100, at(100), at(200)).await.unwrap();
        assert_eq!(due.len(), 38);
        let late = f.store.claim_revocations(100, at(6_000), at(7_000)).await.unwrap();
        assert_eq!(late.iter().find(|job| job.id == failed).unwrap().attempts, 2);
    })
    .await;
}

#[tokio::test]
async fn a_flow_is_bound_to_one_browser_and_ends() {
    on_each(async |f| {
        let flow = flow(f.org);
        f.store.insert_flow(&flow).await.unwrap();
        let read = f.store.flow(flow.id, at(1)).await.unwrap().unwrap();
        assert_eq!(
            (read.organization, read.provider, read.capabilities),
            (f.org, flow.provider.clone(), flow.capabilities.clone())
        );
        assert_eq!((read.preset, read.account, read.inputs), (flow.preset, flow.account, flow.inputs.clone()));
        assert_eq!((read.actor, read.owner, read.state_hash), (flow.actor.clone(), None, None));
        assert_eq!((read.created_at, read.expires_at), (flow.created_at, flow.expires_at));

        assert!(!f.store.open_flow(flow.id, &opening("state"), flow.expires_at).await.unwrap());
        assert!(f.store.open_flow(flow.id, &opening("state"), at(2)).await.unwrap());
        assert!(!f.store.open_flow(flow.id, &opening("thief"), at(3)).await.unwrap());
        assert!(f.store.flow(flow.id, flow.expires_at).await.unwrap().is_none());
        assert!(f.store.take_flow(&sha256(b"thief")).await.unwrap().is_none());
        let taken = f.store.take_flow(&sha256(b"state")).await.unwrap().unwrap();
        assert_eq!((taken.id, taken.cookie_hash), (flow.id, Some(sha256(b"cookie"))));
        assert_eq!(taken.verifier.unwrap().as_bytes(), b"verifier");
        assert!(f.store.flow(flow.id, at(4)).await.unwrap().is_none());

        f.store.insert_flow(&FlowRow { expires_at: at(10), ..self::flow(f.org) }).await.unwrap();
        assert_eq!(f.store.prune_flows(at(10)).await.unwrap(), 0);
        assert_eq!(f.store.prune_flows(at(11)).await.unwrap(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_callbacks_with_one_state_one_gets_the_flow() {
    on_each(async |f| {
        for round in 0..10 {
            let state = format!("state {round}");
            let flow = flow(f.org);
            f.store.insert_flow(&flow).await.unwrap();
            f.store.open_flow(flow.id, &opening(&state), at(2)).await.unwrap();
            let takers: Vec<_> = (0..8)
                .map(|_| {
                    let (store, hash) = (f.store.clone(), sha256(state.as_bytes()));
                    tokio::spawn(async move { store.take_flow(&hash).await.unwrap().is_some() })
                })
                .collect();
            let mut winners = 0;
            for taker in takers {
                winners += usize::from(taker.await.unwrap());
            }
            assert_eq!(winners, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_writer_that_leaves_half_way_changes_nothing_and_blocks_nobody() {
    on_each(async |f| {
        let account = f.saved_account("ada").await;
        let revision = f.store.revision().await.unwrap();
        for micros in [0, 20, 50, 100, 200, 400] {
            let note = record(Some(f.org), "account.disconnected");
            let wish = leaving(&account, &[revocation()]);
            let left = f.store.disconnect(&wish, &note);
            let _ = tokio::time::timeout(Duration::from_micros(micros), left).await;
        }
        let gone = f.store.account(f.org, account.id).await.unwrap().is_none();
        let jobs = f.store.claim_revocations(10, at(40), at(50)).await.unwrap().len();
        let (records, raised) =
            (f.recorded("account.disconnected").await, f.store.revision().await.unwrap() - revision);
        let whole = (usize::from(gone), usize::from(gone), i64::from(gone));
        assert_eq!((jobs, records, raised), whole);
    })
    .await;
}

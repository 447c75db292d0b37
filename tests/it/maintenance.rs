//! Moving a store to another database, and changing the key that it is sealed with: what an operator runs, and what the
//! gateway afterwards (or meanwhile) still does.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use keyward::app::App;
use keyward::app::upkeep::{self, Rotated};
use keyward::catalog::Preset;
use keyward::clock::Clock;
use keyward::config::{Config, Env, StoreUrl};
use keyward::ids::{AuditId, CandidateId, FlowId, JobId};
use keyward::secret::{Secret, sha256};
use keyward::store::{
    AccountFilter, AuditRow, Captures, Disconnect, Disconnected, FlowRow, NewRevocation, Page, SessionRow, Store,
};
use keyward::vault::{Keyring, Place, Vault};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::harness::*;

const NEW: &str = "new:ISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A=";

fn sealing(keys: &[&str]) -> Settings {
    let mut settings = Settings::default();
    settings.env.insert("KEYWARD_SEALING_KEYS".to_owned(), keys.join(","));
    settings
}

fn vault(keys: &str) -> Vault {
    Vault::new(Keyring::parse(&Secret::new(keys.to_owned())).unwrap())
}

fn record(action: &'static str) -> AuditRow {
    let now = Clock::system().now();
    AuditRow {
        id: AuditId::at(now.millis()),
        organization: None,
        at: now,
        actor: Some("system".into()),
        action: action.into(),
        request: None,
        key: None,
        target: None,
        account: None,
        method: None,
        path: None,
        status: None,
        code: None,
        bytes_in: None,
        bytes_out: None,
        duration_us: None,
        detail: None,
    }
}

/// A stopped gateway with rows in every table: two accounts (one disconnected, its token still to be revoked), a target
/// with a credential, a key with grants, an opened flow, candidates, a session.
struct Filled {
    world: World,
    account: Value,
    key: Key,
}

async fn filled(backend: Backend) -> Filled {
    let kw = Keyward::with(backend, Settings::default()).await;
    let (account, key) = kw.connected().await;
    kw.tools().await;
    kw.grant(&key, "tools", "write").await;
    let gone = kw.connect("grace@example.com").await;
    open_flow(kw.app.admin_address(), "preset=read").await;
    works(&kw.app, &account, &key).await;
    let Keyward { world, app, .. } = kw;
    app.stop().await;

    let config = world.config(&Settings::default());
    let store = Store::open_as_is(&config.store).await.unwrap();
    let vault = vault(SEALING);
    let now = Clock::system().now();
    let org = store.organization("default").await.unwrap().unwrap().id;
    let job = JobId::new();
    let place = Place { table: "revocations", row: &job.to_string(), column: "token" };
    let token = vault.seal(place, b"to be revoked");
    let gone = store.account(org, gone["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
    let wish = Disconnect {
        organization: org,
        account: gone.id,
        generation: gone.generation,
        candidates: Vec::new(),
        confirm: true,
        revocations: vec![NewRevocation { id: job, token_kind: "refresh_token", token }],
        at: now,
    };
    let done = store.disconnect(&wish, &record("account.disconnected")).await.unwrap();
    assert!(matches!(done, Disconnected::Done(_)));
    let account_id = account["id"].as_str().unwrap().parse().unwrap();
    let id = CandidateId::new();
    let place = Place { table: "token_candidates", row: &id.to_string(), column: "token" };
    store
        .insert_candidate(id, account_id, &vault.seal(place, b"a refresh token"), now, |_| {
            unreachable!("the account has not ended")
        })
        .await
        .unwrap();
    // More than one batch of everything that works in batches.
    for n in 0..250_u8 {
        let id = FlowId::new();
        let place = Place { table: "flows", row: &id.to_string(), column: "verifier" };
        let flow = FlowRow {
            id,
            organization: org,
            provider: "sandbox".to_owned(),
            capabilities: Vec::new(),
            preset: Preset::Read,
            account: None,
            inputs: Captures::new(),
            owner: None,
            actor: "system".to_owned(),
            state_hash: Some([n; 32]),
            cookie_hash: Some([n; 32]),
            verifier: Some(vault.seal(place, b"a verifier")),
            created_at: now,
            expires_at: now.after(Duration::from_secs(3600)),
        };
        store.insert_flow(&flow).await.unwrap();
    }
    let session = SessionRow { hash: sha256(b"cookie"), created_at: now, expires_at: now };
    store.insert_session(&session).await.unwrap();
    let records: Vec<_> = (0..450).map(|_| record("noted")).collect();
    store.append_audit(&records).await.unwrap();
    store.close().await;
    Filled { world, account, key }
}

/// The account and the target with a credential do what they are for; the account can still be refreshed.
async fn works(app: &App, account: &Value, key: &Key) {
    let mail = agent_request(key, "GET", &format!("/proxy/{}/me/messages", slug(account, "mail")));
    let answer = call(app.proxy_address(), mail.body(Default::default()).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let tools = agent_request(key, "GET", "/proxy/tools/echo");
    let answer = call(app.proxy_address(), tools.body(Default::default()).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let path = format!("/api/organizations/default/accounts/{}/refresh", account["id"].as_str().unwrap());
    let answer = admin(app.admin_address(), "POST", &path, None).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["status"], "connected", "{}", answer.text());
}

/// Every pair of databases that is there.
fn journeys() -> Vec<(Backend, Backend)> {
    use Backend::{Postgres, Sqlite};
    match backends().as_slice() {
        [Sqlite] => vec![(Sqlite, Sqlite)],
        _ => vec![(Sqlite, Sqlite), (Sqlite, Postgres), (Postgres, Sqlite)],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_store_serves_its_accounts() {
    for (from, to) in journeys() {
        let Filled { mut world, account, key } = filled(from).await;
        let config = world.config(&Settings::default());
        // The second world is only a place for the copy.
        let place = World::new(to).await;
        let url = if to == Backend::Sqlite { "sqlite://copied.db" } else { &place.store_url };
        let destination = StoreUrl::parse(url, world.dir.path()).unwrap();
        let mut last = None;
        let copied = upkeep::copy(&config, &destination, |progress| last = Some(progress)).await.unwrap();

        for (table, rows) in &copied.rows {
            assert!(*rows > 0, "{from:?} to {to:?}: the test left {table} empty");
        }
        // Two tokens, one candidate, one credential, 251 verifiers, one revocation, the check.
        assert!(copied.sealed >= 256, "{copied:?}");
        let last = last.unwrap();
        assert_eq!(last.done, last.total);
        let again = upkeep::copy(&config, &destination, |_| ()).await.err().unwrap();
        assert!(format!("{again:#}").contains("is not empty"), "{again:#}");

        let rows = copied.rows;
        world.store_url = url.to_owned();
        let app = world.instance(&Settings::default()).await;
        works(&app, &account, &key).await;
        app.stop().await;

        // Back again from there: what one database gives, the other takes.
        let back = StoreUrl::parse("sqlite://back.db", world.dir.path()).unwrap();
        let copied = upkeep::copy(&world.config(&Settings::default()), &back, |_| ()).await.unwrap();
        for ((table, before), (_, after)) in rows.iter().zip(&copied.rows) {
            let shrinks = ["flows", "revocations", "sessions"].contains(table);
            assert!(after >= before || shrinks, "{table}: {before}, then {after}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_in_use_is_not_copied() {
    for backend in backends() {
        let kw = Keyward::with(backend, Settings::default()).await;
        let config = kw.world.config(&kw.settings);
        let to = StoreUrl::parse("sqlite://copied.db", kw.world.dir.path()).unwrap();
        let refused = upkeep::copy(&config, &to, |_| ()).await.err().unwrap();
        assert!(refused.to_string().contains("stop every gateway"), "{refused:#}");
        assert!(!kw.world.dir.path().join("copied.db").exists());
        kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_not_copied_with_the_wrong_keys() {
    let Filled { world, .. } = filled(Backend::Sqlite).await;
    let to = StoreUrl::parse("sqlite://copied.db", world.dir.path()).unwrap();
    let refused = upkeep::copy(&world.config(&sealing(&[NEW])), &to, |_| ()).await.err().unwrap();
    assert!(format!("{refused:#}").contains("`test`"), "{refused:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_was_cut_off_goes_on_where_it_was() {
    for backend in backends() {
        let Filled { world, account, key } = filled(backend).await;
        let both = sealing(&[NEW, SEALING]);
        let config = world.config(&both);
        let start = vault(NEW).primary_start();
        let store = Store::open_as_is(&config.store).await.unwrap();
        let before = store.sealed_otherwise(&start).await.unwrap();

        // Cut off after the first batch.
        let (cut, cutting) = oneshot::channel();
        let mut cut = Some(cut);
        let rotation = upkeep::rotate(&config, false, |progress| {
            if progress.done >= 100 {
                cut.take().map(|cut| cut.send(()));
            }
        });
        tokio::select! {
            biased;
            _ = cutting => {}
            _ = rotation => panic!("{backend:?}: it was not cut off"),
        }
        let left = store.sealed_otherwise(&start).await.unwrap();
        assert!(0 < left && left < before, "{backend:?}: {left} of {before}");
        let early = App::start(world.config(&sealing(&[NEW])), world.clock.clone()).await.err().unwrap();
        assert!(format!("{early:#}").contains("`test`"), "not without the old key yet: {early:#}");

        // A gateway runs on the half-way store while the rest is done.
        let app = world.instance(&both).await;
        works(&app, &account, &key).await;
        let Rotated::Resealed { primary, older, outcome } = upkeep::rotate(&config, false, |_| ()).await.unwrap()
        else {
            panic!("nothing was added to a key file");
        };
        assert_eq!((primary.as_str(), older), ("new", vec!["test".to_owned()]));
        assert_eq!((outcome.remaining, outcome.unopened.len()), (0, 0));
        assert!(0 < outcome.exchanged && outcome.exchanged <= left, "only what was left: {outcome:?}");
        works(&app, &account, &key).await;
        app.stop().await;

        assert_eq!(store.sealed_otherwise(&start).await.unwrap(), 0);
        let org = store.organization("default").await.unwrap().unwrap().id;
        let page = Page { limit: 10, after: None };
        assert_eq!(store.accounts(org, &AccountFilter::default(), &page).await.unwrap().items.len(), 1);
        store.close().await;
        let app = world.instance(&sealing(&[NEW])).await;
        works(&app, &account, &key).await;
        app.stop().await;
        // Opening every value is what copying does.
        let to = StoreUrl::parse("sqlite://opened.db", world.dir.path()).unwrap();
        upkeep::copy(&world.config(&sealing(&[NEW])), &to, |_| ()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_refreshed_during_a_rotation_are_the_ones_that_stay() {
    for backend in backends() {
        let Filled { world, account, key } = filled(backend).await;
        let both = sealing(&[NEW, SEALING]);
        let config = world.config(&both);
        // This gateway was not restarted with the new order: it opens with both keys, and seals with the old one.
        let app = world.instance(&sealing(&[SEALING, NEW])).await;
        let path = format!("/api/organizations/default/accounts/{}/refresh", account["id"].as_str().unwrap());
        let refreshing = async {
            for _ in 0..10 {
                assert_eq!(admin(app.admin_address(), "POST", &path, None).await.status, 200);
            }
        };
        let rotating = async {
            for _ in 0..10 {
                upkeep::rotate(&config, false, |_| ()).await.unwrap();
            }
        };
        tokio::join!(refreshing, rotating);
        app.stop().await;
        // The sandbox's refresh tokens are good once: an older one put back would end the account here.
        upkeep::rotate(&config, false, |_| ()).await.unwrap();
        let app = world.instance(&sealing(&[NEW])).await;
        works(&app, &account, &key).await;
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_wait_in_files_are_not_left_behind() {
    let Filled { world, .. } = filled(Backend::Sqlite).await;
    let config = world.config(&sealing(&[NEW, SEALING]));
    std::fs::create_dir_all(&config.spill).unwrap();
    std::fs::write(config.spill.join("a token"), "").unwrap();
    let to = StoreUrl::parse("sqlite://copied.db", world.dir.path()).unwrap();
    let refused = [
        upkeep::copy(&config, &to, |_| ()).await.err().unwrap(),
        upkeep::rotate(&config, false, |_| ()).await.err().unwrap(),
    ];
    for refused in refused {
        assert!(refused.to_string().contains("start Keyward once"), "{refused:#}");
    }
}

/// Runs the binary in `folder` with this much environment and no more.
fn keyward(folder: &Path, line: &str, env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keyward"))
        .args(line.split(' '))
        .current_dir(folder)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A gateway in `folder` as one starts it there without any configuration: a key file beside the database.
async fn plain(folder: &Path) -> App {
    let text = "[proxy]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n";
    let config = Config::parse(text, "test.toml", folder, Env::default()).unwrap();
    App::start(config, Clock::system()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_for_a_store_with_a_key_file() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let run = |line: &str| {
        let output = keyward(dir.path(), line, &[]);
        (output.status.code(), said(&output))
    };
    for line in ["store copy --to sqlite://new.db", "seal rotate"] {
        let (code, text) = run(line);
        assert_eq!((code, text.contains("there is no store")), (Some(1), true), "{text}");
    }
    assert!(!dir.path().join("keyward.db").exists(), "a mistyped path makes nothing");
    let (code, text) = run("store migrate");
    assert_eq!((code, text.contains("schema version 2")), (Some(0), true), "{text}");

    let app = plain(dir.path()).await;
    let (code, text) = run("store copy --to sqlite://new.db");
    assert_eq!((code, text.contains("stop every gateway")), (Some(1), true), "{text}");
    // A gateway that does not know the new key must learn it before anything is sealed with it.
    let (code, text) = run("seal rotate --new-key");
    assert_eq!((code, text.contains("Restart the gateway")), (Some(0), true), "{text}");
    let (code, text) = run("seal rotate --new-key");
    assert_eq!((code, text.contains("without --new-key first")), (Some(1), true), "{text}");
    app.stop().await;
    let app = plain(dir.path()).await;
    let (code, text) = run("seal rotate");
    assert_eq!(
        (code, text.contains("0 values remain"), text.contains("may be removed")),
        (Some(0), true, true),
        "{text}"
    );
    app.stop().await;
    let (code, text) = run("seal rotate --new-key");
    assert_eq!((code, text.contains("0 values remain")), (Some(0), true), "{text}");
    let keys = std::fs::read_to_string(dir.path().join("keyward.keys")).unwrap();
    assert_eq!(keys.lines().count(), 3, "the first key and two new ones");

    let (code, text) = run("store copy --to sqlite://new.db");
    assert_eq!(code, Some(0), "{text}");
    let folder = dir.path().canonicalize().unwrap();
    let handed = format!("cp -p '{0}/keyward.keys' '{0}/new.keys'", folder.display());
    for words in ["sealed values open there", &handed, "never again on keyward.db"] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
    for line in keys.lines() {
        assert!(!text.contains(line), "a key was printed");
    }
    let (code, text) = run("store copy --to sqlite://new.db");
    assert_eq!((code, text.contains("is not empty")), (Some(1), true), "{text}");
    std::fs::copy(dir.path().join("keyward.keys"), dir.path().join("new.keys")).unwrap();
    let env = [("KEYWARD_STORE_URL", "sqlite://new.db"), ("KEYWARD_COPY_TO", "sqlite://third.db")];
    let output = keyward(dir.path(), "store copy", &env);
    assert!(output.status.success(), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_not_made_for_keys_that_are_given() {
    let Filled { world, .. } = filled(Backend::Sqlite).await;
    let refused = upkeep::rotate(&world.config(&Settings::default()), true, |_| ()).await.err().unwrap();
    assert!(refused.to_string().contains("restart every instance"), "{refused:#}");
}

//! What `kill -9` at any instant costs: nothing, but for one window at providers that take each refresh token once
//! (between the provider's rotation and the stored result), and that loss is said by its name.
//!
//! Each round ends the accounts' tokens, lets requests refresh all of them at once, kills the gateway at a swept moment,
//! starts it again and asks until every account answers, or says that a person must reconnect it. The sandbox counts the
//! refreshes that it granted, the store the results that it holds: a grant without a result is a kill in the window.
//!
//! `scripts/kill-loop` runs the same with more rounds: `KEYWARD_KILL_ROUNDS` sets their number, `KEYWARD_KILL_BACKENDS`
//! (`sqlite,postgres`) where, `KEYWARD_KILL_TABLE` a file that gets a line of numbers from each loop.

mod frozen;
mod gateway;
mod records;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use keyward::sandbox::{Fault, Rotation, Sandbox};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use self::gateway::{Gateway, Listening};
use self::records::{Life, Stored};
use crate::harness::{Answer, Backend, Key, World, admin, agent_request, backends, connect, slug};

/// A lease that nobody renews any more ends after this long.
const LEASE: Duration = Duration::from_secs(6);
/// How long after a start an account may take to answer, besides the wait for a dead lease.
const SOON: Duration = Duration::from_secs(10);
/// How long the provider holds its answers back in the rounds that aim at the window.
const HELD_BACK: Duration = Duration::from_millis(100);

/// When a round kills. The share sweeps from 0 to 1 over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// This share of [`HELD_BACK`] after the first token call arrived; the provider works at once and answers late.
    InAnswer,
    /// This share of an undisturbed round after the requests were sent.
    AfterTrigger,
    /// This share of an undisturbed round after the first request was answered.
    AfterFirstAnswer,
    /// This share of an undisturbed round after the first token call arrived.
    AfterCall,
}

const MOMENTS: [Moment; 4] = [Moment::InAnswer, Moment::AfterFirstAnswer, Moment::AfterTrigger, Moment::AfterCall];

/// How tokens end before a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The upstream refuses them, long before their time.
    Refused,
    /// Their second is over.
    Expired,
}

impl End {
    fn of(round: usize) -> Self {
        if (round / 2).is_multiple_of(2) { Self::Refused } else { Self::Expired }
    }
    fn ttl(self) -> Duration {
        if self == Self::Refused { Duration::from_secs(3600) } else { Duration::from_secs(1) }
    }
}

/// One person's account, and where its counts began (they begin anew with each connection).
struct Subject {
    person: String,
    account: String,
    path: String,
    refreshes: u64,
    generation: i64,
    losses: i64,
}

/// What the kills did. One account under one kill counts as one.
#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    /// Accounts whose result was stored before the kill.
    stored: u64,
    /// Refreshes that the provider granted and whose result was never stored.
    in_window: u64,
    lost_labelled: u64,
    lost_unlabelled: u64,
    slowest: Duration,
}

struct Loop {
    world: World,
    backend: Backend,
    rotation: Rotation,
    gateway: Gateway,
    at: Listening,
    key: Key,
    subjects: Vec<Subject>,
    /// An undisturbed round, from the requests to the last answer.
    usual: Duration,
    tally: Tally,
}

impl Loop {
    async fn new(backend: Backend, rotation: Rotation, size: usize) -> Self {
        let world = World::new(backend).await;
        world.sandbox.set_rotation(rotation);
        world.sandbox.set_recording(false);
        let mut gateway = Gateway::spawn(&world);
        let at = gateway.ready().await;
        let made = api(at.admin, "POST", "/keys", Some(json!({"name": "loop"}))).await;
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        let key = Key { id: text("id"), secret: text("key") };
        let mut subjects = Vec::new();
        for n in 0..size {
            let person = format!("ada+{n}@example.com");
            let account = connect(at.admin, &person, "preset=write").await;
            let slug = slug(&account, "mail");
            api(at.admin, "PUT", &format!("/keys/{}/grants/{slug}", key.id), Some(json!({"access": "read"}))).await;
            let path = format!("/proxy/{slug}/me/messages?$top=1");
            let account = account["id"].as_str().unwrap().to_owned();
            subjects.push(Subject { person, account, path, refreshes: 0, generation: 1, losses: 0 });
        }
        let (usual, tally) = (Duration::ZERO, Tally::default());
        let mut this = Self { world, backend, rotation, gateway, at, key, subjects, usual, tally };
        this.end_tokens(End::Refused).await;
        let begun = Instant::now();
        this.until_all_answer().await;
        this.usual = begun.elapsed();
        this.tally.slowest = Duration::ZERO;
        this.account_for(&[]).await;
        this
    }

    /// Whether a refresh token counts only once here, so that a kill in the window loses the account.
    fn is_unforgiving(&self) -> bool {
        matches!(self.rotation, Rotation::Strict | Rotation::Family)
    }

    async fn run(&mut self, rounds: usize) {
        for round in 0..rounds {
            let share = (round as f64 * 0.618_033_988_7).fract();
            self.end_tokens(End::of(round)).await;
            self.world.sandbox.set_access_ttl(End::of(round + 1).ttl());
            self.kill_while_refreshing(MOMENTS[round % MOMENTS.len()], share).await;
            // On Postgres the first dead lease still stands: the second start could do nothing.
            if round % 3 == 2 && self.backend == Backend::Sqlite {
                self.kill_while_starting(share).await;
            }
            // A dead lease ends by its time on Postgres. One round in ten waits for that; for the others it is over.
            if self.backend == Backend::Postgres && !round.is_multiple_of(10) {
                records::end_leases(&self.world).await;
            }
            self.restart().await;
            let lost = self.until_all_answer().await;
            self.account_for(&lost).await;
            self.reconnect(&lost).await;
            self.check_log();
        }
        // What is stored still works when nobody disturbs.
        self.world.sandbox.set_access_ttl(End::Refused.ttl());
        self.end_tokens(End::Refused).await;
        assert_eq!(self.until_all_answer().await, Vec::<usize>::new(), "an account was lost without a kill");
        let told = records::ends_told(&self.world).await;
        for subject in &self.subjects {
            let times = told.get(&subject.account).copied().unwrap_or_default();
            assert_eq!(times, subject.losses, "a loss is told once: {}", subject.account);
        }
    }

    async fn end_tokens(&mut self, how: End) {
        match how {
            End::Refused => {
                // A token that the upstream's refusal has just brought is not doubted for a while. A new process knows
                // nothing of that.
                self.gateway.kill();
                self.restart().await;
                self.subjects.iter().for_each(|subject| self.world.sandbox.expire_access_of(&subject.person));
            }
            End::Expired => tokio::time::sleep(End::Expired.ttl() + Duration::from_millis(20)).await,
        }
    }

    async fn kill_while_refreshing(&mut self, moment: Moment, share: f64) {
        let sandbox = self.world.sandbox.clone();
        let calls = sandbox.counters().token_arrived;
        if moment == Moment::InAnswer {
            sandbox.faults().token(Fault::SlowAfterWork(HELD_BACK));
        }
        let mut asked = JoinSet::new();
        for (n, subject) in self.subjects.iter().enumerate() {
            let (proxy, key, path) = (self.at.proxy, self.key.clone(), subject.path.clone());
            asked.spawn(async move { (n, ask(proxy, &key, &path).await) });
        }
        let mut answered = Vec::new();
        match moment {
            Moment::InAnswer => {
                arrived(&sandbox, calls + 1).await;
                tokio::time::sleep(HELD_BACK.mul_f64(share * 0.7)).await;
            }
            Moment::AfterTrigger => tokio::time::sleep(self.usual.mul_f64(share)).await,
            Moment::AfterFirstAnswer => {
                answered.extend(asked.join_next().await.map(Result::unwrap));
                tokio::time::sleep(self.usual.mul_f64(share)).await;
            }
            Moment::AfterCall => {
                arrived(&sandbox, calls + 1).await;
                tokio::time::sleep(self.usual.mul_f64(share)).await;
            }
        }
        self.gateway.kill();
        sandbox.faults().clear();
        answered.extend(asked.join_all().await);
        self.check_log();
        self.tally.kills += self.subjects.len() as u64;

        let stored = records::accounts(&self.world, Life::Dead).await;
        let before: BTreeMap<_, _> = self.subjects.iter().map(|s| (s.account.as_str(), s.generation)).collect();
        for (n, answer) in answered {
            let account = self.subjects[n].account.as_str();
            if answer.is_some_and(|answer| answer.status == 200) {
                assert!(
                    stored[account].generation > before[account],
                    "a token was used before it was stored: {account}"
                );
            }
        }
        let grown = |(id, generation): &(&&str, &i64)| stored[**id].generation > **generation;
        self.tally.stored += before.iter().filter(grown).count() as u64;
    }

    /// A second kill while the first one's traces are being resolved, or before that has begun.
    async fn kill_while_starting(&mut self, share: f64) {
        self.gateway = Gateway::spawn(&self.world);
        tokio::time::sleep((Duration::from_millis(150) + self.usual).mul_f64(share)).await;
        self.gateway.kill();
        self.check_log();
        self.tally.kills += self.subjects.len() as u64;
    }

    async fn restart(&mut self) {
        self.gateway = Gateway::spawn(&self.world);
        self.at = self.gateway.ready().await;
    }

    /// Asks for every account until it answers; answers those whose answer is that they are lost.
    async fn until_all_answer(&mut self) -> Vec<usize> {
        let begun = Instant::now();
        let patience = SOON + if self.backend == Backend::Postgres { LEASE } else { Duration::ZERO };
        let mut asked = JoinSet::new();
        for (n, subject) in self.subjects.iter().enumerate() {
            let (proxy, key, path) = (self.at.proxy, self.key.clone(), subject.path.clone());
            asked.spawn(async move {
                loop {
                    let answer = ask(proxy, &key, &path).await.expect("a gateway that was not killed answers");
                    match (answer.status.as_u16(), answer.header("keyward-error")) {
                        (200, _) => return (n, false),
                        (_, "account_disconnected") => return (n, true),
                        // Soon; or a token of one second ended on its way to the upstream.
                        (503, "token_unavailable") | (401, "") if begun.elapsed() < patience => {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        _ => panic!("{path}: {} {} after {:?}", answer.status, answer.text(), begun.elapsed()),
                    }
                }
            });
        }
        let mut lost: Vec<_> = asked.join_all().await.into_iter().filter_map(|(n, lost)| lost.then_some(n)).collect();
        lost.sort_unstable();
        self.tally.slowest = self.tally.slowest.max(begun.elapsed());
        lost
    }

    /// Compares what the provider granted with what is stored.
    async fn account_for(&mut self, lost: &[usize]) {
        let deadline = Instant::now() + SOON;
        loop {
            let stored = records::accounts(&self.world, Life::Alive).await;
            assert_eq!(stored.len(), self.subjects.len(), "every account is there");
            let missing: Vec<i64> = self.subjects.iter().map(|subject| self.missing(subject, &stored)).collect();
            // Where nothing is forgiven, exactly the accounts with a missing result are lost. The tokens of a second may
            // be in the middle of their next refresh: then it takes another look.
            let wrong = |(n, missing): (usize, &i64)| {
                *missing < 0 || (self.is_unforgiving() && (*missing > 0) != lost.contains(&n))
            };
            if missing.iter().enumerate().any(wrong) {
                assert!(Instant::now() < deadline, "lost: {lost:?}, without a result: {missing:?}, stored: {stored:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            self.tally.in_window += missing.iter().sum::<i64>().unsigned_abs();
            for (n, subject) in self.subjects.iter_mut().enumerate() {
                let row = &stored[&subject.account];
                let (status, reason) = (row.status.as_str(), row.reason.as_deref());
                match (lost.contains(&n), status, reason) {
                    (false, "connected", None) => {}
                    (true, "disconnected", Some("lost_in_window")) => self.tally.lost_labelled += 1,
                    (true, "disconnected", _) => self.tally.lost_unlabelled += 1,
                    other => panic!("{}: {other:?}", subject.account),
                }
                subject.generation = row.generation;
                subject.refreshes = refreshes(&self.world, &subject.person);
            }
            return;
        }
    }

    /// Granted refreshes of an account whose result is not stored.
    fn missing(&self, subject: &Subject, stored: &BTreeMap<String, Stored>) -> i64 {
        let granted = refreshes(&self.world, &subject.person) - subject.refreshes;
        granted as i64 - (stored[&subject.account].generation - subject.generation)
    }

    async fn reconnect(&mut self, lost: &[usize]) {
        for &n in lost {
            let subject = &mut self.subjects[n];
            let account = connect(self.at.admin, &subject.person, "preset=write").await;
            assert_eq!(account["id"], subject.account.as_str(), "it comes back in its place");
            subject.losses += 1;
        }
        if lost.is_empty() {
            return;
        }
        let stored = records::accounts(&self.world, Life::Alive).await;
        for &n in lost {
            let subject = &mut self.subjects[n];
            subject.generation = stored[&subject.account].generation;
            subject.refreshes = refreshes(&self.world, &subject.person);
        }
    }

    fn check_log(&self) {
        let log = self.gateway.log();
        for bad in ["panicked", "does not open", "can't be read", "unreadable", "corrupt", "malformed"] {
            assert!(!log.contains(bad), "{bad}:\n{log}");
        }
    }
}

/// Refreshes granted to a person's latest consent.
fn refreshes(world: &World, person: &str) -> u64 {
    let counters = world.sandbox.counters();
    counters.families.values().rev().find(|family| family.person == person).map_or(0, |family| family.refreshes)
}

async fn api(address: SocketAddr, method: &str, path: &str, body: Option<Value>) -> Value {
    let answer = admin(address, method, &format!("/api/organizations/default{path}"), body).await;
    assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.text());
    if answer.body.is_empty() { Value::Null } else { answer.json() }
}

/// An agent's request to a gateway that may be killed meanwhile.
async fn ask(proxy: SocketAddr, key: &Key, path: &str) -> Option<Answer> {
    let request: Request<Full<Bytes>> = agent_request(key, "GET", path).body(Full::default()).unwrap();
    let exchange = async {
        let stream = TcpStream::connect(proxy).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let driver = tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await.ok()?.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        driver.abort();
        Some(Answer { status: parts.status, headers: parts.headers, body })
    };
    tokio::time::timeout(Duration::from_secs(60), exchange).await.expect("an end of some kind within a minute")
}

async fn arrived(sandbox: &Sandbox, calls: u64) {
    let soon = tokio::time::timeout(SOON, sandbox.wait_for_token_calls(calls)).await;
    assert!(soon.is_ok(), "no token call: {:?}", sandbox.counters().token_calls);
}

fn wanted_backends() -> Vec<Backend> {
    let wanted = std::env::var("KEYWARD_KILL_BACKENDS").unwrap_or_default();
    let is_wanted = |backend: &Backend| wanted.is_empty() || wanted.contains(&format!("{backend:?}").to_lowercase());
    backends().into_iter().filter(is_wanted).collect()
}

async fn kill_loop(name: &str, rotation: Rotation) {
    for backend in wanted_backends() {
        // On Postgres each round waits for the dead lease: fewer rounds, more accounts.
        let (usual, size) = if backend == Backend::Sqlite { (6, 8) } else { (2, 16) };
        let rounds = std::env::var("KEYWARD_KILL_ROUNDS").map_or(usual, |rounds| rounds.parse().unwrap());
        let mut kills = Loop::new(backend, rotation, size).await;
        kills.run(rounds).await;
        let Tally { kills: all, stored, in_window, lost_labelled, lost_unlabelled, slowest } = kills.tally;
        if let Some(table) = std::env::var_os("KEYWARD_KILL_TABLE") {
            use std::io::Write as _;
            let mut table = std::fs::OpenOptions::new().create(true).append(true).open(table).unwrap();
            let line = format!(
                "{name}\t{backend:?}\t{all}\t{stored}\t{in_window}\t{lost_labelled}\t{lost_unlabelled}\t{} ms\n",
                slowest.as_millis()
            );
            table.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(lost_unlabelled, 0, "{backend:?}: a loss in the window is said by its name");
        assert!(in_window > 0, "{backend:?}: no kill fell into the window; this loop shows nothing");
        if matches!(rotation, Rotation::Strict | Rotation::Family) {
            assert_eq!(lost_labelled, in_window, "{backend:?}");
        } else {
            assert_eq!(lost_labelled, 0, "{backend:?}: a provider that forgives loses nothing");
        }
        assert!(all >= 30 && stored > 0 && stored < all, "{backend:?}: the kills fall before and after the storing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_where_refresh_tokens_never_change() {
    kill_loop("none", Rotation::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_where_old_refresh_tokens_stay_valid() {
    kill_loop("soft", Rotation::Soft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_where_old_refresh_tokens_live_a_little_longer() {
    kill_loop("grace", Rotation::Grace(Duration::from_secs(20))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_only_what_is_in_the_window_where_refresh_tokens_count_once() {
    kill_loop("strict", Rotation::Strict).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_only_what_is_in_the_window_where_reuse_revokes_everything() {
    kill_loop("family", Rotation::Family).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_on_sqlite_does_not_wait_for_the_lease_of_the_dead() {
    let mut one = Loop::new(Backend::Sqlite, Rotation::Soft, 1).await;
    one.world.sandbox.faults().token_times(Fault::HangAfterWork, 1);
    one.end_tokens(End::Refused).await;
    let calls = one.world.sandbox.counters().token_arrived;
    let (proxy, key, path) = (one.at.proxy, one.key.clone(), one.subjects[0].path.clone());
    let asked = tokio::spawn(async move { ask(proxy, &key, &path).await });
    arrived(&one.world.sandbox, calls + 1).await;
    one.gateway.kill();
    let killed = Instant::now();
    assert!(asked.await.unwrap().is_none());
    one.restart().await;
    // Nobody asks: what the kill left unresolved is resolved by itself.
    let sandbox = one.world.sandbox.clone();
    tokio::time::timeout(LEASE, sandbox.wait_for_token_calls(calls + 2)).await.expect("at once");
    assert_eq!(one.until_all_answer().await, Vec::<usize>::new());
    assert!(killed.elapsed() < LEASE - Duration::from_secs(1), "{:?}", killed.elapsed());
}

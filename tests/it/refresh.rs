//! Refreshes under load and under bad manners: one call however many wait, nobody's leaving hurts, a token is stored
//! before it is used, and a 401 of an upstream costs one refresh and one replay.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use keyward::sandbox::{Fault, Recorded, Rotation};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Answer, Keyward, agent_request, backends, call, slug};
use crate::token_kit::{HOUR, Person, Stage, bearer, moment};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Requests that reached the mail or the calendar, oldest first.
fn upstream(stage: &Stage) -> Vec<Recorded> {
    stage.kw.sandbox().recorded().into_iter().filter(|seen| seen.target != "/v1.0/me").collect()
}

fn tokens_of(seen: &[Recorded]) -> BTreeSet<String> {
    seen.iter().map(|seen| bearer(seen.header("authorization")[0])).collect()
}

/// Makes an entry in the calendar; answers what the agent gets.
async fn post(stage: &Stage, person: &Person, body: Bytes) -> Answer {
    let path = format!("/proxy/{}/me/events", person.calendar);
    let request = agent_request(&stage.key, "POST", &path).header("content-type", "application/json");
    call(stage.kw.app.proxy_address(), request.body(Full::from(body)).unwrap()).await
}

/// An entry of about this many bytes.
fn entry(bytes: usize) -> Bytes {
    let at = |hour| json!({"dateTime": format!("2030-01-01T{hour}:00:00"), "timeZone": "UTC"});
    let body = json!({"contentType": "Text", "content": "x".repeat(bytes)});
    json!({"subject": "entry", "body": body, "start": at(10), "end": at(11)}).to_string().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_agents_on_an_ended_token_make_one_call() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let account = stage.kw.connect("ada@example.com").await;
        let slugs = ["mail", "calendar"].map(|capability| slug(&account, capability));
        for slug in &slugs {
            stage.kw.grant(&stage.key, slug, "read").await;
        }
        stage.expire();
        let (calls, before) = (stage.calls(), stage.kw.sandbox().counters().api_calls);
        // Long enough for all of them to be waiting.
        stage.kw.sandbox().faults().token_times(Fault::Slow(SECOND), 1);
        let paths = [format!("/proxy/{}/me/messages", slugs[0]), format!("/proxy/{}/me/events", slugs[1])];
        let answers = join_all((0..1_000).map(|n| stage.kw.agent(&stage.key, "GET", &paths[n % 2]))).await;
        for answer in &answers {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(stage.calls() - calls, 1, "row 35: one call");
        assert_eq!(stage.kw.sandbox().counters().api_calls - before, 1_000);
        // As many as are remembered.
        let seen = upstream(&stage);
        let stored = stage.tokens(account["id"].as_str().unwrap()).await.0;
        assert_eq!(tokens_of(&seen), BTreeSet::from([stored]), "all of them use the one new token");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_survives_everybody_leaving() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        // The old refresh token dies the moment the new one is made: whoever loses the answer loses the account.
        sandbox.set_rotation(Rotation::Strict);
        let person = stage.person("ada").await;
        for round in 0..5u32 {
            stage.expire();
            let calls = stage.calls();
            sandbox.faults().token_times(Fault::SlowAfterWork(Duration::from_millis(200)), 1);
            let mut agents = Vec::new();
            for _ in 0..10 {
                let mut agent = TcpStream::connect(stage.kw.app.proxy_address()).await.unwrap();
                let head = format!(
                    "GET /proxy/{}/me/messages HTTP/1.1\r\nHost: keyward.test\r\nAuthorization: Bearer {}\r\n\r\n",
                    person.slug, stage.key.secret
                );
                agent.write_all(head.as_bytes()).await.unwrap();
                agents.push(agent);
            }
            sandbox.wait_for_token_calls(calls + 1).await;
            for agent in agents {
                // A reset, not an orderly end.
                agent.set_zero_linger().unwrap();
                drop(agent);
            }
            stage.until(&person, "row 38", |account| moment(account, "access_expires_at") > stage.now()).await;
            stage.used(&person, "row 38").await;
            assert_eq!(stage.calls() - calls, 1, "row 38, round {round}: one call");
        }
        stage.expire();
        stage.used(&person, "row 38: the next refresh").await;
        assert_eq!(sandbox.counters().reuse_detected, 0, "row 38");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_late_takes_what_somebody_else_brought() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        let person = stage.person("ada").await;
        sandbox.expire_access_of(&person.email);
        let (calls, before) = (stage.calls(), sandbox.counters().api_calls);
        // The first request hears of its 401 only when the refresh that the second one brought about is long over.
        sandbox.faults().api_times(Fault::Slow(SECOND), 1);
        let late = stage.get(&person);
        let early = async {
            sandbox.wait_until(|counters| counters.api_calls > before).await;
            let answer = stage.get(&person).await;
            assert_eq!(sandbox.counters().api_calls - before, 3, "row 37: the late one still waits for its 401");
            answer
        };
        let (late, early) = tokio::join!(late, early);
        assert_eq!((late.status.as_u16(), early.status.as_u16()), (200, 200), "row 37");
        assert_eq!(stage.calls() - calls, 1, "row 37: one refresh for both");
        assert_eq!(sandbox.counters().reuse_detected, 0, "row 37");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_refreshed_early_by_five_minutes_or_a_quarter_of_its_life() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        for (name, life, margin) in [("hour", HOUR, 5 * MINUTE), ("short", 8 * MINUTE, 2 * MINUTE)] {
            stage.kw.sandbox().set_access_ttl(life);
            let person = stage.person(name).await;
            let calls = stage.calls();
            stage.advance(life - margin - SECOND);
            assert_eq!(stage.used(&person, name).await, person.first_token);
            // What would have been poked has time to show itself.
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(stage.calls(), calls, "{name}: not before its margin");
            stage.advance(SECOND);
            assert_eq!(stage.used(&person, name).await, person.first_token, "{name}: nobody waits for it");
            let ends = stage.now().after(life);
            stage.until(&person, name, |account| moment(account, "access_expires_at") == ends).await;
            stage.renewed(&person, &person.first_token, name).await;
            assert_eq!(stage.calls() - calls, 1, "{name}");
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_request_after_a_start_has_an_old_token_refreshed() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        stage.advance(HOUR - 4 * MINUTE);
        let Stage { kw: Keyward { world, app, settings }, key } = stage;
        app.stop().await;
        let app = world.instance(&settings).await;
        let stage = Stage { kw: Keyward { world, app, settings }, key };
        let calls = stage.calls();
        assert_eq!(stage.used(&person, "after a start").await, person.first_token, "it goes on with the old token");
        let begun = |counters: &keyward::sandbox::Counters| counters.token_arrived == calls + 1;
        tokio::time::timeout(Duration::from_secs(30), stage.kw.sandbox().wait_until(begun)).await.unwrap();
        stage.renewed(&person, &person.first_token, "after a start").await;
        assert_eq!(stage.calls() - calls, 1);
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_an_upstream_refuses_costs_one_refresh_and_one_replay() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        let person = stage.person("ada").await;
        for (what, body) in [("a GET", None), ("a small POST", Some(entry(100))), ("64 KiB", Some(entry(65_000)))] {
            // What a refresh brought is trusted for a while: see below.
            stage.advance(MINUTE);
            sandbox.expire_access_of(&person.email);
            let (calls, before) = (stage.calls(), upstream(&stage).len());
            let answer = match body.clone() {
                None => stage.get(&person).await,
                Some(body) => post(&stage, &person, body).await,
            };
            assert!(answer.status.is_success(), "row 31, {what}: {}", answer.text());
            assert_eq!(stage.calls() - calls, 1, "row 31, {what}: one refresh");
            let seen = upstream(&stage).split_off(before);
            assert_eq!(seen.len(), 2, "row 31, {what}: one replay");
            assert_eq!(tokens_of(&seen).len(), 2, "row 31, {what}: each with a token of its own");
            assert_eq!((&seen[0].method, &seen[0].target), (&seen[1].method, &seen[1].target));
            let body = body.unwrap_or_default();
            assert!(seen[1].body_complete && seen[1].body_length == body.len() as u64, "row 31, {what}");
            assert_eq!(&seen[1].body_start[..], &body[..body.len().min(4096)], "row 31, {what}: the same body");
            assert_eq!(stage.state(&person).await.0, "connected");
        }
        let path = format!("/proxy/{}/me/events?$top=1000", person.calendar);
        let entries = stage.kw.agent(&stage.key, "GET", &path).await.json()["value"].as_array().unwrap().clone();
        let made = entries.iter().filter(|entry| entry["subject"] == "entry").count();
        assert_eq!(made, 2, "row 31: each POST had its effect once");
        assert_eq!(stage.told(&person).await, [""; 0], "row 31");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_is_not_sent_twice() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        stage.kw.sandbox().expire_access_of(&person.email);
        let (calls, before) = (stage.calls(), upstream(&stage).len());
        let refused = post(&stage, &person, entry(70_000)).await;
        assert_eq!(refused.status, 401, "row 31: the agent decides what to do with its body");
        assert_eq!(refused.header("keyward-error"), "", "row 31: the upstream's own answer");
        assert_eq!(upstream(&stage).len() - before, 1, "row 31: sent once");
        // The token is renewed all the same, so that the next try works.
        stage.kw.sandbox().wait_until(|counters| counters.refreshes("ok") == 1).await;
        assert_ne!(stage.used(&person, "row 31").await, person.first_token);
        let made = post(&stage, &person, entry(70_000)).await;
        assert_eq!(made.status, 201, "row 31: {}", made.text());
        assert_eq!(stage.calls() - calls, 1, "row 31");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_refuses_every_token_makes_no_loop() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        let person = stage.person("ada").await;
        sandbox.faults().api(Fault::Status { status: 401, retry_after: None });
        let (calls, before) = (stage.calls(), upstream(&stage).len());
        for _ in 0..20 {
            let refused = stage.get(&person).await;
            assert_eq!((refused.status.as_u16(), refused.text().as_str()), (401, "trouble on demand\n"), "row 31");
            assert_eq!(refused.header("keyward-error"), "", "row 31: the second 401 passes through");
        }
        assert_eq!(stage.calls() - calls, 1, "row 31: one refresh");
        assert_eq!(upstream(&stage).len() - before, 21, "row 31: one replay");
        // An hour of it: bounded by time, not by requests.
        for _ in 0..60 {
            stage.advance(MINUTE);
            for _ in 0..3 {
                assert_eq!(stage.get(&person).await.status, 401, "row 31");
            }
        }
        assert!(stage.calls() - calls <= 62, "row 31: {} refreshes in an hour", stage.calls() - calls);
        assert_eq!(
            stage.state(&person).await,
            ("connected".to_owned(), String::new()),
            "row 31: no fault of the account"
        );
        assert_eq!(stage.told(&person).await, [""; 0], "row 31");
        sandbox.faults().clear();
        stage.used(&person, "row 31").await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_fails_after_a_401_leaves_the_401_to_the_agent() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        let person = stage.person("ada").await;
        sandbox.expire_access_of(&person.email);
        sandbox.faults().token(Fault::Status { status: 503, retry_after: None });
        let calls = stage.calls();
        for _ in 0..5 {
            let refused = stage.get(&person).await;
            assert_eq!(refused.status, 401, "row 31");
            assert_eq!(refused.header("keyward-error"), "", "row 31: the upstream's own answer");
        }
        assert_eq!(stage.calls() - calls, 1, "row 31: one call, then a pause");
        sandbox.faults().clear();
        stage.advance(2 * SECOND);
        stage.used(&person, "row 31: it comes back").await;
        // And when the consent itself is gone, the agent is told so.
        stage.advance(MINUTE);
        sandbox.revoke_all_of(&person.email);
        assert_eq!(stage.get(&person).await.refusal(), "account_disconnected", "row 31, then 13");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_credential_that_is_refused_is_the_agents_to_see() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        stage.kw.tools().await;
        stage.kw.grant(&stage.key, "tools", "write").await;
        let before = stage.kw.sandbox().counters().tool_calls;
        for method in ["GET", "POST"] {
            let refused = stage.kw.agent(&stage.key, method, "/proxy/tools/status/401").await;
            assert_eq!(refused.status, 401);
            assert_eq!(refused.header("keyward-error"), "");
        }
        assert_eq!(stage.kw.sandbox().counters().tool_calls - before, 2, "row 31: each of them once");
        assert_eq!(stage.calls(), 0, "row 31: no token call");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_stored_before_it_is_used() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        let person = stage.person("ada").await;
        for _ in 0..5 {
            stage.expire();
            let before = sandbox.counters().api_calls;
            let (_, spent) = stage.tokens(&person.id).await;
            // The upstream has the request, and takes its time with the answer.
            sandbox.faults().api_times(Fault::Slow(Duration::from_millis(300)), 1);
            let agent = stage.get(&person);
            let upstream = async {
                sandbox.wait_until(|counters| counters.api_calls > before).await;
                let (access, refresh) = stage.tokens(&person.id).await;
                assert_eq!(access, stage.last_token(), "I6: what the upstream sees is what is stored");
                assert_ne!(refresh, spent, "I6: and so is the refresh token that came with it");
            };
            let (answer, ()) = tokio::join!(agent, upstream);
            assert_eq!(answer.status, 200);
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_refreshes_in_a_row_are_survived_whatever_the_rotation() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        for (name, rotation) in [
            ("none", Rotation::None),
            ("soft", Rotation::Soft),
            ("strict", Rotation::Strict),
            ("grace", Rotation::Grace(10 * SECOND)),
            ("family", Rotation::Family),
        ] {
            sandbox.set_rotation(rotation);
            let person = stage.person(name).await;
            let mut last = person.first_token.clone();
            let mut seen = BTreeSet::from([last.clone()]);
            let calls = stage.calls();
            for round in 1..=20 {
                // Ended by its time, by an operator's wish, or early, in turn.
                let next = match round % 3 {
                    0 => {
                        stage.expire();
                        stage.used(&person, name).await
                    }
                    1 => {
                        stage.kw.api("POST", &format!("/accounts/{}/refresh", person.id), None).await;
                        stage.used(&person, name).await
                    }
                    _ => {
                        stage.advance(56 * MINUTE);
                        stage.renewed(&person, &last, name).await
                    }
                };
                assert!(seen.insert(next.clone()), "{name}, round {round}: a new token");
                last = next;
            }
            assert_eq!(stage.calls() - calls, 20, "{name}");
            assert_eq!(sandbox.counters().reuse_detected, 0, "{name}");
            assert_eq!(stage.told(&person).await, [""; 0], "{name}");
            stage.leave(&person).await;
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_that_end_together_are_refreshed_a_few_at_a_time() {
    for backend in backends() {
        let stage = Stage::new(backend, "[refresh]\nper_provider = 3").await;
        let mut people = Vec::new();
        for n in 0..12 {
            people.push(stage.person(&format!("p{n}")).await);
        }
        stage.expire();
        let calls = stage.calls();
        stage.kw.sandbox().faults().token(Fault::Slow(Duration::from_millis(150)));
        let (refreshes, mut most) = (stage.kw.sandbox().counters().refresh_calls(), 0);
        let agents = join_all(people.iter().map(|person| stage.get(person)));
        // Arrived and not yet worked on.
        let watching = stage.kw.sandbox().wait_until(|counters| {
            most = most.max(counters.token_arrived - calls - (counters.refresh_calls() - refreshes));
            false
        });
        let answers = tokio::select! {
            answers = agents => answers,
            () = watching => unreachable!("it watches for ever"),
        };
        for answer in answers {
            assert_eq!(answer.status, 200, "row 35: {}", answer.text());
        }
        assert_eq!(stage.calls() - calls, 12, "row 35: one call for each account");
        assert_eq!(most, 3, "row 35: three at once, and never more");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_account_in_trouble_leaves_the_others_alone() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let (ada, grace) = (stage.person("ada").await, stage.person("grace").await);
        stage.expire();
        stage.kw.sandbox().faults().token_times(Fault::Hang, 1);
        let calls = stage.calls();
        let stuck = stage.get(&ada);
        let other = async {
            stage.kw.sandbox().wait_for_token_calls(calls + 1).await;
            let began = tokio::time::Instant::now();
            stage.used(&grace, "another account").await;
            assert!(began.elapsed() < 5 * SECOND, "it waits for nobody");
        };
        let (stuck, ()) = tokio::join!(stuck, other);
        assert_eq!(stuck.refusal(), "token_unavailable");
        assert_eq!(stage.state(&grace).await.0, "connected");
        stage.kw.stop().await;
    }
}

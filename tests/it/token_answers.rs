//! What each answer of a token endpoint does: the rows of the table in the list of invariants, by their numbers. Rows 35,
//! 37 and 38 are about many callers and stand in `refresh.rs`, as does most of row 31.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use keyward::app::App;
use keyward::clock::Clock;
use keyward::sandbox::{Fault, Rotation};
use serde_json::{Value, json};

use crate::harness::{
    Answer, Keyward, Settings, World, admin, agent_request, backends, call, connect, consent, open_flow, paste_back,
};
use crate::token_kit::{Authority, Door, HOUR, Person, Stage, held, moment};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// A token call that hangs is given up after a second of real time.
const SHORT: &str = "[refresh]\ntimeout = \"1s\"";
const CLIENT: &str = "provider_misconfigured";
const PROVIDER: &str = "provider_unavailable";

fn alter(over: Value) -> Fault {
    Fault::Alter(over.as_object().unwrap().clone())
}

fn raw(status: u16, content_type: &str, body: impl Into<Bytes>) -> Fault {
    Fault::RawBody { status, content_type: content_type.to_owned(), body: body.into() }
}

fn status(status: u16, retry_after: &str) -> Fault {
    Fault::Status { status, retry_after: Some(retry_after.to_owned()).filter(|text| !text.is_empty()) }
}

/// An OAuth error with a text that must not be seen anywhere.
fn error(status: u16, code: &str) -> Fault {
    Fault::Json(status, json!({"error": code, "error_description": "CANARY-of-the-provider"}))
}

fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").parse().unwrap_or_else(|_| panic!("no Retry-After: {}", answer.text()))
}

fn assert_unavailable(refused: &Answer, what: &str) {
    assert_eq!((refused.status.as_u16(), refused.refusal().as_str()), (503, "token_unavailable"), "{what}");
    assert!((1..=3600).contains(&retry_after(refused)), "{what}: {}", retry_after(refused));
}

/// The agent is told which page brings the account back, and no more.
async fn assert_disconnected(stage: &Stage, person: &Person, refused: &Answer, what: &str) {
    assert_eq!((refused.status.as_u16(), refused.refusal().as_str()), (503, "account_disconnected"), "{what}");
    let hint = refused.json()["detail"]["hint"].as_str().unwrap().to_owned();
    let page = format!("http://{}/integrations?reconnect={}", stage.kw.app.admin_address(), person.id);
    assert!(hint.ends_with(&page), "{what}: {hint}");
    stage.assert_clean(person, &refused.text(), what).await;
}

/// A refresh that brings a token: used at once, told to nobody, and the next refresh works as well.
async fn brings_a_token(stage: &Stage, name: &str, row: &str, rotation: Rotation, fault: Option<Fault>, life: u64) {
    let person = stage.person(name).await;
    brings_a_token_to(stage, &person, row, rotation, fault, life).await;
}

async fn brings_a_token_to(
    stage: &Stage,
    person: &Person,
    row: &str,
    rotation: Rotation,
    fault: Option<Fault>,
    life: u64,
) {
    stage.kw.sandbox().set_rotation(rotation);
    stage.expire();
    let calls = stage.calls();
    if let Some(fault) = fault {
        stage.kw.sandbox().faults().token_times(fault, 1);
    }
    let token = stage.used(person, row).await;
    assert_ne!(token, person.first_token, "{row}");
    assert_eq!(stage.tokens(&person.id).await.0, token, "{row}: the token that is used is the one that is stored");
    let account = stage.account(person).await;
    assert_eq!(account["status"], "connected", "{row}");
    assert_eq!(account["reason"], Value::Null, "{row}");
    assert_eq!(account["validity"], "valid", "{row}");
    let life = Duration::from_secs(life);
    assert_eq!(moment(&account, "access_expires_at").since(stage.now()), life, "{row}: {account}");

    stage.advance(life);
    let next = stage.used(person, row).await;
    assert_ne!(next, token, "{row}: the refresh after it");
    assert_eq!(stage.calls() - calls, 2, "{row}: one call for each refresh");
    assert_eq!(stage.told(person).await, [""; 0], "{row}");
    stage.assert_nothing_shows(person, row).await;
    stage.leave(person).await;
}

/// Passing trouble: unseen while the old token lives; then 503 with a time; gone as if nothing had been. Never a reason
/// to disconnect, and never more than one call at a time.
async fn passes(stage: &Stage, name: &str, row: &str, fault: Fault, reason: &str) {
    let sandbox = stage.kw.sandbox();
    sandbox.set_rotation(Rotation::Soft);
    let person = stage.person(name).await;
    let calls = stage.calls();
    sandbox.faults().token(fault);
    stage.advance(HOUR - 4 * MINUTE);

    assert_eq!(stage.used(&person, row).await, person.first_token, "{row}: the old token while it lives");
    let account = stage.until(&person, row, |account| account["status"] == "degraded").await;
    assert_eq!(account["reason"], reason, "{row}");
    assert_eq!(account["validity"], "valid", "{row}");
    for _ in 0..3 {
        assert_eq!(stage.used(&person, row).await, person.first_token, "{row}: still the old token");
    }
    assert_eq!(stage.calls() - calls, 1, "{row}: no call before the pause is over");

    stage.advance(5 * MINUTE);
    let refused = stage.get(&person).await;
    assert_unavailable(&refused, row);
    assert!(retry_after(&refused) <= 75, "{row}: {}", retry_after(&refused));
    stage.assert_clean(&person, &refused.text(), row).await;
    for _ in 0..3 {
        assert_unavailable(&stage.get(&person).await, row);
    }
    assert_eq!(stage.calls() - calls, 2, "{row}: one call, then a pause");
    assert_eq!(stage.state(&person).await, ("degraded".to_owned(), reason.to_owned()), "{row}");
    assert_eq!(stage.told(&person).await, [format!("account.degraded {reason}")], "{row}: told once");

    sandbox.faults().clear();
    let pause = retry_after(&stage.get(&person).await);
    stage.advance(Duration::from_secs(pause));
    assert_ne!(stage.used(&person, row).await, person.first_token, "{row}: after the trouble");
    assert_eq!(stage.calls() - calls, 3, "{row}: one call brings it back");
    let account = stage.account(&person).await;
    let whole = (account["status"].as_str(), account["reason"].as_str(), account["validity"].as_str());
    assert_eq!(whole, (Some("connected"), None, Some("valid")), "{row}");
    let told = [format!("account.degraded {reason}"), format!("account.recovered {reason}")];
    assert_eq!(stage.told(&person).await, told, "{row}: the recovery is told once");
    stage.assert_nothing_shows(&person, row).await;
    stage.leave(&person).await;
}

/// The end of an account: told once, no call after it whatever the provider would say, and one click brings it back.
async fn ends(stage: &Stage, name: &str, row: &str, fault: Fault, reason: &str) {
    stage.kw.sandbox().set_rotation(Rotation::Soft);
    let person = stage.person(name).await;
    stage.expire();
    stage.kw.sandbox().faults().token(fault);
    let calls = stage.calls();
    let refused = stage.get(&person).await;
    assert_disconnected(stage, &person, &refused, row).await;
    is_over(stage, &person, row, reason, calls + 1).await;
}

async fn is_over(stage: &Stage, person: &Person, row: &str, reason: &str, calls: u64) {
    let sandbox = stage.kw.sandbox();
    let account = stage.account(person).await;
    let whole = (account["status"].as_str(), account["reason"].as_str(), account["validity"].as_str());
    assert_eq!(whole, (Some("disconnected"), Some(reason), Some("invalid")), "{row}");

    sandbox.faults().clear();
    let upstream = sandbox.counters().api_calls;
    for later in [Duration::ZERO, MINUTE, 48 * HOUR] {
        stage.advance(later);
        for _ in 0..3 {
            assert_disconnected(stage, person, &stage.get(person).await, row).await;
        }
    }
    let path = format!("/api/organizations/default/accounts/{}", person.id);
    let refreshed = stage.kw.admin("POST", &format!("{path}/refresh"), None).await;
    assert_eq!((refreshed.status.as_u16(), refreshed.refusal().as_str()), (409, "account_disconnected"), "{row}");
    let checked = stage.kw.admin("POST", &format!("{path}/validate"), None).await;
    assert_eq!(checked.json()["is_valid"], false, "{row}");
    assert_eq!(stage.calls(), calls, "{row}: no call after the end");
    assert_eq!(sandbox.counters().api_calls, upstream, "{row}: nothing of it reaches the upstream");
    let told = stage.told(person).await;
    let ended = told.iter().filter(|word| word.starts_with("account.disconnected")).collect::<Vec<_>>();
    assert_eq!(ended, [&format!("account.disconnected {reason}")], "{row}: told once");
    stage.assert_nothing_shows(person, row).await;

    let account = stage.kw.connect(&person.email).await;
    assert_eq!(account["id"], person.id, "{row}: reconnecting is in place");
    assert_eq!(account["status"], "connected", "{row}");
    assert_ne!(stage.used(person, row).await, person.first_token, "{row}: with its slugs and grants");
    stage.leave(person).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_1_to_9_and_25_whatever_holds_a_token_is_taken() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let text = |fields: &str| format!(r#"{{"access_token":"TOKEN","token_type":"Bearer",{fields}}}"#);
        let cases = [
            ("row 1, no refresh token", Rotation::None, None, 3600),
            ("row 2, another refresh token", Rotation::Strict, None, 3600),
            ("row 2, in a family", Rotation::Family, None, 3600),
            ("row 3, the same refresh token", Rotation::Strict, Some(Fault::RepeatRefreshToken), 3600),
            ("row 4, an empty refresh token", Rotation::None, Some(alter(json!({"refresh_token": ""}))), 3600),
            ("row 6, no expires_in", Rotation::Strict, Some(alter(json!({"expires_in": null}))), 3600),
            ("row 7, a text", Rotation::Strict, Some(alter(json!({"expires_in": "1800"}))), 1800),
            ("row 7, with a fraction", Rotation::Strict, Some(alter(json!({"expires_in": 3599.0}))), 3599),
            ("row 8, zero", Rotation::Strict, Some(alter(json!({"expires_in": 0}))), 3600),
            ("row 8, negative", Rotation::Strict, Some(alter(json!({"expires_in": -5}))), 3600),
            ("row 8, two years", Rotation::Strict, Some(alter(json!({"expires_in": 63_072_000}))), 3600),
            ("row 8, 2^63", Rotation::Strict, Some(alter(json!({"expires_in": 1u64 << 63}))), 3600),
            ("row 8, not a number", Rotation::Strict, Some(alter(json!({"expires_in": "NaN"}))), 3600),
            ("row 8, a list", Rotation::Strict, Some(alter(json!({"expires_in": [3600]}))), 3600),
            ("row 8, a minute", Rotation::Strict, Some(alter(json!({"expires_in": 60}))), 60),
            ("row 9, no token_type", Rotation::Strict, Some(alter(json!({"token_type": null}))), 3600),
            ("row 9, bearer", Rotation::Strict, Some(Fault::WrongTokenType("bearer".into())), 3600),
            ("row 9, BEARER", Rotation::Strict, Some(Fault::WrongTokenType("BEARER".into())), 3600),
            ("row 25, a form", Rotation::Strict, Some(Fault::FormEncoded), 3600),
        ];
        for (n, (row, rotation, fault, life)) in cases.into_iter().enumerate() {
            brings_a_token(&stage, &format!("ok{n}"), row, rotation, fault, life).await;
        }
        // What has to be written by hand, with a token that works.
        for (n, (row, fields, life)) in [
            ("row 4, null", r#""refresh_token":null,"expires_in":3600"#, 3600),
            ("row 7, 3.6e3", r#""expires_in":3.6e3"#, 3600),
            ("row 7, a text with blanks", r#""expires_in":" 1800 ""#, 1800),
            ("row 8, 1e400", r#""expires_in":"1e400""#, 3600),
        ]
        .into_iter()
        .enumerate()
        {
            let person = stage.person(&format!("raw{n}")).await;
            // Issued now, and used when an hour is over: for both.
            stage.kw.sandbox().set_access_ttl(3 * HOUR);
            let granted = stage.kw.sandbox().grant(&person.email, &["Mail.Read"]).await;
            stage.kw.sandbox().set_access_ttl(HOUR);
            let answer = raw(200, "application/json", text(fields).replace("TOKEN", &granted.access_token));
            brings_a_token_to(&stage, &person, row, Rotation::Strict, Some(answer), life).await;
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_8_tokens_that_hardly_live_make_no_loop() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        stage.expire();
        let calls = stage.calls();
        stage.kw.sandbox().faults().token(alter(json!({"expires_in": 1})));
        for _ in 0..50 {
            stage.advance(Duration::from_millis(100));
            for _ in 0..4 {
                assert_eq!(stage.get(&person).await.status, 200, "row 8, a second");
            }
        }
        let made = stage.calls() - calls;
        assert!((3..=8).contains(&made), "row 8, a second: {made} calls in 5 s");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_10_15_16_a_client_that_is_refused_costs_no_account() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let cases = [
            ("row 10, DPoP", Fault::WrongTokenType("DPoP".into())),
            ("row 10, mac", Fault::WrongTokenType("mac".into())),
            ("row 15, 401", error(401, "invalid_client")),
            ("row 15, 400", error(400, "invalid_client")),
            ("row 15, in a success", error(200, "invalid_client")),
            ("row 15, the client may not", error(400, "unauthorized_client")),
            ("row 16, invalid_request", error(400, "invalid_request")),
            ("row 16, unsupported_grant_type", error(400, "unsupported_grant_type")),
            ("row 16, invalid_scope", error(400, "invalid_scope")),
        ];
        for (n, (row, fault)) in cases.into_iter().enumerate() {
            passes(&stage, &format!("c{n}"), row, fault, CLIENT).await;
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_5_and_17_to_29_passing_trouble_costs_no_account() {
    for backend in backends() {
        let stage = Stage::new(backend, SHORT).await;
        // A second host, which must never hear of it.
        let elsewhere = Door::open(0, stage.kw.sandbox().address(), None).await;
        let there = format!("http://{}/oauth/token", elsewhere.address);
        let redirect = |status| Fault::Redirect(status, there.clone());
        let utf16: Vec<u8> =
            "{\"access_token\":\"CANARY-of-the-provider\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let json = "application/json";
        let cases = [
            ("row 5, no access token", alter(json!({"access_token": null}))),
            ("row 5, an empty one", alter(json!({"access_token": ""}))),
            ("row 5, one that can't be sent", alter(json!({"access_token": "CANARY-of-the-provider\r\n"}))),
            ("row 17, temporarily_unavailable", error(400, "temporarily_unavailable")),
            ("row 17, server_error", error(400, "server_error")),
            ("row 17, slow_down", error(400, "slow_down")),
            ("row 17, an unknown code", error(400, "CANARY-of-the-provider")),
            ("row 17, an unknown code with 401", error(401, "no_such_code")),
            ("row 17, an object for a code", Fault::Json(400, json!({"error": {"message": "CANARY-of-the-provider"}}))),
            ("row 18, 429", status(429, "7")),
            ("row 18, 429 without a time", status(429, "")),
            ("row 19, 500", status(500, "")),
            ("row 19, 502", status(502, "")),
            ("row 19, 503", status(503, "")),
            ("row 19, 504", status(504, "")),
            ("row 19, 408", status(408, "")),
            ("row 19, 425", status(425, "")),
            ("row 19, 500 that says invalid_grant", error(500, "invalid_grant")),
            ("row 19, 403 that says invalid_grant", error(403, "invalid_grant")),
            ("row 21, a reset", Fault::Reset),
            ("row 21, a reset after the work", Fault::ResetAfterWork),
            ("row 21, no answer", Fault::Hang),
            ("row 21, no answer after the work", Fault::HangAfterWork),
            ("row 23, malformed", raw(200, json, "CANARY-of-the-provider")),
            ("row 23, cut", Fault::CutBody),
            ("row 23, half of a JSON", raw(200, json, r#"{"access_token":"CANARY-of-the-provider""#)),
            ("row 23, a byte order mark", raw(200, json, "\u{feff}{\"access_token\":\"CANARY-of-the-provider\"}")),
            ("row 23, UTF-16", raw(200, json, utf16)),
            (
                "row 23, two tokens",
                raw(200, json, r#"{"access_token":"CANARY-of-the-a","access_token":"CANARY-of-the-b"}"#),
            ),
            ("row 23, a list", raw(200, json, r#"[{"access_token":"CANARY-of-the-provider"}]"#)),
            ("row 23, null", raw(200, json, "null")),
            ("row 23, nothing", Fault::EmptyBody),
            ("row 23, malformed with 400", raw(400, json, r#"{"error":"invalid_grant""#)),
            ("row 24, a page", Fault::Html200),
            (
                "row 24, a page of a firewall",
                raw(400, "text/html", "<html>CANARY-of-the-provider: invalid_grant</html>"),
            ),
            ("row 26, a gigabyte", Fault::BigBody(1 << 30)),
            ("row 26, a bomb", Fault::GzipBomb(1 << 30)),
            ("row 27, a byte at a time", Fault::Trickle(Duration::from_millis(50))),
            ("row 28, 301", redirect(301)),
            ("row 28, 302", redirect(302)),
            ("row 28, 303", redirect(303)),
            ("row 29, 307", redirect(307)),
            ("row 29, 308", redirect(308)),
        ];
        for (n, (row, fault)) in cases.into_iter().enumerate() {
            passes(&stage, &format!("t{n}"), row, fault, PROVIDER).await;
            assert_eq!(elsewhere.came(), 0, "{row}: a redirect was followed");
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_13_and_14_a_refused_grant_ends_the_account_once() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let with = |key: &str, value: Value| {
            let mut body = json!({"error": "invalid_grant", "error_description": "CANARY-of-the-provider"});
            body[key] = value;
            Fault::Json(400, body)
        };
        let cases = [
            ("row 13, 400", error(400, "invalid_grant"), "refresh_rejected"),
            ("row 13, 401", error(401, "invalid_grant"), "refresh_rejected"),
            ("row 13, in a success", error(200, "invalid_grant"), "refresh_rejected"),
            (
                "row 13, a form",
                raw(400, "application/x-www-form-urlencoded", "error=invalid_grant"),
                "refresh_rejected",
            ),
            ("row 14, a suberror", with("suberror", json!("basic_action")), "sign_in_needed"),
            ("row 14, an AADSTS number", with("error_codes", json!([50076])), "sign_in_needed"),
            (
                "row 14, an AADSTS text",
                with("error_description", json!("AADSTS50076: CANARY-of-the-provider")),
                "sign_in_needed",
            ),
            ("row 14, interaction_required", error(400, "interaction_required"), "sign_in_needed"),
            ("row 14, consent_required", error(400, "consent_required"), "sign_in_needed"),
            ("row 14, login_required", error(400, "login_required"), "sign_in_needed"),
        ];
        for (n, (row, fault, reason)) in cases.into_iter().enumerate() {
            ends(&stage, &format!("p{n}"), row, fault, reason).await;
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_13_a_withdrawn_consent_ends_the_account_once_for_many_callers() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        stage.kw.sandbox().revoke_all_of(&person.email);
        stage.expire();
        let calls = stage.calls();
        let all = futures_util::future::join_all((0..60).map(|_| stage.get(&person))).await;
        for refused in &all {
            assert_disconnected(&stage, &person, refused, "row 13").await;
        }
        assert_eq!(stage.told(&person).await, ["account.disconnected refresh_rejected"]);
        is_over(&stage, &person, "row 13", "refresh_rejected", calls + 1).await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_13_is_final_even_while_the_old_token_lives() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let calls = stage.calls();
        stage.kw.sandbox().faults().token(error(400, "invalid_grant"));
        stage.advance(HOUR - 4 * MINUTE);
        // The first one that comes begins the refresh, if the keeper has not.
        let deadline = tokio::time::Instant::now() + MINUTE;
        while stage.get(&person).await.status == 200 {
            assert!(tokio::time::Instant::now() < deadline, "row 13, early: still served");
        }
        is_over(&stage, &person, "row 13, early", "refresh_rejected", calls + 1).await;
        stage.kw.stop().await;
    }
}

/// An instance beside the stage's, in the same store.
async fn beside(stage: &Stage) -> App {
    stage.kw.world.instance(&stage.kw.settings).await
}

async fn refresh_at(app: &App, person: &Person) -> Answer {
    let path = format!("/api/organizations/default/accounts/{}/refresh", person.id);
    admin(app.admin_address(), "POST", &path, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_13_a_refusal_is_not_believed_when_somebody_else_was_faster() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let other = beside(&stage).await;
        let person = stage.person("ada").await;
        stage.expire();
        let calls = stage.calls();
        // The first instance's call arrives, but is worked on only after the second one has spent the refresh token.
        stage.kw.sandbox().faults().token_times(Fault::Slow(SECOND), 1);
        let slow = async {
            let answer = stage.get(&person).await;
            assert_eq!(answer.status, 200, "row 13: {}", answer.text());
        };
        let fast = async {
            stage.kw.sandbox().wait_for_token_calls(calls + 1).await;
            stage.sql(&["update accounts set lease_until = 0"]).await;
            assert_eq!(refresh_at(&other, &person).await.status, 200);
        };
        tokio::join!(slow, fast);
        assert_eq!(stage.kw.sandbox().counters().refreshes("invalid_grant"), 1, "row 13: the first one was refused");
        assert_eq!(stage.last_token(), stage.tokens(&person.id).await.0, "row 13: the other's token is used");
        assert_eq!(stage.state(&person).await.0, "connected");
        assert_eq!(stage.told(&person).await, [""; 0]);
        other.stop().await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_36_what_a_late_instance_brings_is_kept_and_saves_the_account() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        sandbox.set_rotation(Rotation::Soft);
        let other = beside(&stage).await;
        let person = stage.person("ada").await;
        stage.expire();
        let calls = stage.calls();
        sandbox.faults().token_times(Fault::SlowAfterWork(SECOND), 1);
        let late = async {
            // Gets what the other one has stored, not what it fetched itself.
            let token = stage.used(&person, "row 36").await;
            assert_eq!(token, stage.tokens(&person.id).await.0, "row 36");
        };
        let fast = async {
            sandbox.wait_for_token_calls(calls + 1).await;
            stage.sql(&["update accounts set lease_until = 0"]).await;
            assert_eq!(refresh_at(&other, &person).await.status, 200, "row 36");
        };
        tokio::join!(late, fast);
        let id = person.id.parse().unwrap();
        assert_eq!(stage.kw.app.store().candidates(id).await.unwrap().len(), 1, "row 36: the late token is kept");

        // The current token is refused; the one that was kept is not.
        stage.expire();
        sandbox.faults().token_times(error(400, "invalid_grant"), 1);
        let calls = stage.calls();
        stage.used(&person, "row 36, by the candidate").await;
        assert_eq!(stage.calls() - calls, 2, "row 36: the current one, then the candidate");
        assert_eq!(stage.state(&person).await.0, "connected");
        assert_eq!(stage.told(&person).await, [""; 0]);
        assert!(stage.kw.app.store().candidates(id).await.unwrap().is_empty(), "row 36: each is tried once");
        stage.expire();
        stage.used(&person, "row 36, afterwards").await;
        other.stop().await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_13_an_account_is_not_given_up_while_a_candidate_is_untried() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let id = person.id.parse().unwrap();
        let spare = stage.kw.sandbox().grant(&person.email, &["Mail.Read"]).await.refresh_token.unwrap();
        stage.candidate(&person, &spare).await;
        stage.expire();
        let faults = stage.kw.sandbox().faults();
        faults.token_times(error(400, "invalid_grant"), 1);
        faults.token_times(status(503, ""), 1);
        assert_unavailable(&stage.get(&person).await, "row 13, the candidate's turn fails");
        assert_ne!(stage.state(&person).await.0, "disconnected");
        assert_eq!(stage.kw.app.store().candidates(id).await.unwrap().len(), 1);
        stage.advance(2 * SECOND);
        faults.token_times(error(400, "invalid_grant"), 1);
        stage.used(&person, "row 13, the candidate's next turn").await;
        assert_eq!(stage.state(&person).await.0, "connected");

        // And when no candidate helps, it is over.
        stage.candidate(&person, "CANARY-of-the-candidate").await;
        stage.expire();
        let calls = stage.calls();
        faults.token(error(400, "invalid_grant"));
        assert_disconnected(&stage, &person, &stage.get(&person).await, "row 13, no candidate helps").await;
        is_over(&stage, &person, "row 13, no candidate helps", "refresh_rejected", calls + 2).await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_11_fewer_scopes_are_told_once_and_end_nothing() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let before = stage.account(&person).await;
        assert_eq!(before["missing_scopes"], json!([]));
        let fewer = Fault::SmallerScope(vec!["User.Read".into(), "Mail.Read".into(), "Mail.ReadWrite".into()]);
        for _ in 0..3 {
            stage.expire();
            stage.kw.sandbox().faults().token_times(fewer.clone(), 1);
            stage.used(&person, "row 11").await;
        }
        let account = stage.account(&person).await;
        assert_eq!(account["status"], "connected", "row 11");
        assert_eq!(account["scopes"], json!(["User.Read", "Mail.Read", "Mail.ReadWrite"]), "row 11");
        let lost = json!(["Calendars.Read", "Calendars.ReadWrite", "Mail.Send"]);
        assert_eq!(account["missing_scopes"], lost, "row 11");
        assert_eq!(stage.told(&person).await, ["account.scope_reduced"], "row 11: told once");
        let record = stage.kw.audit(&format!("&account={}", person.id)).await;
        let record = record.iter().find(|record| record["action"] == "account.scope_reduced").unwrap();
        assert_eq!(record["detail"]["lost"], lost, "row 11");

        // The agent sees the upstream's own refusal of what the token is not good for any more, and no refresh tries to
        // change that.
        let calls = stage.calls();
        let slug = before["targets"].as_array().unwrap().iter().find(|target| target["capability"] == "calendar");
        let path = format!("/proxy/{}/me/events", slug.unwrap()["slug"].as_str().unwrap());
        for _ in 0..3 {
            let refused = stage.kw.agent(&stage.key, "GET", &path).await;
            assert_eq!(refused.status, 403, "row 32");
            assert_eq!(refused.header("keyward-error"), "", "row 32: it is the upstream's own answer");
            assert!(refused.header("www-authenticate").contains("insufficient_scope"), "row 32");
        }
        assert_eq!(stage.calls(), calls, "row 32: no refresh");

        // All of them again: nothing is missing.
        stage.expire();
        stage.used(&person, "row 11").await;
        let account = stage.account(&person).await;
        assert_eq!(account["scopes"], before["scopes"], "row 11");
        assert_eq!(account["missing_scopes"], json!([]), "row 11");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_12_more_scopes_are_noted_and_another_person_is_refused() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let mut scopes: Vec<Value> = stage.account(&person).await["scopes"].as_array().unwrap().clone();
        scopes.push(json!("Files.Read"));
        let text: Vec<&str> = scopes.iter().map(|scope| scope.as_str().unwrap()).collect();
        stage.expire();
        stage.kw.sandbox().faults().token_times(alter(json!({"scope": text.join(" ")})), 1);
        let token = stage.used(&person, "row 12").await;
        assert_eq!(stage.account(&person).await["scopes"], json!(scopes), "row 12");
        assert_eq!(stage.told(&person).await, [""; 0]);

        // Somebody else signs in where this account was to be reconnected.
        let address = stage.kw.app.admin_address();
        let (page, _) = open_flow(address, &format!("preset=write&account={}", person.id)).await;
        let back = consent(&page, "eve@example.com", "allow").await;
        let refused = paste_back(address, &back).await;
        assert_eq!((refused.status.as_u16(), refused.refusal().as_str()), (409, "another_identity"), "row 12");
        assert_eq!(stage.account(&person).await["email"], person.email, "row 12");
        assert_eq!(stage.used(&person, "row 12").await, token, "row 12: nothing was overwritten");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_18_a_wish_to_wait_is_honoured_up_to_an_hour() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let date = |seconds| httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds));
        for (n, (wish, low, high)) in [
            ("120".to_owned(), 120, 120),
            ("0".to_owned(), 1, 1),
            ("86400".to_owned(), 3600, 3600),
            ("99999999999999999999999".to_owned(), 3600, 3600),
            (date(600), 590, 600),
            ("Thu, 01 Jan 1970 00:00:00 GMT".to_owned(), 1, 1),
            ("Fri, 31 Dec 9999 23:59:59 GMT".to_owned(), 3600, 3600),
            ("-7".to_owned(), 1, 2),
            ("CANARY-of-the-provider".to_owned(), 1, 2),
        ]
        .into_iter()
        .enumerate()
        {
            let row = format!("row 18, {wish}");
            let person = stage.person(&format!("w{n}")).await;
            stage.expire();
            let calls = stage.calls();
            stage.kw.sandbox().faults().token_times(status(429, &wish), 1);
            let refused = stage.get(&person).await;
            assert_unavailable(&refused, &row);
            let wait = retry_after(&refused);
            assert!((low..=high).contains(&wait), "{row}: {wait}");
            if low > 2 {
                stage.advance(Duration::from_secs(low - 2));
                assert_unavailable(&stage.get(&person).await, &row);
                assert_eq!(stage.calls() - calls, 1, "{row}: too early");
            }
            stage.advance(Duration::from_secs(high - low + 2));
            stage.used(&person, &row).await;
            assert_eq!(stage.calls() - calls, 2, "{row}");
            stage.assert_nothing_shows(&person, &row).await;
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_provider_is_asked_seldom_whatever_the_load() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        stage.expire();
        let calls = stage.calls();
        stage.kw.sandbox().faults().token(status(503, ""));
        for _ in 0..120 {
            for refused in futures_util::future::join_all((0..5).map(|_| stage.get(&person))).await {
                assert_unavailable(&refused, "I14");
            }
            stage.advance(Duration::from_millis(500));
        }
        let made = stage.calls() - calls;
        assert!((4..=8).contains(&made), "I14: {made} calls in the first minute");
        // The pauses have grown to a minute, a quarter more or less.
        let calls = stage.calls();
        for _ in 0..60 {
            stage.advance(10 * SECOND);
            assert_unavailable(&stage.get(&person).await, "I14");
        }
        let made = stage.calls() - calls;
        assert!((7..=14).contains(&made), "I14: {made} calls in the next ten minutes");
        // An hour of it: not an account is lost, and it is back within a step.
        stage.expire();
        assert_unavailable(&stage.get(&person).await, "I10");
        assert_eq!(stage.state(&person).await, ("degraded".to_owned(), PROVIDER.to_owned()), "I10");
        stage.kw.sandbox().faults().clear();
        stage.advance(75 * SECOND);
        stage.used(&person, "I10").await;
        assert_eq!(stage.told(&person).await.len(), 2, "told once that it began, once that it ended");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_early_refreshes_that_fail_are_unseen_until_the_last_second() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        stage.kw.sandbox().faults().token(status(500, ""));
        stage.advance(HOUR - 5 * MINUTE);
        for _ in 0..299 {
            assert_eq!(stage.used(&person, "I12").await, person.first_token);
            stage.advance(SECOND);
        }
        stage.advance(SECOND);
        assert_unavailable(&stage.get(&person).await, "I12: the token has ended");
        stage.kw.stop().await;
    }
}

/// A stage whose refreshes go to `refresh_url`; connecting does not.
async fn behind(world: World, refresh_url: &str, ca: Option<&str>) -> Stage {
    let toml = format!("[providers.sandbox.oauth]\nrefresh_url = \"{refresh_url}\"\n{SHORT}");
    let settings = Settings { toml, ..Settings::default() };
    let mut config = world.config(&settings);
    if let Some(pem) = ca {
        let file = world.dir.path().join("ca.pem");
        std::fs::write(&file, pem).unwrap();
        config.egress.ca = Some(file);
    }
    let app = App::start(config, world.clock.clone()).await.unwrap();
    let kw = Keyward { world, app, settings };
    let key = kw.new_key().await;
    Stage { kw, key }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_20_a_call_that_was_never_sent_spends_nothing() {
    for backend in backends() {
        let world = World::with_clock(backend, held()).await;
        let sandbox = world.sandbox.address();
        let door = Door::open(0, sandbox, None).await;
        let stage = behind(world, &format!("http://{}/oauth/token", door.address), None).await;
        let person = stage.person("ada").await;
        let port = door.shut().await;
        stage.advance(HOUR - 4 * MINUTE);
        assert_eq!(stage.used(&person, "row 20").await, person.first_token);
        stage.until(&person, "row 20", |account| account["reason"] == PROVIDER).await;
        stage.advance(5 * MINUTE);
        let refused = stage.get(&person).await;
        assert_unavailable(&refused, "row 20, refused");
        assert_eq!(stage.told(&person).await, ["account.degraded provider_unavailable"], "row 20");

        let door = Door::open(port, sandbox, None).await;
        stage.advance(Duration::from_secs(retry_after(&refused)));
        stage.used(&person, "row 20, back again").await;
        assert_eq!(stage.told(&person).await.len(), 2, "row 20");
        assert_eq!(door.came(), 1, "row 20");

        // Nothing was spent: a refusal that follows is one.
        stage.expire();
        let port = door.shut().await;
        let refused = stage.get(&person).await;
        assert_unavailable(&refused, "row 20, refused again");
        let _door = Door::open(port, sandbox, None).await;
        stage.advance(Duration::from_secs(retry_after(&refused)));
        stage.kw.sandbox().revoke_all_of(&person.email);
        assert_disconnected(&stage, &person, &stage.get(&person).await, "row 20, then 13").await;
        assert_eq!(stage.state(&person).await.1, "refresh_rejected", "row 20, then 13");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_20_a_name_that_leads_nowhere_is_passing_trouble() {
    for backend in backends() {
        let world = World::with_clock(backend, held()).await;
        let stage = behind(world, "https://token.invalid/oauth/token", None).await;
        let person = stage.person("ada").await;
        stage.expire();
        assert_unavailable(&stage.get(&person).await, "row 20, no such name");
        assert_eq!(stage.state(&person).await, ("degraded".to_owned(), PROVIDER.to_owned()), "row 20, no such name");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_22_no_token_goes_where_tls_fails() {
    for backend in backends() {
        let world = World::with_clock(backend, held()).await;
        let (trusted, stranger) = (Authority::new(), Authority::new());
        let sandbox = world.sandbox.address();
        let mut door = Door::open(0, sandbox, Some(trusted.server("127.0.0.1", false))).await;
        let url = format!("https://{}/oauth/token", door.address);
        let stage = behind(world, &url, Some(&trusted.pem())).await;
        let person = stage.person("ada").await;
        stage.expire();
        stage.used(&person, "row 22, TLS as it should be").await;
        assert_eq!(door.came(), 1, "row 22");

        stage.expire();
        for (row, tls) in [
            ("row 22, another name", Some(trusted.server("token.example.com", false))),
            ("row 22, an expired certificate", Some(trusted.server("127.0.0.1", true))),
            ("row 22, somebody else's certificate", Some(stranger.server("127.0.0.1", false))),
            ("row 22, no TLS", None),
        ] {
            door = Door::open(door.shut().await, sandbox, tls).await;
            let calls = stage.calls();
            let refused = stage.get(&person).await;
            assert_unavailable(&refused, row);
            assert!(door.came() == 1, "{row}: it was tried, once");
            assert_eq!(stage.calls(), calls, "{row}: nothing got through");
            assert_eq!(stage.state(&person).await, ("degraded".to_owned(), PROVIDER.to_owned()), "{row}");
            stage.advance(Duration::from_secs(retry_after(&refused)));
        }
        let _door = Door::open(door.shut().await, sandbox, Some(trusted.server("127.0.0.1", false))).await;
        stage.used(&person, "row 22, TLS is back").await;
        assert_eq!(stage.told(&person).await.len(), 2, "row 22: told once that it began, once that it ended");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21_a_refusal_after_a_lost_answer_is_called_lost() {
    for backend in backends() {
        let stage = Stage::new(backend, SHORT).await;
        let faults = stage.kw.sandbox().faults().clone();
        for (n, (row, fault)) in [
            ("row 21, a reset", Fault::ResetAfterWork),
            ("row 21, silence", Fault::HangAfterWork),
            ("row 21, cut short", Fault::CutBody),
        ]
        .into_iter()
        .enumerate()
        {
            stage.kw.sandbox().set_rotation(Rotation::Strict);
            let person = stage.person(&format!("lost{n}")).await;
            stage.expire();
            let calls = stage.calls();
            faults.token_times(fault, 1);
            let refused = stage.get(&person).await;
            assert_unavailable(&refused, row);
            assert!(retry_after(&refused) <= 2, "{row}: the next try is soon");
            assert_eq!(stage.state(&person).await, ("degraded".to_owned(), PROVIDER.to_owned()), "{row}");
            stage.advance(Duration::from_secs(retry_after(&refused)));
            assert_disconnected(&stage, &person, &stage.get(&person).await, row).await;
            is_over(&stage, &person, row, "lost_in_window", calls + 2).await;
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21_what_was_lost_is_remembered_by_the_next_start() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        stage.expire();
        stage.kw.sandbox().faults().token_times(Fault::ResetAfterWork, 1);
        assert_unavailable(&stage.get(&person).await, "row 21");
        let Stage { kw: Keyward { world, app, settings }, key } = stage;
        app.stop().await;
        let app = world.instance(&settings).await;
        let stage = Stage { kw: Keyward { world, app, settings }, key };
        // The pause is remembered as well.
        let refused = stage.get(&person).await;
        assert_unavailable(&refused, "row 21, the next start");
        stage.advance(Duration::from_secs(retry_after(&refused)));
        assert_disconnected(&stage, &person, &stage.get(&person).await, "row 21, the next start").await;
        assert_eq!(stage.state(&person).await.1, "lost_in_window", "row 21, the next start");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_21_a_grace_saves_what_was_lost_and_forgets_that_it_was() {
    for backend in backends() {
        let stage = Stage::new(backend, SHORT).await;
        let sandbox = stage.kw.sandbox();
        sandbox.set_rotation(Rotation::Grace(30 * SECOND));
        let person = stage.person("ada").await;
        stage.expire();
        for lost in 1..=3 {
            sandbox.faults().token_times(Fault::ResetAfterWork, 1);
            let refused = stage.get(&person).await;
            assert_unavailable(&refused, "row 21, a grace");
            stage.advance(Duration::from_secs(retry_after(&refused)));
            stage.used(&person, "row 21, a grace").await;
            assert_eq!(stage.told(&person).await.len(), 2 * lost, "row 21, a grace");
            stage.expire();
        }
        // Resolved: a refusal that comes later is nobody's lost answer.
        sandbox.revoke_all_of(&person.email);
        assert_disconnected(&stage, &person, &stage.get(&person).await, "row 13 after 21").await;
        assert_eq!(stage.state(&person).await.1, "refresh_rejected", "row 13 after 21");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_5_and_10_a_refresh_token_beside_no_usable_token_is_not_lost() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        sandbox.set_rotation(Rotation::Strict);
        for (n, (row, fault)) in
            [("row 5", alter(json!({"access_token": null}))), ("row 10", Fault::WrongTokenType("DPoP".into()))]
                .into_iter()
                .enumerate()
        {
            let person = stage.person(&format!("kept{n}")).await;
            stage.expire();
            sandbox.faults().token_times(fault, 1);
            let refused = stage.get(&person).await;
            assert_unavailable(&refused, row);
            stage.advance(Duration::from_secs(retry_after(&refused)));
            // The stored refresh token is dead by now; the one beside the unusable answer is not.
            stage.used(&person, row).await;
            assert_eq!(stage.state(&person).await.0, "connected", "{row}");
        }
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_5_and_10_the_newer_refresh_token_is_tried_first_where_reuse_revokes_everything() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        sandbox.set_rotation(Rotation::Family);
        let person = stage.person("ada").await;
        let id = person.id.parse().unwrap();
        stage.expire();
        // Twice in a row: each takes the place of the one before.
        for fault in [alter(json!({"access_token": null})), Fault::WrongTokenType("DPoP".into())] {
            sandbox.faults().token_times(fault, 1);
            let refused = stage.get(&person).await;
            assert_unavailable(&refused, "rows 5 and 10");
            assert_eq!(stage.kw.app.store().candidates(id).await.unwrap().len(), 1, "rows 5 and 10");
            stage.advance(Duration::from_secs(retry_after(&refused)));
        }
        let calls = stage.calls();
        stage.used(&person, "rows 5 and 10").await;
        assert_eq!((stage.calls() - calls, sandbox.counters().reuse_detected), (1, 0), "rows 5 and 10");
        assert!(stage.kw.app.store().candidates(id).await.unwrap().is_empty(), "rows 5 and 10");
        stage.expire();
        stage.used(&person, "rows 5 and 10, the next refresh").await;
        assert_eq!((stage.calls() - calls, sandbox.counters().reuse_detected), (2, 0), "rows 5 and 10");

        // A new one that is refused leaves the old one to be tried.
        sandbox.set_rotation(Rotation::Soft);
        stage.expire();
        sandbox.faults().token_times(alter(json!({"access_token": null})), 1);
        let refused = stage.get(&person).await;
        stage.advance(Duration::from_secs(retry_after(&refused)));
        sandbox.faults().token_times(error(400, "invalid_grant"), 1);
        let calls = stage.calls();
        stage.used(&person, "rows 5 and 10, the old one").await;
        assert_eq!(stage.calls() - calls, 2, "rows 5 and 10: the new one, then the old one");
        assert_eq!(stage.state(&person).await.0, "connected");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_17_nothing_but_an_unknown_error_for_a_day_is_called_failing() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let faults = stage.kw.sandbox().faults().clone();
        let person = stage.person("ada").await;
        let failing = ("degraded".to_owned(), "failing".to_owned());
        stage.expire();
        faults.token(error(400, "weather_too_bad"));
        for hour in 0..24 {
            assert_unavailable(&stage.get(&person).await, "row 17");
            assert_eq!(stage.state(&person).await, ("degraded".to_owned(), PROVIDER.to_owned()), "row 17, {hour} h");
            stage.advance(HOUR);
        }
        assert_unavailable(&stage.get(&person).await, "row 17");
        assert_eq!(stage.state(&person).await, failing, "row 17, a day");
        stage.advance(HOUR);
        assert_unavailable(&stage.get(&person).await, "row 17");
        assert_eq!(stage.state(&person).await, failing, "row 17: and never the end");
        // Anything else begins the day anew.
        faults.token_times(status(503, ""), 1);
        stage.advance(HOUR);
        assert_unavailable(&stage.get(&person).await, "row 17");
        stage.advance(HOUR);
        assert_unavailable(&stage.get(&person).await, "row 17");
        assert_eq!(stage.state(&person).await, ("degraded".to_owned(), PROVIDER.to_owned()), "row 17, anew");
        faults.clear();
        stage.advance(HOUR);
        stage.used(&person, "row 17").await;
        let told = ["degraded provider_unavailable", "degraded failing", "degraded provider_unavailable"];
        let told = told.map(|word| format!("account.{word}"));
        assert_eq!(stage.told(&person).await[..3], told, "row 17");
        assert_eq!(stage.told(&person).await[3..], ["account.recovered provider_unavailable"], "row 17");
        stage.assert_nothing_shows(&person, "row 17").await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_36_a_passing_failure_that_comes_late_does_not_undo_the_end() {
    for backend in backends() {
        let stage = Stage::new(backend, SHORT).await;
        let other = beside(&stage).await;
        let person = stage.person("ada").await;
        stage.kw.sandbox().set_rotation(Rotation::Strict);
        stage.expire();
        let calls = stage.calls();
        stage.kw.sandbox().faults().token_times(Fault::HangAfterWork, 1);
        // Whoever waits for the first instance's failure is told what the second one found out.
        let late = async { assert_disconnected(&stage, &person, &stage.get(&person).await, "row 36").await };
        let fast = async {
            stage.kw.sandbox().wait_for_token_calls(calls + 1).await;
            stage.sql(&["update accounts set lease_until = 0"]).await;
            assert_eq!(refresh_at(&other, &person).await.refusal(), "account_disconnected", "row 36");
        };
        tokio::join!(late, fast);
        let ended = ("disconnected".to_owned(), "lost_in_window".to_owned());
        assert_eq!(stage.state(&person).await, ended, "row 36");
        assert_disconnected(&stage, &person, &stage.get(&person).await, "row 36").await;
        assert_eq!(stage.told(&person).await, ["account.disconnected lost_in_window"], "row 36");
        assert_eq!(stage.calls() - calls, 2, "row 36");
        other.stop().await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_36_a_lease_that_was_lost_lets_no_further_call_be_made() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let spare = stage.kw.sandbox().grant(&person.email, &["Mail.Read"]).await.refresh_token.unwrap();
        stage.candidate(&person, &spare).await;
        stage.kw.sandbox().revoke_all_of(&person.email);
        stage.expire();
        let calls = stage.calls();
        stage.kw.sandbox().faults().token_times(Fault::Slow(SECOND), 1);
        let agent = async { assert_unavailable(&stage.get(&person).await, "row 36") };
        let other = async {
            stage.kw.sandbox().wait_for_token_calls(calls + 1).await;
            stage.sql(&["update accounts set lease_owner = 'ins_of_another'"]).await;
        };
        tokio::join!(agent, other);
        assert_eq!(stage.calls() - calls, 1, "row 36: the candidate is the other's to try");
        assert_eq!(stage.state(&person).await.0, "connected", "row 36: and so is the judgement");
        assert_eq!(stage.told(&person).await, [""; 0], "row 36");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_30_a_spilled_token_of_an_account_that_was_disconnected_is_revoked() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let spare = stage.kw.sandbox().grant(&person.email, &["Mail.Read"]).await.refresh_token.unwrap();
        stage.leave(&person).await;
        crate::browser::trail(&stage.kw, &person.id, "account.revoked_at_provider", 1).await;
        let spilled = stage.spill(&person, &spare);
        let Stage { kw: Keyward { world, app, settings }, key } = stage;
        app.stop().await;
        let app = world.instance(&settings).await;
        let stage = Stage { kw: Keyward { world, app, settings }, key };
        let outcomes = crate::browser::trail(&stage.kw, &person.id, "account.revoked_at_provider", 2).await;
        assert!(outcomes.iter().all(|record| record["detail"]["outcome"] == "ok"), "row 30: {outcomes:?}");
        assert!(!spilled.exists(), "row 30");
        let counters = stage.kw.sandbox().counters();
        assert!(counters.families.values().all(|family| family.revoked), "row 30: {:?}", counters.families);
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_27_waiters_are_let_go_before_a_slow_provider_is() {
    for backend in backends() {
        let stage = Stage::new(backend, "[refresh]\nwait = \"300ms\"\ntimeout = \"20s\"").await;
        let person = stage.person("ada").await;
        stage.expire();
        let calls = stage.calls();
        stage.kw.sandbox().faults().token_times(Fault::SlowAfterWork(2 * SECOND), 1);
        let began = tokio::time::Instant::now();
        for refused in futures_util::future::join_all((0..5).map(|_| stage.get(&person))).await {
            assert_unavailable(&refused, "row 27");
        }
        assert!(began.elapsed() < Duration::from_millis(1900), "row 27: {:?}", began.elapsed());
        // The refresh went on without them.
        stage.until(&person, "row 27", |account| moment(account, "access_expires_at") > stage.now()).await;
        stage.used(&person, "row 27").await;
        assert_eq!(stage.calls() - calls, 1, "row 27");
        assert_eq!(stage.told(&person).await, [""; 0], "row 27: nothing went wrong");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_30_a_disconnect_during_a_refresh_is_final() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        let person = stage.person("ada").await;
        stage.expire();
        let calls = stage.calls();
        sandbox.faults().token_times(Fault::SlowAfterWork(SECOND), 1);
        let agent = async {
            let refused = stage.get(&person).await;
            assert_eq!((refused.status.as_u16(), refused.refusal().as_str()), (404, "target_not_found"), "row 30");
        };
        let operator = async {
            sandbox.wait_for_token_calls(calls + 1).await;
            stage.kw.api("DELETE", &format!("/accounts/{}?confirm=true", person.id), None).await;
        };
        tokio::join!(agent, operator);
        // The tokens that came too late are given back as well.
        sandbox.wait_until(|counters| counters.revoke_calls == 2).await;
        let counters = sandbox.counters();
        let families: Vec<_> = counters.families.values().filter(|family| family.person == person.email).collect();
        assert!(families.iter().all(|family| family.revoked), "row 30: {families:?}");
        let gone = stage.kw.admin("GET", &format!("/api/organizations/default/accounts/{}", person.id), None).await;
        assert_eq!(gone.status, 404, "row 30: no resurrection");
        assert!(stage.kw.app.store().tokens(person.id.parse().unwrap()).await.unwrap().is_none(), "row 30");
        assert!(stage.kw.app.store().candidates(person.id.parse().unwrap()).await.unwrap().is_empty(), "row 30");
        assert_eq!(stage.get(&person).await.refusal(), "target_not_found", "row 30");
        assert_eq!(stage.told(&person).await, ["account.disconnected requested"], "row 30");

        let again = connect(stage.kw.app.admin_address(), &person.email, "preset=write").await;
        assert_ne!(again["id"], person.id, "row 30: connecting again makes a new account");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_31_and_32_what_an_upstream_refuses_is_no_fault_of_the_account() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        for (row, code, refreshes) in [("row 31, 401", 401, 1), ("row 32, 403", 403, 0), ("row 31, 401 again", 401, 0)]
        {
            let (calls, upstream) = (stage.calls(), stage.kw.sandbox().counters().api_calls);
            stage.kw.sandbox().faults().api(status(code, ""));
            let refused = stage.get(&person).await;
            assert_eq!(refused.status.as_u16(), code, "{row}");
            assert_eq!(refused.text(), "trouble on demand\n", "{row}: as the upstream said it");
            assert_eq!(refused.header("keyward-error"), "", "{row}");
            stage.kw.sandbox().faults().clear();
            assert_eq!(stage.calls() - calls, refreshes, "{row}");
            assert_eq!(stage.kw.sandbox().counters().api_calls - upstream, 1 + refreshes, "{row}");
            assert_eq!(stage.state(&person).await, ("connected".to_owned(), String::new()), "{row}");
            stage.used(&person, row).await;
        }
        assert_eq!(stage.told(&person).await, [""; 0], "rows 31 and 32");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_33_clocks_that_differ_and_leap_cost_nothing() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        let person = stage.person("ada").await;
        // The provider's clock is an hour and a half ahead: to it the token is over, to us it is not.
        let ahead = Clock::held(stage.now().after(HOUR + 30 * MINUTE));
        sandbox.set_clock(ahead.clone());
        let calls = stage.calls();
        assert_ne!(stage.used(&person, "row 33, the provider is ahead").await, person.first_token);
        assert_eq!(stage.calls() - calls, 1, "row 33");
        let life = moment(&stage.account(&person).await, "access_expires_at").since(stage.now());
        assert_eq!(life, HOUR, "row 33: its life is counted here");
        // Behind: what it calls alive we refresh all the same, and it agrees.
        sandbox.set_clock(Clock::held(stage.now().before(HOUR)));
        stage.expire();
        stage.used(&person, "row 33, the provider is behind").await;
        // Ours leaps.
        sandbox.set_clock(stage.kw.world.clock.clone());
        let calls = stage.calls();
        stage.advance(10 * 365 * 24 * HOUR);
        stage.used(&person, "row 33, ten years ahead").await;
        assert_eq!(stage.calls() - calls, 1, "row 33");
        assert_eq!(stage.told(&person).await, [""; 0], "row 33");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_33_a_clock_that_is_set_moves_no_deadline() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let clock = stage.kw.world.clock.clone();
        let person = stage.person("ada").await;
        let ends = moment(&stage.account(&person).await, "access_expires_at");
        for (what, to) in
            [("ten years back", stage.now().before(10 * 365 * 24 * HOUR)), ("an hour ahead", stage.now().after(HOUR))]
        {
            let calls = stage.calls();
            // The provider has clocks of its own.
            stage.kw.sandbox().set_clock(Clock::held(ends.before(HOUR)));
            clock.set(to);
            let other = beside(&stage).await;
            let path = format!("/proxy/{}/me/messages", person.slug);
            let request = agent_request(&stage.key, "GET", &path).body(Full::<Bytes>::default()).unwrap();
            assert_eq!(call(other.proxy_address(), request).await.status, 200, "row 33, {what}");
            other.stop().await;
            assert_eq!(stage.used(&person, what).await, person.first_token, "row 33, {what}");
            assert_eq!(stage.calls(), calls, "row 33, {what}: no refresh, here or at an instance that starts now");
        }
        // Its hour is over when an hour has passed, whatever the clock says.
        let calls = stage.calls();
        stage.advance(HOUR - 4 * MINUTE);
        clock.set(stage.now().before(10 * 365 * 24 * HOUR));
        stage.kw.sandbox().set_clock(Clock::held(ends.before(MINUTE)));
        stage.renewed(&person, &person.first_token, "row 33, early").await;
        stage.advance(HOUR);
        stage.kw.sandbox().set_clock(Clock::held(ends.after(HOUR)));
        stage.used(&person, "row 33, in time").await;
        assert_eq!(stage.calls() - calls, 2, "row 33");
        // Nor does a pause after a failure last for years.
        stage.kw.sandbox().faults().token_times(status(503, "600"), 1);
        stage.advance(HOUR);
        assert_unavailable(&stage.get(&person).await, "row 33");
        clock.set(stage.now().before(10 * 365 * 24 * HOUR));
        stage.advance(10 * MINUTE);
        stage.used(&person, "row 33, after the pause").await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_34_the_end_of_a_refresh_token_is_known_and_moves_with_it() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let sandbox = stage.kw.sandbox();
        sandbox.set_refresh_ttl(Some(7 * 24 * HOUR));
        let person = stage.person("ada").await;
        let ends = |account: &Value| moment(account, "refresh_expires_at").since(stage.now());
        assert_eq!(ends(&stage.account(&person).await), 7 * 24 * HOUR, "row 34");
        stage.advance(6 * 24 * HOUR);
        stage.used(&person, "row 34").await;
        assert_eq!(ends(&stage.account(&person).await), 7 * 24 * HOUR, "row 34: a rotation moves it");
        // Left alone for longer than it lives, it is over.
        stage.advance(8 * 24 * HOUR);
        assert_disconnected(&stage, &person, &stage.get(&person).await, "row 34").await;
        assert_eq!(stage.state(&person).await.1, "refresh_rejected", "row 34");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_34_idle_accounts_are_kept_alive_and_people_are_told_in_time() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let keeper = stage.kw.app.accounts();
        stage.kw.sandbox().set_refresh_ttl(Some(30 * HOUR));
        let person = stage.person("ada").await;
        let calls = stage.calls();
        for day in 1..=5 {
            stage.advance(26 * HOUR);
            keeper.step_store().await;
            let account = stage.account(&person).await;
            assert!(moment(&account, "access_expires_at") > stage.now(), "row 34, day {day}: {account}");
        }
        assert_eq!(stage.calls() - calls, 5, "row 34: once a day");
        assert_eq!(
            warnings(&stage, &person).await,
            1,
            "row 34: it is short-lived, which is told once and not each day"
        );
        stage.used(&person, "row 34").await;
        stage.leave(&person).await;

        stage.kw.sandbox().set_refresh_ttl(Some(8 * 24 * HOUR));
        let person = stage.person("grace").await;
        keeper.step_store().await;
        assert_eq!(warnings(&stage, &person).await, 0, "row 34: not yet");
        stage.advance(2 * 24 * HOUR);
        keeper.step_store().await;
        keeper.step_store().await;
        assert_eq!(warnings(&stage, &person).await, 1, "row 34: told once");

        // The refresh just now has moved the end further away than a week: that it is near again is news, once. One that
        // moves it to where it is as near is none.
        stage.kw.sandbox().set_refresh_ttl(Some(6 * 24 * HOUR));
        for _ in 0..3 {
            stage.advance(24 * HOUR);
            stage.used(&person, "row 34").await;
            keeper.step_store().await;
            assert_eq!(warnings(&stage, &person).await, 2, "row 34");
        }
        stage.kw.stop().await;
    }
}

/// How often people were told that the account's refresh token ends soon.
async fn warnings(stage: &Stage, person: &Person) -> usize {
    let records = stage.kw.audit(&format!("&account={}", person.id)).await;
    records.iter().filter(|record| record["action"] == "account.reconnect_soon").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_in_trouble_heals_without_anybody_asking() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let (sandbox, keeper) = (stage.kw.sandbox(), stage.kw.app.accounts());
        let person = stage.person("ada").await;
        sandbox.faults().token(status(503, ""));
        stage.expire();
        assert_unavailable(&stage.get(&person).await, "row 19");
        keeper.step_store().await;
        assert_eq!(stage.state(&person).await.0, "degraded", "row 19");
        sandbox.faults().clear();
        stage.advance(75 * SECOND);
        keeper.step_store().await;
        assert_eq!(stage.state(&person).await.0, "connected", "row 19: healed by itself");
        let told = ["account.degraded provider_unavailable", "account.recovered provider_unavailable"];
        assert_eq!(stage.told(&person).await, told, "row 19");

        // And a lost answer is made good while the provider's grace lasts.
        sandbox.set_rotation(Rotation::Grace(10 * SECOND));
        stage.expire();
        sandbox.faults().token_times(Fault::ResetAfterWork, 1);
        assert_unavailable(&stage.get(&person).await, "row 21");
        stage.advance(2 * SECOND);
        keeper.step_due().await;
        assert_eq!(stage.state(&person).await.0, "connected", "row 21: in time");
        stage.used(&person, "row 21").await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_of_an_account_goes_with_it() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let (store, id) = (stage.kw.app.store(), person.id.parse().unwrap());
        for n in 0..12 {
            stage.candidate(&person, &format!("refresh token {n}")).await;
        }
        assert_eq!(store.candidates(id).await.unwrap().len(), 10, "the newest ten");
        stage.leave(&person).await;
        assert!(store.candidates(id).await.unwrap().is_empty(), "row 30: no sealed token outlives its account");
        stage.candidate(&person, "too late").await;
        assert!(store.candidates(id).await.unwrap().is_empty(), "row 30: nor comes after it");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_39_a_token_that_can_not_be_stored_is_held_until_it_can_and_not_used_before() {
    for backend in backends() {
        let stage = Stage::new(backend, "[refresh]\nwait = \"500ms\"").await;
        let person = stage.person("ada").await;
        // While the old token lives it serves.
        let calls = stage.calls();
        stage.break_column("access_token").await;
        stage.advance(HOUR - 4 * MINUTE);
        assert_eq!(stage.used(&person, "row 39").await, person.first_token);
        stage.kw.sandbox().wait_until(|counters| counters.refreshes("ok") == 1).await;
        assert_eq!(stage.used(&person, "row 39, the old token").await, person.first_token);
        // Then nothing does.
        stage.advance(5 * MINUTE);
        let upstream = stage.kw.sandbox().counters().api_calls;
        for refused in futures_util::future::join_all((0..3).map(|_| stage.get(&person))).await {
            assert_unavailable(&refused, "row 39");
            stage.assert_clean(&person, &refused.text(), "row 39").await;
        }
        assert_eq!(
            stage.kw.sandbox().counters().api_calls,
            upstream,
            "row 39: the token that is not stored is not used"
        );
        assert_eq!(stage.tokens(&person.id).await.0, person.first_token, "row 39");
        stage.mend().await;
        stage.until(&person, "row 39", |account| moment(account, "access_expires_at") > stage.now()).await;
        stage.used(&person, "row 39, there is room again").await;
        assert_eq!(stage.calls() - calls, 1, "row 39: the refresh token was spent once");
        stage.expire();
        stage.used(&person, "row 39, the next refresh").await;
        assert_eq!(stage.told(&person).await, [""; 0], "row 39");
        stage.assert_nothing_shows(&person, "row 39").await;
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i13_a_provider_is_not_asked_when_the_answer_could_not_be_stored() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let calls = stage.calls();
        stage.break_column("lease_owner").await;
        stage.advance(HOUR - 4 * MINUTE);
        for _ in 0..3 {
            assert_eq!(stage.used(&person, "I13").await, person.first_token);
        }
        stage.advance(5 * MINUTE);
        for _ in 0..3 {
            let refused = stage.get(&person).await;
            assert_unavailable(&refused, "I13");
            stage.assert_clean(&person, &refused.text(), "I13").await;
        }
        assert_eq!(stage.calls(), calls, "I13: no call");
        stage.mend().await;
        stage.used(&person, "I13, there is room again").await;
        assert_eq!(stage.calls() - calls, 1, "I13");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_40_disconnecting_does_not_wait_for_the_provider() {
    for backend in backends() {
        let stage = Stage::new(backend, SHORT).await;
        let sandbox = stage.kw.sandbox();
        let person = stage.person("ada").await;
        stage.used(&person, "row 40").await;
        sandbox.faults().revoke(Fault::Hang);
        let began = tokio::time::Instant::now();
        stage.kw.api("DELETE", &format!("/accounts/{}?confirm=true", person.id), None).await;
        assert_eq!(stage.get(&person).await.refusal(), "target_not_found", "row 40: gone here at once");
        assert!(began.elapsed() < 5 * SECOND, "row 40: {:?}", began.elapsed());
        sandbox.wait_until(|counters| counters.faults.get("hang") == Some(&1)).await;
        assert_eq!(sandbox.counters().revocations, 0, "row 40");

        // That it took too long is on record, and it is tried again until it is done.
        let trail = |action| crate::browser::trail(&stage.kw, &person.id, action, 1);
        let failed = trail("account.revoke_failed").await;
        assert_eq!(failed[0]["detail"]["code"], "provider_unavailable", "row 40");
        sandbox.faults().clear();
        stage.advance(2 * MINUTE);
        stage.kw.app.accounts().step_revocations().await.unwrap();
        let outcome = &trail("account.revoked_at_provider").await[0]["detail"];
        assert_eq!((&outcome["outcome"], &outcome["tries"]), (&json!("ok"), &json!(2)), "row 40");
        assert_eq!(sandbox.counters().revocations, 1, "row 40");
        stage.kw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_of_an_account_learns_from_trouble_what_there_is_to_learn() {
    for backend in backends() {
        let stage = Stage::new(backend, "").await;
        let person = stage.person("ada").await;
        let path = format!("/accounts/{}/validate", person.id);
        let sandbox = stage.kw.sandbox();
        assert_eq!(stage.kw.api("POST", &path, None).await["is_valid"], true);
        // Nothing to be learned from a provider in trouble.
        sandbox.faults().identity(status(503, ""));
        let checked = stage.kw.api("POST", &path, None).await;
        assert_eq!((&checked["is_valid"], &checked["account"]["validity"]), (&Value::Null, &json!("valid")));
        sandbox.faults().clear();
        // A withdrawn access token only takes a refresh.
        sandbox.expire_access_of(&person.email);
        let calls = stage.calls();
        assert_eq!(stage.kw.api("POST", &path, None).await["is_valid"], true);
        assert_eq!(stage.calls() - calls, 1);
        // A withdrawn consent is the end.
        sandbox.revoke_all_of(&person.email);
        let checked = stage.kw.api("POST", &path, None).await;
        assert_eq!((&checked["is_valid"], &checked["account"]["status"]), (&json!(false), &json!("disconnected")));
        assert_eq!(stage.told(&person).await, ["account.disconnected refresh_rejected"]);
        stage.kw.stop().await;
    }
}

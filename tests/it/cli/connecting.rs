//! `account connect`: a link for a person, or the whole flow where no browser reaches Keyward.

use url::Url;

use super::*;
use crate::harness::{consent, query};

/// Begins without a browser and reads the address to sign in at.
fn begin_headless(shell: &Shell<'_>, options: &str) -> (Running, Url) {
    let mut running = shell.begin(format!("account connect sandbox --headless {options}").trim());
    running.err.wait_for("Open this address in any browser and sign in:");
    let address = running.err.wait_for("/oauth/authorize");
    running.err.wait_for("Paste that address here:");
    (running, Url::parse(&address).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_connected_without_a_browser_on_this_machine() {
    let keyward = Keyward::start().await;
    let shell = Shell::of(&keyward);
    let (mut running, address) = begin_headless(&shell, "--capabilities mail --preset write");
    assert_eq!(address.origin().ascii_serialization(), keyward.sandbox().origin());
    let scopes = query(&address, "scope");
    assert!(scopes.contains("Mail.ReadWrite") && !scopes.contains("Calendars"), "{scopes}");
    let back = consent(&address, "ada@example.com", "allow").await;
    running.say(back.as_str());
    let ended = running.end();
    assert!(!ended.err.contains(&query(&back, "code")), "{}", ended.err);
    let told = pairs(&ended.done());
    assert_eq!((told["account"].as_str(), told["status"].as_str()), ("ada@example.com", "connected"));
    let account = keyward.api("GET", &format!("/accounts/{}", told["id"]), None).await;
    assert_eq!(account["targets"].as_array().unwrap().len(), 1);
    let key = keyward.new_key().await;
    keyward.grant(&key, &told["targets"], "read").await;
    let answer = keyward.agent(&key, "GET", &format!("/proxy/{}/me/messages", told["targets"])).await;
    assert_eq!(answer.status, 200);

    // The same again, as itself, and as a program wants it.
    let (mut running, address) = begin_headless(&shell, &format!("--account {} --json", told["id"]));
    running.say(consent(&address, "ada@example.com", "allow").await.as_str());
    assert_eq!(running.end().json()["id"], told["id"].as_str());
    let (mut running, address) = begin_headless(&shell, &format!("--account {}", told["id"]));
    running.say(consent(&address, "grace@example.com", "allow").await.as_str());
    let ended = running.end();
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert!(ended.err.contains("another_identity: "), "{}", ended.err);
    assert_eq!(keyward.api("GET", "/accounts", None).await["items"].as_array().unwrap().len(), 1);
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pasted_back_is_looked_at_before_it_is_sent() {
    let keyward = Keyward::start().await;
    let shell = Shell::of(&keyward);
    for (pasted, wanted) in [
        ("", "that is not an address: paste all of it"),
        ("4/0AfJohX", "that is not an address: paste all of it"),
        ("http://127.0.0.1:1/integrations/sandbox/callback", "there is no code in this address"),
        ("http://127.0.0.1:1/callback?code=c", "there is no code in this address"),
        ("http://127.0.0.1:1/callback?code=c&state=made-up", "invalid_state: "),
        (
            "http://127.0.0.1:1/callback?error=bad%1B[31m&error_description=no%0Away",
            "the provider refused: bad\\u{1b}[31m: no\\nway",
        ),
    ] {
        let (mut running, _) = begin_headless(&shell, "");
        running.say(pasted);
        let ended = running.end();
        assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{pasted}");
        assert!(ended.err.lines().any(|line| line.starts_with(wanted)), "{pasted}: {}", ended.err);
    }
    let (mut running, address) = begin_headless(&shell, "");
    running.say(consent(&address, "ada@example.com", "deny").await.as_str());
    let ended = running.end();
    assert!(ended.code == Some(1) && ended.err.contains("the provider refused: access_denied"), "{ended:?}");
    // Nothing at all is said.
    let (running, _) = begin_headless(&shell, "");
    assert_eq!(running.end().code, Some(1));
    assert_eq!(keyward.api("GET", "/accounts", None).await["items"], serde_json::json!([]));
    keyward.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_printed_for_a_person_with_a_browser() {
    let keyward = Keyward::start().await;
    let shell = Shell::of(&keyward);
    let ran = shell.run("account connect sandbox");
    assert_eq!(ran.err, "Open this link in a browser and sign in there:\n");
    let told = pairs(&ran.done());
    let page = format!("http://{}/connect/flow_", keyward.app.admin_address());
    assert!(told["link"].starts_with(&page), "{told:?}");
    let link = shell.run("account connect sandbox --json").json();
    assert!(link["authorization_url"].as_str().unwrap().starts_with(&page), "{link}");
    for (words, wanted) in [
        (
            "account connect github",
            "provider_not_configured: GitHub is not configured\nSet OAUTH_GITHUB_CLIENT_ID and ",
        ),
        ("account connect nobody --headless", "provider_not_found: "),
        ("account connect sandbox --capabilities fax", "bad_request: "),
        ("account connect sandbox --account acc_1 --headless", "account_not_found: "),
    ] {
        let err = shell.run(words).failed(1);
        assert!(err.starts_with(wanted), "{words}: {err}");
    }
    keyward.stop().await;
}

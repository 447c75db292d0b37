//! The admin API: every route, every code, the shape of every answer.

mod accounts;
mod door;
mod form;
mod grants;
mod health;
mod keys;
mod lists;
mod organizations;
mod sessions;
mod targets;
mod trail;

use std::collections::BTreeSet;
use std::time::Duration;

use http::{Request, header};
use http_body_util::Full;
use keyward::app::App;
use keyward::clock::{Clock, Timestamp};
use keyward::sandbox::Fault;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use url::Url;

use crate::harness::{
    ADMIN, Answer, Backend, Key, Keyward, Settings, World, admin, agent_request, backends, call, consent, open_flow,
    paste_back, query,
};

const ORG: &str = "/api/organizations/default";
/// Well formed, and nobody's.
const NO_KEY: &str = "key_01JD3X7M0GZ2V8Q4W5T6R9S1AB";
const NO_ACCOUNT: &str = "acc_01JD3X7M0GZ2V8Q4W5T6R9S1AB";

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// A request with these headers, `Host`, and nothing else.
async fn bare(keyward: &Keyward, method: &str, path: &str, headers: Pairs<'_>, body: &str) -> Answer {
    let address = keyward.app.admin_address();
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    call(address, request.body(Full::from(body.to_owned())).unwrap()).await
}

fn bearer() -> String {
    format!("Bearer {ADMIN}")
}

/// Checks a refusal whole; answers its `detail`.
#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) -> Value {
    let text = answer.text();
    assert_eq!((answer.status.as_u16(), answer.refusal().as_str()), (status, code), "{text}");
    let body = answer.json();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&body), ["detail", "request_id"].map(str::to_owned).into(), "{text}");
    assert_eq!(names(&body["detail"]), ["code", "message", "hint"].map(str::to_owned).into(), "{text}");
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("www-authenticate"), if status == 401 { "Bearer" } else { "" });
    assert_eq!(!answer.header("retry-after").is_empty(), matches!(status, 429 | 503), "{text}");
    body["detail"].clone()
}

#[track_caller]
fn says(detail: &Value, words: &str) {
    assert!(detail["message"].as_str().unwrap().contains(words), "`{words}` is not in {detail}");
}

#[track_caller]
fn done(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert_eq!(answer.header("keyward-error"), "");
    assert!(answer.header("keyward-request-id").starts_with("req_"));
    if answer.body.is_empty() { Value::Null } else { answer.json() }
}

/// One operation of the OpenAPI document.
struct Operation {
    method: String,
    path: String,
    spec: Value,
}

impl Operation {
    fn is_public(&self) -> bool {
        self.spec["security"] == json!([{}])
    }
    fn takes_body(&self) -> bool {
        self.spec["requestBody"].is_object()
    }
}

fn operations() -> Vec<Operation> {
    let document: Value = serde_json::from_str(&keyward::admin::openapi_json()).unwrap();
    let paths = document["paths"].as_object().unwrap().clone();
    let of_path = |(path, item): (String, Value)| {
        let item = item.as_object().unwrap().clone();
        item.into_iter().map(move |(method, spec)| Operation {
            method: method.to_uppercase(),
            path: path.clone(),
            spec,
        })
    };
    paths.into_iter().flat_map(of_path).collect()
}

/// An instance with one of everything, so that every documented path can be filled in.
struct House {
    keyward: Keyward,
    account: Value,
    key: Key,
}

impl House {
    async fn new() -> Self {
        let keyward = Keyward::start().await;
        let account = keyward.connect("ada@example.com").await;
        let key = keyward.new_key().await;
        keyward.tools().await;
        keyward.grant(&key, "tools", "read").await;
        Self { keyward, account, key }
    }

    fn account(&self) -> &str {
        self.account["id"].as_str().unwrap()
    }

    fn fill(&self, path: &str) -> String {
        let id = if path.contains("/keys/") { &self.key.id } else { self.account() };
        let path = path.replace("{org}", "default").replace("{provider}", "sandbox").replace("{id}", id);
        path.replace("{slug}", "tools").replace("{target}", "tools")
    }

    /// A body that the route would take.
    fn body(operation: &Operation) -> Value {
        match (operation.method.as_str(), operation.path.rsplit('/').next().unwrap()) {
            ("POST", "organizations") => json!({"name": "other"}),
            ("POST", "callback") => json!({"code": "c", "state": "s"}),
            ("POST", "targets") => {
                json!({"slug": "new", "base_url": "https://example.com", "credential": {"kind": "none"}})
            }
            ("POST", "keys") => json!({"name": "new"}),
            ("PATCH", _) => json!({"name": "renamed"}),
            ("PUT", "{target}") => json!({"access": "write"}),
            other => panic!("no body is known for {other:?}"),
        }
    }

    /// Everything that an act could have changed.
    async fn state(&self) -> Value {
        let api = |path: String| async move { self.keyward.api("GET", &path, None).await };
        json!({
            "organizations": self.keyward.admin("GET", "/api/organizations", None).await.json(),
            "integrations": api("/integrations".into()).await,
            "targets": api("/targets".into()).await,
            "keys": api("/keys".into()).await,
            "grants": api(format!("/keys/{}/grants", self.key.id)).await,
        })
    }
}

async fn post_login(keyward: &Keyward, token: &str, proof: Pairs<'_>) -> Answer {
    let headers = [&[("content-type", "application/x-www-form-urlencoded")], proof].concat();
    bare(keyward, "POST", "/login", &headers, &format!("token={token}")).await
}

/// Signs in as a browser does; answers the cookie.
async fn sign_in(keyward: &Keyward) -> String {
    let origin = format!("http://{}", keyward.app.admin_address());
    let answer = post_login(keyward, ADMIN, &[("origin", &origin)]).await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    answer.header("set-cookie").split(';').next().unwrap().to_owned()
}

/// The answers of every documented GET, of the dashboard's pages and of an agent's bootstrap.
async fn all_that_can_be_read(house: &House, agent: &Key) -> Vec<Answer> {
    let keyward = &house.keyward;
    let cookie = sign_in(keyward).await;
    let mut answers = Vec::new();
    for operation in operations().iter().filter(|operation| operation.method == "GET") {
        answers.push(keyward.admin("GET", &house.fill(&operation.path), None).await);
    }
    let key_page = format!("/keys/{}", house.key.id);
    for page in ["/integrations", "/targets", "/keys", &key_page, "/audit"] {
        let answer = bare(keyward, "GET", page, &[("cookie", &cookie)], "").await;
        assert_eq!(answer.status, 200, "{page}");
        answers.push(answer);
    }
    let bootstrap = agent_request(agent, "GET", "/bootstrap").body(Full::default()).unwrap();
    answers.push(call(keyward.app.proxy_address(), bootstrap).await);
    answers
}

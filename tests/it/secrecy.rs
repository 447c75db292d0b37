//! Every secret of a deployment is collected, every route is walked, and then none of them may be found where it does not
//! belong: in an answer, a log line, the audit trail, metrics, the database's files, a command line, or upstream.
//!
//! The gateway is the real process with its logs at TRACE; only the outside world (sandbox, browser, agent) plays here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use keyward::sandbox::{Fault, Place as At, Sandbox};
use keyward::secret::Secret;
use keyward::vault::{Keyring, Place, Sealed, Vault};
use serde_json::{Value, json};
use sqlx::Row;
use url::Url;

use crate::harness::{ADMIN, Answer, Backend, Key, World, call, consent, query};
use crate::wire::{Process, ask, head, holds};

/// A secret, and the answers that may show it.
struct Hidden {
    name: String,
    value: Vec<u8>,
    shown: Vec<usize>,
}

/// Everybody outside: agent, operator, browser. Remembers every answer.
struct Outside {
    process: Process,
    answers: Vec<(String, Vec<u8>)>,
    hidden: Vec<Hidden>,
    session: Option<String>,
    canaries: usize,
}

fn bytes(answer: &Answer) -> Vec<u8> {
    let mut text = answer.status.to_string().into_bytes();
    for (name, value) in &answer.headers {
        text.extend_from_slice(format!("\n{name}: ").as_bytes());
        text.extend_from_slice(value.as_bytes());
    }
    text.extend_from_slice(b"\n\n");
    text.extend_from_slice(&answer.body);
    text
}

impl Outside {
    /// A value that occurs nowhere else.
    fn canary(&mut self, name: &str) -> String {
        self.canaries += 1;
        let value = format!("Canary{}{}", self.canaries, URL_SAFE_NO_PAD.encode(keyward::ids::random::<18>()));
        self.hide(name, &value);
        value
    }

    fn hide(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        assert!(value.len() >= 16, "{name} is too short to be told from chance");
        if let Some(known) = self.hidden.iter_mut().find(|hidden| hidden.value == value) {
            return known.name = name.to_owned();
        }
        self.hidden.push(Hidden { name: name.to_owned(), value: value.to_owned(), shown: Vec::new() });
    }

    /// A secret that the last answer shows, and rightly so.
    fn shown(&mut self, name: &str, value: &str) {
        self.hide(name, value);
        let last = self.answers.len() - 1;
        assert!(holds(&self.answers[last].1, value.as_bytes()), "{name} is not in {}", self.answers[last].0);
        let hidden = self.hidden.iter_mut().find(|hidden| hidden.value == value.as_bytes()).unwrap();
        hidden.shown.push(last);
    }

    fn note(&mut self, what: impl Into<String>, answer: Answer) -> Answer {
        self.answers.push((what.into(), bytes(&answer)));
        answer
    }

    async fn agent(&mut self, key: &str, line: &str, lines: &[&str]) -> Answer {
        let key = Key { id: String::new(), secret: key.to_owned() };
        let answer = ask(self.process.proxy, head(&key, line, lines)).await;
        self.note(line, answer)
    }

    async fn api(&mut self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let path = format!("/api/organizations/default{path}");
        let answer = crate::harness::admin(self.process.admin, method, &path, body).await;
        self.note(format!("{method} {path}"), answer)
    }

    async fn made(&mut self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.api(method, path, Some(body)).await;
        assert!(answer.status.is_success(), "{method} {path}: {}", answer.text());
        answer.json()
    }

    /// What a browser sends: a page, or with `form` a posted form of our own pages.
    async fn page(&mut self, path: &str, form: Option<&[(&str, &str)]>, cookie: Option<&str>) -> Answer {
        let host = self.process.admin.to_string();
        let cookies: Vec<&str> = self.session.as_deref().into_iter().chain(cookie).collect();
        let mut request = Request::builder().uri(path).header(header::HOST, &host);
        if !cookies.is_empty() {
            request = request.header(header::COOKIE, cookies.join("; "));
        }
        let body = match form {
            Some(fields) => {
                request = request
                    .method("POST")
                    .header(header::ORIGIN, format!("http://{host}"))
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
            }
            None => String::new(),
        };
        let answer = call(self.process.admin, request.body(Full::from(Bytes::from(body))).unwrap()).await;
        let method = if form.is_some() { "POST" } else { "GET" };
        self.note(format!("{method} {path}"), answer)
    }

    async fn new_key(&mut self, name: &str) -> (String, String) {
        let made = self.made("POST", "/keys", json!({"name": name})).await;
        let key = made["key"].as_str().unwrap().to_owned();
        self.shown(&format!("the key {name}"), &key);
        (made["id"].as_str().unwrap().to_owned(), key)
    }

    /// What the browser learns on its way to the provider: the flow's cookie, its state; and what it never does.
    async fn opened(&mut self, answer: &Answer, vault: &Vault, dir: &Path) -> (Url, String) {
        assert_eq!(answer.status, 303, "{}", answer.text());
        let cookie = answer.header("set-cookie").split(';').next().unwrap().to_owned();
        self.shown("a flow's cookie", cookie.split_once('=').unwrap().1);
        let url = Url::parse(answer.header("location")).unwrap();
        self.shown("a flow's state", &query(&url, "state"));
        for (_, verifier) in sealed(dir, "flows", "verifier", vault).await {
            self.hide("a flow's verifier", verifier);
        }
        (url, cookie)
    }

    /// The browser comes back: the page that posts what the provider sent, and its post.
    async fn back(&mut self, back: &Url, cookie: Option<&str>) -> Answer {
        let path = format!("{}?{}", back.path(), back.query().unwrap_or_default());
        let fields: Vec<(String, String)> = back.query_pairs().into_owned().collect();
        self.page(&path, None, cookie).await;
        // The page holds what the browser brought; its label here would hold it too.
        self.answers.last_mut().unwrap().0 = "GET callback".into();
        for (name, value) in &fields {
            if name == "code" || name == "state" {
                self.shown(&format!("a {name}"), value);
            }
        }
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.page(back.path(), Some(&fields), cookie).await
    }
}

async fn open(dir: &Path) -> sqlx::SqlitePool {
    sqlx::SqlitePool::connect(&format!("sqlite://{}?mode=ro", dir.join("keyward.db").display())).await.unwrap()
}

/// What a column holds, opened with the deployment's key.
async fn sealed(dir: &Path, table: &'static str, column: &'static str, vault: &Vault) -> Vec<(String, Vec<u8>)> {
    let pool = open(dir).await;
    let text = format!("select id, {column} from {table} where {column} is not null");
    let rows = sqlx::query(sqlx::AssertSqlSafe(text)).fetch_all(&pool).await.unwrap();
    pool.close().await;
    rows.iter()
        .map(|row| {
            let id: String = row.get(0);
            let sealed = Sealed::from_bytes(row.get(1));
            let plain = vault.open(Place { table, row: &id, column }, &sealed).unwrap();
            (id, plain.expose().clone())
        })
        .collect()
}

/// The tokens of now, from the database.
async fn tokens(outside: &mut Outside, dir: &Path, vault: &Vault) {
    for column in ["access_token", "refresh_token"] {
        for (_, token) in sealed(dir, "accounts", column, vault).await {
            assert!(token.starts_with(b"sbx_"), "the sandbox's own form");
            outside.hide(&column.replace("_", " "), token);
        }
    }
}

/// A secret as it is, and as it would look where something encodes it.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![value.to_vec(), STANDARD.encode(value).into_bytes(), URL_SAFE_NO_PAD.encode(value).into_bytes()];
    all.push(value.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes());
    all.push(url::form_urlencoded::byte_serialize(value).collect::<String>().into_bytes());
    all.push(format!("{:?}", value).into_bytes());
    all
}

fn grant_path(key: &str, slug: &str) -> String {
    format!("/keys/{key}/grants/{slug}")
}

/// Provider trouble, each with something in it that nobody else may see.
fn trouble(outside: &mut Outside) -> Vec<Fault> {
    let mut said = |name: &str| outside.canary(&format!("what the provider said ({name})"));
    vec![
        Fault::Json(500, json!({"error": "server_error", "error_description": said("500")})),
        Fault::Json(400, json!({"error": "temporarily_unavailable", "error_uri": said("400"), "debug": said("debug")})),
        Fault::Json(400, json!({"error": said("code"), "error_description": said("odd code")})),
        Fault::Json(400, json!({"error": {"message": said("object")}})),
        Fault::Json(200, json!({"access_token": "", "scope": said("a scope"), "expires_in": {"x": said("odd")}})),
        Fault::Json(200, json!({"access_token": format!("a\n{}", said("a bad token")), "token_type": "Bearer"})),
        Fault::RawBody {
            status: 200,
            content_type: "application/json".into(),
            body: format!("{{\"access_token\": \"{}\", broken", said("broken JSON")).into(),
        },
        Fault::RawBody {
            status: 502,
            content_type: "text/html".into(),
            body: format!("<h1>{}</h1>", said("HTML")).into(),
        },
        Fault::Redirect(307, format!("/elsewhere?{}", said("a redirect"))),
        Fault::Status { status: 429, retry_after: Some(said("Retry-After")) },
        Fault::Json(401, json!({"error": "invalid_client", "error_description": said("invalid_client")})),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_found_where_it_does_not_belong() {
    let world = World::new(Backend::Sqlite).await;
    let dir = world.dir.path().to_owned();
    let sealing = keyward::ids::random::<32>();
    let sealing_keys = format!("canary:{}", STANDARD.encode(sealing));
    let vault = Vault::new(Keyring::parse(&Secret::new(sealing_keys.clone())).unwrap());
    let system = format!("CanarySystem{}", URL_SAFE_NO_PAD.encode(keyward::ids::random::<18>()));
    let toml = format!(
        "[targets.system]\nbase_url = \"{}/tools\"\ncredential = {{ bearer_env = \"SYSTEM_TOKEN\" }}\n\
         [proxy.limits]\nrequest_body = \"1 KiB\"\n[shutdown]\ndeadline = \"2s\"\n",
        world.sandbox.origin()
    );
    let env = [("KEYWARD_SEALING_KEYS", sealing_keys.as_str()), ("SYSTEM_TOKEN", system.as_str())];
    let process = Process::start(&world, &toml, &env, "trace").await;
    let mut outside = Outside { process, answers: Vec::new(), hidden: Vec::new(), session: None, canaries: 0 };
    outside.hide("the admin token", ADMIN);
    outside.hide("the sealing key", sealing);
    outside.hide("the client's secret", world.sandbox.client_secret());
    outside.hide("the system target's credential", &system);

    let statics = targets(&mut outside, &world.sandbox).await;
    let (key, key_id, slugs) = accounts(&mut outside, &world.sandbox, &vault, &dir).await;
    for slug in statics.keys().chain([&"system".to_owned()]) {
        outside.made("PUT", &grant_path(&key_id, slug), json!({"access": "write"})).await;
    }
    agents(&mut outside, &world.sandbox, &key, &slugs, statics.keys()).await;
    refreshes(&mut outside, &world.sandbox, &vault, &dir, &key, &slugs).await;
    dashboard(&mut outside, &world.sandbox, &vault, &dir).await;
    operators(&mut outside, &key_id, &slugs).await;

    for name in
        ["access token", "refresh token", "a flow's verifier", "a flow's cookie", "a state", "a code", "the session"]
    {
        assert!(outside.hidden.iter().any(|hidden| hidden.name == name), "{name} was never collected");
    }
    // While it runs, the write-ahead log holds what the file does not yet.
    search_files(&outside, &dir);
    let command = std::fs::read(format!("/proc/{}/cmdline", outside.process.child.id())).unwrap();
    search(&outside, "the command line", &command);
    outside.process.terminate();
    assert_eq!(outside.process.ended().await, Some(0));
    search_files(&outside, &dir);
    let log = std::fs::read(&outside.process.log).unwrap();
    let lines = String::from_utf8_lossy(&log).lines().count();
    assert!(lines > 500 && holds(&log, b"DEBUG sqlx::query"), "the logs are there: {lines} lines");
    search(&outside, "the log", &log);
    search(&outside, "standard output", &std::fs::read(dir.join("stdout")).unwrap());
    for form in [&b"sbx_at_"[..], b"sbx_rt_", b"sbx_code_", b"sbx_cs_"] {
        assert!(!holds(&log, form), "the log holds something that begins with {}", String::from_utf8_lossy(form));
    }

    assert!(outside.answers.len() > 150, "{}", outside.answers.len());
    let needles = Needles::of(&outside.hidden);
    for (at, (what, answer)) in outside.answers.iter().enumerate() {
        for found in needles.found_in(answer) {
            let hidden = &outside.hidden[found];
            let fine = hidden.shown.contains(&at);
            assert!(fine, "{what} shows {}: {}", hidden.name, String::from_utf8_lossy(answer));
        }
        for form in [&b"sbx_at_"[..], b"sbx_rt_", b"sbx_cs_"] {
            assert!(!holds(answer, form), "{what} shows {}", String::from_utf8_lossy(form));
        }
    }
    upstream(&outside, &world.sandbox, &statics, &system);
    world.outside.stop_now();
}

/// Every form of every secret, to be found in one pass.
struct Needles {
    /// By their first eight bytes: which secret, and the whole form.
    by_start: HashMap<[u8; 8], Vec<(usize, Vec<u8>)>>,
    /// Whether any begins with these two bytes.
    begins: Vec<bool>,
}

impl Needles {
    fn of(hidden: &[Hidden]) -> Self {
        let mut needles = Self { by_start: HashMap::new(), begins: vec![false; 1 << 16] };
        for (at, hidden) in hidden.iter().enumerate() {
            for form in forms(&hidden.value) {
                let start: [u8; 8] = form[..8].try_into().unwrap();
                needles.begins[usize::from(form[0]) << 8 | usize::from(form[1])] = true;
                needles.by_start.entry(start).or_default().push((at, form));
            }
        }
        needles
    }

    /// Which secrets are in a text.
    fn found_in(&self, text: &[u8]) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        for (at, start) in text.windows(8).enumerate() {
            if self.begins[usize::from(start[0]) << 8 | usize::from(start[1])]
                && let Some(forms) = self.by_start.get(start)
            {
                found.extend(forms.iter().filter(|(_, form)| text[at..].starts_with(form)).map(|(hidden, _)| *hidden));
            }
        }
        found
    }
}

/// Looks for every secret, in every form.
fn search(outside: &Outside, place: &str, text: &[u8]) {
    let found = Needles::of(&outside.hidden).found_in(text);
    let names: Vec<&str> = found.into_iter().map(|hidden| outside.hidden[hidden].name.as_str()).collect();
    assert!(names.is_empty(), "{place} holds {names:?}");
}

#[test]
fn what_is_looked_for_is_found() {
    let hidden = |value: &str| Hidden { name: value.to_owned(), value: value.into(), shown: Vec::new() };
    let all = [hidden("a secret of some length"), hidden("another secret of its own")];
    let needles = Needles::of(&all);
    assert!(needles.found_in(b"nothing that is secret of some length").is_empty());
    for (at, secret) in all.iter().enumerate() {
        for form in forms(&secret.value) {
            let text = [b"before ".as_slice(), &form, b" after"].concat();
            assert_eq!(needles.found_in(&text), BTreeSet::from([at]));
        }
    }
}

fn search_files(outside: &Outside, dir: &Path) {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Logs are searched at the end; gateway.toml is the operator's, and by its rules without a secret.
        if name != "keyward.log" {
            let text = std::fs::read(&path).unwrap();
            search(outside, &name, &text);
            for form in [&b"sbx_at_"[..], b"sbx_rt_", b"sbx_code_", b"sbx_cs_"] {
                assert!(!holds(&text, form), "{name} holds {}", String::from_utf8_lossy(form));
            }
            seen.push(name);
        }
    }
    assert!(seen.iter().any(|name| name == "keyward.db"), "{seen:?}");
}

/// The recorder: nobody's key, nothing of ours, and a credential only where it belongs.
fn upstream(outside: &Outside, sandbox: &Sandbox, statics: &BTreeMap<String, Vec<String>>, system: &str) {
    let recorded = sandbox.recorded();
    assert!(recorded.len() > 30 && recorded.len() < 1000, "{}", recorded.len());
    let own: Vec<&String> = statics.values().flatten().collect();
    for request in &recorded {
        let mut text = format!("{} {}\n", request.method, request.target).into_bytes();
        for (name, value) in request.headers.iter().chain(&request.trailers) {
            text.extend_from_slice(format!("{name}: ").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        text.extend_from_slice(&request.body_start);
        let shown = String::from_utf8_lossy(&text);
        assert!(!shown.contains("kw_") && !shown.contains("kwa_") && !shown.contains("sbx_rt_"), "{shown}");
        let tools = request.target.starts_with("/tools/");
        assert_eq!(shown.contains("sbx_at_"), !tools, "an account's token goes to its own API only: {shown}");
        let mut credentials = 0;
        for hidden in &outside.hidden {
            let found = holds(&text, &hidden.value) || holds(&text, STANDARD.encode(&hidden.value).as_bytes());
            let is_credential =
                own.iter().any(|own| own.as_bytes() == hidden.value) || hidden.value == system.as_bytes();
            if is_credential {
                credentials += usize::from(found);
            } else {
                let is_token = hidden.value.starts_with(b"sbx_at_");
                assert!(!found || (is_token && !tools), "{} went upstream: {shown}", hidden.name);
            }
        }
        assert!(credentials <= 1, "one credential each: {shown}");
        assert_eq!(credentials == 0, !tools, "{shown}");
    }
}

/// Static targets with every kind of credential; by slug, the secrets in each.
async fn targets(outside: &mut Outside, sandbox: &Sandbox) -> BTreeMap<String, Vec<String>> {
    let base = format!("{}/tools", sandbox.origin());
    let mut secrets = BTreeMap::new();
    for kind in ["bearer", "basic", "header", "headers", "query"] {
        let secret = outside.canary(&format!("the {kind} credential"));
        let credential = match kind {
            "bearer" => json!({"kind": kind, "token": secret}),
            "basic" => {
                // What goes out is the pair, encoded.
                outside.hide("the basic pair", STANDARD.encode(format!("ada:{secret}")));
                json!({"kind": kind, "username": "ada", "password": secret})
            }
            "header" => json!({"kind": kind, "name": "X-Shop-Token", "value": secret}),
            "headers" => json!({"kind": kind, "headers": {"X-Shop-Token": secret, "X-Shop-Id": "7"}}),
            _ => json!({"kind": kind, "name": "key", "value": secret}),
        };
        let slug = format!("static-{kind}");
        outside.made("POST", "/targets", json!({"slug": slug, "base_url": base, "credential": credential})).await;
        let sent = if kind == "basic" { STANDARD.encode(format!("ada:{secret}")) } else { secret };
        secrets.insert(slug, vec![sent]);
    }
    // Changed once: the old one must be gone as well.
    let newer = outside.canary("a changed credential");
    let change = json!({"credential": {"kind": "bearer", "token": newer}});
    outside.made("PATCH", "/targets/static-bearer", change).await;
    secrets.insert("static-bearer".into(), vec![newer]);

    // Mistakes with a secret in them are told without it.
    let secret = outside.canary("a secret in a mistake");
    let with = |credential: Value| json!({"slug": "oops", "base_url": base, "credential": credential});
    for body in [
        with(json!({"kind": "bearer", "tokn": secret})),
        with(json!({"kind": "bearer", "token": format!("{secret}\r\nx: y")})),
        with(json!({"kind": "bearer", "token": {"value": secret}})),
        with(json!({"kind": "bearer", "token": [secret]})),
        with(json!({"kind": "basic", "username": format!("{secret}:x"), "password": secret})),
        with(json!({"kind": "header", "name": "host", "value": secret})),
        with(json!({"kind": "header", "name": "bad name", "value": secret})),
        with(json!({"kind": "headers", "headers": {"X-Key": {"nested": secret}}})),
        with(json!({"kind": "query", "name": "a b", "value": secret})),
        with(json!({"kind": "query", "name": "key", "value": ""})),
        json!({"slug": "oops", "base_url": format!("https://user:{secret}@api.example.com"), "credential": {"kind": "none"}}),
        json!({"slug": "oops", "base_url": format!("https://api.example.com/?key={secret}"), "credential": {"kind": "none"}}),
        json!({"slug": "static-bearer", "base_url": base, "credential": {"kind": "bearer", "token": secret}}),
    ] {
        let answer = outside.api("POST", "/targets", Some(body.clone())).await;
        assert!(answer.status.is_client_error(), "{body}: {}", answer.text());
    }
    outside.api("PATCH", "/targets/static-query", Some(json!({"base_url": "https://api.example.com"}))).await;
    for path in ["/targets", "/targets/static-bearer", "/targets/static-basic", "/targets/system", "/targets/none"] {
        outside.api("GET", path, None).await;
    }
    secrets
}

/// Connects by paste-back, well and badly. Answers a key, its id, and the account's slugs by capability.
async fn accounts(
    outside: &mut Outside,
    sandbox: &Sandbox,
    vault: &Vault,
    dir: &Path,
) -> (String, String, BTreeMap<String, String>) {
    let link = "/integrations/sandbox/auth_link?preset=write";
    let callback = "/integrations/sandbox/callback";
    let begin = async |outside: &mut Outside| {
        let answer = outside.api("GET", link, None).await;
        let page = Url::parse(answer.json()["authorization_url"].as_str().unwrap()).unwrap();
        outside.page(page.path(), None, None).await;
        let answer = outside.page(page.path(), Some(&[]), None).await;
        outside.opened(&answer, vault, dir).await
    };
    // A code that is none, a state that is none, somebody who says no.
    let (url, _) = begin(outside).await;
    let (code, state) = (outside.canary("a false code"), outside.canary("a false state"));
    outside.api("POST", callback, Some(json!({"code": code, "state": query(&url, "state")}))).await;
    outside.api("POST", callback, Some(json!({"code": code, "state": state}))).await;
    outside.api("POST", callback, Some(json!({"code": [code], "state": state}))).await;
    outside.api("POST", callback, Some(json!({"code": code, "state": state, "x": code}))).await;
    // The provider fails at the exchange, and where it says who this is, in its own words.
    for fault in trouble(outside) {
        let (url, _) = begin(outside).await;
        let back = consent(&url, "ada@example.com", "allow").await;
        outside.hide("a code", query(&back, "code"));
        sandbox.faults().token_times(fault, 1);
        let pasted = json!({"code": query(&back, "code"), "state": query(&back, "state")});
        let answer = outside.api("POST", callback, Some(pasted)).await;
        assert!(!answer.status.is_success(), "{}", answer.text());
    }
    let said = outside.canary("what the identity endpoint said");
    for fault in [
        Fault::Json(403, json!({"error": said, "message": said})),
        Fault::Json(200, json!({"mail": said})),
        Fault::RawBody { status: 500, content_type: "text/html".into(), body: said.clone().into() },
    ] {
        let (url, _) = begin(outside).await;
        let back = consent(&url, "ada@example.com", "allow").await;
        outside.hide("a code", query(&back, "code"));
        sandbox.faults().times(At::Identity, fault, 1);
        let pasted = json!({"code": query(&back, "code"), "state": query(&back, "state")});
        let answer = outside.api("POST", callback, Some(pasted)).await;
        assert!(!answer.status.is_success(), "{}", answer.text());
    }
    // And at last it works.
    let (url, _) = begin(outside).await;
    let back = consent(&url, "ada@example.com", "allow").await;
    outside.hide("a code", query(&back, "code"));
    let pasted = json!({"code": query(&back, "code"), "state": query(&back, "state")});
    let account = outside.made("POST", callback, pasted.clone()).await;
    outside.api("POST", callback, Some(pasted)).await;
    tokens(outside, dir, vault).await;

    let (key_id, key) = outside.new_key("agent").await;
    let mut slugs = BTreeMap::from([("account".to_owned(), account["id"].as_str().unwrap().to_owned())]);
    for target in account["targets"].as_array().unwrap() {
        let slug = target["slug"].as_str().unwrap();
        outside.made("PUT", &grant_path(&key_id, slug), json!({"access": "write"})).await;
        slugs.insert(target["capability"].as_str().unwrap().to_owned(), slug.to_owned());
    }
    (key, key_id, slugs)
}

/// Everything that agents do, rightly and wrongly.
async fn agents(
    outside: &mut Outside,
    sandbox: &Sandbox,
    key: &str,
    slugs: &BTreeMap<String, String>,
    statics: impl Iterator<Item = &String>,
) {
    let mail = &slugs["mail"];
    let (second_id, second) = outside.new_key("another").await;
    let text = "Authorization";
    for line in [
        format!("GET /proxy/{mail}/me/messages?$top=2"),
        format!("HEAD /proxy/{mail}/me/messages"),
        format!("GET /proxy/{mail}/me/messages/none"),
        format!("PATCH /proxy/{mail}/me/messages/none"),
        format!("GET /proxy/{}/me/events?$top=1", slugs["calendar"]),
        format!("GET /proxy/{mail}/me"),
        format!("GET /proxy/{mail}/me/../x"),
        format!("TRACE /proxy/{mail}/me/messages"),
        "GET /proxy/none/x".into(),
        "GET /bootstrap".into(),
        "GET /verify".into(),
        "POST /verify".into(),
        "GET /healthz".into(),
        "GET /readyz".into(),
        "GET /nowhere".into(),
        "GET /proxy/system/1k".into(),
        "GET /proxy/system/status/500".into(),
        "POST /proxy/system/reset".into(),
    ] {
        if line.starts_with("HEAD") {
            let key = Key { id: String::new(), secret: key.to_owned() };
            let mut wire = crate::wire::Wire::connect(outside.process.proxy).await;
            wire.send(head(&key, &line, &[])).await;
            let answer = wire.next(true).await.unwrap();
            outside.note(line, answer);
            continue;
        }
        outside.agent(key, &line, &["Accept: text/markdown", "X-Shop-Token: theirs"]).await;
    }
    outside.agent(key, "GET /bootstrap", &[]).await;
    for slug in statics {
        let answer = outside.agent(key, &format!("GET /proxy/{slug}/1k"), &[]).await;
        assert_eq!(answer.status, 200, "{slug}: {}", answer.text());
        outside.agent(key, &format!("POST /proxy/{slug}/status/404"), &[]).await;
    }
    // The key in every place where it does not belong, and two of them.
    let code: String = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for line in [
        format!("GET /proxy/{mail}/me/messages?key={key}"),
        format!("GET /proxy/{mail}/{key}"),
        format!("GET /proxy/{key}/x"),
        format!("GET /proxy/{code}/x"),
        format!("GET /proxy/{mail}/{code}"),
        format!("GET /proxy/{mail}/me/messages?x={code}"),
        format!("GET /{key}"),
        format!("GET /bootstrap?key={key}"),
        format!("GET /verify?key={code}"),
        format!("{key} /proxy/{mail}/me/messages"),
        format!("{key} /bootstrap"),
        format!("{key} /nowhere"),
        format!("GET /proxy/{mail}/x#{key}"),
        format!("GET http://{key}/proxy/{mail}/me/messages"),
    ] {
        let answer = outside.agent(key, &line, &[]).await;
        // The label of it is no answer.
        outside.answers.last_mut().unwrap().0 = "a key in the request line".into();
        assert!(!answer.header("keyward-request-id").is_empty());
    }
    for line in [
        format!("Cookie: k={key}"),
        format!("X-Custom: {key}"),
        format!("X-{key}: x"),
        format!("Proxy-{text}: Bearer {key}"),
        format!("X_Api_Key: {key}"),
        format!("{text}: Bearer {second}"),
        format!("X-Api-Key: {second}"),
        format!("Connection: {key}"),
        format!("Expect: {key}"),
        format!("Transfer-Encoding: {key}"),
        format!("Content-Length: {key}"),
        key.to_owned(),
        format!("Bad Header: {key}"),
    ] {
        outside.agent(key, &format!("POST /proxy/{mail}/me/messages"), &[&line]).await;
    }
    let long = "x".repeat(2000);
    let over = [&format!("Content-Length: {}", long.len())[..], "Connection: close"];
    outside.agent(key, "POST /proxy/system/echo", &over).await;
    let mistaken = outside.canary("a key of another service");
    for secret in [&mistaken, &format!("kw_{mistaken}{mistaken}")] {
        for path in ["/bootstrap", "/proxy/system/1k"] {
            assert_eq!(outside.agent(secret, &format!("GET {path}"), &[]).await.status, 401);
        }
    }
    let basic =
        format!("GET /verify HTTP/1.1\r\nHost: a\r\n{text}: Basic {}\r\n\r\n", STANDARD.encode(format!("u:{key}")));
    let answer = ask(outside.process.proxy, basic).await;
    assert_eq!(outside.note("GET /verify with Basic", answer).status, 200);

    // Rotated, revoked, expired; still a secret.
    let rotated = outside.made("POST", &format!("/keys/{second_id}/rotate?grace=1h"), json!(null)).await;
    let newer = rotated["key"].as_str().unwrap().to_owned();
    outside.shown("a rotated key", &newer);
    outside.agent(&second, "GET /verify", &[]).await;
    outside.api("DELETE", &format!("/keys/{second_id}"), None).await;
    for key in [&second, &newer] {
        assert_eq!(outside.agent(key, "GET /verify", &[]).await.status, 401);
    }
    // The upstream refuses the token early: refreshed, sent again.
    sandbox.expire_access_of("ada@example.com");
    assert_eq!(outside.agent(key, &format!("GET /proxy/{mail}/me/messages?$top=1"), &[]).await.status, 200);
}

/// Refreshes that go wrong in the provider's words, and end with an account that is disconnected.
async fn refreshes(
    outside: &mut Outside,
    sandbox: &Sandbox,
    vault: &Vault,
    dir: &Path,
    key: &str,
    slugs: &BTreeMap<String, String>,
) {
    let account = &slugs["account"];
    let read = format!("GET /proxy/{}/me/messages?$top=1", slugs["mail"]);
    tokens(outside, dir, vault).await;
    for fault in trouble(outside) {
        sandbox.faults().token_times(fault, 1);
        let answer = outside.api("POST", &format!("/accounts/{account}/refresh"), None).await;
        assert!(!answer.status.is_success(), "{}", answer.text());
        outside.api("GET", &format!("/accounts/{account}"), None).await;
        sandbox.faults().clear();
    }
    // A token that lives for a second, and a provider that is down when it ends.
    sandbox.set_access_ttl(Duration::from_secs(1));
    outside.api("POST", &format!("/accounts/{account}/refresh"), None).await;
    tokens(outside, dir, vault).await;
    let said = outside.canary("what a failing provider said");
    sandbox.faults().token(Fault::Json(503, json!({"error": "server_error", "error_description": said})));
    let begun = std::time::Instant::now();
    while outside.agent(key, &read, &[]).await.header("keyward-error") != "token_unavailable" {
        assert!(begun.elapsed() < Duration::from_secs(20), "the token never ended");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    outside.agent(key, "GET /bootstrap", &[]).await;
    outside.api("POST", &format!("/accounts/{account}/validate"), None).await;
    sandbox.faults().clear();
    sandbox.set_access_ttl(Duration::from_secs(3600));
    outside.api("POST", &format!("/accounts/{account}/refresh"), None).await;
    tokens(outside, dir, vault).await;
    assert_eq!(outside.agent(key, &read, &[]).await.status, 200);
    outside.api("POST", &format!("/accounts/{account}/validate"), None).await;

    // Refused for good.
    let said = outside.canary("what a refusing provider said");
    sandbox
        .faults()
        .token(Fault::Json(400, json!({"error": "invalid_grant", "error_description": said, "hint": said})));
    outside.api("POST", &format!("/accounts/{account}/refresh"), None).await;
    sandbox.faults().clear();
    let answer = outside.agent(key, &read, &[]).await;
    assert_eq!(answer.header("keyward-error"), "account_disconnected", "{}", answer.text());
    outside.agent(key, "GET /bootstrap", &["Accept: text/markdown"]).await;
    outside.agent(key, "GET /bootstrap", &[]).await;
    for path in ["", "/validate", "/refresh"] {
        let method = if path.is_empty() { "GET" } else { "POST" };
        outside.api(method, &format!("/accounts/{account}{path}"), None).await;
    }
}

/// The dashboard, with a browser that connects, fails, and disconnects.
async fn dashboard(outside: &mut Outside, sandbox: &Sandbox, vault: &Vault, dir: &Path) {
    let wrong = outside.canary("a false admin token");
    outside.page("/login", None, None).await;
    outside.page("/login", Some(&[("token", &wrong)]), None).await;
    outside.page("/login?next=/keys", Some(&[("token", ADMIN), ("next", "/keys")]), None).await;
    let (_, answer) = outside.answers.last().unwrap();
    let text = String::from_utf8_lossy(answer).into_owned();
    let cookie = text.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    outside.shown("the session", cookie.split_once('=').unwrap().1);
    outside.session = Some(cookie);

    let listed = outside.api("GET", "/accounts", None).await.json();
    let account = listed["items"][0]["id"].as_str().unwrap().to_owned();
    // The account is disconnected: connected again as a person would, after two tries that fail.
    let reconnect = format!("/accounts/{account}/reconnect");
    let said = outside.canary("what the provider said to a browser");
    for fault in [Some(Fault::Json(400, json!({"error": "invalid_grant", "error_description": said}))), None] {
        let answer = outside.page(&reconnect, Some(&[]), None).await;
        let (url, flow) = outside.opened(&answer, vault, dir).await;
        let back = consent(&url, "ada@example.com", "allow").await;
        if let Some(fault) = fault {
            sandbox.faults().token_times(fault, 1);
        }
        let end = outside.back(&back, Some(&flow)).await;
        assert_eq!(end.status, 303);
        let location = end.header("location").to_owned();
        outside.page(&location, None, None).await;
        // Once more with the same code.
        outside.back(&back, Some(&flow)).await;
    }
    tokens(outside, dir, vault).await;
    // Somebody says no; somebody comes without the cookie; somebody comes with anything at all.
    let form: &[(&str, &str)] = &[("capability", "mail"), ("preset", "read")];
    let answer = outside.page("/integrations/sandbox/connect", Some(form), None).await;
    let (url, flow) = outside.opened(&answer, vault, dir).await;
    let back = consent(&url, "ada@example.com", "deny").await;
    let end = outside.back(&back, Some(&flow)).await;
    let location = end.header("location").to_owned();
    outside.page(&location, None, None).await;
    let answer = outside.page("/integrations/sandbox/connect", Some(form), None).await;
    let (url, _) = outside.opened(&answer, vault, dir).await;
    let back = consent(&url, "grace@example.com", "allow").await;
    outside.back(&back, None).await;
    outside.page("/integrations/sandbox/failed?code=invalid_state", None, None).await;
    outside.page("/integrations/none/callback?state=x", None, None).await;

    // Keys and targets.
    let made =
        outside.page("/keys", Some(&[("name", "by hand"), ("life", "day"), ("addresses", "127.0.0.1")]), None).await;
    let found = |answer: &Answer| {
        let text = answer.text();
        let at = text.find("kw_").expect("the page shows the key");
        text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect::<String>()
    };
    outside.shown("a key made in the dashboard", &found(&made));
    let keys = outside.api("GET", "/keys", None).await.json();
    let id = keys["items"].as_array().unwrap().iter().find(|key| key["name"] == "by hand").unwrap()["id"].clone();
    let id = id.as_str().unwrap();
    let rotated = outside.page(&format!("/keys/{id}/rotate"), Some(&[("grace", "hour")]), None).await;
    outside.shown("a key rotated in the dashboard", &found(&rotated));
    let access = [("access.static-bearer", "write"), ("was.static-bearer", "none")];
    outside.page(&format!("/keys/{id}/access"), Some(&access), None).await;
    let secret = outside.canary("a credential typed in the dashboard");
    let base = "https://api.example.com/v1";
    for (slug, fields) in [
        ("typed", vec![("credential", "bearer"), ("token", secret.as_str())]),
        ("typed-2", vec![("credential", "basic"), ("username", "u"), ("password", &secret)]),
        ("typed-3", vec![("credential", "header"), ("header_name", "X-Key"), ("header_value", &secret)]),
        ("typed-4", vec![("credential", "query"), ("query_name", "k"), ("query_value", &secret)]),
        // Mistakes.
        ("Typed 5", vec![("credential", "bearer"), ("token", &secret)]),
        ("typed", vec![("credential", "bearer"), ("token", &secret)]),
        ("typed-6", vec![("credential", "header"), ("header_name", "host"), ("header_value", &secret)]),
        ("typed-7", vec![("credential", "odd"), ("token", &secret)]),
    ] {
        let fields: Vec<_> = [("slug", slug), ("name", slug), ("base_url", base)].into_iter().chain(fields).collect();
        outside.page("/targets", Some(&fields), None).await;
    }
    outside.page("/targets/typed-4/delete", Some(&[]), None).await;
    let key_page = format!("/keys/{id}");
    let disconnect = format!("/accounts/{account}/disconnect");
    for path in [
        "/",
        "/integrations",
        "/targets",
        "/keys",
        &key_page,
        "/audit",
        &disconnect,
        "/static/app.js",
        "/nowhere",
        "/openapi.json",
    ] {
        outside.page(path, None, None).await;
    }
    outside.page(&format!("/keys/{id}/revoke"), Some(&[]), None).await;
    outside.page(&format!("/accounts/{account}/validate"), Some(&[]), None).await;
    outside.page(&format!("/accounts/{account}/refresh"), Some(&[]), None).await;
    tokens(outside, dir, vault).await;
    // Without the proof of our own pages, with a false session, signed out.
    let session = outside.session.clone();
    let host = outside.process.admin.to_string();
    let foreign = Request::post("/logout")
        .header(header::HOST, &host)
        .header(header::ORIGIN, "https://evil.example.org")
        .header(header::COOKIE, session.as_deref().unwrap())
        .body(Full::default());
    let answer = call(outside.process.admin, foreign.unwrap()).await;
    outside.note("a foreign POST /logout", answer);
    let false_session = outside.canary("a false session");
    outside.session = Some(format!("keyward_session={false_session}"));
    outside.page("/keys", None, None).await;
    outside.session = session;
    outside.page("/logout", Some(&[]), None).await;
    outside.page("/keys", None, None).await;
    outside.session = None;
}

/// The rest of the API, and the end of the account.
async fn operators(outside: &mut Outside, key_id: &str, slugs: &BTreeMap<String, String>) {
    let account = &slugs["account"];
    let (key, one) = (format!("/keys/{key_id}"), format!("/accounts/{account}"));
    let grants = format!("{key}/grants");
    let audit = format!("/audit?limit=200&key={key_id}");
    for path in
        ["/integrations", "/accounts", &one, "/targets", "/keys", &key, &grants, &audit, "/audit?limit=200", "/none"]
    {
        outside.api("GET", path, None).await;
    }
    let mut cursor = String::new();
    loop {
        let page = outside.api("GET", &format!("/audit?limit=100{cursor}"), None).await.json();
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let admin = outside.process.admin;
    for path in ["/api/organizations", "/metrics", "/readyz", "/healthz", "/openapi.json"] {
        let answer = crate::harness::admin(admin, "GET", path, None).await;
        outside.note(format!("GET {path}"), answer);
    }
    let wrong = outside.canary("a false bearer of the API");
    for (lines, body) in [
        (format!("Authorization: Bearer {wrong}\r\n"), ""),
        (format!("Authorization: Bearer {ADMIN}\r\nHost: {wrong}\r\n"), ""),
        (format!("Authorization: Bearer {ADMIN}\r\nX-{wrong}\r\n"), ""),
        (
            format!("Authorization: Bearer {ADMIN}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"),
            "{\"name\": ",
        ),
    ] {
        let request = format!(
            "POST /api/organizations/default/keys?x={wrong} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n{lines}\r\n{body}"
        );
        let answer = ask(admin, request).await;
        outside.note("POST /keys, badly", answer);
    }
    let answer = outside.api("DELETE", &one, None).await;
    assert_eq!(answer.refusal(), "needs_confirmation");
    assert!(outside.api("DELETE", &format!("{one}?confirm=true"), None).await.status.is_success());
    for path in [one.as_str(), "/accounts", "/integrations", "/audit?limit=200"] {
        outside.api("GET", path, None).await;
    }
}

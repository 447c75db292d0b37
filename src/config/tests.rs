//! What the operator is told, and that the shipped `gateway.toml` is the truth.

use std::collections::BTreeSet;
use std::path::Path;

use super::document::Document;
use super::*;

const SHIPPED: &str = include_str!("../../gateway.toml");

fn env() -> Env {
    Env::from_iter([
        ("OPENAI_API_KEY", "sk-1"),
        ("TICKETS_TOKEN", "t-2"),
        ("SEARCH_API_KEY", "s-3"),
        ("MAPS_API_KEY", "m-4"),
        ("BROKEN", "line\nline"),
    ])
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "gateway.toml", Path::new("/srv/keyward"), env())
}

/// The shipped file with every example switched on. It names files that are not there, so a real one stands in.
fn switched_on(ca: &Path) -> String {
    let example =
        |line: &str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let lines = SHIPPED.lines().map(|line| if example(line) { &line[1..] } else { line });
    let real = format!("{:?}", ca.display().to_string());
    let text = lines.collect::<Vec<_>>().join("\n");
    ["extra.pem", "cert.pem", "key.pem"].iter().fold(text, |text, file| text.replace(&format!("{file:?}"), &real))
}

fn certificate(folder: &Path) -> std::path::PathBuf {
    let file = folder.join("extra.pem");
    let made = rcgen::generate_simple_self_signed([String::from("ca.example.com")]).unwrap();
    std::fs::write(&file, made.cert.pem()).unwrap();
    file
}

#[test]
fn mistakes_are_told_with_line_and_key() {
    let table = [
        ("[proxy]\nlisten = \"localhost\"", "gateway.toml:2:10: proxy.listen: not an address and port"),
        ("[proxy]\nlisten = 8080", "gateway.toml:2:10: proxy.listen: text is wanted, not a number"),
        ("[proxy]\n\nlisten_on = 1", "gateway.toml:3:1: proxy.listen_on: there is no such key; known here: limits, "),
        ("[proxi]\n", "gateway.toml:1:2: proxi: there is no such key; known here: admin, audit"),
        ("proxy = 5", "gateway.toml:1:9: proxy: a table is wanted here, not a number"),
        ("[proxy]\nworkers = 0", "gateway.toml:2:11: proxy.workers: a number from 1 to 1024 is wanted"),
        ("[proxy]\npublic_url = \"keyward\"", "gateway.toml:2:14: proxy.public_url: not a URL: "),
        ("[admin]\npublic_url = \"https://a.example.com/b\"", "gateway.toml:2:14: admin.public_url: scheme, host"),
        ("[proxy.tls]\ncert = \"none.pem\"", "gateway.toml:2:8: proxy.tls.cert: can't read /srv/keyward/none.pem"),
        ("[admin.tls]\nkey = \"/dev/null\"", "gateway.toml:1:1: admin.tls.cert: missing"),
        ("[proxy.limits]\nhead = \"1 KiB\"", "gateway.toml:2:8: proxy.limits.head: a size from 8 KiB to 1024 KiB"),
        ("[proxy.limits]\nrequest_body = \"lots\"", "gateway.toml:2:16: proxy.limits.request_body: not a size: "),
        ("[proxy.timeouts]\nidle = \"0s\"", "gateway.toml:2:8: proxy.timeouts.idle: zero is not possible"),
        ("[proxy.timeouts]\nidle = 60", "gateway.toml:2:8: proxy.timeouts.idle: text is wanted, not a number"),
        ("[proxy.timeouts]\ntotal = \"x\"", "gateway.toml:2:9: proxy.timeouts.total: not a time: "),
        ("[proxy.limits.per_key]\nrequests = 0", "gateway.toml:2:12: proxy.limits.per_key.requests: a number from 1"),
        ("[proxy.limits.per_key]\nper = \"1m\"", "gateway.toml:2:7: proxy.limits.per_key.per: says nothing without"),
        (
            "[proxy.limits.per_key]\nrequests = 1\nper = \"2d\"",
            "gateway.toml:3:7: proxy.limits.per_key.per: whole seconds from",
        ),
        ("[admin]\nlisten = \"0.0.0.0:8081\"", "gateway.toml:2:10: admin.listen: this address is reachable from other"),
        ("[admin]\nlisten = \"127.0.0.1:8080\"", "gateway.toml:2:10: admin.listen: the agents' listener"),
        ("[admin]\ninsecure_http = \"yes\"", "gateway.toml:2:17: admin.insecure_http: true or false is wanted"),
        ("[admin]\ntoken = \"kwa_hush\"", "gateway.toml:2:1: admin.token: there is no such key"),
        ("[store]\nurl = \"mysql://db\"", "gateway.toml:2:7: store.url: \"sqlite://file\" or"),
        ("[store]\nurl = \"sqlite::memory:\"", "gateway.toml:2:7: store.url: a store in memory would lose"),
        ("[store]\nurl = \"postgres://a:kwa_hush@db/x\"", "gateway.toml:2:7: store.url: a password does not belong"),
        ("[store]\nurl = \"postgres://db/x?password=kwa_hush\"", "gateway.toml:2:7: store.url: a password does not"),
        ("[refresh]\nper_provider = -1", "gateway.toml:2:16: refresh.per_provider: a number from 1 to 1000"),
        ("[egress]\nallow = [\"10.0.0.0/8\", \"ten\"]", "gateway.toml:2:9: egress.allow: item 2: not an address range"),
        (
            "[egress]\nca = \"none.pem\"",
            "gateway.toml:2:6: egress.ca: can't read certificates from /srv/keyward/none.pem",
        ),
        (
            "[audit]\non_full = \"ignore\"",
            "gateway.toml:2:11: audit.on_full: unknown variant `ignore`, expected `refuse`",
        ),
        ("[audit]\nretention = \"1h\"", "gateway.toml:2:13: audit.retention: a day (\"1d\") is the least"),
        ("[log]\nformat = \"xml\"", "gateway.toml:2:10: log.format: unknown variant `xml`, expected `text` or `json`"),
        ("[log]\nlevel = \"keyward=loud\"", "gateway.toml:2:9: log.level: not a log filter"),
        (
            "[targets.CRM]\nbase_url = \"https://x.example.com\"",
            "gateway.toml:1:1: targets.CRM: a target's name is made",
        ),
        ("[targets.crm]\n", "gateway.toml:1:1: targets.crm.base_url: a target needs one"),
        (
            "[targets.crm]\nbase_url = \"http://x.example.com\"",
            "gateway.toml:2:12: targets.crm.base_url: https is wanted",
        ),
        ("[targets.crm]\nbase_url = \"https://u@x.example.com\"", "gateway.toml:2:12: targets.crm.base_url: a user or"),
        (
            "[targets.crm]\nbase_url = \"https://x.example.com?a=b\"",
            "gateway.toml:2:12: targets.crm.base_url: no query",
        ),
        (
            "[targets.crm]\nbase_url = \"https://x.example.com\"\nfence = []",
            "gateway.toml:3:9: targets.crm.fence: an empty",
        ),
        ("[providers]\nacme = 3", "gateway.toml:2:8: providers.acme: a table is wanted here, not a number"),
        ("a = \n", "gateway.toml:1:"),
    ];
    for (text, start) in table {
        let told = parse(text).expect_err(text).to_string();
        assert!(told.lines().any(|line| line.starts_with(start)), "{text}\n  wanted: {start}\n  told:   {told}");
        assert!(!told.contains("hush"), "{told}");
    }
}

#[test]
fn wrong_credentials_are_told_and_never_repeated() {
    let table = [
        (
            "{ bearer_env = \"NOT_SET\" }",
            "credential.bearer_env: environment variable NOT_SET (or NOT_SET_FILE) is not set",
        ),
        ("{ bearer_env = \"sk-hush\" }", "credential.bearer_env: the name of an environment variable is wanted here"),
        ("{ bearer_env = \"BROKEN\" }", "credential.bearer_env: environment variable BROKEN holds characters"),
        ("{ bearer = \"sk-hush\" }", "credential.bearer: there is no such key; known here: basic, bearer_env"),
        ("{ basic = { username = \"a\" } }", "credential.basic.password_env: missing"),
        (
            "{ basic = { username = \"a:b\", password_env = \"TICKETS_TOKEN\" } }",
            "credential.basic.username: a user name",
        ),
        ("{ basic = { username = \"a\", password = \"hush\" } }", "credential.basic.password: there is no such key"),
        (
            "{ query = { name = \"a b\", value_env = \"MAPS_API_KEY\" } }",
            "credential.query.name: a query parameter's name",
        ),
        ("{ query = { value_env = \"MAPS_API_KEY\" } }", "credential.query.name: missing"),
        ("{ headers_env = { Host = \"MAPS_API_KEY\" } }", "credential.headers_env.Host: this header can't carry"),
        ("{ headers_env = { \"a b\" = \"MAPS_API_KEY\" } }", "credential.headers_env.\"a b\": this header can't carry"),
        (
            "{ bearer_env = \"OPENAI_API_KEY\", query = { name = \"k\", value_env = \"MAPS_API_KEY\" } }",
            "credential.bearer_env: one kind is possible",
        ),
    ];
    for (credential, wanted) in table {
        let text = format!("[targets.crm]\nbase_url = \"https://crm.example.com\"\ncredential = {credential}\n");
        let told = parse(&text).expect_err(credential).to_string();
        let start = told.lines().all(|line| line.starts_with("gateway.toml:3:"));
        assert!(start && told.contains(&format!("targets.crm.{wanted}")), "{credential}\n  told: {told}");
        assert!(!told.contains("hush"), "{told}");
    }
}

#[test]
fn several_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let text =
        "[log]\nformat = 1\ncolour = true\n[proxy]\nlisten = \"x\"\nworkers = 0\n[proxy.timeouts]\nidle = \"x\"\n";
    let ConfigError(told) = parse(text).unwrap_err();
    let lines: Vec<_> = told.iter().map(|line| line.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["2", "3", "5", "6", "8"], "{told:#?}");
}

#[test]
fn wrong_variables_are_told() {
    let table = [
        ("KEYWARD_ADMIN_TOKEN", "hush hush", "KEYWARD_ADMIN_TOKEN: only visible ASCII"),
        ("KEYWARD_ADMIN_TOKEN", "kwa_hush-hush-hush1", "KEYWARD_ADMIN_TOKEN: 20 characters at least"),
        ("KEYWARD_SEALING_KEYS_FILE", "/nowhere/keys", "KEYWARD_SEALING_KEYS_FILE: can't read /nowhere/keys"),
        ("KEYWARD_STORE_URL", "mysql://hush", "KEYWARD_STORE_URL: \"sqlite://file\" or"),
        ("KEYWARD_LOG", "keyward=loud", "KEYWARD_LOG: not a log filter"),
    ];
    for (name, value, start) in table {
        let told = Config::parse("", "g", Path::new(""), Env::from_iter([(name, value)])).unwrap_err().to_string();
        assert!(told.starts_with(start) && !told.contains("hush"), "{told}");
    }
}

#[test]
fn a_key_is_found_again_by_its_name() {
    let text = "# é\n[providers.acme]\nname = \"A\"\noauth = { pkce = \"s256\" }\n[providers.acme.capabilities.x]\nfence = [\"/\"]\n";
    for (key, place) in [
        ("providers.acme.name", Some("3:8")),
        ("providers.acme.oauth.pkce", Some("4:18")),
        ("providers.acme.oauth.token_url", Some("4:9")),
        ("providers.acme.capabilities.x.fence[0]", Some("6:9")),
        ("providers.acme.identity.url", Some("2:1")),
        ("targets.crm", None),
    ] {
        assert_eq!(place_of(text, key).as_deref(), place, "{key}");
    }
}

#[test]
fn the_environment_goes_before_the_file() {
    let env = Env::from_iter([("KEYWARD_STORE_URL", "postgres://a:b@db/x"), ("KEYWARD_LOG", "debug")]);
    let config = Config::parse("[log]\nlevel = \"warn\"", "g", Path::new(""), env).unwrap();
    assert!(matches!(config.store, StoreUrl::Postgres(url) if url.expose() == "postgres://a:b@db/x"));
    assert_eq!(config.log.level, "debug");
}

#[test]
fn paths_are_relative_to_the_file() {
    for (url, file) in [
        ("sqlite://data/keyward.db", "/srv/keyward/data/keyward.db"),
        ("sqlite:keyward.db", "/srv/keyward/keyward.db"),
        ("sqlite:///var/lib/keyward.db", "/var/lib/keyward.db"),
    ] {
        let config = parse(&format!("[store]\nurl = \"{url}\"")).unwrap();
        assert!(matches!(&config.store, StoreUrl::Sqlite(path) if path == Path::new(file)), "{:?}", config.store);
    }
}

#[test]
fn a_listener_beyond_loopback_is_possible_when_asked_for() {
    let config = parse("[admin]\nlisten = \"0.0.0.0:8081\"\ninsecure_http = true").unwrap();
    assert!(!config.admin.listen.ip().is_loopback());
}

#[test]
fn none_lifts_a_limit() {
    let config = parse("[proxy.limits]\nrequest_body = \"none\"\n[proxy.timeouts]\ntotal = \"1h\"").unwrap();
    assert_eq!(config.proxy.limits.request_body, None);
    assert_eq!(config.proxy.timeouts.total, Some(Duration::from_secs(3600)));
}

#[test]
fn a_file_asked_for_must_be_there() {
    let told = Config::load(Some(Path::new("/nowhere/gateway.toml")), Env::default()).unwrap_err().to_string();
    assert!(told.starts_with("/nowhere/gateway.toml: "), "{told}");
}

#[test]
fn the_shipped_file_is_what_an_empty_one_does() {
    let shipped = parse(SHIPPED).unwrap();
    let empty = parse("").unwrap();
    assert_eq!(format!("{shipped:?}"), format!("{empty:?}"));
}

#[test]
fn the_shipped_file_shows_every_key_and_its_examples_work() {
    let folder = tempfile::tempdir().unwrap();
    let text = switched_on(&certificate(folder.path()));
    let config = parse(&text).unwrap();
    assert_eq!(config.targets.len(), 4);
    assert!(matches!(&config.targets["openai"].credential, StaticCredential::Bearer(key) if key.expose() == "sk-1"));
    assert!(
        matches!(&config.targets["tickets"].credential, StaticCredential::Basic { password, .. } if password.expose() == "t-2")
    );
    assert!(matches!(&config.targets["search"].credential, StaticCredential::Headers(headers) if headers.len() == 1));
    assert!(matches!(&config.targets["maps"].credential, StaticCredential::Query { name, .. } if name == "key"));
    assert!(config.providers.contains_key("microsoft_365"));

    // Any target may have any of a target's keys: compare with the target's own name taken out.
    let general = |keys: BTreeSet<String>| -> BTreeSet<String> {
        let name = |key: String| match key.strip_prefix("targets.").and_then(|rest| rest.split_once('.')) {
            Some((_, rest)) => format!("targets.*.{rest}"),
            None => key,
        };
        keys.into_iter().map(name).collect()
    };
    let env = env();
    let document = Document::parse(&text, "gateway.toml").unwrap();
    file::read(&document, folder.path(), &env);
    let asked = general(document.asked());
    let shown = general(keys_of("", &text.parse().unwrap()));
    let hidden: Vec<_> = asked.difference(&shown).collect();
    assert!(hidden.is_empty(), "not in gateway.toml: {hidden:?}");
}

fn keys_of(path: &str, table: &toml::Table) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for (key, value) in table {
        let dotted = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let toml::Value::Table(inner) = value {
            keys.extend(keys_of(&dotted, inner));
        }
        keys.insert(dotted);
    }
    keys
}

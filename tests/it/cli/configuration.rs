//! `check` and `providers`: what is told about a configuration before anything is bound or made.

use std::net::TcpListener;

use super::*;

/// What a listener and a store would have left.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_good_configuration_is_told_and_nothing_is_bound_or_made() {
    let folder = tempfile::tempdir().unwrap();
    let (agents, people) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (agents, people) = (agents.local_addr().unwrap(), people.local_addr().unwrap());
    let shell = Shell::new(folder.path()).with("CRM_KEY", "hush").with("OAUTH_GITHUB_CLIENT_ID", "id");
    let shell = shell.with("OAUTH_GITHUB_CLIENT_SECRET", "hush");
    let text = format!(
        "[proxy]\nlisten = \"{agents}\"\n[admin]\nlisten = \"{people}\"\n[targets.crm]\nbase_url = \
         \"https://crm.example.com\"\ncredential = {{ bearer_env = \"CRM_KEY\" }}\n"
    );
    shell.file("gateway.toml", &text);
    let out = shell.run("check").done();
    let (first, rest) = out.split_once('\n').unwrap();
    assert_eq!(first, "The configuration is good.");
    let told = pairs(rest);
    assert_eq!((told["agents"].as_str(), told["people"].as_str()), (&*agents.to_string(), &*people.to_string()));
    assert_eq!((told["store"].as_str(), told["system targets"].as_str()), ("keyward.db", "1"));
    assert!(told["providers"].ends_with(" known, 1 configured"), "{}", told["providers"]);
    assert!(!out.contains("hush"), "{out}");
    assert_eq!(names(folder.path()), ["gateway.toml"]);

    // Found by name, by variable, and not needed at all.
    std::fs::rename(folder.path().join("gateway.toml"), folder.path().join("other.toml")).unwrap();
    assert_eq!(shell.run("check --config other.toml").done(), out);
    assert_eq!(shell.with("KEYWARD_CONFIG", "other.toml").run("check").done(), out);
    let defaults = Shell::new(folder.path()).run("check").done();
    assert!(defaults.contains("127.0.0.1:8080") && defaults.contains("127.0.0.1:8081"), "{defaults}");
}

#[test]
fn every_mistake_is_told_with_its_place_and_ends_with_64() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path());
    let target = "[targets.crm]\nbase_url = \"https://crm.example.com\"\n";
    for (text, wanted) in [
        ("[proxy]\nlisten = \"localhost\"".to_owned(), "gateway.toml:2:10: proxy.listen: not an address and port"),
        ("[proxy]\nlisten_on = 1".to_owned(), "gateway.toml:2:1: proxy.listen_on: there is no such key; known here: "),
        ("[proxi]\n".to_owned(), "gateway.toml:1:2: proxi: there is no such key; known here: "),
        ("[refresh]\nwait = \"soon\"".to_owned(), "gateway.toml:2:8: refresh.wait: not a time"),
        ("[admin\n".to_owned(), "gateway.toml:1:"),
        ("[admin]\nlisten = \"0.0.0.0:8081\"".to_owned(), "gateway.toml:2:10: admin.listen: this address is reachable"),
        (
            "[proxy.tls]\ncert = \"gateway.toml\"\nkey = \"gateway.toml\"".to_owned(),
            "gateway.toml:2:8: proxy.tls.cert: gateway.toml: holds no certificate",
        ),
        ("[admin]\ntoken = \"hush\"".to_owned(), "gateway.toml:2:1: admin.token: there is no such key"),
        (
            format!("{target}credential = {{ bearer_env = \"CRM_KEY\" }}"),
            "gateway.toml:3:29: targets.crm.credential.bearer_env: environment variable CRM_KEY (or CRM_KEY_FILE) is not set",
        ),
        (
            format!("{target}credential = {{ bearer_env = \"sk-hush\" }}"),
            "gateway.toml:3:29: targets.crm.credential.bearer_env: the name of an environment variable is wanted here",
        ),
        (format!("{target}fence = [\"me\"]"), "gateway.toml:3:9: targets.crm.fence: "),
        (
            "[targets.crm]\nbase_url = \"http://crm.example.com\"".to_owned(),
            "gateway.toml:2:12: targets.crm.base_url: ",
        ),
        (
            "[providers.github]\ncolour = 1".to_owned(),
            "gateway.toml:2:10: providers.github.colour: unknown key; known here: ",
        ),
        ("[providers.acme]\nname = \"Acme\"".to_owned(), "gateway.toml:1:1: providers.acme."),
        ("[store]\nurl = \"postgres://a:hush@db/x\"".to_owned(), "gateway.toml:2:7: store.url: a password does not"),
    ] {
        shell.file("gateway.toml", &text);
        for command in ["check", "serve", "providers"] {
            let err = shell.run(command).failed(64);
            assert!(err.lines().any(|line| line.starts_with(wanted)), "{text}\nwanted: {wanted}\ntold: {err}");
            assert!(!err.contains("hush"), "{err}");
        }
    }
    // The file is named as it was asked for, and all mistakes come at once.
    shell.file("other.toml", "[log]\nformat = 1\n[proxy]\nworkers = 0\n");
    let err = shell.run("check --config ./other.toml").failed(64);
    let starts: Vec<_> = err.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(starts, ["./other.toml:2:10", "./other.toml:4:11"], "{err}");
    shell.file(
        "other.toml",
        "[providers.github]\ncolour = 1\n[targets.crm]\nbase_url = \"https://crm.example.com\"\nfence = [\"me\"]",
    );
    let err = shell.run("check --config ./other.toml").failed(64);
    assert!(err.contains("./other.toml:2:10: providers.github.colour: "), "{err}");
    assert!(err.contains("./other.toml:5:9: targets.crm.fence: ") && !err.contains("gateway.toml"), "{err}");
    let err = shell.run("check --config nowhere.toml").failed(64);
    assert!(err.starts_with("nowhere.toml: "), "{err}");
    assert_eq!(names(folder.path()), ["gateway.toml", "other.toml"], "nothing was made");
}

#[test]
fn wrong_variables_are_told_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value, wanted) in [
        ("KEYWARD_ADMIN_TOKEN", "kwa_hush-hush-hush1", "KEYWARD_ADMIN_TOKEN: 20 characters at least"),
        ("KEYWARD_ADMIN_TOKEN", "kwa_hush hush hush hush", "KEYWARD_ADMIN_TOKEN: only visible ASCII"),
        ("KEYWARD_ADMIN_TOKEN_FILE", "nowhere", "KEYWARD_ADMIN_TOKEN_FILE: can't read nowhere"),
        ("KEYWARD_SEALING_KEYS", "hush", "KEYWARD_SEALING_KEYS: entry 1 is not of the form id:base64"),
        ("KEYWARD_SEALING_KEYS", "a:aHVzaA==", "KEYWARD_SEALING_KEYS: the key `a` is not base 64 of 32 bytes"),
        ("KEYWARD_STORE_URL", "mysql://hush", "KEYWARD_STORE_URL: "),
        (
            "KEYWARD_STORE_URL",
            "postgres://keyward:hush@127.0.0.1:1/keyward",
            "KEYWARD_SEALING_KEYS is not set: with Postgres",
        ),
        ("KEYWARD_LOG", "keyward=loud", "KEYWARD_LOG: not a log filter"),
        ("OAUTH_GITHUB_CLIENT_ID", "hush", "environment: OAUTH_GITHUB_CLIENT_SECRET"),
    ] {
        let shell = Shell::new(folder.path()).with(name, value);
        for command in ["check", "serve"] {
            let err = shell.run(command).failed(64);
            assert!(err.lines().any(|line| line.starts_with(wanted)), "{name}\nwanted: {wanted}\ntold: {err}");
            assert!(!err.contains("hush") && !err.contains("aHVza"), "{err}");
        }
    }
    let both = Shell::new(folder.path()).with("KEYWARD_ADMIN_TOKEN", ADMIN).with("KEYWARD_ADMIN_TOKEN_FILE", "f");
    assert!(both.run("check").failed(64).contains("set either KEYWARD_ADMIN_TOKEN or KEYWARD_ADMIN_TOKEN_FILE"));
    assert_eq!(names(folder.path()), Vec::<String>::new());
    // Twenty are enough.
    Shell::new(folder.path()).with("KEYWARD_ADMIN_TOKEN", "kwa_5678901234567890").run("check").done();
}

#[test]
fn providers_are_listed_for_people_and_programs() {
    let folder = tempfile::tempdir().unwrap();
    let shell =
        Shell::new(folder.path()).with("OAUTH_GITHUB_CLIENT_ID", "id").with("OAUTH_GITHUB_CLIENT_SECRET", "hush");
    let out = shell.run("providers").done();
    assert!(!out.contains("hush"));
    let rows = table(&out);
    let json = shell.run("providers --json").json();
    let listed = json.as_array().unwrap();
    assert_eq!(rows.len(), listed.len());
    for (row, listed) in rows.iter().zip(listed) {
        assert_eq!(row["ID"], listed["id"].as_str().unwrap());
        assert_eq!(row["NAME"], listed["name"].as_str().unwrap());
        assert_eq!(row["CLIENT ID FROM"], listed["client_id_variable"].as_str().unwrap());
        assert_eq!(row["CONFIGURED"], if listed["id"] == "github" { "yes" } else { "no" });
        assert_eq!(listed["configured"], listed["id"] == "github");
        let capabilities: Vec<_> =
            listed["capabilities"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        assert_eq!(row["CAPABILITIES"], capabilities.join(", "));
    }
    let ids: Vec<_> = listed.iter().map(|provider| provider["id"].as_str().unwrap()).collect();
    for id in ["github", "google", "microsoft_365", "sandbox", "slack"] {
        assert!(ids.contains(&id), "{ids:?}");
    }
}

#[test]
fn the_api_is_printed_and_a_reader_may_leave() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path());
    assert_eq!(shell.run("openapi").done(), keyward::admin::openapi_json());
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    command.arg("openapi").env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), Vec::new()));
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path());
    for words in [
        "serve --port 80",
        "nothing",
        "key",
        "key create",
        "key create a --expires-in soon",
        "key create a --expires-in 1d --expires-at 2030-01-01T00:00:00Z",
        "key create a --allow-ip ten",
        "grant set key_1 tools --access admin",
        "target create a",
        "target create a --base-url https://example.com --bearer-env A --query-env k=B",
        "target create a --base-url https://example.com --basic-user ada",
        "target create a --base-url https://example.com --header-env X",
        "audit --status 99",
        "audit --since soon",
        "account connect sandbox --preset admin",
        "key list --url ftp://127.0.0.1",
        "key list --url http://ada:hush@127.0.0.1",
        "dev --admin 0.0.0.0:8081",
    ] {
        let err = shell.run(words).failed(2);
        assert!(err.contains("Usage:") || err.contains("For more information, try '--help'"), "{words}: {err}");
    }
    for words in ["--help", "key --help", "serve --help", "--version"] {
        assert!(!shell.run(words).done().is_empty(), "{words}");
    }
}

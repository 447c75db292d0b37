//! The catalog as a whole: what comes with the binary, what `gateway.toml` may change, what each mistake says.

use http::Method;
use toml::Table;

use super::load::{load, load_from};
use super::*;
use crate::secret::Secret;

fn table(text: &str) -> Table {
    text.parse().unwrap()
}

fn load_own(text: &str) -> Result<BTreeMap<String, Arc<Provider>>, Vec<String>> {
    load_with(text, &Env::default())
}

fn load_with(text: &str, env: &Env) -> Result<BTreeMap<String, Arc<Provider>>, Vec<String>> {
    load(&table(text), env).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn no_captures() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// A whole provider, small.
const ACME: &str = r#"
    [acme]
    name = "Acme"
    docs = "https://acme.example.com/docs"
    [acme.oauth]
    authorize_url = "https://{region}.acme.example.com/authorize"
    token_url = "https://acme.example.com/token"
    refresh_url = "https://acme.example.com/refresh"
    revoke_url = "https://acme.example.com/revoke"
    issuer = "https://acme.example.com"
    client_auth = "json"
    pkce = "none"
    scopes = ["a", "b"]
    scope_separator = ","
    scope_param = "user_scope"
    authorize_params = { prompt = "consent" }
    rotation = "single_use"
    grace = "60s"
    access_ttl = "2h"
    fatal_errors = ["gone"]
    [acme.oauth.fields]
    access_token = "/data/token"
    error = "/error"
    [acme.identity]
    url = "https://acme.example.com/me?fields=id"
    subject = "/id"
    email = ["/mail"]
    name = "/name"
    [acme.inputs.region]
    label = "Region"
    default = "eu"
    pattern = "^[a-z]{2}$"
    [acme.captured]
    realm = "callback:/realmId"
    instance = "token:/instance_url"
    [acme.inject]
    header = "X-Acme-Token"
    headers = { "X-Acme-Version" = "2" }
    [acme.capabilities.notes]
    name = "Notes"
    base_url = "{instance}/v1/{realm}"
    scopes.read = ["b", "notes"]
    scopes.write = ["notes.write"]
    fence = ["/notes/**", "POST /search"]
    read = ["GET /**", "POST /search"]
    ask = ["DELETE /**"]
    hint = "Notes."
    examples = ["GET /notes?limit=5", "POST /search"]
"#;

/// [`ACME`] with one line put in place of another.
fn acme(old: &str, new: &str) -> Vec<String> {
    assert!(ACME.contains(old), "{old}");
    load_own(&ACME.replacen(old, new, 1)).expect_err(new)
}

#[test]
fn every_embedded_provider_loads() {
    let catalog = Catalog::load(&Table::new(), &Env::default()).unwrap();
    let ids: Vec<_> = catalog.iter().map(|provider| provider.id.as_str()).collect();
    assert_eq!(ids, ["github", "google", "microsoft_365", "sandbox", "slack"]);
    for provider in catalog.iter() {
        assert!(provider.client.is_none());
        assert!(provider.inject.prepare(&Secret::new("t".into())).is_ok());
        for capability in provider.capabilities.values() {
            Base::parse(&provider.fill(&capability.base_url, &no_captures()).unwrap()).unwrap();
            assert!(capability.hint.is_some(), "{} {}", provider.id, capability.id);
            assert!(!capability.examples.is_empty() && !capability.ask.is_empty());
            for batch in ["/$batch", "/v1.0/$batch", "/batch/gmail/v1", "/batch/drive/v3", "/graphql", "/subscriptions"]
            {
                assert!(!capability.fence.matches(&Method::POST, batch), "{} {batch}", capability.id);
            }
        }
    }
}

#[test]
fn embedded_presets_and_fences_hold() {
    let catalog = Catalog::load(&Table::new(), &Env::default()).unwrap();
    let microsoft = catalog.provider("microsoft_365").unwrap();
    assert_eq!(
        microsoft.scopes(&["calendar".into()], Preset::Read),
        ["offline_access", "User.Read", "Calendars.Read", "Calendars.Read.Shared"]
    );
    let both = microsoft.scopes(&["mail".into(), "calendar".into(), "mail".into(), "nope".into()], Preset::Write);
    assert_eq!(both.len(), 12);
    assert_eq!(
        microsoft.fill(&microsoft.oauth.token_url, &no_captures()).unwrap(),
        "https://login.microsoftonline.com/common/oauth2/v2.0/token"
    );
    let mail = &microsoft.capabilities["mail"];
    assert!(mail.fence.matches(&Method::GET, "/users/team@example.com/messages/1"));
    assert!(!mail.fence.matches(&Method::GET, "/me/events"));
    assert!(!mail.fence.matches(&Method::POST, "/me/SendMail"));
    let slack = &catalog.provider("slack").unwrap().capabilities["messages"];
    assert!(slack.read.matches(&Method::POST, "/conversations.history"));
    assert!(!slack.read.matches(&Method::GET, "/chat.postMessage"));
    let calendar = &catalog.provider("google").unwrap().capabilities["calendar"];
    assert!(calendar.read.matches(&Method::POST, "/calendar/v3/freeBusy"));
    assert!(!calendar.fence.matches(&Method::POST, "/calendar/v3/calendars/primary/events/watch"));
}

#[test]
fn a_whole_own_provider_is_read_as_written() {
    let providers = load_own(ACME).unwrap();
    let acme = &providers["acme"];
    assert_eq!((acme.id.as_str(), acme.name.as_str(), acme.env.as_str()), ("acme", "Acme", "ACME"));
    assert_eq!(acme.oauth.client_auth, ClientAuth::Json);
    assert_eq!((acme.oauth.pkce, acme.oauth.rotation), (Pkce::None, Rotation::SingleUse));
    assert_eq!((acme.oauth.grace.as_secs(), acme.oauth.access_ttl.as_secs()), (60, 7200));
    assert_eq!((acme.oauth.scope_separator.as_str(), acme.oauth.scope_param.as_str()), (",", "user_scope"));
    assert_eq!(acme.oauth.fields.access_token.as_deref(), Some("/data/token"));
    assert_eq!(acme.captured["realm"], Captured::Callback("/realmId".into()));
    let InjectPlace::Header { name, template } = &acme.inject.place else { panic!("header expected") };
    assert_eq!((name.as_str(), template.as_str()), ("X-Acme-Token", "{token}"));
    assert_eq!(acme.scopes(&["notes".into()], Preset::Read), ["a", "b", "notes"]);
    assert_eq!(acme.scopes(&["notes".into()], Preset::Write), ["a", "b", "notes", "notes.write"]);
    assert_eq!(providers.len(), 6);
}

#[test]
fn filling_takes_captures_then_defaults_and_refuses_what_would_change_the_host() {
    let providers = load_own(ACME).unwrap();
    let acme = &providers["acme"];
    let base = &acme.capabilities["notes"].base_url;
    let with = |realm: &str, instance: &str| {
        let captures = [("realm", realm), ("instance", instance)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        acme.fill(base, &captures.into())
    };
    assert_eq!(with("42", "https://eu.acme.example.com").unwrap(), "https://eu.acme.example.com/v1/42");
    for realm in ["", "..", "a/b", "a?b", "a#b", "a%2f", "a@b", "ä"] {
        assert!(with(realm, "https://eu.acme.example.com").is_err(), "{realm:?}");
    }
    for instance in [
        "eu.acme.example.com",
        "http://acme.example.com",
        "http://127.0.0.1:1",
        "https://u@a.example",
        "https://a.example/x",
    ] {
        assert!(with("42", instance).is_err(), "{instance:?}");
    }
    assert_eq!(acme.fill(base, &no_captures()), Err(FillError::Missing("instance".into())));

    let url = &acme.oauth.authorize_url;
    assert_eq!(acme.fill(url, &no_captures()).unwrap(), "https://eu.acme.example.com/authorize");
    let us = BTreeMap::from([("region".to_owned(), "us".to_owned())]);
    assert_eq!(acme.fill(url, &us).unwrap(), "https://us.acme.example.com/authorize");
    let bad = BTreeMap::from([("region".to_owned(), "evil.example/".to_owned())]);
    let error = acme.fill(url, &bad).unwrap_err().to_string();
    assert_eq!(error, "the value of `region` must match ^[a-z]{2}$");
    assert!(acme.check_input("region", "us").is_ok());
    assert!(acme.check_input("region", "usa").is_err());
    assert!(acme.check_input("realm", "us").is_err());
}

#[test]
fn missing_scopes_leave_out_what_is_never_listed() {
    let providers = load_own("").unwrap();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let microsoft = &providers["microsoft_365"];
    let missing = microsoft.missing_scopes(
        &words("offline_access User.Read Mail.Read Mail.Send"),
        &words("user.read https://graph.microsoft.com/Mail.Read xMail.Send"),
    );
    assert_eq!(missing, ["Mail.Send"]);
}

#[test]
fn an_override_changes_one_field_and_leaves_the_rest() {
    let providers = load_own(
        "[sandbox.inputs.origin]\ndefault = \"http://127.0.0.1:9999\"\n[microsoft_365.capabilities.mail]\nscopes.read = [\"Mail.Read\"]",
    )
    .unwrap();
    let sandbox = &providers["sandbox"];
    assert_eq!(sandbox.fill(&sandbox.oauth.token_url, &no_captures()).unwrap(), "http://127.0.0.1:9999/oauth/token");
    assert_eq!(sandbox.inputs["origin"].label, "Sandbox address");
    let mail = &providers["microsoft_365"].capabilities["mail"];
    assert_eq!(mail.scopes_read, ["Mail.Read"]);
    assert!(mail.scopes_write.contains(&"Mail.Send".to_owned()));
    assert!(mail.fence.matches(&Method::GET, "/me/messages"));
}

#[test]
fn narrowing_a_fence_drops_our_examples_outside_it() {
    let providers = load_own("[sandbox.capabilities.mail]\nfence = [\"GET /me/messages/**\"]").unwrap();
    assert_eq!(providers["sandbox"].capabilities["mail"].examples, ["GET /me/messages?$top=5"]);
}

#[test]
fn mistakes_name_the_file_that_made_them() {
    let own = "[sandbox]\nname = \"\"\n[sandbox.oauth]\ntoken_uri = \"x\"\n[sandbox.capabilities.tasks]\nname = \"Tasks\"\nbase_url = \"{origin}/tasks\"";
    let errors = load_own(own).unwrap_err();
    let unknown = "gateway.toml: providers.sandbox.oauth.token_uri: unknown key; known here: access_ttl,";
    assert!(errors.iter().any(|error| error.starts_with(unknown)), "{errors:?}");
    assert!(errors.contains(&"gateway.toml: providers.sandbox.name: must not be empty".to_owned()), "{errors:?}");
    assert!(
        errors.iter().any(|e| e.starts_with("gateway.toml: providers.sandbox.capabilities.tasks.fence:")),
        "{errors:?}"
    );
    assert_eq!(errors.len(), 3, "{errors:?}");

    // The embedded file is named for what is its own.
    let files = [("odd.toml", "id = \"other\"\nname = \"Odd\"\ncolour = \"red\"")];
    let errors: Vec<String> =
        load_from(&files, &Table::new(), &Env::default()).unwrap_err().iter().map(ToString::to_string).collect();
    for expected in [
        "odd.toml: id: must be `odd`, the name it is filed under",
        "odd.toml: oauth.authorize_url: is missing",
        "odd.toml: oauth.token_url: is missing",
        "odd.toml: identity: is missing; it says whose account it is",
        "odd.toml: capabilities: a provider needs at least one capability",
    ] {
        assert!(errors.contains(&expected.to_owned()), "{expected} in {errors:?}");
    }
    assert!(errors.iter().any(|error| error.starts_with("odd.toml: colour: unknown key")), "{errors:?}");
    let broken = load_from(&[("odd.toml", "id = ")], &Table::new(), &Env::default()).unwrap_err();
    assert_eq!((broken[0].file.as_str(), broken.len()), ("odd.toml", 1));
}

#[test]
fn every_mistake_is_found_and_names_its_key() {
    #[rustfmt::skip]
    let table = [
        // (line, put in its place, key, part of the problem)
        ("[acme]\n", "[acme]\nid = \"acne\"\n", "id", "must be `acme`"),
        ("name = \"Acme\"", "name = 5", "name", "must be a text, not a number"),
        ("name = \"Acme\"", "", "name", "is missing"),
        ("name = \"Acme\"", "name = \"Acme\"\nenv = \"a-b\"", "env", "A-Z"),
        ("name = \"Acme\"", "name = \"Acme\"\nicon = \"x\"", "icon", "unknown key"),
        ("https://acme.example.com/docs", "docs", "docs", "starts with https://"),
        ("https://acme.example.com/token", "http://acme.example.com/token", "oauth.token_url", "must be https"),
        ("https://acme.example.com/token", "https://acme.example.com/{x}", "oauth.token_url", "`{x}` is neither an input nor"),
        ("https://acme.example.com/token", "https://acme.example.com/{", "oauth.token_url", "a `{` has no `}`"),
        ("https://acme.example.com/token", "https://{realm}/token", "oauth.token_url", "must not decide which host"),
        ("https://acme.example.com/token", "{realm}/token", "oauth.token_url", "must not decide which host"),
        ("https://acme.example.com/token", "{instance}/token", "oauth.token_url", "later than this URL is needed"),
        ("https://{region}.acme.example.com/authorize", "https://acme.example.com/{realm}", "oauth.authorize_url", "later than this URL"),
        ("https://acme.example.com/refresh", "https://a@acme.example.com", "oauth.refresh_url", "user or password"),
        ("https://acme.example.com/revoke", "https://acme.example.com/x#y", "oauth.revoke_url", "fragment"),
        ("issuer = \"https://acme.example.com\"", "issuer = \"acme\"", "oauth.issuer", "starts with https://"),
        ("\"json\"", "\"private_key_jwt\"", "oauth.client_auth", "not available yet"),
        ("\"json\"", "\"both\"", "oauth.client_auth", "possible: basic, post, json, none"),
        ("pkce = \"none\"", "pkce = \"plain\"", "oauth.pkce", "possible: s256, none"),
        ("\"single_use\"", "\"often\"", "oauth.rotation", "possible: none, rolling"),
        ("grace = \"60s\"", "grace = 60", "oauth.grace", "must be a text, not a number"),
        ("access_ttl = \"2h\"", "access_ttl = \"2 h\"", "oauth.access_ttl", "is not a time"),
        ("access_ttl = \"2h\"", "access_ttl = \"0s\"", "oauth.access_ttl", "longer than nothing"),
        ("scope_separator = \",\"", "scope_separator = \"ab\"", "oauth.scope_separator", "can't be between scopes"),
        ("scopes = [\"a\", \"b\"]", "scopes = \"a b\"", "oauth.scopes", "must be a list of texts"),
        ("scopes = [\"a\", \"b\"]", "scopes = [\"a\", \"b c\"]", "oauth.scopes[1]", "is not one scope"),
        ("prompt = \"consent\"", "state = \"x\"", "oauth.authorize_params", "set by the connect flow"),
        ("prompt = \"consent\"", "user_scope = \"x\"", "oauth.authorize_params", "set by the connect flow"),
        ("prompt = \"consent\"", "prompt = 1", "oauth.authorize_params.prompt", "must be a text"),
        ("\"/data/token\"", "\"data.token\"", "oauth.fields.access_token", "is not a JSON pointer"),
        ("error = \"/error\"", "err = \"/error\"", "oauth.fields.err", "unknown key"),
        ("subject = \"/id\"", "subject = \"id\"", "identity.subject", "is not a JSON pointer"),
        ("subject = \"/id\"", "", "identity.subject", "is missing"),
        ("email = [\"/mail\"]", "email = [\"/mail\", \"/~2\"]", "identity.email[1]", "is not a JSON pointer"),
        ("/me?fields=id", "/{unknown}", "identity.url", "neither an input nor"),
        ("[acme.inputs.region]", "[acme.inputs.Region]", "inputs.Region.label", "can't be an input's name"),
        ("label = \"Region\"", "", "inputs.region.label", "is missing"),
        ("pattern = \"^[a-z]{2}$\"", "pattern = \"[\"", "inputs.region.pattern", "not a regular expression"),
        ("default = \"eu\"", "default = \"europe\"", "inputs.region.default", "does not match"),
        ("https://{region}.acme.example.com/authorize", "https://{region}.com/authorize\"\nx = \"", "oauth.x", "unknown key"),
        ("callback:/realmId", "cookie:/realmId", "captured.realm", "must be callback:, token: or identity:"),
        ("callback:/realmId", "callback:realmId", "captured.realm", "is not a JSON pointer"),
        ("realm = \"callback", "region = \"callback", "captured.region", "is an input too"),
        ("header = \"X-Acme-Token\"", "json_body = \"token\"", "inject.json_body", "not available for OAuth providers yet"),
        ("header = \"X-Acme-Token\"", "basic = \"x\"", "inject.basic", "not available for OAuth providers yet"),
        ("header = \"X-Acme-Token\"", "header = \"Host\"", "inject.header", "can't be set here"),
        ("header = \"X-Acme-Token\"", "header = \"a b\"", "inject.header", "can't be set here"),
        ("header = \"X-Acme-Token\"", "header = \"X\"\nvalue = \"Token\"", "inject.value", "holds `{token}` once"),
        ("header = \"X-Acme-Token\"", "header = \"X\"\nquery = \"t\"", "inject.query", "not both"),
        ("header = \"X-Acme-Token\"", "header = \"x-acme-version\"", "inject.headers", "already holds the token"),
        ("\"X-Acme-Version\" = \"2\"", "\"X-Acme-Version\" = \"{token}\"", "inject.headers", "plain header value"),
        ("[acme.capabilities.notes]", "[acme.capabilities.No_tes]", "capabilities.No_tes.name", "is not a capability's id"),
        ("name = \"Notes\"", "", "capabilities.notes.name", "is missing"),
        ("{instance}/v1/{realm}", "http://acme.example.com", "capabilities.notes.base_url", "must be https"),
        ("{instance}/v1/{realm}", "https://acme.example.com?x=1", "capabilities.notes.base_url", "can't have a query"),
        ("{instance}/v1/{realm}", "https://{realm}/v1", "capabilities.notes.base_url", "must not decide which host"),
        ("{instance}/v1/{realm}", "{instance}.evil", "capabilities.notes.base_url", "a `/` must follow"),
        ("scopes.read = [\"b\", \"notes\"]", "scopes.reed = []", "capabilities.notes.scopes.reed", "unknown key"),
        ("fence = [\"/notes/**\", \"POST /search\"]", "fence = []", "capabilities.notes.fence", "at least one pattern"),
        ("\"POST /search\"]\n    read", "\"POST search\"]\n    read", "capabilities.notes.fence[1]", "has no path"),
        ("read = [\"GET /**\"", "read = [\"GET **\"", "capabilities.notes.read[0]", "has no path"),
        ("ask = [\"DELETE /**\"]", "ask = [\"/**/x\"]", "capabilities.notes.ask[0]", "somewhere else"),
        ("\"GET /notes?limit=5\"", "\"GET /other\"", "capabilities.notes.examples[0]", "outside the capability's fence"),
        ("\"GET /notes?limit=5\"", "\"/notes\"", "capabilities.notes.examples[0]", "must be a method, one space and a path"),
        ("\"GET /notes?limit=5\"", "\"\"", "capabilities.notes.examples[0]", "must not be empty"),
        ("hint = \"Notes.\"", "hints = \"Notes.\"", "capabilities.notes.hints", "unknown key"),
    ];
    for (old, new, key, problem) in table {
        let errors = acme(old, new);
        let start = format!("gateway.toml: providers.acme.{key}: ");
        assert!(
            errors.iter().any(|error| error.starts_with(&start) && error.contains(problem)),
            "{new}: expected {key}: {problem} in {errors:#?}"
        );
    }
}

#[test]
fn ids_and_shapes_of_whole_tables_are_checked() {
    let errors = load_own(&ACME.replace("[acme", "[Ac-me")).unwrap_err();
    assert!(errors.iter().any(|e| e.contains("providers.Ac-me.id: `Ac-me` is not a provider's id")), "{errors:?}");
    assert_eq!(
        load_own("acme = 1").unwrap_err(),
        ["gateway.toml: providers.acme: must be a table with a provider's keys"]
    );
    let errors = load_own("[sandbox]\noauth = 1\ncapabilities = { mail = 2 }").unwrap_err();
    assert!(
        errors.iter().any(|e| e.starts_with("gateway.toml: providers.sandbox.oauth: must be a table")),
        "{errors:?}"
    );
    assert!(
        errors.iter().any(|e| e.starts_with("gateway.toml: providers.sandbox.capabilities.mail: must be a table")),
        "{errors:?}"
    );
    let open = ACME.replace("pattern = \"^[a-z]{2}$\"", "").replace("{region}.acme.example.com", "{region}");
    let errors = load_own(&open).unwrap_err();
    assert!(errors.iter().any(|e| e.contains("oauth.authorize_url: `{region}` decides which host")), "{errors:?}");
    let elsewhere = "[sandbox.inputs.origin]\ndefault = \"http://sandbox.example.com\"\npattern = \".*\"";
    let errors = load_own(elsewhere).unwrap_err();
    assert!(errors.iter().any(|e| e.contains("oauth.token_url") && e.contains("must be https")), "{errors:?}");
}

#[test]
fn client_credentials_come_from_the_environment_alone() {
    let env = Env::from_iter([("OAUTH_ACME_CLIENT_ID", "id"), ("OAUTH_ACME_CLIENT_SECRET", "hush")]);
    let providers = load_with(ACME, &env).unwrap();
    let client = providers["acme"].client.as_ref().unwrap();
    assert_eq!((client.id.as_str(), client.secret.as_ref().unwrap().expose().as_str()), ("id", "hush"));
    assert!(!format!("{:?}", providers["acme"]).contains("hush"));
    assert!(providers["google"].client.is_none());

    let errors = load_own("[google]\nclient_secret = \"hush\"\nclient_id = \"id\"").unwrap_err();
    assert_eq!(errors.len(), 2);
    assert!(errors.iter().all(|e| e.contains("unknown key") && !e.contains("hush")), "{errors:?}");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from-file\n").unwrap();
    let path = file.path().to_str().unwrap();
    let env = Env::from_iter([("OAUTH_ACME_CLIENT_ID", "id"), ("OAUTH_ACME_CLIENT_SECRET_FILE", path)]);
    let providers = load_with(ACME, &env).unwrap();
    assert_eq!(providers["acme"].client.as_ref().unwrap().secret.as_ref().unwrap().expose(), "from-file");
}

#[test]
fn half_an_app_names_the_missing_variable() {
    let id = Env::from_iter([("OAUTH_ACME_CLIENT_ID", "id")]);
    let errors = load_with(ACME, &id).unwrap_err();
    assert!(errors[0].starts_with("environment: OAUTH_ACME_CLIENT_SECRET: is not set"), "{errors:?}");
    let public = load_with(&ACME.replace("\"json\"", "\"none\""), &id).unwrap();
    assert!(public["acme"].client.as_ref().unwrap().secret.is_none());

    let secret = Env::from_iter([("OAUTH_ACME_CLIENT_SECRET", "hush")]);
    let errors = load_with(ACME, &secret).unwrap_err();
    assert!(errors[0].starts_with("environment: OAUTH_ACME_CLIENT_ID: is not set"), "{errors:?}");
    assert!(!errors[0].contains("hush"));

    let lost = Env::from_iter([("OAUTH_ACME_CLIENT_ID", "id"), ("OAUTH_ACME_CLIENT_SECRET_FILE", "/nowhere/secret")]);
    let errors = load_with(ACME, &lost).unwrap_err();
    assert!(errors[0].starts_with("environment: OAUTH_ACME_CLIENT_SECRET_FILE: can't read"), "{errors:?}");
}

#[test]
fn several_mistakes_come_together() {
    let own = ACME
        .replace("\"json\"", "\"x\"")
        .replace("\"single_use\"", "\"y\"")
        .replace("subject = \"/id\"", "subject = \"z\"");
    let errors = load_with(&own, &Env::from_iter([("OAUTH_SLACK_CLIENT_ID", "id")])).unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
}

#[test]
fn the_examples_of_the_documentation_load() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/providers.md")).unwrap();
    let blocks: Vec<&str> = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 4);
    for block in blocks {
        let file = table(block);
        let providers = file["providers"].as_table().unwrap();
        if let Err(errors) = load(providers, &Env::default()) {
            panic!("{block}\n{errors:#?}");
        }
    }
}

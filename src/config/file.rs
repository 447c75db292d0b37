//! `gateway.toml` as written: where each key stands, its default, and the checks that turn it into a [`Config`].

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::de::value::StrDeserializer;
use tracing_subscriber::EnvFilter;
use url::Url;

use crate::secret::Secret;

use super::document::{Document, Section};
use super::units::{parse_duration, parse_size};
use super::{
    Admin, Audit, Config, Egress, Env, EnvError, Limits, Log, LogFormat, OnFull, Proxy, RateLimit, Refresh, Stopping,
    StoreUrl, Timeouts, TlsFiles,
};
use super::{rate, targets};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Everything that is wrong, one line each, with file, line and key.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

pub(super) fn load(path: Option<&Path>, env: Env) -> Result<Config, ConfigError> {
    let usual = Path::new("gateway.toml");
    let path = match path {
        Some(path) => path,
        None if usual.exists() => usual,
        None => return parse("", "gateway.toml", Path::new(""), env),
    };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|cause| ConfigError(vec![format!("{name}: {cause}")]))?;
    parse(&text, &name, path.parent().unwrap_or(Path::new("")), env)
}

pub(super) fn parse(text: &str, name: &str, folder: &Path, env: Env) -> Result<Config, ConfigError> {
    let document = Document::parse(text, name).map_err(ConfigError)?;
    let (mut config, surroundings) = read(&document, folder, &env);
    let problems = [document.problems(), surroundings].concat();
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    // The catalog wants plain, owned values; this text has just been read without a mistake.
    let mut plain = text.parse::<toml::Table>().map_err(|error| ConfigError(vec![error.message().to_owned()]))?;
    if let Some(toml::Value::Table(providers)) = plain.remove("providers") {
        config.providers = providers;
    }
    config.env = env;
    Ok(config)
}

/// Everything but `providers` and `env`, and what is wrong with the environment. Mistakes of the file are left in the
/// document; the configuration counts only when there are none.
pub(super) fn read(document: &Document<'_>, folder: &Path, env: &Env) -> (Config, Vec<String>) {
    let mut around = Around { folder, env, problems: Vec::new() };
    let root = document.root();
    let (store, max_stale) = store(root.section("store"), &mut around);
    let spill = match &store {
        StoreUrl::Sqlite(path) => path.with_extension("spill"),
        StoreUrl::Postgres(_) => folder.join("keyward.spill"),
    };
    let mut config = Config {
        proxy: proxy(root.section("proxy"), &around),
        admin: admin(root.section("admin"), &mut around),
        store,
        spill,
        max_stale,
        refresh: refresh(root.section("refresh")),
        egress: egress(root.section("egress"), &around),
        audit: audit(root.section("audit")),
        shutdown: stopping(root.section("shutdown")),
        log: log(root.section("log"), &mut around),
        targets: targets::read(&root.section("targets"), &around),
        providers: toml::Table::new(),
        sealing_keys: around.secret("KEYWARD_SEALING_KEYS"),
        env: Env::default(),
    };
    if config.proxy.listen == config.admin.listen && config.admin.listen.port() != 0 {
        root.section("admin").refuse("listen", "the agents' listener ([proxy] listen) has this address already");
    }
    if let Some(ca) = &config.egress.ca {
        for tls in config.targets.values_mut().filter_map(|target| target.tls.as_mut()) {
            tls.authorities.push(ca.clone());
        }
    }
    // Only that each is a table: what is in it is the catalog's to judge.
    root.section("providers").sections();
    root.finish();
    (config, around.problems)
}

/// What the values of the file are read against.
pub(super) struct Around<'a> {
    pub(super) folder: &'a Path,
    pub(super) env: &'a Env,
    /// What is wrong with the environment; it has no line.
    problems: Vec<String>,
}

impl Around<'_> {
    fn secret(&mut self, name: &str) -> Option<Secret<String>> {
        self.env.secret(name).unwrap_or_else(|error: EnvError| {
            self.problems.push(error.to_string());
            None
        })
    }
}

fn proxy(section: Section<'_>, around: &Around<'_>) -> Proxy {
    let limits = section.section("limits");
    let timeouts = section.section("timeouts");
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let proxy = Proxy {
        listen: listen(&section, 8080),
        public_url: section.text("public_url", origin),
        tls: tls(&section, around),
        workers: section.number("workers", 1..=1024).unwrap_or_else(cores),
        limits: Limits {
            // hyper can't be given less than 8 KiB for a head.
            head: size(&limits, "head", 8 << 10..=1 << 20).unwrap_or(32 << 10),
            headers: limits.number("headers", 10..=1000).unwrap_or(100),
            request_body: limits.text("request_body", or_none(parse_size)).unwrap_or(Some(1 << 30)),
            request_body_rate: limits.text("request_body_rate", or_none(parse_size)).unwrap_or(Some(100)),
            connections: limits.number("connections", 1..=1_000_000).unwrap_or(10_000),
            // Fewer than the audit trail has places for, or a full load would wait there instead of being refused.
            requests: limits.number("requests", 1..=16_000).unwrap_or(10_000),
            per_key: per_key(limits.section("per_key")),
        },
        timeouts: Timeouts {
            connect: wait(&timeouts, "connect", 5 * SECOND),
            handshake: wait(&timeouts, "handshake", 10 * SECOND),
            head: wait(&timeouts, "head", 10 * SECOND),
            idle: wait(&timeouts, "idle", 60 * SECOND),
            total: timeouts.text("total", or_none(positive)).unwrap_or(None),
            queue: wait(&timeouts, "queue", 5 * SECOND),
        },
    };
    limits.finish();
    timeouts.finish();
    section.finish();
    proxy
}

fn per_key(section: Section<'_>) -> Option<RateLimit> {
    let number = |key: &str, range: RangeInclusive<u32>| {
        let read = section.number(key, *range.start() as usize..=*range.end() as usize);
        read.and_then(|number| u32::try_from(number).ok())
    };
    let (requests, concurrent) = (number("requests", rate::REQUESTS), number("concurrent", rate::CONCURRENT));
    let per = section.text("per", rate::parse_per);
    if section.has("per") && !section.has("requests") {
        section.refuse("per", "says nothing without requests");
    }
    section.finish();
    RateLimit::new(requests, per, concurrent).ok()
}

fn admin(section: Section<'_>, around: &mut Around<'_>) -> Admin {
    let admin = Admin {
        listen: listen(&section, 8081),
        public_url: section.text("public_url", origin),
        tls: tls(&section, around),
        insecure_http: section.flag("insecure_http").unwrap_or(false),
        token: around.secret("KEYWARD_ADMIN_TOKEN"),
    };
    if !admin.listen.ip().is_loopback() && !admin.insecure_http && !section.has("tls") {
        section.refuse(
            "listen",
            "this address is reachable from other machines, and the listener speaks plain HTTP: give it a certificate \
             under [admin.tls], bind it to 127.0.0.1 behind a TLS proxy, or set insecure_http = true if the network in \
             between is yours",
        );
    }
    if let Some(problem) = admin.token.as_ref().and_then(|token| token_problem(token.expose())) {
        around.problems.push(format!("KEYWARD_ADMIN_TOKEN: {problem}"));
    }
    section.finish();
    admin
}

/// An admin token opens everything and travels in an `Authorization` header.
fn token_problem(token: &str) -> Option<&'static str> {
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("only visible ASCII characters without spaces are possible")
    } else if token.len() < 20 {
        Some("20 characters at least; `openssl rand -base64 32` makes a good one")
    } else {
        None
    }
}

fn store(section: Section<'_>, around: &mut Around<'_>) -> (StoreUrl, Duration) {
    let folder = around.folder;
    let written = section.text("url", |text| match store_url(text, folder)? {
        url if url.has_password() => {
            Err("a password does not belong in this file: give the whole URL in the environment variable \
                 KEYWARD_STORE_URL (or, as a file's path, KEYWARD_STORE_URL_FILE)"
                .to_owned())
        }
        url => Ok(url),
    });
    let max_stale = wait(&section, "max_stale", 30 * SECOND);
    section.finish();
    let given = match around.secret("KEYWARD_STORE_URL").map(|url| store_url(url.expose(), folder)) {
        Some(Ok(url)) => Some(url),
        Some(Err(problem)) => {
            around.problems.push(format!("KEYWARD_STORE_URL: {problem}"));
            None
        }
        None => None,
    };
    (given.or(written).unwrap_or_else(|| StoreUrl::Sqlite(folder.join("keyward.db"))), max_stale)
}

/// Messages never repeat the URL: it may hold a password.
pub(super) fn store_url(text: &str, folder: &Path) -> Result<StoreUrl, String> {
    let file = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:"));
    match file {
        Some(":memory:") => return Err("a store in memory would lose every account: name a file".into()),
        Some(file) if file.is_empty() || file.contains('?') => {
            return Err("a file is wanted, without parameters: \"sqlite://keyward.db\"".into());
        }
        Some(file) => return Ok(StoreUrl::Sqlite(folder.join(file))),
        None => {}
    }
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "postgres" | "postgresql"));
    url.map(|_| StoreUrl::Postgres(Secret::new(text.to_owned())))
        .ok_or_else(|| "\"sqlite://file\" or \"postgres://user@host/database\" is wanted".to_owned())
}

pub(super) fn has_password(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password"))
}

fn refresh(section: Section<'_>) -> Refresh {
    let refresh = Refresh {
        before_expiry: wait(&section, "before_expiry", 300 * SECOND),
        wait: wait(&section, "wait", 10 * SECOND),
        timeout: wait(&section, "timeout", 15 * SECOND),
        per_provider: section.number("per_provider", 1..=1000).unwrap_or(20),
    };
    section.finish();
    refresh
}

fn egress(section: Section<'_>, around: &Around<'_>) -> Egress {
    let egress = Egress {
        allow: section.texts("allow", range).unwrap_or_default(),
        ca: section.text("ca", |text| certificates(around.folder.join(text))),
    };
    section.finish();
    egress
}

fn audit(section: Section<'_>) -> Audit {
    let audit = Audit {
        retention: section
            .text("retention", |text| match parse_duration(text)? {
                span if span < DAY => Err("a day (\"1d\") is the least".to_owned()),
                span => Ok(span),
            })
            .unwrap_or(90 * DAY),
        on_full: section.text("on_full", word::<OnFull>).unwrap_or(OnFull::Refuse),
    };
    section.finish();
    audit
}

fn stopping(section: Section<'_>) -> Stopping {
    let stopping = Stopping {
        pause: section.text("pause", parse_duration).unwrap_or(Duration::ZERO),
        deadline: section.text("deadline", parse_duration).unwrap_or(30 * SECOND),
    };
    section.finish();
    stopping
}

fn log(section: Section<'_>, around: &mut Around<'_>) -> Log {
    let filter = |text: &str| match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(cause) => Err(format!("not a log filter such as \"info\" or \"keyward=debug\": {cause}")),
    };
    let format = section.text("format", word::<LogFormat>).unwrap_or(LogFormat::Text);
    let written = section.text("level", filter);
    section.finish();
    let asked = around.env.get("KEYWARD_LOG").map(filter).transpose().unwrap_or_else(|problem| {
        around.problems.push(format!("KEYWARD_LOG: {problem}"));
        None
    });
    Log { format, level: asked.or(written).unwrap_or_else(|| "info".to_owned()) }
}

/// The files of `tls`, if there is such a table. What is in them is found out when they are loaded.
fn tls(section: &Section<'_>, around: &Around<'_>) -> Option<TlsFiles> {
    let tls = section.section("tls");
    let file = |key: &str| tls.text(key, |text| readable(around.folder.join(text)));
    let (cert, key) = (file("cert"), file("key"));
    if section.has("tls") {
        for key in ["cert", "key"].into_iter().filter(|key| !tls.has(key)) {
            tls.refuse(key, "missing: TLS takes a certificate and its key");
        }
    }
    tls.finish();
    Some(TlsFiles { cert: cert?, key: key? })
}

pub(super) fn readable(path: PathBuf) -> Result<PathBuf, String> {
    match std::fs::File::open(&path) {
        Ok(_) => Ok(path),
        Err(cause) => Err(format!("can't read {}: {cause}", path.display())),
    }
}

fn listen(section: &Section<'_>, port: u16) -> SocketAddr {
    let read = |text: &str| {
        text.parse().map_err(|_| {
            format!("not an address and port such as \"127.0.0.1:{port}\" or \"[::1]:{port}\" (a name is not enough)")
        })
    };
    section.text("listen", read).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)))
}

/// A URL with nothing behind the port: paths and redirect URIs are made from it.
fn origin(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|cause| format!("not a URL: {cause}"))?;
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !matches!(url.scheme(), "http" | "https") || !bare || url.path() != "/" || url.fragment().is_some() {
        return Err("scheme, host and perhaps a port are wanted, nothing else: \"https://keyward.example.com\"".into());
    }
    Ok(url)
}

fn size(section: &Section<'_>, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
    section.text(key, |text| {
        usize::try_from(parse_size(text)?)
            .ok()
            .filter(|size| range.contains(size))
            .ok_or_else(|| format!("a size from {} KiB to {} KiB is wanted", range.start() >> 10, range.end() >> 10))
    })
}

fn wait(section: &Section<'_>, key: &str, default: Duration) -> Duration {
    section.text(key, positive).unwrap_or(default)
}

fn positive(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|span| if span.is_zero() { Err("zero is not possible".to_owned()) } else { Ok(span) })
}

fn or_none<T>(read: impl Fn(&str) -> Result<T, String>) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| if text == "none" { Ok(None) } else { read(text).map(Some).map_err(|error| error + ", or \"none\"") }
}

fn word<T: for<'de> serde::Deserialize<'de>>(text: &str) -> Result<T, String> {
    T::deserialize(StrDeserializer::<serde::de::value::Error>::new(text)).map_err(|error| error.to_string())
}

fn range(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "not an address range such as \"10.0.0.0/8\"".to_owned())
}

pub(super) fn certificates(path: PathBuf) -> Result<PathBuf, String> {
    let shown = path.display();
    let certificates = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certificates {
        Ok(found) if found.is_empty() => Err(format!("{shown} holds no PEM certificate")),
        Ok(_) => Ok(path),
        Err(cause) => Err(format!("can't read certificates from {shown}: {cause}")),
    }
}

//! The checked configuration: `gateway.toml`, the environment's secrets, and nothing else.
//!
//! [`Config::load`] reads the file, refuses unknown keys and wrong values with file, line and key, and collects what the
//! environment holds. Everything after it may trust what it gets. No port is bound and no store opened here.

mod document;
mod env;
mod file;
mod rate;
mod targets;
#[cfg(test)]
mod tests;
mod units;

pub use document::place_of;
pub use env::{Env, EnvError};
pub use file::ConfigError;
pub use rate::{Rate, RateLimit};
pub use units::{parse_duration, parse_size};

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use crate::secret::Secret;

/// Everything a gateway is told.
#[derive(Debug)]
pub struct Config {
    /// The agent listener.
    pub proxy: Proxy,
    /// The people's listener.
    pub admin: Admin,
    /// Where records are kept.
    pub store: StoreUrl,
    /// Where refresh tokens wait, sealed, that could not be stored before the process ended: beside a SQLite file, else
    /// `keyward.spill` beside the configuration file.
    pub spill: PathBuf,
    /// `[store] max_stale`: how long keys and grants that could not be read again still count. Default 30 s.
    pub max_stale: Duration,
    /// Token life.
    pub refresh: Refresh,
    /// Where requests may go.
    pub egress: Egress,
    /// The audit trail.
    pub audit: Audit,
    /// How stopping goes.
    pub shutdown: Stopping,
    /// Logs.
    pub log: Log,
    /// `[providers]`, as written; the catalog checks it.
    pub providers: toml::Table,
    /// `[targets.<slug>]`: system targets, for every organization.
    pub targets: BTreeMap<String, SystemTarget>,
    /// `KEYWARD_SEALING_KEYS` (or `_FILE`).
    pub sealing_keys: Option<Secret<String>>,
    /// The environment, for client credentials.
    pub env: Env,
}

/// `[proxy]`.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Where agents connect.
    pub listen: SocketAddr,
    /// How agents reach it; without a trailing slash. Default `http://{listen}`, or `https` with TLS.
    pub public_url: Option<Url>,
    /// `[proxy.tls]`; `None`: in clear.
    pub tls: Option<TlsFiles>,
    /// Threads that serve agents; default one per core.
    pub workers: usize,
    /// `[proxy.limits]`.
    pub limits: Limits,
    /// `[proxy.timeouts]`.
    pub timeouts: Timeouts,
}

/// `[proxy.tls]` and `[admin.tls]`: PEM files, read again when they change.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The listener's certificate, then those that lead to an authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[proxy.limits]`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's or an answer's head. Default 32 KiB.
    pub head: usize,
    /// Header lines of a head. Default 100.
    pub headers: usize,
    /// Bytes of a request body; `None`: any. Default 1 GiB.
    pub request_body: Option<u64>,
    /// Bytes a second of a request body, at least, over `[proxy.timeouts] idle`; `None`: any trickle. Default 100.
    pub request_body_rate: Option<u64>,
    /// Agent connections at once. Default 10,000.
    pub connections: usize,
    /// Requests of agents under way at once; shared out evenly among the workers. Default 10,000.
    pub requests: usize,
    /// `[proxy.limits.per_key]`: of keys that have no limits of their own. Default none.
    pub per_key: Option<RateLimit>,
}

/// `[proxy.timeouts]`.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// TCP connection to an upstream. Default 5 s.
    pub connect: Duration,
    /// TLS handshake, either side. Default 10 s.
    pub handshake: Duration,
    /// An agent's request head, from its first byte (or the connection's start). Default 10 s.
    pub head: Duration,
    /// An upstream's answer head, and any pause of a body. Default 60 s.
    pub idle: Duration,
    /// A whole exchange; `None`: no end. Default none.
    pub total: Option<Duration>,
    /// For room at a target that takes only so many requests at once. Default 5 s.
    pub queue: Duration,
}

/// `[admin]`.
#[derive(Debug)]
pub struct Admin {
    /// Where people connect.
    pub listen: SocketAddr,
    /// How people reach it; redirect URIs are made from it. Default `http://{listen}`, or `https` with TLS.
    pub public_url: Option<Url>,
    /// `[admin.tls]`; `None`: in clear.
    pub tls: Option<TlsFiles>,
    /// Allows a listener beyond loopback without TLS of its own.
    pub insecure_http: bool,
    /// `KEYWARD_ADMIN_TOKEN` (or `_FILE`).
    pub token: Option<Secret<String>>,
}

/// `[store] url`.
#[derive(Debug)]
pub enum StoreUrl {
    /// `sqlite://path`; relative paths are relative to the configuration file's folder.
    Sqlite(PathBuf),
    /// `postgres://…`; may hold a password.
    Postgres(Secret<String>),
}

impl StoreUrl {
    /// Reads `sqlite://path` (relative paths are relative to `folder`) or `postgres://…`.
    ///
    /// # Errors
    /// In words for the operator, which never repeat the URL: it may hold a password.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        file::store_url(text, folder)
    }

    /// Whether the URL holds a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        matches!(self, Self::Postgres(url) if file::has_password(url.expose()))
    }
}

/// The file, or the server's name and the database's: what may be shown.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(url) => match Url::parse(url.expose()) {
                Ok(url) => write!(f, "Postgres at {}{}", url.host_str().unwrap_or("localhost"), url.path()),
                Err(_) => f.write_str("Postgres"),
            },
        }
    }
}

/// `[refresh]`.
#[derive(Debug, Clone)]
pub struct Refresh {
    /// How long before its end a token is refreshed, at most (a quarter of its life if that is less). Default 5 min.
    pub before_expiry: Duration,
    /// How long a request waits for a refresh. Default 10 s.
    pub wait: Duration,
    /// A whole token call. Default 15 s.
    pub timeout: Duration,
    /// Token calls to one provider at once. Default 20.
    pub per_provider: usize,
}

/// `[egress]`.
#[derive(Debug, Clone)]
pub struct Egress {
    /// Private ranges that may be reached all the same.
    pub allow: Vec<IpNet>,
    /// More certificate authorities, PEM.
    pub ca: Option<PathBuf>,
}

/// `[audit]`.
#[derive(Debug, Clone)]
pub struct Audit {
    /// How long records are kept. Default 90 days.
    pub retention: Duration,
    /// What happens when records can't be written.
    pub on_full: OnFull,
}

/// `[audit] on_full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    /// Requests are refused with `audit_unavailable`.
    Refuse,
    /// Requests go on; the number of lost records is recorded.
    Drop,
}

/// `[shutdown]`.
#[derive(Debug, Clone)]
pub struct Stopping {
    /// Between "not ready" and closing the listeners, for load balancers. Default 0 s.
    pub pause: Duration,
    /// For requests to finish. Default 30 s.
    pub deadline: Duration,
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct Log {
    /// Text for people or JSON for programs.
    pub format: LogFormat,
    /// A `tracing` filter: `info`, `keyward=debug`. `KEYWARD_LOG` overrides.
    pub level: String,
}

/// `[log] format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How a target, and what is sent to it, is looked after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Protection {
    /// Requests at once; `None`: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<NonZeroU32>,
    /// Whether its secret is hidden in the bodies of answers; `None`: as is usual for its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reflect_guard: Option<bool>,
}

impl Protection {
    /// What `concurrency` may be.
    pub const CONCURRENCY: RangeInclusive<u32> = 1..=10_000;
}

/// How a target is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Transport {
    /// HTTP/2 is not offered.
    pub http1_only: bool,
    /// WebSocket handshakes are forwarded.
    pub websocket: bool,
    /// Answers keep their `Set-Cookie`. What agents send as `Cookie` never goes out.
    pub set_cookie: bool,
}

/// TLS of a system target, where it differs.
#[derive(Debug, Clone)]
pub struct TargetTls {
    /// Files of more certificate authorities: `[egress] ca` and the target's `ca_file`.
    pub authorities: Vec<PathBuf>,
    /// `client_cert` and `client_key`: who Keyward is to this target.
    pub client: Option<TlsFiles>,
}

/// `[targets.<slug>]`.
#[derive(Debug)]
pub struct SystemTarget {
    /// For people; default the slug.
    pub name: String,
    /// Base URL.
    pub base_url: String,
    /// The credential, its secret read from the variable that the file names.
    pub credential: StaticCredential,
    /// Patterns; default `/**`.
    pub fence: Vec<String>,
    /// `concurrency`, `reflect_guard`.
    pub protection: Protection,
    /// `http1_only`, `websocket`, `set_cookie`.
    pub transport: Transport,
    /// `ca_file`, `client_cert`, `client_key`.
    pub tls: Option<TargetTls>,
}

/// A stored credential of a static or system target.
#[derive(Debug)]
pub enum StaticCredential {
    /// `Authorization: Bearer …`.
    Bearer(Secret<String>),
    /// `Authorization: Basic …`.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: Secret<String>,
    },
    /// Headers by name.
    Headers(BTreeMap<String, Secret<String>>),
    /// A query parameter.
    Query {
        /// Parameter name.
        name: String,
        /// Its value.
        value: Secret<String>,
    },
    /// Nothing goes in.
    None,
}

impl Config {
    /// Reads `path` (or, when `None`, `gateway.toml` in the working directory if there is one, else the defaults).
    ///
    /// # Errors
    /// Everything wrong with the file or the environment, in words for the operator.
    pub fn load(path: Option<&Path>, env: Env) -> Result<Self, ConfigError> {
        file::load(path, env)
    }

    /// Reads configuration from text; `name` stands in messages, relative paths are relative to `folder`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, name: &str, folder: &Path, env: Env) -> Result<Self, ConfigError> {
        file::parse(text, name, folder, env)
    }
}

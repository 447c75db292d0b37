//! `keyward key`: agent keys.

use std::time::Duration;

use clap::{ArgGroup, Subcommand};
use ipnet::IpNet;
use serde_json::{Value, json};

use keyward::clock::{Clock, Timestamp};
use keyward::config::{RateLimit, parse_duration};

use super::api::ApiArgs;
use super::output::{self, Column};

const COLUMNS: [Column; 7] = [
    ("ID", "/id"),
    ("NAME", "/name"),
    ("BEGINS WITH", "/prefix"),
    ("CREATED", "/created_at"),
    ("EXPIRES", "/expires_at"),
    ("LAST USED", "/last_used_at"),
    ("REVOKED", "/revoked_at"),
];

/// What `keyward key` takes.
#[derive(Debug, clap::Args)]
pub struct KeyArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// List keys
    List,
    /// Make a key; it is shown once
    Create {
        /// What it is for
        name: String,
        /// How long it is valid, as in 90d
        #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "expires_at")]
        expires_in: Option<Duration>,
        /// Until when it is valid, as in 2030-01-31T00:00:00Z
        #[arg(long, value_name = "MOMENT", value_parser = moment)]
        expires_at: Option<Timestamp>,
        /// Address or range that it may come from; may be given several times
        #[arg(long = "allow-ip", value_name = "RANGE", value_parser = range)]
        allowed_ips: Vec<IpNet>,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Change a key; what is not named stays
    #[command(group = ArgGroup::new("change").args(["name", "requests", "concurrent", "no_limits"]).required(true).multiple(true))]
    Update {
        /// The key's id
        id: String,
        /// What it is for
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        limits: LimitArgs,
        /// Take its own limits away; those of the gateway's configuration count
        #[arg(long, conflicts_with_all = ["requests", "per", "concurrent"])]
        no_limits: bool,
    },
    /// Revoke a key
    Revoke {
        /// The key's id
        id: String,
    },
    /// Replace a key; the new one is shown once
    Rotate {
        /// The key's id
        id: String,
        /// How long the old one stays valid
        #[arg(long, value_name = "TIME", value_parser = time)]
        grace: Option<String>,
    },
}

/// What a key may use up, on each instance of the gateway.
#[derive(Debug, clap::Args)]
struct LimitArgs {
    /// Requests in the time of --per, all of which may come at once
    #[arg(long, value_name = "NUMBER")]
    requests: Option<u32>,
    /// What --requests are counted by, 1s to 1d; without it a minute
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "requests")]
    per: Option<Duration>,
    /// Requests at once
    #[arg(long, value_name = "NUMBER")]
    concurrent: Option<u32>,
}

impl LimitArgs {
    /// `None` when nothing is limited.
    fn read(&self) -> anyhow::Result<Option<RateLimit>> {
        if self.requests.is_none() && self.concurrent.is_none() {
            return Ok(None);
        }
        RateLimit::new(self.requests, self.per, self.concurrent).map(Some).map_err(anyhow::Error::msg)
    }
}

pub async fn run(args: KeyArgs) -> anyhow::Result<()> {
    let api = args.api.open()?;
    let json = args.api.json;
    match args.command {
        KeyCommand::List => output::list(&api.list(&["keys"], &[], usize::MAX).await?, &COLUMNS, json),
        KeyCommand::Create { name, expires_in, expires_at, allowed_ips, limits } => {
            let expires_at = expires_at.or(expires_in.map(|span| Clock::system().now().after(span)));
            let limit = limits.read()?;
            let body = json!({"name": name, "expires_at": expires_at, "allowed_ips": allowed_ips, "rate_limit": limit});
            show(&api.post(&["keys"], &[], Some(body)).await?, json)
        }
        KeyCommand::Update { id, name, limits, no_limits } => {
            let mut body = serde_json::Map::new();
            body.extend(name.map(|name| ("name".to_owned(), Value::from(name))));
            let limit = limits.read()?;
            if limit.is_some() || no_limits {
                body.insert("rate_limit".to_owned(), json!(limit));
            }
            let key = api.patch(&["keys", &id], body.into()).await?;
            output::record(&key, &[("id", "/id"), ("name", "/name"), ("limits", "/rate_limit")], json)
        }
        KeyCommand::Revoke { id } => {
            api.delete(&["keys", &id], &[]).await?;
            output::say(&format!("{id} is revoked."));
            Ok(())
        }
        KeyCommand::Rotate { id, grace } => {
            let query: Vec<_> = grace.iter().map(|grace| ("grace", grace.as_str())).collect();
            show(&api.post(&["keys", &id, "rotate"], &query, None).await?, json)
        }
    }
}

fn show(key: &serde_json::Value, json: bool) -> anyhow::Result<()> {
    output::say("The key is shown once: keep it now.");
    output::record(key, &[("id", "/id"), ("name", "/name"), ("expires", "/expires_at"), ("key", "/key")], json)
}

/// Checked here, sent as it was written.
fn time(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned())
}

fn moment(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).map_err(|_| "a moment such as 2030-01-31T00:00:00Z is wanted".to_owned())
}

fn range(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "an address or range such as 10.0.0.0/8 is wanted".to_owned())
}

//! `keyward key`: agent keys.

use std::time::Duration;

use clap::Subcommand;
use ipnet::IpNet;
use serde_json::json;

use keyward::clock::{Clock, Timestamp};
use keyward::config::parse_duration;

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

pub async fn run(args: KeyArgs) -> anyhow::Result<()> {
    let api = args.api.open()?;
    let json = args.api.json;
    match args.command {
        KeyCommand::List => output::list(&api.list(&["keys"], &[], usize::MAX).await?, &COLUMNS, json),
        KeyCommand::Create { name, expires_in, expires_at, allowed_ips } => {
            let expires_at = expires_at.or(expires_in.map(|span| Clock::system().now().after(span)));
            let body = json!({"name": name, "expires_at": expires_at, "allowed_ips": allowed_ips});
            show(&api.post(&["keys"], &[], Some(body)).await?, json)
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

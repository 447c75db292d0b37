//! `keyward audit`: what was done, for whom.

use keyward::clock::{Clock, Timestamp};
use keyward::config::parse_duration;

use super::api::ApiArgs;
use super::output::{self, Column};

const COLUMNS: [Column; 9] = [
    ("AT", "/at"),
    ("ACTION", "/action"),
    ("ACTOR", "/actor"),
    ("TARGET", "/target"),
    ("ACCOUNT", "/account"),
    ("METHOD", "/method"),
    ("PATH", "/path"),
    ("STATUS", "/status"),
    ("CODE", "/code"),
];

/// What `keyward audit` takes.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// About this key
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// About this target
    #[arg(long, value_name = "SLUG")]
    target: Option<String>,
    /// About this account
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// From then on: a moment, or a time ago, as in 1h
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<Timestamp>,
    /// Before then: a moment, or a time ago
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    until: Option<Timestamp>,
    /// With this status
    #[arg(long, value_parser = clap::value_parser!(u16).range(100..600))]
    status: Option<u16>,
    /// Records at most
    #[arg(long, default_value_t = 100, value_name = "NUMBER")]
    limit: usize,
}

pub async fn run(args: AuditArgs) -> anyhow::Result<()> {
    let api = args.api.open()?;
    let filters = [
        ("key", args.key),
        ("target", args.target),
        ("account", args.account),
        ("since", args.since.map(|moment| moment.to_string())),
        ("until", args.until.map(|moment| moment.to_string())),
        ("status", args.status.map(|status| status.to_string())),
    ];
    let query: Vec<_> = filters.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    output::list(&api.list(&["audit"], &query, args.limit).await?, &COLUMNS, args.api.json)
}

fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(Clock::system().now().before(ago));
    }
    Timestamp::parse(text).map_err(|_| "a moment such as 2030-01-31T00:00:00Z, or a time ago such as 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_absolute_or_ago() {
        assert_eq!(moment("2030-01-31T00:00:00Z").unwrap().to_string(), "2030-01-31T00:00:00Z");
        assert!(moment("1h").unwrap() < Clock::system().now());
        assert!(moment("yesterday").is_err());
    }
}

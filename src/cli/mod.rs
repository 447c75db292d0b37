//! The command line: starts a gateway, checks its configuration, and speaks to a running one through its admin API.
//!
//! Standard output carries what was asked for, standard error everything else. Exit codes: 0 done, 1 failed, 2 wrong
//! usage, 64 bad configuration.

mod account;
mod api;
mod audit;
mod config;
mod grant;
mod http;
mod key;
mod local;
mod output;
mod progress;
mod seal;
mod store;
mod target;

use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::config::ConfigArgs;

/// `EX_USAGE` of sysexits.h: what service managers know as "do not restart, fix the configuration".
const BAD_CONFIG: u8 = 64;

/// A gateway that lets AI agents use people's accounts without ever holding their tokens.
#[derive(Debug, Parser)]
#[command(name = "keyward", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Serve(ConfigArgs),
    /// Run everything at once on loopback: a sandbox provider, a connected account, a key and the dashboard
    Dev(local::DevArgs),
    /// Check configuration and catalog without binding a port
    Check(ConfigArgs),
    /// List the providers that this configuration knows
    Providers(local::ProvidersArgs),
    /// Agent keys
    Key(key::KeyArgs),
    /// Connected accounts
    Account(account::AccountArgs),
    /// Targets: what agents may address
    Target(target::TargetArgs),
    /// Grants: which key may use which target
    Grant(grant::GrantArgs),
    /// Read the audit trail, newest first
    Audit(audit::AuditArgs),
    /// The store itself: migrate it, move it to another database
    Store(store::StoreArgs),
    /// Sealing keys: change the one that secrets are sealed with
    Seal(seal::SealArgs),
    /// Print the OpenAPI document of the admin API
    Openapi,
}

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The operator must change the configuration; one line each.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// Does what the process's arguments say.
pub fn run() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::say(&failure.to_string());
            if matches!(failure, Failure::Config(_)) { ExitCode::from(BAD_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => local::serve(&args),
        Command::Dev(args) => local::dev(args),
        Command::Check(args) => local::check(&args),
        Command::Providers(args) => local::providers(&args),
        Command::Key(args) => wait_for(key::run(args)),
        Command::Account(args) => wait_for(account::run(args)),
        Command::Target(args) => wait_for(target::run(args)),
        Command::Grant(args) => wait_for(grant::run(args)),
        Command::Audit(args) => wait_for(audit::run(args)),
        Command::Store(args) => store::run(args),
        Command::Seal(args) => seal::run(args),
        Command::Openapi => Ok(output::print(&keyward::admin::openapi_json())?),
    }
}

/// One request at a time needs one thread.
fn wait_for(work: impl Future<Output = anyhow::Result<()>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    Ok(runtime.block_on(work)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn common_command_lines_are_understood() {
        for line in [
            "keyward serve --config /etc/keyward/gateway.toml",
            "keyward dev --keep --proxy 127.0.0.1:9000",
            "keyward key create agent --expires-in 90d --allow-ip 10.0.0.0/8 --json",
            "keyward key rotate key_1 --grace 1h --url https://keyward.example.com --org team",
            "keyward account connect microsoft_365 --capabilities mail,calendar --preset write --headless",
            "keyward account disconnect acc_1 --confirm",
            "keyward target create crm --base-url https://crm.example.com --bearer-env CRM_TOKEN",
            "keyward target create s --base-url https://s.example.com --header-env X-Api-Key=S_KEY --header-env X-App=S_APP",
            "keyward target create live --base-url https://live.example.com --websocket --http1-only",
            "keyward grant set key_1 crm --access write",
            "keyward audit --since 1h --status 403 --limit 20",
            "keyward store migrate --config /etc/keyward/gateway.toml",
            "keyward store copy --to postgres://keyward@db.example.com/keyward --config /etc/keyward/gateway.toml",
            "keyward seal rotate --new-key",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "keyward",
            "keyward dev --proxy 0.0.0.0:8080",
            "keyward key create",
            "keyward key create a --expires-in 1h --expires-at 2030-01-01T00:00:00Z",
            "keyward target create a --base-url https://x.example.com --bearer-env A --query-env k=B",
            "keyward target create a --base-url https://x.example.com --basic-user a",
            "keyward account connect x --preset admin",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}

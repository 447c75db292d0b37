//! Commands that work on this machine: `serve`, `dev`, `check`, `providers`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use keyward::app::{self, DevOptions};
use keyward::config::{Config, Env, StoreUrl};
use keyward::telemetry;

use super::Failure;
use super::config::ConfigArgs;
use super::output;

/// What `keyward dev` takes.
#[derive(Debug, clap::Args)]
pub struct DevArgs {
    /// Keep the data when the process ends
    #[arg(long)]
    keep: bool,
    /// Where the data lives; without it a temporary folder, or with --keep the folder keyward-dev
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Where agents connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = loopback)]
    proxy: SocketAddr,
    /// Where people connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081", value_parser = loopback)]
    admin: SocketAddr,
    /// Where the sandbox provider listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8082", value_parser = loopback)]
    sandbox: SocketAddr,
}

/// What `keyward providers` takes.
#[derive(Debug, clap::Args)]
pub struct ProvidersArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn serve(args: &ConfigArgs) -> Result<(), Failure> {
    let (config, _) = args.load()?;
    telemetry::init(&config.log).context("logging could not begin")?;
    Ok(app::serve(config)?)
}

pub fn dev(args: DevArgs) -> Result<(), Failure> {
    // `dev` reads no file; KEYWARD_LOG counts all the same.
    let defaults = Config::parse("", "gateway.toml", Path::new(""), Env::of_process());
    telemetry::init(&defaults.map_err(|error| Failure::Config(error.0))?.log).context("logging could not begin")?;
    let DevArgs { keep, folder, proxy, admin, sandbox } = args;
    Ok(app::dev(DevOptions { proxy, admin, sandbox, folder, keep })?)
}

pub fn check(args: &ConfigArgs) -> Result<(), Failure> {
    let (config, catalog) = args.load()?;
    let usable = catalog.iter().filter(|provider| provider.client.is_some()).count();
    let store = match &config.store {
        StoreUrl::Sqlite(path) => path.display().to_string(),
        StoreUrl::Postgres(_) => "Postgres".to_owned(),
    };
    let summary = format!(
        "The configuration is good.\n{}",
        output::pairs(&[
            ("agents", config.proxy.listen.to_string()),
            ("people", config.admin.listen.to_string()),
            ("store", store),
            ("providers", format!("{} known, {usable} configured", catalog.iter().count())),
            ("system targets", config.targets.len().to_string()),
        ])
    );
    Ok(output::print(&summary)?)
}

pub fn providers(args: &ProvidersArgs) -> Result<(), Failure> {
    let (_, catalog) = args.config.load()?;
    let rows: Vec<_> = catalog
        .iter()
        .map(|provider| {
            json!({
                "id": provider.id,
                "name": provider.name,
                "capabilities": provider.capabilities.keys().collect::<Vec<_>>(),
                "configured": provider.client.is_some(),
                "client_id_variable": format!("OAUTH_{}_CLIENT_ID", provider.env),
            })
        })
        .collect();
    let columns = [
        ("ID", "/id"),
        ("NAME", "/name"),
        ("CAPABILITIES", "/capabilities"),
        ("CONFIGURED", "/configured"),
        ("CLIENT ID FROM", "/client_id_variable"),
    ];
    Ok(output::list(&rows, &columns, args.json)?)
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "an address and port is wanted".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("only loopback addresses are possible here".to_owned()) }
}

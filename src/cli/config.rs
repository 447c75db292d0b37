//! Loading the configuration for a command, with everything that can be told before a port is bound.

use std::path::PathBuf;

use keyward::catalog::{Base, Catalog, Patterns};
use keyward::config::{Config, Env, StoreUrl};
use keyward::vault::Keyring;

use super::Failure;

/// Which configuration a command works with.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Configuration file; without it gateway.toml in the working directory, if there is one
    #[arg(long, env = "KEYWARD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The configuration and its catalog, or every mistake in them.
    pub fn load(&self) -> Result<(Config, Catalog), Failure> {
        let config =
            Config::load(self.config.as_deref(), Env::of_process()).map_err(|error| Failure::Config(error.0))?;
        let name = self.config.as_ref().map_or_else(|| "gateway.toml".to_owned(), |path| path.display().to_string());
        let mut problems = problems(&config, &name);
        match Catalog::load(&config.providers, &config.env) {
            Ok(catalog) if problems.is_empty() => return Ok((config, catalog)),
            Ok(_) => {}
            Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
        }
        Err(Failure::Config(problems))
    }
}

/// What the layers above the configuration ask of it.
fn problems(config: &Config, name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (slug, target) in &config.targets {
        if let Err(error) = Base::parse(&target.base_url) {
            problems.push(format!("{name}: targets.{slug}.base_url: {error}"));
        }
        if let Err(error) = Patterns::parse(&target.fence) {
            problems.push(format!("{name}: targets.{slug}.fence: {error}"));
        }
    }
    match (&config.store, &config.sealing_keys) {
        (_, Some(keys)) => problems.extend(Keyring::parse(keys).err().map(|error| error.to_string())),
        (StoreUrl::Postgres(_), None) => problems.push(
            "KEYWARD_SEALING_KEYS is not set: with Postgres the sealing keys must be given, the same to every instance"
                .to_owned(),
        ),
        (StoreUrl::Sqlite(_), None) => {}
    }
    problems
}

//! Loading the configuration for a command, with everything that can be told before a port is bound.

use std::path::{Path, PathBuf};

use keyward::catalog::{Base, Catalog, Patterns};
use keyward::config::{Config, Env, StoreUrl, place_of};
use keyward::net::Identity;
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
        let file = File::of(self.config.as_deref().unwrap_or(Path::new(OWN_FILE)));
        let mut problems = problems(&config, &file);
        match Catalog::load(&config.providers, &config.env) {
            Ok(catalog) if problems.is_empty() => return Ok((config, catalog)),
            Ok(_) => {}
            Err(errors) => problems.extend(errors.iter().map(|error| match error.file.as_str() {
                OWN_FILE => file.problem(&error.key, &error.problem),
                _ => error.to_string(),
            })),
        }
        Err(Failure::Config(problems))
    }
}

/// The configuration file's name in the catalog's messages, and where it is unless something else is said.
const OWN_FILE: &str = "gateway.toml";

/// The file as it is named in messages, and its text, to find keys in.
struct File {
    name: String,
    text: String,
}

impl File {
    fn of(path: &Path) -> Self {
        // Unreadable or gone by now: the keys alone must do.
        Self { name: path.display().to_string(), text: std::fs::read_to_string(path).unwrap_or_default() }
    }

    fn problem(&self, key: &str, problem: &str) -> String {
        let place = place_of(&self.text, key).map(|place| format!(":{place}")).unwrap_or_default();
        format!("{}{place}: {key}: {problem}", self.name)
    }
}

/// What the layers above the configuration ask of it.
fn problems(config: &Config, file: &File) -> Vec<String> {
    let mut problems = Vec::new();
    for (slug, target) in &config.targets {
        if let Err(error) = Base::parse(&target.base_url) {
            problems.push(file.problem(&format!("targets.{slug}.base_url"), &error.to_string()));
        }
        if let Some(files) = target.tls.as_ref().and_then(|tls| tls.client.as_ref())
            && let Err(error) = Identity::load(&files.cert, &files.key)
        {
            let error = error.to_string();
            let (key, problem) = error.split_once(": ").unwrap_or(("cert", &error));
            problems.push(file.problem(&format!("targets.{slug}.client_{key}"), problem));
        }
        if let Err(error) = Patterns::parse(&target.fence) {
            problems.push(file.problem(&format!("targets.{slug}.fence"), &error.to_string()));
        }
    }
    for (section, files) in [("proxy.tls", &config.proxy.tls), ("admin.tls", &config.admin.tls)] {
        if let Some(files) = files
            && let Err(error) = Identity::load(&files.cert, &files.key)
        {
            let error = error.to_string();
            let (key, problem) = error.split_once(": ").unwrap_or(("cert", &error));
            problems.push(file.problem(&format!("{section}.{key}"), problem));
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

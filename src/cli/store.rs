//! `keyward store`: the records themselves, without a gateway.

use std::path::Path;

use anyhow::Context as _;
use clap::Subcommand;

use keyward::app::upkeep;
use keyward::clock::Clock;
use keyward::config::{Config, Env, StoreUrl};
use keyward::store::Copied;

use super::config::ConfigArgs;
use super::progress::Shown;
use super::{Failure, output, wait_for};

/// What `keyward store` takes.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Make the store, or bring its schema up to date, as starting a gateway does too
    Migrate(ConfigArgs),
    /// Copy everything into a fresh store, as from SQLite to Postgres; stop every gateway first
    Copy(CopyArgs),
}

#[derive(Debug, clap::Args)]
struct CopyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The new store: postgres://user@host/database or sqlite://file. A URL with a password comes as the variable
    /// KEYWARD_COPY_TO, or as a file that KEYWARD_COPY_TO_FILE names
    #[arg(long, value_name = "URL")]
    to: Option<String>,
}

pub fn run(args: StoreArgs) -> Result<(), Failure> {
    match args.command {
        StoreCommand::Migrate(config) => {
            let (config, _) = config.load()?;
            wait_for(async {
                let version = upkeep::migrate(&config, &Clock::system()).await?;
                output::print(&format!("{} has schema version {version}.", config.store))
            })
        }
        StoreCommand::Copy(args) => {
            let (config, _) = args.config.load()?;
            let to = destination(args.to.as_deref(), &Env::of_process())?;
            wait_for(async {
                let mut shown = Shown::new("Copying");
                let copied = upkeep::copy(&config, &to, |progress| shown.at(progress)).await;
                drop(shown);
                output::print(&summary(&config, &to, &copied?))
            })
        }
    }
}

/// Where to, from the flag or the environment. A password on a command line can be read by everybody on the machine.
fn destination(flag: Option<&str>, env: &Env) -> anyhow::Result<StoreUrl> {
    let from_env = env.secret("KEYWARD_COPY_TO")?;
    // As in a shell: relative to where the command runs.
    let here = Path::new("");
    match (flag, from_env) {
        (Some(_), Some(_)) => anyhow::bail!("give either --to or KEYWARD_COPY_TO, not both"),
        (None, None) => anyhow::bail!("where to? Give --to, or KEYWARD_COPY_TO for a URL with a password"),
        (None, Some(url)) => StoreUrl::parse(url.expose(), here).map_err(anyhow::Error::msg).context("KEYWARD_COPY_TO"),
        (Some(url), None) => match StoreUrl::parse(url, here).map_err(anyhow::Error::msg).context("--to")? {
            url if url.has_password() => anyhow::bail!(
                "--to: a password does not belong on a command line: give the whole URL in KEYWARD_COPY_TO (or, as a \
                 file's path, KEYWARD_COPY_TO_FILE)"
            ),
            url => Ok(url),
        },
    }
}

fn summary(config: &Config, to: &StoreUrl, copied: &Copied) -> String {
    let rows: u64 = copied.rows.iter().map(|(_, rows)| rows).sum();
    let mut text = format!(
        "Copied {rows} rows of {} tables into {to}; all {} sealed values open there.\n\n",
        copied.rows.len(),
        copied.sealed
    );
    let mut steps = Vec::new();
    steps.push(match upkeep::key_file(config) {
        Some(file) => hand_over(&file, to),
        None => "Keep KEYWARD_SEALING_KEYS (or KEYWARD_SEALING_KEYS_FILE) as it is.".to_owned(),
    });
    steps.push(match to {
        StoreUrl::Sqlite(path) => format!("Set [store] url = \"sqlite://{}\" (or KEYWARD_STORE_URL).", path.display()),
        StoreUrl::Postgres(_) => "Set KEYWARD_STORE_URL to the new store's URL, with its password.".to_owned(),
    });
    steps.push(format!(
        "Start Keyward on the new store, and never again on {}: whichever refreshes an account first may make the other's \
         refresh token worthless.",
        config.store
    ));
    for (at, step) in steps.iter().enumerate() {
        text.push_str(&format!("{}. {step}\n", at + 1));
    }
    text
}

/// How the new store gets the keys that were made for the old one. Whole paths: a gateway may start in another folder.
fn hand_over(file: &Path, to: &StoreUrl) -> String {
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    let shown = whole(file);
    match to {
        StoreUrl::Sqlite(path) => {
            let beside = whole(&upkeep::key_file_beside(path));
            if beside == shown {
                return format!("The sealing keys stay where they are, in {shown}.");
            }
            format!(
                "Copy the sealing keys beside the new store, before the first start:\n     cp -p '{shown}' '{beside}'"
            )
        }
        StoreUrl::Postgres(_) => format!(
            "Give the sealing keys of {shown} to every instance on the new store, in one of two ways:\n     \
             KEYWARD_SEALING_KEYS_FILE='{shown}'   (or the path of a copy with mode 0600)\n     \
             KEYWARD_SEALING_KEYS=\"$(paste -sd, '{shown}')\""
        ),
    }
}

#[cfg(test)]
mod tests {
    use keyward::secret::Secret;

    use super::*;

    fn told(flag: Option<&str>, env: &[(&str, &str)]) -> Result<String, String> {
        let env = Env::from_iter(env.iter().copied());
        destination(flag, &env).map(|url| url.to_string()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_password_comes_by_the_environment_alone() {
        let secret = "postgres://k:hunter2@db.example.com/keyward";
        assert_eq!(told(None, &[("KEYWARD_COPY_TO", secret)]).unwrap(), "Postgres at db.example.com/keyward");
        assert_eq!(told(Some("sqlite://new.db"), &[]).unwrap(), "new.db");
        assert!(told(Some("postgres://k@db.example.com/keyward"), &[]).is_ok());
        for url in [secret, "postgres://k@db.example.com/keyward?password=hunter2"] {
            let refused = told(Some(url), &[]).unwrap_err();
            assert!(refused.contains("KEYWARD_COPY_TO") && !refused.contains("hunter2"), "{refused}");
        }
        assert!(told(None, &[]).is_err());
        assert!(told(Some("sqlite://new.db"), &[("KEYWARD_COPY_TO", secret)]).is_err());
        assert!(told(Some("mysql://db.example.com/keyward"), &[]).unwrap_err().starts_with("--to"));
    }

    #[test]
    fn the_key_file_is_handed_over_in_words_that_can_be_pasted() {
        let file = Path::new("/srv/keyward.keys");
        let postgres = hand_over(file, &StoreUrl::Postgres(Secret::new("postgres://k@db.example.com/k".into())));
        assert!(postgres.contains("KEYWARD_SEALING_KEYS_FILE='/srv/keyward.keys'"), "{postgres}");
        let sqlite = hand_over(file, &StoreUrl::Sqlite("/srv/new.db".into()));
        assert!(sqlite.contains("cp -p '/srv/keyward.keys' '/srv/new.keys'"), "{sqlite}");
    }
}

//! `keyward seal`: the keys that the store is sealed with.

use clap::Subcommand;

use keyward::app::upkeep::{self, Rotated};
use keyward::config::Config;
use keyward::store::Resealed;

use super::config::ConfigArgs;
use super::progress::Shown;
use super::{Failure, output, wait_for};

/// What `keyward seal` takes.
#[derive(Debug, clap::Args)]
pub struct SealArgs {
    #[command(subcommand)]
    command: SealCommand,
}

#[derive(Debug, Subcommand)]
enum SealCommand {
    /// Seal everything with the first sealing key; gateways that know the key may run meanwhile
    Rotate(RotateArgs),
}

#[derive(Debug, clap::Args)]
struct RotateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Put a fresh key into the key file beside the SQLite store first
    #[arg(long)]
    new_key: bool,
}

/// Values that don't open are named up to so many.
const NAMED: usize = 10;

pub fn run(args: SealArgs) -> Result<(), Failure> {
    let SealCommand::Rotate(args) = args.command;
    let (config, _) = args.config.load()?;
    wait_for(async {
        let mut shown = Shown::new("Sealing");
        let rotated = upkeep::rotate(&config, args.new_key, |progress| shown.at(progress)).await;
        drop(shown);
        match rotated? {
            Rotated::KeyAdded { id } => output::print(&format!(
                "A gateway has the store open. The new key `{id}` is in the key file; nothing was sealed with it yet.\n\
                 Restart the gateway, so that it knows the key, then run `keyward seal rotate`."
            )),
            Rotated::Resealed { primary, older, outcome } if outcome.remaining == 0 => {
                output::print(&done(&config, &primary, &older, &outcome))
            }
            Rotated::Resealed { primary, outcome, .. } => {
                anyhow::bail!(unfinished(&primary, &outcome))
            }
        }
    })
}

fn done(config: &Config, primary: &str, older: &[String], outcome: &Resealed) -> String {
    let mut text =
        format!("Sealed {} values again. 0 values remain under other keys than `{primary}`.\n", outcome.exchanged);
    let ids = older.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
    match (upkeep::key_file(config), older) {
        (Some(_), []) => text.push_str("There is no other key. `keyward seal rotate --new-key` makes a new one.\n"),
        (None, []) => text.push_str(&format!("There is no other key.\n{}\n", upkeep::NEW_KEY_STEPS)),
        (Some(file), _) => text.push_str(&format!(
            "{ids} may be removed: delete the line from {} and restart. Keep it with the backups made before now.\n",
            file.display()
        )),
        (None, _) => text.push_str(&format!(
            "{ids} may be removed from KEYWARD_SEALING_KEYS; restart every instance then. Keep it with the backups made \
             before now.\n"
        )),
    }
    text
}

fn unfinished(primary: &str, outcome: &Resealed) -> String {
    let Resealed { exchanged, remaining, unopened } = outcome;
    let mut text = format!(
        "sealed {exchanged} values again, but {remaining} remain under other keys than `{primary}`: remove no key"
    );
    for value in unopened.iter().take(NAMED) {
        text.push_str(&format!("\n  row {}: {}", output::clean(&value.row), value.cause));
    }
    if unopened.len() > NAMED {
        text.push_str(&format!("\n  and {} more", unopened.len() - NAMED));
    }
    if unopened.is_empty() {
        text.push_str(
            "\nAn instance still seals with another key: restart each with the same keys, then run this again.",
        );
    }
    text
}

//! `keyward grant`: which key may use which target.

use clap::Subcommand;
use serde_json::json;

use super::api::ApiArgs;
use super::output::{self, Column};

const COLUMNS: [Column; 3] = [("TARGET", "/target|/slug"), ("ACCESS", "/access"), ("SINCE", "/created_at")];

/// What `keyward grant` takes.
#[derive(Debug, clap::Args)]
pub struct GrantArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(subcommand)]
    command: GrantCommand,
}

#[derive(Debug, Subcommand)]
enum GrantCommand {
    /// List a key's grants
    List {
        /// The key's id
        key: String,
    },
    /// Let a key use a target
    Set {
        /// The key's id
        key: String,
        /// The target's slug
        target: String,
        /// How much
        #[arg(long, value_parser = ["read", "write"], default_value = "read")]
        access: String,
    },
    /// Take a grant away
    Remove {
        /// The key's id
        key: String,
        /// The target's slug
        target: String,
    },
}

pub async fn run(args: GrantArgs) -> anyhow::Result<()> {
    let api = args.api.open()?;
    match args.command {
        GrantCommand::List { key } => {
            output::list(&api.list(&["keys", &key, "grants"], &[], usize::MAX).await?, &COLUMNS, args.api.json)
        }
        GrantCommand::Set { key, target, access } => {
            api.put(&["keys", &key, "grants", &target], json!({"access": access})).await?;
            output::say(&format!("{key} may {access} {target}."));
            Ok(())
        }
        GrantCommand::Remove { key, target } => {
            api.delete(&["keys", &key, "grants", &target], &[]).await?;
            output::say(&format!("{key} may no longer use {target}."));
            Ok(())
        }
    }
}

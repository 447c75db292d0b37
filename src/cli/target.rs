//! `keyward target`: what agents may address.

use anyhow::Context as _;
use clap::{ArgGroup, Subcommand};
use serde_json::{Value, json};

use keyward::config::Env;

use super::api::ApiArgs;
use super::output::{self, Column};

const COLUMNS: [Column; 5] =
    [("SLUG", "/slug"), ("NAME", "/name"), ("KIND", "/kind"), ("CAPABILITY", "/capability"), ("BASE URL", "/base_url")];

/// What `keyward target` takes.
#[derive(Debug, clap::Args)]
pub struct TargetArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(subcommand)]
    command: TargetCommand,
}

#[derive(Debug, Subcommand)]
enum TargetCommand {
    /// List targets, managed ones too
    List,
    /// Make a static target; its secret is read from a variable of this command's environment
    Create(Box<CreateArgs>),
    /// Delete a static target and its grants
    Delete {
        /// The target's slug
        slug: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("credential").args(["bearer_env", "basic_user", "header_env", "query_env"]))]
struct CreateArgs {
    /// What agents call it: a-z, 0-9 and -
    slug: String,
    /// Where requests go
    #[arg(long, value_name = "URL")]
    base_url: String,
    /// For people; without it the slug
    #[arg(long)]
    name: Option<String>,
    /// What may be reached, as in "GET /v1/**"; may be given several times; without it everything
    #[arg(long, value_name = "PATTERN")]
    fence: Vec<String>,
    /// Requests at once, from one instance of the gateway; what is more waits its turn
    #[arg(long, value_name = "NUMBER")]
    concurrency: Option<u32>,
    /// Let answers repeat the secret; without it, it is hidden in their bodies
    #[arg(long)]
    no_reflect_guard: bool,
    /// Do not offer HTTP/2 to it
    #[arg(long)]
    http1_only: bool,
    /// Forward WebSocket handshakes, for grants that may write
    #[arg(long)]
    websocket: bool,
    /// Let answers keep their Set-Cookie
    #[arg(long)]
    set_cookie: bool,
    /// Send this variable's value as a bearer token
    #[arg(long, value_name = "VARIABLE")]
    bearer_env: Option<String>,
    /// Sign in with this user name (and --basic-password-env)
    #[arg(long, value_name = "NAME", requires = "basic_password_env")]
    basic_user: Option<String>,
    /// The variable that holds the password
    #[arg(long, value_name = "VARIABLE", requires = "basic_user")]
    basic_password_env: Option<String>,
    /// Send a header with a variable's value, as in X-Api-Key=ACME_KEY; may be given several times
    #[arg(long, value_name = "HEADER=VARIABLE", value_parser = named)]
    header_env: Vec<(String, String)>,
    /// Send a query parameter with a variable's value, as in key=ACME_KEY
    #[arg(long, value_name = "NAME=VARIABLE", value_parser = named)]
    query_env: Option<(String, String)>,
}

pub async fn run(args: TargetArgs) -> anyhow::Result<()> {
    let api = args.api.open()?;
    let json = args.api.json;
    match args.command {
        TargetCommand::List => output::list(&api.list(&["targets"], &[], usize::MAX).await?, &COLUMNS, json),
        TargetCommand::Create(new) => {
            let body = new.body(&Env::of_process())?;
            let fields = [("slug", "/slug"), ("name", "/name"), ("base URL", "/base_url"), ("fence", "/fence")];
            output::record(&api.post(&["targets"], &[], Some(body)).await?, &fields, json)
        }
        TargetCommand::Delete { slug } => {
            api.delete(&["targets", &slug], &[]).await?;
            output::say(&format!("{slug} is deleted."));
            Ok(())
        }
    }
}

impl CreateArgs {
    fn body(&self, env: &Env) -> anyhow::Result<Value> {
        let fence = if self.fence.is_empty() { vec!["/**".to_owned()] } else { self.fence.clone() };
        Ok(json!({
            "slug": self.slug,
            "name": self.name.as_ref().unwrap_or(&self.slug),
            "base_url": self.base_url,
            "credential": self.credential(env)?,
            "fence": fence,
            "concurrency": self.concurrency,
            "reflect_guard": self.no_reflect_guard.then_some(false),
            "http1_only": self.http1_only,
            "websocket": self.websocket,
            "set_cookie": self.set_cookie,
        }))
    }

    fn credential(&self, env: &Env) -> anyhow::Result<Value> {
        let secret = |variable: &str| -> anyhow::Result<String> {
            let value = env.secret(variable)?;
            Ok(value.with_context(|| format!("{variable} is not set (nor {variable}_FILE)"))?.expose().clone())
        };
        if let Some(variable) = &self.bearer_env {
            return Ok(json!({"kind": "bearer", "token": secret(variable)?}));
        }
        if let Some((username, variable)) = self.basic_user.as_ref().zip(self.basic_password_env.as_ref()) {
            return Ok(json!({"kind": "basic", "username": username, "password": secret(variable)?}));
        }
        if let Some((name, variable)) = &self.query_env {
            return Ok(json!({"kind": "query", "name": name, "value": secret(variable)?}));
        }
        match self.header_env.as_slice() {
            [] => Ok(json!({"kind": "none"})),
            [(name, variable)] => Ok(json!({"kind": "header", "name": name, "value": secret(variable)?})),
            several => {
                let headers: serde_json::Map<String, Value> = several
                    .iter()
                    .map(|(name, variable)| Ok((name.clone(), secret(variable)?.into())))
                    .collect::<anyhow::Result<_>>()?;
                Ok(json!({"kind": "headers", "headers": headers}))
            }
        }
    }
}

fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, variable)) if !name.is_empty() && !variable.is_empty() => {
            Ok((name.to_owned(), variable.to_owned()))
        }
        _ => Err("a name and a variable with = between them are wanted".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: CreateArgs,
    }

    #[test]
    fn credentials_come_from_variables() {
        let env = Env::from_iter([("A", "one"), ("B", "two")]);
        for (flags, wanted) in [
            ("", json!({"kind": "none"})),
            ("--bearer-env A", json!({"kind": "bearer", "token": "one"})),
            ("--basic-user u --basic-password-env B", json!({"kind": "basic", "username": "u", "password": "two"})),
            ("--header-env X-Key=A", json!({"kind": "header", "name": "X-Key", "value": "one"})),
            (
                "--header-env X-Key=A --header-env X-App=B",
                json!({"kind": "headers", "headers": {"X-Key": "one", "X-App": "two"}}),
            ),
            ("--query-env key=A", json!({"kind": "query", "name": "key", "value": "one"})),
        ] {
            let line = format!("create crm --base-url https://crm.example.com {flags}");
            let args = Alone::try_parse_from(line.split_whitespace()).ok().unwrap().args;
            let body = args.body(&env).unwrap();
            assert_eq!(body["credential"], wanted, "{flags}");
            assert_eq!(body["name"], "crm");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let line = "create crm --base-url https://crm.example.com --bearer-env NOPE";
        let args = Alone::try_parse_from(line.split(' ')).ok().unwrap().args;
        assert_eq!(args.body(&Env::default()).unwrap_err().to_string(), "NOPE is not set (nor NOPE_FILE)");
    }
}

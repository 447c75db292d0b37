//! `keyward account`: connected accounts, and connecting one without a browser on this machine.

use std::io::{BufRead as _, Write as _};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Subcommand;
use http::{Method, Request, header};
use serde_json::{Value, json};
use url::Url;

use super::api::{Api, ApiArgs, understand};
use super::http as wire;
use super::output::{self, Column, clean};

const COLUMNS: [Column; 7] = [
    ("ID", "/id"),
    ("PROVIDER", "/provider"),
    ("ACCOUNT", "/email|/display_name|/subject"),
    ("STATUS", "/status"),
    ("REASON", "/reason"),
    ("VALIDITY", "/validity"),
    ("TARGETS", "/targets"),
];
const FIELDS: [Column; 15] = [
    ("id", "/id"),
    ("provider", "/provider_name|/provider"),
    ("account", "/email"),
    ("name", "/display_name"),
    ("subject", "/subject"),
    ("status", "/status"),
    ("reason", "/reason"),
    ("validity", "/validity"),
    ("checked", "/checked_at"),
    ("scopes", "/scopes"),
    ("missing scopes", "/missing_scopes"),
    ("token until", "/access_expires_at"),
    ("refresh until", "/refresh_expires_at"),
    ("targets", "/targets"),
    ("connected", "/created_at"),
];

/// What `keyward account` takes.
#[derive(Debug, clap::Args)]
pub struct AccountArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(subcommand)]
    command: AccountCommand,
}

#[derive(Debug, Subcommand)]
enum AccountCommand {
    /// List accounts
    List {
        /// Of this provider
        #[arg(long)]
        provider: Option<String>,
        /// With this status
        #[arg(long, value_parser = ["connected", "degraded", "disconnected"])]
        status: Option<String>,
    },
    /// Show one account
    Show {
        /// The account's id
        id: String,
    },
    /// Connect an account: prints a link for a person to open
    Connect(ConnectArgs),
    /// Ask the provider whether the account works
    Validate {
        /// The account's id
        id: String,
    },
    /// Refresh the account's token now
    Refresh {
        /// The account's id
        id: String,
    },
    /// Disconnect an account: its tokens, targets and grants go
    Disconnect {
        /// The account's id
        id: String,
        /// Also when grants go with it
        #[arg(long)]
        confirm: bool,
    },
}

#[derive(Debug, clap::Args)]
struct ConnectArgs {
    /// The provider's id, as `keyward providers` lists it
    provider: String,
    /// Which capabilities, with commas between them; without it all of the provider's
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    capabilities: Vec<String>,
    /// What to ask for
    #[arg(long, value_parser = ["read", "write"])]
    preset: Option<String>,
    /// Reconnect this account
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// Without a browser that reaches Keyward: sign in anywhere, then paste the address the browser ends at
    #[arg(long)]
    headless: bool,
}

pub async fn run(args: AccountArgs) -> anyhow::Result<()> {
    let api = args.api.open()?;
    let json = args.api.json;
    match args.command {
        AccountCommand::List { provider, status } => {
            let filters = [("provider", provider), ("status", status)];
            let query: Vec<_> = filters.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
            output::list(&api.list(&["accounts"], &query, usize::MAX).await?, &COLUMNS, json)
        }
        AccountCommand::Show { id } => output::record(&api.get(&["accounts", &id], &[]).await?, &FIELDS, json),
        AccountCommand::Connect(wanted) => connect(&api, &wanted, json).await,
        AccountCommand::Validate { id } => {
            let fields = [("valid", "/is_valid"), ("status", "/account/status"), ("reason", "/account/reason")];
            output::record(&api.post(&["accounts", &id, "validate"], &[], None).await?, &fields, json)
        }
        AccountCommand::Refresh { id } => {
            output::record(&api.post(&["accounts", &id, "refresh"], &[], None).await?, &FIELDS, json)
        }
        AccountCommand::Disconnect { id, confirm } => {
            let query: &[(&str, &str)] = if confirm { &[("confirm", "true")] } else { &[] };
            api.delete(&["accounts", &id], query).await?;
            output::say(&format!("{id} is disconnected."));
            Ok(())
        }
    }
}

async fn connect(api: &Api, wanted: &ConnectArgs, json: bool) -> anyhow::Result<()> {
    let capabilities = wanted.capabilities.join(",");
    let mut query = Vec::new();
    if !capabilities.is_empty() {
        query.push(("capabilities", capabilities.as_str()));
    }
    query.extend(wanted.preset.as_deref().map(|preset| ("preset", preset)));
    query.extend(wanted.account.as_deref().map(|account| ("account", account)));
    let link = api.get(&["integrations", &wanted.provider, "auth_link"], &query).await?;
    if !wanted.headless {
        output::say("Open this link in a browser and sign in there:");
        return output::record(&link, &[("link", "/authorization_url"), ("until", "/expires_at")], json);
    }

    let page = link.get("authorization_url").and_then(Value::as_str).context("the answer has no authorization_url")?;
    let sign_in = press_the_button(&page.parse()?).await?;
    output::say("Open this address in any browser and sign in:\n");
    output::say(&clean(&sign_in));
    output::say("\nThe browser ends at an address that may not open. Paste that address here:");
    let (code, state) = read_callback(&read_line()?)?;
    let body = json!({"code": code, "state": state});
    let account = api.post(&["integrations", &wanted.provider, "callback"], &[], Some(body)).await?;
    output::record(&account, &FIELDS, json)
}

/// Does what the button of Keyward's own page does, and answers where it leads: the provider's sign-in.
/// No admin token goes along: the link itself is what allows this.
async fn press_the_button(page: &Url) -> anyhow::Result<String> {
    let request = Request::builder().method(Method::POST).header(header::ORIGIN, page.origin().ascii_serialization());
    let reply = wire::send(page, request, Bytes::new()).await?;
    if reply.status.is_redirection() {
        return reply.location.context("the connect page led nowhere");
    }
    understand(&reply)?;
    bail!("the connect page answered {} instead of leading to the provider", reply.status)
}

fn read_line() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stderr().flush()?;
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Code and state of the address that the provider sent the browser to.
fn read_callback(text: &str) -> anyhow::Result<(String, String)> {
    let url = Url::parse(text).context("that is not an address: paste all of it, from http to the end")?;
    let find = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    if let Some(error) = find("error") {
        let why = find("error_description").map(|why| format!(": {}", clean(&why))).unwrap_or_default();
        bail!("the provider refused: {}{why}", clean(&error));
    }
    find("code").zip(find("state")).context("there is no code in this address: paste the one after signing in")
}

#[cfg(test)]
mod tests {
    use super::super::http::stand_in::answering;
    use super::*;

    #[tokio::test]
    async fn the_button_leads_to_the_provider_and_carries_no_token() {
        let leads =
            "HTTP/1.1 303 See Other\r\nlocation: https://login.example.com/?state=s\r\ncontent-length: 0\r\n\r\n";
        let (url, asked) = answering(vec![leads.to_owned()]).await;
        let page = format!("{url}/connect/flow_1").parse().unwrap();
        assert_eq!(press_the_button(&page).await.unwrap(), "https://login.example.com/?state=s");
        let asked = asked.await.unwrap().remove(0);
        assert!(asked.starts_with("POST /connect/flow_1 HTTP/1.1"), "{asked}");
        assert!(asked.contains(&format!("origin: {url}\r\n")) && !asked.contains("authorization"), "{asked}");
    }

    #[test]
    fn a_pasted_callback_is_read() {
        let url = "http://127.0.0.1:8081/integrations/x/callback?code=a%2Bb&state=s&iss=https%3A%2F%2Fx.example.com";
        assert_eq!(read_callback(url).unwrap(), ("a+b".into(), "s".into()));
        for (text, told) in [
            ("", "that is not an address"),
            ("code=a&state=s", "that is not an address"),
            ("https://login.example.com/authorize?state=s", "there is no code"),
            (
                "http://x.example.com/?error=access_denied&error_description=No",
                "the provider refused: access_denied: No",
            ),
        ] {
            let error = read_callback(text).unwrap_err().to_string();
            assert!(error.starts_with(told), "{text}: {error}");
        }
    }
}

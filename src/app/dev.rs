//! `keyward dev`: everything at once on loopback, for trying Keyward out and for developing agents.
//!
//! A sandbox provider, a gateway on a SQLite file, an account connected through the real OAuth flow (the sandbox's consent
//! page is answered by us), a key with grants, and a `curl` line that works.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use url::Url;

use crate::access::NewKey;
use crate::accounts::{Begin, Callback, Connected, Proof};
use crate::audit::Actor;
use crate::catalog::Preset;
use crate::clock::Clock;
use crate::config::{Config, Env};
use crate::net::{self, ClientLimits, Guard};
use crate::sandbox::{PEOPLE, Sandbox};
use crate::secret::Secret;
use crate::shutdown::Shutdown;
use crate::store::{GrantAccess, OrganizationRow};

use super::{App, Signals, opening, run_until_signal, runtime};

/// What `keyward dev` is told.
#[derive(Debug, Clone)]
pub struct DevOptions {
    /// Where agents connect.
    pub proxy: SocketAddr,
    /// Where people connect.
    pub admin: SocketAddr,
    /// Where the sandbox provider listens.
    pub sandbox: SocketAddr,
    /// Where the data lives; `None`: a temporary folder (or, with `keep`, `keyward-dev` in the working directory).
    pub folder: Option<PathBuf>,
    /// Whether the data stays when the process ends.
    pub keep: bool,
}

/// Runs a gateway with a sandbox provider, a connected account and a key, all on loopback.
///
/// # Errors
/// What kept it from starting.
pub fn dev(options: DevOptions) -> anyhow::Result<()> {
    let (folder, temporary) = folder(&options)?;
    let result = runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let outside = Shutdown::new();
        let sandbox = Sandbox::start(options.sandbox, &outside)
            .await
            .with_context(|| format!("the sandbox can't listen on {}", options.sandbox))?;
        let start = App::start(config(&options, &folder, &sandbox)?, Clock::system());
        let Some(app) = signals.unless_told(start).await? else { return Ok(()) };
        let token = app.new_admin_token().map(Secret::duplicate);
        let welcome = prepare(&app, &sandbox, token.as_ref(), &folder, options.keep).await?;
        opening::say(&welcome);
        run_until_signal(app, signals).await?;
        outside.stop_now();
        let _ = tokio::time::timeout(Duration::from_secs(3), outside.drained()).await;
        Ok(())
    });
    if let Some(temporary) = temporary {
        temporary.close().context("removing the temporary folder")?;
    }
    result
}

fn folder(options: &DevOptions) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    let named = options.folder.clone().or_else(|| options.keep.then(|| PathBuf::from("keyward-dev")));
    if let Some(folder) = named.filter(|_| options.keep) {
        std::fs::create_dir_all(&folder).with_context(|| format!("making the folder {}", folder.display()))?;
        return Ok((folder, None));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix("keyward-dev-");
    let made = match &options.folder {
        Some(parent) => {
            std::fs::create_dir_all(parent).with_context(|| format!("making the folder {}", parent.display()))?;
            builder.tempdir_in(parent)
        }
        None => builder.tempdir(),
    };
    let made = made.context("making a temporary folder")?;
    Ok((made.path().to_owned(), Some(made)))
}

/// The configuration that an operator would write for this.
fn config(options: &DevOptions, folder: &Path, sandbox: &Sandbox) -> anyhow::Result<Config> {
    let text = format!(
        r#"
[proxy]
listen = "{}"
[admin]
listen = "{}"
[store]
url = "sqlite://keyward.db"
[egress]
allow = ["127.0.0.0/8", "::1/128"]
[providers.sandbox.inputs.origin]
default = "{}"
"#,
        options.proxy,
        options.admin,
        sandbox.origin()
    );
    let given = Env::of_process();
    let env = given.with([
        ("OAUTH_SANDBOX_CLIENT_ID", sandbox.client_id().to_owned()),
        ("OAUTH_SANDBOX_CLIENT_SECRET", sandbox.client_secret().to_owned()),
    ]);
    Ok(Config::parse(&text, "keyward dev", folder, env)?)
}

/// Connects an account, makes a key with grants, and says how to use them.
async fn prepare(
    app: &App,
    sandbox: &Sandbox,
    token: Option<&Secret<String>>,
    folder: &Path,
    keep: bool,
) -> anyhow::Result<String> {
    let org = app.store().organization("default").await?.context("the default organization is missing")?;
    let connected = connect(app, &org, PEOPLE[0]).await?;
    let expires_at = None;
    let new = NewKey { name: "dev".to_owned(), expires_at, allowed_ips: Vec::new(), rate_limit: None };
    let (key, secret) = app.access().create_key(org.id, new, &Actor::System).await?;
    for target in &connected.account.targets {
        app.access().put_grant(org.id, key.id, &target.slug, GrantAccess::Write, &Actor::System).await?;
    }
    let mail = connected.account.targets.iter().find(|target| target.capability == "mail");
    let slug = &mail.context("the sandbox has no mail")?.slug;
    let (proxy, admin) = (app.proxy_address(), app.admin_address());
    let admin_token = match token {
        Some(token) => token.expose().clone(),
        None => "(as at the first start, or KEYWARD_ADMIN_TOKEN)".to_owned(),
    };
    let data = if keep { folder.display().to_string() } else { "temporary, gone when this ends".to_owned() };
    Ok(format!(
        r#"
Keyward is running. Ctrl-C ends it.

  dashboard    http://{admin}/
  admin token  {admin_token}
  sandbox      {}
  account      {} at {}, connected
  agent key    {}
  data         {data}

Try it, as an agent would:

  curl -H 'Authorization: Bearer {}' 'http://{proxy}/proxy/{slug}/me/messages?$top=3&$select=subject,from'
  curl -H 'Authorization: Bearer {}' -H 'Accept: text/markdown' http://{proxy}/bootstrap
"#,
        sandbox.origin(),
        connected.account.email.as_deref().unwrap_or("somebody"),
        connected.account.provider,
        secret.expose(),
        secret.expose(),
        secret.expose(),
    ))
}

/// The whole connect flow, with the person's part played by us.
async fn connect(app: &App, org: &OrganizationRow, person: &str) -> anyhow::Result<Connected> {
    let begun = app
        .accounts()
        .begin(Begin {
            organization: org.id,
            provider: "sandbox".to_owned(),
            capabilities: Vec::new(),
            preset: Some(Preset::Write),
            account: None,
            inputs: std::collections::BTreeMap::new(),
            actor: Actor::System,
        })
        .await?;
    let opened = app.accounts().open(begun.flow).await?;
    let back = consent(&opened.authorization_url, person).await?;
    let mut query: std::collections::BTreeMap<String, String> = back.query_pairs().into_owned().collect();
    let callback = Callback {
        provider: "sandbox".to_owned(),
        state: query.remove("state").map(Secret::new),
        code: query.remove("code").map(Secret::new),
        error: query.remove("error"),
        iss: query.remove("iss"),
        rest: query,
    };
    Ok(app.accounts().finish(callback, Proof::Cookie(Some(opened.cookie))).await?)
}

/// Answers the sandbox's consent page: this person allows everything that is asked for.
async fn consent(authorization_url: &str, person: &str) -> anyhow::Result<Url> {
    let url = Url::parse(authorization_url)?;
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in url.query_pairs() {
        if name == "scope" {
            for scope in value.split(' ') {
                form.append_pair("granted", scope);
            }
        }
        form.append_pair(&name, &value);
    }
    form.append_pair("person", person).append_pair("decision", "allow");
    let request = Request::post(&url[..url::Position::AfterPath])
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Bytes::from(form.finish()))?;
    let guard = Arc::new(Guard::new(vec!["127.0.0.0/8".parse()?, "::1/128".parse()?]));
    let client = net::Client::new(guard, Arc::clone(net::ClientTls::new(&[], None)?.http1()));
    let limits = ClientLimits { connect: Duration::from_secs(5), total: Duration::from_secs(10), body: 64 * 1024 };
    let answer = client.call(request, &limits).await?;
    if answer.status() != StatusCode::SEE_OTHER {
        bail!("the sandbox's consent page answered {}", answer.status());
    }
    let location = answer.headers().get(header::LOCATION).context("the sandbox sent nobody back")?;
    Ok(Url::parse(location.to_str()?)?)
}

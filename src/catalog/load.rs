//! TOML in, checked [`Provider`](super::Provider)s out; every mistake names its file and key.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use toml::{Table, Value};

use crate::config::Env;

use super::keys::{Keys, OWN_FILE, Source};
use super::{ClientAuth, ClientCredentials, Provider, check, embedded};

/// One mistake in a provider's data.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {key}: {problem}")]
pub struct CatalogError {
    /// The embedded file's name, `gateway.toml`, or `environment`.
    pub file: String,
    /// Dotted key, or the variable.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

pub(super) fn load(overrides: &Table, env: &Env) -> Result<BTreeMap<String, Arc<Provider>>, Vec<CatalogError>> {
    load_from(embedded::FILES, overrides, env)
}

/// As [`load`], from other files: for tests.
pub(super) fn load_from(
    files: &[(&str, &str)],
    overrides: &Table,
    env: &Env,
) -> Result<BTreeMap<String, Arc<Provider>>, Vec<CatalogError>> {
    let errors = RefCell::new(Vec::new());
    let mut ours = BTreeMap::new();
    for (file, text) in files {
        match text.parse::<Table>() {
            Ok(table) => {
                ours.insert(file.trim_end_matches(".toml"), (*file, table));
            }
            Err(cause) => errors.borrow_mut().push(CatalogError {
                file: (*file).to_owned(),
                key: "(whole file)".into(),
                problem: cause.to_string().trim_end().to_owned(),
            }),
        }
    }

    let mut providers = BTreeMap::new();
    let mut add = |source: &Source<'_>, merged: &Table| {
        let before = errors.borrow().len();
        let provider = check::provider(source.id, Keys::new(source, merged, &errors));
        // The environment is looked at even then: all mistakes in one go.
        let client = client(&provider.env, provider.oauth.client_auth, env, &errors);
        if errors.borrow().len() == before {
            providers.insert(source.id.to_owned(), Arc::new(Provider { client, ..provider }));
        }
    };
    for (id, (file, table)) in &ours {
        let own = overrides.get(*id).and_then(Value::as_table);
        let merged = own.map_or_else(|| table.clone(), |own| merge(table, own));
        add(&Source { id, embedded: Some((file, table)), own }, &merged);
    }
    for (id, value) in overrides {
        match value {
            Value::Table(own) if !ours.contains_key(id.as_str()) => {
                add(&Source { id, embedded: None, own: Some(own) }, own);
            }
            Value::Table(_) => {}
            _ => errors.borrow_mut().push(CatalogError {
                file: OWN_FILE.into(),
                key: format!("providers.{id}"),
                problem: "must be a table with a provider's keys".into(),
            }),
        }
    }

    let errors = errors.into_inner();
    if errors.is_empty() { Ok(providers) } else { Err(errors) }
}

/// Key by key: tables are merged, anything else is replaced.
fn merge(base: &Table, over: &Table) -> Table {
    let mut merged = base.clone();
    for (key, value) in over {
        let value = match (merged.get(key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => Value::Table(merge(old, new)),
            _ => value.clone(),
        };
        merged.insert(key.clone(), value);
    }
    merged
}

/// The operator's app at the provider. Secrets come from the environment alone.
fn client(name: &str, auth: ClientAuth, env: &Env, errors: &RefCell<Vec<CatalogError>>) -> Option<ClientCredentials> {
    let id_name = format!("OAUTH_{name}_CLIENT_ID");
    let secret_name = format!("OAUTH_{name}_CLIENT_SECRET");
    let fail = |key: String, problem: String| {
        let mut errors = errors.borrow_mut();
        // Two providers may share one app; its mistake is told once.
        if !errors.iter().any(|known: &CatalogError| known.file == "environment" && known.key == key) {
            errors.push(CatalogError { file: "environment".into(), key, problem });
        }
        None
    };
    let secret = match env.secret(&secret_name) {
        Ok(secret) => secret.filter(|secret| !secret.expose().is_empty()),
        Err(cause) => return fail(cause.name, cause.problem),
    };
    match (env.get(&id_name), secret) {
        (None, None) => None,
        (Some(_), None) if auth != ClientAuth::None => {
            let problem = format!("is not set (nor {secret_name}_FILE), but {id_name} is; an app needs both");
            fail(secret_name, problem)
        }
        (None, Some(_)) => {
            let problem = format!("is not set, but {secret_name} is; an app needs both");
            fail(id_name, problem)
        }
        (Some(id), secret) => Some(ClientCredentials { id: id.to_owned(), secret }),
    }
}

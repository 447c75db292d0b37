//! What must be known to be good before a port is bound: catalog, sealing keys, admin token.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::catalog::Catalog;
use crate::config::{Config, StoreUrl, TlsFiles};
use crate::ids;
use crate::net::Identity;
use crate::secret::{Secret, sha256};
use crate::store::Store;
use crate::vault::{CHECK_PLACE, Keyring, Sealed, Vault};

/// Everything that `keyward check` checks: configuration that was read, and its catalog.
///
/// # Errors
/// All mistakes, one line each.
pub fn check(config: &Config) -> anyhow::Result<Catalog> {
    catalog(config)
}

pub(super) fn catalog(config: &Config) -> anyhow::Result<Catalog> {
    Catalog::load(&config.providers, &config.env).map_err(|mistakes| {
        let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        anyhow!("{}", lines.join("\n"))
    })
}

/// A listener's certificate, when it has one; `section` is where the configuration names it.
pub(super) fn identity(files: Option<&TlsFiles>, section: &'static str) -> anyhow::Result<Option<Arc<Identity>>> {
    files.map(|files| Identity::load(&files.cert, &files.key).context(section)).transpose()
}

/// The given keys; with SQLite, else the file beside the database (made at the first start).
pub(super) fn keyring(config: &Config) -> anyhow::Result<Keyring> {
    match (&config.sealing_keys, &config.store) {
        (Some(keys), _) => Ok(Keyring::parse(keys)?),
        (None, StoreUrl::Sqlite(path)) => {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
            }
            Ok(Keyring::open_or_create(&key_file(path))?)
        }
        (None, StoreUrl::Postgres(_)) => bail!(
            "with Postgres the sealing keys must be given: set KEYWARD_SEALING_KEYS (or KEYWARD_SEALING_KEYS_FILE) to `id:base64` of 32 random bytes, the same on every instance"
        ),
    }
}

/// Where the sealing keys of a SQLite store are, unless they are given.
pub(super) fn key_file(database: &Path) -> PathBuf {
    database.with_extension("keys")
}

/// A vault whose keys open what this store holds.
pub(super) async fn vault(keyring: Keyring, store: &Store) -> anyhow::Result<Vault> {
    let vault = Vault::new(keyring);
    let check = store.fact_or_insert(CHECK_PLACE.row, vault.seal_check().as_bytes()).await?;
    vault
        .verify_check(&Sealed::from_bytes(check))
        .context("the sealing keys are not the ones that this store was sealed with; nothing was changed")?;
    Ok(vault)
}

/// The hash of the admin token, and the token itself when it was made just now.
pub(super) async fn admin_token(config: &Config, store: &Store) -> anyhow::Result<([u8; 32], Option<Secret<String>>)> {
    if let Some(token) = &config.admin.token {
        return Ok((sha256(token.expose().as_bytes()), None));
    }
    let token = Secret::new(format!("kwa_{}", URL_SAFE_NO_PAD.encode(ids::random::<32>())));
    let hash = sha256(token.expose().as_bytes());
    let stored = store.fact_or_insert("admin_token_hash", &hash).await?;
    let stored: [u8; 32] = stored.try_into().map_err(|_| anyhow!("the stored admin token is damaged"))?;
    Ok((stored, (stored == hash).then_some(token)))
}

/// Says something to the person at the terminal; a closed one is nobody's problem.
pub(super) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

//! Work on a store that no gateway does by itself: bringing its schema up to date, moving it, sealing it with a new key.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::clock::Clock;
use crate::config::{Config, StoreUrl};
use crate::store::{Copied, Progress, Resealed, Store};
use crate::vault::{CHECK_PLACE, Keyring, Place, Sealed, Vault};

use super::opening;

/// How sealing keys that are given are exchanged; with a key file `--new-key` does the first two steps.
pub const NEW_KEY_STEPS: &str = "\
To change the sealing key when it is given by KEYWARD_SEALING_KEYS (a new one: openssl rand -base64 32):
  1. Put the new key behind the old one, \"old:…,new:…\", and restart every instance: now all can open with it.
  2. Put it first, \"new:…,old:…\", and restart every instance: now all seal with it.
  3. Run `keyward seal rotate` with the same value. When it says that nothing remains under the old key, take the old
     key out and restart; keep it with the backups made before.";

/// What `keyward seal rotate` did.
#[derive(Debug)]
pub enum Rotated {
    /// Everything that could be opened is sealed with the primary key.
    Resealed {
        /// The primary key's id.
        primary: String,
        /// Ids of the other keys that were given.
        older: Vec<String>,
        /// Counts, and what did not open.
        outcome: Resealed,
    },
    /// A new key is in the key file, but a gateway that does not know it yet has the store open: it must be restarted
    /// before anything is sealed with that key.
    KeyAdded {
        /// The new key's id.
        id: String,
    },
}

/// The file with the sealing keys, when they are not given.
#[must_use]
pub fn key_file(config: &Config) -> Option<PathBuf> {
    match (&config.sealing_keys, &config.store) {
        (None, StoreUrl::Sqlite(path)) => Some(key_file_beside(path)),
        _ => None,
    }
}

/// Where a SQLite store's sealing keys are, unless they are given.
#[must_use]
pub fn key_file_beside(database: &Path) -> PathBuf {
    opening::key_file(database)
}

/// Makes the store, or brings its schema up to date; answers its version.
///
/// # Errors
/// In words for the operator.
pub async fn migrate(config: &Config, clock: &Clock) -> anyhow::Result<i64> {
    let store = Store::open(&config.store, clock.now()).await.context("opening the store")?;
    let version = store.schema_version().await?;
    store.close().await;
    Ok(version)
}

/// Copies the configured store into `to`, which must be fresh. No gateway may run on either.
///
/// # Errors
/// In words for the operator; `to` holds nothing of the copy then.
pub async fn copy(config: &Config, to: &StoreUrl, tell: impl FnMut(Progress)) -> anyhow::Result<Copied> {
    must_exist(&config.store)?;
    nothing_spilled(config)?;
    let keyring = standing_keyring(config)?;
    if Store::is_in_use(&config.store).await.context("looking at the store")? {
        bail!("{} is open elsewhere: stop every gateway on it, then copy", config.store);
    }
    let source = Store::open_as_is(&config.store).await.context("opening the store")?;
    let vault = fitting_vault(keyring, &source).await?;
    let destination = Store::open_as_is(to).await.with_context(|| format!("opening {to}"))?;
    let opens = |place: Place<'_>, sealed: &Sealed| vault.open(place, sealed).map(drop);
    let copied = source.copy_to(&destination, opens, tell).await;
    destination.close().await;
    source.close().await;
    copied.with_context(|| format!("copying {} into {to}", config.store))
}

/// Seals everything in the configured store with the primary key, while gateways may work on it. `new_key`: puts a fresh
/// key in front of the key file first.
///
/// # Errors
/// In words for the operator. What was sealed again stays so, and a later run goes on.
pub async fn rotate(config: &Config, new_key: bool, tell: impl FnMut(Progress)) -> anyhow::Result<Rotated> {
    must_exist(&config.store)?;
    nothing_spilled(config)?;
    if new_key {
        let Some(file) = key_file(config) else {
            bail!(
                "the sealing keys are given by KEYWARD_SEALING_KEYS, so --new-key has no file to change.\n{NEW_KEY_STEPS}"
            );
        };
        if let Some(id) = add_key(config, &file).await? {
            return Ok(Rotated::KeyAdded { id });
        }
    }
    let store = Store::open_as_is(&config.store).await.context("opening the store")?;
    let vault = fitting_vault(standing_keyring(config)?, &store).await?;
    let again = |place: Place<'_>, sealed: &Sealed| vault.seal_again(place, sealed);
    let outcome = store.reseal(&vault.primary_start(), again, tell).await;
    store.close().await;
    Ok(Rotated::Resealed {
        primary: vault.keyring().primary_id().to_owned(),
        older: vault.keyring().older_ids().into_iter().map(str::to_owned).collect(),
        outcome: outcome.context("sealing again; run `keyward seal rotate` to go on")?,
    })
}

/// Adds a key to the file. Answers its id when a gateway has to learn it first.
async fn add_key(config: &Config, file: &Path) -> anyhow::Result<Option<String>> {
    let in_use = Store::is_in_use(&config.store).await.context("looking at the store")?;
    let store = Store::open_as_is(&config.store).await.context("opening the store")?;
    let vault = fitting_vault(Keyring::open_file(file)?, &store).await?;
    let remaining = store.sealed_otherwise(&vault.primary_start()).await?;
    store.close().await;
    if remaining > 0 {
        bail!(
            "{remaining} values are not sealed with the newest key of {} yet: run `keyward seal rotate` without --new-key first",
            file.display()
        );
    }
    let id = Keyring::add_primary(file)?;
    Ok(in_use.then_some(id))
}

/// The given keys, or those of the key file: it is made by a gateway's first start, never here.
fn standing_keyring(config: &Config) -> anyhow::Result<Keyring> {
    match key_file(config) {
        Some(file) => Ok(Keyring::open_file(&file)?),
        None => opening::keyring(config),
    }
}

/// A vault whose keys open what this store holds. A store that never served has sealed nothing yet.
async fn fitting_vault(keyring: Keyring, store: &Store) -> anyhow::Result<Vault> {
    let vault = Vault::new(keyring);
    if let Some(check) = store.fact(CHECK_PLACE.row).await? {
        vault
            .verify_check(&Sealed::from_bytes(check))
            .context("the sealing keys are not the ones that this store was sealed with; nothing was changed")?;
    }
    Ok(vault)
}

/// Opening makes a SQLite file when there is none; a mistyped path must not.
fn must_exist(store: &StoreUrl) -> anyhow::Result<()> {
    match store {
        StoreUrl::Sqlite(path) if !path.exists() => bail!("there is no store at {}", path.display()),
        _ => Ok(()),
    }
}

/// Tokens that a gateway could not store before its end wait in files, sealed: they belong to the store, and neither a copy
/// nor a new key may leave them behind.
fn nothing_spilled(config: &Config) -> anyhow::Result<()> {
    let waiting = std::fs::read_dir(&config.spill).is_ok_and(|mut files| files.next().is_some());
    if waiting {
        bail!(
            "new tokens that could not be stored wait in {}: start Keyward once, so that it takes them in, and try again",
            config.spill.display()
        );
    }
    Ok(())
}

//! The last resort: when the process must end and the store still takes nothing, a refresh token that exists only in memory
//! goes, sealed, into a file. The next start takes it back as a candidate, and the account's unresolved refresh tries it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::ids::{AccountId, CandidateId};
use crate::secret::Secret;
use crate::store::CandidateRow;
use crate::vault::{Place, Sealed};

use super::Accounts;

/// A file's content. Its name is the candidate's id.
#[derive(serde::Serialize, serde::Deserialize)]
struct Spilled {
    account: AccountId,
    token: String,
}

impl Accounts {
    /// Seals a refresh token as a candidate.
    pub(super) fn seal_candidate(&self, refresh: &Secret<String>) -> (CandidateId, Sealed) {
        let id = CandidateId::new();
        let row = id.to_string();
        let place = Place { table: "token_candidates", row: &row, column: "token" };
        (id, self.parts.vault.seal(place, refresh.expose().as_bytes()))
    }

    /// Writes a refresh token into a file of its own, durably.
    pub(super) fn spill(&self, account: AccountId, refresh: &Secret<String>) {
        let (id, sealed) = self.seal_candidate(refresh);
        let spilled = Spilled { account, token: STANDARD.encode(sealed.as_bytes()) };
        let folder = &self.parts.spill;
        match write(folder, &id.to_string(), &spilled) {
            Ok(()) => tracing::error!(account.id = %account, folder = %folder.display(),
                "new tokens could not be stored before the end; they wait, sealed, in a file for the next start"),
            Err(cause) => tracing::error!(account.id = %account, folder = %folder.display(), %cause,
                "new tokens could not be stored before the end, nor written to a file: the account may need to be reconnected"),
        }
    }

    /// Takes back what an earlier process left in files. Answers how many.
    ///
    /// # Errors
    /// When the store or the folder fails; the files stay.
    pub async fn take_spilled(&self) -> anyhow::Result<usize> {
        let entries = match fs::read_dir(&self.parts.spill) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let mut taken = 0;
        for entry in entries {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<CandidateId>().ok());
            let (Some(id), Ok(spilled)) = (id, read(&path)) else {
                tracing::warn!(file = %path.display(), "this file is not a spilled token; it is left alone");
                continue;
            };
            let sealed = Sealed::from_bytes(STANDARD.decode(&spilled.token)?);
            let revived = |organization| self.revived(spilled.account, organization);
            let (store, now) = (&self.parts.store, self.parts.clock.now());
            if !store.insert_candidate(id, spilled.account, &sealed, now, revived).await? {
                // Disconnected since: nobody wants it any more.
                let candidate = CandidateRow { id, token: sealed, successor_of: None };
                let Some(token) = self.candidate(&candidate) else { continue };
                self.give_up(spilled.account, "refresh_token", &token).await;
            }
            fs::remove_file(&path)?;
            taken += 1;
        }
        Ok(taken)
    }
}

fn write(folder: &Path, name: &str, spilled: &Spilled) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name))?;
    file.write_all(serde_json::to_string(spilled)?.as_bytes())?;
    file.sync_all()?;
    fs::File::open(folder)?.sync_all()
}

fn read(path: &Path) -> io::Result<Spilled> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

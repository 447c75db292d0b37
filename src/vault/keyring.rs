//! The sealing keys: several may open, the first seals.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, RandomizedNonceKey};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::{Zeroize, Zeroizing};

use crate::ids::random;
use crate::secret::Secret;

const KEY_LEN: usize = 32;
const MAX_ID_LEN: usize = 32;
/// Far more than anybody has keys; a file beyond this is not a key file.
const MAX_FILE_LEN: u64 = 64 * 1024;

/// Writes with padding, reads with or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// 256-bit keys by id; the first is the primary.
pub struct Keyring {
    primary: SealingKey,
    older: Vec<SealingKey>,
}

/// One key and the id that stands in what it seals.
pub(super) struct SealingKey {
    pub(super) id: String,
    pub(super) key: RandomizedNonceKey,
}

/// Why there are no usable keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The text is not `id:base64,…`.
    #[error("KEYWARD_SEALING_KEYS: {0}")]
    Malformed(String),
    /// The key file can't be read or made.
    #[error("sealing key file {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Keyring {
    /// Reads `id:base64,id:base64…`; ids are `[a-z0-9-]{1,32}`, keys 32 bytes. Both alphabets of base 64 are taken, with
    /// padding or without; entries may also stand on lines of their own.
    ///
    /// # Errors
    /// [`KeyringError::Malformed`], which never repeats key material.
    pub fn parse(text: &Secret<String>) -> Result<Self, KeyringError> {
        read_keys(text.expose()).map_err(KeyringError::Malformed)
    }

    /// Reads the key file, or makes one with a fresh key and mode 0600 when there is none.
    ///
    /// # Errors
    /// [`KeyringError`]; also when the file may be read by others than its owner.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyringError> {
        let file_error = |source| KeyringError::File { path: path.display().to_string(), source };
        let text = match File::open(path) {
            Ok(file) => read_file(file),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => match create_file(path) {
                // Somebody else was faster: theirs counts.
                Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => File::open(path).and_then(read_file),
                made => made,
            },
            Err(other) => Err(other),
        }
        .map_err(file_error)?;
        read_keys(text.expose()).map_err(|problem| file_error(io::Error::new(io::ErrorKind::InvalidData, problem)))
    }

    /// Reads the key file, which must be there.
    ///
    /// # Errors
    /// As [`Keyring::open_or_create`].
    pub fn open_file(path: &Path) -> Result<Self, KeyringError> {
        let file_error = |source| KeyringError::File { path: path.display().to_string(), source };
        let text = File::open(path).and_then(read_file).map_err(file_error)?;
        read_keys(text.expose()).map_err(|problem| file_error(io::Error::new(io::ErrorKind::InvalidData, problem)))
    }

    /// Puts a fresh key in front of those in the key file; answers its id. The file is replaced whole or not at all.
    ///
    /// # Errors
    /// As [`Keyring::open_file`].
    pub fn add_primary(path: &Path) -> Result<String, KeyringError> {
        prepend(path).map_err(|source| KeyringError::File { path: path.display().to_string(), source })
    }

    /// The primary key's id.
    #[must_use]
    pub fn primary_id(&self) -> &str {
        &self.primary.id
    }

    /// The ids of the keys that only open.
    #[must_use]
    pub fn older_ids(&self) -> Vec<&str> {
        self.older.iter().map(|key| key.id.as_str()).collect()
    }

    pub(super) fn primary(&self) -> &SealingKey {
        &self.primary
    }

    pub(super) fn by_id(&self, id: &str) -> Option<&SealingKey> {
        std::iter::once(&self.primary).chain(&self.older).find(|key| key.id == id)
    }
}

pub(super) fn is_key_id(id: &str) -> bool {
    (1..=MAX_ID_LEN).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// The keys in `text`, or a problem in words. A piece of the text is repeated only when it is a well-formed id.
fn read_keys(text: &str) -> Result<Keyring, String> {
    let mut keys: Vec<SealingKey> = Vec::new();
    for (at, entry) in text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty()).enumerate() {
        let place = at + 1;
        let (id, encoded) =
            entry.split_once(':').ok_or_else(|| format!("entry {place} is not of the form id:base64"))?;
        if !is_key_id(id) {
            return Err(format!("the id of entry {place} is not 1 to 32 characters of a-z, 0-9 and -"));
        }
        if keys.iter().any(|key| key.id == id) {
            return Err(format!("the id `{id}` stands there twice"));
        }
        let bytes = decode_key(encoded).ok_or_else(|| {
            format!("the key `{id}` is not base 64 of {KEY_LEN} bytes (make one with: openssl rand -base64 32)")
        })?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes[..]).expect("AES-256-GCM takes every 32 bytes");
        keys.push(SealingKey { id: id.to_owned(), key });
    }
    let mut keys = keys.into_iter();
    let primary = keys.next().ok_or("there is no key; the form is id:base64,id:base64…")?;
    Ok(Keyring { primary, older: keys.collect() })
}

fn decode_key(encoded: &str) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let standard = Zeroizing::new(encoded.replace('-', "+").replace('_', "/"));
    let decoded = Zeroizing::new(BASE64.decode(standard.as_bytes()).ok()?);
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    (decoded.len() == KEY_LEN).then(|| key.copy_from_slice(&decoded))?;
    Some(key)
}

fn read_file(file: File) -> io::Result<Secret<String>> {
    // Asked of the open file, so that nobody can change it between the check and the reading.
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if about.mode() & 0o077 != 0 {
        let problem = format!(
            "it is open to others than its owner (mode {:04o}); run chmod 600 on it, and renew the keys if others could read it",
            about.mode() & 0o7777
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    let mut text = String::new();
    let read = file.take(MAX_FILE_LEN).read_to_string(&mut text);
    let text = Secret::new(text);
    read.map(|_| text)
}

/// A fresh key's id and its line. The id is random too: after a lost key file the message is then "unknown key", not
/// "damaged".
fn fresh_line() -> (String, Secret<String>) {
    let mut key: [u8; KEY_LEN] = random();
    let id = format!("k{:08x}", u32::from_be_bytes(random()));
    let mut encoded = BASE64.encode(key);
    key.zeroize();
    let text = Secret::new(format!("{id}:{encoded}\n"));
    encoded.zeroize();
    (id, text)
}

/// The new content goes to a file beside and takes the old one's name: at every moment one of the two is there, whole.
fn prepend(path: &Path) -> io::Result<String> {
    // A link stays one; what it points to is replaced.
    let path = path.canonicalize()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    // Two at once would each replace the file, and the key of one of them would be lost with everything it sealed.
    let lock = File::open(folder)?;
    lock.lock()?;

    let old = File::open(&path)?;
    let about = old.metadata()?;
    let old = read_file(old)?;
    if old.expose().len() as u64 >= MAX_FILE_LEN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long for a key file"));
    }
    read_keys(old.expose()).map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))?;
    let (id, line) = fresh_line();

    // Made with mode 0600; gone again if anything below fails.
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    let made = new.as_file().metadata()?;
    if (made.uid(), made.gid()) != (about.uid(), about.gid()) {
        // Run by root for a gateway that is not: it must still be able to read its keys.
        fchown(new.as_file(), Some(about.uid()), Some(about.gid()))?;
    }
    new.write_all(line.expose().as_bytes())?;
    new.write_all(old.expose().as_bytes())?;
    new.as_file().sync_all()?;
    new.persist(&path).map_err(|failed| failed.error)?;
    lock.sync_all()?;
    Ok(id)
}

/// Makes the file, which must not exist, with one fresh key.
fn create_file(path: &Path) -> io::Result<Secret<String>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let (_, text) = fresh_line();
    let written = file.write_all(text.expose().as_bytes()).and_then(|()| file.sync_all());
    if let Err(problem) = written {
        // Half a key file would stop every later start; it sealed nothing yet.
        let _ = std::fs::remove_file(path);
        return Err(problem);
    }
    // The name must survive a power cut as surely as the tokens sealed under it.
    File::open(folder)?.sync_all()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn parse(text: &str) -> Result<Keyring, String> {
        Keyring::parse(&Secret::new(text.to_owned())).map_err(|error| error.to_string())
    }

    #[test]
    fn both_alphabets_are_read_with_padding_or_without() {
        let bytes = [0xfbu8; 32];
        let standard = base64::engine::general_purpose::STANDARD.encode(bytes);
        let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        assert_ne!(standard.trim_end_matches('='), url_safe);
        for encoded in [standard.as_str(), standard.trim_end_matches('='), url_safe.as_str(), &format!("{url_safe}=")] {
            assert_eq!(*decode_key(encoded).expect(encoded), bytes);
        }
        let ring = parse(&format!(" new:{standard} ,\n old-1:{url_safe}\n")).unwrap();
        assert_eq!(ring.primary_id(), "new");
        assert!(ring.by_id("old-1").is_some());
        assert!(ring.by_id("gone").is_none());
    }

    #[test]
    fn mistakes_are_named_without_repeating_keys() {
        let key = BASE64.encode([7u8; 32]);
        let table = [
            (String::new(), "there is no key"),
            (key.clone(), "entry 1 is not of the form id:base64"),
            (format!("a:{key},{key}"), "entry 2 is not of the form id:base64"),
            (format!("Aa:{key}"), "the id of entry 1"),
            (format!("{}:{key}", "a".repeat(33)), "the id of entry 1"),
            (format!("a:{key},a:{key}"), "`a` stands there twice"),
            (format!("a:{}", BASE64.encode([7u8; 16])), "the key `a`"),
            (format!("a:{}", &key[1..]), "the key `a`"),
            (format!("a:{key}!"), "the key `a`"),
        ];
        for (text, wanted) in table {
            let message = parse(&text).err().unwrap_or_default();
            assert!(message.contains(wanted), "{message} should say {wanted}");
            assert!(!message.contains(&key[..20]), "{message} repeats the key");
        }
    }

    #[test]
    fn a_key_file_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/keyward.keys");
        let made = Keyring::open_or_create(&path).unwrap();
        let again = Keyring::open_or_create(&path).unwrap();
        assert_eq!(made.primary_id(), again.primary_id());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_file_open_to_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyward.keys");
        Keyring::open_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let message = Keyring::open_or_create(&path).err().unwrap().to_string();
            assert!(message.contains("chmod 600"), "{message}");
        }
    }

    #[test]
    fn a_new_key_goes_in_front_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyward.keys");
        assert!(Keyring::add_primary(&path).is_err(), "there must be a file");
        let first = Keyring::open_or_create(&path).unwrap();
        let link = folder.path().join("link.keys");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let second = Keyring::add_primary(&link).unwrap();
        let third = Keyring::add_primary(&path).unwrap();
        let ring = Keyring::open_file(&path).unwrap();
        assert_eq!(ring.primary_id(), third);
        assert_eq!(ring.older_ids(), [second.as_str(), first.primary_id()]);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside");
    }

    #[test]
    fn no_key_is_lost_when_several_are_added_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyward.keys");
        Keyring::open_or_create(&path).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| Keyring::add_primary(&path).unwrap());
            }
        });
        assert_eq!(Keyring::open_file(&path).unwrap().older_ids().len(), 8);
    }

    #[test]
    fn a_damaged_key_file_is_named_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyward.keys");
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        let message = Keyring::open_or_create(&path).err().unwrap().to_string();
        assert!(message.contains("keyward.keys") && message.contains("there is no key"), "{message}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}

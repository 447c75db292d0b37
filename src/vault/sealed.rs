//! One sealed value, and the two operations on it.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce};
use zeroize::Zeroize;

use crate::secret::Secret;

use super::Keyring;
use super::keyring::is_key_id;

const VERSION: u8 = 1;

/// Between the parts of the associated data. Table, column and key id can't hold it, so the parts can't be cut
/// another way, whatever the row is called.
const SEPARATOR: u8 = 0x1f;

/// Where the value stands that tells whether the sealing keys are the ones this store was made with.
pub const CHECK_PLACE: Place<'static> = Place { table: "facts", row: "sealing_check", column: "value" };

const CHECK_PLAIN: &[u8] = b"keyward sealing check";

/// A sealed value as it stands in a column of bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// From the bytes of a column. Nothing is checked here: opening checks.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes for a column.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The id of the key that sealed it; `None` when it is not in the sealed form.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        self.parts().map(|(id, ..)| id)
    }

    /// Key id, nonce, and ciphertext with tag.
    fn parts(&self) -> Option<(&str, [u8; NONCE_LEN], &[u8])> {
        let (&version, rest) = self.0.split_first()?;
        let (&id_len, rest) = rest.split_first()?;
        let (id, rest) = rest.split_at_checked(usize::from(id_len))?;
        let (nonce, ciphertext) = rest.split_first_chunk()?;
        let id = std::str::from_utf8(id).ok().filter(|id| is_key_id(id))?;
        (version == VERSION).then_some((id, *nonce, ciphertext))
    }
}

/// Where a sealed value lives; it opens nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Table name.
    pub table: &'static str,
    /// The row's primary key, as text.
    pub row: &'a str,
    /// Column name.
    pub column: &'static str,
}

impl Place<'_> {
    fn associated_data(&self, key_id: &str) -> Aad<Vec<u8>> {
        let parts = [self.table, self.row, self.column, key_id].map(str::as_bytes);
        Aad::from(parts.join(&SEPARATOR))
    }

    const fn damaged(&self) -> VaultError {
        VaultError::Damaged { table: self.table, column: self.column }
    }
}

/// Why a value does not open.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VaultError {
    /// The value is not in the sealed form, was sealed for another place, or with another key of the same id.
    #[error("a sealed value in {table}.{column} is damaged")]
    Damaged {
        /// Table name.
        table: &'static str,
        /// Column name.
        column: &'static str,
    },
    /// Sealed with a key that this process was not given.
    #[error("a value in {table}.{column} was sealed with key `{key_id}`, which is not among the sealing keys")]
    UnknownKey {
        /// Table name.
        table: &'static str,
        /// Column name.
        column: &'static str,
        /// The key's id as written in the value.
        key_id: String,
    },
}

/// Seals and opens with a [`Keyring`].
pub struct Vault {
    keyring: Keyring,
}

impl Vault {
    /// A vault over these keys.
    #[must_use]
    pub fn new(keyring: Keyring) -> Self {
        Self { keyring }
    }

    /// Seals `plain` for `place` with the primary key and a fresh random nonce.
    ///
    /// # Panics
    /// When the operating system has no randomness to give; nothing safe can be done then.
    #[must_use]
    pub fn seal(&self, place: Place<'_>, plain: &[u8]) -> Sealed {
        let primary = self.keyring.primary();
        // Room for the tag from the start: growing would leave a copy of the plain value behind.
        let mut text = Vec::with_capacity(plain.len() + AES_256_GCM.tag_len());
        text.extend_from_slice(plain);
        let nonce = primary
            .key
            .seal_in_place_append_tag(place.associated_data(&primary.id), &mut text)
            .expect("AES-256-GCM seals anything that fits a column");
        let mut sealed = self.primary_start();
        sealed.reserve_exact(NONCE_LEN + text.len());
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&text);
        Sealed(sealed)
    }

    /// Opens a value that was sealed for `place`.
    ///
    /// # Errors
    /// [`VaultError`]: another place, another key, or damaged bytes.
    pub fn open(&self, place: Place<'_>, sealed: &Sealed) -> Result<Secret<Vec<u8>>, VaultError> {
        self.open_bytes(place, sealed).map(Secret::new)
    }

    /// As [`Vault::open`], for text.
    ///
    /// # Errors
    /// As [`Vault::open`]; not UTF-8 counts as damaged.
    pub fn open_text(&self, place: Place<'_>, sealed: &Sealed) -> Result<Secret<String>, VaultError> {
        String::from_utf8(self.open_bytes(place, sealed)?).map(Secret::new).map_err(|not_text| {
            not_text.into_bytes().zeroize();
            place.damaged()
        })
    }

    /// The bytes that everything begins with that the primary key sealed, and nothing else.
    #[must_use]
    pub fn primary_start(&self) -> Vec<u8> {
        let id = &self.keyring.primary().id;
        let id_len = u8::try_from(id.len()).expect("a key id has at most 32 characters");
        [&[VERSION, id_len], id.as_bytes()].concat()
    }

    /// Whether the primary key sealed this.
    #[must_use]
    pub fn is_primary(&self, sealed: &Sealed) -> bool {
        sealed.key_id() == Some(self.keyring.primary_id())
    }

    /// The same secret for the same place, sealed with the primary key.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn seal_again(&self, place: Place<'_>, sealed: &Sealed) -> Result<Sealed, VaultError> {
        let plain = self.open(place, sealed)?;
        Ok(self.seal(place, plain.expose()))
    }

    /// The keys that it seals and opens with.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// A known value, sealed for [`CHECK_PLACE`]: stored once, it tells at every start whether the keys fit the store.
    #[must_use]
    pub fn seal_check(&self) -> Sealed {
        self.seal(CHECK_PLACE, CHECK_PLAIN)
    }

    /// Whether these keys are the ones that [`Vault::seal_check`]'s value was sealed with.
    ///
    /// # Errors
    /// [`VaultError::UnknownKey`] when the key is missing, [`VaultError::Damaged`] when another key has its id.
    pub fn verify_check(&self, sealed: &Sealed) -> Result<(), VaultError> {
        let plain = self.open(CHECK_PLACE, sealed)?;
        if plain.expose() == CHECK_PLAIN { Ok(()) } else { Err(CHECK_PLACE.damaged()) }
    }

    fn open_bytes(&self, place: Place<'_>, sealed: &Sealed) -> Result<Vec<u8>, VaultError> {
        let (key_id, nonce, ciphertext) = sealed.parts().ok_or(place.damaged())?;
        let key = self.keyring.by_id(key_id).ok_or_else(|| VaultError::UnknownKey {
            table: place.table,
            column: place.column,
            key_id: key_id.to_owned(),
        })?;
        let mut text = ciphertext.to_vec();
        let plain_len = key
            .key
            .open_in_place(Nonce::from(&nonce), place.associated_data(key_id), &mut text)
            .map_err(|_| place.damaged())?
            .len();
        text.truncate(plain_len);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const ACCESS: Place<'static> = Place { table: "accounts", row: "acc_1", column: "access_token" };

    /// A vault with keys that are their id's first byte, 32 times.
    fn vault(ids: &[&str]) -> Vault {
        use base64::Engine;
        let entries: Vec<String> = ids
            .iter()
            .map(|id| format!("{id}:{}", base64::engine::general_purpose::STANDARD.encode([id.as_bytes()[0]; 32])))
            .collect();
        Vault::new(Keyring::parse(&Secret::new(entries.join(","))).unwrap())
    }

    #[test]
    fn what_was_sealed_opens() {
        let vault = vault(&["a"]);
        for plain in [&b""[..], b"t", &[0xff; 5000]] {
            let sealed = vault.seal(ACCESS, plain);
            assert_eq!(vault.open(ACCESS, &sealed).unwrap().expose(), plain);
            assert_eq!(sealed.as_bytes().len(), 1 + 1 + 1 + 12 + plain.len() + 16);
        }
        let text = vault.seal(ACCESS, "grün".as_bytes());
        assert_eq!(vault.open_text(ACCESS, &text).unwrap().expose(), "grün");
        let bytes = vault.seal(ACCESS, &[0xff]);
        assert_eq!(vault.open_text(ACCESS, &bytes).err(), Some(ACCESS.damaged()));
    }

    #[test]
    fn a_value_opens_nowhere_else() {
        let vault = vault(&["a"]);
        let sealed = vault.seal(ACCESS, b"token");
        let elsewhere = [
            Place { row: "acc_2", ..ACCESS },
            Place { column: "refresh_token", ..ACCESS },
            Place { table: "revocations", ..ACCESS },
            Place { row: "acc_1\u{1f}", ..ACCESS },
            Place { row: "1\u{1f}acc_1", ..ACCESS },
        ];
        for place in elsewhere {
            assert_eq!(vault.open(place, &sealed).err(), Some(place.damaged()), "{place:?}");
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let vault = vault(&["a", "b"]);
        let sealed = vault.seal(ACCESS, b"token");
        for at in 0..sealed.as_bytes().len() {
            for bit in 0..8 {
                let mut bytes = sealed.as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                assert!(vault.open(ACCESS, &Sealed::from_bytes(bytes)).is_err(), "byte {at}, bit {bit}");
            }
        }
        for len in 0..sealed.as_bytes().len() {
            let cut = Sealed::from_bytes(sealed.as_bytes()[..len].to_vec());
            assert_eq!(vault.open(ACCESS, &cut).err(), Some(ACCESS.damaged()), "{len} bytes");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let sealed = vault(&["old-key"]).seal(ACCESS, b"token");
        let error = vault(&["new-key"]).open(ACCESS, &sealed).err().unwrap();
        assert!(error.to_string().contains("`old-key`"), "{error}");
    }

    #[test]
    fn several_keys_open_and_the_first_seals() {
        let old = vault(&["old"]);
        let both = vault(&["new", "old"]);
        let before = old.seal(ACCESS, b"token");
        assert_eq!(both.open(ACCESS, &before).unwrap().expose(), b"token");
        let after = both.seal(ACCESS, b"token");
        assert!(
            matches!(old.open(ACCESS, &after).err(), Some(VaultError::UnknownKey { key_id, .. }) if key_id == "new")
        );
    }

    #[test]
    fn sealing_again_keeps_the_secret_and_changes_the_key() {
        let both = vault(&["new", "old"]);
        let before = vault(&["old"]).seal(ACCESS, b"token");
        assert_eq!((before.key_id(), both.is_primary(&before)), (Some("old"), false));
        let after = both.seal_again(ACCESS, &before).unwrap();
        assert_eq!((after.key_id(), both.is_primary(&after)), (Some("new"), true));
        assert_eq!(vault(&["new"]).open(ACCESS, &after).unwrap().expose(), b"token");
        assert!(both.seal_again(Place { row: "acc_2", ..ACCESS }, &before).is_err());
        assert_eq!(Sealed::from_bytes(b"token".to_vec()).key_id(), None);
    }

    #[test]
    fn what_the_primary_key_sealed_is_told_by_how_it_begins() {
        let start = vault(&["new", "old"]).primary_start();
        for (ids, primary) in [(["new"], true), (["newer"], false), (["ne"], false), (["old"], false)] {
            let sealed = vault(&ids).seal(ACCESS, b"token");
            assert_eq!(sealed.as_bytes().starts_with(&start), primary, "{ids:?}");
        }
    }

    #[test]
    fn nonces_do_not_repeat() {
        let vault = vault(&["a"]);
        let nonces: HashSet<[u8; NONCE_LEN]> =
            (0..10_000).map(|_| vault.seal(ACCESS, b"").parts().unwrap().1).collect();
        assert_eq!(nonces.len(), 10_000);
    }

    #[test]
    fn the_check_tells_a_missing_key_from_a_wrong_one() {
        let check = vault(&["a-key"]).seal_check();
        assert_eq!(vault(&["new", "a-key"]).verify_check(&check), Ok(()));
        assert!(matches!(vault(&["new"]).verify_check(&check), Err(VaultError::UnknownKey { .. })));
        let same_id = Vault::new(Keyring::parse(&Secret::new(format!("a-key:{}", "A".repeat(43)))).unwrap());
        assert_eq!(same_id.verify_check(&check), Err(CHECK_PLACE.damaged()));
    }
}

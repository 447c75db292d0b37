//! The agent key: `kw_`, 43 characters of base64url over 32 random bytes, 6 characters of a checksum, by which a scanner for
//! leaked secrets knows a key from a text that only looks like one. What is stored is the SHA-256 of the whole text.

use std::hash::{BuildHasherDefault, Hash, Hasher};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::ids;
use crate::secret::{Secret, sha256};

const PREFIX: &str = "kw_";
const BODY: usize = 43;
const CHECK: usize = 6;

/// A key that was just made: the one moment at which it exists in clear.
pub struct AgentKey(Secret<String>);

fn checksum(body: &str) -> String {
    let digest = sha256(body.as_bytes());
    URL_SAFE_NO_PAD.encode(&digest[..CHECK])[..CHECK].to_owned()
}

impl AgentKey {
    /// A new key of 256 random bits.
    #[must_use]
    pub fn generate() -> Self {
        let body = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(ids::random::<32>()));
        let check = checksum(&body);
        Self(Secret::new(format!("{body}{check}")))
    }

    /// The key, to be shown once.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// What is stored.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.expose().as_bytes())
    }

    /// What people recognise it by: `kw_Ab3x…`.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("{}…", &self.expose()[..PREFIX.len() + 6])
    }
}

/// The SHA-256 of a key's text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyHash(pub(super) [u8; 32]);

/// Of those that are looked up. It is as good as random, and nobody can choose one: nothing is left to be mixed.
impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from_ne_bytes(*self.0.first_chunk().expect("it is longer")));
    }
}

/// Takes a [`KeyHash`] as it is.
#[derive(Default)]
pub(super) struct AsItIs(u64);

pub(super) type BuildAsItIs = BuildHasherDefault<AsItIs>;

impl Hasher for AsItIs {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only hashes of keys are looked up by this");
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// The hash of a presented key, when it has a key's form. A typo in it, and it is the hash of no key: so the checksum is not
/// looked at.
pub(super) fn hash_presented(presented: &[u8]) -> Option<KeyHash> {
    let formed = presented.len() == PREFIX.len() + BODY + CHECK && presented.starts_with(PREFIX.as_bytes());
    formed.then(|| KeyHash(sha256(presented)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_hash() {
        let key = AgentKey::generate();
        assert!(hash_presented(key.expose().as_bytes()) == Some(KeyHash(key.hash())));
        assert!(key.prefix().len() < 14);
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_none() {
        let key = AgentKey::generate();
        let text = key.expose().as_bytes();
        for other in [b"", &text[1..], &[text, b"A"].concat(), &[b"KW_", &text[3..]].concat()] {
            assert!(hash_presented(other).is_none());
        }
    }

    #[test]
    fn a_scanner_can_tell_a_key() {
        let key = AgentKey::generate();
        let (body, check) = key.expose().split_at(PREFIX.len() + BODY);
        assert_eq!(checksum(body), check);
    }
}

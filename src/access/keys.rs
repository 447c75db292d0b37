//! The agent key: `kw_`, 43 characters of base64url over 32 random bytes, 6 characters of a checksum. A typo is refused
//! without a look-up; what is stored is the SHA-256 of the whole text.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::ids;
use crate::secret::{Secret, sha256};

const PREFIX: &str = "kw_";
const BODY: usize = 43;
const CHECK: usize = 6;

/// A key that was just made: the one moment at which it exists in clear.
pub struct AgentKey(Secret<String>);

/// The text is not of a key's form, or its checksum is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a Keyward key")]
pub struct KeyError;

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

/// The hash of a presented key, when its form and checksum are right.
///
/// # Errors
/// [`KeyError`].
pub fn hash_presented(presented: &[u8]) -> Result<[u8; 32], KeyError> {
    let text = std::str::from_utf8(presented).map_err(|_| KeyError)?;
    if text.len() != PREFIX.len() + BODY + CHECK || !text.starts_with(PREFIX) || !text.is_ascii() {
        return Err(KeyError);
    }
    let (body, check) = text.split_at(PREFIX.len() + BODY);
    let digest = sha256(body.as_bytes());
    let mut expected = [0u8; 8];
    let length = URL_SAFE_NO_PAD.encode_slice(&digest[..CHECK], &mut expected).map_err(|_| KeyError)?;
    debug_assert!(length >= CHECK);
    if &expected[..CHECK] != check.as_bytes() {
        return Err(KeyError);
    }
    Ok(sha256(presented))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_hash() {
        let key = AgentKey::generate();
        assert_eq!(hash_presented(key.expose().as_bytes()), Ok(key.hash()));
        assert!(key.prefix().len() < 14);
    }

    #[test]
    fn every_typo_is_refused_without_a_look_up() {
        let key = AgentKey::generate();
        let text = key.expose().as_bytes();
        for at in 0..text.len() {
            let mut typo = text.to_vec();
            typo[at] = if typo[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(hash_presented(&typo), Err(KeyError), "byte {at}");
        }
        assert_eq!(hash_presented(b""), Err(KeyError));
        assert_eq!(hash_presented(&text[1..]), Err(KeyError));
    }
}

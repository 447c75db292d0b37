//! Values that must not be seen: tokens, keys, client secrets.
//!
//! [`Secret`] has no `Display`, no `Serialize` and no `Clone`; its `Debug` says only that something is there. The one
//! way to the value is [`Secret::expose`], which therefore stands in the line that needs it. Memory is overwritten
//! when the value goes (best effort: copies made by libraries are out of reach).
//!
//! ```compile_fail
//! let secret = keyward::secret::Secret::new(String::from("token"));
//! println!("{secret}");
//! ```
//! ```compile_fail
//! let secret = keyward::secret::Secret::new(String::from("token"));
//! serde_json::to_string(&secret).unwrap();
//! ```

use std::fmt;

use aws_lc_rs::digest;
use zeroize::Zeroize;

/// A value that is never shown.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes the value in.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for the one line that needs it.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl Secret<String> {
    /// A second copy, said aloud.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl From<String> for Secret<String> {
    fn from(value: String) -> Self {
        Self(value)
    }
}

/// SHA-256: how keys, states, cookies and admin tokens are stored and looked up.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut out = [0u8; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_the_value() {
        let secret = Secret::new(String::from("hush"));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(secret.expose(), "hush");
    }
}

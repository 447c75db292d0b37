//! The environment, taken once: secrets come as `NAME` or, as a file's path, `NAME_FILE`.

use std::collections::BTreeMap;
use std::fmt;

use crate::secret::Secret;

/// A copy of the environment. Its `Debug` shows no values.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

/// A `*_FILE` variable that can't be followed, or a variable given twice.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct EnvError {
    /// The variable.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

impl Env {
    /// The process's own.
    #[must_use]
    pub fn of_process() -> Self {
        Self(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect())
    }

    /// The same with these values instead of what was there.
    #[must_use]
    pub fn with<K: Into<String>, V: Into<String>>(mut self, pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        self.0.extend(pairs.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// A plain value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A secret: `NAME`, or the content of the file that `NAME_FILE` names, without trailing line ends.
    ///
    /// # Errors
    /// When both are set, or the file can't be read.
    pub fn secret(&self, name: &str) -> Result<Option<Secret<String>>, EnvError> {
        let file = format!("{name}_FILE");
        match (self.get(name), self.get(&file)) {
            (Some(_), Some(_)) => {
                Err(EnvError { name: name.into(), problem: format!("set either {name} or {file}, not both") })
            }
            (Some(value), None) => Ok(Some(Secret::new(value.to_owned()))),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Some(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))),
                Err(cause) => Err(EnvError { name: file, problem: format!("can't read {path}: {cause}") }),
            },
            (None, None) => Ok(None),
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

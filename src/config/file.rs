//! `gateway.toml` as written: the raw form, its defaults, and the checks that turn it into a [`Config`].

use std::path::Path;

use super::{Config, Env};

/// Everything that is wrong, one line each, with file, line and key.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

pub(super) fn load(_path: Option<&Path>, _env: Env) -> Result<Config, ConfigError> {
    todo!()
}

pub(super) fn parse(_text: &str, _name: &str, _folder: &Path, _env: Env) -> Result<Config, ConfigError> {
    todo!()
}

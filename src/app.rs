//! The assembly: configuration in, a running gateway out.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::Config;

/// What `keyward dev` is told.
#[derive(Debug, Clone)]
pub struct DevOptions {
    /// Where agents connect.
    pub proxy: SocketAddr,
    /// Where people connect.
    pub admin: SocketAddr,
    /// Where the sandbox provider listens.
    pub sandbox: SocketAddr,
    /// Where the data lives; `None`: a temporary folder (or, with `keep`, `keyward-dev` in the working directory).
    pub folder: Option<PathBuf>,
    /// Whether the data stays when the process ends.
    pub keep: bool,
}

/// Runs a gateway until it is told to stop.
///
/// # Errors
/// What kept it from starting.
pub fn serve(_config: Config) -> anyhow::Result<()> {
    todo!()
}

/// Runs a gateway with a sandbox provider, a connected account and a key, all on loopback.
///
/// # Errors
/// What kept it from starting.
pub fn dev(_options: DevOptions) -> anyhow::Result<()> {
    todo!()
}

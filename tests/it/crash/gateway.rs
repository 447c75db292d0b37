//! `keyward serve` as a process of its own, which can be killed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::harness::{ADMIN, SEALING, World};

/// A process, killed at the latest when this is dropped.
pub struct Gateway {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    listening: Option<oneshot::Receiver<Listening>>,
}

/// Where a gateway listens.
#[derive(Debug, Clone, Copy)]
pub struct Listening {
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
}

impl Gateway {
    /// Starts the process; it listens some time later.
    pub fn spawn(world: &World) -> Self {
        let config = world.dir.path().join("gateway.toml");
        std::fs::write(&config, settings(world)).unwrap();
        let binary = std::env::var_os("KEYWARD_KILL_BINARY");
        let mut command = Command::new(binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_keyward").into()));
        command.args(["serve", "--config"]).arg(&config).env_clear().envs([
            ("KEYWARD_ADMIN_TOKEN", ADMIN),
            ("KEYWARD_SEALING_KEYS", SEALING),
            ("OAUTH_SANDBOX_CLIENT_ID", world.sandbox.client_id()),
            ("OAUTH_SANDBOX_CLIENT_SECRET", world.sandbox.client_secret()),
        ]);
        if world.store_url.starts_with("postgres") {
            command.env("KEYWARD_STORE_URL", &world.store_url);
        }
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (ready, listening) = oneshot::channel();
        let (errors, lines) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            let mut ready = Some(ready);
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                if let Some(at) = listening_at(&line)
                    && let Some(ready) = ready.take()
                {
                    let _ = ready.send(at);
                }
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, log, listening: Some(listening) }
    }

    /// Waits until it is ready; answers where it listens.
    pub async fn ready(&mut self) -> Listening {
        let listening = self.listening.take().unwrap();
        match tokio::time::timeout(Duration::from_secs(30), listening).await {
            Ok(Ok(at)) => at,
            _ => panic!("a gateway does not start:\n{}", self.log()),
        }
    }

    /// Sends a signal: `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let told = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(told.success(), "kill -s {name}");
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

fn settings(world: &World) -> String {
    let postgres = world.store_url.starts_with("postgres");
    let store = if postgres { String::new() } else { format!("[store]\nurl = \"{}\"\n", world.store_url) };
    format!(
        "[proxy]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n{store}\
         [egress]\nallow = [\"127.0.0.0/8\"]\n[log]\nformat = \"json\"\n\
         [providers.sandbox.inputs.origin]\ndefault = \"{}\"\n",
        world.sandbox.origin()
    )
}

fn listening_at(line: &str) -> Option<Listening> {
    let line: Value = serde_json::from_str(line).ok()?;
    let address = |name: &str| line[name].as_str()?.parse().ok();
    line["message"].as_str()?.starts_with("keyward is ready").then_some(())?;
    Some(Listening { proxy: address("proxy")?, admin: address("admin")? })
}

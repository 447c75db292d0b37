//! `serve` and `dev`: starting, refusing to start, stopping.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;

use http::{Request, header};
use http_body_util::Full;
use rustix::process::Signal;

use super::*;
use crate::harness::{Answer, SEALING, call};

const FREE_PORTS: &str = "[proxy]\nlisten = \"127.0.0.1:0\"\nworkers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n";

/// Waits for the log's line about being ready; answers the two addresses.
fn ready(running: &mut Running) -> (SocketAddr, SocketAddr) {
    let line = running.err.wait_for("keyward is ready on ");
    let told = line.split("keyward is ready on ").nth(1).unwrap();
    let words: Vec<_> = told.split(' ').collect();
    (words[0].parse().unwrap(), words[4].parse().unwrap())
}

async fn ask(address: SocketAddr, path: &str, token: &str) -> Answer {
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::default())
        .unwrap();
    call(address, request).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_shows_its_admin_token_once() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path());
    shell.file("gateway.toml", FREE_PORTS);
    let mut first = shell.begin("serve");
    let line = first.out.wait_for("admin token");
    let token = line.split_whitespace().last().unwrap().to_owned();
    assert!(token.starts_with("kwa_") && token.len() == 47, "{line}");
    let link = first.out.wait_for("It is shown this once.");
    let (agents, people) = ready(&mut first);
    assert!(link.contains(&format!("http://{people}/")), "{link}");
    assert_eq!(ask(people, "/api/organizations", &token).await.status, 200);
    assert_eq!(ask(people, "/api/organizations", ADMIN).await.status, 401);
    assert_eq!(ask(agents, "/healthz", "").await.status, 200);
    for file in ["keyward.db", "keyward.keys"] {
        let mode = folder.path().join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file} is open to others");
    }
    first.signal(Signal::TERM);
    let ended = first.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.err.contains(&token), "the token is in the log: {}", ended.err);
    assert!(ended.err.contains("stopped"), "{}", ended.err);

    // The second start knows it and keeps it for itself.
    let mut second = shell.begin("serve");
    let (_, people) = ready(&mut second);
    assert_eq!(ask(people, "/api/organizations", &token).await.status, 200);
    second.signal(Signal::INT);
    let ended = second.end();
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""), "{ended:?}");
    assert!(!ended.err.contains(&token), "{}", ended.err);

    // A token of one's own takes its place.
    let mut third = shell.with("KEYWARD_ADMIN_TOKEN", ADMIN).begin("serve");
    let (_, people) = ready(&mut third);
    assert_eq!(ask(people, "/api/organizations", ADMIN).await.status, 200);
    assert_eq!(ask(people, "/api/organizations", &token).await.status, 401);
    third.signal(Signal::TERM);
    let ended = third.end();
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""), "{ended:?}");
    assert!(!ended.err.contains(ADMIN), "{}", ended.err);
}

#[test]
fn other_sealing_keys_refuse_to_start_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path()).with("KEYWARD_ADMIN_TOKEN", ADMIN).with("KEYWARD_SEALING_KEYS", SEALING);
    shell.file("gateway.toml", FREE_PORTS);
    let mut running = shell.begin("serve");
    ready(&mut running);
    running.signal(Signal::TERM);
    assert_eq!(running.end().code, Some(0));

    let other = "BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    // The same id with another key; another id; the file that is made where no keys are given.
    for keys in [format!("test:{other}"), format!("new:{other}"), String::new()] {
        let shell = Shell::new(folder.path()).with("KEYWARD_ADMIN_TOKEN", ADMIN).with("KEYWARD_SEALING_KEYS", &keys);
        let err = shell.run("serve").failed(1);
        assert!(err.contains("the sealing keys are not the ones that this store was sealed with"), "{err}");
        assert!(!err.contains(other) && !err.contains("is ready"), "{err}");
    }
    // With the old key behind the new one it starts: that is how keys are renewed.
    let both = format!("new:{other},{SEALING}");
    let mut running = shell.with("KEYWARD_SEALING_KEYS", &both).begin("serve");
    ready(&mut running);
    running.signal(Signal::TERM);
    assert_eq!(running.end().code, Some(0));
}

#[test]
fn a_port_that_is_taken_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path()).with("KEYWARD_ADMIN_TOKEN", ADMIN);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    for (section, other, workers) in [("proxy", "admin", 1), ("proxy", "admin", 2), ("admin", "proxy", 2)] {
        let workers = if section == "proxy" { format!("workers = {workers}\n") } else { String::new() };
        let text = format!("[{section}]\nlisten = \"{taken}\"\n{workers}[{other}]\nlisten = \"127.0.0.1:0\"\n");
        shell.file("gateway.toml", &text);
        let err = shell.run("serve").failed(1);
        let wanted = format!("{section}.listen: can't listen on {taken}");
        assert!(err.lines().any(|line| line.starts_with(&wanted)), "{err}");
        assert!(err.to_lowercase().contains("in use") && !err.contains("is ready"), "{err}");
    }
}

#[test]
fn two_instances_on_one_address_are_told_too() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path()).with("KEYWARD_ADMIN_TOKEN", ADMIN);
    shell.file("gateway.toml", FREE_PORTS);
    let mut first = shell.begin("serve");
    let (agents, people) = ready(&mut first);
    let text = format!("[proxy]\nlisten = \"{agents}\"\nworkers = 2\n[admin]\nlisten = \"{people}\"\n");
    shell.file("gateway.toml", &text);
    let err = shell.run("serve").failed(1);
    // Which of the two it meets first is the system's business: workers share their address.
    let wanted = [format!("proxy.listen: can't listen on {agents}"), format!("admin.listen: can't listen on {people}")];
    assert!(wanted.iter().any(|wanted| err.starts_with(wanted)), "{err}");
    first.signal(Signal::TERM);
    assert_eq!(first.end().code, Some(0));
}

#[test]
fn a_store_that_can_not_be_used_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path()).with("KEYWARD_ADMIN_TOKEN", ADMIN);
    shell.file("gateway.toml", FREE_PORTS);
    // Postgres without keys is a mistake of the configuration; a server that is not there is not.
    let url = "postgres://keyward:hush@127.0.0.1:1/keyward";
    let postgres = Shell::new(folder.path()).with("KEYWARD_STORE_URL", url).with("KEYWARD_ADMIN_TOKEN", ADMIN);
    let err = postgres.run("serve").failed(64);
    assert!(err.starts_with("KEYWARD_SEALING_KEYS is not set: with Postgres the sealing keys must be given"), "{err}");
    let err = postgres.with("KEYWARD_SEALING_KEYS", SEALING).run("serve").failed(1);
    assert!(err.contains("opening the store") && !err.contains("hush"), "{err}");

    shell.file("keyward.db", "this is not a database, whatever its name says");
    let err = shell.run("serve").failed(1);
    assert!(err.contains("opening the store"), "{err}");
    std::fs::remove_file(folder.path().join("keyward.db")).unwrap();

    std::fs::set_permissions(folder.path().join("keyward.keys"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let err = shell.run("serve").failed(1);
    assert!(err.contains("keyward.keys") && err.contains("chmod 600"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_shows_a_line_that_works_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let shell = Shell::new(folder.path());
    let mut running = shell.begin("dev --proxy 127.0.0.1:0 --admin 127.0.0.1:0 --sandbox 127.0.0.1:0 --folder data");
    let token = running.out.wait_for("admin token").split_whitespace().last().unwrap().to_owned();
    let key = running.out.wait_for("agent key").split_whitespace().last().unwrap().to_owned();
    let curl = running.out.wait_for("/me/messages");
    let url = url::Url::parse(curl.split('\'').nth(3).unwrap()).unwrap();
    assert_eq!(curl.split('\'').nth(1).unwrap(), format!("Authorization: Bearer {key}"));
    let answer = ask(url.socket_addrs(|| None).unwrap()[0], &url[url::Position::BeforePath..], &key).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["value"].as_array().unwrap().len(), 3);
    let (_, people) = ready(&mut running);
    assert_eq!(ask(people, "/api/organizations", &token).await.status, 200);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.err.contains(&token) && !ended.err.contains(&key), "{}", ended.err);
    assert_eq!(std::fs::read_dir(folder.path().join("data")).unwrap().count(), 0);
}

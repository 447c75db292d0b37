//! What the tests of this module share: a plain provider, a client for loopback, a tiny server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::catalog::{
    ClientAuth, ClientCredentials, Identity, Inject, InjectPlace, OAuth, OAuthFields, Pkce, Provider, Rotation,
};
use crate::net::{Client, ClientTls, Guard};
use crate::secret::Secret;

use super::OAuthClient;

/// A provider that does everything as the standard says.
pub(super) fn provider() -> Provider {
    Provider {
        id: "acme".into(),
        name: "Acme".into(),
        env: "ACME".into(),
        docs: None,
        oauth: OAuth {
            authorize_url: "https://id.example.com/authorize".into(),
            token_url: "https://id.example.com/token".into(),
            refresh_url: None,
            revoke_url: None,
            issuer: None,
            client_auth: ClientAuth::Post,
            pkce: Pkce::S256,
            scopes: Vec::new(),
            scope_param: "scope".to_owned(),
            scope_separator: " ".into(),
            authorize_params: BTreeMap::new(),
            rotation: Rotation::Optional,
            grace: Duration::ZERO,
            access_ttl: Duration::from_secs(1800),
            fatal_errors: Vec::new(),
            fields: OAuthFields::default(),
        },
        identity: Identity {
            url: None,
            subject: "/id".into(),
            email: vec!["/mail".into(), "/login".into()],
            name: Some("/name".into()),
        },
        inputs: BTreeMap::new(),
        captured: BTreeMap::new(),
        inject: Inject {
            place: InjectPlace::Header { name: "Authorization".into(), template: "Bearer {token}".into() },
            headers: BTreeMap::new(),
        },
        capabilities: BTreeMap::new(),
        client: Some(ClientCredentials { id: "client".into(), secret: Some(Secret::new("secret".into())) }),
    }
}

/// A client that may call loopback.
pub(super) fn client(timeout_ms: u64) -> OAuthClient {
    let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap()]);
    OAuthClient::new(
        Client::new(Arc::new(guard), Arc::clone(ClientTls::new(&[], None).unwrap().http1())),
        Duration::from_millis(timeout_ms),
    )
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) head: String,
    pub(super) body: String,
}

/// Answers one connection after the other with these bytes, closing each; answers its port and what it heard.
pub(super) async fn server(answers: Vec<String>) -> (u16, Arc<Mutex<Vec<Heard>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&heard);
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let request = hear(&mut socket).await;
            notes.lock().unwrap().push(request);
            let _ = socket.write_all(answer.as_bytes()).await;
            let _ = socket.shutdown().await;
        }
    });
    (port, heard)
}

async fn hear(socket: &mut TcpStream) -> Heard {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0u8; 4096];
        let length = socket.read(&mut piece).await.unwrap_or(0);
        bytes.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            assert!(length > 0, "the request ended early");
            continue;
        };
        let wanted = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        if body.len() >= wanted {
            return Heard { head: head.to_owned(), body: body.to_owned() };
        }
    }
}

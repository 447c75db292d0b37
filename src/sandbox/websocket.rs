//! `/tools/websocket`: a WebSocket (RFC 6455) that says back what it hears. Just enough to prove that bytes pass both
//! ways after a 101; extensions and fragmentation limits are not its business.

use std::io;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Sandbox;

const LIMIT: u64 = 1 << 20;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

pub(super) async fn accept(State(sandbox): State<Sandbox>, mut request: Request) -> Response {
    let Some(accept) = handshake(request.headers()) else {
        let upgrade = [(header::UPGRADE, "websocket"), (header::SEC_WEBSOCKET_VERSION, "13")];
        return (StatusCode::UPGRADE_REQUIRED, upgrade, "a WebSocket handshake, please\n").into_response();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let shutdown = sandbox.0.shutdown.clone();
    sandbox.0.shutdown.spawn(async move {
        tokio::select! {
            // How it ended is the other side's to notice.
            _ = async { echo(TokioIo::new(upgrade.await.map_err(io::Error::other)?)).await } => {}
            () = shutdown.stopping() => {}
        }
    });
    let headers = [
        (header::UPGRADE, "websocket"),
        (header::CONNECTION, "upgrade"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

fn handshake(headers: &HeaderMap) -> Option<String> {
    let has = |name, wanted: &str| {
        headers.get_all(name).iter().any(|line| {
            line.to_str().is_ok_and(|line| line.split(',').any(|word| word.trim().eq_ignore_ascii_case(wanted)))
        })
    };
    let asked = has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asked)?.to_str().ok()?;
    // RFC 6455 §4.2.2: the key and this fixed text, in SHA-1.
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    Some(STANDARD.encode(sum))
}

async fn echo(mut stream: TokioIo<Upgraded>) -> io::Result<()> {
    loop {
        let (first, payload) = frame(&mut stream).await?;
        let first = match first & 0x0f {
            PONG => continue,
            PING => 0x80 | PONG,
            _ => first,
        };
        let mut out = vec![first];
        match payload.len() {
            short @ 0..=125 => out.push(short as u8),
            medium @ 126..=65535 => {
                out.push(126);
                out.extend((medium as u16).to_be_bytes());
            }
            long => {
                out.push(127);
                out.extend((long as u64).to_be_bytes());
            }
        }
        out.extend(payload);
        stream.write_all(&out).await?;
        stream.flush().await?;
        if first & 0x0f == CLOSE {
            return stream.shutdown().await;
        }
    }
}

/// One frame: its first byte (final bit and kind) and its payload, unmasked (RFC 6455 §5.2).
async fn frame(stream: &mut TokioIo<Upgraded>) -> io::Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await?;
    let second = stream.read_u8().await?;
    if second & 0x80 == 0 {
        return Err(io::Error::other("a client must mask its frames"));
    }
    let length = match second & 0x7f {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    if length > LIMIT {
        return Err(io::Error::other("the frame is too large"));
    }
    let mut mask = [0u8; 4];
    stream.read_exact(&mut mask).await?;
    let mut payload = vec![0u8; length as usize];
    stream.read_exact(&mut payload).await?;
    for (at, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[at % 4];
    }
    Ok((first, payload))
}

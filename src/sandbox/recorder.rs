//! What reached the upstream side, byte for byte, so that a test can look for what should not have.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use aws_lc_rs::digest;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{Sandbox, lock};
use crate::clock::Timestamp;

const KEPT: usize = 1000;
const BODY_START: usize = 4096;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// When its head had been read, by the sandbox's clock.
    pub at: Timestamp,
    /// The method.
    pub method: String,
    /// Path and query, raw.
    pub target: String,
    /// Header lines with the names in lower case, in the order they came; lines of one name stand together.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Bytes of the body that were read.
    pub body_length: u64,
    /// Their SHA-256.
    pub body_sha256: [u8; 32],
    /// The first 4 KiB of them.
    pub body_start: Vec<u8>,
    /// Whether the body was read to a proper end. False also when the handler had no interest in it.
    pub body_complete: bool,
    /// Trailer lines.
    pub trailers: Vec<(String, Vec<u8>)>,
}

impl Recorded {
    /// All values of a header, given by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(line, _)| line == name).map(|(_, value)| value.as_slice()).collect()
    }
}

struct Entry {
    at: Timestamp,
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Arc<Mutex<Seen>>,
}

/// The part of a body that went by. The sum is taken on the way: bodies may be larger than memory.
struct Seen {
    length: u64,
    sum: digest::Context,
    start: Vec<u8>,
    complete: bool,
    trailers: Vec<(String, Vec<u8>)>,
}

/// The last requests.
pub(super) struct Recorder {
    on: AtomicBool,
    entries: Mutex<VecDeque<Entry>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { on: AtomicBool::new(true), entries: Mutex::default() }
    }
}

impl Recorder {
    pub(super) fn set_on(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    pub(super) fn recorded(&self) -> Vec<Recorded> {
        lock(&self.entries).iter().map(Entry::described).collect()
    }

    fn note(&self, request: Request, at: Timestamp) -> Request {
        if !self.on.load(Ordering::Relaxed) {
            return request;
        }
        let (head, body) = request.into_parts();
        let seen = Arc::new(Mutex::new(Seen {
            length: 0,
            sum: digest::Context::new(&digest::SHA256),
            start: Vec::new(),
            complete: http_body::Body::is_end_stream(&body),
            trailers: Vec::new(),
        }));
        let entry = Entry {
            at,
            method: head.method.to_string(),
            target: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
            headers: lines(&head.headers),
            body: Arc::clone(&seen),
        };
        let mut entries = lock(&self.entries);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(entry);
        Request::from_parts(head, Body::new(Watched { body, seen }))
    }
}

impl Entry {
    fn described(&self) -> Recorded {
        let seen = lock(&self.body);
        let mut body_sha256 = [0u8; 32];
        body_sha256.copy_from_slice(seen.sum.clone().finish().as_ref());
        Recorded {
            at: self.at,
            method: self.method.clone(),
            target: self.target.clone(),
            headers: self.headers.clone(),
            body_length: seen.length,
            body_sha256,
            body_start: seen.start.clone(),
            body_complete: seen.complete,
            trailers: seen.trailers.clone(),
        }
    }
}

/// Middleware in front of `/v1.0` and `/tools`.
pub(super) async fn record(State(sandbox): State<Sandbox>, request: Request, next: Next) -> Response {
    let request = sandbox.0.recorder.note(request, sandbox.now());
    if request.uri().path().starts_with("/tools/") {
        sandbox.count(|counters| counters.tool_calls += 1);
    }
    next.run(request).await
}

pub(super) fn lines(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

struct Watched {
    body: Body,
    seen: Arc<Mutex<Seen>>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let ended = http_body::Body::is_end_stream(&self.body);
        let mut seen = lock(&self.seen);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    seen.length += data.len() as u64;
                    seen.sum.update(data);
                    let room = BODY_START - seen.start.len();
                    seen.start.extend_from_slice(&data[..data.len().min(room)]);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    seen.trailers.extend(lines(trailers));
                }
                seen.complete |= ended;
            }
            Poll::Ready(None) => seen.complete = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        drop(seen);
        polled
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}

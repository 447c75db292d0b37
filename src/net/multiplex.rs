//! HTTP/2 towards agents: its limits, and requests in the form in which HTTP/1.1 brings them, so that everything behind
//! reads one kind.
//!
//! What HTTP/2 itself refuses is refused by the parser with a reset of the stream: connection headers, `te` other than
//! `trailers`, a path that is none, extended CONNECT (RFC 9113 §8.2.2, §8.3). Data that exceeds a window, too many
//! CONTINUATION, PING or SETTINGS frames end the connection there too.

use std::future::Future;
use std::time::Duration;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;

use super::serve::ServeLimits;

/// Streams at once on one connection.
const STREAMS: u32 = 128;
/// Bytes of request bodies that a peer may send ahead, on a stream and on a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of an answer that wait for the peer's window.
const SEND_BUFFER: usize = 128 * 1024;
/// Streams that the peer has reset and we have not looked at yet (CVE-2023-44487), and those that we reset for its errors.
const PENDING_RESETS: usize = 20;
const ERROR_RESETS: usize = 128;
/// A silent connection is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

/// Runs hyper's tasks on the thread that they belong to.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalTasks;

impl<F: Future + 'static> Executor<F> for LocalTasks {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

pub(super) fn builder(limits: &ServeLimits) -> http2::Builder<LocalTasks> {
    let mut http = http2::Builder::new(LocalTasks);
    http.timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        // Above this the parser answers by itself, with a bare 431; below it, we do.
        .max_header_list_size(u32::try_from(limits.head_bytes * 2).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    http
}

/// What is wrong with a request: status, code, words.
pub(super) type Fault = (StatusCode, &'static str, &'static str);

const fn bad(words: &'static str) -> Fault {
    (StatusCode::BAD_REQUEST, "bad_request", words)
}

/// Brings a request into the form of HTTP/1.1: a path alone, and `Host` with what `:authority` says (RFC 9113 §8.3.1).
pub(super) fn normalize<B>(request: &mut Request<B>, head_bytes: usize, lines: usize) -> Result<(), Fault> {
    let large = (
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        "request_header_fields_too_large",
        "The request's head is over the limit, in bytes or in lines.",
    );
    if request.headers().len() > lines || size(request.uri(), request.headers()) > head_bytes {
        return Err(large);
    }
    // Its authority is where it wants to go; it is refused for its method.
    if *request.method() == Method::CONNECT {
        return Ok(());
    }
    let authority = request.uri().authority().cloned();
    if let Some(authority) = authority {
        let authority = authority.as_str();
        if memchr::memchr(b'@', authority.as_bytes()).is_some() {
            return Err(bad("The request's :authority has a user in it."));
        }
        let mut hosts = request.headers().get_all(HOST).iter();
        match (hosts.next(), hosts.next()) {
            (None, _) => {
                let host =
                    HeaderValue::from_str(authority).map_err(|_| bad("The request's :authority is not valid."))?;
                request.headers_mut().insert(HOST, host);
            }
            (Some(host), None) if host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {}
            (Some(_), None) => return Err(bad("The request's Host differs from its :authority.")),
            (Some(_), Some(_)) => return Err(bad("The request must have exactly one Host.")),
        }
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    Ok(())
}

/// As HTTP/2 counts it (RFC 9113 §6.5.2): 32 bytes more for each line.
fn size(uri: &Uri, headers: &HeaderMap) -> usize {
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    headers.iter().fold(path, |sum, (name, value)| sum + name.as_str().len() + value.len() + 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, lines: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn the_authority_becomes_the_host_and_must_agree_with_it() {
        for (uri, lines, fine) in [
            ("http://a.example/x?y=1", &[][..], true),
            ("https://a.example/x?y=1", &[("host", "A.example")], true),
            ("/x?y=1", &[("host", "a.example")], true),
            ("http://a.example/x?y=1", &[("host", "b.example")], false),
            ("http://a.example/x?y=1", &[("host", "a.example"), ("host", "a.example")], false),
            ("http://u@a.example/x?y=1", &[], false),
        ] {
            let mut request = request(uri, lines);
            let result = normalize(&mut request, 8192, 20);
            assert_eq!(result.is_ok(), fine, "{uri} {lines:?}: {result:?}");
            if fine {
                assert_eq!(request.uri(), "/x?y=1");
                assert!(request.headers()[HOST].as_bytes().eq_ignore_ascii_case(b"a.example"));
            }
        }
    }

    #[test]
    fn a_large_head_is_refused() {
        let long = "a".repeat(9000);
        assert_eq!(normalize(&mut request("/", &[("x", &long)]), 8192, 20).unwrap_err().0, 431);
        let many = vec![("x", "1"); 21];
        assert_eq!(normalize(&mut request("/", &many), 8192, 20).unwrap_err().0, 431);
    }
}

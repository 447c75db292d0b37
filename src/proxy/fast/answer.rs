//! An upstream's answer: its head read, and written as the agent gets it. Plain heads go from bytes to bytes. The others go
//! through the same functions as the answers that hyper reads, so that there is one definition of what is taken off and put on.

use std::io::Write as _;
use std::time::SystemTime;

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, DATE, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, response};
use hyper::ext::ReasonPhrase;

use super::number;
use super::outbound::line;
use super::relay::{Framing, Relay};
use crate::catalog::{Base, Secrets};
use crate::config::Limits;
use crate::ids::RequestId;
use crate::net::{Head, Parsed, Unchunk};
use crate::proxy::reflect::Mask;
use crate::proxy::refusal::REQUEST_ID;
use crate::proxy::{Refusal, headers, reflect};

/// The head of an answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The upstream's connection may serve again after it.
    pub(super) keeps: bool,
    framing: Framing,
    form: Form,
    length: usize,
}

enum Form {
    Plain { head: Head, compressed: bool, dated: bool },
    Odd(Box<response::Parts>),
}

/// What else an answer depends on.
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) base: &'a Base,
    pub(super) slug: &'a str,
    pub(super) guarded: bool,
    /// The target may set cookies.
    pub(super) cookies: bool,
    pub(super) secrets: &'a Secrets,
    pub(super) request: RequestId,
    /// The agent's connection ends with this answer.
    pub(super) closes: bool,
}

impl Asked<'_> {
    fn mask(&self, compressed: bool) -> Option<Box<Mask>> {
        if !self.guarded {
            return None;
        }
        reflect::mask(self.slug, self.secrets, compressed)
    }
}

impl Answer {
    /// Reads the head that `bytes` begin with, past answers that are only interim (RFC 9110 §15.2). Nothing: it is not whole.
    pub(super) fn read(bytes: &mut Vec<u8>, asked: &Asked<'_>, limits: &Limits) -> Result<Option<Self>, Refusal> {
        loop {
            let plain = match Head::parse(bytes) {
                Parsed::Whole(head) => plain(head, bytes, asked),
                Parsed::Partial | Parsed::Odd => None,
            };
            // What is not whole is looked at too: it may be no answer at all, and never become whole.
            let answer = match plain.map_or_else(|| odd(bytes, asked, limits), |answer| Ok(Some(answer)))? {
                Some(answer) if answer.length <= limits.head => answer,
                None if bytes.len() <= limits.head => return Ok(None),
                _ => return Err(Refusal::UpstreamInvalid),
            };
            // We never offered to switch protocols.
            if answer.status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Refusal::UpstreamInvalid);
            }
            if !answer.status.is_informational() {
                return Ok(Some(answer));
            }
            bytes.drain(..answer.length);
        }
    }

    /// The same head read both ways, where it can be. One that is interim is never written.
    #[cfg(any(test, fuzzing))]
    pub(super) fn both(data: &[u8], asked: &Asked<'_>, limits: &Limits) -> Option<(Self, Self)> {
        let mut bytes = data.to_vec();
        let Parsed::Whole(head) = Head::parse(&mut bytes) else { return None };
        let plain = plain(head, &bytes, asked)?;
        let odd = odd(data, asked, limits).expect("what is plain is valid").expect("what is plain is whole");
        assert_eq!(plain.status, odd.status);
        (!plain.status.is_informational()).then_some((plain, odd))
    }

    /// Writes the head as the agent gets it to `out`, and takes it off `bytes`: the body is behind it.
    pub(super) fn write(self, bytes: &mut Vec<u8>, asked: &Asked<'_>, out: &mut Vec<u8>) -> Relay {
        let chunked = matches!(self.framing, Framing::Chunked(_) | Framing::Close);
        let compressed = match self.form {
            Form::Plain { head, compressed, dated } => {
                out.extend_from_slice(head.first(bytes));
                out.extend_from_slice(b"\r\n");
                for (name, value) in head.fields(bytes) {
                    if !headers::is_guarded(name, self.status) && !headers::off_answer(name, asked.cookies) {
                        line(out, name, value);
                    }
                }
                if self.status != StatusCode::NOT_MODIFIED {
                    line(out, X_CONTENT_TYPE_OPTIONS.as_str().as_bytes(), headers::NOSNIFF.as_bytes());
                    line(out, CONTENT_SECURITY_POLICY.as_str().as_bytes(), headers::SANDBOX.as_bytes());
                }
                identified(out, asked.request);
                finish(out, dated, chunked, asked.closes);
                compressed
            }
            Form::Odd(mut parts) => {
                let compressed = reflect::is_compressed(&parts.headers);
                headers::clean_answer(&mut parts.headers, asked.cookies);
                reflect::hide_in_head(&mut parts, asked.secrets);
                headers::relocate(&mut parts.headers, asked.base, asked.slug);
                headers::guard(&mut parts.headers, parts.status);
                status(out, parts.status, parts.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes));
                fields(out, &parts.headers);
                identified(out, asked.request);
                finish(out, parts.headers.contains_key(DATE), chunked, asked.closes);
                compressed
            }
        };
        bytes.drain(..self.length);
        Relay::new(self.framing, asked.mask(compressed))
    }
}

/// Writes one of Keyward's own answers.
pub(super) fn write_own(
    out: &mut Vec<u8>,
    response: &Response<bytes::Bytes>,
    asked: (RequestId, &Method),
    closes: bool,
) {
    out.clear();
    status(out, response.status(), None);
    fields(out, response.headers());
    line(out, CONTENT_LENGTH.as_str().as_bytes(), itoa::Buffer::new().format(response.body().len()).as_bytes());
    identified(out, asked.0);
    finish(out, false, false, closes);
    if asked.1 != Method::HEAD {
        out.extend_from_slice(response.body());
    }
}

fn status(out: &mut Vec<u8>, status: StatusCode, reason: Option<&[u8]>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().as_bytes()));
    out.extend_from_slice(b"\r\n");
}

fn fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        line(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

fn identified(out: &mut Vec<u8>, request: RequestId) {
    let _ = write!(out, "{}: {request}\r\n", REQUEST_ID.as_str());
}

/// The end of a head: what frames the body, and what every answer has.
fn finish(out: &mut Vec<u8>, dated: bool, chunked: bool, closes: bool) {
    if !dated {
        // RFC 9110 §6.6.1: whoever forwards an answer without a date adds one.
        line(out, b"date", httpdate::fmt_http_date(SystemTime::now()).as_bytes());
    }
    if chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if closes {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads a plain answer. Nothing: it needs a closer look.
fn plain(head: Head, bytes: &[u8], asked: &Asked<'_>) -> Option<Answer> {
    let rest = head.first(bytes).strip_prefix(b"HTTP/1.1 ")?;
    let (code, reason) = rest.split_at_checked(3)?;
    let shown = |byte: &u8| matches!(byte, b' '..=b'~');
    if reason.len() < 2 || reason[0] != b' ' || !reason.iter().all(shown) {
        return None;
    }
    let status = StatusCode::from_bytes(code).ok()?;
    let (mut length, mut chunked, mut keeps, mut compressed, mut dated) = (None, false, true, false, false);
    for (name, value) in head.fields(bytes) {
        match name {
            b"content-length" if length.is_none() => length = Some(number(value)?),
            b"transfer-encoding" if !chunked && value.eq_ignore_ascii_case(b"chunked") => chunked = true,
            b"connection" if value.eq_ignore_ascii_case(b"close") => keeps = false,
            b"connection" if value.eq_ignore_ascii_case(b"keep-alive") => {}
            b"content-length" | b"transfer-encoding" | b"connection" | b"location" => return None,
            b"content-encoding" => compressed |= !reflect::is_identity(value),
            b"date" => dated = true,
            _ => {}
        }
    }
    if (chunked && length.is_some()) || reflect::tells(asked.secrets, &bytes[..head.length()]) {
        return None;
    }
    let framing = framing(asked.method, status, chunked, length);
    let keeps = keeps && !matches!(framing, Framing::Close);
    let length = head.length();
    Some(Answer { status, keeps, framing, form: Form::Plain { head, compressed, dated }, length })
}

/// RFC 9112 §6.3.
fn framing(method: &Method, status: StatusCode, chunked: bool, length: Option<u64>) -> Framing {
    let bodiless = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match length {
        _ if bodiless || *method == Method::HEAD => Framing::None,
        _ if chunked => Framing::Chunked(Unchunk::default()),
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    }
}

/// Reads an answer with a parser that knows what else there is. Nothing: it is not whole.
fn odd(bytes: &[u8], asked: &Asked<'_>, limits: &Limits) -> Result<Option<Answer>, Refusal> {
    let mut lines = vec![httparse::EMPTY_HEADER; limits.headers.max(100)];
    let mut parsed = httparse::Response::new(&mut lines);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Refusal::UpstreamInvalid),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Refusal::UpstreamInvalid)?;
    let mut parts = Response::new(()).into_parts().0;
    parts.status = status;
    for line in parsed.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Refusal::UpstreamInvalid)?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| Refusal::UpstreamInvalid)?;
        parts.headers.append(name, value);
    }
    if let Some(reason) = parsed.reason.filter(|reason| !reason.is_empty())
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        parts.extensions.insert(reason);
    }
    if !headers::is_sound(&parts.headers) {
        return Err(Refusal::UpstreamInvalid);
    }
    let said = match parts.headers.get(CONTENT_LENGTH) {
        Some(value) => Some(number(value.as_bytes()).ok_or(Refusal::UpstreamInvalid)?),
        None => None,
    };
    let old = parsed.version == Some(0);
    let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    // HTTP/1.0 knows no chunks: whoever announces them there may mean anything (RFC 9112 §6.1).
    if old && chunked {
        return Err(Refusal::UpstreamInvalid);
    }
    let framing = framing(asked.method, status, chunked, said);
    let closing = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
    };
    let closes = old || parts.headers.get_all(CONNECTION).iter().any(closing);
    let keeps = !closes && !matches!(framing, Framing::Close);
    Ok(Some(Answer { status, keeps, framing, form: Form::Odd(Box::new(parts)), length }))
}

//! One request's record in the making: opened first, rides on the answer's body, closes once — also on drop.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::OwnedPermit;

use crate::clock::Timestamp;
use crate::ids::{AccountId, KeyId, OrgId, RequestId};
use crate::store::{AuditRow, REQUEST};
use crate::telemetry::RequestOutcome;

use super::Audit;
use super::writer::Message;

/// Records can't be written now, so nothing may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit trail can't be written")]
pub struct AuditUnavailable;

/// One request's record in the making.
pub struct Receipt {
    audit: Audit,
    /// The place in the queue; `None` once closed, or when records are being dropped by configuration.
    place: Option<OwnedPermit<Message>>,
    /// `None` once closed.
    entry: Option<Box<Entry>>,
    /// What the request takes up of something, until the end. Most hold nothing.
    held: Vec<OwnedSemaphorePermit>,
}

/// What a receipt knows; turned into a row by the writer, off the hot path.
#[derive(Debug)]
pub(super) struct Entry {
    request: RequestId,
    at: Timestamp,
    started: Instant,
    took_us: i64,
    method: Method,
    slug: Arc<str>,
    path: Arc<str>,
    key: Option<(KeyId, OrgId)>,
    account: Option<AccountId>,
    status: Option<StatusCode>,
    code: Option<&'static str>,
    bytes_in: u64,
    bytes_out: u64,
    finished: bool,
}

impl Receipt {
    pub(super) fn new(audit: Audit, place: Option<OwnedPermit<Message>>, at: Timestamp) -> Self {
        let entry = Entry {
            request: RequestId::at(at.millis()),
            at,
            started: Instant::now(),
            took_us: 0,
            method: Method::GET,
            slug: Arc::default(),
            path: Arc::default(),
            key: None,
            account: None,
            status: None,
            code: None,
            bytes_in: 0,
            bytes_out: 0,
            finished: false,
        };
        Self { audit, place, entry: Some(Box::new(entry)), held: Vec::new() }
    }

    fn entry(&mut self) -> &mut Entry {
        self.entry.as_mut().expect("only the end takes it")
    }

    /// The request's id.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.entry.as_ref().expect("only the end takes it").request
    }

    /// What was asked for: method, the target's slug as given, the path below it without query.
    pub fn asked(&mut self, method: &Method, slug: &str, path: &str) {
        let entry = self.entry();
        entry.method = method.clone();
        entry.slug = slug.into();
        entry.path = path.into();
    }

    /// Who asked.
    pub fn agent(&mut self, key: KeyId, organization: OrgId) {
        self.entry().key = Some((key, organization));
    }

    /// The account that it uses.
    pub fn account(&mut self, account: AccountId) {
        self.entry().account = Some(account);
    }

    /// Takes a permit along: it is given back when the receipt closes.
    pub fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.held.push(permit);
    }

    /// Puts a call that may change something on record, before it leaves. After this the record survives a crash; until
    /// the receipt closes it says [`UNKNOWN`].
    ///
    /// # Errors
    /// [`AuditUnavailable`] when the store did not take it within 5 s: the call must not leave.
    pub async fn intend(&mut self) -> Result<(), AuditUnavailable> {
        let row = self.entry().row(Some(UNKNOWN));
        self.audit.intents().commit(row).await
    }

    /// The answer's status, and Keyward's code when Keyward refused.
    pub fn answered(&mut self, status: StatusCode, code: Option<&'static str>) {
        let entry = self.entry();
        entry.status = Some(status);
        entry.code = code;
    }

    /// Request body bytes that went by.
    pub fn sent(&mut self, bytes: u64) {
        self.entry().bytes_in += bytes;
    }

    /// Answer body bytes that went by.
    pub fn received(&mut self, bytes: u64) {
        self.entry().bytes_out += bytes;
    }

    /// The answer ended whole. A receipt that is dropped without this says `aborted`.
    pub fn finished(&mut self) {
        self.entry().finished = true;
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let Some(mut entry) = self.entry.take() else { return };
        let elapsed = entry.started.elapsed();
        entry.took_us = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
        self.audit.metrics().observe_request(entry.outcome(), elapsed.as_secs_f64());
        if let Some(place) = self.place.take() {
            place.send(Message::Request(entry));
        }
    }
}

impl Entry {
    fn outcome(&self) -> RequestOutcome {
        match (self.finished, self.code, self.status) {
            (false, ..) | (true, None, None) => RequestOutcome::Aborted,
            (true, Some(_), _) => RequestOutcome::Refused,
            (true, None, Some(status)) => RequestOutcome::of_status(status.as_u16()),
        }
    }

    /// The row. Its id is the request's, so that it completes its intent's, if there is one.
    pub(super) fn into_row(self) -> AuditRow {
        let code = self.code.or(if self.finished { None } else { Some("aborted") });
        self.row(code)
    }

    fn row(&self, code: Option<&str>) -> AuditRow {
        AuditRow {
            id: self.request.into(),
            organization: self.key.map(|(_, organization)| organization),
            at: self.at,
            actor: if self.key.is_some() { None } else { Some("anonymous".into()) },
            action: REQUEST.into(),
            request: Some(self.request),
            key: self.key.map(|(key, _)| key),
            target: (!self.slug.is_empty()).then(|| visible(&self.slug)),
            account: self.account,
            method: Some(short(&self.method)),
            path: Some(visible(&self.path)),
            status: self.status.map(|status| i64::from(status.as_u16())),
            code: code.map(str::to_owned),
            bytes_in: i64::try_from(self.bytes_in).ok(),
            bytes_out: i64::try_from(self.bytes_out).ok(),
            duration_us: Some(self.took_us),
            detail: None,
        }
    }
}

/// The code of a call that left and whose outcome is not known: it is under way, or a crash came before its end.
pub const UNKNOWN: &str = "unknown";

/// Methods up to this are written down; a longer word is none that anybody knows, and could hold anything.
pub const METHOD_BYTES: usize = 32;

fn short(method: &Method) -> Cow<'static, str> {
    match *method {
        Method::GET => "GET".into(),
        Method::POST => "POST".into(),
        ref method if method.as_str().len() > METHOD_BYTES => "(too long)".into(),
        ref method => method.to_string().into(),
    }
}

/// Characters of a text that are written down.
const TEXT: usize = 2_000;

/// At most 2,000 characters, control characters escaped: what an agent sends must not forge a line of anybody's log.
fn visible(text: &Arc<str>) -> Arc<str> {
    // Nearly every text, and by far the quickest to tell.
    if text.len() <= TEXT && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Arc::clone(text);
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().collect() } else { vec![c] };
    text.chars().take(TEXT).flat_map(escaped).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(&*visible(&"/a\r\nGET /b".into()), "/a\\r\\nGET /b");
        assert_eq!(visible(&"x".repeat(3_000).into()).len(), 2_000);
    }

    #[test]
    fn a_word_that_is_no_method_is_not_written_down() {
        assert_eq!(short(&Method::PATCH), "PATCH");
        assert_eq!(short(&Method::from_bytes(&[b'k'; 52]).unwrap()), "(too long)");
    }
}

//! Claims about answers of token endpoints that hold for any bytes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::{Error, answer};
use crate::catalog::{Catalog, Provider};
use crate::config::Env;

const STATUSES: [u16; 12] = [200, 201, 204, 302, 307, 400, 401, 403, 408, 429, 500, 503];
const KINDS: [&str; 5] =
    ["application/json", "application/x-www-form-urlencoded; charset=utf-8", "text/html", "text/plain", ""];

/// An answer is tokens that can be used, or an error that says nothing of the provider's; trouble at the provider
/// disconnects nobody (I10). The first two bytes choose status and content type.
///
/// # Panics
/// When a claim does not hold.
pub fn token_answer(data: &[u8]) {
    static PROVIDERS: OnceLock<Vec<Arc<Provider>>> = OnceLock::new();
    let providers = PROVIDERS.get_or_init(|| {
        let env = Env::from_iter([("", ""); 0]);
        Catalog::load(&toml::Table::new(), &env).expect("the embedded catalog is sound").iter().cloned().collect()
    });
    let [status, kind, body @ ..] = data else { return };
    let status = StatusCode::from_u16(STATUSES[usize::from(*status) % STATUSES.len()]).expect("a status");
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(KINDS[usize::from(*kind) % KINDS.len()]));
    for provider in providers {
        match answer::read(provider, status, &headers, body) {
            Ok(tokens) => {
                assert!(status.is_success() && !tokens.access.expose().is_empty());
                assert!(tokens.refresh.is_none_or(|token| !token.expose().is_empty()));
                let year = Duration::from_secs(365 * 24 * 60 * 60);
                let (life, usual) = (tokens.expires_in, provider.oauth.access_ttl);
                assert!((Duration::from_secs(1)..=year).contains(&life) || life == usual, "{life:?}");
            }
            Err(Error::Rejected { code, .. } | Error::Misconfigured { code } | Error::Unknown { code }) => {
                assert!((1..=64).contains(&code.len()), "{code:?}");
                assert!(code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_')), "{code:?}");
                assert!(!status.is_server_error() && !status.is_redirection(), "{status} is passing trouble");
            }
            Err(Error::Transient { retry_after, .. }) => {
                assert!(retry_after.is_none_or(|wish| wish <= Duration::from_secs(3600)));
            }
            Err(Error::Unusable { refresh, .. }) => assert!(!refresh.expose().is_empty()),
        }
    }
}

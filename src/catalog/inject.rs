//! How a token goes into a request, and the ready-made form of it.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::secret::Secret;

use super::Injection;

/// How a token goes into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inject {
    /// Where the token goes.
    pub place: InjectPlace,
    /// Constant headers beside it.
    pub headers: BTreeMap<String, String>,
}

/// Where a token goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InjectPlace {
    /// A header; `{token}` in the template is replaced.
    Header {
        /// Header name.
        name: String,
        /// Value template.
        template: String,
    },
    /// A query parameter.
    Query {
        /// Parameter name.
        name: String,
    },
}

/// Why a token can't be put into a request. Never holds the token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct InjectError(pub String);

impl Default for Inject {
    fn default() -> Self {
        let place = InjectPlace::Header { name: "Authorization".into(), template: "Bearer {token}".into() };
        Self { place, headers: BTreeMap::new() }
    }
}

impl Inject {
    /// The injection for one token: what is made once, when a token arrives, and used for every request.
    ///
    /// # Errors
    /// When the token is empty or holds what can't stand in a header, or a constant header can't be one.
    pub fn prepare(&self, token: &Secret<String>) -> Result<Injection, InjectError> {
        let token = token.expose();
        if token.is_empty() || token.bytes().any(|b| !b.is_ascii() || b.is_ascii_control()) {
            return Err(InjectError("the token is empty or holds characters that can't be sent".into()));
        }
        let mut headers = Vec::with_capacity(self.headers.len() + 1);
        for (name, value) in &self.headers {
            headers.push((header_name(name)?, header_value(name, value)?));
        }
        match &self.place {
            InjectPlace::Header { name, template } => {
                let text = Zeroizing::new(template.replace("{token}", token));
                let mut value = header_value(name, &text)?;
                value.set_sensitive(true);
                headers.push((header_name(name)?, value));
                Ok(Injection::Headers(headers))
            }
            InjectPlace::Query { name } => {
                let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let value = Zeroizing::new(encode(token));
                let pair = format!("{}={}", encode(name), value.as_str());
                Ok(Injection::Query { name: name.as_str().into(), pair: pair.into(), headers })
            }
        }
    }
}

fn header_name(name: &str) -> Result<HeaderName, InjectError> {
    HeaderName::try_from(name).map_err(|_| InjectError(format!("`{name}` is not a header name")))
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, InjectError> {
    HeaderValue::from_str(value).map_err(|_| InjectError(format!("the value of `{name}` can't stand in a header")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_header_injection_is_ready_and_sensitive() {
        let mut inject = Inject::default();
        inject.headers.insert("X-Version".into(), "2".into());
        let Injection::Headers(headers) = inject.prepare(&token("abc")).unwrap() else { panic!("headers expected") };
        assert_eq!(headers.len(), 2);
        assert_eq!(headers[1].0, http::header::AUTHORIZATION);
        assert_eq!(headers[1].1, "Bearer abc");
        assert!(headers[1].1.is_sensitive());
    }

    #[test]
    fn a_query_injection_is_encoded() {
        let inject = Inject { place: InjectPlace::Query { name: "access token".into() }, headers: BTreeMap::default() };
        let Injection::Query { name, pair, .. } = inject.prepare(&token("a&b=c/d")).unwrap() else { panic!("query") };
        assert_eq!((&*name, &*pair), ("access token", "access+token=a%26b%3Dc%2Fd"));
    }

    #[test]
    fn a_token_that_would_break_the_head_is_refused_and_not_shown() {
        for bad in ["", "a\r\nX: y", "a\nb", "a\0b", "tök\u{7f}"] {
            let error = Inject::default().prepare(&token(bad)).unwrap_err();
            assert!(bad.is_empty() || !error.to_string().contains(bad));
        }
    }
}

//! Forms and queries as lists of names and values. Checkboxes repeat a name, which is why these are no structs.

use std::convert::Infallible;

use axum::extract::{FromRequest, FromRequestParts, Request};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use url::form_urlencoded;

use super::problem::Problem;

/// Names and values, in their order.
#[derive(Default)]
pub(super) struct Fields(Vec<(String, String)>);

/// The posted form.
pub(super) struct Posted(pub Fields);

/// The query.
pub(super) struct Asked(pub Fields);

impl Fields {
    pub(super) fn parse(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    /// The first value of this name that is not blank, without space around it.
    pub fn one(&self, name: &str) -> Option<&str> {
        self.all(name).map(str::trim).find(|value| !value.is_empty())
    }

    /// Every value of this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Names with this prefix, without it, and their values.
    pub fn prefixed(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// The non-blank lines of a text area.
    pub fn lines(&self, name: &str) -> Vec<&str> {
        self.one(name).unwrap_or_default().lines().map(str::trim).filter(|line| !line.is_empty()).collect()
    }

    /// As they came.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// As they came.
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }

    /// As a query again.
    pub fn encoded(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }
}

impl<S: Send + Sync> FromRequest<S> for Posted {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let form = kind.split(';').next().unwrap_or_default().trim();
        if !form.is_empty() && !form.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(Problem::bad_request("This address takes the form of its page and nothing else."));
        }
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|_| Problem::bad_request("The form did not arrive whole, or it is too large."))?;
        Ok(Self(Fields::parse(&body)))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self(Fields::parse(parts.uri.query().unwrap_or_default().as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name() {
        let fields = Fields::parse(b"a=&a=+one+&b=x%0Ay%0A%0A&c.k=1");
        assert_eq!(fields.one("a"), Some("one"));
        assert_eq!(fields.all("a").count(), 2);
        assert_eq!(fields.lines("b"), ["x", "y"]);
        assert_eq!(fields.prefixed("c.").collect::<Vec<_>>(), [("k", "1")]);
        assert_eq!(fields.one("z"), None);
    }

    #[test]
    fn what_was_read_is_written_alike() {
        let text = "state=a%2Bb&code=x+y&code=%26";
        assert_eq!(Fields::parse(text.as_bytes()).encoded(), text);
    }
}

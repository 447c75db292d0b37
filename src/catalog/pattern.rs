//! Method and path patterns: what a fence is made of. `GET /me/messages/**`, `/users/*/messages`.

use http::Method;

/// One pattern: an optional method, then a path in which `*` stands for one segment and a last `**` for any rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {}

/// Why a text is not a pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct PatternError(pub String);

impl Pattern {
    /// Reads `[METHOD ]/path`.
    ///
    /// # Errors
    /// When the text does not have that form.
    pub fn parse(_text: &str) -> Result<Self, PatternError> {
        todo!()
    }
    /// Whether a request is inside. `path` is raw, starts with `/`, has no query.
    #[must_use]
    pub fn matches(&self, _method: &Method, _path: &str) -> bool {
        todo!()
    }
}

/// Several patterns; a request is inside when one of them matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// Reads every text.
    ///
    /// # Errors
    /// The first text that is not a pattern.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, PatternError> {
        texts.iter().map(|text| Pattern::parse(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }
    /// Whether one of them matches.
    #[must_use]
    pub fn matches(&self, method: &Method, path: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(method, path))
    }
}

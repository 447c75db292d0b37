//! One provider, checked: endpoints, client authentication, scopes, quirks, capabilities.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{Protection, Transport};
use crate::secret::Secret;

use super::template::{self, Part, Place};
use super::{Inject, Patterns};

/// One provider.
#[derive(Debug)]
pub struct Provider {
    /// `[a-z0-9_]{1,64}`; the file's name.
    pub id: String,
    /// For people.
    pub name: String,
    /// The middle of `OAUTH_{env}_CLIENT_ID` and `OAUTH_{env}_CLIENT_SECRET`.
    pub env: String,
    /// The provider's documentation.
    pub docs: Option<String>,
    /// How to get tokens.
    pub oauth: OAuth,
    /// How to learn whose account it is.
    pub identity: Identity,
    /// What is asked at connect, or set in `gateway.toml`; fills `{name}` in URLs.
    pub inputs: BTreeMap<String, Input>,
    /// What is kept with the account from the connect flow; fills `{name}` in URLs.
    pub captured: BTreeMap<String, Captured>,
    /// How a token goes into a request.
    pub inject: Inject,
    /// By id: `mail`, `calendar`…
    pub capabilities: BTreeMap<String, Capability>,
    /// The operator's app at this provider, when the two variables are set.
    pub client: Option<ClientCredentials>,
}

/// The operator's app registration.
#[derive(Debug)]
pub struct ClientCredentials {
    /// Client id.
    pub id: String,
    /// Client secret; public clients have none.
    pub secret: Option<Secret<String>>,
}

/// OAuth endpoints and quirks. URLs may hold `{name}` of inputs and captured values.
#[derive(Debug)]
pub struct OAuth {
    /// Authorization endpoint.
    pub authorize_url: String,
    /// Token endpoint.
    pub token_url: String,
    /// Only where refreshing has an endpoint of its own.
    pub refresh_url: Option<String>,
    /// RFC 7009 revocation endpoint.
    pub revoke_url: Option<String>,
    /// Checked against `iss` of the callback when present (RFC 9207).
    pub issuer: Option<String>,
    /// How the client shows who it is.
    pub client_auth: ClientAuth,
    /// PKCE.
    pub pkce: Pkce,
    /// Always asked for, beside the capabilities' scopes.
    pub scopes: Vec<String>,
    /// The parameter of the authorization URL that holds the scopes; `scope` but for odd ones.
    pub scope_param: String,
    /// Between scopes, in requests and answers.
    pub scope_separator: String,
    /// Extra parameters of the authorization URL; none of those that the flow sets itself.
    pub authorize_params: BTreeMap<String, String>,
    /// What happens to refresh tokens.
    pub rotation: Rotation,
    /// How long an old refresh token still works after a rotation.
    pub grace: Duration,
    /// Life of an access token when the answer does not say.
    pub access_ttl: Duration,
    /// Error codes that end an account here; `invalid_grant` always does.
    pub fatal_errors: Vec<String>,
    /// Where things are in a token answer when it is odd (JSON pointers).
    pub fields: OAuthFields,
}

/// How the client shows who it is at the token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// `Authorization: Basic`.
    Basic,
    /// `client_id` and `client_secret` in a form body.
    Post,
    /// The body is JSON instead of a form; credentials inside.
    Json,
    /// Public client: `client_id` only.
    None,
}

/// PKCE method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pkce {
    /// SHA-256 challenge (RFC 7636).
    S256,
    /// The provider refuses PKCE.
    None,
}

/// What a provider does with refresh tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// The refresh token never changes.
    None,
    /// Each refresh gives a new one; the old one goes on working for long.
    Rolling,
    /// Each refresh gives a new one; the old one dies (after `grace`).
    SingleUse,
    /// A new one now and then.
    Optional,
}

/// JSON pointers into a token answer; a field that is `None`, or whose pointer finds nothing in an answer, is where
/// RFC 6749 §5.1 puts it (some providers nest the first answer and not the refreshed one).
#[derive(Debug, Default, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OAuthFields {
    /// Access token.
    pub access_token: Option<String>,
    /// Refresh token.
    pub refresh_token: Option<String>,
    /// Life in seconds.
    pub expires_in: Option<String>,
    /// Granted scopes.
    pub scope: Option<String>,
    /// Error code in an answer, also one with status 200.
    pub error: Option<String>,
}

/// Where an account's identity comes from.
#[derive(Debug)]
pub struct Identity {
    /// A GET with the new token. `None`: the pointers go into the token answer itself.
    pub url: Option<String>,
    /// Pointer to what never changes about the account.
    pub subject: String,
    /// Pointers to the e-mail address, first hit wins.
    pub email: Vec<String>,
    /// Pointer to a name for people.
    pub name: Option<String>,
}

/// A value asked for at connect.
#[derive(Debug, Clone)]
pub struct Input {
    /// For people.
    pub label: String,
    /// Used when nothing is given.
    pub default: Option<String>,
    /// A regular expression that the whole value must match (checked when loaded).
    pub pattern: Option<String>,
}

/// Where a captured value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Captured {
    /// JSON pointer into the callback's query (`/realmId`).
    Callback(String),
    /// JSON pointer into the token answer.
    Token(String),
    /// JSON pointer into the identity answer.
    Identity(String),
}

/// A named slice of a provider's API.
#[derive(Debug)]
pub struct Capability {
    /// `mail`, `calendar`…
    pub id: String,
    /// For people.
    pub name: String,
    /// May hold `{name}` of inputs and captured values.
    pub base_url: String,
    /// Scopes by preset: `read`, `write`.
    pub scopes_read: Vec<String>,
    /// Scopes for writing; what `read` asks for is asked for too.
    pub scopes_write: Vec<String>,
    /// What may be reached at all.
    pub fence: Patterns,
    /// The fence as written, for bootstrap.
    pub fence_text: Vec<String>,
    /// What a grant with `read` access may do (within the fence). Default `GET /**`, `HEAD /**`.
    pub read: Patterns,
    /// As written, for bootstrap.
    pub read_text: Vec<String>,
    /// `concurrency`, `reflect_guard`.
    pub protection: Protection,
    /// `http1_only`, `websocket`, `set_cookie`.
    pub transport: Transport,
    /// Rules that a dashboard offers: requests a person should be asked about.
    pub ask: Vec<String>,
    /// For the model.
    pub hint: Option<String>,
    /// For the model: `GET /me/messages?$top=5`.
    pub examples: Vec<String>,
}

/// What a person is asked to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// Why a value can't go into a URL.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FillError {
    /// Neither given nor known by default.
    #[error("no value for `{0}`")]
    Missing(String),
    /// It does not have the form asked for.
    #[error("the value of `{name}` {problem}")]
    Refused {
        /// The input or captured value.
        name: String,
        /// What would be right.
        problem: String,
    },
    /// The text is not a template (the loader lets none of these in).
    #[error("{0}")]
    Template(String),
}

/// Scopes that ask for a way of working, not for access; many providers leave them out of what they say was granted.
const PROTOCOL_SCOPES: [&str; 4] = ["openid", "offline_access", "profile", "email"];

impl Provider {
    /// Replaces each `{name}` by the account's own value, or else by the input's default. A value can't change more of
    /// the URL than the template gives away; whoever speaks to the result still reads it with [`Base::parse`](super::Base::parse).
    ///
    /// # Errors
    /// When a value is missing or does not have the form asked for.
    pub fn fill(&self, template: &str, captures: &BTreeMap<String, String>) -> Result<String, FillError> {
        let mut text = String::with_capacity(template.len() + 32);
        for part in template::parts(template).map_err(FillError::Template)? {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Hole { name, place } => {
                    let default = || self.inputs.get(name).and_then(|input| input.default.as_ref());
                    let value = captures.get(name).or_else(default);
                    let value = value.ok_or_else(|| FillError::Missing(name.to_owned()))?;
                    text.push_str(&self.admit(name, value, place)?);
                }
            }
        }
        Ok(text)
    }

    /// Whether a value given at connect may be used for this input. An empty one never may.
    ///
    /// # Errors
    /// When there is no such input, or the value does not have the form it asks for.
    pub fn check_input(&self, name: &str, value: &str) -> Result<(), FillError> {
        let refused = |problem: &str| FillError::Refused { name: name.to_owned(), problem: problem.to_owned() };
        let Some(input) = self.inputs.get(name) else { return Err(refused("is not asked for by this provider")) };
        if let Some(text) = &input.pattern
            && !template::whole(text).map_err(FillError::Template)?.is_match(value)
        {
            return Err(refused(&format!("must match {text}")));
        }
        if !template::is_word(value) && template::admit(value, Place::Origin, true).is_err() {
            return Err(refused("must be 1 to 128 letters, digits, `.`, `_` or `-`"));
        }
        Ok(())
    }

    fn admit(&self, name: &str, value: &str, place: Place) -> Result<String, FillError> {
        let is_input = self.inputs.contains_key(name);
        if is_input {
            self.check_input(name, value)?;
        }
        // An input's pattern is the operator's word, so it may name this machine; what a provider says may not.
        template::admit(value, place, is_input).map_err(|problem| FillError::Refused { name: name.to_owned(), problem })
    }

    /// What to ask for: the provider's own scopes, then those of the capabilities, in the order given, each once.
    /// Writing asks for the reading scopes too.
    #[must_use]
    pub fn scopes(&self, capabilities: &[String], preset: Preset) -> Vec<String> {
        let mut scopes: Vec<String> = Vec::new();
        let mut add = |more: &[String]| {
            for scope in more {
                if !scopes.contains(scope) {
                    scopes.push(scope.clone());
                }
            }
        };
        add(&self.oauth.scopes);
        for capability in capabilities.iter().filter_map(|id| self.capabilities.get(id)) {
            add(&capability.scopes_read);
            if preset == Preset::Write {
                add(&capability.scopes_write);
            }
        }
        scopes
    }

    /// What was asked for and not granted. Scopes of the protocol itself are left out, because many providers never list
    /// them; a granted scope may carry its API's address in front (`https://graph.microsoft.com/Mail.Read`).
    #[must_use]
    pub fn missing_scopes(&self, wanted: &[String], granted: &[String]) -> Vec<String> {
        let is_granted = |scope: &str| {
            granted.iter().any(|have| {
                let cut = have.len().checked_sub(scope.len()).and_then(|at| have.split_at_checked(at));
                cut.is_some_and(|(front, tail)| {
                    tail.eq_ignore_ascii_case(scope) && (front.is_empty() || front.ends_with('/'))
                })
            })
        };
        let missing = |scope: &&String| !PROTOCOL_SCOPES.contains(&scope.as_str()) && !is_granted(scope);
        wanted.iter().filter(missing).cloned().collect()
    }
}

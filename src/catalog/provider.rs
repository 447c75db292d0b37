//! One provider, checked: endpoints, client authentication, scopes, quirks, capabilities.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::secret::Secret;

use super::Patterns;

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
    /// Between scopes, in requests and answers.
    pub scope_separator: String,
    /// Extra parameters of the authorization URL.
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

/// JSON pointers into a token answer; a field that is `None` is where RFC 6749 §5.1 puts it.
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

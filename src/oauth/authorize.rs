//! The authorization URL and what must be remembered for the answer: state and PKCE verifier.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::Url;

use crate::catalog::{Pkce, Provider};
use crate::ids;
use crate::secret::{Secret, sha256};

/// A PKCE verifier: base64url of 64 random bytes (RFC 7636 §4.1).
pub struct Verifier(pub Secret<String>);

impl Verifier {
    fn new() -> Self {
        Self(Secret::new(URL_SAFE_NO_PAD.encode(ids::random::<64>())))
    }

    /// `BASE64URL(SHA256(verifier))` (RFC 7636 §4.2).
    fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(sha256(self.0.expose().as_bytes()))
    }
}

/// What an authorization URL is made of.
pub struct AuthorizeRequest<'a> {
    /// The provider.
    pub provider: &'a Provider,
    /// Inputs (and captured values of an account that reconnects).
    pub captures: &'a BTreeMap<String, String>,
    /// Our callback.
    pub redirect_uri: &'a str,
    /// Scopes wanted.
    pub scopes: &'a [String],
    /// Preselects a person at the provider, when known.
    pub login_hint: Option<&'a str>,
}

/// An authorization under way.
pub struct Authorization {
    /// Where the browser goes.
    pub url: Url,
    /// 32 random bytes, base64url; only its hash is stored.
    pub state: Secret<String>,
    /// To be sealed.
    pub verifier: Verifier,
}

impl AuthorizeRequest<'_> {
    /// Makes the URL with a fresh state and verifier.
    ///
    /// # Errors
    /// In words, when the provider's URL can't be filled or the provider has no client credentials.
    pub fn begin(&self) -> Result<Authorization, String> {
        let oauth = &self.provider.oauth;
        let client =
            self.provider.client.as_ref().ok_or_else(|| format!("{} has no client credentials", self.provider.name))?;
        let filled = self
            .provider
            .fill(&oauth.authorize_url, self.captures)
            .map_err(|cause| format!("the authorization URL of {}: {cause}", self.provider.name))?;
        let mut url = Url::parse(&filled)
            .map_err(|cause| format!("the authorization URL of {} is not a URL: {cause}", self.provider.name))?;

        let state = Secret::new(URL_SAFE_NO_PAD.encode(ids::random::<32>()));
        let verifier = Verifier::new();
        let mut ours = vec![
            ("response_type", "code".to_owned()),
            ("client_id", client.id.clone()),
            ("redirect_uri", self.redirect_uri.to_owned()),
            ("state", state.expose().clone()),
        ];
        if !self.scopes.is_empty() {
            ours.push(("scope", self.scopes.join(&oauth.scope_separator)));
        }
        if oauth.pkce == Pkce::S256 {
            ours.push(("code_challenge", verifier.challenge()));
            ours.push(("code_challenge_method", "S256".to_owned()));
        }
        // A parameter that stands there twice is an error (RFC 6749 §3.1), and ours are not up for change.
        let extra = oauth.authorize_params.iter().filter(|(name, _)| !ours.iter().any(|(own, _)| own == name));
        let hint = self.login_hint.filter(|_| !oauth.authorize_params.contains_key("login_hint"));
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(&ours).extend_pairs(extra);
            if let Some(hint) = hint {
                query.append_pair("login_hint", hint);
            }
        }
        Ok(Authorization { url, state, verifier })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oauth::testing::provider;

    fn begin(provider: &Provider, scopes: &[&str], hint: Option<&str>) -> Authorization {
        let scopes: Vec<String> = scopes.iter().map(|&scope| scope.to_owned()).collect();
        AuthorizeRequest {
            provider,
            captures: &BTreeMap::new(),
            redirect_uri: "http://127.0.0.1:8081/integrations/acme/callback",
            scopes: &scopes,
            login_hint: hint,
        }
        .begin()
        .unwrap()
    }

    fn query(authorization: &Authorization) -> BTreeMap<String, String> {
        let pairs: Vec<_> = authorization.url.query_pairs().into_owned().collect();
        let count = pairs.len();
        let map: BTreeMap<String, String> = pairs.into_iter().collect();
        assert_eq!(map.len(), count, "no parameter stands there twice");
        map
    }

    #[test]
    fn the_url_holds_everything_the_provider_needs() {
        let mut provider = provider();
        provider.oauth.authorize_url = "https://id.example.com/authorize?tenant=common".into();
        provider.oauth.authorize_params =
            [("prompt", "consent"), ("state", "mine")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let authorization = begin(&provider, &["mail.read", "offline"], Some("ada@example.com"));
        let query = query(&authorization);
        for (name, value) in [
            ("tenant", "common"),
            ("response_type", "code"),
            ("client_id", "client"),
            ("redirect_uri", "http://127.0.0.1:8081/integrations/acme/callback"),
            ("scope", "mail.read offline"),
            ("prompt", "consent"),
            ("login_hint", "ada@example.com"),
            ("code_challenge_method", "S256"),
        ] {
            assert_eq!(query.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(&query["state"], authorization.state.expose());
        assert_eq!(authorization.state.expose().len(), 43);
        assert_eq!(authorization.verifier.0.expose().len(), 86);
        assert_eq!(query["code_challenge"], authorization.verifier.challenge());
        assert!(!authorization.url.as_str().contains(authorization.verifier.0.expose()));
    }

    #[test]
    fn each_one_is_fresh_and_pkce_may_be_off() {
        let mut provider = provider();
        provider.oauth.pkce = Pkce::None;
        let (one, two) = (begin(&provider, &[], None), begin(&provider, &[], None));
        assert_ne!(one.state.expose(), two.state.expose());
        let query = query(&one);
        for absent in ["code_challenge", "code_challenge_method", "scope", "login_hint"] {
            assert!(!query.contains_key(absent), "{absent}");
        }
    }

    #[test]
    fn the_challenge_is_the_rfcs() {
        // RFC 7636, appendix B.
        let verifier = Verifier(Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".into()));
        assert_eq!(verifier.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }
}

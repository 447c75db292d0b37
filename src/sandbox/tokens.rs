//! The provider's memory: codes, tokens and the consents ("families") they descend from. No HTTP here.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::{constant_time, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::clock::Timestamp;
use crate::secret::sha256;

const CODE_LIFE: Duration = Duration::from_secs(60);
/// Used and expired codes are kept this long, so that a second use is noticed.
const CODE_MEMORY: Duration = Duration::from_secs(600);

/// What happens to the refresh token that was just used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rotation {
    /// The refresh token never changes; the answer has none.
    None,
    /// A new one each time, the old one stays valid.
    Soft,
    /// A new one each time, the old one dies at once.
    #[default]
    Strict,
    /// A new one each time, the old one dies after this long. Using it within that time yields another new one.
    Grace(Duration),
    /// A new one each time; using an old one revokes everything of the family.
    Family,
}

/// Tokens as a client gets them.
#[derive(Clone)]
pub struct Granted {
    /// The access token.
    pub access_token: String,
    /// The refresh token; absent when the answer brings no new one.
    pub refresh_token: Option<String>,
    /// How long the access token lives.
    pub expires_in: Duration,
    /// How long the refresh token lives, when it does not live for ever.
    pub refresh_expires_in: Option<Duration>,
    /// What was granted.
    pub scopes: Vec<String>,
    /// The consent these tokens descend from, a key of `Counters::families`.
    pub family: u64,
}

/// What a person agreed to, waiting behind a code.
pub(super) struct Consent {
    pub(super) person: String,
    pub(super) scopes: Vec<String>,
    pub(super) redirect_uri: String,
    pub(super) challenge: String,
}

/// How a fault bends an honest refresh.
#[derive(Clone, Default)]
pub(super) struct Bend {
    pub(super) scopes: Option<Vec<String>>,
    pub(super) repeat_refresh: bool,
}

/// Why a code or refresh token was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Grant(&'static str),
    Scope,
    CodeReused { family: Option<u64> },
    RefreshReused { family: u64, family_died: bool },
}

struct Code {
    consent: Consent,
    expires: Timestamp,
    used: bool,
    family: Option<u64>,
}

struct Access {
    family: u64,
    scopes: Vec<String>,
    expires: Timestamp,
}

struct Refresh {
    family: u64,
    expires: Option<Timestamp>,
    retired: Option<Retired>,
}

#[derive(Clone, Copy)]
struct Retired {
    dead_from: Timestamp,
    kills_family: bool,
}

struct Family {
    person: String,
    scopes: Vec<String>,
    revoked: bool,
}

/// Everything issued.
pub(super) struct Tokens {
    pub(super) rotation: Rotation,
    pub(super) access_ttl: Duration,
    pub(super) refresh_ttl: Option<Duration>,
    codes: HashMap<String, Code>,
    access: HashMap<String, Access>,
    refresh: HashMap<String, Refresh>,
    families: HashMap<u64, Family>,
    next_family: u64,
    prune_at: usize,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            rotation: Rotation::default(),
            access_ttl: Duration::from_secs(3600),
            refresh_ttl: None,
            codes: HashMap::new(),
            access: HashMap::new(),
            refresh: HashMap::new(),
            families: HashMap::new(),
            next_family: 1,
            prune_at: 4096,
        }
    }
}

impl Tokens {
    /// A new code for what a person just agreed to.
    pub(super) fn code(&mut self, consent: Consent, now: Timestamp) -> String {
        self.codes.retain(|_, code| code.expires.after(CODE_MEMORY) > now);
        let text = opaque("sbx_code_", 32);
        self.codes.insert(text.clone(), Code { consent, expires: now.after(CODE_LIFE), used: false, family: None });
        text
    }

    /// Exchanges a code. Any attempt uses it up, a wrong verifier included; a second one ends what the first began.
    pub(super) fn redeem(
        &mut self,
        code: &str,
        redirect_uri: &str,
        verifier: &str,
        now: Timestamp,
    ) -> Result<(Granted, String), Refused> {
        let found = self.codes.get_mut(code).ok_or(Refused::Grant("unknown code"))?;
        if found.used {
            let family = found.family;
            if let Some(family) = family {
                self.revoke_family(family);
            }
            return Err(Refused::CodeReused { family });
        }
        found.used = true;
        if found.expires <= now {
            return Err(Refused::Grant("the code has expired"));
        }
        if found.consent.redirect_uri != redirect_uri {
            return Err(Refused::Grant("redirect_uri is not the one of the authorization request"));
        }
        let shown = URL_SAFE_NO_PAD.encode(sha256(verifier.as_bytes()));
        if constant_time::verify_slices_are_equal(shown.as_bytes(), found.consent.challenge.as_bytes()).is_err() {
            return Err(Refused::Grant("code_verifier does not match the code_challenge"));
        }
        let (person, scopes) = (found.consent.person.clone(), found.consent.scopes.clone());
        let granted = self.grant(&person, scopes, now);
        if let Some(found) = self.codes.get_mut(code) {
            found.family = Some(granted.family);
        }
        Ok((granted, person))
    }

    /// Begins a family.
    pub(super) fn grant(&mut self, person: &str, scopes: Vec<String>, now: Timestamp) -> Granted {
        let family = self.next_family;
        self.next_family += 1;
        self.families.insert(family, Family { person: person.to_owned(), scopes: scopes.clone(), revoked: false });
        let refresh_token = self.new_refresh(family, now);
        self.issue(family, scopes, Some(refresh_token), now)
    }

    /// Exchanges a refresh token by the rules of the rotation mode.
    pub(super) fn refresh(
        &mut self,
        token: &str,
        wanted: Option<Vec<String>>,
        bend: Bend,
        now: Timestamp,
    ) -> Result<Granted, Refused> {
        let found = self.refresh.get(token).ok_or(Refused::Grant("unknown refresh token"))?;
        let (family, retired) = (found.family, found.retired);
        let expired = found.expires.is_some_and(|end| end <= now);
        let held = self.families.get(&family).filter(|held| !held.revoked);
        let Some(held) = held else { return Err(Refused::Grant("the grant was revoked")) };
        if let Some(Retired { kills_family, .. }) = retired.filter(|retired| retired.dead_from <= now) {
            if kills_family {
                self.revoke_family(family);
            }
            return Err(Refused::RefreshReused { family, family_died: kills_family });
        }
        if expired {
            return Err(Refused::Grant("the refresh token has expired"));
        }
        // RFC 6749 §6: a refresh may ask for less, never for more.
        let scopes = bend.scopes.or(wanted).unwrap_or_else(|| held.scopes.clone());
        if !scopes.iter().all(|scope| held.scopes.contains(scope)) {
            return Err(Refused::Scope);
        }
        let repeat = bend.repeat_refresh.then(|| token.to_owned());
        let next = if repeat.is_some() { repeat } else { self.rotate(token, family, now) };
        Ok(self.issue(family, scopes, next, now))
    }

    fn rotate(&mut self, token: &str, family: u64, now: Timestamp) -> Option<String> {
        let retired = match self.rotation {
            Rotation::None => return None,
            Rotation::Soft => None,
            Rotation::Strict => Some(Retired { dead_from: now, kills_family: false }),
            Rotation::Grace(span) => Some(Retired { dead_from: now.after(span), kills_family: false }),
            Rotation::Family => Some(Retired { dead_from: now, kills_family: true }),
        };
        if let Some(old) = self.refresh.get_mut(token) {
            // A second use within the grace must not prolong it.
            old.retired = old.retired.or(retired);
        }
        Some(self.new_refresh(family, now))
    }

    fn new_refresh(&mut self, family: u64, now: Timestamp) -> String {
        let text = opaque("sbx_rt_", 32);
        let expires = self.refresh_ttl.map(|ttl| now.after(ttl));
        self.refresh.insert(text.clone(), Refresh { family, expires, retired: None });
        text
    }

    fn issue(&mut self, family: u64, scopes: Vec<String>, refresh_token: Option<String>, now: Timestamp) -> Granted {
        if self.access.len() >= self.prune_at {
            self.access.retain(|_, access| access.expires > now);
            self.prune_at = (self.access.len() * 2).max(4096);
        }
        let access_token = opaque("sbx_at_", 32);
        let expires = now.after(self.access_ttl);
        self.access.insert(access_token.clone(), Access { family, scopes: scopes.clone(), expires });
        let refresh_expires_in = self.refresh_ttl;
        Granted { access_token, refresh_token, expires_in: self.access_ttl, refresh_expires_in, scopes, family }
    }

    /// Whose token this is and what it is good for.
    pub(super) fn check(&self, access_token: &str, now: Timestamp) -> Option<(String, Vec<String>)> {
        let access = self.access.get(access_token).filter(|access| access.expires > now)?;
        let family = self.families.get(&access.family).filter(|family| !family.revoked)?;
        Some((family.person.clone(), access.scopes.clone()))
    }

    /// RFC 7009: a refresh token takes its whole family along, an access token only itself. `None`: nothing to end.
    pub(super) fn revoke(&mut self, token: &str) -> Option<Ended> {
        if self.access.remove(token).is_some() {
            return Some(Ended::Access);
        }
        let family = self.refresh.get(token)?.family;
        self.revoke_family(family).then_some(Ended::Family(family))
    }

    /// Ends every family of a person; the ones that were alive come back.
    pub(super) fn revoke_person(&mut self, person: &str) -> Vec<u64> {
        let alive = self.families.iter_mut().filter(|(_, family)| family.person == person && !family.revoked);
        alive
            .map(|(id, family)| {
                family.revoked = true;
                *id
            })
            .collect()
    }

    /// Forgets a person's access tokens.
    pub(super) fn expire_access(&mut self, person: &str) {
        let families = &self.families;
        self.access.retain(|_, access| families.get(&access.family).is_none_or(|family| family.person != person));
    }

    fn revoke_family(&mut self, family: u64) -> bool {
        self.families.get_mut(&family).is_some_and(|family| !std::mem::replace(&mut family.revoked, true))
    }
}

/// What a revocation ended.
pub(super) enum Ended {
    Access,
    Family(u64),
}

/// A random text with a prefix that says what it is.
pub(super) fn opaque(prefix: &str, bytes: usize) -> String {
    let mut random = vec![0u8; bytes];
    rand::fill(&mut random).expect("the system's random generator works");
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random))
}

//! Names of things: one newtype per kind of record, so that an account can't be passed where a key belongs.
//!
//! Text form: a prefix that tells the kind, then 26 characters of Crockford's base 32 over a UUID version 7
//! (RFC 9562 §5.7), so ids sort by the time they were made: `acc_01JD3X7M0GZ2V8Q4W5T6R9S1AB`.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::rand;

use crate::clock::Clock;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id of the form {prefix}…")]
pub struct ParseIdError {
    prefix: &'static str,
}

fn encode(bytes: [u8; 16]) -> [u8; 26] {
    let mut value = u128::from_be_bytes(bytes);
    let mut out = [0u8; 26];
    for slot in out.iter_mut().rev() {
        *slot = ALPHABET[(value & 31) as usize];
        value >>= 5;
    }
    out
}

fn decode(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 26 || text[0] > b'7' {
        return None;
    }
    let mut value: u128 = 0;
    for byte in text {
        let digit = ALPHABET.iter().position(|c| c == byte)?;
        value = (value << 5) | digit as u128;
    }
    Some(value.to_be_bytes())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The text in front of every id of this kind.
            pub const PREFIX: &'static str = $prefix;

            /// A new id, unique everywhere.
            #[must_use]
            pub fn new() -> Self {
                Self(*uuid::Uuid::now_v7().as_bytes())
            }
        }

        impl $name {
            /// The 16 bytes that the text form is of; they sort as it does.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = ParseIdError;
            fn try_from(bytes: &[u8]) -> Result<Self, ParseIdError> {
                bytes.try_into().map(Self).map_err(|_| ParseIdError { prefix: $prefix })
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                let text = encode(self.0);
                f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix($prefix)
                    .and_then(|rest| decode(rest.as_bytes()))
                    .map(Self)
                    .ok_or(ParseIdError { prefix: $prefix })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl<DB: sqlx::Database> sqlx::Type<DB> for $name
        where
            String: sqlx::Type<DB>,
        {
            fn type_info() -> DB::TypeInfo {
                <String as sqlx::Type<DB>>::type_info()
            }
            fn compatible(ty: &DB::TypeInfo) -> bool {
                <String as sqlx::Type<DB>>::compatible(ty)
            }
        }

        impl<'q, DB: sqlx::Database> sqlx::Encode<'q, DB> for $name
        where
            String: sqlx::Encode<'q, DB>,
        {
            fn encode_by_ref(
                &self,
                buf: &mut <DB as sqlx::Database>::ArgumentBuffer,
            ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                <String as sqlx::Encode<'q, DB>>::encode(self.to_string(), buf)
            }
        }

        impl<'r, DB: sqlx::Database> sqlx::Decode<'r, DB> for $name
        where
            &'r str: sqlx::Decode<'r, DB>,
        {
            fn decode(
                value: <DB as sqlx::Database>::ValueRef<'r>,
            ) -> Result<Self, sqlx::error::BoxDynError> {
                Ok(<&'r str as sqlx::Decode<'r, DB>>::decode(value)?.parse()?)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some(concat!("^", $prefix, "[0-9A-HJKMNP-TV-Z]{26}$")))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

id!(/** A tenant. */ OrgId, "org_");
id!(/** A person who signs in to the dashboard. */ UserId, "usr_");
id!(/** An agent key (the record, never the key itself). */ KeyId, "key_");
id!(/** A connected account. */ AccountId, "acc_");
id!(/** A target. */ TargetId, "tgt_");
id!(/** One attempt to connect an account. */ FlowId, "flow_");
id!(/** One request of an agent. */ RequestId, "req_");
id!(/** One audit record. */ AuditId, "aud_");
id!(/** One queued job. */ JobId, "job_");
id!(/** A refresh token that is not the current one. */ CandidateId, "cnd_");
id!(/** One running process, as the owner of leases. */ InstanceId, "ins_");

impl RequestId {
    /// A new id of this moment, in milliseconds since 1970, made like [`AuditId::at`].
    #[must_use]
    pub fn at(millis: i64) -> Self {
        Self(following(millis))
    }

    /// A new id of now, by the system's clock.
    #[must_use]
    pub fn next() -> Self {
        Self::at(Clock::system().now().millis())
    }
}

impl AuditId {
    /// A new id of this moment, in milliseconds since 1970. Those that a process makes of one moment sort as they were
    /// made.
    #[must_use]
    pub fn at(millis: i64) -> Self {
        Self(following(millis))
    }

    /// Sorts before every id of this moment and after every id of an earlier one.
    #[must_use]
    pub fn first_of(millis: i64) -> Self {
        Self(time_bits(millis).to_be_bytes())
    }

    /// The moment of the id, in milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> i64 {
        (u128::from_be_bytes(self.0) >> 80) as i64
    }
}

/// The record of a request has the request's id.
impl From<RequestId> for AuditId {
    fn from(request: RequestId) -> Self {
        Self(request.0)
    }
}

impl From<AuditId> for RequestId {
    fn from(record: AuditId) -> Self {
        Self(record.0)
    }
}

/// A new UUID version 7 of this moment: a counter of the process comes after the time, and then what tells the process from
/// others (RFC 9562 §6.2, method 1). Costs no system call and no lock.
fn following(millis: i64) -> [u8; 16] {
    static PROCESS: LazyLock<(AtomicU64, u32)> = LazyLock::new(|| {
        // Far below the end of the 42 bits that are counted, which no process reaches then.
        (AtomicU64::new(u64::from_be_bytes(random()) >> 23), u32::from_be_bytes(random()))
    });
    let (next, process) = &*PROCESS;
    let counter = u128::from(next.fetch_add(1, Ordering::Relaxed)) & ((1 << 42) - 1);
    let (high, low) = (counter >> 30, counter & ((1 << 30) - 1));
    (time_bits(millis) | 7 << 76 | high << 64 | 2 << 62 | low << 32 | u128::from(*process)).to_be_bytes()
}

/// The first 48 bits of an id; what is before 1970 or after the year 10889 counts as the first or last moment.
fn time_bits(millis: i64) -> u128 {
    (millis.clamp(0, (1 << 48) - 1) as u128) << 80
}

/// `N` bytes from the system's cryptographic generator.
///
/// # Panics
/// When the operating system has no randomness to give; nothing safe can be done then.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    rand::fill(&mut bytes).expect("the system's random generator works");
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_id_reads_back_as_itself_and_sorts_by_time() {
        let first = AccountId::new();
        let second = AccountId::new();
        assert_eq!(first.to_string().parse(), Ok(first));
        assert!(first.to_string() < second.to_string());
        assert_eq!(first.to_string().len(), 30);
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let account = AccountId::new().to_string();
        assert!(account.parse::<KeyId>().is_err());
        assert!(account.to_lowercase().parse::<AccountId>().is_err());
        assert!("acc_ZZZZZZZZZZZZZZZZZZZZZZZZZZ".parse::<AccountId>().is_err());
    }

    #[test]
    fn bytes_read_back_and_sort_as_texts_do() {
        let [one, two] = [KeyId::new(), KeyId::new()];
        assert_eq!(KeyId::try_from(one.as_bytes()), Ok(one));
        assert_eq!(one.as_bytes() < two.as_bytes(), one.to_string() < two.to_string());
        assert!(KeyId::try_from(&one.as_bytes()[1..]).is_err());
        assert!(KeyId::try_from(&b""[..]).is_err());
    }

    #[test]
    fn audit_ids_sort_by_their_moment_and_then_as_they_were_made() {
        let ids: Vec<_> = [7, 7, 7, 1_000, 1_800_000_000_000].map(AuditId::at).into();
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        assert_eq!(ids[4].millis(), 1_800_000_000_000);
        assert_eq!(uuid::Uuid::from_bytes(ids[4].0).get_version_num(), 7);
        assert_eq!(uuid::Uuid::from_bytes(ids[4].0).get_variant(), uuid::Variant::RFC4122);
        assert!(AuditId::first_of(7) < ids[0] && ids[2] < AuditId::first_of(8));
        assert_eq!((AuditId::at(-1).millis(), AuditId::at(i64::MAX).millis()), (0, (1 << 48) - 1));
    }

    #[test]
    fn request_ids_do_not_repeat() {
        let ids: HashSet<_> =
            (0..1_000).map(|_| RequestId::at(7)).chain([RequestId::next(), RequestId::next()]).collect();
        assert_eq!(ids.len(), 1_002);
    }
}

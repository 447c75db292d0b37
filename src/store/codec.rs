//! Between what stands in columns and what it means. A column that can't be read is an error that names it, never a
//! default.

use serde::Serialize;
use serde::de::value::{Error as WordError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};

use crate::clock::Timestamp;
use crate::ids::ParseIdError;

use super::{Error, Result};

/// An enum's word, the same as in the API's JSON.
pub(super) fn word<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => unreachable!("only enums without data are stored as words"),
    }
}

pub(super) fn read_word<T: DeserializeOwned>(what: &'static str, word: &str) -> Result<T> {
    let word: StrDeserializer<'_, WordError> = word.into_deserializer();
    T::deserialize(word).map_err(|problem| unreadable(what, problem))
}

/// A list or map as JSON text.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("lists and maps of texts are always JSON")
}

pub(super) fn read_json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|problem| unreadable(what, problem))
}

pub(super) fn read_hash(what: &'static str, bytes: &[u8]) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| unreadable(what, format_args!("{} bytes instead of 32", bytes.len())))
}

/// An id that is stored as its bytes.
pub(super) fn read_id<'a, T: TryFrom<&'a [u8], Error = ParseIdError>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T> {
    T::try_from(bytes).map_err(|problem| unreadable(what, problem))
}

pub(super) fn read_time(millis: Option<i64>) -> Option<Timestamp> {
    millis.map(Timestamp::from_millis)
}

pub(super) fn millis(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::millis)
}

pub(super) fn unreadable(what: &'static str, problem: impl std::fmt::Display) -> Error {
    Error::Unreadable { what, problem: problem.to_string() }
}

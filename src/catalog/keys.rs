//! Reading a TOML table key by key, so that every mistake is found in one go and no key goes unnoticed.
//!
//! Serde stops at the first mistake and forgets which of two merged files a value came from. Here each table is taken
//! through [`Keys`], which notes wrong types and, at the end, the keys that nobody asked for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::{Table, Value};

use super::CatalogError;

/// The operator's file, as it stands in messages.
pub(super) const OWN_FILE: &str = "gateway.toml";

/// Where a provider's data was written, to name the right file in each message.
pub(super) struct Source<'a> {
    pub id: &'a str,
    /// The embedded file and its table.
    pub embedded: Option<(&'a str, &'a Table)>,
    /// `[providers.<id>]` of the operator's file.
    pub own: Option<&'a Table>,
}

impl Source<'_> {
    /// Whether the operator's file sets this key, or something inside it.
    pub(super) fn is_own(&self, path: &[String]) -> bool {
        let own = self.own.map_or(0, |table| depth(table, path));
        own == path.len() && own > 0
    }

    /// The file to blame for what is at `path`, and the key as it is written there.
    fn place(&self, path: &[String]) -> (String, String) {
        let key = path.join(".");
        match (self.embedded, self.own) {
            (Some((file, table)), own) => {
                let own = own.map_or(0, |table| depth(table, path));
                // Both know the key: the operator's word won. Neither does: whoever began the table left it out.
                if own == path.len() || own > depth(table, path) {
                    (OWN_FILE.to_owned(), format!("providers.{}.{key}", self.id))
                } else {
                    (file.to_owned(), key)
                }
            }
            (None, _) => (OWN_FILE.to_owned(), format!("providers.{}.{key}", self.id)),
        }
    }
}

/// How many of the path's keys lead somewhere in the table.
fn depth(table: &Table, path: &[String]) -> usize {
    let mut table = Some(table);
    let mut count = 0;
    for key in path {
        let Some(value) = table.and_then(|table| table.get(key)) else { break };
        count += 1;
        table = value.as_table();
    }
    count
}

/// One table of a provider, while it is read.
pub(super) struct Keys<'a> {
    source: &'a Source<'a>,
    errors: &'a RefCell<Vec<CatalogError>>,
    table: Option<&'a Table>,
    path: Vec<String>,
    asked: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(source: &'a Source<'a>, table: &'a Table, errors: &'a RefCell<Vec<CatalogError>>) -> Self {
        Self { source, errors, table: Some(table), path: Vec::new(), asked: Vec::new() }
    }

    /// Notes a mistake at a key of this table. `key` may end with an index: `fence[2]`.
    pub(super) fn bad(&self, key: &str, problem: impl Into<String>) {
        let (name, index) = key.split_at(key.find('[').unwrap_or(key.len()));
        let (file, key) = self.source.place(&self.path_of(name));
        let problem = problem.into();
        self.errors.borrow_mut().push(CatalogError { file, key: format!("{key}{index}"), problem });
    }

    /// Whether the operator's file sets this key.
    pub(super) fn is_own(&self, key: &str) -> bool {
        self.source.is_own(&self.path_of(key))
    }

    fn path_of(&self, key: &str) -> Vec<String> {
        self.path.iter().cloned().chain(std::iter::once(key.to_owned())).collect()
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        self.table.and_then(|table| table.get(key))
    }

    /// Whether the key is there, without reading it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether the key is there and is this text, without reading it.
    pub(super) fn holds(&self, key: &str, text: &str) -> bool {
        self.table.and_then(|table| table.get(key)).and_then(Value::as_str) == Some(text)
    }

    /// Marks a key as dealt with.
    pub(super) fn skip(&mut self, key: &'static str) {
        self.asked.push(key);
    }

    /// A text; an empty one is a mistake.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
            Value::String(_) => {
                self.bad(key, "must not be empty");
                None
            }
            other => {
                self.bad(key, format!("must be a text, not {}", kind(other)));
                None
            }
        }
    }

    /// A text as it is, spaces and all.
    pub(super) fn raw_text(&mut self, key: &'static str) -> Option<String> {
        let value = self.take(key)?;
        let text = value.as_str();
        if text.is_none() {
            self.bad(key, format!("must be a text, not {}", kind(value)));
        }
        text.map(str::to_owned)
    }

    /// A text that must be there. After a noted mistake it is empty.
    pub(super) fn need(&mut self, key: &'static str) -> String {
        if !self.has(key) {
            self.asked.push(key);
            self.bad(key, "is missing");
            return String::new();
        }
        self.text(key).unwrap_or_default()
    }

    /// A list of texts, none of them empty.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let value = self.take(key)?;
        let Value::Array(items) = value else {
            self.bad(key, format!("must be a list of texts, not {}", kind(value)));
            return None;
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item {
                Value::String(text) if !text.trim().is_empty() => texts.push(text.clone()),
                Value::String(_) => self.bad(&format!("{key}[{index}]"), "must not be empty"),
                other => self.bad(&format!("{key}[{index}]"), format!("must be a text, not {}", kind(other))),
            }
        }
        Some(texts)
    }

    /// A table of texts.
    pub(super) fn map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (name, value) in self.entries(key) {
            match value {
                Value::String(text) => {
                    map.insert(name.clone(), text.clone());
                }
                other => self.below(key).bad(name, format!("must be a text, not {}", kind(other))),
            }
        }
        map
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        let flag = value.as_bool();
        if flag.is_none() {
            self.bad(key, "must be true or false");
        }
        flag
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let number = self.take(key)?.as_integer().and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            self.bad(key, format!("must be a number from {} to {}", range.start(), range.end()));
        }
        number
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.bad(key, format!("`{text}` is not known here; possible: {}", known.join(", ")));
        }
        found
    }

    /// A time: `"0s"`, `"5m"`, `"1h"`, `"90d"`.
    pub(super) fn time(&mut self, key: &'static str) -> Option<Duration> {
        let text = self.text(key)?;
        let time = duration(&text);
        if time.is_none() {
            self.bad(key, format!("`{text}` is not a time such as \"30s\", \"5m\", \"1h\" or \"90d\" (at most 3650d)"));
        }
        time
    }

    /// The table at a key; one that holds nothing when there is none.
    pub(super) fn inside(&mut self, key: &'static str) -> Keys<'a> {
        let value = self.take(key);
        let table = value.and_then(Value::as_table);
        if let (Some(value), None) = (value, table) {
            self.bad(key, format!("must be a table, not {}", kind(value)));
        }
        Keys { table, ..self.below(key) }
    }

    /// For notes about keys of a table that is not read key by key.
    pub(super) fn below(&self, key: &str) -> Keys<'a> {
        Keys { source: self.source, errors: self.errors, table: None, path: self.path_of(key), asked: Vec::new() }
    }

    /// The tables in the table at a key, by name.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<(&'a str, Keys<'a>)> {
        let mut tables = Vec::new();
        for (name, value) in self.entries(key) {
            let below = self.below(key);
            match value {
                Value::Table(table) => tables.push((name.as_str(), Keys { table: Some(table), ..below.below(name) })),
                other => below.bad(name, format!("must be a table, not {}", kind(other))),
            }
        }
        tables
    }

    fn entries(&mut self, key: &'static str) -> Vec<(&'a String, &'a Value)> {
        match self.take(key) {
            Some(Value::Table(table)) => table.iter().collect(),
            Some(other) => {
                self.bad(key, format!("must be a table, not {}", kind(other)));
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.table.into_iter().flat_map(Table::keys) {
            if !self.asked.contains(&key.as_str()) {
                let mut known = self.asked.clone();
                known.sort_unstable();
                known.dedup();
                self.bad(key, format!("unknown key; known here: {}", known.join(", ")));
            }
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at))?);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (seconds <= 3650 * 86400).then(|| Duration::from_secs(seconds))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("5m", 300), ("1h", 3600), ("3650d", 3650 * 86400)] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "5", "-1s", "1.5h", "+1s", "1 h", "1w", "3651d", "99999999999999999999s", "5é"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}

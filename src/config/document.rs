//! Reads a TOML document key by key and collects every mistake with its line, column and dotted key.
//!
//! Why not one `#[derive(Deserialize)]` for the whole file: serde stops at the first mistake, and an operator would
//! meet the second one only at the next start. Here each key is asked for by name; what nobody asked for is unknown,
//! and the list of keys asked for is the list of keys that exist (the shipped `gateway.toml` is tested against it).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What a document's sections write into.
struct Findings<'a> {
    name: &'a str,
    text: &'a str,
    /// Offset and message, for the order of the file.
    problems: RefCell<Vec<(usize, String)>>,
    /// Dotted keys asked for.
    asked: RefCell<BTreeSet<String>>,
}

/// A document that is read once.
pub(super) struct Document<'a> {
    table: Spanned<DeTable<'a>>,
    findings: Findings<'a>,
}

/// One table of a document, there or not.
pub(super) struct Section<'d> {
    path: String,
    /// Where the section begins, for what is missing in it.
    offset: usize,
    table: Option<&'d DeTable<'d>>,
    asked: RefCell<BTreeSet<String>>,
    findings: &'d Findings<'d>,
}

impl<'a> Document<'a> {
    /// Takes the text apart; the errors are those of TOML's own grammar.
    pub(super) fn parse(text: &'a str, name: &'a str) -> Result<Self, Vec<String>> {
        let findings = Findings { name, text, problems: RefCell::default(), asked: RefCell::default() };
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Self { table, findings });
        }
        // The message alone: the error's own Display repeats the line, and a line may hold what logs must not.
        for error in errors {
            findings.add(error.span().map_or(0, |span| span.start), "", error.message());
        }
        Err(findings.messages())
    }

    /// The document's top.
    pub(super) fn root<'d>(&'d self) -> Section<'d>
    where
        'a: 'd,
    {
        Section {
            path: String::new(),
            offset: 0,
            table: Some(self.table.get_ref()),
            asked: RefCell::default(),
            findings: &self.findings,
        }
    }

    /// All mistakes, in the order of the file.
    pub(super) fn problems(&self) -> Vec<String> {
        self.findings.messages()
    }

    /// Dotted keys asked for so far.
    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<String> {
        self.findings.asked.borrow().clone()
    }
}

/// `line:column` of a dotted key in a document, or of the innermost table around it that is there. For mistakes that
/// are found after the document was read.
#[must_use]
pub fn place_of(text: &str, key: &str) -> Option<String> {
    let (document, _) = DeTable::parse_recoverable(text);
    let mut table = Some(document.get_ref());
    let mut found = None;
    // `[0]` behind a key is a place in a list, which is where the key is.
    for part in key.split('[').next().unwrap_or_default().split('.') {
        let Some(value) = table.and_then(|table| table.get(part)) else { break };
        found = Some(value.span().start);
        table = value.get_ref().as_table();
    }
    let (line, column) = line_and_column(text, found?);
    Some(format!("{line}:{column}"))
}

/// Both from 1 on; columns are characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (before.matches('\n').count() + 1, column)
}

impl Findings<'_> {
    fn add(&self, offset: usize, key: &str, problem: &str) {
        let (line, column) = line_and_column(self.text, offset);
        let colon = if key.is_empty() { "" } else { ": " };
        let message = format!("{}:{line}:{column}: {key}{colon}{problem}", self.name);
        self.problems.borrow_mut().push((offset, message));
    }

    fn messages(&self) -> Vec<String> {
        let mut problems = self.problems.borrow().clone();
        problems.sort_by_key(|(offset, _)| *offset);
        problems.into_iter().map(|(_, message)| message).collect()
    }
}

impl<'d> Section<'d> {
    /// A table inside this one; an empty one when it is not there.
    pub(super) fn section(&self, key: &str) -> Section<'d> {
        let found = self.find(key);
        let table = found.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (found, table) {
            self.refuse(key, &format!("a table is wanted here, not {}", named(value.get_ref())));
        }
        Section {
            path: self.dotted(key),
            offset: found.map_or(self.offset, |value| value.span().start),
            table,
            asked: RefCell::default(),
            findings: self.findings,
        }
    }

    /// Every table inside this one, for sections whose names the operator chooses.
    pub(super) fn sections(&self) -> Vec<(String, Section<'d>)> {
        self.keys().into_iter().map(|key| (key.clone(), self.section(&key))).collect()
    }

    /// Every key, for sections whose keys the operator chooses.
    pub(super) fn keys(&self) -> Vec<String> {
        self.table.into_iter().flat_map(|table| table.keys()).map(|key| key.get_ref().to_string()).collect()
    }

    /// Whether a key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Text that `read` understands.
    pub(super) fn text<T>(&self, key: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.value(key, |value| read(value.as_str().ok_or_else(|| format!("text is wanted, not {}", named(value)))?))
    }

    /// A list of texts that `read` understands; a wrong item is reported by its place.
    pub(super) fn texts<T>(&self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        self.value(key, |value| {
            let items = value.as_array().ok_or_else(|| format!("a list of texts is wanted, not {}", named(value)))?;
            let read = |(at, item): (usize, &Spanned<DeValue<'_>>)| {
                let place = |problem: String| format!("item {}: {problem}", at + 1);
                let item = item.get_ref();
                let text = item.as_str().ok_or_else(|| place(format!("text is wanted, not {}", named(item))))?;
                read(text).map_err(place)
            };
            items.iter().enumerate().map(read).collect()
        })
    }

    /// A whole number.
    pub(super) fn number(&self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        self.value(key, |value| {
            let integer = value.as_integer().ok_or_else(|| format!("a number is wanted, not {}", named(value)))?;
            let number = usize::from_str_radix(integer.as_str(), integer.radix()).ok();
            number
                .filter(|number| range.contains(number))
                .ok_or_else(|| format!("a number from {} to {} is wanted", range.start(), range.end()))
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.value(key, |value| value.as_bool().ok_or_else(|| format!("true or false is wanted, not {}", named(value))))
    }

    /// Reports a mistake at a key's value, or at the section's beginning when the key is not there.
    pub(super) fn refuse(&self, key: &str, problem: &str) {
        let offset = self.find(key).map_or(self.offset, |value| value.span().start);
        self.findings.add(offset, &self.dotted(key), problem);
    }

    /// Reports every key that nobody asked for; said last.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for key in self.table.into_iter().flat_map(|table| table.keys()) {
            if !asked.contains(key.get_ref().as_ref()) {
                let known = asked.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                let problem = format!("there is no such key; known here: {known}");
                self.findings.add(key.span().start, &self.dotted(key.get_ref()), &problem);
            }
        }
    }

    fn value<T>(&self, key: &str, read: impl FnOnce(&DeValue<'d>) -> Result<T, String>) -> Option<T> {
        match read(self.find(key)?.get_ref()) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.refuse(key, &problem);
                None
            }
        }
    }

    fn find(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.findings.asked.borrow_mut().insert(self.dotted(key));
        self.table?.get(key)
    }

    fn dotted(&self, key: &str) -> String {
        let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        let key = if bare { key.to_owned() } else { format!("{key:?}") };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

fn named(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

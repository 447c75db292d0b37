//! What commands print: aligned tables for people, JSON for programs.

use std::io::{self, ErrorKind, Write as _};

use serde_json::Value;

/// A heading and where its cells come from: a JSON pointer, or several with `|` between them (the first hit counts).
pub type Column = (&'static str, &'static str);

/// Prints to standard output. A reader that left (`keyward audit | head`) is no failure.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(cause) if cause.kind() != ErrorKind::BrokenPipe => Err(cause.into()),
        _ => Ok(()),
    }
}

/// Says something to the person on standard error.
pub fn say(text: &str) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a list.
pub fn list(items: &[Value], columns: &[Column], json: bool) -> anyhow::Result<()> {
    if json {
        return print(&serde_json::to_string_pretty(items)?);
    }
    if items.is_empty() {
        say("Nothing here.");
        return Ok(());
    }
    let heads = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let rows = items.iter().map(|item| columns.iter().map(|(_, place)| cell(item, place)).collect());
    print(&table(std::iter::once(heads).chain(rows).collect()))
}

/// Prints one record.
pub fn record(item: &Value, fields: &[Column], json: bool) -> anyhow::Result<()> {
    if json {
        return print(&serde_json::to_string_pretty(item)?);
    }
    let fields: Vec<_> = fields.iter().map(|(label, place)| (*label, cell(item, place))).collect();
    print(&pairs(&fields))
}

/// Labels and values, one pair a line.
pub fn pairs(fields: &[(&str, String)]) -> String {
    table(fields.iter().map(|(label, value)| vec![format!("{label}:"), value.clone()]).collect())
}

/// Rows with aligned columns, two spaces between them.
fn table(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// One value as text.
fn cell(item: &Value, places: &str) -> String {
    let found = places.split('|').find_map(|place| item.pointer(place).filter(|value| !value.is_null()));
    found.map_or_else(|| "-".to_owned(), text)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => clean(text),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => match fields.get("slug") {
            Some(Value::String(slug)) => clean(slug),
            _ => clean(&value.to_string()),
        },
        Value::Null => "-".to_owned(),
        Value::Number(number) => number.to_string(),
    }
}

/// Names come from providers: a control character in one must not move the cursor of the terminal.
pub fn clean(text: &str) -> String {
    let plain = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID", "NAME", "X"], ["key_1", "Žofie", "-"], ["k", "a", "y"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(table(rows), "ID     NAME   X\nkey_1  Žofie  -\nk      a      y\n");
    }

    #[test]
    fn cells_show_values_for_people() {
        let item = json!({
            "a": null, "b": "x", "c": ["r", "w"], "d": [], "e": [{"slug": "s-1"}, {"slug": "s-2"}], "f": true, "g": 403,
            "h": "red\u{1b}[31m\n",
        });
        for (place, shown) in [
            ("/a", "-"),
            ("/none", "-"),
            ("/b", "x"),
            ("/a|/b", "x"),
            ("/c", "r, w"),
            ("/d", "-"),
            ("/e", "s-1, s-2"),
            ("/f", "yes"),
            ("/g", "403"),
            ("/h", "red\\u{1b}[31m\\n"),
        ] {
            assert_eq!(cell(&item, place), shown, "{place}");
        }
    }

    #[test]
    fn pairs_are_aligned() {
        assert_eq!(pairs(&[("id", "key_1".into()), ("name", "a".into())]), "id:    key_1\nname:  a\n");
    }
}

//! Writing records: many rows in one statement, whose text is built once and prepared once. This runs for every request,
//! so it is the one place of the store that counts its steps.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::LazyLock;

use crate::ids::OrgId;

use super::about::{self, About};
use super::audit::NOBODY;
use super::db::{Session, on, within};
use super::series::Series;
use super::{AuditRow, Result};

/// Rows that one statement inserts. Each half of the one before, so that no number of rows needs many statements. Larger
/// ones would be a little cheaper, and keep the proxy waiting longer where it shares a core with the database's thread.
const PIECES: [usize; 8] = [128, 64, 32, 16, 8, 4, 2, 1];

/// What becomes of a record whose id stands there already. Either way whoever could not learn whether a batch was stored
/// may send it again.
#[derive(Clone, Copy)]
pub(super) enum Again {
    /// It is left alone: it may say more than this one.
    Keep,
    /// It is a call's intent, and this one says what became of it.
    Settle,
}

/// The rare ones last.
const COLUMNS: [&str; 13] = [
    "organization",
    "slice",
    "id",
    "at",
    "series",
    "path",
    "status",
    "bytes_in",
    "bytes_out",
    "duration_us",
    "request",
    "code",
    "detail",
];
/// Columns of a record without the rare ones. Most requests go well, and a value costs something even where it is none.
const BRIEF: usize = COLUMNS.len() - 3;

static KEEP: LazyLock<Records> = LazyLock::new(|| Records::new("on conflict (organization, slice, id) do nothing"));
static SETTLE: LazyLock<Records> = LazyLock::new(|| {
    Records::new(
        "on conflict (organization, slice, id) do update set status = excluded.status, code = excluded.code, \
         bytes_in = excluded.bytes_in, bytes_out = excluded.bytes_out, duration_us = excluded.duration_us",
    )
});
static SERIES: LazyLock<Insert> = LazyLock::new(|| {
    let columns = &["slice", "series", "actor", "action", "agent_key", "target", "account", "method"];
    Insert::new("audit_series", columns, "on conflict (slice, series) do nothing")
});
static ABOUT: LazyLock<Insert> =
    LazyLock::new(|| Insert::new("audit_about", &["subject", "slice"], "on conflict (subject, slice) do nothing"));

/// The inserts of records.
struct Records {
    full: Insert,
    brief: Insert,
}

impl Records {
    fn new(conflict: &str) -> Self {
        let insert = |columns| Insert::new("audit", columns, conflict);
        Self { full: insert(&COLUMNS), brief: insert(&COLUMNS[..BRIEF]) }
    }
}

/// One insert: its texts for each of [`PIECES`].
struct Insert {
    sqlite: [String; PIECES.len()],
    postgres: [String; PIECES.len()],
}

impl Insert {
    fn new(table: &str, columns: &[&str], conflict: &str) -> Self {
        let text = |rows: usize, placeholder: fn(&mut String, usize)| {
            let mut sql = format!("insert into {table} ({}) values ", columns.join(", "));
            for at in 0..rows * columns.len() {
                sql.push_str(match (at, at % columns.len()) {
                    (0, _) => "(",
                    (_, 0) => "), (",
                    _ => ", ",
                });
                placeholder(&mut sql, at + 1);
            }
            write!(sql, ") {conflict}").expect("a String takes everything");
            sql
        };
        Self {
            // SQLite looks a named parameter up in a list of all, each time that one is bound; one without a name it
            // counts.
            sqlite: PIECES.map(|rows| text(rows, |sql, _| sql.push('?'))),
            postgres: PIECES.map(|rows| text(rows, |sql, number| write!(sql, "${number}").expect("as above"))),
        }
    }

    /// The text for the largest piece of this many rows, and how many it takes.
    fn piece(&'static self, session: &Session, rows: usize) -> Option<(usize, &'static str)> {
        let place = PIECES.iter().position(|piece| *piece <= rows)?;
        let texts = match session {
            Session::Sqlite(_) => &self.sqlite,
            Session::Postgres(_) => &self.postgres,
        };
        Some((PIECES[place], &texts[place]))
    }
}

/// Inserts records beside the change that they describe. The last thing before the commit: what it takes, other
/// transactions may want too, and they must not wait for long or in a circle.
pub(super) async fn insert(tx: &mut Session, rows: &[AuditRow]) -> Result<()> {
    insert_or(tx, rows, Again::Keep).await
}

pub(super) async fn insert_or(tx: &mut Session, rows: &[AuditRow], again: Again) -> Result<()> {
    let mut shared = Shared::default();
    let numbered = rows.iter().map(|row| (row, shared.add(row)));
    let (brief, full): (Vec<_>, Vec<_>) = numbered.partition(|(row, _)| rare(row) == (None, None, None));
    let records = match again {
        Again::Keep => &*KEEP,
        Again::Settle => &*SETTLE,
    };
    insert_rows(tx, &brief, &records.brief, false).await?;
    insert_rows(tx, &full, &records.full, true).await?;
    insert_series(tx, shared.series).await?;
    insert_about(tx, shared.about).await
}

/// What is written once for all the records of a batch that share it.
#[derive(Default)]
struct Shared<'a> {
    series: HashMap<Kind<'a>, i64>,
    about: HashSet<(i64, i64)>,
    last: Option<(Kind<'a>, i64)>,
}

/// Records that share everything but themselves: slice, organization and series. Organizations may share a series, but not
/// what says where their records are.
type Kind<'a> = (i64, Option<OrgId>, Series<'a>);

impl<'a> Shared<'a> {
    /// Adds what a record shares with others; answers its series' number.
    fn add(&mut self, row: &'a AuditRow) -> i64 {
        let kind @ (slice, _, series) = (about::slice(row.id), row.organization, Series::of(row));
        // One agent's calls come one after the other.
        if let Some((last, number)) = &self.last
            && *last == kind
        {
            return *number;
        }
        let number = *self.series.entry(kind).or_insert_with(|| {
            self.about.extend(About::of_row(row).map(|about| (about.subject(), slice)));
            series.number()
        });
        self.last = Some((kind, number));
        number
    }
}

/// The columns beyond [`BRIEF`]. A request that is named is another than the record's own.
fn rare(row: &AuditRow) -> (Option<&[u8]>, Option<&str>, Option<&serde_json::Value>) {
    let request = row.request.as_ref().map(|id| id.as_bytes());
    (request.filter(|request| *request != row.id.as_bytes()), row.code.as_deref(), row.detail.as_ref())
}

async fn insert_rows(
    tx: &mut Session,
    mut rows: &[(&AuditRow, i64)],
    insert: &'static Insert,
    full: bool,
) -> Result<()> {
    while let Some((size, sql)) = insert.piece(tx, rows.len()) {
        let (piece, rest) = rows.split_at(size);
        rows = rest;
        on!(&mut *tx, connection => {
            let mut query = sqlx::query(sql);
            for (row, series) in piece {
                query = query
                    .bind(row.organization.as_ref().map_or(NOBODY, |org| org.as_bytes()))
                    .bind(about::slice(row.id))
                    .bind(row.id.as_bytes())
                    .bind(row.at.millis())
                    .bind(series)
                    .bind(row.path.clone())
                    .bind(row.status)
                    .bind(row.bytes_in)
                    .bind(row.bytes_out)
                    .bind(row.duration_us);
                if full {
                    let (request, code, detail) = rare(row);
                    query = query.bind(request).bind(code).bind(detail.map(ToString::to_string));
                }
            }
            within(query.execute(connection)).await?;
        });
    }
    Ok(())
}

/// Says what the series are that the records name.
async fn insert_series(tx: &mut Session, series: HashMap<Kind<'_>, i64>) -> Result<()> {
    let mut entries: Vec<_> = series.into_iter().map(|((slice, _, labels), number)| (slice, number, labels)).collect();
    // In one order everywhere: two instances that write the same must not wait for each other in a circle.
    entries.sort_unstable_by_key(|(slice, number, _)| (*slice, *number));
    let mut entries = &entries[..];
    while let Some((size, sql)) = SERIES.piece(tx, entries.len()) {
        let (piece, rest) = entries.split_at(size);
        entries = rest;
        on!(&mut *tx, connection => {
            let mut query = sqlx::query(sql);
            for (slice, number, labels) in piece {
                query = query
                    .bind(slice)
                    .bind(number)
                    .bind(labels.actor)
                    .bind(labels.action)
                    .bind(labels.key.as_ref().map(|id| id.as_bytes()))
                    .bind(labels.target)
                    .bind(labels.account.as_ref().map(|id| id.as_bytes()))
                    .bind(labels.method);
            }
            within(query.execute(connection)).await?;
        });
    }
    Ok(())
}

/// Says in which slices to look for these.
async fn insert_about(tx: &mut Session, about: HashSet<(i64, i64)>) -> Result<()> {
    let mut entries: Vec<_> = about.into_iter().collect();
    // In one order, as above.
    entries.sort_unstable();
    let mut entries = &entries[..];
    while let Some((size, sql)) = ABOUT.piece(tx, entries.len()) {
        let (piece, rest) = entries.split_at(size);
        entries = rest;
        on!(&mut *tx, connection => {
            let mut query = sqlx::query(sql);
            for (subject, slice) in piece {
                query = query.bind(subject).bind(slice);
            }
            within(query.execute(connection)).await?;
        });
    }
    Ok(())
}

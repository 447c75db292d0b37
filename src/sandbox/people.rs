//! Who lives here, and what their mailboxes and calendars hold at the first look. The same address and the same day
//! always give the same data.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::graph_id;
use crate::clock::Timestamp;
use crate::secret::sha256;

/// The people one can be on the consent page. Each has as many more accounts as anybody likes, as `ada+7@example.com`.
pub const PEOPLE: &[&str] = &["ada@example.com", "grace@example.com", "linus@example.com"];

/// A mailbox and calendar that everybody may open under `/users/team@example.com/…`.
pub const TEAM: &str = "team@example.com";

/// Whether somebody has this address: anybody at example.com.
pub(super) fn is_one(email: &str) -> bool {
    email.strip_suffix("@example.com").is_some_and(|name| {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'+';
        (1..=64).contains(&name.len()) && name.bytes().all(letter)
    })
}

pub(super) const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);

/// Sender, subject, text. `{me}` is the first name of the mailbox's owner.
const LETTERS: &[(&str, &str, &str)] = &[
    (
        "grace@example.com",
        "Minutes of Monday's review",
        "Hello {me}, here are the minutes. Two points are yours: the draft for the client and the date for the next review.",
    ),
    (
        "ada@example.com",
        "Numbers for the quarter",
        "Hi {me}, the table is attached. Costs are 4 % under plan; travel is the only line above it.",
    ),
    (
        "linus@example.com",
        "Patch for the import job",
        "{me}, the import stops when a name has an umlaut. The patch is small, can you have a look before lunch?",
    ),
    (
        "billing@example.com",
        "Your invoice 2041",
        "Dear customer, your invoice over 118.00 EUR is attached. It is due in 14 days.",
    ),
    (
        "travel@example.com",
        "Your booking: Berlin – Vienna",
        "The train leaves at 08:14 from platform 5. Your seat is 42 in coach 9.",
    ),
    ("team@example.com", "Lunch on Thursday?", "We would like to try the new place by the river. Who is in?"),
    ("hr@example.com", "Holiday plan", "Please enter your holidays for the summer until Friday."),
    (
        "support@example.com",
        "Ticket 5531 was closed",
        "The printer on the second floor works again. Please reopen the ticket if it does not.",
    ),
    (
        "news@example.com",
        "This week in protocols",
        "A new draft on token binding, a long read about queues, and a short one about naming things.",
    ),
    (
        "grace@example.com",
        "Re: Slides for the talk",
        "Looks good. I would drop slide 7 and use the drawing from the paper instead. — G.",
    ),
    (
        "security@example.com",
        "A new device signed in",
        "Somebody signed in to your account from a new device. If it was you, there is nothing to do.",
    ),
    ("ada@example.com", "Thank you!", "{me}, that was a great help yesterday. I owe you a coffee. ☕"),
];

const MEETINGS: &[(&str, &str, u32, u32)] = &[
    ("Stand-up", "Room 1", 9, 1),
    ("Design review", "Room Lovelace", 10, 2),
    ("Lunch with the team", "By the river", 12, 1),
    ("One-to-one", "Phone", 14, 1),
    ("Quarterly planning", "Room Hopper", 15, 3),
];

/// A file at a message.
#[derive(Clone)]
pub(super) struct Attachment {
    pub(super) id: String,
    pub(super) name: &'static str,
    pub(super) content_type: &'static str,
    pub(super) bytes: Bytes,
}

impl Attachment {
    /// The description with the content inside.
    pub(super) fn described(&self) -> Value {
        json!({
            "@odata.type": "#microsoft.graph.fileAttachment",
            "id": self.id,
            "name": self.name,
            "contentType": self.content_type,
            "size": self.bytes.len(),
            "isInline": false,
            "contentBytes": STANDARD.encode(&self.bytes),
        })
    }
}

/// The stable id of a person, as the identity endpoint gives it.
pub(super) fn subject(email: &str) -> String {
    let hash = sha256(email.as_bytes());
    let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `Ada` for `ada@example.com`.
pub(super) fn first_name(email: &str) -> String {
    let local = email.split('@').next().unwrap_or_default();
    let mut letters = local.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// An address in Graph's form.
pub(super) fn address(email: &str) -> Value {
    json!({ "emailAddress": { "name": first_name(email), "address": email } })
}

/// The 25 messages of a mailbox, newest first, each with its attachments.
pub(super) fn messages(email: &str, now: Timestamp) -> Vec<(Value, Vec<Attachment>)> {
    let today = midnight(now);
    (0..25u64)
        .map(|index| {
            let dice = sha256(format!("message|{email}|{index}").as_bytes());
            let (from, subject, text) = LETTERS[(usize::from(dice[0]) + index as usize) % LETTERS.len()];
            let received = today.before(HOUR * (7 * index as u32 + u32::from(dice[1] % 7)));
            let files = if matches!(from, "ada@example.com" | "billing@example.com") {
                vec![Attachment {
                    id: graph_id(format!("attachment|{email}|{index}").as_bytes()),
                    name: "table.bin",
                    content_type: "application/octet-stream",
                    bytes: (0..1024u32).map(|at| at as u8).collect(),
                }]
            } else {
                Vec::new()
            };
            let mut message = message(email, from, subject, &text.replace("{me}", &first_name(email)), received);
            message["id"] = graph_id(format!("message|{email}|{index}").as_bytes()).into();
            message["isRead"] = (index > 4).into();
            message["hasAttachments"] = (!files.is_empty()).into();
            (message, files)
        })
        .collect()
}

/// A message to `to`, with all the members Graph gives.
pub(super) fn message(to: &str, from: &str, subject: &str, text: &str, at: Timestamp) -> Value {
    let id = super::fresh_graph_id();
    let preview: String = text.chars().take(255).collect();
    json!({
        "id": id,
        "createdDateTime": at,
        "lastModifiedDateTime": at,
        "receivedDateTime": at,
        "sentDateTime": at,
        "hasAttachments": false,
        "internetMessageId": format!("<{}@example.com>", subject_slug(subject, at)),
        "subject": subject,
        "bodyPreview": preview,
        "importance": "normal",
        "conversationId": graph_id(subject.trim_start_matches("Re: ").as_bytes()),
        "isRead": false,
        "isDraft": false,
        "body": { "contentType": "text", "content": text },
        "sender": address(from),
        "from": address(from),
        "toRecipients": [address(to)],
        "ccRecipients": [],
        "bccRecipients": [],
        "replyTo": [],
        "categories": [],
        "flag": { "flagStatus": "notFlagged" },
    })
}

fn subject_slug(subject: &str, at: Timestamp) -> String {
    sha256(format!("{subject}|{}", at.millis()).as_bytes())[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two weeks of meetings around today: subject, place, start and end.
pub(super) fn meetings(email: &str, now: Timestamp) -> Vec<(String, &'static str, &'static str, Timestamp, Timestamp)> {
    let first = midnight(now).before(DAY * 7);
    (0..14u32)
        .map(|day| {
            let dice = sha256(format!("meeting|{email}|{day}").as_bytes());
            let (subject, place, hour, hours) = MEETINGS[usize::from(dice[0]) % MEETINGS.len()];
            let start = first.after(DAY * day + HOUR * hour);
            let id = graph_id(format!("event|{email}|{day}").as_bytes());
            (id, subject, place, start, start.after(HOUR * hours))
        })
        .collect()
}

fn midnight(now: Timestamp) -> Timestamp {
    Timestamp::from_millis(now.millis() - now.millis().rem_euclid(86_400_000))
}

//! Mail in the shape of Microsoft Graph: messages, folders, attachments, sending.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::api::{Call, Refusal};
use super::people::{self, Attachment};
use super::{PEOPLE, Sandbox, TEAM, graph_id};
use crate::clock::Timestamp;

const READ: &[&str] = &["Mail.Read", "Mail.ReadWrite"];
const WRITE: &[&str] = &["Mail.ReadWrite"];
const SEND: &[&str] = &["Mail.Send"];

/// Well-known name and display name.
const FOLDERS: &[(&str, &str)] = &[
    ("inbox", "Inbox"),
    ("drafts", "Drafts"),
    ("sentitems", "Sent Items"),
    ("archive", "Archive"),
    ("deleteditems", "Deleted Items"),
];

/// The members of a message that a client may change.
const CHANGEABLE: &[&str] = &["isRead", "categories", "importance", "flag", "subject", "body"];

pub(super) fn router() -> Router<Sandbox> {
    Router::new()
        .route("/messages", get(list))
        .route("/messages/{id}", get(read).patch(change).delete(delete))
        .route("/messages/{id}/attachments", get(attachments))
        .route("/messages/{id}/attachments/{aid}", get(attachment))
        .route("/messages/{id}/attachments/{aid}/$value", get(attachment_bytes))
        .route("/mailFolders", get(folders))
        .route("/mailFolders/{id}", get(folder))
        .route("/mailFolders/{id}/messages", get(list_folder))
        .route("/sendMail", post(send))
}

/// One mailbox, newest message first.
pub(super) struct Mailbox {
    owner: String,
    messages: Vec<Message>,
}

struct Message {
    folder: &'static str,
    members: Value,
    attachments: Vec<Attachment>,
}

impl Mailbox {
    /// A mailbox as it is before anybody touched it.
    pub(super) fn sample(owner: &str, now: Timestamp) -> Self {
        let messages = people::messages(owner, now);
        let messages = messages.into_iter().enumerate().map(|(index, (members, attachments))| {
            let folder = if index % 8 == 7 { "archive" } else { "inbox" };
            Message { folder, members, attachments }
        });
        Self { owner: owner.to_owned(), messages: messages.collect() }
    }

    fn folder_id(&self, folder: &str) -> String {
        graph_id(format!("folder|{}|{folder}", self.owner).as_bytes())
    }

    /// By id or by well-known name.
    fn folder_named(&self, wanted: &str) -> Result<(&'static str, &'static str), Refusal> {
        let known = |(name, _): &&(&str, &str)| name.eq_ignore_ascii_case(wanted) || self.folder_id(name) == wanted;
        FOLDERS.iter().find(known).copied().ok_or_else(Refusal::not_found)
    }

    fn described(&self, message: &Message) -> Value {
        let mut value = message.members.clone();
        value["parentFolderId"] = self.folder_id(message.folder).into();
        value
    }

    fn described_folder(&self, (name, display): (&str, &str)) -> Value {
        let inside = || self.messages.iter().filter(|message| message.folder == name);
        json!({
            "id": self.folder_id(name),
            "displayName": display,
            "parentFolderId": self.folder_id("msgfolderroot"),
            "childFolderCount": 0,
            "totalItemCount": inside().count(),
            "unreadItemCount": inside().filter(|message| message.members["isRead"] == false).count(),
            "isHidden": false,
        })
    }

    fn position(&self, id: &str) -> Result<usize, Refusal> {
        self.messages.iter().position(|message| message.members["id"] == id).ok_or_else(Refusal::not_found)
    }

    fn put(&mut self, folder: &'static str, members: Value) {
        self.messages.insert(0, Message { folder, members, attachments: Vec::new() });
    }
}

async fn list(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    let all = call.sandbox.with_mailbox(&call.owner, |mailbox| {
        mailbox.messages.iter().map(|message| mailbox.described(message)).collect()
    });
    call.page(all)
}

async fn list_folder(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    let all = call.sandbox.with_mailbox(&call.owner, |mailbox| {
        let (name, _) = mailbox.folder_named(call.param("id"))?;
        let inside = mailbox.messages.iter().filter(|message| message.folder == name);
        Ok(inside.map(|message| mailbox.described(message)).collect())
    })?;
    call.page(all)
}

async fn read(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    let message = call.sandbox.with_mailbox(&call.owner, |mailbox| {
        mailbox.position(call.param("id")).map(|at| mailbox.described(&mailbox.messages[at]))
    })?;
    Ok(call.one(message))
}

async fn change(call: Call, body: Bytes) -> Result<Response, Refusal> {
    call.need(WRITE)?;
    let changes: Map<String, Value> = call.body(&body)?;
    if let Some(fixed) = changes.keys().find(|name| !CHANGEABLE.contains(&name.as_str())) {
        return Err(Refusal::bad(&format!("{fixed} can't be changed.")));
    }
    let now = call.sandbox.now();
    let message = call.sandbox.with_mailbox(&call.owner, |mailbox| {
        let at = mailbox.position(call.param("id"))?;
        let members = &mut mailbox.messages[at].members;
        for (name, value) in changes {
            members[name] = value;
        }
        members["lastModifiedDateTime"] = json!(now);
        Ok(mailbox.described(&mailbox.messages[at]))
    })?;
    Ok(call.one(message))
}

/// As in Outlook: the first time into Deleted Items, from there for good.
async fn delete(call: Call) -> Result<StatusCode, Refusal> {
    call.need(WRITE)?;
    call.sandbox.with_mailbox(&call.owner, |mailbox| {
        let at = mailbox.position(call.param("id"))?;
        if mailbox.messages[at].folder == "deleteditems" {
            mailbox.messages.remove(at);
        } else {
            mailbox.messages[at].folder = "deleteditems";
        }
        Ok(StatusCode::NO_CONTENT)
    })
}

fn attachments_of(call: &Call) -> Result<Vec<Attachment>, Refusal> {
    call.need(READ)?;
    call.sandbox.with_mailbox(&call.owner, |mailbox| {
        mailbox.position(call.param("id")).map(|at| mailbox.messages[at].attachments.clone())
    })
}

fn attachment_of(call: &Call) -> Result<Attachment, Refusal> {
    let all = attachments_of(call)?;
    all.into_iter().find(|attachment| attachment.id == call.param("aid")).ok_or_else(Refusal::not_found)
}

async fn attachments(call: Call) -> Result<Response, Refusal> {
    let all = attachments_of(&call)?;
    call.page(all.iter().map(|attachment| attachment.described()).collect())
}

async fn attachment(call: Call) -> Result<Response, Refusal> {
    attachment_of(&call).map(|attachment| call.one(attachment.described()))
}

async fn attachment_bytes(call: Call) -> Result<Response, Refusal> {
    let found = attachment_of(&call)?;
    Ok(([(header::CONTENT_TYPE, found.content_type)], found.bytes).into_response())
}

async fn folders(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    let all = call
        .sandbox
        .with_mailbox(&call.owner, |mailbox| FOLDERS.iter().map(|folder| mailbox.described_folder(*folder)).collect());
    call.page(all)
}

async fn folder(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    let folder = call.sandbox.with_mailbox(&call.owner, |mailbox| {
        mailbox.folder_named(call.param("id")).map(|folder| mailbox.described_folder(folder))
    })?;
    Ok(call.one(folder))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sending {
    message: Outgoing,
    #[serde(default = "yes")]
    save_to_sent_items: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Outgoing {
    subject: String,
    body: Content,
    to_recipients: Vec<Recipient>,
    cc_recipients: Vec<Recipient>,
    bcc_recipients: Vec<Recipient>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    content_type: String,
    content: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recipient {
    email_address: Mail,
}

#[derive(Deserialize)]
struct Mail {
    address: String,
}

fn yes() -> bool {
    true
}

/// 202, a copy in Sent Items, and a letter for every recipient who lives here.
async fn send(call: Call, body: Bytes) -> Result<StatusCode, Refusal> {
    call.need(SEND)?;
    let sending: Sending = call.body(&body)?;
    let Outgoing { subject, body, to_recipients, cc_recipients, bcc_recipients } = &sending.message;
    let listed = |list: &[Recipient]| -> Vec<String> {
        list.iter().map(|recipient| recipient.email_address.address.to_ascii_lowercase()).collect()
    };
    let (to, cc, bcc) = (listed(to_recipients), listed(cc_recipients), listed(bcc_recipients));
    let everybody: Vec<&String> = to.iter().chain(&cc).chain(&bcc).collect();
    if everybody.is_empty() || everybody.iter().any(|address| !address.contains('@')) {
        let message = "At least one recipient is needed, and each must be an e-mail address.";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "ErrorInvalidRecipients", message));
    }
    let now = call.sandbox.now();
    let letter = || {
        let mut letter = people::message(&call.owner, &call.owner, subject, &body.content, now);
        letter["toRecipients"] = to.iter().map(|address| people::address(address)).collect();
        letter["ccRecipients"] = cc.iter().map(|address| people::address(address)).collect();
        if !body.content_type.is_empty() {
            letter["body"]["contentType"] = body.content_type.to_ascii_lowercase().into();
        }
        letter
    };
    if sending.save_to_sent_items {
        let mut copy = letter();
        copy["isRead"] = true.into();
        copy["bccRecipients"] = bcc.iter().map(|address| people::address(address)).collect();
        call.sandbox.with_mailbox(&call.owner, |mailbox| mailbox.put("sentitems", copy));
    }
    for recipient in everybody.into_iter().filter(|address| PEOPLE.contains(&address.as_str()) || *address == TEAM) {
        call.sandbox.with_mailbox(recipient, |mailbox| mailbox.put("inbox", letter()));
    }
    Ok(StatusCode::ACCEPTED)
}

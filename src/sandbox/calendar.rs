//! Calendars in the shape of Microsoft Graph. All times are UTC.

use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::{Map, Value, json};

use super::api::{Call, Refusal};
use super::{Sandbox, fresh_graph_id, graph_id, people};
use crate::clock::Timestamp;

const READ: &[&str] = &["Calendars.Read", "Calendars.ReadWrite"];
const WRITE: &[&str] = &["Calendars.ReadWrite"];

/// The members of an event that a client may set.
const SETTABLE: &[&str] = &[
    "subject",
    "body",
    "start",
    "end",
    "location",
    "attendees",
    "isAllDay",
    "importance",
    "showAs",
    "categories",
    "sensitivity",
    "reminderMinutesBeforeStart",
    "isReminderOn",
    "recurrence",
    "isOnlineMeeting",
    "allowNewTimeProposals",
    "transactionId",
];

pub(super) fn router() -> Router<Sandbox> {
    Router::new()
        .route("/events", get(list).post(create))
        .route("/events/{id}", get(read).patch(change).delete(delete))
        .route("/calendarView", get(view))
        .route("/calendar", get(calendar))
        .route("/calendars", get(calendars))
}

/// One calendar, in order of start.
pub(super) struct Calendar {
    events: Vec<Event>,
}

struct Event {
    start: Timestamp,
    end: Timestamp,
    members: Value,
}

impl Calendar {
    /// A calendar as it is before anybody touched it: a meeting a day around today.
    pub(super) fn sample(owner: &str, now: Timestamp) -> Self {
        let events = people::meetings(owner, now).into_iter().map(|(id, subject, place, start, end)| {
            let mut members = blank(&id, owner, now);
            members["subject"] = subject.into();
            members["location"] = json!({ "displayName": place });
            members["start"] = moment(start);
            members["end"] = moment(end);
            Event { start, end, members }
        });
        Self { events: events.collect() }
    }

    fn position(&self, id: &str) -> Result<usize, Refusal> {
        self.events.iter().position(|event| event.members["id"] == id).ok_or_else(Refusal::not_found)
    }

    fn put(&mut self, event: Event) {
        let at = self.events.partition_point(|other| other.start <= event.start);
        self.events.insert(at, event);
    }
}

fn blank(id: &str, owner: &str, now: Timestamp) -> Value {
    json!({
        "id": id,
        "createdDateTime": now,
        "lastModifiedDateTime": now,
        "iCalUId": id,
        "subject": "",
        "bodyPreview": "",
        "body": { "contentType": "text", "content": "" },
        "location": { "displayName": "" },
        "attendees": [],
        "organizer": people::address(owner),
        "isAllDay": false,
        "isCancelled": false,
        "isOrganizer": true,
        "importance": "normal",
        "sensitivity": "normal",
        "showAs": "busy",
        "type": "singleInstance",
        "categories": [],
    })
}

fn moment(at: Timestamp) -> Value {
    json!({ "dateTime": at.to_string().trim_end_matches('Z'), "timeZone": "UTC" })
}

/// With or without an offset; without means UTC.
fn parse_moment(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text).or_else(|_| Timestamp::parse(&format!("{text}Z"))).ok()
}

/// Reads `start` or `end`, which must be in UTC.
fn time_of(members: &Value, name: &str) -> Result<Timestamp, Refusal> {
    let zone = members[name]["timeZone"].as_str().unwrap_or("UTC");
    if !zone.eq_ignore_ascii_case("UTC") {
        return Err(Refusal::bad(&format!("{name}.timeZone: the sandbox knows UTC only.")));
    }
    let text = members[name]["dateTime"].as_str().and_then(parse_moment);
    text.ok_or_else(|| Refusal::bad(&format!("{name}.dateTime is missing or not a date and time.")))
}

/// Puts what a client sent over an event and checks the result.
fn apply(members: &mut Value, sent: Map<String, Value>, now: Timestamp) -> Result<(Timestamp, Timestamp), Refusal> {
    for (name, value) in sent {
        if !SETTABLE.contains(&name.as_str()) {
            return Err(Refusal::bad(&format!("{name} can't be set.")));
        }
        members[name] = value;
    }
    let (start, end) = (time_of(members, "start")?, time_of(members, "end")?);
    if end < start {
        return Err(Refusal::bad("The event ends before it starts."));
    }
    let preview: String = members["body"]["content"].as_str().unwrap_or_default().chars().take(255).collect();
    members["bodyPreview"] = preview.into();
    members["start"] = moment(start);
    members["end"] = moment(end);
    members["lastModifiedDateTime"] = json!(now);
    Ok((start, end))
}

async fn list(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    let all = call
        .sandbox
        .with_calendar(&call.owner, |calendar| calendar.events.iter().map(|event| event.members.clone()).collect());
    call.page(all)
}

async fn view(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    let bound = |name: &str| {
        let text = call.query(name).and_then(|text| parse_moment(&text.replace(' ', "+")));
        text.ok_or_else(|| Refusal::bad(&format!("{name} is missing or not a date and time.")))
    };
    let (from, to) = (bound("startDateTime")?, bound("endDateTime")?);
    let all = call.sandbox.with_calendar(&call.owner, |calendar| {
        let inside = calendar.events.iter().filter(|event| event.start < to && event.end > from);
        inside.map(|event| event.members.clone()).collect()
    });
    call.page(all)
}

async fn read(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    let event = call.sandbox.with_calendar(&call.owner, |calendar| {
        calendar.position(call.param("id")).map(|at| calendar.events[at].members.clone())
    })?;
    Ok(call.one(event))
}

async fn create(call: Call, body: Bytes) -> Result<Response, Refusal> {
    call.need(WRITE)?;
    let sent: Map<String, Value> = call.body(&body)?;
    let (id, now) = (fresh_graph_id(), call.sandbox.now());
    let mut members = blank(&id, &call.owner, now);
    let (start, end) = apply(&mut members, sent, now)?;
    let location = call.absolute(&format!("{}/{id}", call.path));
    let event = Event { start, end, members: members.clone() };
    call.sandbox.with_calendar(&call.owner, |calendar| calendar.put(event));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(members)).into_response())
}

async fn change(call: Call, body: Bytes) -> Result<Response, Refusal> {
    call.need(WRITE)?;
    let sent: Map<String, Value> = call.body(&body)?;
    let now = call.sandbox.now();
    let event = call.sandbox.with_calendar(&call.owner, |calendar| {
        let at = calendar.position(call.param("id"))?;
        let mut members = calendar.events[at].members.clone();
        let (start, end) = apply(&mut members, sent, now)?;
        calendar.events.remove(at);
        calendar.put(Event { start, end, members: members.clone() });
        Ok(members)
    })?;
    Ok(call.one(event))
}

async fn delete(call: Call) -> Result<StatusCode, Refusal> {
    call.need(WRITE)?;
    call.sandbox.with_calendar(&call.owner, |calendar| {
        let at = calendar.position(call.param("id"))?;
        calendar.events.remove(at);
        Ok(StatusCode::NO_CONTENT)
    })
}

fn described(call: &Call) -> Value {
    json!({
        "id": graph_id(format!("calendar|{}", call.owner).as_bytes()),
        "name": "Calendar",
        "isDefaultCalendar": true,
        "canEdit": true,
        "owner": { "name": people::first_name(&call.owner), "address": call.owner },
    })
}

async fn calendar(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    Ok(call.one(described(&call)))
}

async fn calendars(call: Call) -> Result<Response, Refusal> {
    call.need(READ)?;
    call.page(vec![described(&call)])
}

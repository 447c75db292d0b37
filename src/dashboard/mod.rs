//! The dashboard: pages for people, rendered here, working without script. A button and an API call end in the same
//! service method; this module only reads forms, asks a service, and shows what came of it in words.
//!
//! Not here: who may call (`admin::auth`), the proof that a POST comes from our own pages and the check of `Host`
//! (layers of `admin::router`, which merges [`router`]), and what connecting means (`accounts`).
//!
//! ```text
//! integrations ─ POST …/connect ─▶ provider ─▶ GET …/callback   "Connecting integration…"  (spends nothing)
//!      ▲   link page ─ POST ──▲                     │ POST …/callback
//!      └──────────── …/connected  or  …/failed ◀────┘ 303
//! ```

mod assets;
mod audit;
mod callback;
mod connect;
mod disconnect;
mod fields;
mod integrations;
mod keys;
mod page;
mod problem;
mod session;
mod targets;
mod when;
mod words;

#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::Redirect;
use axum::routing::{get, post};

use crate::admin::AdminState;

/// Bytes of a posted form: the access form of 200 targets with long slugs fits.
const FORM_LIMIT: usize = 256 * 1024;

/// Every page and form of the dashboard.
pub fn router() -> Router<AdminState> {
    Router::new()
        .route("/", get(async || Redirect::to("/integrations")))
        .route("/login", get(session::show).post(session::enter))
        .route("/logout", post(session::leave))
        .route("/integrations", get(integrations::show))
        .route("/integrations/{provider}/connect", post(connect::connect))
        .route("/integrations/{provider}/callback", get(callback::returned).post(callback::finish))
        .route("/integrations/{provider}/connected", get(callback::connected))
        .route("/integrations/{provider}/failed", get(callback::failed))
        .route("/connect/{flow}", get(connect::link).post(connect::follow))
        .route("/accounts/{id}/validate", post(integrations::validate))
        .route("/accounts/{id}/refresh", post(integrations::refresh))
        .route("/accounts/{id}/reconnect", post(connect::reconnect))
        .route("/accounts/{id}/disconnect", get(disconnect::ask).post(disconnect::confirmed))
        .route("/targets", get(targets::show).post(targets::create))
        .route("/targets/{slug}/delete", post(targets::delete))
        .route("/keys", get(keys::list).post(keys::create))
        .route("/keys/{id}", get(keys::show))
        .route("/keys/{id}/access", post(keys::save_access))
        .route("/keys/{id}/rotate", post(keys::rotate))
        .route("/keys/{id}/revoke", post(keys::revoke))
        .route("/audit", get(audit::show))
        .route("/static/{file}", get(assets::serve))
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
        .layer(middleware::map_response(page::protect))
}

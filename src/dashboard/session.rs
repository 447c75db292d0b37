//! Signing in with the admin token, and out again.

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};

use crate::admin::AdminState;
use crate::admin::auth::{SignedIn, sign_in, sign_out};

use super::fields::{Asked, Posted};
use super::page::{Reply, Shell, html, see_other};

#[derive(Template)]
#[template(path = "login.html")]
pub(super) struct LoginPage {
    pub shell: Shell,
    pub next: String,
    pub problem: Option<String>,
}

/// `GET /login`.
pub(super) async fn show(signed_in: Result<SignedIn, Response>, Asked(query): Asked) -> Reply {
    let next = local(query.one("next"));
    if signed_in.is_ok() {
        return see_other(next, &[]);
    }
    Ok(html(&LoginPage { shell: Shell::alone("Sign in"), next: next.to_owned(), problem: None }))
}

/// `POST /login`.
pub(super) async fn enter(State(state): State<AdminState>, Posted(form): Posted) -> Reply {
    let next = local(form.one("next"));
    match sign_in(&state, form.one("token").unwrap_or_default()).await {
        Ok(cookie) => see_other(next, &[cookie]),
        Err(error) if error.status == StatusCode::UNAUTHORIZED => {
            let problem = Some("That is not the admin token.".to_owned());
            let mut reply = html(&LoginPage { shell: Shell::alone("Sign in"), next: next.to_owned(), problem });
            *reply.status_mut() = StatusCode::UNAUTHORIZED;
            Ok(reply)
        }
        Err(error) => Err(error.into()),
    }
}

/// `POST /logout`.
pub(super) async fn leave(State(state): State<AdminState>, headers: HeaderMap) -> Reply {
    let cookie = sign_out(&state, &headers).await?;
    see_other("/login", &[cookie])
}

/// `next`, when it is a path of ours; browsers read `\` as `/` and drop tabs and line breaks, so `/\t/example.com` would
/// lead away.
fn local(next: Option<&str>) -> &str {
    let fine = |path: &&str| {
        path.starts_with('/')
            && !path.starts_with("//")
            && path.len() <= 2048
            && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    };
    next.filter(fine).unwrap_or("/integrations")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_stays_here() {
        assert_eq!(local(Some("/keys?x=1#y")), "/keys?x=1#y");
        for bad in ["//example.com", "/\\example.com", "https://example.com", "keys", "/\t/example.com", "/a\r\nb", ""]
        {
            assert_eq!(local(Some(bad)), "/integrations", "{bad:?}");
        }
        assert_eq!(local(None), "/integrations");
    }
}

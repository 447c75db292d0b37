//! The browser's side of a connect flow: its cookie, and what a provider's callback says.

use http::HeaderMap;

use crate::accounts::{Callback, Opened};
use crate::secret::Secret;

use super::AdminState;

/// The `Set-Cookie` value that binds an opened flow to this browser.
pub fn flow_cookie(_state: &AdminState, _opened: &Opened) -> String {
    todo!()
}

/// The `Set-Cookie` value that clears the cookie.
pub fn clear_flow_cookie(_state: &AdminState) -> String {
    todo!()
}

/// The flow cookie that this browser brings.
pub fn read_flow_cookie(_state: &AdminState, _headers: &HeaderMap) -> Option<Secret<String>> {
    todo!()
}

/// A callback from its parameters.
pub fn callback_of(_provider: &str, _query: &str) -> Callback {
    todo!()
}

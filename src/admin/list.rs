//! Lists: `?limit=&cursor=` in, `{"items": […], "next_cursor": …}` out.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::store::{Page, Paged};

use super::error::ApiError;
use super::extract::is_word;

const LIMIT: u32 = 50;
const LIMIT_MOST: u32 = 200;

/// One page of a list.
#[derive(Serialize, ToSchema)]
pub(super) struct List<T: ToSchema> {
    /// The entries.
    items: Vec<T>,
    /// For the next page's `cursor`; `null` at the end.
    next_cursor: Option<String>,
}

impl<T: ToSchema> List<T> {
    /// A page of the store, each row in its shown form.
    pub(super) fn of<R>(paged: Paged<R>, show: impl FnMut(R) -> T) -> Json<Self> {
        Json(Self { items: paged.items.into_iter().map(show).collect(), next_cursor: paged.next })
    }

    /// A list that is never cut.
    pub(super) fn whole(items: Vec<T>) -> Json<Self> {
        Json(Self { items, next_cursor: None })
    }

    /// A page that was put together by hand.
    pub(super) fn page(items: Vec<T>, next_cursor: Option<String>) -> Json<Self> {
        Json(Self { items, next_cursor })
    }
}

/// What a list route takes at least.
#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// Entries wanted, 1 to 200; default 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl PageQuery {
    /// Checked.
    pub(super) fn page(self) -> Result<Page, ApiError> {
        page(self.limit, self.cursor)
    }
}

/// Checks a list's parameters.
pub(super) fn page(limit: Option<u32>, cursor: Option<String>) -> Result<Page, ApiError> {
    let limit = limit.unwrap_or(LIMIT);
    if !(1..=LIMIT_MOST).contains(&limit) {
        return Err(ApiError::bad_request("query `limit`: expected 1 to 200"));
    }
    if cursor.as_deref().is_some_and(|cursor| !is_word(cursor)) {
        return Err(ApiError::bad_request("query `cursor`: not a cursor").hint("Use `next_cursor` as it came."));
    }
    Ok(Page { limit, after: cursor })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_bounds() {
        assert_eq!(page(None, None).unwrap().limit, 50);
        assert_eq!(page(Some(200), Some("key_1".into())).unwrap().after.as_deref(), Some("key_1"));
        assert!(page(Some(0), None).is_err());
        assert!(page(Some(201), None).is_err());
        assert!(page(None, Some("a b".into())).is_err());
        assert!(page(None, Some(String::new())).is_err());
    }
}

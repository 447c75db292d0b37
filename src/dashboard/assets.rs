//! The style sheet, the script and the logo, inside the binary. Each is served under a name that holds its hash, so
//! browsers may keep it for ever and still get a new one with a new Keyward.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};

use crate::secret::sha256;

/// One file.
pub(super) struct Asset {
    /// Where it is: `/static/style.0123456789abcdef.css`.
    pub url: String,
    content_type: &'static str,
    bytes: &'static [u8],
}

/// The style sheet.
pub(super) static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("style", "css", "text/css; charset=utf-8", include_bytes!("static/style.css")));
/// What pages do better with a script.
pub(super) static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("app", "js", "text/javascript; charset=utf-8", include_bytes!("static/app.js")));
/// The mark.
pub(super) static LOGO: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("logo", "svg", "image/svg+xml", include_bytes!("static/logo.svg")));

impl Asset {
    fn new(name: &str, extension: &str, content_type: &'static str, bytes: &'static [u8]) -> Self {
        let hash: String = sha256(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { url: format!("/static/{name}.{hash}.{extension}"), content_type, bytes }
    }
}

/// `GET /static/{file}`.
pub(super) async fn serve(Path(file): Path<String>) -> Response {
    let found = [&*STYLE, &*SCRIPT, &*LOGO].into_iter().find(|asset| asset.url.strip_prefix("/static/") == Some(&file));
    match found {
        Some(asset) => {
            let headers = [(CONTENT_TYPE, asset.content_type), (CACHE_CONTROL, "public, max-age=31536000, immutable")];
            (headers, asset.bytes).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_served_under_its_hash_and_kept_for_long() {
        let name = STYLE.url.trim_start_matches("/static/").to_owned();
        let reply = serve(Path(name)).await;
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.headers()[CONTENT_TYPE], "text/css; charset=utf-8");
        assert!(reply.headers()[CACHE_CONTROL].to_str().unwrap().contains("immutable"));
        assert_eq!(serve(Path("style.css".to_owned())).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(serve(Path("../mod.rs".to_owned())).await.status(), StatusCode::NOT_FOUND);
    }
}

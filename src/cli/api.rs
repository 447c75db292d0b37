//! The admin API as commands use it: one method a verb, lists read to their end, errors in words.

use std::fmt;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, header};
use serde_json::Value;
use url::Url;

use keyward::config::Env;
use keyward::secret::Secret;

use super::http::{self as wire, Reply};
use super::output::clean;

/// Which Keyward a command speaks to, and how it prints.
///
/// The admin token comes from the variable KEYWARD_ADMIN_TOKEN, or from the file that KEYWARD_ADMIN_TOKEN_FILE names;
/// never from an argument, which other users of the machine could read.
#[derive(Debug, clap::Args)]
pub struct ApiArgs {
    /// Keyward's admin listener
    #[arg(long, global = true, env = "KEYWARD_ADMIN_URL", default_value = "http://127.0.0.1:8081", value_parser = base)]
    url: Url,
    /// Organization
    #[arg(long, global = true, default_value = "default", value_name = "NAME")]
    org: String,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// One organization's part of the admin API.
pub struct Api {
    base: Url,
    org: String,
    token: Secret<String>,
}

/// What Keyward said instead of doing it.
#[derive(Debug, thiserror::Error)]
pub struct ApiError {
    code: String,
    message: String,
    hint: Option<String>,
}

impl ApiArgs {
    /// The API, with the token of the environment.
    pub fn open(&self) -> anyhow::Result<Api> {
        let token = Env::of_process().secret("KEYWARD_ADMIN_TOKEN")?;
        let token = token.context("set KEYWARD_ADMIN_TOKEN (or KEYWARD_ADMIN_TOKEN_FILE) to Keyward's admin token")?;
        Ok(Api { base: self.url.clone(), org: self.org.clone(), token })
    }
}

impl Api {
    /// A value.
    pub async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Value> {
        self.call(Method::GET, path, query, None).await
    }

    /// Every item of a list, page after page, until the list or `most` ends.
    pub async fn list(&self, path: &[&str], query: &[(&str, &str)], most: usize) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        while items.len() < most {
            let limit = (most - items.len()).min(200).to_string();
            let mut query = query.to_vec();
            // Lists that are never cut take no limit, and nobody bounds those.
            query.extend((most != usize::MAX).then_some(("limit", limit.as_str())));
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let mut page = self.get(path, &query).await?;
            let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) else {
                bail!("the answer is not a list: is this Keyward's admin listener?");
            };
            items.extend(found);
            let next = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
            if next.is_none() || next == cursor {
                break;
            }
            cursor = next;
        }
        items.truncate(most);
        Ok(items)
    }

    /// Makes or does something.
    pub async fn post(&self, path: &[&str], query: &[(&str, &str)], body: Option<Value>) -> anyhow::Result<Value> {
        self.call(Method::POST, path, query, body).await
    }

    /// Sets something.
    pub async fn put(&self, path: &[&str], body: Value) -> anyhow::Result<Value> {
        self.call(Method::PUT, path, &[], Some(body)).await
    }

    /// Takes something away.
    pub async fn patch(&self, path: &[&str], body: Value) -> anyhow::Result<Value> {
        self.call(Method::PATCH, path, &[], Some(body)).await
    }

    pub async fn delete(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Value> {
        self.call(Method::DELETE, path, query, None).await
    }

    /// `path` is below the organization; its parts are encoded here.
    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let url = self.address(path, query)?;
        let mut bearer = header::HeaderValue::from_str(&format!("Bearer {}", self.token.expose()))
            .context("KEYWARD_ADMIN_TOKEN holds characters that can't be sent")?;
        bearer.set_sensitive(true);
        let mut request = Request::builder()
            .method(method)
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json");
        let body = match body {
            Some(value) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(&value)?)
            }
            None => Bytes::new(),
        };
        understand(&wire::send(&url, request, body).await?)
    }

    fn address(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Url> {
        // A URL drops these silently, and the request would be another one.
        if path.iter().chain([&self.org.as_str()]).any(|part| matches!(*part, "" | "." | "..")) {
            bail!("an empty name, . or .. names nothing");
        }
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow::anyhow!("{url} can't have a path", url = self.base))?
            .pop_if_empty()
            .extend(["api", "organizations", &self.org])
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }
}

/// A good answer's value (null when it has none), or the error that the body tells.
pub fn understand(reply: &Reply) -> anyhow::Result<Value> {
    let value: Option<Value> = serde_json::from_slice(&reply.body).ok();
    if reply.status.is_success() {
        return match value {
            Some(value) => Ok(value),
            None if reply.body.is_empty() => Ok(Value::Null),
            None => bail!("the answer is not JSON: is this Keyward's admin listener?"),
        };
    }
    let told = |field: &str| {
        let text = value.as_ref()?.pointer(&format!("/detail/{field}"))?.as_str()?;
        Some(clean(text))
    };
    match told("code").zip(told("message")) {
        Some((code, message)) => Err(ApiError { code, message, hint: told("hint") }.into()),
        None => bail!("the answer was {}: is this Keyward's admin listener?", reply.status),
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n{hint}"))
    }
}

fn base(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|cause| cause.to_string())?;
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if matches!(url.scheme(), "http" | "https") && plain && url.password().is_none() {
        Ok(url)
    } else {
        Err("a URL such as http://127.0.0.1:8081 is wanted".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::super::http::stand_in::{answering, json};
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status: StatusCode::from_u16(status).unwrap(),
            location: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test]
    fn answers_are_understood() {
        assert_eq!(understand(&reply(200, "{\"a\":1}")).unwrap(), serde_json::json!({"a": 1}));
        assert_eq!(understand(&reply(204, "")).unwrap(), Value::Null);
        for (status, body, told) in [
            (
                409,
                r#"{"detail":{"code":"needs_confirmation","message":"2 grants would go","hint":"say so"},"request_id":"req_1"}"#,
                "needs_confirmation: 2 grants would go\nsay so",
            ),
            (404, r#"{"detail":{"code":"account_not_found","message":"x","hint":null}}"#, "account_not_found: x"),
            (502, "<html>", "the answer was 502 Bad Gateway: is this Keyward's admin listener?"),
            (200, "<html>", "the answer is not JSON: is this Keyward's admin listener?"),
        ] {
            assert_eq!(understand(&reply(status, body)).unwrap_err().to_string(), told);
        }
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_end() {
        let pages =
            [r#"{"items":[{"id":"a"},{"id":"b"}],"next_cursor":"b"}"#, r#"{"items":[{"id":"c"}],"next_cursor":null}"#];
        let (url, asked) = answering(pages.map(|page| json("200 OK", page)).to_vec()).await;
        let api = Api { base: url.parse().unwrap(), org: "default".into(), token: Secret::new("kwa_x".into()) };
        let items = api.list(&["accounts"], &[("status", "connected")], usize::MAX).await.unwrap();
        assert_eq!(items.len(), 3);
        let asked = asked.await.unwrap();
        assert!(asked[0].starts_with("GET /api/organizations/default/accounts?status=connected HTTP/1.1"));
        assert!(asked[0].contains("authorization: Bearer kwa_x\r\n"), "{}", asked[0]);
        assert!(asked[1].contains("?status=connected&cursor=b "), "{}", asked[1]);
    }

    #[tokio::test]
    async fn a_body_goes_as_json_and_a_refusal_comes_back_in_words() {
        let refusal = json("409 Conflict", r#"{"detail":{"code":"already_exists","message":"taken"}}"#);
        let (url, asked) = answering(vec![refusal]).await;
        let api = Api { base: url.parse().unwrap(), org: "default".into(), token: Secret::new("kwa_x".into()) };
        let told = api.put(&["keys", "k", "grants", "t"], serde_json::json!({"access": "read"})).await.unwrap_err();
        assert_eq!(told.to_string(), "already_exists: taken");
        assert!(asked.await.unwrap()[0].starts_with("PUT /api/organizations/default/keys/k/grants/t HTTP/1.1"));
    }

    #[test]
    fn names_are_encoded_into_the_address() {
        let api = Api {
            base: "http://127.0.0.1:8081/".parse().unwrap(),
            org: "a/b".into(),
            token: Secret::new("kwa_x".into()),
        };
        let url = api.address(&["keys", "key_1?x"], &[("grace", "1 h")]).unwrap();
        assert_eq!(url.as_str(), "http://127.0.0.1:8081/api/organizations/a%2Fb/keys/key_1%3Fx?grace=1+h");
        assert!(api.address(&["keys", ".."], &[]).is_err());
    }
}

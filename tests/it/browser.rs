//! A browser as far as the admin listener can tell: cookies by name and path, its own origin with every form, and a person
//! who answers the provider's page.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use keyward::sandbox::Counters;
use serde_json::Value;
use url::Url;

use crate::harness::{ADMIN, Answer, Keyward, call};

pub struct Browser {
    address: SocketAddr,
    cookies: Vec<Cookie>,
}

struct Cookie {
    name: String,
    value: String,
    path: String,
}

impl Browser {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, cookies: Vec::new() }
    }

    /// One that somebody has signed in with.
    pub async fn signed_in(address: SocketAddr) -> Self {
        let mut browser = Self::new(address);
        let answer = browser.post("/login", &[("token", ADMIN)]).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text());
        browser
    }

    /// `path` may have a query.
    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(Request::get(path), path, Bytes::new()).await
    }

    pub async fn post(&mut self, path: &str, form: &[(&str, &str)]) -> Answer {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = Request::post(path)
            .header(header::ORIGIN, format!("http://{}", self.address))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.send(request, path, body.into()).await
    }

    /// What [`Browser::get`] and [`Browser::post`] send; for requests with more headers.
    pub async fn send(&mut self, request: http::request::Builder, path: &str, body: Bytes) -> Answer {
        let path = path.split('?').next().unwrap();
        let mut request = request.header(header::HOST, self.address.to_string());
        let sent: Vec<_> = self.cookies.iter().filter(|cookie| path.starts_with(&cookie.path)).collect();
        if !sent.is_empty() {
            let line: Vec<_> = sent.iter().map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
            request = request.header(header::COOKIE, line.join("; "));
        }
        let answer = call(self.address, request.body(Full::from(body)).unwrap()).await;
        for line in answer.headers.get_all(header::SET_COOKIE) {
            self.keep(line.to_str().unwrap());
        }
        answer
    }

    /// The value of a cookie that it holds.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.iter().find(|cookie| cookie.name == name).map(|cookie| cookie.value.as_str())
    }

    /// Gives it a cookie for every path.
    pub fn put_cookie(&mut self, name: &str, value: &str) {
        self.keep(&format!("{name}={value}; Path=/"));
    }

    fn keep(&mut self, line: &str) {
        let mut parts = line.split("; ");
        let (name, value) = parts.next().unwrap().split_once('=').unwrap();
        let attributes: Vec<_> = parts.collect();
        self.cookies.retain(|cookie| cookie.name != name);
        if !attributes.contains(&"Max-Age=0") {
            let path = attributes.iter().find_map(|attribute| attribute.strip_prefix("Path=")).unwrap();
            self.cookies.push(Cookie { name: name.to_owned(), value: value.to_owned(), path: path.to_owned() });
        }
    }

    /// Comes back from the provider: opens the redirect URI and sends its page's form, as the page's script does. Answers
    /// the path and query of the result page.
    pub async fn come_back(&mut self, back: &Url) -> String {
        let page = self.get(&path_of(back)).await;
        assert_eq!(page.status, StatusCode::OK, "{}", page.text());
        let fields = hidden(&page.text());
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let done = self.post(back.path(), &fields).await;
        assert_eq!(done.status, StatusCode::SEE_OTHER, "{}", done.text());
        done.header("location").to_owned()
    }
}

/// What a URL asks of its server.
pub fn path_of(url: &Url) -> String {
    url[url::Position::BeforePath..url::Position::AfterQuery].to_owned()
}

/// Names and values of a page's hidden fields.
pub fn hidden(page: &str) -> Vec<(String, String)> {
    let attribute = |tag: &str, name: &str| {
        let start = tag.split_once(&format!(" {name}=\"")).unwrap().1;
        unescape(start.split_once('"').unwrap().0)
    };
    let tags = page.split("<input type=\"hidden\"").skip(1).map(|rest| rest.split_once('>').unwrap().0);
    tags.map(|tag| (attribute(tag, "name"), attribute(tag, "value"))).collect()
}

fn unescape(text: &str) -> String {
    [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&#38;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// Answers the provider's consent page with some scopes unticked; answers where the browser is sent.
pub async fn consent_without(authorization: &Url, person: &str, unticked: &[&str]) -> Url {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in authorization.query_pairs() {
        if name == "scope" {
            for scope in value.split(' ').filter(|scope| !unticked.contains(scope)) {
                form.append_pair("granted", scope);
            }
        }
        form.append_pair(&name, &value);
    }
    form.append_pair("person", person).append_pair("decision", "allow");
    let request = Request::post(authorization.path())
        .header(header::HOST, authorization.authority())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::from(form.finish()))
        .unwrap();
    let address = authorization.socket_addrs(|| None).unwrap()[0];
    let answer = call(address, request).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text());
    Url::parse(answer.header("location")).unwrap()
}

/// Waits until the sandbox has counted something.
pub async fn counted(keyward: &Keyward, done: impl FnMut(&Counters) -> bool) {
    let counted = tokio::time::timeout(Duration::from_secs(10), keyward.sandbox().wait_until(done)).await;
    assert!(counted.is_ok(), "{:?}", keyward.sandbox().counters());
}

/// Records of an account with this action, newest first; waits until there are `wanted` of them.
pub async fn trail(keyward: &Keyward, account: &str, action: &str, wanted: usize) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut records = keyward.audit(&format!("&account={account}")).await;
        records.retain(|record| record["action"] == action);
        if records.len() >= wanted {
            return records;
        }
        assert!(Instant::now() < deadline, "{action}: {} of {wanted}", records.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

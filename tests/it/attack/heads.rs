//! What agents send over HTTP/1.1.

use super::kit::{Case, Field, cut, declined, get, passed, post, refused, request, several, whole};

const BAD: (u16, &str) = (400, "bad_request");

fn bad(name: &str, sent: impl AsRef<[u8]>) -> Case {
    refused(name, sent, BAD.0, BAD.1)
}

const AUTH: &str = "Authorization: Bearer KEY\r\n";
const HOST: &str = "Host: keyward.test\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts() {
    let mut field = Field::new().await;
    let host = |lines: &str| format!("GET /proxy/raw/x HTTP/1.1\r\n{AUTH}{lines}\r\n");
    let mut table = vec![
        bad("no host", host("")),
        bad("the same twice", host("Host: a\r\nHost: a\r\n")),
        bad("two that differ", host("Host: a\r\nHost: b\r\n")),
        bad("two in different spelling", host("Host: a\r\nhOST: a\r\n")),
        bad("no host in HTTP/1.0", format!("GET /proxy/raw/x HTTP/1.0\r\n{AUTH}\r\n")),
        bad("a twin beside it", get("/proxy/raw/x", "Host_: evil\r\n")),
        passed("a name and a port", host("Host: Keyward.test:8080\r\n"), request("GET /x")),
        passed("an address", host("Host: [::1]:8080\r\n"), request("GET /x")),
    ];
    for value in [
        "",
        "a b",
        "a,b",
        "a, a",
        "a/b",
        "a\\b",
        "user@a",
        "a:",
        "a:80:80",
        "a:x",
        "a:65536",
        "a:-1",
        "[::1",
        "::1",
        "[a]",
        "a?b",
        "a#b",
        "http://a",
        "\"a\"",
        "a%2fb",
        "m\u{fc}nchen.example",
        "a;b",
        "(a)",
        "[::1]a",
    ] {
        table.push(bad(&format!("Host: {value}"), host(&format!("Host: {value}\r\n"))));
    }
    table.push(bad("a long host", host(&format!("Host: {}\r\n", "a".repeat(300)))));
    assert_eq!(field.run(table).await, 33);
    field.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn framing() {
    let mut field = Field::new().await;
    let smuggled = String::from_utf8(get("/proxy/raw/smuggled", "")).unwrap();
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let length = |value: &str| post(&format!("Content-Length:{value}\r\n"), "hello");
    let coding = |value: &str| post(&format!("Transfer-Encoding:{value}\r\n"), chunks);
    let other = |name: &str, value: &str| refused(name, coding(value), 501, "not_implemented");
    let table = vec![
        bad("CL.TE", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{smuggled}"))),
        bad("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &format!("0\r\n\r\n{smuggled}"))),
        bad("CL.TE, far apart", post("Content-Length: 5\r\nX-A: 1\r\nX-B: 2\r\ntransfer-encoding:chunked\r\n", chunks)),
        bad("CL.0 and chunks", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", &smuggled)),
        bad(
            "a GET with both",
            whole("GET /proxy/raw/x", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", chunks),
        ),
        bad("lengths alike", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
        bad("lengths that differ", post("Content-Length: 5\r\nContent-Length: 0\r\n", "hello")),
        bad("lengths, the second in capitals", post("content-length: 0\r\nCONTENT-LENGTH: 5\r\n", "hello")),
        bad("a list of lengths alike", length(" 5, 5")),
        bad("a list of lengths", length(" 5,0")),
        bad("a list with nothing", length(" 5,")),
        bad("+5", length(" +5")),
        bad("-5", length(" -5")),
        bad("0x5", length(" 0x5")),
        bad("5.0", length(" 5.0")),
        bad("5e0", length(" 5e0")),
        bad("5 5", length(" 5 5")),
        bad("no length", length("")),
        bad("a length of spaces", length("   ")),
        bad("a quoted length", length(" \"5\"")),
        bad("a length that overflows 64 bits", length(" 18446744073709551621")),
        bad("a length that is negative to some", length(" 9223372036854775808")),
        bad("a length of full-width digits", length(" \u{ff15}")),
        bad("a length with a form feed", length(" \x0c5")),
        bad("a length with a vertical tab", length(" \x0b5")),
        bad("a length with a parameter", length(" 5;a")),
        passed("zeros in front", length(" 0005"), request("POST /x").sized("hello")),
        passed("no space, and a tab behind", length("5\t"), request("POST /x").sized("hello")),
        bad("two codings", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunks)),
        bad(
            "identity and chunked in two lines",
            post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", chunks),
        ),
        bad(
            "chunked and identity in two lines",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunks),
        ),
        bad("chunked twice", coding(" chunked, chunked")),
        bad("identity, chunked", coding(" identity, chunked")),
        bad("chunked, identity", coding(" chunked, identity")),
        bad("identity", coding(" identity")),
        bad("a coding of nothing", coding("")),
        bad("a comma first", coding(" ,chunked")),
        bad("a comma behind", coding(" chunked,")),
        bad("a prefix", coding(" xchunked")),
        bad("a suffix", coding(" chunkedx")),
        bad("a parameter", coding(" chunked;q=0.5")),
        bad("quoted", coding(" \"chunked\"")),
        bad("a vertical tab before it", coding(" \x0bchunked")),
        bad("a form feed behind it", coding(" chunked\x0c")),
        bad("a no-break space", coding(" \u{a0}chunked")),
        bad("a zero byte behind it", coding(" chunked\0")),
        bad("a word before it", coding(" x chunked")),
        bad("an unknown coding", coding(" cow, chunked")),
        other("gzip", " gzip, chunked"),
        other("deflate and gzip", " deflate ,GZIP, chunked"),
        passed("capitals", coding(" ChUnKeD"), request("POST /x").chunked("hello")),
        passed("white space around", coding(" \t chunked \t"), request("POST /x").chunked("hello")),
        bad("a space before the colon of a coding", post("Transfer-Encoding : chunked\r\n", chunks)),
        bad("a tab before the colon of a length", post("Content-Length\t: 5\r\n", "hello")),
        bad("a folded coding", post("Transfer-Encoding:\r\n chunked\r\n", chunks)),
        bad("a coding folded behind", post("Transfer-Encoding: chunked\r\n , identity\r\n", chunks)),
        bad("a folded length", post("Content-Length:\r\n\t5\r\n", "hello")),
        bad(
            "chunks over HTTP/1.0",
            format!("POST /proxy/raw/x HTTP/1.0\r\n{HOST}{AUTH}Transfer-Encoding: chunked\r\n\r\n{chunks}"),
        ),
        bad("a twin of the length", post("Content_Length: 5\r\nContent-Length: 0\r\n", "")),
        bad("a twin of the coding", post("Transfer_Encoding: chunked\r\nContent-Length: 0\r\n", "")),
        bad("a twin with the length", post("Content_Length: 0\r\nContent-Length: 5\r\n", "hello")),
        bad("an underscore before it", post("_Content-Length: 5\r\n", "")),
        bad("a word of it hidden by a bare carriage return", post("X: a\rTransfer-Encoding: chunked\r\n", chunks)),
        bad("a coding behind a bare line feed", post("X: a\nTransfer-Encoding: chunked\r\n", chunks)),
    ];
    assert_eq!(field.run(table).await, 64);
    field.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines() {
    let mut field = Field::new().await;
    let line = |line: &[u8]| {
        let start = format!("GET /proxy/raw/x HTTP/1.1\r\n{HOST}{AUTH}");
        [start.as_bytes(), line, b"\r\n\r\n"].concat()
    };
    let large = |bytes: usize| get("/proxy/raw/x", &format!("X-Large: {}\r\n", "a".repeat(bytes)));
    let too_large = |name: &str, sent: Vec<u8>| refused(name, sent, 431, "request_header_fields_too_large");
    let table = vec![
        bad("line feeds alone", format!("GET /proxy/raw/x HTTP/1.1\nHost: a\n{}\n", AUTH.replace('\r', ""))),
        bad("a line feed after the first line", format!("GET /proxy/raw/x HTTP/1.1\n{HOST}{AUTH}\r\n")),
        bad("a line feed within", format!("GET /proxy/raw/x HTTP/1.1\r\nHost: a\n{AUTH}\r\n")),
        bad("a line feed at the end", format!("GET /proxy/raw/x HTTP/1.1\r\n{HOST}{AUTH}\n")),
        bad("a line feed before", format!("\nGET /proxy/raw/x HTTP/1.1\r\n{HOST}{AUTH}\r\n")),
        bad("a carriage return alone in a value", line(b"X: a\rY: b")),
        bad("a carriage return for a line end", format!("GET /proxy/raw/x HTTP/1.1\r{HOST}{AUTH}\r\n")),
        bad("two carriage returns", line(b"X: a\r")),
        bad("a folded line", line(b"X: a\r\n b")),
        bad("a line folded with a tab", line(b"X: a\r\n\tb")),
        bad("a fold of nothing", line(b"X: a\r\n ")),
        bad("a first line that is folded", format!("GET /proxy/raw/x HTTP/1.1\r\n Host: a\r\n{AUTH}\r\n")),
        bad("a space before the colon", line(b"X : a")),
        bad("a tab before the colon", line(b"X\t: a")),
        bad("a space in a name", line(b"X Y: a")),
        bad("no colon", line(b"X")),
        bad("no name", line(b": a")),
        bad("a zero byte in a value", line(b"X: a\0b")),
        bad("a zero byte in a name", line(b"X\0: a")),
        bad("a control byte in a value", line(b"X: a\x01b")),
        bad("an escape in a value", line(b"X: a\x1b[2J")),
        bad("a delete in a value", line(b"X: a\x7f")),
        bad("a letter beyond ASCII in a name", line("X-\u{fc}: a".as_bytes())),
        bad("a parenthesis in a name", line(b"X(: a")),
        bad("a slash in a name", line(b"X/Y: a")),
        bad("an at sign in a name", line(b"@X: a")),
        bad("quotes in a name", line(b"\"X\": a")),
        passed("a tab in a value", line(b"X: a\tb"), request("GET /x").line("x: a\tb")),
        passed("no value", line(b"X:"), request("GET /x").line("x: ")),
        passed("an empty line first", [b"\r\n", &get("/proxy/raw/x", "")[..]].concat(), request("GET /x")),
        passed("two empty lines first", [b"\r\n\r\n", &get("/proxy/raw/x", "")[..]].concat(), request("GET /x")),
        passed("a long line", large(8000), request("GET /x").line(&format!("x-large: {}", "a".repeat(8000)))),
        too_large("a longer line", large(40_000)),
        too_large("many lines", get("/proxy/raw/x", &"X: a\r\n".repeat(120))),
        too_large("many lines without a value", get("/proxy/raw/x", &"X:\r\n".repeat(2000))),
        too_large("a long name", get("/proxy/raw/x", &format!("{}: a\r\n", "X".repeat(40_000)))),
    ];
    assert_eq!(field.run(table).await, 36);
    field.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_lines() {
    let mut field = Field::new().await;
    let line = |line: &[u8]| [line, format!("\r\n{HOST}{AUTH}\r\n").as_bytes()].concat();
    let to = |target: &[u8]| line(&[b"GET ", target, b" HTTP/1.1"].concat());
    let not_allowed = |name: &str, sent: Vec<u8>| refused(name, sent, 405, "method_not_allowed");
    let bad_path = |name: &str, target: &str| refused(name, to(target.as_bytes()), 400, "bad_path");
    let table = vec![
        bad("a whole URL", to(b"http://keyward.test/proxy/raw/x")),
        bad("a whole URL of the upstream", to(b"http://127.0.0.1/proxy/raw/x")),
        bad("a whole URL elsewhere", to(b"https://evil.example.org/proxy/raw/x")),
        bad("an authority", to(b"keyward.test:80")),
        bad("an asterisk", line(b"OPTIONS * HTTP/1.1")),
        bad("an asterisk for GET", to(b"*")),
        bad("a path without a slash", to(b"proxy/raw/x")),
        bad("a scheme without a host", to(b"http:/proxy/raw/x")),
        bad("another scheme", to(b"file:///etc/passwd")),
        bad("no target", line(b"GET  HTTP/1.1")),
        bad("two spaces", line(b"GET  /proxy/raw/x HTTP/1.1")),
        bad("two spaces behind", line(b"GET /proxy/raw/x  HTTP/1.1")),
        bad("a space behind", line(b"GET /proxy/raw/x HTTP/1.1 ")),
        bad("a space before", line(b" GET /proxy/raw/x HTTP/1.1")),
        bad("tabs", line(b"GET\t/proxy/raw/x\tHTTP/1.1")),
        bad("a space in the target", to(b"/proxy/raw/x y")),
        bad("HTTP/0.9", line(b"GET /proxy/raw/x")),
        bad("HTTP/0.9 in a word", line(b"GET /proxy/raw/x HTTP/0.9")),
        bad("HTTP/2.0", line(b"GET /proxy/raw/x HTTP/2.0")),
        bad("HTTP/2", line(b"GET /proxy/raw/x HTTP/2")),
        bad("HTTP/1.2", line(b"GET /proxy/raw/x HTTP/1.2")),
        bad("HTTP/1.10", line(b"GET /proxy/raw/x HTTP/1.10")),
        bad("HTTP/01.1", line(b"GET /proxy/raw/x HTTP/01.1")),
        bad("http/1.1", line(b"GET /proxy/raw/x http/1.1")),
        bad("HTTPS/1.1", line(b"GET /proxy/raw/x HTTPS/1.1")),
        bad("ICY", line(b"GET /proxy/raw/x ICY/1.1")),
        bad("a method with a parenthesis", line(b"GE(T /proxy/raw/x HTTP/1.1")),
        bad("a method with a control byte", line(b"GE\x01T /proxy/raw/x HTTP/1.1")),
        bad("no method", line(b"/proxy/raw/x HTTP/1.1")),
        bad("a fragment", to(b"/proxy/raw/x#y")),
        bad("a fragment in the query", to(b"/proxy/raw/x?a=b#c")),
        bad("a fragment of nothing", to(b"/proxy/raw/x#")),
        bad_path("a backslash", "/proxy/raw/x\\y"),
        bad("backslashes for slashes", to(b"\\proxy\\raw\\x")),
        bad("a backslash in the query", to(b"/proxy/raw/x?a=\\b")),
        bad_path("raw UTF-8 in the path", "/proxy/raw/m\u{fc}"),
        bad("raw UTF-8 in the query", to("/proxy/raw/x?q=m\u{fc}".as_bytes())),
        bad_path("a full-width slash", "/proxy/raw/x\u{ff0f}..\u{ff0f}y"),
        bad("a byte that is no text", to(b"/proxy/raw/\xff")),
        bad("a zero byte", to(b"/proxy/raw/x\0")),
        bad("a control byte", to(b"/proxy/raw/x\x01")),
        bad("a delete", to(b"/proxy/raw/x\x7f")),
        not_allowed("CONNECT", line(b"CONNECT evil.example.org:443 HTTP/1.1")),
        not_allowed("CONNECT to a path", line(b"CONNECT /proxy/raw/x HTTP/1.1")),
        not_allowed("TRACE", line(b"TRACE /proxy/raw/x HTTP/1.1")),
        not_allowed("TRACK", line(b"TRACK /proxy/raw/x HTTP/1.1")),
        refused(
            "a long method",
            line(&[&b"A".repeat(60)[..], b" /proxy/raw/x HTTP/1.1"].concat()),
            501,
            "not_implemented",
        ),
        declined("a long URL", to(&[b"/proxy/raw/", &b"a".repeat(9000)[..]].concat()), 414, "uri_too_long"),
        refused("TLS", "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n", 400, "bad_request"),
        bad_path("dots", "/proxy/raw/../x"),
        bad_path("dots at the end", "/proxy/raw/x/.."),
        bad_path("one dot", "/proxy/raw/./x"),
        bad_path("encoded dots", "/proxy/raw/%2e%2e/x"),
        bad_path("dots that are encoded twice", "/proxy/raw/%252e%252e/x"),
        bad_path("an encoded slash with dots", "/proxy/raw/..%2fx"),
        bad_path("an encoded backslash", "/proxy/raw/..%5cx"),
        bad_path("dots before a parameter", "/proxy/raw/..;a/x"),
        bad_path("an encoded zero byte", "/proxy/raw/x%00"),
        bad_path("encoded line ends", "/proxy/raw/x%0d%0aHost:%20evil"),
        bad_path("an overlong dot", "/proxy/raw/%c0%ae%c0%ae/x"),
        bad_path("two slashes", "/proxy/raw//x"),
        bad_path("two slashes and a host", "/proxy/raw//evil.example.org/x"),
        bad_path("half an escape", "/proxy/raw/x%2"),
        bad_path("no escape", "/proxy/raw/x%zz"),
        bad_path("a way to another target", "/proxy/raw/../other/x"),
        bad_path("an encoded slug", "/proxy/raw%2f../x"),
        declined("a slug in capitals", to(b"/proxy/RAW/x"), 404, "target_not_found"),
        declined("an encoded letter of the slug", to(b"/proxy/ra%77/x"), 404, "target_not_found"),
        declined("a slug with a parameter", to(b"/proxy/raw;a/x"), 404, "target_not_found"),
        declined("the prefix in capitals", to(b"/Proxy/raw/x"), 404, "not_found"),
        passed("dots in the query", to(b"/proxy/raw/x?a=../..&b=//"), request("GET /x?a=../..&b=//")),
        passed(
            "a whole URL in the query",
            to(b"/proxy/raw/x?u=http://evil.example.org/"),
            request("GET /x?u=http://evil.example.org/"),
        ),
        passed("an encoded fragment", to(b"/proxy/raw/x%23y"), request("GET /x%23y")),
    ];
    assert_eq!(field.run(table).await, 73);
    field.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_names() {
    let mut field = Field::new().await;
    let with = |lines: &str| get("/proxy/raw/x", lines);
    let in_request = |name: &str, sent: Vec<u8>| declined(name, sent, 400, "key_in_request");
    let bare = |lines: &str| format!("GET /proxy/raw/x HTTP/1.1\r\n{HOST}{lines}\r\n");
    let mut table = vec![
        bad("the key twice", with("Authorization: Bearer KEY\r\n")),
        bad("another scheme beside it", with("Authorization: Digest a\r\n")),
        declined("a password beside it", with("Authorization: Basic YTpi\r\n"), 400, "ambiguous_key"),
        bad("nothing beside it", with("Authorization:\r\n")),
        declined("another key beside it", with("Authorization: Bearer kw_other\r\n"), 400, "ambiguous_key"),
        declined("another key in another place", with("X-Api-Key: kw_other\r\n"), 400, "ambiguous_key"),
        bad("another place twice", bare("X-Api-Key: KEY\r\nX-Api-Key: KEY\r\n")),
        passed("the same key in all places", with("X-Api-Key: KEY\r\nApi-Key: KEY\r\n"), request("GET /x")),
        declined("no key", bare(""), 401, "invalid_key"),
        declined("the key with a letter more", bare("Authorization: Bearer KEYx\r\n"), 401, "invalid_key"),
        declined("the key and a comma", bare("Authorization: Bearer KEY, Basic a\r\n"), 401, "invalid_key"),
        in_request("in the path", get("/proxy/raw/KEY", "")),
        in_request("in the query", get("/proxy/raw/x?k=KEY", "")),
        in_request("as a parameter's name", get("/proxy/raw/x?KEY", "")),
        in_request("in the slug", get("/proxy/KEY/x", "")),
        in_request("in a cookie", with("Cookie: a=KEY\r\n")),
        in_request("in the referer", with("Referer: https://a.example/?k=KEY\r\n")),
        in_request("in the user agent", with("User-Agent: KEY\r\n")),
        in_request("for a proxy", with("Proxy-Authorization: Bearer KEY\r\n")),
        in_request("under an X", with("X-Authorization: Bearer KEY\r\n")),
        in_request("as a header's name", with("X-KEY: 1\r\n")),
        in_request("in Connection", with("Connection: x-KEY\r\n")),
        in_request("in Upgrade", with("Upgrade: KEY\r\n")),
        in_request("in TE", with("TE: KEY\r\n")),
        in_request("in Trailer", with("Trailer: KEY\r\n")),
        in_request("in Via", with("Via: 1.1 KEY\r\n")),
        in_request("in Forwarded", with("Forwarded: by=KEY\r\n")),
        in_request("in a header of ours", with("Keyward-Approval: KEY\r\n")),
        refused("as a method", whole("KEY /proxy/raw/x", "", ""), 501, "not_implemented"),
        declined("as an expectation", with("Expect: KEY\r\n"), 417, "expectation_failed"),
        passed(
            "in a chunk's extension",
            post("Transfer-Encoding: chunked\r\n", "5;KEY=KEY\r\nhello\r\n0;a=KEY\r\n\r\n"),
            request("POST /x").chunked("hello"),
        ),
        passed(
            "in a trailer",
            post(
                "Transfer-Encoding: chunked\r\n",
                "5\r\nhello\r\n0\r\nAuthorization: Bearer KEY\r\nX-KEY: KEY\r\n\r\n",
            ),
            request("POST /x").chunked("hello"),
        ),
    ];
    for twin in [
        "X_Api_Key",
        "X-Api_Key",
        "X_Api-Key",
        "Api_Key",
        "api_key",
        "Authorization_",
        "_Authorization",
        "X_Authorization",
        "Content_Type",
        "Content_Encoding",
        "Keyward_Approval",
        "Connection_",
        "Expect_",
    ] {
        table.push(bad(&format!("the twin {twin}"), with(&format!("{twin}: theirs\r\n"))));
    }
    for name in [
        "Authorization",
        "authorization",
        "X-Api-Key",
        "Api-Key",
        "Host",
        "Content-Length",
        "Content-Type",
        "Transfer-Encoding",
        "Connection",
        "Expect",
        "X-Authorization",
        "Keyward-Request-Id",
    ] {
        table.push(bad(&format!("Connection: {name}"), with(&format!("Connection: keep-alive, {name}\r\n"))));
    }
    table.push(bad("a nomination among others", with("Connection: x-a\r\nConnection: x-b ,\tHOST,\r\n")));
    // Those that are not the agent's to say, and what is not theirs alone.
    for line in [
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X-Method-Override: DELETE",
        "X_HTTP_Method_Override: DELETE",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
        "X-Original-Host: evil",
        "X-Override-URL: /admin",
        "X-Host: evil",
        "X-Forwarded-Host: evil",
        "X_Forwarded_Host: evil",
        "Forwarded: host=evil",
        "TE: trailers",
        "TE: chunked",
        "Trailer: Authorization",
        "Upgrade: h2c",
        "Upgrade: TLS/1.3",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic YTpi",
        "Cookie: a=b",
        "X-Authorization: Bearer theirs",
        "X-Real-IP: 192.0.2.1",
        "Via: 1.1 a",
        "Keyward-Approval: apr_1",
        "Connection: x-hop\r\nX-Hop: 1",
    ] {
        table.push(passed(line, with(&format!("{line}\r\nX-Kept: 1\r\n")), request("GET /x").line("x-kept: 1")));
    }
    for words in ["miracles", "100-continue, miracles", "\"100-continue\"", "100-continue;a=b", "101-continue"] {
        let sent = with(&format!("Expect: {words}\r\n"));
        table.push(declined(&format!("Expect: {words}"), sent, 417, "expectation_failed"));
    }
    let rows = table.len();
    assert_eq!(field.run(table).await, rows);
    assert!(rows >= 85, "{rows}");
    field.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks() {
    let mut field = Field::new().await;
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let fine = |name: &str, body: &str| passed(name, chunked(body), request("POST /x").chunked("hello"));
    let bad = |name: &str, body: &str| cut(name, chunked(body));
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(20_000));
    let table = vec![
        fine("a chunk", "5\r\nhello\r\n0\r\n\r\n"),
        fine("zeros in front", "0005\r\nhello\r\n000\r\n\r\n"),
        fine("an extension", "5;a=b;c=\"d;e\"\r\nhello\r\n0;x\r\n\r\n"),
        fine("white space and an extension", "5 \t; a\r\nhello\r\n0\r\n\r\n"),
        fine("trailers", "5\r\nhello\r\n0\r\nX-A: 1\r\nHost: evil\r\n\r\n"),
        fine("trailers that frame", "5\r\nhello\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\n\r\n"),
        fine(
            "trailers with a credential",
            "5\r\nhello\r\n0\r\nAuthorization: Bearer theirs\r\nX-Api-Key: theirs\r\n\r\n",
        ),
        bad("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        bad("a plus", "+5\r\nhello\r\n0\r\n\r\n"),
        bad("a minus", "-5\r\nhello\r\n0\r\n\r\n"),
        bad("an underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
        bad("no size", "\r\nhello\r\n0\r\n\r\n"),
        bad("an extension alone", ";a\r\nhello\r\n0\r\n\r\n"),
        bad("no number", "g\r\nhello\r\n0\r\n\r\n"),
        bad("a space before", " 5\r\nhello\r\n0\r\n\r\n"),
        bad("a space behind", "5 \r\nhello\r\n0\r\n\r\n"),
        bad("two sizes", "5 5\r\nhello\r\n0\r\n\r\n"),
        bad("a line feed alone", "5\nhello\r\n0\r\n\r\n"),
        bad("a carriage return alone", "5\rhello\r\n0\r\n\r\n"),
        bad("a line feed in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        bad("a carriage return in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        bad("a control byte in an extension", "5;a\x01\r\nhello\r\n0\r\n\r\n"),
        bad("a long extension", &long),
        bad("a size that wraps 64 bits", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        bad("too long", "5\r\nhello!\r\n0\r\n\r\n"),
        bad("too short", "6\r\nhello\r\n0\r\n\r\n"),
        bad("a line feed behind the data", "5\r\nhello\n0\r\n\r\n"),
        bad("no line end behind the data", "5\r\nhello0\r\n\r\n"),
        bad("a bad second one", "5\r\nhello\r\nzz\r\n0\r\n\r\n"),
        bad("a bad one before a request", "5\r\nhello\r\nx\r\n\r\nGET /proxy/raw/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
        bad("a trailer that ends with a line feed", "5\r\nhello\r\n0\r\nX: a\n\r\n"),
        bad("a trailer without a colon", "5\r\nhello\r\n0\r\nnonsense\r\n\r\n"),
        bad("a trailer with a zero byte", "5\r\nhello\r\n0\r\nX: a\0\r\n\r\n"),
    ];
    assert_eq!(field.run(table).await, 33);
    field.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines() {
    let mut field = Field::new().await;
    let a = || get("/proxy/raw/a", "");
    let smuggled = || get("/proxy/raw/smuggled", "");
    let sized = || post("Content-Length: 5\r\n", "hello");
    let chunked = || post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n");
    let ok = (200, "");
    let one = || [request("GET /a")];
    let body = request("POST /x").sized("hello");
    let chunks = request("POST /x").chunked("hello");
    let mut table = vec![
        several(
            "three",
            &[a(), sized(), chunked()],
            &[ok, ok, ok],
            true,
            &[request("GET /a"), body.clone(), chunks.clone()],
        ),
        several(
            "empty lines between",
            &[a(), b"\r\n".to_vec(), a()],
            &[ok, ok],
            true,
            &[request("GET /a"), request("GET /a")],
        ),
        several(
            "a head in a body",
            &[post("Content-Length: 28\r\n", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n")],
            &[ok],
            true,
            &[request("POST /x").sized("GET /x HTTP/1.1\r\nHost: a\r\n\r\n")],
        ),
        several(
            "the end that was asked for",
            &[get("/proxy/raw/a", "Connection: close\r\n"), smuggled()],
            &[ok],
            false,
            &one(),
        ),
        several(
            "the end among other words",
            &[get("/proxy/raw/a", "Connection: x-y , CLOSE\r\n"), smuggled()],
            &[ok],
            false,
            &one(),
        ),
        several(
            "HTTP/1.0",
            &[format!("GET /proxy/raw/a HTTP/1.0\r\n{HOST}{AUTH}\r\n").into_bytes(), smuggled()],
            &[ok],
            false,
            &one(),
        ),
        several(
            "a length too short",
            &[post("Content-Length: 5\r\n", "hello("), smuggled()],
            &[ok, BAD],
            false,
            std::slice::from_ref(&body),
        ),
        several(
            "a refusal between",
            &[a(), get("/proxy/nothing/x", ""), a()],
            &[ok, (404, "target_not_found"), ok],
            true,
            &[request("GET /a"), request("GET /a")],
        ),
    ];
    for (name, bad) in [
        ("a fold", get("/proxy/raw/x", "X: a\r\n b\r\n")),
        ("a line feed", get("/proxy/raw/x", "X: a\n")),
        ("lengths", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
        ("both", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("both the other way", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")),
        ("a coding twice", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n")),
        ("hosts", get("/proxy/raw/x", "Host: keyward.test\r\n")),
        ("a fragment", get("/proxy/raw/x#y", "")),
        ("a backslash", get("/proxy/raw/x?\\y", "")),
        ("a twin", get("/proxy/raw/x", "Content_Length: 5\r\n")),
        ("a nomination", get("/proxy/raw/x", "Connection: host\r\n")),
        ("the key twice", get("/proxy/raw/x", AUTH)),
    ] {
        table.push(several(&format!("{name}, first"), &[bad.clone(), smuggled()], &[BAD], false, &[]));
        table.push(several(
            &format!("{name}, behind a GET"),
            &[a(), bad.clone(), smuggled()],
            &[ok, BAD],
            false,
            &one(),
        ));
        table.push(several(
            &format!("{name}, behind a body"),
            &[sized(), bad.clone(), smuggled()],
            &[ok, BAD],
            false,
            std::slice::from_ref(&body),
        ));
        table.push(several(
            &format!("{name}, behind chunks"),
            &[chunked(), bad, smuggled()],
            &[ok, BAD],
            false,
            std::slice::from_ref(&chunks),
        ));
    }
    // The preface of HTTP/2 in the middle: no more is read, and nothing is said.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    table.push(several("HTTP/2, behind a GET", &[a(), preface], &[ok], false, &one()));
    assert_eq!(field.run(table).await, 57);
    field.done().await;
}

/// The same rows byte by byte: where a segment ends must not matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments() {
    let field = Field::new().await;
    let before = field.strict.seen().len();
    for bad in [
        get("/proxy/raw/x", "Host: keyward.test\r\n"),
        get("/proxy/raw/x", "X: a\n"),
        get("/proxy/raw/x#y", ""),
        post("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("Content-Length: 1\r\nContent-Length: 1\r\n", "a"),
        post("Transfer-Encoding: gzip\r\n", ""),
    ] {
        let text = String::from_utf8(bad).unwrap().replace("KEY", &field.key.secret);
        let mut wire = field.wire().await;
        wire.tcp.set_nodelay(true).unwrap();
        for byte in text.as_bytes() {
            if !wire.send([*byte]).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        let answer = wire.answer().await;
        assert_eq!((answer.status.as_u16(), answer.refusal().as_str()), BAD, "{text}");
        assert!(wire.rest().await.is_empty());
    }
    assert_eq!(field.strict.seen().len(), before);
    field.done().await;
}

//! Lists, page by page.

use super::*;

/// Reads a list page by page; every page but the last is full, and only the last has no cursor.
async fn pages(keyward: &Keyward, path: &str, limit: usize) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = keyward.api("GET", &format!("{path}?limit={limit}{cursor}"), None).await;
        let items = page["items"].as_array().unwrap().clone();
        let next = page["next_cursor"].as_str().map(str::to_owned);
        assert!(next.is_none() || items.len() == limit, "{page}");
        pages.push(items);
        assert!(pages.len() < 100, "the list has no end");
        match next {
            None => return pages,
            Some(next) => cursor = format!("&cursor={next}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_read_page_by_page_and_nothing_is_left_out_or_told_twice() {
    for backend in backends() {
        let keyward = Keyward::with(backend, Settings::default()).await;
        for person in ["ada@example.com", "grace@example.com", "linus@example.com"] {
            keyward.connect(person).await;
        }
        for number in 0..7 {
            keyward.api("POST", "/keys", Some(json!({"name": format!("k{number}")}))).await;
            let target = json!({"slug": format!("t{number}"), "base_url": "https://example.com", "credential": {"kind": "none"}});
            keyward.api("POST", "/targets", Some(target)).await;
        }
        // Six managed targets are listed too.
        for (path, total, order) in [
            ("/keys", 7, "created_at"),
            ("/targets", 13, "created_at"),
            ("/accounts", 3, "created_at"),
            ("/audit", 17, "at"),
        ] {
            let whole = keyward.api("GET", path, None).await;
            assert_eq!(whole["next_cursor"], Value::Null);
            let whole = whole["items"].as_array().unwrap().clone();
            assert_eq!(whole.len(), total, "{path}");
            let mut moments: Vec<_> =
                whole.iter().map(|item| Timestamp::parse(item[order].as_str().unwrap()).unwrap()).collect();
            if path == "/audit" {
                moments.reverse();
            }
            assert!(moments.is_sorted(), "{path}: {moments:?}");
            for limit in [1, 2, 3, total - 1, total, total + 1, 200] {
                let pages = pages(&keyward, path, limit).await;
                assert_eq!(pages.len(), total.div_ceil(limit), "{path} by {limit}");
                assert_eq!(pages.concat(), whole, "{path} by {limit}");
            }
        }
        keyward.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_between_two_pages_moves_nothing() {
    let keyward = Keyward::start().await;
    for _ in 0..4 {
        keyward.new_key().await;
    }
    let first = keyward.api("GET", "/audit?limit=2", None).await;
    let keys = keyward.api("GET", "/keys?limit=2", None).await;
    keyward.new_key().await;
    let cursor = |page: &Value| page["next_cursor"].as_str().unwrap().to_owned();
    let second = keyward.api("GET", &format!("/audit?limit=2&cursor={}", cursor(&first)), None).await;
    let seen: BTreeSet<_> = [&first, &second]
        .iter()
        .flat_map(|page| page["items"].as_array().unwrap())
        .map(|r| r["id"].to_string())
        .collect();
    assert_eq!((seen.len(), &second["next_cursor"]), (4, &Value::Null), "the new record is newer than the first page");
    let rest = keyward.api("GET", &format!("/keys?limit=200&cursor={}", cursor(&keys)), None).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 3, "a new key is at the end");
    keyward.stop().await;
}

//! What is fuzzed: functions that take any bytes and panic when what is claimed of their reader does not hold. libFuzzer calls
//! them through the crate in `fuzz/`; the tests here replay its corpora and some thousand mutations of them.

use std::path::Path;

pub use crate::net::fuzzing::head;
pub use crate::oauth::fuzzing::token_answer;
pub use crate::proxy::fuzzing::{location, path, plain_answer, plain_request, strip};

use crate::config::{Config, Env};

/// A configuration is read, or everything wrong with it is told.
///
/// # Panics
/// When a claim does not hold.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Files that it names are read.
    if text.contains("/dev/") || text.contains("/proc/") {
        return;
    }
    if let Err(error) = Config::parse(text, "gateway.toml", Path::new("/nonexistent"), Env::from_iter([("", ""); 0])) {
        assert!(!error.to_string().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    /// Numbers that are the same in each run (Marsaglia's xorshift).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % limit.max(1) as u64) as usize
        }
    }

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| fs::read(file).unwrap()).collect()
    }

    /// Cuts, copies, doubles and changes, a few times over.
    fn mutate(data: &mut Vec<u8>, other: &[u8], words: &[&[u8]], numbers: &mut Numbers) {
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(data.len() + 1);
            let end = (at + numbers.below(12)).min(data.len());
            match numbers.below(6) {
                0 => drop(data.drain(at..end)),
                1 => drop(data.splice(at..at, words[numbers.below(words.len())].iter().copied())),
                2 => data.insert(at, numbers.below(256) as u8),
                3 if at < data.len() => data[at] ^= 1 << numbers.below(8),
                4 => {
                    let piece = data[at..end].to_vec();
                    data.splice(at..at, piece);
                }
                _ => {
                    let from = numbers.below(other.len() + 1);
                    data.truncate(at);
                    data.extend_from_slice(&other[from..]);
                }
            }
        }
    }

    fn replay(target: &str, check: fn(&[u8]), words: &[&[u8]], rounds: usize) {
        let seeds = seeds(target);
        assert!(seeds.len() >= 5, "{target}: {} seeds", seeds.len());
        seeds.iter().for_each(|seed| check(seed));
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for _ in 0..rounds {
            let mut data = seeds[numbers.below(seeds.len())].clone();
            let other = &seeds[numbers.below(seeds.len())];
            mutate(&mut data, other, words, &mut numbers);
            if let Err(panic) = std::panic::catch_unwind(|| check(&data)) {
                eprintln!("{target} fails on {:?}", String::from_utf8_lossy(&data));
                std::panic::resume_unwind(panic);
            }
        }
    }

    #[test]
    fn heads() {
        let words: &[&[u8]] = &[
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked\r\n",
            b"Host: a\r\n",
            b"0\r\n\r\n",
            b"#",
            b"\\",
            b"HTTP/1.0",
            b"5;a\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ];
        replay("head", super::head, words, 6000);
    }

    #[test]
    fn plain_requests() {
        let words: &[&[u8]] = &[
            b"\r\n",
            b" ",
            b"/proxy/crm/",
            b"?a=b",
            b"%2e",
            b"//",
            b"Host: a\r\n",
            b"Content-Length: 3\r\n",
            b"Connection: close\r\n",
            b"X-Api-Key: kw_AAAA\r\n",
            b"x-version: 1\r\n",
            b"Accept-Encoding: gzip\r\n",
            b"Cookie: a=b\r\n",
            b"POST",
        ];
        replay("plain_request", super::plain_request, words, 20_000);
    }

    #[test]
    fn plain_answers() {
        let words: &[&[u8]] = &[
            b"\r\n",
            b" ",
            b"204",
            b"304",
            b"Content-Length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"Set-Cookie: a=b\r\n",
            b"Content-Encoding: gzip\r\n",
            b"the-injected-token",
            b"X-Content-Type-Options: a\r\n",
            b"Date: x\r\n",
        ];
        replay("plain_answer", super::plain_answer, words, 20_000);
    }

    #[test]
    fn paths() {
        let words: &[&[u8]] =
            &[b"..", b"%2e", b"%25", b"%2f", b"%5c", b"/", b";", b"%c0%ae", b"%", b"\\", b"//", b"\xc3\xbc"];
        replay("path", super::path, words, 20_000);
    }

    #[test]
    fn strips() {
        let words: &[&[u8]] = &[
            b"\nConnection: ",
            b"\nX-Api-Key: a",
            b"_",
            b"-",
            b"\nAuthorization: b",
            b"\nx_shop_token: c",
            b"\nKeyward-A: d",
            b", ",
            b"close",
        ];
        replay("strip", super::strip, words, 6000);
    }

    #[test]
    fn locations() {
        let words: &[&[u8]] = &[
            b"https://",
            b"//",
            b"api.example.com",
            b"[::1]:8080",
            b"@",
            b":443",
            b":8443",
            b"/v2",
            b"/a/b",
            b"..",
            b"%2e",
            b"\\",
            b"?",
            b"#",
            b"\t",
        ];
        replay("location", super::location, words, 20_000);
    }

    #[test]
    fn token_answers() {
        let words: &[&[u8]] = &[
            b"\"access_token\":",
            b"\"refresh_token\":",
            b"\"error\":\"invalid_grant\"",
            b"\"expires_in\":",
            b"{",
            b"}",
            b",",
            b"\"\"",
            b"null",
            b"-1",
            b"1e999",
            b"9223372036854775808",
            b"&error=",
            b"\\u0000",
        ];
        replay("token_answer", super::token_answer, words, 3000);
    }

    #[test]
    fn configurations() {
        let words: &[&[u8]] = &[
            b"\n[proxy]\n",
            b"\n[[targets]]\n",
            b"\n[providers.google]\n",
            b" = ",
            b"\"",
            b"''",
            b"-1",
            b"[]",
            b"{}",
            b"listen",
            b"10m",
            b".",
        ];
        replay("config", super::config, words, 1500);
    }
}

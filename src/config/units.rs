//! How sizes and times are written in `gateway.toml`: `"100 MiB"`, `"5m"`.

use std::time::Duration;

/// The longest time that makes sense anywhere: ten years. Sums with it stay far from every overflow.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Reads `"100 MiB"`, `"64KiB"`, `"512 B"`.
///
/// # Errors
/// Says how a size is written.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || "not a size: write a whole number and a unit (B, KiB, MiB, GiB), as in \"100 MiB\"".to_owned();
    let (digits, unit) = split(text).ok_or_else(wrong)?;
    let unit: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|bytes| *bytes <= 1 << 50).ok_or_else(|| "too large".to_owned())
}

/// Reads `"500ms"`, `"30s"`, `"5m"`, `"1h"`, `"90d"`.
///
/// # Errors
/// Says how a time is written.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time: write a whole number and a unit (ms, s, m, h, d), as in \"5m\"".to_owned();
    let (digits, unit) = split(text).ok_or_else(wrong)?;
    let unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let span = Duration::from_millis(number.saturating_mul(unit));
    if span > LONGEST { Err("too long: ten years (\"3650d\") is the most".to_owned()) } else { Ok(span) }
}

/// Digits, then a unit, one space at most between them.
fn split(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
    let (digits, unit) = text.split_at(end);
    Some((digits, unit.strip_prefix(' ').unwrap_or(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("512 B", 512), ("64KiB", 65_536), ("100 MiB", 104_857_600), ("1 GiB", 1_073_741_824), ("0 B", 0)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "100", "MiB", "1.5 MiB", "-1 B", "1 MB", "1  MiB", "1 mib", "99999999999 GiB", "٣ B"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times() {
        for (text, millis) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1 h", 3_600_000), ("90d", 7_776_000_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "m", "1.5h", "-1s", "5 min", "5M", "3651d", "99999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}

//! Durations, sizes and modes as people write them, with units: `"1m30s"`, `"8MiB"`, `"0660"`. A bare number is
//! never guessed at, since Gunicorn counts seconds, others milliseconds; the refusal says what to write. The
//! `show_` functions are the inverse, for hints and for `config show`.

use std::time::Duration;

/// The longest duration: beyond it, a deadline is a mistake, and adding it to a clock could overflow.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Largest first: `"1m30s"` must name its units in this order, each once.
const TIME_UNITS_MS: [(&str, u64); 5] =
    [("d", 24 * 3600 * 1000), ("h", 3600 * 1000), ("m", 60 * 1000), ("s", 1000), ("ms", 1)];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let example = "write it as \"30s\", \"1m30s\" or \"500ms\"";
    let mut rest = text.trim();
    if let Ok(number) = rest.parse::<u64>() {
        return Err(format!("a duration needs a unit; write \"{number}s\""));
    }
    let mut total_ms = 0u64;
    let mut unit_next = 0;
    if rest.is_empty() {
        return Err(format!("a duration is missing; {example}"));
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| format!("not a duration; {example}"))?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
        let unit = &rest[..letters];
        rest = rest[letters..].trim_start();
        let place = TIME_UNITS_MS.iter().position(|(name, _)| *name == unit).ok_or_else(|| {
            let what =
                if unit.is_empty() { "a number without a unit".to_owned() } else { format!("unknown unit `{unit}`") };
            format!("{what}; the units are d, h, m, s, ms: {example}")
        })?;
        if place < unit_next {
            return Err(format!("units must go from large to small, each once; {example}"));
        }
        unit_next = place + 1;
        total_ms = number
            .checked_mul(TIME_UNITS_MS[place].1)
            .and_then(|part| total_ms.checked_add(part))
            .filter(|ms| *ms <= DURATION_MAX.as_millis() as u64)
            .ok_or("too long; at most \"366d\"")?;
    }
    Ok(Duration::from_millis(total_ms))
}

pub fn show_duration(duration: &Duration) -> String {
    let mut rest = duration.as_millis() as u64;
    // 75s says more than 1m15s to who compares it with another 60s.
    if rest % 1000 == 0 && rest < 120_000 {
        return format!("{}s", rest / 1000);
    }
    let mut text = String::new();
    for (unit, ms) in TIME_UNITS_MS {
        if rest >= ms {
            text.push_str(&format!("{}{unit}", rest / ms));
            rest %= ms;
        }
    }
    text
}

pub fn parse_size(text: &str) -> Result<u64, String> {
    let example = "write it as \"8MiB\" (binary), \"8MB\" (decimal) or \"8192B\"";
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| format!("not a size; {example}"))?;
    let unit = text[digits..].trim_start();
    if unit.is_empty() {
        return Err(format!("a size needs a unit; write \"{}\"", show_size(&number)));
    }
    let known = SIZE_UNITS.iter().find(|(name, _)| *name == unit || (*name == "kB" && unit == "KB"));
    let Some((_, bytes)) = known else {
        return Err(match unit {
            "K" | "k" | "M" | "m" | "G" | "g" | "T" | "t" => {
                let letter = unit.to_ascii_uppercase();
                format!(
                    "`{unit}` is not clear; write \"{number}{letter}iB\" (binary) or \"{number}{letter}B\" (decimal)"
                )
            }
            _ => format!("unknown unit `{unit}`; {example}"),
        });
    };
    number.checked_mul(*bytes).filter(|size| *size <= i64::MAX as u64).ok_or_else(|| "too large".to_owned())
}

pub fn show_size(size: &u64) -> String {
    let fits = |(_, bytes): &&(&str, u64)| *size > 0 && size % bytes == 0;
    let (unit, bytes) = SIZE_UNITS.iter().find(fits).unwrap_or(&("B", 1));
    format!("{}{unit}", size / bytes)
}

pub fn parse_mode(text: &str) -> Result<u32, String> {
    let octal = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = if octal { u32::from_str_radix(text, 8).ok() } else { None };
    mode.filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "not a mode; write three octal digits after a 0, as \"0660\"".to_owned())
}

pub fn show_mode(mode: &u32) -> String {
    format!("{mode:04o}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let good = [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("0s", 0),
            ("1m31s500ms", 91_500),
            ("1h 5m", 3_900_000),
            ("2d", 172_800_000),
        ];
        for (text, ms) in good {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(ms), "{text}");
            assert_eq!(parse_duration(&show_duration(&duration)), Ok(duration), "{text}");
        }
        assert!(parse_duration("30").unwrap_err().contains("\"30s\""));
        for bad in ["", "s", "30x", "30s5", "5s1m", "1s1s", "-5s", "1.5s", "99999999d", "99999999999999999999s", "5é"]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("8MiB", 8 << 20), ("8MB", 8_000_000), ("8 KiB", 8192), ("1kB", 1000), ("7B", 7), ("0B", 0)]
        {
            let size = parse_size(text).unwrap();
            assert_eq!(size, bytes, "{text}");
            assert_eq!(parse_size(&show_size(&size)), Ok(size), "{text}");
        }
        assert!(parse_size("1048576").unwrap_err().contains("\"1MiB\""));
        assert!(parse_size("8M").unwrap_err().contains("\"8MiB\""));
        for bad in ["", "MiB", "8XB", "-1B", "99999999TiB", "8é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!(parse_mode("0660"), Ok(0o660));
        assert_eq!(parse_mode("022"), Ok(0o22));
        assert_eq!(show_mode(&0o22), "0022");
        for bad in ["", "0888", "rw-rw----", "1777", "00660"] {
            assert!(parse_mode(bad).is_err(), "{bad}");
        }
    }
}

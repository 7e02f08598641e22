//! The time of a log line, the same in master and workers: `2026-11-22T23:25:59.123Z`. UTC is computed here, not by
//! libc, whose idea of local time follows the application's `time.tzset()`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Appends the time now.
pub fn push_now(line: &mut String) {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    push(line, since_epoch.as_secs(), since_epoch.subsec_millis());
}

/// Appends a time of Unix.
pub fn push(line: &mut String, seconds: u64, milliseconds: u32) {
    let Civil { year, month, day, hour, minute, second } = Civil::of(seconds);
    // Writing to a String cannot fail.
    let _ = write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z");
}

/// Appends a time of Unix as access logs have it: `[22/Nov/2026:23:25:59 +0000]`.
pub fn push_common_log(line: &mut String, seconds: u64) {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let Civil { year, month, day, hour, minute, second } = Civil::of(seconds);
    let month = MONTHS[month as usize - 1];
    // As above.
    let _ = write!(line, "[{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000]");
}

struct Civil {
    year: u64,
    /// From 1 to 12.
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    /// Civil date from days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    fn of(seconds: u64) -> Civil {
        let days = seconds / 86_400 + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        Civil { year, month, day, hour, minute, second }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_795_389_959, "2026-11-22T23:25:59.007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            let mut line = String::new();
            push(&mut line, seconds, 7);
            assert_eq!(line, expected);
        }
        let mut line = String::new();
        push_common_log(&mut line, 1_795_389_959);
        assert_eq!(line, "[22/Nov/2026:23:25:59 +0000]");
    }
}

//! `[reload.canary]`: the first workers of a release serve beside the old ones for a while, and both are compared. A table
//! of its own.

use std::time::Duration;

use super::file::{quoted, Value, Written};
use super::settings::CanarySettings;
use super::units::{parse_duration, show_duration};
use super::values::{integer, string};
use crate::facts::canary::{show_points, show_times};

/// Half of what there can be.
const WORKERS_MAX: u64 = super::keys::WORKERS_MAX as u64 / 2;

/// Beside fewer workers, one more is no sample of the traffic but a good part of it.
pub const BESIDE_MIN: u32 = 4;

const KEYS: &str = "workers, hold, min_requests, max_errors and max_latency";

impl Default for CanarySettings {
    fn default() -> CanarySettings {
        let hold = Duration::from_secs(120);
        CanarySettings { workers: 0, hold, min_requests: 100, max_errors: 1.0, max_latency: 1.5 }
    }
}

pub fn parse(value: &Value) -> Result<CanarySettings, String> {
    let mut canary = CanarySettings::default();
    let Value::Table(entries) = value else {
        return Err(format!("a table, not {}; write [reload.canary] on a line of its own", value.kind()));
    };
    for (key, Written { value, .. }) in entries {
        let read = match key.as_str() {
            "workers" => integer(value, 0, WORKERS_MAX).map(|workers| canary.workers = workers as u32),
            "hold" => string(value).and_then(parse_hold).map(|hold| canary.hold = hold),
            "min_requests" => integer(value, 1, u32::MAX.into()).map(|requests| canary.min_requests = requests),
            "max_errors" => string(value).and_then(parse_points).map(|points| canary.max_errors = points),
            "max_latency" => string(value).and_then(parse_times).map(|times| canary.max_latency = times),
            _unknown => return Err(format!("there is no key `{key}` here; there are {KEYS}")),
        };
        read.map_err(|reason| format!("{key} = {}: {reason}", value.shown()))?;
    }
    Ok(canary)
}

pub fn show(canary: &CanarySettings) -> String {
    let CanarySettings { workers, hold, min_requests, max_errors, max_latency } = canary;
    format!(
        "{{ workers = {workers}, hold = {}, min_requests = {min_requests}, max_errors = {}, max_latency = {} }}",
        quoted(&show_duration(hold)),
        quoted(&show_points(*max_errors)),
        quoted(&show_times(*max_latency))
    )
}

fn parse_hold(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("nothing can be seen in no time; write \"2m\"".to_owned()),
        hold => Ok(hold),
    }
}

/// `+1pp`: percentage points more than the old generation has. `+1%` could be one of a hundred of what there is.
fn parse_points(text: &str) -> Result<f64, String> {
    let number = text.strip_prefix('+').and_then(|rest| rest.strip_suffix("pp"));
    match number.and_then(plain_number) {
        Some(points) if points < 100.0 => Ok(points),
        Some(_) | None => Err("percentage points are needed; write \"+1pp\" or \"+0.5pp\"".to_owned()),
    }
}

/// `x1.5`: so many times what the old generation takes.
fn parse_times(text: &str) -> Result<f64, String> {
    match text.strip_prefix('x').and_then(plain_number) {
        Some(times) if (1.0..=1000.0).contains(&times) => Ok(times),
        Some(_) | None => Err("a factor of at least 1 is needed; write \"x1.5\"".to_owned()),
    }
}

/// Digits, and perhaps a fraction: no sign, no exponent, no `inf`.
fn plain_number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, Value)]) -> Value {
        let entry = |(key, value): &(&str, Value)| ((*key).to_owned(), Written { line: 1, value: value.clone() });
        Value::Table(entries.iter().map(entry).collect())
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn what_is_written_is_read_and_shown() {
        assert_eq!(parse(&table(&[])).unwrap(), CanarySettings::default());
        let written = table(&[
            ("workers", Value::Integer { text: "2".to_owned(), value: Some(2) }),
            ("hold", text("90s")),
            ("max_errors", text("+0.5pp")),
            ("max_latency", text("x2")),
        ]);
        let canary = parse(&written).unwrap();
        assert_eq!(
            show(&canary),
            "{ workers = 2, hold = \"90s\", min_requests = 100, max_errors = \"+0.5pp\", max_latency = \"x2\" }"
        );
    }

    #[test]
    fn what_could_be_misread_is_refused_with_what_to_write() {
        for (key, value, reason) in [
            ("max_errors", "+1%", "write \"+1pp\""),
            ("max_errors", "1pp", "write \"+1pp\""),
            ("max_errors", "+-1pp", "write \"+1pp\""),
            ("max_errors", "+100pp", "write \"+1pp\""),
            ("max_latency", "1.5", "write \"x1.5\""),
            ("max_latency", "x0.9", "at least 1"),
            ("max_latency", "xinf", "at least 1"),
            ("hold", "0s", "write \"2m\""),
            ("hold", "2", "needs a unit"),
            ("errors", "+1pp", "there are workers, hold"),
        ] {
            let refused = parse(&table(&[(key, text(value))])).unwrap_err();
            assert!(refused.contains(reason), "{key} = {value}: {refused}");
        }
        assert!(parse(&text("1")).unwrap_err().contains("[reload.canary] on a line of its own"));
    }
}

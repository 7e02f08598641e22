//! What a line of the error log looks like, the same in master and workers: `2026-11-22T23:25:59.123Z INFO  message`,
//! with `<6>` in place of the time for the journal, or one JSON object. A process has one form at a time.

use std::fmt::Display;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use crate::timestamp;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineForm {
    #[default]
    Text,
    /// The journal has the time itself and reads the priority from the beginning of each line (sd-daemon(3)).
    Journal,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

static FORM: AtomicU8 = AtomicU8::new(LineForm::Text as u8);

/// Lines have this form from now on.
pub fn set_form(form: LineForm) {
    FORM.store(form as u8, Ordering::Relaxed);
}

pub fn form() -> LineForm {
    match FORM.load(Ordering::Relaxed) {
        form if form == LineForm::Json as u8 => LineForm::Json,
        form if form == LineForm::Journal as u8 => LineForm::Journal,
        _text => LineForm::Text,
    }
}

/// A whole line with its end; a text of several lines is several of them, but for JSON.
pub fn line(severity: Severity, text: impl Display) -> String {
    line_of(form(), severity, text)
}

fn line_of(form: LineForm, severity: Severity, text: impl Display) -> String {
    let mut line = String::with_capacity(160);
    match form {
        LineForm::Text => {
            timestamp::push_now(&mut line);
            line.push_str(&format!(" {:<5} {text}\n", severity.word()));
        }
        LineForm::Journal => {
            for part in text.to_string().lines() {
                line.push_str(&format!("<{}>{part}\n", severity.priority()));
            }
        }
        LineForm::Json => {
            let mut time = String::with_capacity(32);
            timestamp::push_now(&mut time);
            let (level, pid) = (severity.word().to_ascii_lowercase(), std::process::id());
            let object = Object { time: &time, level: &level, pid, message: &text.to_string() };
            // Strings and a number: that cannot fail.
            line.push_str(&serde_json::to_string(&object).unwrap_or_default());
            line.push('\n');
        }
    }
    line
}

/// The fields in the order in which people look for them.
#[derive(Serialize)]
struct Object<'a> {
    time: &'a str,
    level: &'a str,
    pid: u32,
    message: &'a str,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Warn => "WARN",
            Severity::Info => "INFO",
            Severity::Debug => "DEBUG",
            Severity::Trace => "TRACE",
        }
    }

    /// As syslog(3) numbers them.
    fn priority(self) -> u8 {
        match self {
            Severity::Error => 3,
            Severity::Warn => 4,
            Severity::Info => 6,
            Severity::Debug | Severity::Trace => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_has_its_line() {
        let text = line_of(LineForm::Text, Severity::Warn, "careful");
        assert!(text.ends_with("Z WARN  careful\n") && text.starts_with("20"), "{text}");
        let journal = line_of(LineForm::Journal, Severity::Error, "exception\nTraceback\n  File");
        assert_eq!(journal, "<3>exception\n<3>Traceback\n<3>  File\n");
        let json = line_of(LineForm::Json, Severity::Info, "a \"quoted\"\nline");
        let object: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (json.lines().count(), &object["level"], &object["message"]),
            (1, &"info".into(), &"a \"quoted\"\nline".into())
        );
        assert_eq!(
            (object["pid"].as_u64(), object["time"].as_str().map(str::len)),
            (Some(std::process::id().into()), Some(24))
        );
    }
}

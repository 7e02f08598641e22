//! `events`: what happens in the master, as it happens, until the master ends. For people as log lines, for programs an
//! object a line.

use std::time::{Duration, Instant};

use forkmaster_wire::json;
use serde::Deserialize;

use super::ask::{read, Lines, NoAnswer};
use super::client::{connect, told, ANSWER_WITHIN};
use super::output;
use crate::config::process_context::ProcessContext;
use crate::doors::protocol::Request;
use crate::exit_code::ExitCode;
use crate::verbs::command_line::Client;

/// What all events have. The rest is for programs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Event {
    time: String,
    level: String,
    text: String,
}

pub fn events(client: &Client, context: &ProcessContext, json: bool, timeout: Option<Duration>) -> ExitCode {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let mut lines = match Lines::ask(&mut stream, &Request::Events) {
        Ok(lines) => lines,
        Err(no_answer) => return told("no events", no_answer),
    };
    let begun = lines.next(Some(Instant::now() + ANSWER_WITHIN));
    if let Err(no_answer) = begun.and_then(|line| read::<serde::de::IgnoredAny>(&line)) {
        return told("no events", no_answer);
    }
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        match lines.next(deadline) {
            Ok(line) if json => output::print(format_args!("{}\n", output::printable_json(&line))),
            Ok(line) => output::print(shown(&line)),
            // What was to be seen has been seen.
            Err(NoAnswer::Ended) => return ExitCode::Done,
            Err(NoAnswer::Late) => return ExitCode::Timeout,
            Err(no_answer @ NoAnswer::Refused(_)) => return told("no events", no_answer),
        }
        if output::is_closed() {
            return ExitCode::Done;
        }
    }
}

/// As in the log.
fn shown(line: &str) -> String {
    let Event { time, level, text } = json::read(line.as_bytes()).unwrap_or_default();
    // The log has none of these either, unless it was asked for them.
    if level == "debug" {
        return String::new();
    }
    output::printable(&format!("{time} {:5} {text}\n", level.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_looks_like_its_line_in_the_log() {
        let line = r#"{"time":"2026-11-22T23:25:59.123Z","level":"warn","event":"due","text":"worker\u001b[2J"}"#;
        assert_eq!(shown(line), "2026-11-22T23:25:59.123Z WARN  worker\\u{1b}[2J\n");
    }
}

//! `[[service]]`: programs of a release that run beside its workers, a table each. Every problem of each is told.

use std::collections::BTreeSet;
use std::time::Duration;

use super::file::{Value, Written};
use super::layers::expanded;
use super::problem::Problem;
use super::resolver::Resolver;
use super::settings::ServiceSettings;
use super::units::parse_duration;
use super::values::string;

/// More is a mistake: each is a process.
const COUNT_MAX: i64 = 64;

/// As `graceful_timeout`: a task that takes longer should say so.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);

const KEYS: [&str; 5] = ["name", "command", "count", "stop_timeout", "stop_signal"];

/// What a program may be told to stop with.
const SIGNALS: [(&str, i32); 5] = [
    ("TERM", libc::SIGTERM),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("HUP", libc::SIGHUP),
    ("USR1", libc::SIGUSR1),
];

impl Resolver<'_> {
    pub fn services(&mut self) -> Vec<ServiceSettings> {
        let mut services: Vec<ServiceSettings> = Vec::new();
        let mut names = BTreeSet::new();
        for table in self.file.services.clone() {
            let Some(service) = self.service(&table) else { continue };
            if !names.insert(service.name.clone()) {
                self.wrong(table.line, "name", &format!("two services are called {}", service.name));
                continue;
            }
            services.push(service);
        }
        services
    }

    /// None: something of it is wrong.
    fn service(&mut self, table: &Written) -> Option<ServiceSettings> {
        let Value::Table(entries) = &table.value else {
            self.wrong(
                table.line,
                "",
                &format!("a table, not {}; write [[service]] on a line of its own", table.value.kind()),
            );
            return None;
        };
        let before = self.problems.len();
        let mut service = ServiceSettings {
            name: String::new(),
            command: Vec::new(),
            count: 1,
            stop_timeout: STOP_TIMEOUT,
            stop_signal: libc::SIGTERM,
        };
        for (key, written) in entries {
            let line = if written.line > 0 { written.line } else { table.line };
            let read = expanded(&written.value, &self.variables).and_then(|value| service.set(key, &value));
            if let Err(reason) = read {
                self.wrong(line, key, &reason);
            }
        }
        if service.name.is_empty() && !entries.iter().any(|(key, _)| key == "name") {
            self.wrong(table.line, "name", "it stands in the log and in `status`; write name = \"celery\"");
        }
        if service.command.is_empty() && !entries.iter().any(|(key, _)| key == "command") {
            self.wrong(table.line, "command", "write command = [\"celery\", \"-A\", \"shop\", \"worker\"]");
        }
        (self.problems.len() == before).then_some(service)
    }

    fn wrong(&mut self, line: usize, key: &str, reason: &str) {
        let place = format!("{}:{line}", self.shown);
        let problem = Problem::new(place, format_args!("[[service]] {key}: {reason}"));
        self.problems.push(problem.at_line(Some(line)));
    }
}

impl ServiceSettings {
    fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        match key {
            "name" => self.name = string(value).and_then(parse_name)?,
            "command" => self.command = parse_command(value)?,
            "count" => {
                self.count = match value {
                    Value::Integer { value: Some(count @ 1..=COUNT_MAX), .. } => *count as u32,
                    other => return Err(format!("a number from 1 to {COUNT_MAX} is needed, not {}", other.shown())),
                }
            }
            "stop_timeout" => self.stop_timeout = string(value).and_then(parse_duration)?,
            "stop_signal" => {
                let text = string(value)?;
                let name = text.strip_prefix("SIG").unwrap_or(text);
                let found = SIGNALS.iter().find(|(known, _)| *known == name);
                let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
                let Some((_, signal)) = found else { return Err(format!("one of {} is needed", names.join(", "))) };
                self.stop_signal = *signal;
            }
            _unknown => return Err(format!("there is no such key; a service has {}", KEYS.join(", "))),
        }
        Ok(())
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match !text.is_empty() && text.len() <= 40 && text.bytes().all(good) {
        true => Ok(text.to_owned()),
        false => Err("write up to 40 letters, digits, `-`, `_` or `.`".to_owned()),
    }
}

fn parse_command(value: &Value) -> Result<Vec<String>, String> {
    let words = match value {
        Value::List(words) if !words.is_empty() => words,
        Value::Text(text) => {
            let words: Vec<String> = text.split_whitespace().map(|word| format!("\"{word}\"")).collect();
            return Err(format!("no shell reads it: write a list, as [{}]", words.join(", ")));
        }
        other => return Err(format!("a list of words is needed, not {}", other.shown())),
    };
    words.iter().map(|word| string(&word.value).map(str::to_owned)).collect()
}

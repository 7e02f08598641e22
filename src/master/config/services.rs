//! `[[service]]`: programs of a release that run beside its workers, a table each, and what can be set of each. Every
//! problem of each is told.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::file::{quoted, Value, Written};
use super::layers::expanded;
use super::problem::Problem;
use super::resolver::Resolver;
use super::settings::{Bind, ServiceSettings};
use super::units::{parse_duration, show_duration};
use super::values::string;
use super::Origin;

/// More is a mistake: each is a process.
const COUNT_MAX: i64 = 64;

/// As `graceful_timeout`: a task that takes longer should say so.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);

/// Of a service that runs every so often.
const EVERY_MIN: Duration = Duration::from_secs(1);

/// What service managers grant a start. systemd: 90 s, for a whole machine that boots.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// More is a mistake: each is a descriptor of each process.
const BINDS_MAX: usize = 16;

/// The section's name among the settings in effect, where a key is `NAME.count`.
pub const SECTION: &str = "service";

/// What can be set of a service: the key, how its value is written, its default, and what it is for.
pub struct ServiceKey {
    pub key: &'static str,
    pub kind: &'static str,
    pub default: &'static str,
    pub doc: &'static str,
}

/// In the order of the documentation.
pub const KEYS: [ServiceKey; 9] = [
    ServiceKey {
        key: "name",
        kind: "Up to 40 letters, digits, `-`, `_` or `.`, the first a letter, a digit or `_`",
        default: "none: it must be set",
        doc: "It stands in the log, in `status`, in metrics and as the name of its sockets, and no two have the same.",
    },
    ServiceKey {
        key: "command",
        kind: "List: the program and its arguments",
        default: "none: it must be set",
        doc: "What is run, in the generation's directory, with its virtual environment on PATH and its environment, as \
              `[server] user`. No shell reads it.",
    },
    ServiceKey {
        key: "count",
        kind: "Number from 1 to 64",
        default: "`1`",
        doc: "Its processes.",
    },
    ServiceKey {
        key: "every",
        kind: "Duration, at least 1 s",
        default: "none: it runs all the time",
        doc: "It is a task that runs so often and ends: a clean-up, a report. The first run begins so long after the start, and a \
              deploy does not shift the rhythm. One run at a time: what is due while another one runs is skipped and counted. \
              Times of the day are for cron and systemd timers.",
    },
    ServiceKey {
        key: "bind",
        kind: "List: addresses, as those of `[server] bind`",
        default: "`[]`",
        doc: "Sockets that the master binds once and holds over deploys, and that all processes of the service, old and new, \
              have as descriptors from 3 on, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES (sd_listen_fds(3)): \
              `uvicorn --fd 3`, or any program with socket activation. They listen and do not block. Backlog, mode and \
              owner are those of `[server]`.",
    },
    ServiceKey {
        key: "notify",
        kind: "`true` or `false`",
        default: "`false`",
        doc: "Whether the program says when it is ready: READY=1 to NOTIFY_SOCKET (sd_notify(3)). It is `starting` until then.",
    },
    ServiceKey {
        key: "ready_timeout",
        kind: "Duration, more than zero",
        default: "`\"30s\"`",
        doc: "So long a program with `notify` may take to become ready. What takes longer is told in the log, and the state is \
              `degraded` until it is ready; the release serves all the same.",
    },
    ServiceKey {
        key: "stop_timeout",
        kind: "Duration",
        default: "`\"25s\"`",
        doc: "So long it may take to end, at the next commit and at the stop of the master; then it is killed, with all that \
              it has started. As long as its longest task.",
    },
    ServiceKey {
        key: "stop_signal",
        kind: "TERM, INT, QUIT, HUP or USR1",
        default: "`\"TERM\"`",
        doc: "What it is told to end with.",
    },
];

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
            self.note_service(&service, table.line);
            services.push(service);
        }
        services
    }

    /// For `config show`, and for what a reload changes.
    fn note_service(&mut self, service: &ServiceSettings, line: usize) {
        let words = |words: Vec<String>| format!("[{}]", words.join(", "));
        let signal = SIGNALS.iter().find(|(_, number)| *number == service.stop_signal).map_or("", |(name, _)| name);
        let shown = [
            ("name", Some(quoted(&service.name))),
            ("command", Some(words(service.command.iter().map(|word| quoted(word)).collect()))),
            ("count", Some(service.count.to_string())),
            ("every", service.every.as_ref().map(|every| quoted(&show_duration(every)))),
            ("bind", Some(words(service.bind.iter().map(|bind| quoted(&bind.to_string())).collect()))),
            ("notify", Some(service.ready_within.is_some().to_string())),
            ("ready_timeout", service.ready_within.as_ref().map(|within| quoted(&show_duration(within)))),
            ("stop_timeout", Some(quoted(&show_duration(&service.stop_timeout)))),
            ("stop_signal", Some(quoted(signal))),
        ];
        for (key, value) in shown {
            let Some(value) = value else { continue };
            let origin = Origin::File { shown: self.shown.clone(), line };
            self.note_entry(SECTION, format!("{}.{key}", service.name), value, origin);
        }
    }

    /// An address has one owner: what the kernel would refuse is refused here, and so is a socket that two would accept from.
    pub fn check_service_binds(&mut self, services: &[ServiceSettings], others: &[(&str, &[Bind])]) {
        let mut taken: Vec<(String, &Bind)> = Vec::new();
        for (whose, binds) in others {
            taken.extend(binds.iter().map(|bind| ((*whose).to_owned(), bind)));
        }
        for service in services {
            for bind in &service.bind {
                if let Some((whose, other)) = taken.iter().find(|(_, other)| *other == bind || other.overlaps(bind)) {
                    let reason = format!("{bind} overlaps {other} of {whose}; choose another address");
                    self.wrong(service.line, "bind", &reason);
                }
                taken.push((format!("[[service]] {}", service.name), bind));
            }
        }
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
            every: None,
            bind: Vec::new(),
            ready_within: None,
            line: table.line,
        };
        let base = self.place.named.clone();
        let (mut notifies, mut ready_timeout) = (false, None);
        for (key, written) in entries {
            let line = if written.line > 0 { written.line } else { table.line };
            let read = expanded(&written.value, &self.variables).and_then(|value| match key.as_str() {
                "notify" => boolean(&value).map(|notify| notifies = notify),
                "ready_timeout" => timeout(&value).map(|timeout| ready_timeout = Some((line, timeout))),
                "every" => rhythm(&value).map(|every| service.every = Some(every)),
                "bind" => parse_binds(&value, &base).map(|bind| service.bind = bind),
                _other => service.set(key, &value),
            });
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
        if service.every.is_some() {
            for (key, is_set) in
                [("count", service.count > 1), ("bind", !service.bind.is_empty()), ("notify", notifies)]
            {
                if is_set {
                    self.wrong(
                        table.line,
                        key,
                        "it is for a program that runs all the time; with `every` one runs and ends",
                    );
                }
            }
        }
        match (notifies, ready_timeout) {
            (true, within) => service.ready_within = Some(within.map_or(READY_TIMEOUT, |(_, within)| within)),
            (false, Some((line, _))) => {
                self.wrong(
                    line,
                    "ready_timeout",
                    "it is for a program that says when it is ready; write notify = true",
                );
            }
            (false, None) => {}
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
            _unknown => {
                let keys: Vec<&str> = KEYS.iter().map(|spec| spec.key).collect();
                return Err(format!("there is no such key; a service has {}", keys.join(", ")));
            }
        }
        Ok(())
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match !text.is_empty() && text.len() <= 40 && text.bytes().all(good) {
        // `recycle 3` is about a worker.
        true if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err("a number is no name: verbs take it for a slot".to_owned())
        }
        // Verbs would take it for an option, or for a step of `scale`.
        true if text.starts_with(['-', '.']) => Err("it must begin with a letter, a digit or `_`".to_owned()),
        true => Ok(text.to_owned()),
        false => Err("write up to 40 letters, digits, `-`, `_` or `.`".to_owned()),
    }
}

fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(boolean) => Ok(*boolean),
        other => Err(format!("true or false is needed, not {}", other.shown())),
    }
}

fn timeout(value: &Value) -> Result<Duration, String> {
    match string(value).and_then(parse_duration)? {
        Duration::ZERO => Err("it must be more than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// More often is a program that runs all the time.
fn rhythm(value: &Value) -> Result<Duration, String> {
    match timeout(value)? {
        every if every < EVERY_MIN => Err("it must be at least 1s".to_owned()),
        every => Ok(every),
    }
}

/// `base`: where relative paths of Unix sockets start from.
fn parse_binds(value: &Value, base: &Path) -> Result<Vec<Bind>, String> {
    let Value::List(addresses) = value else {
        return Err(format!("a list is needed; write [{}]", value.shown()));
    };
    if addresses.len() > BINDS_MAX {
        return Err(format!("{} addresses; at most {BINDS_MAX} are handed over", addresses.len()));
    }
    addresses.iter().map(|address| string(&address.value).and_then(|text| Bind::parse(text, base))).collect()
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

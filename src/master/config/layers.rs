//! Where values come from, highest first: command line, FORKMASTER_* variables, file, the variables that platforms
//! set (PORT, WEB_CONCURRENCY, FORWARDED_ALLOW_IPS, SCRIPT_NAME, LISTEN_FDS). What is in none of them has its default from `keys`. And how
//! `${NAME}` is expanded in what the file says.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use super::environment::{self, Environment};
use super::file::{File, Value, Written};
use super::hints;
use super::keys::{Key, KEYS};
use super::passed;
use super::{Origin, Source};

/// A value as written, and where.
#[derive(Clone, Debug)]
pub struct Entry {
    pub value: Value,
    pub origin: Origin,
}

/// Highest first.
#[derive(Clone, Debug)]
pub struct Layers(Vec<BTreeMap<Key, Entry>>);

impl Layers {
    pub fn new(
        source: &Source,
        environment: &Environment,
        file: &File,
        shown: &str,
        warnings: &mut Vec<String>,
    ) -> Layers {
        Layers(vec![
            command_line(source),
            our_variables(environment, warnings),
            written_in_the_file(file, shown),
            platform_variables(environment),
        ])
    }

    /// The highest entry of a key, and how high it is (0: highest).
    pub fn find(&self, key: Key) -> Option<(usize, &Entry)> {
        self.0.iter().enumerate().find_map(|(height, layer)| Some((height, layer.get(&key)?)))
    }

    pub fn origin(&self, key: Key) -> Origin {
        self.find(key).map_or(Origin::Default, |(_, entry)| entry.origin.clone())
    }
}

/// What `forkmaster dev` means, whatever the file says. Somebody may stand in a debugger for an hour, in the import as well.
const DEVELOPMENT: [(Key, &str); 7] = [
    (("app", "preload"), "false"),
    (("server", "workers"), "1"),
    (("server", "boot_timeout"), "1h"),
    (("server", "request_timeout"), "none"),
    (("server", "max_requests"), "0"),
    (("log", "access"), "-"),
    (("log", "slow_request"), "none"),
];

fn command_line(source: &Source) -> BTreeMap<Key, Entry> {
    let overrides = &source.overrides;
    let single: [(Key, &'static str, &Option<String>); 10] = [
        (("app", "module"), "MODULE", &overrides.module),
        (("", "name"), "--name", &overrides.name),
        (("app", "release"), "--release", &overrides.release),
        (("app", "venv"), "--venv", &overrides.venv),
        (("app", "python"), "--python", &overrides.python),
        (("app", "preload"), "--preload", &overrides.preload),
        (("server", "workers"), "--workers", &overrides.workers),
        (("server", "threads"), "--threads", &overrides.threads),
        (("server", "notify_fd"), "--notify-fd", &overrides.notify_fd),
        (("log", "level"), "--log-level", &overrides.log_level),
    ];
    let mut layer = BTreeMap::new();
    for (key, text) in DEVELOPMENT.into_iter().filter(|_| overrides.dev) {
        layer.insert(key, Entry { value: Value::Loose(text.to_owned()), origin: Origin::CommandLine("dev") });
    }
    for (key, option, text) in single {
        if let Some(text) = text {
            layer.insert(key, Entry { value: Value::Loose(text.clone()), origin: Origin::CommandLine(option) });
        }
    }
    if !overrides.bind.is_empty() {
        let items = overrides.bind.iter().map(|text| Written { line: 0, value: Value::Text(text.clone()) });
        let value = Value::List(items.collect());
        layer.insert(("server", "bind"), Entry { value, origin: Origin::CommandLine("--bind") });
    }
    layer
}

/// `FORKMASTER_SERVER__WORKERS`, `FORKMASTER_NAME`. Unknown ones only warn: Kubernetes sets FORKMASTER_PORT and others
/// for a service of that name. An empty one counts as not set, since compose files cannot leave one out.
fn our_variables(environment: &Environment, warnings: &mut Vec<String>) -> BTreeMap<Key, Entry> {
    let mut layer = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with("FORKMASTER_")) else {
            continue;
        };
        let spec = KEYS.iter().find(|spec| spec.variable().is_some_and(|variable| variable == name));
        match (spec, value.to_str()) {
            (Some(_), Some("")) => {}
            (Some(spec), Some(text)) => {
                let entry = Entry { value: Value::Loose(text.to_owned()), origin: Origin::Variable(name.to_owned()) };
                layer.insert(spec.at(), entry);
            }
            // What Docker's links and Kubernetes set for a service that is called forkmaster.
            (None, _) if of_a_service(name, value.to_str().unwrap_or_default()) => {}
            // A command of `[hooks]` has them.
            (None, _) if name.starts_with("FORKMASTER_HOOK") => {}
            // Read by the build, not by the program.
            (None, _) if name == "FORKMASTER_WORKER_LIB" => {}
            (None, _) => {
                let hint = hints::variable(name).map(|meant| format!(" (did you mean {meant}?)"));
                unknown.push(format!("{name}{}", hint.unwrap_or_default()));
            }
            (Some(_), None) => unknown.push(format!("{name} (not UTF-8)")),
        }
    }
    if environment.get(OsStr::new("GUNICORN_CMD_ARGS")).is_some_and(|text| !text.is_empty()) {
        warnings.push(
            "GUNICORN_CMD_ARGS is Gunicorn's and is not read here: `forkmaster convert -- shop.wsgi` makes a configuration \
             of it"
                .to_owned(),
        );
    }
    if !unknown.is_empty() {
        warnings.push(format!("ignored, since no setting is called so: {}", unknown.join(", ")));
    }
    layer
}

fn written_in_the_file(file: &File, shown: &str) -> BTreeMap<Key, Entry> {
    let entry = |(key, written): (&Key, &Written)| {
        let origin = Origin::File { shown: shown.to_owned(), line: written.line };
        (*key, Entry { value: written.value.clone(), origin })
    };
    file.entries.iter().map(entry).collect()
}

/// What platforms set for any server. Empty ones count as not set.
fn platform_variables(environment: &Environment) -> BTreeMap<Key, Entry> {
    let variable = |name: &str| environment.get(OsStr::new(name)).map(|value| value.to_string_lossy().into_owned());
    let platform = [
        (
            ("server", "bind"),
            "PORT",
            variable("PORT").filter(|port| !is_a_services_address(port)).map(|port| {
                if port.is_empty() {
                    port
                } else {
                    format!("0.0.0.0:{port}")
                }
            }),
        ),
        (("server", "workers"), "WEB_CONCURRENCY", variable("WEB_CONCURRENCY")),
        (("http", "forwarded_allow_ips"), "FORWARDED_ALLOW_IPS", variable("FORWARDED_ALLOW_IPS")),
        // Shells use the name for the script that runs.
        (("app", "script_name"), "SCRIPT_NAME", variable("SCRIPT_NAME").filter(|name| name.starts_with('/'))),
    ];
    let entry = |(key, name, text): (Key, &str, Option<String>)| {
        let text = text.filter(|text| !text.is_empty())?;
        Some((key, Entry { value: Value::Loose(text), origin: Origin::Variable(name.to_owned()) }))
    };
    let mut layer: BTreeMap<Key, Entry> = BTreeMap::new();
    layer.extend(platform.into_iter().filter_map(entry));
    // As Gunicorn does: a unit that has a socket means it.
    let passed = passed::sockets(environment, std::process::id());
    if !passed.is_empty() {
        let address = |name: &str| Written { line: 0, value: Value::Text(format!("systemd:{name}")) };
        let value = Value::List(passed::names(&passed).into_iter().map(address).collect());
        layer.insert(("server", "bind"), Entry { value, origin: Origin::Variable("LISTEN_FDS".to_owned()) });
    }
    layer
}

/// `FORKMASTER_SERVICE_HOST`, `FORKMASTER_SERVICE_PORT_HTTP`, `FORKMASTER_PORT_8000_TCP_ADDR`, `FORKMASTER_PORT`.
fn of_a_service(name: &str, value: &str) -> bool {
    let prefixes = ["FORKMASTER_SERVICE_HOST", "FORKMASTER_SERVICE_PORT", "FORKMASTER_PORT_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || is_a_services_address(value)
}

/// `tcp://10.0.0.1:8000`: Kubernetes sets `NAME_PORT` so for each service, and `PORT` where a prefix is stripped.
fn is_a_services_address(text: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme))
}

/// What the file says, with its variables in it.
pub fn expanded(value: &Value, variables: &Environment) -> Result<Value, String> {
    Ok(match value {
        Value::Text(text) => {
            let expanded = environment::expand(text, variables)?;
            if expanded.whole {
                Value::Loose(expanded.text)
            } else {
                Value::Text(expanded.text)
            }
        }
        Value::List(items) => {
            let item = |item: &Written| Ok(Written { line: item.line, value: expanded(&item.value, variables)? });
            Value::List(items.iter().map(item).collect::<Result<_, String>>()?)
        }
        Value::Table(entries) => {
            let entry = |(key, item): &(String, Written)| {
                Ok((key.clone(), Written { line: item.line, value: expanded(&item.value, variables)? }))
            };
            Value::Table(entries.iter().map(entry).collect::<Result<_, String>>()?)
        }
        Value::Loose(_) | Value::Integer { .. } | Value::Boolean(_) | Value::Other { .. } => value.clone(),
    })
}

//! Gunicorn's settings as forkmaster's: what each becomes, what changed its meaning, and what ends the conversion because
//! the application would not work. It decides and writes nothing.

use serde_json::Value;

use super::draft::Draft;
use super::evaluate::{Evaluated, Hook, MadeOf, Meant};
use super::flags::Flags;
use crate::config::{self, Elsewhere};

/// Why there is no file.
pub type Refused = String;

/// Durations above this were meant as none.
const NO_LIMIT_S: u64 = 24 * 60 * 60;

/// Words on the command line stand above the file, as in Gunicorn.
pub fn convert(file: &Evaluated, flags: &Flags, draft: &mut Draft) -> Result<(), Refused> {
    let mut settings = file.settings.clone();
    settings.extend(flags.settings.clone());
    worker_class(settings.get("worker_class"))?;
    draft.secrets.extend(flags.variables.clone());
    for (name, meant) in &settings {
        take(name, meant, draft);
    }
    socket_mode(settings.get("umask"), draft);
    for (name, written) in file.absent.iter().filter(|(name, _)| !settings.contains_key(*name) && is_known(name)) {
        draft.leave_out(format!("{name} = {written}"), "the file sets it in another case than this one");
    }
    if !flags.wrapper.is_empty() {
        let wrapper = flags.wrapper.join(" ");
        draft.warn(format!("`{wrapper}` goes before the command as it did: {wrapper} forkmaster -c FILE."));
    }
    let threads = draft.value("server", "threads").is_some_and(|threads| threads != "1");
    let class = settings.get("worker_class").map(|meant| text(&meant.plain)).unwrap_or_default();
    let threaded = threads || class == "gthread";
    if threaded && !draft.has("server", "request_timeout") {
        draft.set_text("server", "request_timeout", "60s");
    }
    let limited = draft.value("server", "request_timeout").is_some_and(|limit| limit != "\"none\"");
    if limited && threaded {
        draft.comment(
            "server",
            "request_timeout",
            "Gunicorn's timeout never ended a request of threaded workers. This one does: it counts from the last output of \
             the request. Raise it for long reports, or set [server.request_timeouts] for their paths.",
        );
    }
    for (name, hook) in &file.hooks {
        take_hook(name, hook, draft);
    }
    if file.went_through {
        draft.warn(
            "The file goes through all variables of the environment. What those set that are not set here is missing: convert it \
             where they are, or write it here.",
        );
    }
    Ok(())
}

/// A function of the file: written where it is a command or a call, and told otherwise.
fn take_hook(name: &str, hook: &Hook, draft: &mut Draft) {
    let key = match name {
        "post_fork" | "post_worker_init" => Some("worker_start"),
        "worker_exit" => Some("worker_exit"),
        "when_ready" => Some("on_ready"),
        "on_reload" => Some("on_reload"),
        "on_exit" => Some("on_exit"),
        _other => None,
    };
    let is_function = matches!(key, Some("worker_start" | "worker_exit"));
    let why = match (key, config::elsewhere(config::Server::Gunicorn, name)) {
        // A helper of the file's own.
        (None, Some(Elsewhere::Setting(_)) | None) => return,
        (_, _) if hook.logs => "it only logs, and forkmaster's log has such lines".to_owned(),
        (_, _) if hook.marks => "the master removes the live gauges of dead workers itself".to_owned(),
        (Some(key), _) if is_function => match &hook.function {
            Some(function) if !draft.has("hooks", key) => return draft.set_text("hooks", key, function),
            Some(_) | None => format!(
                "make it a function without arguments in a module of the release, and write [hooks] {key} = \
                 \"shop.hooks:{name}\""
            ),
        },
        (Some(key), _) => match &hook.command {
            Some(words) => {
                let words: Vec<String> = words.iter().map(|word| config::quoted(&word.replace('$', "$$"))).collect();
                return draft.set("hooks", key, format!("[{}]", words.join(", ")));
            }
            None => format!("the master runs no Python; [hooks] {key} takes a command that ends"),
        },
        (None, Some(Elsewhere::Sentence(sentence))) => sentence.to_owned(),
    };
    draft.leave_out(format!("{name}()"), why);
}

/// Only what waits in threads can be taken: the others have thousands of requests at once, or another interface.
fn worker_class(class: Option<&Meant>) -> Result<(), Refused> {
    let Some(class) = class.map(|class| text(&class.plain)) else { return Ok(()) };
    // The entry point of one of its own: `egg:gunicorn#sync`.
    let class = class.strip_prefix("egg:gunicorn#").unwrap_or(&class).to_owned();
    let word = class.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    match class.as_str() {
        "" | "sync" | "gthread" => return Ok(()),
        _other => {}
    }
    if word.contains("gthread") || word == "syncworker" || word == "threadworker" {
        return Ok(());
    }
    if class.contains("gevent") || class.contains("eventlet") {
        return Err(format!(
            "worker_class = \"{class}\": forkmaster has no greenlets. Idle connections and slow clients cost no thread here, so \
             `threads` need only be the requests that run at once; each is a thread, and often a database connection. To \
             try it, set worker_class = \"gthread\" and threads = 32 in a copy, remove monkey patching, and convert that"
        ));
    }
    if class.contains("vicorn") || class.contains("asgi") || class.contains("aiohttp") || class.contains("hypercorn") {
        return Err(format!(
            "worker_class = \"{class}\" serves ASGI, and forkmaster serves WSGI. A WSGI application can be converted \
             without that line; an ASGI application stays where it is, or is wrapped with a2wsgi.ASGIMiddleware"
        ));
    }
    Err(format!(
        "worker_class = \"{class}\": a worker class of your own cannot be run. What it does is to go into the application, \
         or into middleware; then convert a copy without that line"
    ))
}

fn take(name: &str, meant: &Meant, draft: &mut Draft) {
    let value = &meant.value;
    if *value == Value::Null {
        return;
    }
    match name {
        // Judged before.
        "worker_class" => {}
        // Variables of the file's own: Gunicorn has no settings of these names, but others have.
        "host" | "port" | "name" | "env" => {}
        _own if name.chars().any(|letter| letter.is_ascii_uppercase()) => {}
        "bind" => bind(meant, draft),
        "wsgi_app" => draft.set_text("app", "module", &colon(&meant.text())),
        "chdir" => set_text(("app", "release"), meant, draft),
        "pythonpath" => {
            let paths = meant.text();
            let paths: Vec<String> = paths.split(',').map(|path| config::quoted(path.trim())).collect();
            draft.set("app", "pythonpath", format!("[{}]", paths.join(", ")));
        }
        // Gunicorn takes these words as text, too.
        "preload_app" if matches!(value.as_str(), Some("True" | "true" | "False" | "false")) => {
            draft.set("app", "preload", meant.text().to_ascii_lowercase());
        }
        "preload_app" => set_bare(("app", "preload"), meant, draft),
        "raw_env" => {
            for item in list(value) {
                match item.split_once('=') {
                    Some(("SCRIPT_NAME", mount)) => draft.set_text("app", "script_name", mount),
                    Some((name, value)) => draft.secrets.push((name.to_owned(), value.to_owned())),
                    None => draft.leave_out(format!("raw_env: {item}"), "it has no value"),
                }
            }
        }
        "workers" => workers(meant, draft),
        "threads" => set_bare(("server", "threads"), meant, draft),
        "backlog" => set_bare(("server", "backlog"), meant, draft),
        "max_requests" => set_bare(("server", "max_requests"), meant, draft),
        "max_requests_jitter" => set_bare(("server", "max_requests_jitter"), meant, draft),
        "timeout" => timeout(meant, draft),
        "graceful_timeout" => {
            seconds(("server", "graceful_timeout"), meant, draft);
            draft.comment(
                "server",
                "graceful_timeout",
                "It holds for a stop. At a reload running requests have [reload] drain_timeout, 10 minutes.",
            );
        }
        "keepalive" if text(value) == "0" => draft.set_text("http", "keepalive_timeout", "none"),
        "keepalive" => seconds(("http", "keepalive_timeout"), meant, draft),
        "limit_request_line" | "limit_request_fields" | "limit_request_field_size" => {
            let key = match name {
                "limit_request_line" => "limit_request_line",
                "limit_request_fields" => "limit_request_fields",
                _size => "limit_request_field_size",
            };
            match text(value).as_str() {
                "0" => {
                    draft.set_text("http", key, "none");
                    draft.comment("http", key, "The whole head has [http] limit_request_head all the same.");
                }
                _limit => set_bare(("http", key), meant, draft),
            }
        }
        "user" => id(("server", "user"), meant, draft),
        "group" => id(("server", "group"), meant, draft),
        // For the sockets, which are not all known yet.
        "umask" => {}
        "pidfile" | "pid" => set_text(("server", "pidfile"), meant, draft),
        "proc_name" => {
            let name = meant.text();
            if meant.made_of == MadeOf::Variables {
                return draft.set_text("", "name", &name);
            }
            let plain: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
            draft.set_text("", "name", plain.trim_start_matches('.'));
        }
        "accesslog" => set_text(("log", "access"), meant, draft),
        "errorlog" => set_text(("log", "error"), meant, draft),
        "loglevel" => {
            // A variable has its default at its end.
            let text = meant.text();
            let (variable, level) = match text.strip_suffix('}').and_then(|text| text.split_once(":-")) {
                Some((variable, default)) => (Some(variable), default),
                None => (None, text.as_str()),
            };
            let level = match level.to_ascii_lowercase().as_str() {
                "warning" => "warn".to_owned(),
                "critical" => "error".to_owned(),
                other => other.to_owned(),
            };
            match variable {
                Some(variable) => draft.set_text("log", "level", &format!("{variable}:-{level}}}")),
                None if text.starts_with("${") => draft.set_text("log", "level", &text),
                None => draft.set_text("log", "level", &level),
            }
            comment_code(("log", "level"), meant, draft);
        }
        "access_log_format" => set_text(("log", "access_format"), meant, draft),
        "forwarded_allow_ips" => {
            let text = meant.text();
            let peers: Vec<String> =
                text.split(',').map(str::trim).filter(|peer| !peer.is_empty()).map(config::quoted).collect();
            draft.set("http", "forwarded_allow_ips", format!("[{}]", peers.join(", ")));
        }
        "proxy_protocol" => match value {
            Value::Bool(false) => {}
            Value::Bool(true) => draft.set_text("http", "proxy_protocol", "v1"),
            _version => set_text(("http", "proxy_protocol"), meant, draft),
        },
        "secure_scheme_headers" => match value {
            Value::Object(entries) => {
                let entry = |(name, value): (&String, &Value)| {
                    format!("{} = {}", config::quoted(name), config::quoted(&text(value)))
                };
                let entries: Vec<String> = entries.iter().map(entry).collect();
                draft.set("http", "secure_scheme_headers", format!("{{ {} }}", entries.join(", ")));
            }
            _other => draft.leave_out(shown(name, value), "see [http] secure_scheme_headers"),
        },
        "tmp_upload_dir" => set_text(("server", "temp_dir"), meant, draft),
        "worker_connections" => {
            draft.leave_out(
                shown(name, value),
                "it bounds greenlets; `[server] connections` bounds open connections, 1024 a worker",
            );
        }
        _other => match config::elsewhere(config::Server::Gunicorn, name) {
            Some(Elsewhere::Sentence(sentence)) => {
                if is_tls(name) && !is_nothing(&meant.plain) {
                    draft.warn("Gunicorn spoke TLS here. forkmaster does not: put nginx, HAProxy or Caddy in front.");
                }
                // What is switched off need not be told.
                if !is_nothing(value) {
                    draft.leave_out(shown(name, value), sentence);
                }
            }
            Some(Elsewhere::Setting(spec)) => draft.leave_out(shown(name, value), format!("see {spec}")),
            // A variable of the file's own.
            None => {}
        },
    }
}

/// Whether the name is a setting of Gunicorn's, and not a variable of the file's own.
fn is_known(name: &str) -> bool {
    let own = matches!(name, "host" | "port" | "name" | "env" | "umask");
    let known = matches!(name, "workers" | "threads" | "bind" | "accesslog" | "errorlog" | "loglevel" | "preload_app");
    !own && !name.chars().any(|letter| letter.is_ascii_uppercase())
        && (known || config::elsewhere(config::Server::Gunicorn, name).is_some())
}

/// Gunicorn's umask is that of its Unix sockets and of nothing that the application makes; it is 0 unless it is set.
fn socket_mode(umask: Option<&Meant>, draft: &mut Draft) {
    let written = umask.filter(|umask| umask.plain != Value::Null);
    let mask = written.and_then(|umask| match &umask.plain {
        Value::Number(mask) => mask.as_u64(),
        // As Python reads it with base 0, and "022" as octal.
        text => {
            let text = self::text(text);
            u64::from_str_radix(text.trim_start_matches("0o"), 8).ok()
        }
    });
    let has_socket = draft.value("server", "bind").is_some_and(|bind| bind.contains("\"unix:"));
    match (written, mask) {
        (Some(umask), None) => draft.leave_out(shown("umask", &umask.value), "it is no mode"),
        (Some(umask), Some(_)) if !has_socket => draft.leave_out(
            shown("umask", &umask.value),
            "it was that of Gunicorn's sockets and temporary files; the application's is [server] umask",
        ),
        (_, mask) if has_socket => {
            draft.set_text("server", "socket_mode", &format!("{:04o}", 0o666 & !mask.unwrap_or(0)));
            let why = if mask.is_some() { "by its umask" } else { "since its umask is 0 unless it is set" };
            draft.comment(
                "server",
                "socket_mode",
                format!(
                    "Gunicorn's socket has this mode {why}. \"0660\" with `socket_group` lets only the proxy in. The \
                     application has the umask of whoever starts the server, as before."
                ),
            );
        }
        (_, _) => {}
    }
}

fn is_tls(name: &str) -> bool {
    matches!(name, "certfile" | "keyfile")
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn bind(meant: &Meant, draft: &mut Draft) {
    if let Some(empty) = list(&meant.value).iter().find(|address| address.ends_with(':') && *address != "unix:") {
        draft.warn(format!(
            "`{empty}` has no port. Where a variable was meant, the shell has put nothing in its place: write it in single \
             quotes, '{empty}$PORT'."
        ));
    }
    let addresses = list(&meant.value);
    let addresses = addresses.iter().flat_map(|item| item.split(',')).map(str::trim).filter(|item| !item.is_empty());
    let addresses: Vec<String> = addresses.map(|item| config::quoted(&address(item))).collect();
    draft.set("server", "bind", format!("[{}]", addresses.join(", ")));
    comment_code(("server", "bind"), meant, draft);
}

/// Gunicorn's forms (util.parse_address): a port may be missing, a scheme be there.
pub fn address(text: &str) -> String {
    let text = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
        return format!("unix:{path}");
    }
    if text.starts_with("fd://") {
        return text.to_owned();
    }
    // A variable may stand for the port, and has a colon of its own.
    let fixed = text.find("${").unwrap_or(text.len());
    let colon = text[..fixed].rfind(':');
    match colon.map(|colon| (&text[..colon], &text[colon + 1..])) {
        None if fixed == 0 => text.to_owned(),
        Some(("" | "*", port)) => format!("0.0.0.0:{port}"),
        Some((host, port)) if host.ends_with(']') || !host.contains(':') => format!("{host}:{port}"),
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => format!("127.0.0.1:{text}"),
        Some(_) => format!("[{text}]:8000"),
        None => format!("{text}:8000"),
    }
}

fn workers(meant: &Meant, draft: &mut Draft) {
    match meant.made_of {
        MadeOf::Cpus => {
            draft.set_text("server", "workers", "auto");
            let of = format!("{} with four CPUs", text(&meant.value));
            let source = if meant.source.is_empty() { of } else { format!("`{}`, {of}", meant.source) };
            draft.comment(
                "server",
                "workers",
                format!("Gunicorn: {source}. \"auto\" is one for each CPU that the container may use; with `threads` that serves as many requests."),
            );
        }
        MadeOf::Constant | MadeOf::Variables | MadeOf::Code => set_bare(("server", "workers"), meant, draft),
    }
}

fn timeout(meant: &Meant, draft: &mut Draft) {
    match text(&meant.value).parse::<u64>() {
        Ok(0) => draft.set_text("server", "request_timeout", "none"),
        Ok(limit) if limit >= NO_LIMIT_S => {
            draft.set_text("server", "request_timeout", "none");
            draft.comment("server", "request_timeout", format!("It was {limit} s, which was meant as no limit."));
        }
        Ok(_) | Err(_) => seconds(("server", "request_timeout"), meant, draft),
    }
}

/// A number as a duration.
fn seconds(key: config::Key, meant: &Meant, draft: &mut Draft) {
    let text = meant.text();
    // `30.0`
    let text = text.strip_suffix(".0").unwrap_or(&text);
    draft.set_text(key.0, key.1, &format!("{text}s"));
    comment_code(key, meant, draft);
}

/// Numbers and booleans: bare, unless they are a variable.
fn set_bare(key: config::Key, meant: &Meant, draft: &mut Draft) {
    let text = meant.text();
    let bare = text.bytes().all(|byte| byte.is_ascii_digit()) || text == "true" || text == "false";
    draft.set(key.0, key.1, if bare && !text.is_empty() { text } else { config::quoted(&text) });
    comment_code(key, meant, draft);
}

fn set_text(key: config::Key, meant: &Meant, draft: &mut Draft) {
    draft.set_text(key.0, key.1, &meant.text());
    comment_code(key, meant, draft);
}

/// Numeric ids are numbers in the file, and text on the command line.
fn id(key: config::Key, meant: &Meant, draft: &mut Draft) {
    set_bare(key, meant, draft);
}

fn comment_code((section, key): config::Key, meant: &Meant, draft: &mut Draft) {
    match meant.made_of {
        MadeOf::Constant | MadeOf::Variables => {}
        MadeOf::Cpus => {
            draft.comment(section, key, format!("Gunicorn made it of the number of CPUs: `{}`.", meant.source))
        }
        MadeOf::Code => draft.comment(
            section,
            key,
            format!("Gunicorn made it of variables: `{}`. This is its value here and now.", meant.source),
        ),
    }
}

/// `shop.wsgi`, and `shop:create_app()` as it is.
fn colon(application: &str) -> String {
    application.trim().to_owned()
}

fn shown(name: &str, value: &Value) -> String {
    let value = match value {
        // A dictionary of logging is pages long.
        Value::Object(_) => "{..}".to_owned(),
        other => other.to_string(),
    };
    format!("{name} = {value}")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        other => vec![text(other)],
    }
}

impl Meant {
    /// As a setting writes it: what is no variable means itself.
    pub fn text(&self) -> String {
        let text = text(&self.value);
        match self.made_of {
            MadeOf::Variables => text,
            MadeOf::Constant | MadeOf::Cpus | MadeOf::Code => text.replace('$', "$$"),
        }
    }

    pub fn variables(value: Value) -> Meant {
        Meant { made_of: MadeOf::Variables, ..Meant::constant(value) }
    }

    pub fn constant(value: Value) -> Meant {
        Meant { plain: value.clone(), value, made_of: MadeOf::Constant, source: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_all_of_gunicorns_forms() {
        let cases = [
            ("127.0.0.1:8000", "127.0.0.1:8000"),
            (":8000", "0.0.0.0:8000"),
            ("*:80", "0.0.0.0:80"),
            ("8000", "127.0.0.1:8000"),
            ("localhost", "localhost:8000"),
            ("[::]:80", "[::]:80"),
            ("unix:/run/shop.sock", "unix:/run/shop.sock"),
            ("unix:///run/shop.sock", "unix:/run/shop.sock"),
            ("tcp://0.0.0.0:80", "0.0.0.0:80"),
            ("fd://3", "fd://3"),
            ("0.0.0.0:${PORT:-8000}", "0.0.0.0:${PORT:-8000}"),
        ];
        for (written, expected) in cases {
            assert_eq!(address(written), expected, "{written}");
        }
    }
}

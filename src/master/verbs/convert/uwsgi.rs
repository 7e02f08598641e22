//! uWSGI's settings as forkmaster's: what each becomes, what nginx must be told, what changed its meaning, and what ends the
//! conversion because the application would not work. It decides and writes nothing.

use super::cron::Cron;
use super::draft::Draft;
use super::gunicorn::Refused;
use super::ini::{self, Entry};
use crate::config::{self, Elsewhere};

const NO_SHELL: &str = "no shell reads a [[service]]: put it into a script, and write command = [\"./script\"]";

/// What needs no word: it is always so here, or it tunes what is not here.
const SILENT: &[&str] = &[
    "master",
    "vacuum",
    "die-on-term",
    "need-app",
    "single-interpreter",
    "enable-threads",
    "thunder-lock",
    "strict",
    "no-orphans",
    "ignore-sigpipe",
    "ignore-write-errors",
    "disable-write-exception",
    "close-on-exec",
    "plugin",
    "plugins",
    "lazy",
    "lazy-apps",
    "post-buffering",
    "harakiri-verbose",
    "auto-procname",
    "procname-prefix",
    "procname",
    "project",
    "base",
    "socket-timeout",
    "http-timeout",
    "http-auto-chunked",
    "so-keepalive",
    "memory-report",
    "threads-stacksize",
    "threads-stack-size",
    "manage-script-name",
    "py-tracebacker",
    "callable",
    "log-date",
    "log-x-forwarded-for",
    "http-keepalive",
    "wsgi-disable-file-wrapper",
    "buffer-size",
    "limit-post",
    "disable-logging",
    "log-master",
    "exit-on-reload",
    "protocol",
    "socket-protocol",
];

pub fn convert(entries: &[Entry], draft: &mut Draft) -> Result<(), Refused> {
    let last = |key: &str| entries.iter().rev().find(|entry| is(&entry.key, key)).map(|entry| entry.value.as_str());
    for (keys, why) in NOT_HERE {
        if let Some(entry) = entries.iter().find(|entry| keys.iter().any(|key| is(&entry.key, key)) && on(&entry.value))
        {
            return Err(format!("{} = {}: {why}", entry.key, entry.value));
        }
    }
    for entry in entries {
        if ini::is_condition(&entry.key) {
            let below =
                "uWSGI decides it when it starts. The lines below it are taken as if it held: keep those that do";
            draft.leave_out(shown(entry), below);
            draft.warn(format!("{}: {below}.", shown(entry)));
        } else if entry.computed {
            draft.leave_out(shown(entry), "uWSGI computes it when it starts; write its value");
        } else if !ini::ends_condition(&entry.key) {
            take(entry, draft);
        }
    }
    application(entries, draft);
    addresses(entries, draft);
    if let Some(processes) = entries.iter().rev().find(|entry| PROCESSES.iter().any(|key| is(&entry.key, key))) {
        if !draft.has("server", "workers") && !processes.computed {
            match processes.value.as_str() {
                "%k" => draft.set_text("server", "workers", "auto"),
                count => number(("server", "workers"), count, draft),
            }
        }
    }
    if !draft.has("server", "request_timeout") {
        draft.set_text("server", "request_timeout", if last("harakiri") == Some("0") { "none" } else { "60s" });
        if last("harakiri").is_none() {
            let comment =
                "There was no harakiri, so no limit. Here a request without progress is ended: raise it for long \
                           reports, set [server.request_timeouts] for their paths, or write \"none\".";
            draft.comment("server", "request_timeout", comment);
        }
    }
    if let Some(limit) = last("limit-post").and_then(|limit| limit.parse::<u64>().ok()).filter(|limit| *limit > 0) {
        draft.set_text("http", "max_body", &format!("{limit}B"));
    }
    if let Some(head) = last("buffer-size").and_then(|size| size.parse::<u64>().ok()).filter(|size| *size > 65_536) {
        draft.set_text("http", "limit_request_head", &format!("{head}B"));
    }
    if !entries.iter().any(|entry| (is(&entry.key, "lazy-apps") || is(&entry.key, "lazy")) && on(&entry.value)) {
        draft.set("app", "preload", "true");
        draft.comment(
            "app",
            "preload",
            "uWSGI without lazy-apps imports the application once and forks then: workers share its memory, and threads and \
             connections that the import opens are shared or lost. `false` imports it in each worker.",
        );
    }
    // Errors alone, where nothing else is logged.
    let says = |key| last(key).is_some_and(on);
    let least = match (says("log-4xx"), says("log-5xx")) {
        (true, _) => Some(">=400"),
        (false, true) => Some(">=500"),
        (false, false) => None,
    };
    if let Some(least) = least.filter(|_| says("disable-logging")) {
        if !draft.has("log", "access") {
            draft.set_text("log", "access", "-");
        }
        draft.set_text("log", "access_status", least);
    }
    // uWSGI logs each request unless it is told not to.
    if !draft.has("log", "access") && !last("disable-logging").is_some_and(on) {
        draft.set_text("log", "access", "-");
        draft.comment("log", "access", "As uWSGI without disable-logging: a line for each request, on stdout.");
    }
    Ok(())
}

/// How many workers there are.
const PROCESSES: [&str; 3] = ["processes", "workers", "p"];

/// Where zero is uWSGI's word for none, which is the default here as well.
const NONE_IS_ZERO: [&str; 11] = [
    "max-requests",
    "max-requests-delta",
    "max-worker-lifetime",
    "reload-on-rss",
    "evil-reload-on-rss",
    "reload-on-as",
    "evil-reload-on-as",
    "harakiri",
    "threads",
    "listen",
    "reload-mercy",
];

/// Nothing here could stand for them.
const NOT_HERE: [(&[&str], &str); 3] = [
    (
        &["emperor", "zerg", "zerg-server"],
        "one forkmaster serves one application. Start one for each file below it, as `forkmaster@NAME` under systemd, and \
         convert each of these files",
    ),
    (
        &["gevent", "gevent-monkey-patch", "asyncio", "ugreen", "async", "tornado", "greenlet"],
        "forkmaster has no greenlets. Idle connections and slow clients cost no thread here, so `threads` need only be the \
         requests that run at once. Convert a copy without that line, with threads = 32",
    ),
    (
        &["psgi", "rack", "php-docroot", "cgi", "fastrouter", "http-websockets", "pypy-wsgi", "pypy-home"],
        "forkmaster serves WSGI applications on CPython, and nothing else",
    ),
];

fn take(entry: &Entry, draft: &mut Draft) {
    let (key, value) = (entry.key.replace('_', "-"), entry.value.as_str());
    if value == "0" && NONE_IS_ZERO.contains(&key.as_str()) {
        return;
    }
    match key.as_str() {
        "chdir" | "chdir2" => draft.set_text("app", "release", value),
        "virtualenv" | "home" | "venv" | "pyhome" => draft.set_text("app", "venv", value),
        "pythonpath" | "python-path" | "pp" => {
            let before = draft.value("app", "pythonpath").map(|list| format!("{}, ", list.trim_matches(['[', ']'])));
            draft.set("app", "pythonpath", format!("[{}{}]", before.unwrap_or_default(), config::quoted(value)));
        }
        "import" | "py-import" | "shared-py-import" | "shared-import" => {
            let before = draft.value("app", "imports").map(|list| format!("{}, ", list.trim_matches(['[', ']'])));
            draft.set("app", "imports", format!("[{}{}]", before.unwrap_or_default(), config::quoted(value)));
        }
        "env" => match value.split_once('=') {
            Some((name, value)) => draft.secrets.push((name.trim().to_owned(), value.trim().replace("$$", "$"))),
            None => draft.leave_out(shown(entry), "it has no value"),
        },
        // The last one counts, and `cheaper` before it.
        "processes" | "workers" | "p" => {}
        "cheaper" => {
            number(("server", "workers"), value, draft);
            draft.comment(
                "server",
                "workers",
                "uWSGI's `cheaper`: it started so many and grew to `processes` under load. Here the number is fixed: choose it \
                 for the load that you have. TTIN and TTOU change it while it runs.",
            );
            draft.warn(format!(
                "cheaper = {value}: `workers` is that small number and does not grow to `processes`; choose it for your load."
            ));
        }
        "threads" => number(("server", "threads"), value, draft),
        "listen" => number(("server", "backlog"), value, draft),
        "harakiri" => {
            draft.set_text("server", "request_timeout", &format!("{value}s"));
            draft.comment(
                "server",
                "request_timeout",
                "harakiri limits the whole request. This counts from its last output, so that a long download is not cut.",
            );
        }
        "max-requests" => number(("server", "max_requests"), value, draft),
        "max-requests-delta" => number(("server", "max_requests_jitter"), value, draft),
        "max-worker-lifetime" => draft.set_text("server", "max_lifetime", &format!("{value}s")),
        "reload-on-rss" | "evil-reload-on-rss" => {
            draft.set_text("server", "max_rss", &format!("{value}MiB"));
            draft.comment("server", "max_rss", "uWSGI counts it in MiB.");
        }
        "reload-mercy" | "worker-reload-mercy" => {
            draft.set_text("server", "graceful_timeout", &format!("{value}s"));
            draft.comment(
                "server",
                "graceful_timeout",
                "It holds for a stop. A reload has [reload] drain_timeout, 10 minutes.",
            );
        }
        "uid" => number(("server", "user"), value, draft),
        "gid" => number(("server", "group"), value, draft),
        "umask" => draft.set_text("server", "umask", &format!("{value:0>4}")),
        "chmod-socket" | "chmod" => {
            let mode = if on(value) && !value.starts_with(|c: char| c.is_ascii_digit()) { "666" } else { value };
            draft.set_text("server", "socket_mode", &format!("{mode:0>4}"));
        }
        "chown-socket" => {
            let (user, group) = value.split_once(':').unwrap_or((value, ""));
            draft.set_text("server", "socket_user", user);
            if !group.is_empty() {
                draft.set_text("server", "socket_group", group);
            }
        }
        "pidfile" | "pidfile2" | "safe-pidfile" => draft.set_text("server", "pidfile", value),
        "logto" | "logto2" => draft.set_text("log", "error", value),
        "daemonize" | "daemonize2" => {
            draft.set_text("log", "error", value);
            draft.leave_out(
                shown(entry),
                "forkmaster stays in the foreground: a service manager keeps it; the log is [log] error",
            );
        }
        "req-logger" => match value.strip_prefix("file:") {
            Some(path) => draft.set_text("log", "access", path),
            None => draft.leave_out(shown(entry), "[log] access is a file, or \"-\" for stdout"),
        },
        "log-format" | "logformat" | "log-encoder" => {
            draft.leave_out(shown(entry), "its names are others; see [log] access_format");
        }
        "log-maxsize" | "log-backupname" => {
            draft.leave_out(shown(entry), "logrotate turns the file, and `kill -USR1` has it opened again");
        }
        "static-map" | "static-map2" | "check-static" => {
            draft.warn("uWSGI served static files. forkmaster does not: `location /static/ { alias ..; }` in nginx, or WhiteNoise.");
            draft.leave_out(
                shown(entry),
                "static files are for the proxy in front, or for WhiteNoise in the application",
            );
        }
        // With the others of their kind, below.
        "attach-daemon" | "attach-daemon2" | "smart-attach-daemon" | "legion-attach-daemon" => {
            daemon(entry, &key, value, draft)
        }
        // A script of its own is a program; a mule without one waits for messages of the workers.
        "mule" if value.ends_with(".py") => {
            if !draft.serve(&format!("python {value}"), None) {
                draft.leave_out(shown(entry), NO_SHELL);
            }
        }
        "mule" | "mules" => draft.leave_out(
            shown(entry),
            "a program of its own can be a [[service]]; what speaks to uWSGI's mules needs a task queue",
        ),
        "cron" | "cron2" | "unique-cron" => {
            cron(entry, &key, value, draft);
        }
        "module" | "wsgi" | "wsgi-file" | "file" | "mount" => {}
        "socket" | "s" | "uwsgi-socket" | "http" | "http-socket" | "http11-socket" | "shared-socket" => {}
        "ini" | "include" | "inherit" | "yaml" | "yml" | "json" | "xml" | "config" => {
            draft.leave_out(shown(entry), "put the lines of that file in the place of this one, and convert again");
            draft.warn(format!(
                "{}: that file is not read. Put its lines in the place of this one, and convert again.",
                shown(entry)
            ));
        }
        "https" | "https2" | "https-socket" => {
            draft.warn("uWSGI spoke TLS here. forkmaster does not: put nginx, HAProxy or Caddy in front.");
            draft.leave_out(shown(entry), "TLS is for the proxy in front; forkmaster speaks plain HTTP");
        }
        // Below, with the access log.
        "log-4xx" | "log-5xx" => {}
        "log-format-strftime" | "logformat-strftime" => {
            draft.leave_out(shown(entry), "times of the access log are UTC, in one form");
        }
        "add-header" | "rem-header" | "response-headers" | "collect-header" => {
            draft.leave_out(shown(entry), "fields of responses are for the application, or for the proxy in front");
        }
        _silent if SILENT.contains(&key.as_str()) => {}
        // Others were filled from it, and uWSGI has no such option.
        _name if entry.is_named && config::elsewhere(config::Server::Uwsgi, &key).is_none() => {}
        _other => match config::elsewhere(config::Server::Uwsgi, &key) {
            Some(Elsewhere::Sentence(sentence)) => draft.leave_out(shown(entry), sentence),
            Some(Elsewhere::Setting(spec)) => draft.leave_out(shown(entry), format!("see {spec}")),
            None => draft.leave_out(shown(entry), "nothing here is like it"),
        },
    }
}

/// A program that uWSGI keeps running is a service, which belongs to the deploy as well.
fn daemon(entry: &Entry, key: &str, value: &str, draft: &mut Draft) {
    let command = match key {
        // `cmd=celery -A shop worker,freq=3`
        "attach-daemon2" => value.split(',').find_map(|part| part.trim().strip_prefix("cmd=")).unwrap_or(value),
        // The pid file comes first.
        "smart-attach-daemon" => value.split_once(char::is_whitespace).map_or(value, |(_, command)| command),
        _attach_daemon => value,
    };
    if !draft.serve(command.trim(), None) {
        draft.leave_out(shown(entry), NO_SHELL);
    }
}

/// What runs every so often is a service as well; a time of the day is for cron.
fn cron(entry: &Entry, key: &str, value: &str, draft: &mut Draft) {
    let cron = if key == "cron2" { Cron::parse_named(value) } else { Cron::parse(value) };
    let Some(cron) = cron else {
        return draft.leave_out(shown(entry), "a [[service]] with `every`, or the system's cron");
    };
    match cron.every() {
        Some(every) => {
            if !draft.serve(&cron.command, Some(every)) {
                draft.leave_out(shown(entry), NO_SHELL);
            }
        }
        None => draft.leave_out(shown(entry), format!("a time of the day is for the system's cron: {}", cron.line())),
    }
}

fn application(entries: &[Entry], draft: &mut Draft) {
    let last = |keys: &[&str]| {
        let entry = entries.iter().rev().find(|entry| keys.iter().any(|key| is(&entry.key, key)));
        entry.filter(|entry| !entry.computed).map(|entry| entry.value.clone())
    };
    let callable = last(&["callable"]);
    let mount = last(&["mount"]);
    let mounts: Vec<&Entry> = entries.iter().filter(|entry| is(&entry.key, "mount")).collect();
    if let [others @ .., _last] = mounts.as_slice() {
        for other in others {
            draft.leave_out(shown(other), "one forkmaster serves one application: this one takes a second");
        }
        if !others.is_empty() {
            draft.warn(
                "More than one `mount`: this file serves the last one. Each other application takes a forkmaster of its own, \
                 and the proxy in front tells them apart by the path.",
            );
        }
    }
    let mounted = mount.as_deref().and_then(|mount| mount.split_once('='));
    let file = last(&["wsgi-file", "file"]).or_else(|| {
        mounted.map(|(_, application)| application.to_owned()).filter(|application| application.contains(".py"))
    });
    let module = last(&["module", "wsgi"]).or_else(|| mounted.map(|(_, application)| application.to_owned()));
    let module = match (file, module) {
        (Some(file), _) => Some(dotted(&file, draft)),
        (None, module) => module,
    };
    if let Some(module) = module {
        let module = match callable {
            Some(callable) if !module.contains(':') => format!("{module}:{callable}"),
            Some(_) | None => module,
        };
        draft.set_text("app", "module", &module);
    }
    if let Some((prefix, _)) = mounted.filter(|(prefix, _)| *prefix != "/") {
        draft.set_text("app", "script_name", prefix);
    }
}

/// `/srv/shop/src/shop/wsgi.py` below `chdir` is `shop.wsgi`.
fn dotted(file: &str, draft: &mut Draft) -> String {
    let release = draft.value("app", "release").map(|value| value.trim_matches('"').trim_end_matches('/').to_owned());
    let inside = release.and_then(|release| file.strip_prefix(&format!("{release}/")).map(str::to_owned));
    let inside = inside.unwrap_or_else(|| {
        // Elsewhere: its directory is where Python must look.
        match file.rsplit_once('/').filter(|_| file.starts_with('/')) {
            Some((directory, name)) => {
                if !draft.has("app", "release") {
                    draft.set_text("app", "release", directory);
                }
                name.to_owned()
            }
            None => file.to_owned(),
        }
    });
    inside.trim_start_matches("./").trim_end_matches(".py").replace('/', ".")
}

fn addresses(entries: &[Entry], draft: &mut Draft) {
    let says_http =
        |entry: &Entry| entry.value == "http" && (is(&entry.key, "protocol") || is(&entry.key, "socket-protocol"));
    let speaks_http = entries.iter().any(says_http);
    let shared: Vec<&str> =
        entries.iter().filter(|entry| is(&entry.key, "shared-socket")).map(|entry| entry.value.as_str()).collect();
    let mut bind: Vec<String> = Vec::new();
    let mut uwsgi = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.computed) {
        let key = entry.key.replace('_', "-");
        let speaks_uwsgi = matches!(key.as_str(), "socket" | "s" | "uwsgi-socket");
        if speaks_uwsgi || matches!(key.as_str(), "http" | "http-socket" | "http11-socket") {
            // `=0` is the first `shared-socket`.
            let place = entry.value.strip_prefix('=').and_then(|number| shared.get(number.parse::<usize>().ok()?));
            let address = address(place.copied().unwrap_or(&entry.value));
            if speaks_uwsgi && !speaks_http {
                uwsgi.push(address.clone());
            }
            if !bind.contains(&address) {
                bind.push(address);
            }
        }
    }
    if bind.is_empty() {
        for address in shared {
            draft.leave_out(
                format!("shared-socket = {address}"),
                "nothing that forkmaster speaks is on it; see [server] bind",
            );
        }
        return;
    }
    let quoted: Vec<String> = bind.iter().map(|address| config::quoted(address)).collect();
    draft.set("server", "bind", format!("[{}]", quoted.join(", ")));
    for address in uwsgi {
        draft.warn(nginx(&address));
    }
}

/// uWSGI's forms: a path, `:8001`, `host:port`, `fd://` or a name of systemd's.
fn address(text: &str) -> String {
    if text.starts_with('/') || text.starts_with("./") || (text.contains('/') && !text.contains("://")) {
        return format!("unix:{text}");
    }
    super::gunicorn::address(text)
}

/// What replaces `uwsgi_pass` in front of it.
fn nginx(address: &str) -> String {
    let upstream = match address.strip_prefix("unix:") {
        Some(path) => format!("http://unix:{path}:"),
        None => format!("http://{}", address.replace("0.0.0.0:", "127.0.0.1:")),
    };
    format!(
        "nginx spoke the uwsgi protocol to {address}; forkmaster speaks HTTP there. In place of `uwsgi_pass` and \
         `include uwsgi_params` write:\n  proxy_pass {upstream};\n  proxy_http_version 1.1;\n  proxy_set_header Connection \
         \"\";\n  proxy_set_header Host $host;\n  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n  \
         proxy_set_header X-Forwarded-Proto $scheme;\nand `uwsgi_read_timeout` and its like as `proxy_read_timeout`."
    )
}

/// A number, or a name or variable where a number is not the only form.
fn number((section, key): config::Key, value: &str, draft: &mut Draft) {
    let bare = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    draft.set(section, key, if bare { value.to_owned() } else { config::quoted(value) });
}

/// uWSGI takes hyphens and underscores alike.
fn is(written: &str, key: &str) -> bool {
    written.replace('_', "-") == key
}

fn on(value: &str) -> bool {
    !matches!(value, "false" | "0" | "no" | "off" | "")
}

fn shown(entry: &Entry) -> String {
    format!("{} = {}", entry.key, entry.value)
}

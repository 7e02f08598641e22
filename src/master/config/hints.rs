//! What to say about a name that is no setting: a slip of the pen, a key of another section, or what Gunicorn, uWSGI
//! or another server calls it, in a file or as a flag. Names with a counterpart stand in the table of `keys`; those
//! without one stand here, each with what to do instead.

use super::keys::{KeySpec, KEYS, SECTIONS};

const HOOKS: &str = "the configuration is not a program; `[hooks]` has functions that workers call, and commands";
const BEFORE: &str =
    "what must happen before the first boot is for whoever starts it: `ExecStartPre=` of a unit, an init \
                      container, an entrypoint";
const AROUND: &str = "what happens around a request is for middleware of the application";
const CHILD: &str = "the live gauges of prometheus_client are removed without it; what a worker does at its end is \
                     `[hooks] worker_exit`";
const TLS: &str = "TLS is for the proxy in front; forkmaster speaks plain HTTP";
const STATIC: &str = "static files are for the proxy in front, or for WhiteNoise in the application";
const ONE_KIND: &str = "there is one kind of worker; set `[server] threads` and remove the line";
const NO_GREENLETS: &str = "there are no gevent or eventlet workers: idle connections and slow clients cost no thread \
                            here; set `[server] threads` to the requests that run at once";
const CHEAPER: &str =
    "the number of workers is fixed by `[server] workers`; signals TTIN and TTOU change it for a time";
const RELOAD: &str = "`forkmaster dev` watches files while you work at them; `forkmaster reload` deploys a change";
const ASKED_FOR: &str = "a reload is asked for: `forkmaster reload`, or HUP";
const ALWAYS: &str = "it is always so here; remove the line";
const OTHER_PROCESSES: &str =
    "a program that runs beside the workers is a [[service]]; anything else is for the supervisor that starts \
     forkmaster";
const SYSLOG: &str = "the log goes to stderr or a file, `[log] error`; journald and others take it from there";
const STRICT: &str = "requests are read strictly, and nothing loosens that; remove the line";
const STATS: &str =
    "`[status] bind` has them for Prometheus and `forkmaster status --json` for people; nothing is sent anywhere";
const STATSD: &str = "there is no statsd; `[status] bind` has the counters for Prometheus";
const LIMITS: &str =
    "limits of processes are for whoever starts forkmaster: LimitNOFILE=, LimitAS=, Nice= and CPUAffinity= of a unit; \
     `[server] max_rss` replaces a worker that has grown";
const WSGI_ONLY: &str = "WSGI is the one interface; remove the line";
const FOREGROUND: &str = "forkmaster stays in the foreground; leave the rest to a supervisor and remove the line";

/// Names without a counterpart of one row, as files write them: with underscores. More than one program may have them.
const WITHOUT_COUNTERPART: &[(&[&str], &str)] = &[
    (&["app_uri"], "the application is `[app] module` here"),
    (&["working_directory"], "the working directory is `[app] release` here"),
    (&["raw_env", "env"], "environment variables go into the table `[env]`"),
    (
        &["ca_certs", "certfile", "keyfile", "cert_reqs", "ciphers", "ssl_version", "ssl_certificate", "ssl_keyfile"],
        TLS,
    ),
    (&["ssl_certfile", "ssl_keyfile_password", "do_handshake_on_connect", "suppress_ragged_eofs", "https"], TLS),
    (&["capture_output"], "the application's output always goes where the master's goes; remove the line"),
    (&["enable_stdio_inheritance"], "the application always inherits stdout and stderr; remove the line"),
    (&["daemon", "daemonize", "daemonize2"], FOREGROUND),
    (&["initgroups"], "supplementary groups always follow `[server] user`; remove the line"),
    (
        &["logconfig", "logconfig_dict", "logconfig_json", "logger_class"],
        "`[log] format` is \"text\" or \"json\"; the application's own logging is its own",
    ),
    (&["log_config", "log_config_json"], "the log has one form; see `[log]`"),
    (&["disable_logging"], "there is no line for each request unless `[log] access` is set; remove the line"),
    (&["syslog", "syslog_addr", "syslog_prefix", "syslog_facility", "log_syslog", "log_syslog_to"], SYSLOG),
    (&["log_syslog_prefix", "log_syslog_facility", "disable_redirect_access_to_syslog"], SYSLOG),
    (&["paste", "paste_global", "ini_paste"], "Paste files are not read; set `[app] module`"),
    (
        &["on_starting", "hook_asap", "hook_pre_app", "hook_as_user", "exec_asap", "exec_pre_app", "exec_as_user"],
        BEFORE,
    ),
    (&["pre_fork", "pre_exec", "worker_int", "worker_abort", "nworkers_changed", "ssl_context"], HOOKS),
    (&["hook_post_fork", "hook_post_app", "exec_post_app", "hook_master_start"], HOOKS),
    (&["pre_request", "post_request"], AROUND),
    (&["child_exit"], CHILD),
    (&["reload"], RELOAD),
    (&["reload_engine", "reload_extra_file", "reload_extra_files", "py_autoreload", "python_autoreload"], RELOAD),
    (&["reload_dir", "reload_include", "reload_exclude", "reload_paths"], RELOAD),
    (&["touch_reload", "touch_workers_reload", "touch_chain_reload", "fs_reload"], ASKED_FOR),
    (&["reuse_port"], "the master's sockets are shared by all workers; remove the line"),
    (&["sendfile", "no_sendfile"], "sendfile is used wherever it can be; remove the line"),
    (&["statsd_host", "statsd_prefix", "dogstatsd_tags", "statsd", "enable_backlog_metric"], STATSD),
    (&["stats", "stats_server", "memory_report", "carbon"], STATS),
    (&["worker_class"], ONE_KIND),
    (&["gevent", "gevent_monkey_patch", "async", "asyncio", "ugreen", "loop"], NO_GREENLETS),
    (&["worker_tmp_dir"], "beats need no file; large bodies go to `[server] temp_dir`"),
    (&["header_map"], "it is like Gunicorn's \"drop\" here; `[http] underscore_headers` lists the exceptions"),
    (&["strip_header_spaces", "permit_obsolete_folding", "permit_unconventional_http_method"], STRICT),
    (&["permit_unconventional_http_version", "casefold_http_method"], STRICT),
    (&["spew"], "there is no tracing of every line; remove the line"),
    (&["check_config"], "run `forkmaster check` instead"),
    (&["print_config", "show_config"], "run `forkmaster config show` instead"),
    (&["default_proc_name"], "the name is `name`, at the top of the file"),
    (&["mount", "manage_script_name"], "one application is mounted at `[app] script_name`"),
    (&["static_map", "static_map2", "check_static", "static_index", "static_expires", "static_safe"], STATIC),
    (&["static_path_mount", "static_path_route"], STATIC),
    (&["master", "master_as_root"], "there always is a master; remove the line"),
    (&["enable_threads", "single_interpreter", "need_app", "die_on_term", "vacuum", "strict", "no_orphans"], ALWAYS),
    (&["harakiri_verbose", "thunder_lock", "close_on_exec", "ignore_sigpipe", "ignore_write_errors"], ALWAYS),
    (&["disable_write_exception", "lazy", "lazy_apps", "close_on_exec2", "http_auto_chunked"], ALWAYS),
    (&["cheaper", "cheaper_initial", "cheaper_algo", "cheaper_step", "cheap", "idle"], CHEAPER),
    (&["cheaper_overload", "cheaper_busyness_max", "cheaper_busyness_min", "cheaper_busyness_multiplier"], CHEAPER),
    (&["cheaper_busyness_penalty", "cheaper_busyness_backlog_alert", "cheaper_busyness_backlog_step"], CHEAPER),
    (&["cheaper_busyness_backlog_multiplier", "cheaper_busyness_backlog_nonzero", "cheaper_rss_limit_soft"], CHEAPER),
    (&["py_call_osafterfork", "py_callos_afterfork", "http_chunked_input", "http_raw_body", "offload_threads"], ALWAYS),
    (
        &["pyargv"],
        "`sys.argv` of the application is its own; hand it over in `[env]`, or as an argument of the factory in `[app] module`",
    ),
    (&["max_fd", "limit_as", "prio", "cpu_affinity", "rlimit_nofile"], LIMITS),
    (&["dirty_apps", "dirty_workers", "dirty_timeout", "dirty_threads", "dirty_graceful_timeout"], OTHER_PROCESSES),
    (&["http_protocols", "http2_cleartext", "http2_max_concurrent_streams"], "HTTP/2 is for the proxy in front"),
    (&["asgi_loop", "asgi_lifespan", "asgi_disconnect_grace_period", "websocket_max_message_size"], WSGI_ONLY),
    (
        &["control_socket_disable", "control_socket_mode"],
        "`[control] socket` says where the control socket lies, or \"none\"; only its own user may use it",
    ),
    (&["raw_paste_global_conf"], "Paste files are not read; remove the line"),
    (&["emperor", "vassal_set", "attach_daemon", "attach_daemon2", "smart_attach_daemon", "cron"], OTHER_PROCESSES),
    (&["mule", "mules", "spooler", "legion", "unique_cron"], OTHER_PROCESSES),
    (&["plugin", "plugins", "plugins_dir"], "nothing needs to be loaded for Python; remove the line"),
    (&["protocol", "http_to", "fastcgi_socket"], "HTTP is spoken on every address of `[server] bind`"),
    (&["factory"], "a factory is called in `[app] module`: \"shop:create_app()\""),
    (&["host", "port"], "an address is one word: `--bind 127.0.0.1:8000`, or `[server] bind`"),
    (&["interface"], "WSGI is the one interface; remove it"),
    (&["runtime_threads", "runtime_mode", "blocking_threads"], "`[server] threads` is all there is to set"),
];

/// One letter, as Gunicorn has them; those that mean the same here are not in it.
const GUNICORN_LETTERS: [(char, &str); 10] = [
    ('t', "timeout"),
    ('k', "worker_class"),
    ('D', "daemon"),
    ('e', "raw_env"),
    ('p', "pid"),
    ('u', "user"),
    ('g', "group"),
    ('m', "umask"),
    ('n', "proc_name"),
    ('R', "enable_stdio_inheritance"),
];

/// What another server means by a name.
enum Meant {
    Setting { of: &'static str, spec: &'static KeySpec },
    Sentence(&'static str),
}

/// uWSGI writes names with hyphens, which may be underscores as well.
fn meant(name: &str) -> Option<Meant> {
    let name = name.replace('-', "_").to_ascii_lowercase();
    let has = |names: &[&str]| names.iter().any(|known| known.replace('-', "_") == name);
    if let Some((_, sentence)) = WITHOUT_COUNTERPART.iter().find(|(names, _)| has(names)) {
        return Some(Meant::Sentence(sentence));
    }
    let setting = |of, names: fn(&KeySpec) -> &'static [&'static str]| {
        KEYS.iter().find(|spec| has(names(spec))).map(|spec| Meant::Setting { of, spec })
    };
    setting("Gunicorn", |spec| spec.gunicorn).or_else(|| setting("uWSGI", |spec| spec.uwsgi))
}

/// Whose configuration is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Gunicorn,
    Uwsgi,
}

/// What a name of another server's means here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// The setting that stands for it, as it is shown.
    Setting(String),
    /// There is none; what to do instead.
    Sentence(&'static str),
}

/// None: that server has no such name either.
pub fn elsewhere(server: Server, name: &str) -> Option<Elsewhere> {
    let own = name.replace('-', "_");
    match meant(name) {
        Some(Meant::Sentence(sentence)) => Some(Elsewhere::Sentence(sentence)),
        Some(Meant::Setting { of, spec }) => {
            let asked = match server {
                Server::Gunicorn => "Gunicorn",
                Server::Uwsgi => "uWSGI",
            };
            // A name of ours, too, is a setting there where both mean the same.
            (of == asked || spec.key == own).then(|| Elsewhere::Setting(spec.shown()))
        }
        // Of Gunicorn's all stand in the tables; another name is a variable of the file's own, as `level`.
        None if server == Server::Gunicorn => None,
        // The same word for the same thing.
        None => KEYS.iter().find(|spec| spec.key == own).map(|spec| Elsewhere::Setting(spec.shown())),
    }
}

/// What is different from what the other server does under that name.
fn differs(of: &str, name: &str) -> &'static str {
    match (of, name) {
        ("uWSGI", "socket" | "uwsgi-socket" | "shared-socket") => {
            ", and HTTP is spoken there: `proxy_pass` in nginx, not `uwsgi_pass`"
        }
        ("uWSGI", "listen") => "; an address is `[server] bind`",
        ("uWSGI", "reload-mercy" | "worker-reload-mercy") => " for a stop, and `[reload] drain_timeout` for a reload",
        ("uWSGI", "wsgi-file") => ", as \"shop.wsgi\" for shop/wsgi.py",
        ("uWSGI", "callable") => ", as \"shop.wsgi:app\"",
        ("Gunicorn", "post_fork" | "post_worker_init") => ", a function without arguments: \"shop.hooks:start\"",
        ("Gunicorn", "when_ready") => ", a command that ends",
        ("Gunicorn", "timeout") => ", and it counts for threaded workers too",
        (_, "pp") => ", as a list",
        (_, _) => "",
    }
}

/// Why a key of `section` is not known, and which was meant.
pub fn unknown_key(section: &str, key: &str) -> String {
    let reason = "unknown key";
    match meant(key) {
        Some(Meant::Sentence(sentence)) => return format!("{reason}; {sentence}"),
        Some(Meant::Setting { spec, .. }) if spec.key == key && spec.section != section => {
            return format!("{reason}; it belongs {}", home(spec.section));
        }
        Some(Meant::Setting { of, spec }) => {
            let place = if spec.section.is_empty() { ", at the top of the file," } else { "" };
            let differs = differs(of, key);
            return format!("{reason}; {of}'s `{key}` is `{}`{place} here{differs}", spec.shown());
        }
        None => {}
    }
    if let Some(spec) = KEYS.iter().find(|spec| spec.key == key) {
        return format!("{reason}; it belongs {}", home(spec.section));
    }
    let here = KEYS.iter().filter(|spec| spec.section == section).map(|spec| spec.key);
    if let Some(name) = nearest(key, here) {
        return format!("{reason}; did you mean `{name}`?");
    }
    match nearest(key, KEYS.iter().map(|spec| spec.key)).and_then(|name| KEYS.iter().find(|spec| spec.key == name)) {
        Some(spec) => format!("{reason}; did you mean `{}`?", spec.shown()),
        // A slip in another server's name.
        None => match nearest(key, names_of_others()) {
            Some(other) => format!("{reason}; did you mean `{other}`? {}", rest_of(&unknown_key(section, other))),
            None => reason.to_owned(),
        },
    }
}

/// What Gunicorn and uWSGI call things, as files write it.
fn names_of_others() -> impl Iterator<Item = &'static str> {
    let others = WITHOUT_COUNTERPART.iter().flat_map(|(names, _)| *names);
    others.chain(KEYS.iter().flat_map(|spec| spec.gunicorn.iter().chain(spec.uwsgi))).copied()
}

/// A sentence without `unknown key; `, which stands before it already.
fn rest_of(said: &str) -> &str {
    said.split_once("; ").map_or(said, |(_, rest)| rest)
}

fn home(section: &str) -> String {
    if section.is_empty() {
        "at the top of the file".to_owned()
    } else {
        format!("to [{section}]")
    }
}

pub fn unknown_section(section: &str) -> String {
    let names = || SECTIONS.iter().map(|(name, _)| *name);
    match nearest(section, names()) {
        Some(name) => format!("unknown section; did you mean [{name}]?"),
        None => {
            let all: Vec<String> = names().map(|name| format!("[{name}]")).collect();
            format!("unknown section; there are {}", all.join(", "))
        }
    }
}

/// What to say of an option that is not ours but Gunicorn's, uWSGI's or another server's: `--timeout`, `-k`. None
/// where nobody has it.
pub fn flag(flag: &str) -> Option<String> {
    let written = flag.split('=').next().unwrap_or_default();
    let name = match written.strip_prefix("--") {
        Some(name) => name.to_owned(),
        None => {
            // `-t 30`, and `-t30`, which clap takes apart.
            let letter = written.strip_prefix('-')?.chars().next()?;
            GUNICORN_LETTERS.iter().find(|(known, _)| *known == letter).map(|(_, name)| (*name).to_owned())?
        }
    };
    let own = name.replace('-', "_");
    let (of, spec) = match meant(&name) {
        Some(Meant::Sentence(sentence)) => return Some(format!("there is no `{written}`: {}", of_a_flag(sentence))),
        Some(Meant::Setting { of, spec }) => (Some(of), spec),
        // A setting of ours that has no option.
        None => (None, KEYS.iter().find(|spec| spec.key == own)?),
    };
    let difference = of.map_or("", |of| differs(of, &name));
    let instead = match (spec.option, spec.variable()) {
        (Some(option), _) => format!("write `{option}`"),
        (None, Some(variable)) => {
            format!("it is `{}` in a configuration file, or the variable {variable}", spec.shown())
        }
        (None, None) => format!("it is `{}` in a configuration file", spec.shown()),
    };
    Some(format!("there is no `{written}`: {instead}{difference}"))
}

fn of_a_flag(sentence: &str) -> String {
    sentence.replace("; remove the line", "; leave it out").replace(" and remove the line", " and leave it out")
}

/// The variable that was meant by `FORKMASTER_WORKERS` or `FORKMASTER_SERVER_WORKERS`.
pub fn variable(name: &str) -> Option<String> {
    let rest = name.strip_prefix("FORKMASTER_")?;
    let single = |variable: &str| variable.trim_start_matches("FORKMASTER_").replace("__", "_");
    let named = |spec: &&KeySpec| {
        let full = spec.variable();
        spec.key.eq_ignore_ascii_case(rest) || full.is_some_and(|full| single(&full) == single(name))
    };
    KEYS.iter().find(named).and_then(KeySpec::variable)
}

/// The candidate closest to `text`, if it is close enough to have been meant.
pub fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let bound = (text.chars().count() / 3).clamp(1, 3);
    candidates.map(|name| (distance(text, name), name)).filter(|(far, _)| *far <= bound).min().map(|(_, name)| name)
}

/// Levenshtein's distance with neighbours swapped counted as one (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let mut best = (above[j] + usize::from(a != b)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && one[i - 1] == *b && other[j - 1] == *a {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[other.len()]
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("wrokers", "workers"), 1);
    }

    #[test]
    fn what_was_meant() {
        assert!(unknown_key("server", "graceful_timout").ends_with("did you mean `graceful_timeout`?"));
        assert!(unknown_key("server", "keepalive_timeout").contains("belongs to [http]"));
        assert!(unknown_key("", "workers").ends_with("it belongs to [server]"));
        assert!(unknown_key("app", "name").contains("at the top of the file"));
        assert!(unknown_key("", "wrokers").contains("did you mean `[server] workers`?"));
        assert_eq!(unknown_key("app", "zzzzzz"), "unknown key");
        let said = unknown_key("server", "timout");
        assert!(said.starts_with("unknown key; did you mean `timeout`? Gunicorn's `timeout` is "), "{said}");
        let said = unknown_key("server", "harakri");
        assert!(said.starts_with("unknown key; did you mean `harakiri`? uWSGI's `harakiri` is "), "{said}");
        assert!(unknown_section("sever").contains("[server]"));
        assert!(unknown_section("zzz").contains("there are [app]"));
    }

    #[test]
    fn other_servers_names_lead_to_what_is_here() {
        let cases = [
            (
                "timeout",
                "Gunicorn's `timeout` is `[server] request_timeout` here, and it counts for threaded workers too",
            ),
            ("chdir", "Gunicorn's `chdir` is `[app] release` here"),
            ("proc_name", "Gunicorn's `proc_name` is `name`, at the top of the file, here"),
            ("reload", "`forkmaster dev` watches files"),
            ("listen", "uWSGI's `listen` is `[server] backlog` here; an address is `[server] bind`"),
            ("processes", "uWSGI's `processes` is `[server] workers` here"),
            ("harakiri", "uWSGI's `harakiri` is `[server] request_timeout` here"),
            ("touch-reload", "`forkmaster reload`, or HUP"),
            ("static-map", "WhiteNoise"),
            ("reload_on_rss", "`[server] max_rss`"),
            ("chmod-socket", "`[server] socket_mode`"),
            ("wsgi-file", "`[app] module` here, as \"shop.wsgi\""),
            ("http-socket", "`[server] bind`"),
            ("socket", "not `uwsgi_pass`"),
            ("post_fork", "`[hooks] worker_start` here, a function without arguments"),
            ("when_ready", "`[hooks] on_ready` here, a command"),
            ("worker_exit", "it belongs to [hooks]"),
            ("on_exit", "it belongs to [hooks]"),
            ("child_exit", "removed without it"),
            ("on_starting", "ExecStartPre="),
            ("mount", "`[app] script_name`"),
        ];
        for (name, words) in cases {
            assert!(unknown_key("server", name).contains(words), "{name}: {}", unknown_key("server", name));
        }
        // Every Gunicorn name of a file that people bring along, and those of uWSGI.
        let names = "reload_extra_files logger_class dogstatsd_tags header_map strip_header_spaces tmp_upload_dir spew \
                     check_config print_config default_proc_name ssl_version enable_stdio_inheritance root_path max-requests-delta \
                     max-worker-lifetime uid gid virtualenv home enable-threads die-on-term vacuum master lazy-apps \
                     buffer-size http-timeout procname-prefix cheaper plugins daemonize logto disable-logging post_fork";
        for name in names.split_whitespace() {
            let said = unknown_key("server", name);
            assert!(said.starts_with("unknown key; ") && !said.contains("did you mean"), "{name}: {said}");
        }
    }

    /// A hint must not point at a key that does not exist, and a name of ours must not be called another server's.
    #[test]
    fn hints_lead_to_keys_of_ours() {
        for (names, sentence) in WITHOUT_COUNTERPART {
            for name in *names {
                assert!(!KEYS.iter().any(|spec| spec.key == *name), "{name} is a key of ours");
                let known = |spec: &KeySpec| spec.gunicorn.iter().chain(spec.uwsgi).any(|other| other == name);
                assert!(!KEYS.iter().any(known), "{name} has a counterpart too");
                assert_eq!(WITHOUT_COUNTERPART.iter().filter(|(other, _)| other.contains(name)).count(), 1, "{name}");
            }
            for (at, _) in sentence.match_indices("`[") {
                let target = sentence[at + 2..].split('`').next().unwrap();
                let (section, key) = target.split_once("] ").unwrap_or((target.trim_end_matches(']'), ""));
                assert!(SECTIONS.iter().any(|(name, _)| *name == section), "{target}");
                assert!(key.is_empty() || keys::find(section, key).is_some(), "{target}");
            }
        }
    }

    #[test]
    fn flags_are_answered_from_the_same_table() {
        let cases = [
            ("--timeout", "`[server] request_timeout` in a configuration file, or the variable FORKMASTER_SERVER__REQUEST_TIMEOUT"),
            ("--timeout=30", "there is no `--timeout`: "),
            ("-t", "request_timeout"),
            ("-k", "one kind of worker; set `[server] threads` and leave it out"),
            ("--worker-class", "one kind of worker"),
            ("-D", "foreground"),
            ("-e", "[env]"),
            ("--env", "[env]"),
            ("--access-logfile", "FORKMASTER_LOG__ACCESS"),
            ("--pid", "FORKMASTER_SERVER__PIDFILE"),
            ("--user", "FORKMASTER_SERVER__USER"),
            ("--chdir", "write `--release`"),
            ("--factory", "create_app()"),
            ("--host", "--bind"),
            ("--port", "--bind"),
            ("--reload", "forkmaster reload"),
            ("--pythonpath", "FORKMASTER_APP__PYTHONPATH"),
            ("--max-requests", "FORKMASTER_SERVER__MAX_REQUESTS"),
            ("--processes", "write `--workers`"),
            ("--check-config", "forkmaster check"),
        ];
        for (option, words) in cases {
            let said = flag(option).unwrap_or_else(|| panic!("{option} is not known"));
            assert!(said.contains(words), "{option}: {said}");
        }
        for option in ["--zzz", "-z", "--", "-", "x"] {
            assert_eq!(flag(option), None, "{option}");
        }
    }

    #[test]
    fn variables_with_one_underscore_are_known_for_what_they_mean() {
        assert_eq!(variable("FORKMASTER_WORKERS").as_deref(), Some("FORKMASTER_SERVER__WORKERS"));
        assert_eq!(variable("FORKMASTER_SERVER_WORKERS").as_deref(), Some("FORKMASTER_SERVER__WORKERS"));
        assert_eq!(variable("FORKMASTER_REQUEST_TIMEOUT").as_deref(), Some("FORKMASTER_SERVER__REQUEST_TIMEOUT"));
        assert_eq!(variable("FORKMASTER_PORT"), None);
    }
}

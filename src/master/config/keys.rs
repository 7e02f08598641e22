//! Every key there is, and what to say about one that is not: a slip of the pen, a key of another section, or a
//! name from Gunicorn.

/// Section (empty: the top of the file) and key.
pub type Key = (&'static str, &'static str);

pub const KEYS: [Key; 59] = [
    ("", "name"),
    ("app", "module"),
    ("app", "release"),
    ("app", "venv"),
    ("app", "python"),
    ("app", "preload"),
    ("app", "pythonpath"),
    ("app", "imports"),
    ("app", "probe"),
    ("app", "env_file"),
    ("server", "bind"),
    ("server", "backlog"),
    ("server", "socket_mode"),
    ("server", "socket_user"),
    ("server", "socket_group"),
    ("server", "workers"),
    ("server", "max_processes"),
    ("server", "threads"),
    ("server", "connections"),
    ("server", "user"),
    ("server", "group"),
    ("server", "umask"),
    ("server", "pidfile"),
    ("server", "max_requests"),
    ("server", "max_requests_jitter"),
    ("server", "max_lifetime"),
    ("server", "max_rss"),
    ("server", "boot_timeout"),
    ("server", "request_timeout"),
    ("server", "graceful_timeout"),
    ("server", "shutdown_delay"),
    ("server", "temp_dir"),
    ("server", "temp_limit"),
    ("server", "response_buffer"),
    ("reload", "max_surge"),
    ("reload", "max_unavailable"),
    ("reload", "drain_timeout"),
    ("reload", "keep_previous"),
    ("http", "keepalive_timeout"),
    ("http", "header_timeout"),
    ("http", "body_timeout"),
    ("http", "write_timeout"),
    ("http", "limit_request_line"),
    ("http", "limit_request_fields"),
    ("http", "limit_request_field_size"),
    ("http", "limit_request_head"),
    ("http", "body_memory"),
    ("http", "max_body"),
    ("http", "forwarded_allow_ips"),
    ("http", "forwarded_headers"),
    ("http", "secure_scheme_headers"),
    ("http", "underscore_headers"),
    ("http", "proxy_protocol"),
    ("log", "level"),
    ("log", "error"),
    ("log", "access"),
    ("log", "access_format"),
    ("control", "socket"),
    // A table of its own, with any prefixes as keys.
    ("server", "request_timeouts"),
];

pub const SECTIONS: [&str; 7] = ["app", "env", "server", "reload", "http", "log", "control"];

/// What Gunicorn calls it, and what to do here.
const GUNICORN: [(&str, &str); 43] = [
    ("access_log_format", "Gunicorn's `access_log_format` is `[log] access_format` here"),
    ("accesslog", "Gunicorn's `accesslog` is `[log] access` here"),
    ("app_uri", "the application is `[app] module` here"),
    ("ca_certs", "TLS is for the proxy in front"),
    ("capture_output", "the application's output always goes where the master's goes; remove the line"),
    ("certfile", "TLS is for the proxy in front"),
    ("chdir", "Gunicorn's `chdir` is `[app] release` here"),
    ("control_socket", "Gunicorn's `control_socket` is `[control] socket` here"),
    ("daemon", "forkmaster stays in the foreground; leave the rest to a supervisor and remove the line"),
    ("errorlog", "Gunicorn's `errorlog` is `[log] error` here"),
    ("forwarder_headers", "Gunicorn's `forwarder_headers` is `[http] forwarded_headers` here"),
    ("initgroups", "supplementary groups always follow `[server] user`; remove the line"),
    ("keepalive", "Gunicorn's `keepalive` is `[http] keepalive_timeout` here"),
    ("keyfile", "TLS is for the proxy in front"),
    ("log_file", "Gunicorn's `log_file` is `[log] error` here"),
    ("log_level", "the name here is `[log] level`"),
    ("logconfig", "the log has one form; see `[log]`"),
    ("loglevel", "Gunicorn's `loglevel` is `[log] level` here"),
    ("on_starting", "there are no hooks: the configuration is not a program"),
    ("paste", "Paste files are not read; set `[app] module`"),
    ("pid", "Gunicorn's `pid` is `[server] pidfile` here"),
    ("post_fork", "there are no hooks: the configuration is not a program"),
    ("post_worker_init", "there are no hooks: the configuration is not a program"),
    ("pre_fork", "there are no hooks: the configuration is not a program"),
    ("preload_app", "Gunicorn's `preload_app` is `[app] preload` here"),
    ("proc_name", "Gunicorn's `proc_name` is `name`, at the top of the file, here"),
    ("raw_env", "Gunicorn's `raw_env` is the table `[env]` here"),
    ("reload_engine", "a reload is asked for: `forkmaster reload`, or HUP"),
    ("reuse_port", "the master's sockets are shared by all workers; remove the line"),
    ("sendfile", "sendfile is used wherever it can be; remove the line"),
    ("statsd_host", "there is no statsd"),
    ("syslog", "the log goes to stderr or a file; see `[log] error`"),
    ("timeout", "Gunicorn's `timeout` is `[server] request_timeout` here"),
    ("when_ready", "there are no hooks: the configuration is not a program"),
    ("worker_class", "there is one kind of worker; set `[server] threads` and remove the line"),
    ("worker_connections", "Gunicorn's `worker_connections` is `[server] connections` here"),
    ("worker_exit", "there are no hooks: the configuration is not a program"),
    ("worker_tmp_dir", "beats need no file; large bodies go to `[server] temp_dir`"),
    ("wsgi_app", "Gunicorn's `wsgi_app` is `[app] module` here"),
    ("working_directory", "the working directory is `[app] release` here"),
    ("virtualenv", "the name here is `[app] venv`"),
    ("env", "environment variables go into the table `[env]`"),
    ("listen", "the name here is `[server] bind`"),
];

/// Why a key of `section` is not known, and which was meant.
pub fn unknown_key(section: &str, key: &str) -> String {
    let reason = "unknown key";
    if let Some((_, advice)) = GUNICORN.iter().find(|(name, _)| *name == key) {
        return format!("{reason}; {advice}");
    }
    if let Some((home, _)) = KEYS.iter().find(|(_, name)| *name == key) {
        return format!(
            "{reason}; it belongs {}",
            if home.is_empty() { "at the top of the file".to_owned() } else { format!("to [{home}]") }
        );
    }
    let here = nearest(key, KEYS.iter().filter(|(home, _)| *home == section).map(|(_, name)| *name));
    if let Some(name) = here {
        return format!("{reason}; did you mean `{name}`?");
    }
    match nearest(key, KEYS.iter().map(|(_, name)| *name)) {
        Some(name) => {
            let home = KEYS.iter().find(|(_, known)| *known == name).map_or("", |(home, _)| *home);
            let home = if home.is_empty() { String::new() } else { format!("[{home}] ") };
            format!("{reason}; did you mean `{home}{name}`?")
        }
        None => reason.to_owned(),
    }
}

pub fn unknown_section(section: &str) -> String {
    match nearest(section, SECTIONS.into_iter()) {
        Some(name) => format!("unknown section; did you mean [{name}]?"),
        None => format!("unknown section; there are {}", SECTIONS.map(|name| format!("[{name}]")).join(", ")),
    }
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
        assert!(unknown_key("server", "timeout").contains("`[server] request_timeout`"));
        assert!(unknown_key("server", "keepalive_timeout").contains("belongs to [http]"));
        assert!(unknown_key("app", "name").contains("at the top of the file"));
        assert!(unknown_key("", "wrokers").contains("did you mean `[server] workers`?"));
        assert_eq!(unknown_key("app", "zzzzzz"), "unknown key");
        assert!(unknown_section("sever").contains("[server]"));
        assert!(unknown_section("zzz").contains("there are [app]"));
    }

    /// A hint must not point at a key that does not exist, and a key must not be called unknown.
    #[test]
    fn gunicorns_names_lead_to_keys_of_ours() {
        for (name, advice) in GUNICORN {
            assert!(!KEYS.iter().any(|(_, key)| *key == name), "{name} is a key of ours");
            for (at, _) in advice.match_indices("`[") {
                let target = advice[at + 2..].split('`').next().unwrap();
                let (section, key) = target.split_once("] ").unwrap_or((target.trim_end_matches(']'), ""));
                assert!(SECTIONS.contains(&section), "{name}: {target}");
                assert!(key.is_empty() || KEYS.contains(&(section_of(section), key_of(key))), "{name}: {target}");
            }
        }
    }

    fn section_of(name: &str) -> &'static str {
        SECTIONS.iter().find(|section| **section == name).unwrap()
    }

    fn key_of(name: &str) -> &'static str {
        KEYS.iter().find(|(_, key)| *key == name).map_or("no such key", |(_, key)| key)
    }
}

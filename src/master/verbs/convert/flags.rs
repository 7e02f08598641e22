//! Gunicorn's command line: `-w 4 --bind=:8000 shop.wsgi`. It is taken apart into names as a configuration file has them.

use std::collections::{BTreeMap, VecDeque};

use serde_json::Value;

use super::evaluate::Meant;
use crate::config;

/// One letter and the setting, as `gunicorn --help` has them.
const LETTERS: [(char, &str); 13] = [
    ('b', "bind"),
    ('w', "workers"),
    ('k', "worker_class"),
    ('t', "timeout"),
    ('D', "daemon"),
    ('e', "raw_env"),
    ('p', "pidfile"),
    ('u', "user"),
    ('g', "group"),
    ('m', "umask"),
    ('n', "proc_name"),
    ('R', "enable_stdio_inheritance"),
    ('c', "config"),
];

/// Where the option is not called as the setting is.
const LONG: [(&str, &str); 24] = [
    ("access_logfile", "accesslog"),
    ("access_logformat", "access_log_format"),
    ("error_logfile", "errorlog"),
    ("log_file", "errorlog"),
    ("log_level", "loglevel"),
    ("log_config", "logconfig"),
    ("log_config_json", "logconfig_json"),
    ("log_syslog", "syslog"),
    ("log_syslog_to", "syslog_addr"),
    ("log_syslog_prefix", "syslog_prefix"),
    ("log_syslog_facility", "syslog_facility"),
    ("env", "raw_env"),
    ("name", "proc_name"),
    ("pid", "pidfile"),
    ("preload", "preload_app"),
    ("keep_alive", "keepalive"),
    ("no_sendfile", "sendfile"),
    ("paster", "paste"),
    ("paste_global", "raw_paste_global_conf"),
    ("reload_extra_file", "reload_extra_files"),
    ("proxy_allow_from", "proxy_allow_ips"),
    ("uwsgi_allow_from", "uwsgi_allow_ips"),
    ("no_control_socket", "control_socket_disable"),
    ("dirty_app", "dirty_apps"),
];

/// Options with a value that are called as the setting is.
#[rustfmt::skip]
const SAME: [&str; 50] = [
    "config", "bind", "backlog", "workers", "worker_class", "threads", "worker_connections", "max_requests",
    "max_requests_jitter", "timeout", "graceful_timeout", "limit_request_line", "limit_request_fields",
    "limit_request_field_size", "reload_engine", "chdir", "worker_tmp_dir", "user", "group", "umask",
    "forwarded_allow_ips", "logger_class", "statsd_host", "statsd_prefix", "dogstatsd_tags", "pythonpath", "paste",
    "proxy_protocol", "protocol", "keyfile", "certfile", "ssl_version", "cert_reqs", "ca_certs", "ciphers",
    "http_protocols", "http2_cleartext", "http2_max_concurrent_streams", "forwarder_headers", "header_map", "asgi_loop",
    "asgi_lifespan", "http_parser", "root_path", "dirty_workers", "dirty_timeout", "dirty_threads",
    "dirty_graceful_timeout", "control_socket", "control_socket_mode",
];

/// Settings whose options have no value.
#[rustfmt::skip]
const SWITCHES: [&str; 20] = [
    "daemon", "preload_app", "reload", "spew", "check_config", "print_config", "reuse_port", "capture_output",
    "initgroups", "syslog", "enable_stdio_inheritance", "disable_redirect_access_to_syslog", "enable_backlog_metric",
    "suppress_ragged_eofs", "do_handshake_on_connect", "permit_obsolete_folding", "strip_header_spaces",
    "permit_unconventional_http_method", "permit_unconventional_http_version", "casefold_http_method",
];

/// Switches that switch something off.
const OFF: [(&str, bool); 2] = [("sendfile", false), ("control_socket_disable", true)];

/// What may be given more than once.
const LISTS: [&str; 4] = ["bind", "raw_env", "reload_extra_files", "raw_paste_global_conf"];

/// What stands before Gunicorn's name and only starts it.
#[rustfmt::skip]
const STARTERS: [&str; 15] = [
    "exec", "env", "command", "nohup", "time", "-m", "-u", "--", "run", "poetry", "uv", "pipenv", "pdm", "hatch", "rye",
];

/// A command line.
#[derive(Debug, Default, PartialEq)]
pub struct Flags {
    /// By their names; `config` is the file that `-c` names, `wsgi_app` the application.
    pub settings: BTreeMap<String, Meant>,
    /// `NAME=value` before the command.
    pub variables: Vec<(String, String)>,
    /// A program around Gunicorn, that of an agent: `newrelic-admin run-program`.
    pub wrapper: Vec<String>,
}

pub fn read(words: &[String]) -> Result<Flags, String> {
    let mut flags = Flags::default();
    let mut words: VecDeque<String> = words.iter().cloned().collect();
    if let Some(whole) = words.front().filter(|word| word.contains("gunicorn ") && words.len() == 1) {
        return Err(format!("write the command without quotes around all of it: forkmaster convert -- {whole}"));
    }
    if words.front().is_some_and(|word| last(word) == "uwsgi") {
        return Err(
            "this is uWSGI's command line, and convert reads Gunicorn's: write each option, `--key value`, as a line \
                    `key = value` below [uwsgi] into a file site.ini, and convert that"
                .to_owned(),
        );
    }
    // A whole command line may be pasted.
    let command = words.iter().position(|word| last(word) == "gunicorn");
    let is_value = |at: usize| at > 0 && words[at - 1].starts_with('-') && words[at - 1] != "-m";
    if let Some(at) = command.filter(|at| !is_value(*at)) {
        let before: Vec<String> = words.drain(..=at).take(at).collect();
        flags.before(before);
    }
    let mut settings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    while let Some(word) = words.pop_front() {
        let (name, attached) = match (word.strip_prefix("--"), word.strip_prefix('-')) {
            (Some(long), _) => {
                let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
                (setting(name)?.to_owned(), value.map(str::to_owned))
            }
            (None, Some(short)) => {
                let mut letters = short.chars();
                let letter = letters.next().ok_or("`-` is no option of Gunicorn")?;
                let name = LETTERS.iter().find(|(known, _)| *known == letter);
                let name = name.ok_or_else(|| format!("`-{letter}` is no option of Gunicorn that sets anything"))?.1;
                let rest = letters.as_str();
                if SWITCHES.contains(&name) && !rest.is_empty() {
                    words.push_front(format!("-{rest}"));
                }
                let rest = rest.trim_start_matches('=');
                (name.to_owned(), Some(rest.to_owned()).filter(|rest| !rest.is_empty()))
            }
            (None, None) => {
                if let Some(before) = settings.insert("wsgi_app".to_owned(), vec![Value::String(word.clone())]) {
                    let before: Vec<&str> = before.iter().filter_map(Value::as_str).collect();
                    return Err(format!(
                        "two words stand where one application is meant: `{}` and `{word}`",
                        before.join(" ")
                    ));
                }
                continue;
            }
        };
        let is_version = |word: &String| ["off", "v1", "v2", "auto"].contains(&word.as_str());
        let value = match OFF.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => Value::Bool(*value),
            None if SWITCHES.contains(&name.as_str()) => Value::Bool(true),
            // Its value may be left out, and until version 24 it had none.
            None if name == "proxy_protocol" && attached.is_none() && !words.front().is_some_and(is_version) => {
                Value::Bool(true)
            }
            None => {
                let value = attached.or_else(|| words.pop_front()).ok_or_else(|| format!("`{word}` has no value"))?;
                Value::String(value)
            }
        };
        settings.entry(name).or_default().push(value);
    }
    let whole = |(name, mut values): (String, Vec<Value>)| {
        let value = match LISTS.contains(&name.as_str()) {
            true => Value::Array(values),
            // The last one counts.
            false => values.pop().unwrap_or(Value::Null),
        };
        let meant = match with_variables(&value) {
            Some(named) => Meant { value: named, ..Meant::variables(value) },
            None => Meant::constant(value),
        };
        (name, meant)
    };
    flags.settings = settings.into_iter().map(whole).collect();
    Ok(flags)
}

/// Words of a variable, as a shell has them (Gunicorn: shlex.split).
pub fn split(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None, None);
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_with(String::new);
            }
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            (_, _) => word.get_or_insert_with(String::new).push(letter),
        }
    }
    words.extend(word);
    words
}

impl Flags {
    /// What Gunicorn's variable says stands below what the command line says.
    pub fn below(mut self, other: Flags) -> Flags {
        self.settings.extend(other.settings);
        Flags { settings: self.settings, ..other }
    }

    /// What stands before Gunicorn's name.
    fn before(&mut self, words: Vec<String>) {
        for word in words {
            let variable = word.split_once('=').filter(|(name, _)| {
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            });
            if let Some((name, value)) = variable {
                self.variables.push((name.to_owned(), value.to_owned()));
            } else if !STARTERS.contains(&word.as_str()) && !last(&word).starts_with("python") {
                self.wrapper.push(word);
            }
        }
    }
}

/// What platforms set, and what Gunicorn has where they do not.
const PLATFORM: [(&str, &str); 2] = [("PORT", "8000"), ("WEB_CONCURRENCY", "1")];

/// A value that was pasted in single quotes, `0.0.0.0:$PORT`: with `${PORT:-8000}`. None: there is no variable in it.
fn with_variables(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => named(text).map(Value::String),
        Value::Array(items) => {
            let items: Vec<Option<Value>> = items.iter().map(with_variables).collect();
            items.iter().any(Option::is_some).then(|| {
                let whole = items.into_iter().zip(as_items(value));
                Value::Array(whole.map(|(named, plain)| named.unwrap_or(plain)).collect())
            })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

fn as_items(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn named(text: &str) -> Option<String> {
    let mut written = String::new();
    let mut rest = text;
    let mut found = false;
    while let Some((before, after)) = rest.split_once('$') {
        written.push_str(before);
        let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, tail) = match after.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            Some((name, tail)) => (name, tail),
            None => after.split_at(after.find(|c| !is_letter(c)).unwrap_or(after.len())),
        };
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let default = PLATFORM.iter().find(|(known, _)| *known == name).map(|(_, default)| format!(":-{default}"));
        written.push_str(&format!("${{{name}{}}}", default.unwrap_or_default()));
        (rest, found) = (tail, true);
    }
    written.push_str(rest);
    found.then_some(written)
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The setting of a long option. As Gunicorn does, this takes a beginning for the whole where only one option begins so.
fn setting(option: &str) -> Result<&'static str, String> {
    let name = option.replace('-', "_");
    let spelled = SWITCHES.iter().filter(|known| **known != "preload_app" && **known != "syslog").chain(&SAME);
    let known: Vec<(&str, &str)> = spelled.map(|known| (*known, *known)).chain(LONG).collect();
    if let Some((_, setting)) = known.iter().find(|(known, _)| *known == name) {
        return Ok(setting);
    }
    let begun: Vec<&(&str, &str)> = known.iter().filter(|(known, _)| known.starts_with(&name)).collect();
    if let ([(_, setting)], false) = (begun.as_slice(), name.is_empty()) {
        return Ok(setting);
    }
    let meant = config::nearest(&name, known.iter().map(|(known, _)| *known));
    let meant = meant.map_or(String::new(), |meant| format!("; did you mean `--{}`?", meant.replace('_', "-")));
    Err(format!("`--{option}` is no option of Gunicorn that sets anything{meant}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::evaluate::MadeOf;
    use super::*;

    #[test]
    fn a_command_line_is_read_as_gunicorn_reads_it() {
        let words =
            "gunicorn -w4 -k gthread --threads=8 -b :8000 --bind unix:/run/x --preload -t 30 --access-logfile - \
                     -e A=1 -c conf.py shop.wsgi:app";
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let settings = read(&words).unwrap().settings;
        let values: Vec<(&str, &Value)> = settings.iter().map(|(name, meant)| (name.as_str(), &meant.value)).collect();
        assert_eq!(
            values,
            [
                ("accesslog", &json!("-")),
                ("bind", &json!([":8000", "unix:/run/x"])),
                ("config", &json!("conf.py")),
                ("preload_app", &json!(true)),
                ("raw_env", &json!(["A=1"])),
                ("threads", &json!("8")),
                ("timeout", &json!("30")),
                ("worker_class", &json!("gthread")),
                ("workers", &json!("4")),
                ("wsgi_app", &json!("shop.wsgi:app")),
            ]
        );
        assert_eq!(split("-w 2  -e 'A=x y' --name \"\""), ["-w", "2", "-e", "A=x y", "--name", ""]);
        assert!(read(&["-x".to_owned()]).unwrap_err().starts_with("`-x` is no option of Gunicorn"));
        assert_eq!(read(&["--workers".to_owned()]), Err("`--workers` has no value".to_owned()));
    }

    fn of(line: &str) -> Result<Flags, String> {
        read(&line.split_whitespace().map(str::to_owned).collect::<Vec<String>>())
    }

    #[test]
    fn what_stands_before_the_command_is_told_apart() {
        for line in ["exec gunicorn", "python3 -m gunicorn", "/srv/venv/bin/python -m gunicorn", "uv run gunicorn"] {
            let flags = of(&format!("{line} -w 2 shop.wsgi")).unwrap();
            assert_eq!((flags.variables, flags.wrapper), (vec![], vec![]), "{line}");
            assert_eq!(flags.settings.keys().collect::<Vec<_>>(), ["workers", "wsgi_app"], "{line}");
        }
        let flags = of("env A=1 newrelic-admin run-program /venv/bin/gunicorn --name gunicorn shop.wsgi").unwrap();
        assert_eq!(flags.variables, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(flags.wrapper, ["newrelic-admin", "run-program"]);
        assert_eq!(flags.settings["proc_name"].value, json!("gunicorn"));
        // A name alone is a value.
        assert_eq!(of("--name gunicorn shop.wsgi").unwrap().settings["wsgi_app"].value, json!("shop.wsgi"));
    }

    #[test]
    fn options_without_a_value_take_no_word_that_follows() {
        let line =
            "--proxy-protocol --strip-header-spaces --do-handshake-on-connect --no-control-socket --no-sendfile -DR \
                    --disable-redirect-access-to-syslog shop.wsgi";
        let settings = of(line).unwrap().settings;
        assert_eq!(settings["wsgi_app"].value, json!("shop.wsgi"));
        let on =
            ["proxy_protocol", "strip_header_spaces", "daemon", "enable_stdio_inheritance", "control_socket_disable"];
        assert!(on.iter().all(|name| settings[*name].value == json!(true)), "{settings:?}");
        assert_eq!(settings["sendfile"].value, json!(false));
        assert_eq!(of("--proxy-protocol v2 shop.wsgi").unwrap().settings["proxy_protocol"].value, json!("v2"));
        assert_eq!(of("--access-logfo=x").unwrap().settings["access_log_format"].value, json!("x"));
    }

    #[test]
    fn variables_of_a_shell_stay_variables() {
        let settings =
            of("-b 0.0.0.0:$PORT -b :81 -w ${WEB_CONCURRENCY} -t ${T:-30} -n a$ shop.wsgi").unwrap().settings;
        assert_eq!(settings["bind"].value, json!(["0.0.0.0:${PORT:-8000}", ":81"]));
        assert_eq!(settings["workers"].value, json!("${WEB_CONCURRENCY:-1}"));
        assert_eq!(settings["timeout"].value, json!("${T:-30}"));
        assert_eq!((settings["timeout"].made_of, settings["wsgi_app"].made_of), (MadeOf::Variables, MadeOf::Constant));
        assert_eq!(settings["proc_name"].value, json!("a$"));
    }

    #[test]
    fn what_gunicorn_would_refuse_is_refused() {
        for (line, said) in [
            ("--timeot 30 shop.wsgi", "did you mean `--timeout`?"),
            ("--worker 2 shop.wsgi", "did you mean `--workers`?"),
            ("--http :8000 shop.wsgi", "`--http` is no option of Gunicorn"),
            ("--version", "`--version` is no option of Gunicorn that sets anything"),
            ("shop.wsgi other.wsgi", "`shop.wsgi` and `other.wsgi`"),
            ("uwsgi --http :8000 --master", "uWSGI's command line"),
        ] {
            let refused = of(line).unwrap_err();
            assert!(refused.contains(said), "{line}: {refused}");
        }
        let refused = read(&["gunicorn -w 4 shop.wsgi".to_owned()]).unwrap_err();
        assert!(refused.contains("without quotes"), "{refused}");
    }
}

//! Gunicorn's command line: `-w 4 --bind=:8000 shop.wsgi`. It is taken apart into names as a configuration file has them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::evaluate::Meant;

/// One letter and the setting, as `gunicorn --help` has them.
const LETTERS: [(char, &str); 14] = [
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
    ('s', "spew"),
];

/// Where the option is not called as the setting is.
const LONG: [(&str, &str); 16] = [
    ("access_logfile", "accesslog"),
    ("access_logformat", "access_log_format"),
    ("error_logfile", "errorlog"),
    ("log_file", "errorlog"),
    ("log_level", "loglevel"),
    ("log_config", "logconfig"),
    ("log_syslog", "syslog"),
    ("log_syslog_to", "syslog_addr"),
    ("env", "raw_env"),
    ("name", "proc_name"),
    ("pid", "pidfile"),
    ("preload", "preload_app"),
    ("keep_alive", "keepalive"),
    ("worker_tmp_dir", "worker_tmp_dir"),
    ("forwarded_allow_ips", "forwarded_allow_ips"),
    ("proxy_allow_from", "proxy_allow_ips"),
];

/// Options without a value.
const SWITCHES: [&str; 12] = [
    "daemon",
    "preload_app",
    "reload",
    "spew",
    "check_config",
    "print_config",
    "reuse_port",
    "capture_output",
    "no_sendfile",
    "initgroups",
    "syslog",
    "enable_stdio_inheritance",
];

/// What may be given more than once.
const LISTS: [&str; 2] = ["bind", "raw_env"];

/// Settings by their names; `config` is the file that `-c` names, `wsgi_app` the application.
pub fn read(words: &[String]) -> Result<BTreeMap<String, Meant>, String> {
    let mut settings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut words = words.iter().map(String::as_str).peekable();
    // A whole command line may be pasted.
    if words.peek().is_some_and(|word| word.rsplit('/').next() == Some("gunicorn")) {
        words.next();
    }
    while let Some(word) = words.next() {
        let (name, attached) = match (word.strip_prefix("--"), word.strip_prefix('-')) {
            (Some(long), _) => {
                let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
                let name = name.replace('-', "_");
                let known = LONG.iter().find(|(option, _)| *option == name).map(|(_, setting)| (*setting).to_owned());
                (known.unwrap_or(name), value)
            }
            (None, Some(short)) => {
                let mut letters = short.chars();
                let letter = letters.next().ok_or("`-` is no option of Gunicorn")?;
                let name = LETTERS.iter().find(|(known, _)| *known == letter);
                let name = name.ok_or_else(|| format!("`-{letter}` is no option of Gunicorn"))?.1.to_owned();
                let rest = letters.as_str().trim_start_matches('=');
                (name, Some(rest).filter(|rest| !rest.is_empty()))
            }
            (None, None) => {
                settings.insert("wsgi_app".to_owned(), vec![Value::String(word.to_owned())]);
                continue;
            }
        };
        let value = if SWITCHES.contains(&name.as_str()) {
            Value::Bool(true)
        } else {
            let value = attached.or_else(|| words.next()).ok_or_else(|| format!("`{word}` has no value"))?;
            Value::String(value.to_owned())
        };
        settings.entry(name).or_default().push(value);
    }
    let whole = |(name, mut values): (String, Vec<Value>)| {
        let value = match LISTS.contains(&name.as_str()) {
            true => Value::Array(values),
            // The last one counts.
            false => values.pop().unwrap_or(Value::Null),
        };
        (name, Meant::constant(value))
    };
    Ok(settings.into_iter().map(whole).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_line_is_read_as_gunicorn_reads_it() {
        let words =
            "gunicorn -w4 -k gthread --threads=8 -b :8000 --bind unix:/run/x --preload -t 30 --access-logfile - \
                     -e A=1 -c conf.py shop.wsgi:app";
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let settings = read(&words).unwrap();
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
        assert_eq!(read(&["-x".to_owned()]), Err("`-x` is no option of Gunicorn".to_owned()));
        assert_eq!(read(&["--workers".to_owned()]), Err("`--workers` has no value".to_owned()));
    }
}

//! Words and options that are nobody's here: slips in a verb, and what other servers and service
//! managers call things. They are answered with what to type instead; none of them may start a master by accident.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config;

const VERBS: [&str; 32] = [
    "run",
    "check",
    "validate",
    "configtest",
    "config",
    "convert",
    "status",
    "list",
    "ps",
    "health",
    "reload",
    "promote",
    "abandon",
    "rollback",
    "history",
    "report",
    "pause",
    "resume",
    "wait",
    "stop",
    "shutdown",
    "scale",
    "recycle",
    "upgrade",
    "reopen-logs",
    "dump",
    "events",
    "logs",
    "ctl",
    "dev",
    "completions",
    "man",
];

/// Verbs of systemctl, supervisorctl, circusctl, docker and caddy, and what does that here.
const VERBS_OF_OTHERS: &[(&str, &str)] = &[
    (
        "restart",
        "`forkmaster reload` deploys what is on disk without an outage, and `forkmaster upgrade` takes a new forkmaster",
    ),
    (
        "start",
        "`forkmaster -c app.toml` serves until it is told to stop; a service manager starts it in the background",
    ),
    ("up", "`forkmaster -c app.toml` serves until it is told to stop; a service manager starts it in the background"),
    ("serve", "`forkmaster -c app.toml` serves; the verb for it is `run`"),
    ("down", "`forkmaster stop` stops the service"),
    ("quit", "`forkmaster stop` stops the service once its requests are answered"),
    ("kill", "`forkmaster stop --now` stops the service without waiting for its requests"),
    (
        "enable",
        "a service manager starts it at boot: docs/systemd.md has a unit for `systemctl enable --now forkmaster@shop`",
    ),
    ("disable", "a service manager starts it at boot: `systemctl disable` and the name of its unit ends that"),
    ("is-active", "`forkmaster health` ends with 0 if the service answers"),
    ("update", "`forkmaster reload` takes new code and a changed configuration"),
    ("reread", "`forkmaster reload` takes a changed configuration, and changes nothing if it is wrong"),
    ("daemon-reload", "`forkmaster reload` takes a changed configuration, and changes nothing if it is wrong"),
    ("deploy", "`forkmaster reload` deploys what is on disk without an outage"),
    ("test", "`forkmaster check` checks the configuration, and with --boot the application too"),
    ("top", "`forkmaster status --watch` shows the service again each second"),
    ("stats", "`forkmaster status --json` has the figures, and `[status] bind` offers /metrics"),
    ("inspect", "`forkmaster status --json` says all that is known"),
    ("version", "`forkmaster --version` says it"),
    ("tail", "`forkmaster logs` follows the log files"),
    ("migrate", "`forkmaster convert gunicorn.conf.py` makes a configuration of Gunicorn's or uWSGI's"),
    ("from-gunicorn", "`forkmaster convert gunicorn.conf.py` makes a configuration of Gunicorn's"),
    ("adapt", "`forkmaster convert gunicorn.conf.py` makes a configuration of Gunicorn's or uWSGI's"),
    ("init", "`forkmaster config init` writes a commented app.toml for the application of this directory"),
];

/// What Gunicorn, uWSGI and others call an option is answered with what it is here, not with what looks similar.
pub fn known_elsewhere(failed: clap::Error, converts: bool) -> clap::Error {
    if let Some(ContextValue::String(word)) = failed.get(ContextKind::InvalidSubcommand) {
        return error(ErrorKind::UnknownArgument, one_too_many(word));
    }
    let Some(ContextValue::String(option)) = failed.get(ContextKind::InvalidArg) else {
        return failed;
    };
    match (failed.kind(), config::hints::flag(option)) {
        (ErrorKind::UnknownArgument, _) if converts && option.starts_with('-') => {
            let text = format!("Gunicorn's own options go after `--`: forkmaster convert -- {option} ..");
            error(ErrorKind::UnknownArgument, text)
        }
        (ErrorKind::UnknownArgument, Some(sentence)) => error(ErrorKind::UnknownArgument, sentence),
        (ErrorKind::UnknownArgument, None) if !option.starts_with('-') => {
            error(ErrorKind::UnknownArgument, one_too_many(option))
        }
        (_, _) => failed,
    }
}

fn one_too_many(word: &str) -> String {
    format!(
        "`{word}` is one word too many: one module, \"shop.wsgi:app\", or one verb is what stands there; a master is named by \
         -c or --name, and a program of the application (manage.py, flask) is for Python to run"
    )
}

/// `-t` alone checks the configuration, as nginx has it. With a number it is Gunicorn's timeout.
pub fn check_timeout(arguments: &[OsString]) -> Result<(), clap::Error> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let texts: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
    let apart = texts.windows(2).any(|pair| pair[0] == "-t" && is_number(pair[1]));
    let is_timeout = apart || texts.iter().any(|text| text.strip_prefix("-t").is_some_and(is_number));
    match config::hints::flag("-t").filter(|_| is_timeout) {
        Some(sentence) => Err(error(ErrorKind::UnknownArgument, sentence)),
        None => Ok(()),
    }
}

pub fn check_module_or_verb(word: &str) -> Result<(), clap::Error> {
    let instead = format!("To serve a module of that name: forkmaster run {word}");
    if let Some((_, text)) = VERBS_OF_OTHERS.iter().find(|(verb, _)| *verb == word) {
        return Err(error(ErrorKind::InvalidSubcommand, format!("there is no verb `{word}`: {text}\n\n{instead}")));
    }
    if let Some(verb) = config::nearest(word, VERBS.into_iter().filter(|verb| verb.len() > 2)) {
        return Err(error(
            ErrorKind::InvalidSubcommand,
            format!("there is no verb `{word}`; did you mean `{verb}`?\n\n{instead}"),
        ));
    }
    // No module has a hyphen in its name.
    if let Some(verb) = word.split_once('-').and_then(|(first, _)| VERBS.into_iter().find(|verb| *verb == first)) {
        return Err(error(
            ErrorKind::InvalidSubcommand,
            format!("there is no verb `{word}`; `forkmaster {verb} --help` says what may follow `{verb}`"),
        ));
    }
    if word.ends_with(".toml") {
        return Err(error(
            ErrorKind::ValueValidation,
            format!("a configuration file goes after -c: forkmaster -c {word}"),
        ));
    }
    Ok(())
}

/// An error of the arguments in our own words.
pub fn error(kind: ErrorKind, text: String) -> clap::Error {
    clap::Error::raw(kind, text + "\n")
}

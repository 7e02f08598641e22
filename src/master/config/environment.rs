//! The environment of a generation and the expansion of `${NAME}` in settings. The start environment is what the
//! master was given, without what was meant for the master alone; `env_file` and `[env]` go on top of it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use forkmaster_wire::alias::{self, Alias};

pub type Environment = BTreeMap<OsString, OsString>;

/// The supervisor's protocol with the master (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)): a worker that
/// inherited it would speak for the master.
const MEANT_FOR_THE_MASTER: [&str; 7] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// They make an interpreter another one than its path says (PYTHONHOME and `__PYVENV_LAUNCHER__` in CPython's
/// getpath.py, PYENV_VERSION in pyenv's shims).
pub const MISLEAD_THE_INTERPRETER: [&str; 3] = ["PYTHONHOME", "__PYVENV_LAUNCHER__", "PYENV_VERSION"];

/// Where there is no PATH: what execvp(3) and shells fall back to, with /usr/local.
pub const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// The start environment without the supervisor's protocol variables.
pub fn of_a_generation(start: &Environment) -> Environment {
    let mut environment = start.clone();
    for name in MEANT_FOR_THE_MASTER {
        environment.remove(OsStr::new(name));
    }
    environment
}

/// What `activate` of a venv does, for `venv`, or what `deactivate` does, without one: an environment that was
/// inherited from an activated venv loses that one's PATH entry.
pub fn activate(environment: &mut Environment, venv: Option<&Path>) {
    let previous = environment.remove(OsStr::new("VIRTUAL_ENV")).map(|venv| Path::new(&venv).join("bin"));
    environment.remove(OsStr::new("VIRTUAL_ENV_PROMPT"));
    for name in MISLEAD_THE_INTERPRETER {
        environment.remove(OsStr::new(name));
    }
    let path = environment.get(OsStr::new("PATH")).cloned();
    let own = venv.map(|venv| venv.join("bin"));
    let rest: Vec<_> = std::env::split_paths(path.as_deref().unwrap_or(OsStr::new(PATH_DEFAULT)))
        .filter(|entry| Some(entry) != previous.as_ref() && Some(entry) != own.as_ref())
        .collect();
    if let Some(venv) = venv {
        let mut value = venv.join("bin").into_os_string().into_vec();
        for entry in &rest {
            value.push(b':');
            value.extend_from_slice(entry.as_os_str().as_bytes());
        }
        environment.insert("PATH".into(), OsString::from_vec(value));
        environment.insert("VIRTUAL_ENV".into(), venv.into());
    } else if path.is_some() {
        // The entries come from splitting at colons, so none holds one.
        environment.insert(
            "PATH".into(),
            rest.iter().map(|entry| entry.as_os_str()).collect::<Vec<_>>().join(OsStr::new(":")),
        );
    }
}

/// Directories in PYTHONPATH are followed once, as those of `[app] pythonpath` are: a flip must not lead the workers of a
/// generation to modules of the next release. What is relative begins at the release, and an empty entry is the release.
pub fn pin_python_path(environment: &mut Environment, aliases: &[Alias]) {
    let Some(value) = environment.get_mut(OsStr::new("PYTHONPATH")) else {
        return;
    };
    let pinned = |entry: PathBuf| match entry.is_absolute() {
        true => {
            let entry = alias::pinned(aliases, &entry).unwrap_or(entry);
            entry.canonicalize().unwrap_or(entry)
        }
        false => entry,
    };
    let entries: Vec<_> = std::env::split_paths(value).map(pinned).map(PathBuf::into_os_string).collect();
    let text = entries.join(OsStr::new(":"));
    // A real name with a colon in it cannot be written here.
    if !entries.iter().any(|entry| entry.as_bytes().contains(&b':')) {
        *value = text;
    }
}

/// Names that exec(3) and shells can carry.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) || name.chars().any(char::is_whitespace) {
        return Err(format!("`{}` is not a name of an environment variable", name.escape_debug()));
    }
    Ok(())
}

/// Names whose values are not for the eye.
pub fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let words = ["KEY", "SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "DSN", "CREDENTIAL"];
    words.iter().any(|word| name.contains(word)) || has_userinfo(value)
}

/// `postgres://user:password@host/`: RFC 3986 section 3.2.1.
fn has_userinfo(value: &str) -> bool {
    value
        .split_once("://")
        .is_some_and(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default().contains('@'))
}

/// A string after expansion.
#[derive(Debug, PartialEq, Eq)]
pub struct Expanded {
    pub text: String,
    /// The whole string was one `${...}`, so it may stand for a number or a boolean.
    pub whole: bool,
}

/// `${NAME}`, `${NAME:-default}` (also where NAME is empty, as in a shell) and `$$`. Any other `$` is refused: it is
/// someone who expects `$NAME` to work, or a password that would be cut silently elsewhere.
pub fn expand(text: &str, variables: &Environment) -> Result<Expanded, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut whole = false;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let from = &rest[at..];
        if let Some(after) = from.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let Some(inside) = from.strip_prefix("${") else {
            return Err("a `$` is written `$$`, or `${NAME}` to use a variable".to_owned());
        };
        let Some((inside, after)) = inside.split_once('}') else {
            return Err("`${` without its `}`".to_owned());
        };
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let named = !name.is_empty() && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric());
        if !named {
            return Err(format!("`${{{inside}}}` is not understood; write `${{NAME}}` or `${{NAME:-default}}`"));
        }
        match (variables.get(OsStr::new(name)), default) {
            (Some(value), Some(default)) if value.is_empty() => out.push_str(default),
            (Some(value), _) => {
                out.push_str(value.to_str().ok_or_else(|| format!("the variable {name} is not UTF-8"))?)
            }
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!("the variable {name} is not set; set it, or write `${{{name}:-default}}`"));
            }
        }
        whole = at == 0 && rest.len() == text.len() && after.is_empty();
        rest = after;
    }
    out.push_str(rest);
    Ok(Expanded { text: out, whole })
}

/// A line of an env_file that cannot be read, without its value.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLine {
    pub line: usize,
    pub reason: String,
}

/// An env_file: KEY=VALUE lines, `#` comments, quotes, `export`; nothing is expanded.
pub fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, Vec<BadLine>> {
    let mut variables = Vec::new();
    let mut errors = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        match parse_env_line(line.trim()) {
            Ok(Some(variable)) => variables.push(variable),
            Ok(None) => {}
            Err(reason) => errors.push(BadLine { line: index + 1, reason }),
        }
    }
    if errors.is_empty() {
        Ok(variables)
    } else {
        Err(errors)
    }
}

fn parse_env_line(line: &str) -> Result<Option<(String, String)>, String> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        Some(_) | None => line,
    };
    let (name, value) = line.split_once('=').ok_or("not KEY=VALUE")?;
    let name = name.trim_end();
    check_name(name)?;
    let value = value.trim_start();
    let (value, rest) = match value.chars().next() {
        Some('\'') => {
            value[1..].split_once('\'').map(|(value, rest)| (value.to_owned(), rest)).ok_or("unclosed quote")?
        }
        Some('"') => parse_double_quoted(&value[1..])?,
        // As in a shell, `#` begins a comment only after a blank: `COLOR=#fff` and `URL=a#b` are values.
        Some(_) | None => {
            let end = value.find(" #").or_else(|| value.find("\t#")).unwrap_or(value.len());
            (value[..end].trim_end().to_owned(), "")
        }
    };
    let rest = rest.trim_start();
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err("text after the closing quote".to_owned());
    }
    if value.contains('\0') {
        return Err("a NUL byte in the value".to_owned());
    }
    Ok(Some((name.to_owned(), value)))
}

fn parse_double_quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, escaped @ ('"' | '\\' | '$' | '`'))) => value.push(escaped),
                Some((_, other)) => value.extend(['\\', other]),
                None => break,
            },
            other => value.push(other),
        }
    }
    Err("unclosed quote".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn expansion() {
        let variables = environment(&[("A", "1"), ("EMPTY", "")]);
        let expanded = |text: &str| expand(text, &variables).map(|e| (e.text, e.whole));
        assert_eq!(expanded("${A}"), Ok(("1".into(), true)));
        assert_eq!(expanded("${A}${A}"), Ok(("11".into(), false)));
        assert_eq!(expanded("a-${A}-$$-${B:-x y}"), Ok(("a-1-$-x y".into(), false)));
        assert_eq!(expanded("$$${A}"), Ok(("$1".into(), false)));
        assert_eq!(expanded("${EMPTY:-x}${EMPTY}"), Ok(("x".into(), false)));
        assert_eq!(expanded("${B:-}"), Ok((String::new(), true)));
        assert!(expanded("${B}").unwrap_err().contains("${B:-default}"));
        assert!(expanded("$A").unwrap_err().contains("$$"));
        assert!(expanded("pa$").unwrap_err().contains("$$"));
        assert!(expanded("${A").unwrap_err().contains('}'));
        assert!(expanded("${}").is_err());
        assert!(expanded("${A:+x}").is_err());
    }

    #[test]
    fn env_files() {
        let text = "\u{feff}# comment\n\nA=1\nexport B = 'two # words' # why\nC=\"a\\n\\\"b\\$\"\r\nURL=http://h/#x\nD=v # c\nE=\nexported=y\n";
        let expected = [
            ("A", "1"),
            ("B", "two # words"),
            ("C", "a\n\"b$"),
            ("URL", "http://h/#x"),
            ("D", "v"),
            ("E", ""),
            ("exported", "y"),
        ];
        let expected: Vec<_> = expected.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert_eq!(parse_env_file(text), Ok(expected));
        let errors = parse_env_file("A=1\nhunter2\nP='x\nQ=\"x\" y\n A B=1\nR=\"x\\").unwrap_err();
        assert_eq!(errors.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert!(!errors[0].reason.contains("hunter2"));
    }

    #[test]
    fn activation_replaces_another_venv() {
        let mut variables = environment(&[
            ("PATH", "/old/bin:/usr/bin"),
            ("VIRTUAL_ENV", "/old"),
            ("VIRTUAL_ENV_PROMPT", "old"),
            ("PYTHONHOME", "/x"),
            ("PYENV_VERSION", "3.8"),
        ]);
        let mut plain = variables.clone();
        activate(&mut variables, Some(Path::new("/new")));
        assert_eq!(variables, environment(&[("PATH", "/new/bin:/usr/bin"), ("VIRTUAL_ENV", "/new")]));
        activate(&mut plain, None);
        assert_eq!(plain, environment(&[("PATH", "/usr/bin")]));
        let mut empty = Environment::new();
        activate(&mut empty, None);
        assert_eq!(empty, Environment::new());
        activate(&mut empty, Some(Path::new("/v")));
        assert_eq!(empty[OsStr::new("PATH")], "/v/bin:/usr/local/bin:/usr/bin:/bin");
    }

    #[test]
    fn the_python_path_is_followed_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        for made in ["41/lib", "42/lib", "agents/2"] {
            std::fs::create_dir_all(root.join(made)).unwrap();
        }
        // The link leads elsewhere by now.
        std::os::unix::fs::symlink("42", root.join("current")).unwrap();
        std::os::unix::fs::symlink("2", root.join("agents/current")).unwrap();
        let aliases = [Alias { name: root.join("current"), real: root.join("41") }];
        let root_text = root.to_str().unwrap();
        let path = |entries: &str| entries.replace('~', root_text);
        let mut variables = environment(&[("PYTHONPATH", &path("~/current/lib:~/agents/current::lib:/gone"))]);
        pin_python_path(&mut variables, &aliases);
        let expected = path("~/41/lib:~/agents/2::lib:/gone");
        assert_eq!(variables, environment(&[("PYTHONPATH", &expected)]));
        let mut none = Environment::new();
        pin_python_path(&mut none, &aliases);
        assert_eq!(none, Environment::new());
    }

    #[test]
    fn the_supervisors_variables_stay_with_the_master() {
        let start =
            environment(&[("NOTIFY_SOCKET", "@n"), ("LISTEN_FDS", "1"), ("WATCHDOG_USEC", "1"), ("LISTEN_ADDR", "x")]);
        assert_eq!(of_a_generation(&start), environment(&[("LISTEN_ADDR", "x")]));
    }

    #[test]
    fn secrets() {
        for (name, value) in [("DJANGO_SECRET_KEY", ""), ("sentry_dsn", ""), ("DATABASE_URL", "postgres://u:p@h/db")] {
            assert!(is_secret(name, value), "{name}");
        }
        assert!(!is_secret("DJANGO_SETTINGS_MODULE", "shop.settings"));
        assert!(!is_secret("HOME_URL", "http://h/@me"));
    }
}

//! The configuration file exactly as written: every value with the line it stands on, nothing defaulted, nothing
//! resolved. Keys that do not exist and sections of the wrong type are found here; what a value means is said in
//! `read`.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::Spanned;

use super::hints::{unknown_key, unknown_section};
use super::keys::{self, Key, KeySpec, REQUEST_TIMEOUTS, SECTIONS};
use super::problem::Problem;
use crate::files::{self, Rights};

/// Far more than anyone writes, and little enough to read at once.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Values in messages are cut to this.
const SHOWN_CHARS_MAX: usize = 80;

/// A file as written.
#[derive(Clone, Debug, Default)]
pub struct File {
    pub entries: BTreeMap<Key, Written>,
    /// `[env]`, in the order of the names.
    pub env: Vec<(String, Written)>,
    /// `[server.request_timeouts]`.
    pub request_timeouts: Vec<(String, Written)>,
    /// `[[service]]`, each a table.
    pub services: Vec<Written>,
}

/// A value and the line it stands on (from 1; 0 where it comes from no file).
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub line: usize,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    /// Text that may stand for a number, a boolean or a comma-separated list: it comes from a variable, from the
    /// command line, or was one whole `${NAME}`.
    Loose(String),
    /// As written, so that `0o660` can be told from 432, and its value where it fits.
    Integer {
        text: String,
        value: Option<i64>,
    },
    Boolean(bool),
    List(Vec<Written>),
    Table(Vec<(String, Written)>),
    /// Floats and dates: no setting is one.
    Other {
        kind: &'static str,
        text: String,
    },
}

impl Value {
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Text(_) | Value::Loose(_) => "a string",
            Value::Integer { .. } => "a number",
            Value::Boolean(_) => "a boolean",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
            Value::Other { kind, .. } => kind,
        }
    }

    /// As it would be written in the file, cut; for messages.
    pub fn shown(&self) -> String {
        let text = match self {
            Value::Text(text) | Value::Loose(text) => quoted(text),
            Value::Integer { text, .. } | Value::Other { text, .. } => text.clone(),
            Value::Boolean(boolean) => boolean.to_string(),
            Value::List(list) => {
                format!("[{}]", list.iter().map(|item| item.value.shown()).collect::<Vec<_>>().join(", "))
            }
            Value::Table(table) => {
                let entries: Vec<_> =
                    table.iter().map(|(key, item)| format!("{key} = {}", item.value.shown())).collect();
                format!("{{ {} }}", entries.join(", "))
            }
        };
        match text.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((at, _)) => format!("{}...", &text[..at]),
            None => text,
        }
    }
}

/// A string as TOML writes it.
pub fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Reads a file that must be a regular one: a reload reads it again, which a pipe does not survive, and opening one
/// could wait for ever. The path is where it really lies, found on the way: a flip between two look-ups must not mix
/// the file of one release with the path of another.
pub fn read_text(path: &Path) -> Result<(String, PathBuf), String> {
    text(path, files::read(path))
}

/// The same with a user's rights, where this process is root. `because` says why, after "since".
pub fn read_text_as(path: &Path, rights: &Rights, because: String) -> Result<(String, PathBuf), String> {
    text(path, files::read_as(path, rights, because))
}

fn text(path: &Path, opened: io::Result<(std::fs::File, PathBuf)>) -> Result<(String, PathBuf), String> {
    let (file, real) = opened.map_err(|error| super::interpreter::missing(path, "file", &error))?;
    let meta = file.metadata().map_err(|error| super::interpreter::reason(&error))?;
    if !meta.is_file() {
        let inside = path.join("app.toml");
        let hint = if inside.is_file() { format!("; did you mean {}?", inside.display()) } else { String::new() };
        return Err(format!("{} is not a regular file{hint}", path.display()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| super::interpreter::reason(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{} is larger than 1 MiB", path.display()));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        format!("line {line} of {} is not UTF-8; save the file as UTF-8", path.display())
    })?;
    Ok((text, real))
}

/// Other servers' configurations are another language, of which no line makes sense as TOML.
pub fn foreign(shown: &str) -> Option<String> {
    if Path::new(shown).extension()? == "json" {
        return Some(
            "JSON, and forkmaster reads TOML: write a line `[app]`, and below it `module = \"shop.wsgi\"`".to_owned(),
        );
    }
    let (of, what) = match Path::new(shown).extension()?.to_str()? {
        "py" => ("Gunicorn", "a program"),
        "ini" | "xml" | "yaml" | "yml" => ("uWSGI or another server", "not TOML"),
        _toml => return None,
    };
    Some(format!(
        "a configuration of {of} is {what}, and forkmaster reads TOML: `forkmaster convert {shown}` makes one of it"
    ))
}

/// Takes a file apart. `shown` is its name in messages. Without the syntax, nothing can be said about the keys, so
/// problems are either all about the one or all about the other.
pub fn parse(text: &str, shown: &str) -> Result<(File, Vec<Problem>), Vec<Problem>> {
    let lines = Lines::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(syntax_problems(&errors, &lines, shown));
    }
    let mut reading = Reading { lines, shown, file: File::default(), problems: Vec::new() };
    reading.top(table.get_ref());
    Ok((reading.file, reading.problems))
}

struct Reading<'a> {
    lines: Lines<'a>,
    shown: &'a str,
    file: File,
    problems: Vec<Problem>,
}

impl Reading<'_> {
    fn top(&mut self, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let line = self.lines.line(key.span());
            let section = SECTIONS.iter().map(|(section, _)| *section).find(|section| *section == name);
            match (section, value.get_ref()) {
                (Some(section), DeValue::Table(table)) => self.section(section, table),
                // Gunicorn's `reload = true`.
                (Some("reload"), DeValue::Boolean(_)) => {
                    self.problem(
                        line,
                        "reload",
                        "[reload] is a section here; nothing watches files: after a change run `forkmaster reload`",
                    );
                }
                (Some(section), other) => {
                    let reason = format!("a section, not {}; write [{section}] on a line of its own", article(other));
                    self.problem(line, section, &reason);
                }
                (None, DeValue::Array(_)) if name == "service" => {
                    if let Value::List(services) = self.written(value.span(), value.get_ref()).value {
                        self.file.services = services;
                    }
                }
                (None, DeValue::Table(_)) if name == "service" => {
                    self.problem(line, "[service]", "write [[service]], with two brackets: there may be several");
                }
                (None, DeValue::Table(_)) => self.problem(line, &format!("[{name}]"), &unknown_section(name)),
                (None, value_here) => match known("", name) {
                    Some(key) => {
                        let written = self.written(value.span(), value_here);
                        self.file.entries.insert(key, written);
                    }
                    None => self.problem(line, name, &unknown_key("", name)),
                },
            }
        }
    }

    fn section(&mut self, section: &'static str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let line = self.lines.line(key.span());
            let written = self.written(value.span(), value.get_ref());
            if section == "env" {
                self.file.env.push((name.to_owned(), Written { line, ..written }));
                continue;
            }
            match (known(section, name), written.value) {
                (Some(REQUEST_TIMEOUTS), Value::Table(table)) => self.file.request_timeouts = table,
                (Some(REQUEST_TIMEOUTS), other) => {
                    let reason =
                        format!("a table, not {}; write [server.request_timeouts] on a line of its own", other.kind());
                    self.problem(line, "[server] request_timeouts", &reason);
                }
                (Some(key), value) => {
                    self.file.entries.insert(key, Written { line, value });
                }
                (None, _) => self.problem(line, &format!("[{section}] {name}"), &unknown_key(section, name)),
            }
        }
    }

    fn written(&self, span: Range<usize>, value: &DeValue<'_>) -> Written {
        let item = |item: &Spanned<DeValue<'_>>| self.written(item.span(), item.get_ref());
        let value = match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(integer) => {
                let value = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
                Value::Integer { text: integer.to_string(), value }
            }
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Array(array) => Value::List(array.iter().map(item).collect()),
            DeValue::Table(table) => {
                let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                    let key: &std::borrow::Cow<'_, str> = key.get_ref();
                    (key.to_string(), item(value))
                };
                Value::Table(table.iter().map(entry).collect())
            }
            DeValue::Float(float) => Value::Other { kind: "a fraction", text: float.to_string() },
            DeValue::Datetime(date) => Value::Other { kind: "a date", text: date.to_string() },
        };
        Written { line: self.lines.line(span), value }
    }

    fn problem(&mut self, line: usize, what: &str, reason: &str) {
        let place = format!("{}:{line}", self.shown);
        self.problems.push(Problem::new(place, format_args!("{what}: {reason}")).at_line(Some(line)));
    }
}

fn known(section: &str, name: &str) -> Option<Key> {
    keys::find(section, name).map(KeySpec::at)
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list (one bracket, not two)",
        DeValue::Table(_) => "a table",
    }
}

fn syntax_problems(errors: &[toml::de::Error], lines: &Lines<'_>, shown: &str) -> Vec<Problem> {
    let mut problems: Vec<(usize, Problem)> = Vec::new();
    for error in errors {
        let start = error.span().map_or(0, |span| span.start);
        let (line, column) = lines.position(start);
        // One slip makes several errors in its line; the first one is about it.
        if problems.iter().any(|(known, _)| *known == line) {
            continue;
        }
        let source = lines.text_of(line).trim();
        let first = if error.message().contains("duplicate") { lines.first_like(line) } else { None };
        let first = first.map(|first| format!("; the first one is in line {first}")).unwrap_or_default();
        let text = format!("not valid TOML: {} in: {source}{first}", error.message());
        problems.push((line, Problem::new(format!("{shown}:{line}:{column}"), text).at_line(Some(line))));
    }
    problems.into_iter().map(|(_, problem)| problem).collect()
}

/// Byte offsets to lines.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, starts }
    }

    /// From 1.
    fn line(&self, span: Range<usize>) -> usize {
        self.starts.partition_point(|start| *start <= span.start)
    }

    /// Line and column, both from 1, the column in characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line(offset..offset);
        let start = self.starts[line - 1];
        let before = self.text.get(start..offset.min(self.text.len())).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    /// The first line with the same header, or with the same key under the same header. The file cannot be parsed, so
    /// this goes by the look of its lines.
    fn first_like(&self, line: usize) -> Option<usize> {
        let named = |text: &'a str| {
            let text = text.trim();
            let end = if text.starts_with('[') { text.find('#') } else { text.find('=') };
            text[..end.unwrap_or(text.len())].trim()
        };
        let mut header = "";
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for text in self.text.lines().take(line) {
            let name = named(text);
            if name.starts_with('[') {
                header = name;
            }
            seen.push((header, name));
        }
        let last = seen.pop()?;
        // A header stands under itself, its second occurrence under that one.
        seen.iter().position(|earlier| *earlier == last).map(|at| at + 1)
    }

    fn text_of(&self, line: usize) -> &'a str {
        self.text.lines().nth(line - 1).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let list = match parse(text, "app.toml") {
            Ok((_, problems)) | Err(problems) => problems,
        };
        list.into_iter().map(|problem| super::super::problem::Problems::from(problem).to_string()).collect()
    }

    #[test]
    fn values_keep_their_lines() {
        let text = "name = \"shop\"\n[server]\nbind = [\n  \"a\",\n  \"b\",\n]\nsocket_mode = 0o660\n[env]\nA = \"1\"\n[server.request_timeouts]\n\"/r/\" = \"1m\"\n";
        let (file, problems) = parse(text, "app.toml").unwrap();
        assert!(problems.is_empty());
        let Value::List(bind) = &file.entries[&("server", "bind")].value else { panic!("not a list") };
        assert_eq!(bind.iter().map(|item| item.line).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(file.entries[&("server", "bind")].line, 3);
        assert_eq!(file.entries[&("server", "socket_mode")].value.shown(), "0o660");
        assert_eq!(file.env, [("A".to_owned(), Written { line: 9, value: Value::Text("1".into()) })]);
        assert_eq!(file.request_timeouts[0].1.line, 11);
    }

    #[test]
    fn unknown_keys_and_sections_are_all_found() {
        let text =
            "workers = 1\n[server]\ngraceful_timout = \"1s\"\ntimeout = 30\n[sever]\n[[http]]\n[app]\nchdir = \"/x\"\n";
        let found = problems(text);
        let expected = [
            "app.toml:8: [app] chdir: unknown key; Gunicorn's `chdir` is `[app] release` here",
            "app.toml:6: http: a section, not a list (one bracket, not two); write [http] on a line of its own",
            "app.toml:3: [server] graceful_timout: unknown key; did you mean `graceful_timeout`?",
            "app.toml:4: [server] timeout: unknown key; Gunicorn's `timeout` is `[server] request_timeout` here, and it counts for threaded workers too",
            "app.toml:5: [sever]: unknown section; did you mean [server]?",
            "app.toml:1: workers: unknown key; it belongs to [server]",
        ];
        for line in expected {
            assert!(found.iter().any(|problem| problem == line), "{line}\n{found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        assert!(problems("reload = true")[0].contains("forkmaster reload"));
        assert!(problems("[server]\nrequest_timeouts = \"1s\"")[0].contains("[server.request_timeouts]"));
    }

    #[test]
    fn syntax_errors_name_line_column_and_text() {
        let found = problems("[server]\nworkers = = 4\nthreads = 1\nthreads = 2\n");
        assert!(found[0].starts_with("app.toml:2:11: not valid TOML: "), "{found:?}");
        assert!(found[0].ends_with("in: workers = = 4"), "{found:?}");
        assert!(
            found.iter().any(|problem| problem.starts_with("app.toml:4:1: ") && problem.contains("duplicate")),
            "{found:?}"
        );
        assert!(problems("a = \"x")[0].starts_with("app.toml:1:"));
        // A duplicate is told with where the first one was.
        let text =
            "[app]\nmodule = \"a\"\n[server]\nworkers = 1\nthreads = 2\nworkers=3\n[app] # again\nmodule = \"b\"\n";
        let found = problems(text);
        assert!(found[0].ends_with("in: workers=3; the first one is in line 4"), "{found:?}");
        assert!(found[1].ends_with("in: [app] # again; the first one is in line 1"), "{found:?}");
    }

    #[test]
    fn configurations_of_other_servers_are_known_by_their_names() {
        assert!(foreign("deploy/gunicorn.conf.py").is_some_and(|said| said.contains("Gunicorn is a program")));
        assert!(foreign("uwsgi.ini").is_some_and(|said| said.contains("forkmaster convert uwsgi.ini")));
        assert_eq!((foreign("app.toml"), foreign("app")), (None, None));
    }

    #[test]
    fn files_that_are_not_files() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert!(read_text(&root.join("none")).unwrap_err().contains("there is no file"));
        assert!(read_text(root).unwrap_err().contains("not a regular file"));
        std::fs::write(root.join("app.toml"), [0xff]).unwrap();
        assert!(read_text(root).unwrap_err().contains("did you mean"));
        assert!(read_text(&root.join("app.toml")).unwrap_err().contains("UTF-8"));
        std::fs::write(root.join("large"), vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(read_text(&root.join("large")).unwrap_err().contains("1 MiB"));
        std::os::unix::fs::symlink("gone", root.join("link")).unwrap();
        assert!(read_text(&root.join("link")).unwrap_err().contains("dangling"));
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(read_text(&root.join("pipe")).unwrap_err().contains("not a regular file"));
    }
}

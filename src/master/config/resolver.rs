//! One reading of the configuration under way: asks the layers for each setting, notes what is wrong instead of
//! stopping at it, and keeps each value and where it came from. What a section means is said in `read` and `release`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::environment::{self, Environment};
use super::file::{self, File, Value, Written};
use super::keys::{self, Key, KeySpec};
use super::layers::{expanded, Entry, Layers};
use super::problem::{Problem, Problems};
use super::process_context::ProcessContext;
use super::values::{Place, Setting};
use super::{Effective, Origin, Source};

pub struct Resolver<'a> {
    pub context: &'a ProcessContext,
    pub place: Place,
    layers: Layers,
    pub file: File,
    file_problems: Vec<Problem>,
    /// The config file's name in messages; without a file, what stands for it.
    pub shown: String,
    /// What the default name is made of: the config file by name, or the current directory.
    pub identity_path: PathBuf,
    /// What `${NAME}` sees: the start environment and env_file.
    pub variables: Environment,
    /// Names that env_file or `[env]` set.
    pub explicit: Vec<OsString>,
    pub problems: Vec<Problem>,
    pub warnings: Vec<String>,
    effective: Vec<Effective>,
    /// `forkmaster dev`.
    pub dev: bool,
    /// Where variables were read from.
    pub env_file_at: Option<PathBuf>,
}

impl<'a> Resolver<'a> {
    pub fn new(source: &Source, context: &'a ProcessContext) -> Result<Resolver<'a>, Problems> {
        let (shown, file, file_problems, named, real, identity_path) = match &source.file {
            None => {
                let here = context.cwd.clone();
                ("command line".to_owned(), File::default(), Vec::new(), here.clone(), here.clone(), here)
            }
            Some(config) => {
                let problem = |reason: String| Problems::from(Problem::new(&config.shown, reason));
                let (text, real) = file::read_text(&config.path).map_err(problem)?;
                let (file, problems) = match file::parse(&text, &config.shown) {
                    Ok(parsed) if parsed.1.is_empty() => parsed,
                    Ok(parsed) => match file::foreign(&config.shown) {
                        // `workers = 4` is a line of TOML as well.
                        Some(reason) => return Err(problem(reason)),
                        None => parsed,
                    },
                    Err(syntax) => {
                        if let Some(reason) = file::foreign(&config.shown) {
                            return Err(problem(reason));
                        }
                        Problems::check(syntax)?;
                        (File::default(), Vec::new())
                    }
                };
                let parent = |path: &Path| path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
                let shown = config.shown.clone();
                (shown, file, problems, parent(&config.path), parent(&real), config.path.clone())
            }
        };
        let mut warnings = Vec::new();
        let layers = Layers::new(source, &context.environment, &file, &shown, &mut warnings);
        Ok(Resolver {
            context,
            place: Place { named, real, cpus: context.cpus },
            layers,
            file,
            file_problems,
            shown,
            identity_path,
            variables: environment::of_a_generation(&context.environment),
            explicit: Vec::new(),
            problems: Vec::new(),
            warnings,
            effective: Vec::new(),
            dev: source.overrides.dev,
            env_file_at: None,
        })
    }

    /// Whether anything is wrong, in the settings or with the names in the file; else what was noted of each setting.
    pub fn finish(mut self) -> Result<(Vec<String>, Vec<Effective>), Problems> {
        self.problems.append(&mut self.file_problems);
        Problems::check(self.problems)?;
        self.effective.sort_by_key(|setting| keys::rank(setting.section, &setting.key));
        Ok((self.warnings, self.effective))
    }

    // Reading a setting.

    /// A setting of one of the types that `values` knows.
    pub fn get<T: Setting>(&mut self, section: &'static str, key: &'static str) -> T {
        let place = self.place.clone();
        let kind = spec(section, key).kind;
        self.get_with(section, key, |value| T::parse(value, kind, &place), |value| value.show(kind))
    }

    /// A setting with a default in the table and a type of its own. A value that is wrong is noted and replaced by the
    /// default, so that all problems are found in one go.
    pub fn get_with<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        parse: impl Fn(&Value) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        let at = (section, key);
        let entry = self.entry(at);
        if let Some(Entry { value, origin }) = &entry {
            match parse(value) {
                Ok(parsed) => {
                    self.note(at, show(&parsed), origin.clone());
                    return parsed;
                }
                Err(reason) => self.problem(at, value, origin, &reason),
            }
        }
        let default = spec(section, key).default.value().map(|value| parse(&value));
        let Some(Ok(default)) = default else {
            unreachable!("{}: the table's default is not read: {:?}", keys::shown(at), default.and_then(Result::err));
        };
        if entry.is_none() {
            self.note(at, show(&default), Origin::Default);
        }
        default
    }

    /// A setting that may be not set, so that the table has only words for it. None where it is wrong, too.
    pub fn optional<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let at = (section, key);
        let Entry { value, origin } = self.entry(at)?;
        match parse(&value) {
            Ok(parsed) => {
                self.note(at, show(&parsed), origin);
                Some(parsed)
            }
            Err(reason) => {
                self.problem(at, &value, &origin, &reason);
                None
            }
        }
    }

    /// A list of strings. Each wrong one is a problem of its own, with its own line.
    pub fn list<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
        show: impl Fn(&T) -> String,
    ) -> Vec<T> {
        let at = (section, key);
        let (value, origin) = match (self.entry(at), spec(section, key).default.value()) {
            (Some(Entry { value, origin }), _) => (value, origin),
            (None, Some(value)) => (value, Origin::Default),
            (None, None) => return Vec::new(),
        };
        let items = match &value {
            Value::List(items) => items.clone(),
            Value::Loose(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| Written { line: 0, value: Value::Text(item.to_owned()) }).collect()
            }
            Value::Text(text) => {
                // What the text was to be several of.
                let items: Vec<&str> = match at {
                    ("app", "pythonpath") => text.split(':').collect(),
                    ("hooks", _command) => text.split_whitespace().collect(),
                    _item => vec![text],
                };
                let items: Vec<String> = items.into_iter().map(file::quoted).collect();
                self.problem(at, &value, &origin, &format!("a list is needed; write [{}]", items.join(", ")));
                return Vec::new();
            }
            other => {
                self.problem(at, &value, &origin, &format!("a list of strings is needed, not {}", other.kind()));
                return Vec::new();
            }
        };
        let mut list = Vec::new();
        for item in items {
            match super::values::string(&item.value).and_then(&parse) {
                Ok(parsed) => list.push(parsed),
                Err(reason) => {
                    let origin = match &origin {
                        Origin::File { shown, .. } if item.line > 0 => {
                            Origin::File { shown: shown.clone(), line: item.line }
                        }
                        other => other.clone(),
                    };
                    self.problem(at, &item.value, &origin, &reason);
                }
            }
        }
        let shown: Vec<String> = list.iter().map(show).collect();
        self.note(at, format!("[{}]", shown.join(", ")), origin);
        list
    }

    /// A value as far as it can be told now; what is wrong with it is said by `entry`.
    pub fn peek(&self, key: Key) -> Option<Value> {
        let (_, entry) = self.layers.find(key)?;
        match entry.origin.line() {
            None => Some(entry.value.clone()),
            Some(_) => expanded(&entry.value, &self.variables).ok(),
        }
    }

    /// The highest entry of a key, expanded where it comes from the file. A failed expansion is noted once, however
    /// often the key is asked for.
    pub fn entry(&mut self, key: Key) -> Option<Entry> {
        let (_, entry) = self.layers.find(key)?;
        let entry = entry.clone();
        if entry.origin.line().is_none() {
            return Some(entry);
        }
        match expanded(&entry.value, &self.variables) {
            Ok(value) => Some(Entry { value, origin: entry.origin }),
            Err(reason) => {
                self.problem(key, &entry.value, &entry.origin, &reason);
                None
            }
        }
    }

    /// How high the layer of a key is, 0 for the highest; None where it is not set.
    pub fn height(&self, key: Key) -> Option<usize> {
        self.layers.find(key).map(|(height, _)| height)
    }

    pub fn origin(&self, key: Key) -> Origin {
        self.layers.origin(key)
    }

    // Noting.

    /// The value in effect and where it came from.
    pub fn note(&mut self, (section, key): Key, value: String, origin: Origin) {
        self.effective.push(Effective { section, key: key.to_owned(), value, origin });
    }

    pub fn note_entry(&mut self, section: &'static str, key: String, value: String, origin: Origin) {
        self.effective.push(Effective { section, key, value, origin });
    }

    pub fn problem(&mut self, key: Key, value: &Value, origin: &Origin, reason: &str) {
        let text = format!("{} = {}: {reason}", keys::shown(key), value.shown());
        let problem = match origin {
            Origin::CommandLine(option) => Problem::new(option, text),
            Origin::Default => Problem::new(&self.shown, text),
            Origin::File { .. } | Origin::Variable(_) | Origin::Found(_) => Problem::new(origin, text),
        };
        self.problems.push(problem.at_line(origin.line()));
    }

    /// A problem that shows only beside other settings; of nobody where the setting was not written.
    pub fn refuse(&mut self, key: Key, reason: &str) {
        if let Some(Entry { value, origin }) = self.entry(key) {
            self.problem(key, &value, &origin, reason);
        }
    }

    /// A problem of a setting that is not written.
    pub fn missing(&mut self, key: Key, reason: &str) {
        self.problems.push(Problem::new(&self.shown, format_args!("{}: {reason}", keys::shown(key))));
    }
}

fn spec(section: &'static str, key: &'static str) -> &'static KeySpec {
    match keys::find(section, key) {
        Some(spec) => spec,
        None => unreachable!("{} has no row in the table", keys::shown((section, key))),
    }
}

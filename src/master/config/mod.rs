//! Settings, from what was written to what is meant. `keys` is the one table of them; `file` holds a file exactly as
//! written, `layers` puts the command line and variables beside it, and `read` makes `settings::Settings` of all that
//! and reports every problem at once. Called at
//! the start and afresh at every reload: the file is opened again by its name, and the release and its venv are
//! followed again. Nothing else in the project reads a file or a variable for settings.

use std::fmt;
use std::path::PathBuf;

mod access_format;
mod address;
pub mod again;
mod callable;
pub mod canary;
pub mod change;
mod control_places;
pub mod directory;
pub mod discovery;
pub mod environment;
pub mod file;
pub mod hints;
mod hooks;
mod identity;
mod interpreter;
mod journal;
mod keys;
mod layers;
pub mod passed;
mod probe;
pub mod problem;
pub mod process_context;
mod proxies;
mod read;
pub mod reference;
mod release;
mod resolver;
mod revision;
pub mod schema;
pub mod services;
pub mod settings;
pub mod starter;
mod stream_bodies;
pub mod units;
mod values;

pub use address::SUN_PATH_BYTES_MAX;
pub use file::quoted;
pub use hints::{elsewhere, nearest, Elsewhere, Server};
pub use keys::{rank, shown, Key};
pub use read::{control, read};
pub use values::{parse_count, parse_descriptor, parse_workers};

use serde::{Deserialize, Serialize};
use settings::Settings;

use crate::saved::{constant, Constant};

/// The Python that runs what lies in a directory where nothing is configured: as for a release.
pub fn python_for(directory: &std::path::Path, context: &process_context::ProcessContext) -> Result<PathBuf, String> {
    let variable = |name: &str| context.environment.get(std::ffi::OsStr::new(name));
    let activated = variable("VIRTUAL_ENV").filter(|venv| !venv.is_empty()).map(PathBuf::from);
    let own = context.executable.as_deref().and_then(interpreter::own_venv);
    let found = match (interpreter::in_release(directory), activated.or(own)) {
        (Some(found), _) => found,
        (None, Some(venv)) => interpreter::from_venv(&venv, "VIRTUAL_ENV"),
        (None, None) => interpreter::on_path(variable("PATH").map(std::ffi::OsString::as_os_str)),
    };
    found.map(|interpreter| interpreter.executable)
}

/// Where settings come from, besides variables: fixed by the command line for the life of the master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// None: a module on the command line, with the current directory as the release.
    pub file: Option<ConfigFile>,
    pub overrides: Overrides,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Absolute by name: a symlink in it is followed afresh at each reload.
    pub path: PathBuf,
    /// As it was typed, for messages.
    pub shown: String,
}

/// The command line's settings, above all others. Paths are absolute already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub module: Option<String>,
    pub name: Option<String>,
    pub release: Option<String>,
    pub venv: Option<String>,
    pub python: Option<String>,
    pub preload: Option<String>,
    pub bind: Vec<String>,
    pub workers: Option<String>,
    pub threads: Option<String>,
    pub notify_fd: Option<String>,
    pub log_level: Option<String>,
    /// `forkmaster dev`: somebody works at the application.
    pub dev: bool,
}

/// One reading of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loaded {
    pub settings: Settings,
    /// A sentence each.
    pub warnings: Vec<String>,
    /// Every setting, its effective value and where it came from, in the order of the documentation.
    pub effective: Vec<Effective>,
}

/// One setting in `config show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// Empty: the top of the file.
    #[serde(deserialize_with = "constant")]
    pub section: Constant,
    pub key: String,
    /// As it would be written in the file; secrets are masked.
    pub value: String,
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The option's name, `--workers`.
    #[serde(deserialize_with = "constant")]
    CommandLine(Constant),
    /// `FORKMASTER_SERVER__WORKERS`, `WEB_CONCURRENCY`.
    Variable(String),
    File {
        shown: String,
        line: usize,
    },
    Default,
    /// Found rather than set: `venv in the release`.
    #[serde(deserialize_with = "constant")]
    Found(Constant),
}

impl Origin {
    fn line(&self) -> Option<usize> {
        match self {
            Origin::File { line, .. } => Some(*line),
            Origin::CommandLine(_) | Origin::Variable(_) | Origin::Default | Origin::Found(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::CommandLine("MODULE") => f.write_str("command line"),
            Origin::CommandLine("dev") => f.write_str("forkmaster dev"),
            Origin::CommandLine(option) => write!(f, "command line, {option}"),
            Origin::Variable(name) => f.write_str(name),
            Origin::File { shown, line } => write!(f, "{shown}:{line}"),
            Origin::Default => f.write_str("default"),
            Origin::Found(how) => f.write_str(how),
        }
    }
}

impl Loaded {
    /// What `config show` prints: a configuration file of its own, origins as comments. `explain`: what each setting is for
    /// stands above it.
    pub fn show(&self, explain: bool) -> String {
        let mut text = String::new();
        let mut section = "";
        let mut of_service = "";
        for setting in &self.effective {
            if setting.section == services::SECTION {
                let (name, key) = setting.key.rsplit_once('.').unwrap_or(("", &setting.key));
                if name != of_service {
                    of_service = name;
                    text.push_str("\n[[service]]\n");
                }
                let line = format!("{key} = {}", setting.value);
                text.push_str(&format!("{line:<48}  # {}\n", setting.origin));
                continue;
            }
            if setting.section != section {
                section = setting.section;
                text.push_str(&format!("\n[{section}]\n"));
            }
            if let Some(spec) = keys::find(section, &setting.key).filter(|_| explain) {
                text.push_str(&format!("\n{}", reference::commented(spec.doc)));
            }
            let line = format!("{} = {}", setting.key, setting.value);
            text.push_str(&format!("{line:<48}  # {}\n", setting.origin));
        }
        text
    }
}

#[cfg(test)]
mod tests;

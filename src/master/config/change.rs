//! What a reload changes, and what of it must wait for a restart. A reload that changes what is fixed with the process
//! goes on with the old value and says so: it is put back before anything is derived from it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::keys::{self, Applies};
use super::settings::{Control, Identity, Settings, Status};
use super::Effective;

/// Values in a line of the log are cut to this.
const SHOWN_CHARS_MAX: usize = 60;

/// What is fixed with the process. A reload is read with that of the predecessor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fixed {
    pub name: String,
    pub identity: Option<Identity>,
    pub pidfile: Option<PathBuf>,
    pub control: Control,
    pub status: Status,
}

impl Fixed {
    pub fn of(settings: &Settings) -> Fixed {
        Fixed {
            name: settings.name.clone(),
            identity: settings.server.identity.clone(),
            pidfile: settings.server.pidfile.clone(),
            control: settings.control.clone(),
            status: settings.status.clone(),
        }
    }

    /// A sentence for each setting that is written otherwise now.
    pub fn differences(&self, written: &Fixed) -> Vec<String> {
        // Where the control socket has its name from `name`, one sentence is enough.
        let renamed = self.name != written.name;
        let both_auto = self.control.is_auto() && written.control.is_auto();
        let control = self.control.socket != written.control.socket && !(renamed && both_auto);
        let changed = [
            ("name", renamed),
            ("[server] user, group", self.identity != written.identity),
            ("[server] pidfile", self.pidfile != written.pidfile),
            ("[control] socket", control),
            ("[control] history", self.control.history != written.control.history),
            ("[status] bind", self.status != written.status),
        ];
        let sentence =
            |key: &str| format!("{key} has changed: it takes effect with a restart; the reload goes on without it");
        changed.iter().filter(|(_, changed)| *changed).map(|(key, _)| sentence(key)).collect()
    }
}

/// One setting that is another one than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `[server] workers`
    pub key: String,
    /// As it would be written; None: not set.
    pub before: Option<String>,
    pub after: Option<String>,
    pub applies: Applies,
}

/// What is different between two readings, in the order of the documentation. Values that are masked are equal.
pub fn diff(before: &[Effective], after: &[Effective]) -> Vec<Change> {
    let value = |list: &[Effective], at: (&str, &str)| {
        list.iter().find(|setting| (setting.section, setting.key.as_str()) == at).map(|setting| setting.value.clone())
    };
    let gone = before.iter().filter(|old| value(after, (old.section, &old.key)).is_none());
    let mut all: Vec<&Effective> = after.iter().chain(gone).collect();
    all.sort_by_key(|setting| keys::rank(setting.section, &setting.key));
    let change = |setting: &Effective| {
        let at = (setting.section, setting.key.as_str());
        let (before, after) = (value(before, at), value(after, at));
        // Rows of `[env]` and of tables are not in the table: they are part of the generation.
        let applies = keys::find(at.0, at.1).map_or(Applies::Generation, |spec| spec.applies);
        let key = if at.0.is_empty() { at.1.to_owned() } else { format!("[{}] {}", at.0, at.1) };
        (before != after).then_some(Change { key, before, after, applies })
    };
    all.into_iter().filter_map(change).collect()
}

impl fmt::Display for Change {
    /// `[server] workers = 2 -> 4`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| match value {
            None => "unset".to_owned(),
            Some(value) => match value.char_indices().nth(SHOWN_CHARS_MAX) {
                Some((at, _)) => format!("{}...", &value[..at]),
                None => value.clone(),
            },
        };
        write!(f, "{} = {} -> {}", self.key, shown(&self.before), shown(&self.after))?;
        match self.applies {
            Applies::Generation | Applies::Commit => Ok(()),
            Applies::Restart => f.write_str(" (with a restart)"),
        }
    }
}

//! A release that has served before: whether all that it needs is still there, and whether a reload would bring back what
//! was rolled back from. It reads directories, so only chores may call it.

use std::path::{Path, PathBuf};

use forkmaster_wire::message::GenerationId;
use serde::{Deserialize, Serialize};

use super::directory::DirectoryId;
use super::problem::{Problem, Problems};
use super::settings::App;
use super::Loaded;
use crate::facts::history::{rolled_back_from, Entry};

/// What was rolled back from: a reload must not bring it back by itself. HUP comes from logrotate and certbot, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barred {
    /// The release's real directory.
    pub release: PathBuf,
    /// Made by the rollback.
    pub generation: GenerationId,
    /// The directory that serves since.
    pub serves: PathBuf,
}

/// Refuses a release whose directories are gone, or of whose name there is another one by now.
pub fn still_there(loaded: Loaded) -> Result<Loaded, Problems> {
    let app = &loaded.settings.app;
    let directories = std::iter::once(&app.release).chain(&app.pythonpath);
    let gone = directories.filter(|directory| !directory.is_dir());
    let python = Some(&app.interpreter.executable).filter(|executable| !executable.is_file());
    let problem = |path: &PathBuf| Problem::new(path.display(), "it is gone, and the release cannot run without it");
    Problems::check(gone.chain(python).map(problem).collect())?;
    if app.release_id.is_some() && app.release_id != DirectoryId::of(&app.release) {
        let text = "another directory has this name by now, and the code that served is gone; deploy it with `forkmaster reload`";
        return Err(Problem::new(app.release.display(), text).into());
    }
    Ok(loaded)
}

/// Refuses what was rolled back from.
pub fn check_barred(loaded: Loaded, barred: Option<&Barred>) -> Result<Loaded, Problems> {
    let app = &loaded.settings.app;
    match barred.filter(|barred| barred.release == app.release) {
        None => Ok(loaded),
        Some(Barred { generation, serves, .. }) => {
            let mend = link(&app.release_named, &app.release, serves).map_or_else(
                || format!("set `release` to {} or to a new one", serves.display()),
                |line| format!("point it back with `{line}`, or at a new release"),
            );
            let text = format!(
                "generation {generation} was made to get rid of it, and `release` still leads there; {mend}, or deploy it \
                 again with `forkmaster reload --force`"
            );
            Err(Problem::new(app.release.display(), text).into())
        }
    }
}

/// What to say of a start from a release that was rolled back from, as far as that is remembered.
pub fn rolled_back_before(app: &App, remembered: &[Entry]) -> Option<String> {
    let rollback = rolled_back_from(remembered, &app.release)?;
    let serves = rollback.release.display();
    let mend = link(&app.release_named, &app.release, &rollback.release).map_or_else(
        || format!("set `release` to {serves} or to a new one"),
        |line| format!("point `release` back with `{line}`, or at a new release"),
    );
    let (release, at, asked) = (app.release.display(), &rollback.at, &rollback.asked);
    Some(format!("{release} serves again, which was rolled back from at {at} ({asked}); if that is a mistake, {mend}, and reload"))
}

/// The command that makes the link that leads to `from` lead to `to`. None: there is no such link, or what lies behind it
/// does not fit both.
fn link(named: &Path, from: &Path, to: &Path) -> Option<String> {
    let is_link = |path: &&Path| path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    let link = named.ancestors().find(is_link)?;
    let behind = named.strip_prefix(link).ok()?;
    if link.join(behind).canonicalize().ok()? != from || !to.ends_with(behind) {
        return None;
    }
    let depth = behind.components().count();
    let target = to.ancestors().nth(depth)?;
    Some(format!("ln -sfn {} {}", shell_word(target), shell_word(link)))
}

/// A path as a shell reads it back.
fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@%,".contains(character);
    match text.chars().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The same directories: what was there before is not there any more.
pub fn in_place(app: &App, before: &App) -> bool {
    app.release == before.release && app.interpreter.venv == before.interpreter.venv
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_link_that_leads_to_a_release_is_named_wherever_it_stands_in_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        for release in ["41/app", "42/app", "4 3/app"] {
            std::fs::create_dir_all(root.join(release)).unwrap();
        }
        let current = root.join("current");
        symlink(root.join("42"), &current).unwrap();
        let line =
            |from: &str, to: &str| Some(format!("ln -sfn {} {}", root.join(from).display(), root.join(to).display()));
        assert_eq!(link(&current, &root.join("42"), &root.join("41")), line("41", "current"));
        assert_eq!(link(&current.join("app"), &root.join("42/app"), &root.join("41/app")), line("41", "current"));
        let spaced = format!("ln -sfn '{}' {}", root.join("4 3").display(), current.display());
        assert_eq!(link(&current, &root.join("42"), &root.join("4 3")), Some(spaced));
        assert_eq!(link(&current.join("app"), &root.join("42/app"), &root.join("41")), None, "it has no app");
        assert_eq!(link(&root.join("42"), &root.join("42"), &root.join("41")), None, "no link");
    }
}

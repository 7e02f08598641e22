//! Why a release's Python could not be executed, in words that name the right culprit: the kernel says only "Operation
//! not permitted" and "Permission denied", of the user and of the file alike. It looks, and starts nothing.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use forkmaster_wire::limits;

use crate::config::settings::Identity;
use crate::exit_code::ExitCode;

#[derive(Debug)]
pub enum NotStarted {
    /// The master may not change to `[server] user`.
    MayNotBecome {
        user: String,
        why: &'static str,
    },
    /// That user may not go through a directory on the way to the interpreter.
    Closed {
        user: String,
        executable: PathBuf,
        directory: PathBuf,
        mode: u32,
    },
    /// That user may not go into the release.
    ReleaseClosed {
        user: String,
        release: PathBuf,
        directory: PathBuf,
        mode: u32,
    },
    Other {
        executable: PathBuf,
        error: io::Error,
    },
}

impl NotStarted {
    /// It was to be executed in the release.
    pub fn of(error: io::Error, executable: PathBuf, release: &Path, identity: Option<&Identity>) -> NotStarted {
        let user = identity.map(show);
        match (error.raw_os_error(), identity.zip(user)) {
            (Some(libc::EPERM), Some((_, user))) => {
                let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
                NotStarted::MayNotBecome { user, why: why_not(&status) }
            }
            (Some(libc::EACCES), Some((identity, user))) => match closed_directory(&executable, identity) {
                Some((directory, mode)) => NotStarted::Closed { user, executable, directory, mode },
                // The release is entered first, and the kernel says the same of both.
                None => match closed_directory(&release.join("entry"), identity) {
                    Some((directory, mode)) => {
                        NotStarted::ReleaseClosed { user, release: release.to_owned(), directory, mode }
                    }
                    None => NotStarted::Other { executable, error },
                },
            },
            (_, _) => NotStarted::Other { executable, error },
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            NotStarted::MayNotBecome { .. } | NotStarted::Closed { .. } | NotStarted::ReleaseClosed { .. } => {
                ExitCode::Permission
            }
            NotStarted::Other { .. } => ExitCode::Unavailable,
        }
    }
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotStarted::MayNotBecome { user, why } => write!(
                f,
                "[server] user: the master may not become {user}: {why}; under systemd write `User=` in the unit and \
                 remove the setting"
            ),
            NotStarted::Closed { user, executable, directory, mode } => write!(
                f,
                "{} cannot be started as {user}: {} is closed to it (mode {mode:04o}); open it, or use a Python that \
                 lies elsewhere",
                executable.display(),
                directory.display()
            ),
            NotStarted::ReleaseClosed { user, release, directory, mode } => write!(
                f,
                "the release {} cannot be entered by {user}: {} is closed to it (mode {mode:04o}); open it with \
                 `chmod o+x`, or give it to that user",
                release.display(),
                directory.display()
            ),
            NotStarted::Other { executable, error } => {
                write!(f, "{} cannot be started: {}", executable.display(), limits::explain(error))
            }
        }
    }
}

fn show(identity: &Identity) -> String {
    match &identity.name {
        Some(name) => format!("{name} (uid {})", identity.uid),
        None => format!("uid {}", identity.uid),
    }
}

/// The master is root where it was allowed to try. What it lacks stands in its status (proc_pid_status(5)).
fn why_not(status: &str) -> &'static str {
    // linux/capability.h
    const CAP_SETGID: u32 = 6;
    const CAP_SETUID: u32 = 7;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let capabilities = field("CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let has = |number: u32| capabilities.is_none_or(|mask| mask >> number & 1 == 1);
    match (has(CAP_SETUID), has(CAP_SETGID)) {
        (false, false) => "the capabilities CAP_SETUID and CAP_SETGID are missing",
        (false, true) => "the capability CAP_SETUID is missing",
        (true, false) => "the capability CAP_SETGID is missing",
        (true, true) if field("Seccomp:") == Some("2") => "a seccomp filter forbids setuid(2) or setgid(2)",
        (true, true) => "setuid(2) or setgid(2) is forbidden",
    }
}

/// The first directory on the way that the user may not search, by name and then through its links.
fn closed_directory(executable: &Path, identity: &Identity) -> Option<(PathBuf, u32)> {
    let real = executable.canonicalize().unwrap_or_else(|_| executable.to_owned());
    closed_on_the_way(executable, identity).or_else(|| closed_on_the_way(&real, identity))
}

fn closed_on_the_way(path: &Path, identity: &Identity) -> Option<(PathBuf, u32)> {
    let mut directories: Vec<&Path> = path.ancestors().skip(1).collect();
    directories.reverse();
    directories.into_iter().find_map(|directory| {
        let meta = directory.metadata().ok()?;
        let search = if meta.uid() == identity.uid {
            0o100
        } else if meta.gid() == identity.gid || identity.groups.contains(&meta.gid()) {
            0o010
        } else {
            0o001
        };
        (meta.mode() & search == 0).then(|| (directory.to_owned(), meta.mode() & 0o7777))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_read_from_the_status() {
        let of = |mask: &str, seccomp: &str| why_not(&format!("Name:\tx\nCapEff:\t{mask}\nSeccomp:\t{seccomp}\n"));
        assert_eq!(of("0000000000000000", "0"), "the capabilities CAP_SETUID and CAP_SETGID are missing");
        assert_eq!(of("0000000000000040", "0"), "the capability CAP_SETUID is missing");
        assert_eq!(of("0000000000000080", "0"), "the capability CAP_SETGID is missing");
        assert_eq!(of("000001ffffffffff", "2"), "a seccomp filter forbids setuid(2) or setgid(2)");
        assert_eq!(why_not(""), "setuid(2) or setgid(2) is forbidden");
    }

    #[test]
    fn a_closed_directory_on_the_way_is_found() {
        use std::os::unix::fs::{symlink, PermissionsExt};
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("home/bin")).unwrap();
        std::fs::create_dir_all(root.join("venv/bin")).unwrap();
        std::fs::write(root.join("home/bin/python"), "").unwrap();
        symlink(root.join("home/bin/python"), root.join("venv/bin/python")).unwrap();
        let mode = |path: &Path, mode: u32| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        mode(&root, 0o755);
        mode(&root.join("home"), 0o700);
        let stranger = Identity { uid: 54321, gid: 54321, groups: Vec::new(), name: None, home: None };
        let found = closed_directory(&root.join("venv/bin/python"), &stranger);
        assert_eq!(found, Some((root.join("home"), 0o700)));
        mode(&root.join("home"), 0o711);
        assert_eq!(closed_directory(&root.join("venv/bin/python"), &stranger), None);
        // The release itself, where Python lies elsewhere.
        std::fs::create_dir(root.join("release")).unwrap();
        mode(&root.join("release"), 0o700);
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let python = root.join("venv/bin/python");
        let said = NotStarted::of(denied, python, &root.join("release"), Some(&stranger));
        assert_eq!(said.exit_code(), ExitCode::Permission);
        assert!(said.to_string().contains("release cannot be entered by uid 54321"), "{said}");
    }
}

//! What the process was started with, gathered once in `main`. Resolving settings reads no variable and asks for no
//! fact of the process but through here, so it can be tested, and a reload sees the same start.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::interpreter::find_on_path;

#[derive(Clone, Debug)]
pub struct ProcessContext {
    /// The start environment, whole.
    pub environment: Environment,
    /// The current directory by name: `$PWD` where that is the same directory, so that a `current` symlink in it is
    /// followed afresh later; else by a link that deploy tools make; else by getcwd(3).
    pub cwd: PathBuf,
    /// This program by the name it was called by, absolute, its links not resolved. None where that cannot be told.
    pub executable: Option<PathBuf>,
    /// Effective ids.
    pub uid: u32,
    pub gid: u32,
    /// CPUs that this process may use: affinity mask and cgroup quota (v1 and v2) considered.
    pub cpus: u32,
    /// The number of the mount namespace: it tells one container from another. 0 where /proc does not say it.
    pub mount_namespace: u64,
}

/// What Capistrano, Deployer and their likes call the link to the release, beside the releases or above them.
const LINK_NAME: &str = "current";

/// How far above the current directory the release may begin, and how far above it the link may lie.
const LEVELS_MAX: usize = 2;

impl ProcessContext {
    pub fn gather() -> ProcessContext {
        let environment: Environment = std::env::vars_os().collect();
        let pwd = environment.get(OsStr::new("PWD")).map(PathBuf::from);
        let cwd = current_directory(pwd);
        let called = std::env::args_os().next().map(PathBuf::from);
        let path = environment.get(OsStr::new("PATH"));
        ProcessContext {
            executable: called.and_then(|called| executable(&called, &cwd, path.map(OsString::as_os_str))),
            cwd,
            environment,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            // The standard library reads sched_getaffinity and the cgroup's cpu.max or cpu.cfs_quota_us.
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(1024) as u32),
            mount_namespace: std::fs::metadata("/proc/self/ns/mnt").map_or(0, |namespace| namespace.ino()),
        }
    }

    /// Nobody has said by which name the current directory was entered, and a link that leads to it gave the name.
    pub fn cwd_is_found(&self) -> bool {
        let said = self.environment.get(OsStr::new("PWD")).is_some_and(|pwd| *pwd == *self.cwd.as_os_str());
        !said && self.cwd.canonicalize().is_ok_and(|real| real != self.cwd)
    }

    /// Makes a path absolute by name: no symlink is resolved.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        absolute(&self.cwd, path)
    }
}

/// Joins and drops `.` and doubled slashes; `..` stays, since after a symlink it is not what it looks like.
pub fn absolute(base: &Path, path: &Path) -> PathBuf {
    base.join(path).components().collect()
}

/// As execvp(3) found it: a name with a slash is a path, any other is looked for on PATH.
fn executable(called: &Path, cwd: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    if called.components().count() > 1 {
        return Some(absolute(cwd, called));
    }
    find_on_path(called.to_str()?, path?)
}

fn current_directory(pwd: Option<PathBuf>) -> PathBuf {
    let same = |pwd: &PathBuf| match (std::fs::metadata(pwd), std::fs::metadata(".")) {
        (Ok(named), Ok(here)) => named.dev() == here.dev() && named.ino() == here.ino(),
        (Ok(_) | Err(_), _) => false,
    };
    match pwd.filter(|pwd| pwd.is_absolute()).filter(same) {
        Some(pwd) => pwd,
        // A current directory that was deleted: absolute paths still work, and a relative one is reported missing.
        None => {
            let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
            by_link(&here).unwrap_or(here)
        }
    }
}

/// systemd's WorkingDirectory=, Circus and Supervisor enter a directory and say nothing of its name: a release that was
/// entered by `current` would be taken for its own, and no reload would leave it.
fn by_link(here: &Path) -> Option<PathBuf> {
    let releases = here.ancestors().take(LEVELS_MAX + 1);
    let links = releases.flat_map(|release| {
        let places = release.ancestors().skip(1).take(LEVELS_MAX);
        places.map(move |place| (place.join(LINK_NAME), release))
    });
    let leads = |(link, release): &(PathBuf, &Path)| {
        link.is_symlink() && link.canonicalize().is_ok_and(|found| found == **release)
    };
    let (link, release) = links.into_iter().find(leads)?;
    Some(absolute(&link, here.strip_prefix(release).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pwd_counts_only_where_it_is_the_same_directory() {
        let here = std::env::current_dir().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("current");
        std::os::unix::fs::symlink(&here, &link).unwrap();
        assert_eq!(current_directory(Some(link.clone())), link);
        assert_eq!(current_directory(Some(directory.path().to_owned())), here);
        assert_eq!(current_directory(Some(PathBuf::from("."))), here);
        assert_eq!(current_directory(None), here);
    }

    #[test]
    fn a_directory_without_a_name_gets_that_of_the_link_that_leads_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("releases/41/src")).unwrap();
        std::fs::create_dir_all(root.join("releases/42")).unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        link("41", "releases/newest");
        assert_eq!(by_link(&root.join("releases/41")), None);
        link("releases/41", "current");
        assert_eq!(by_link(&root.join("releases/41")), Some(root.join("current")));
        assert_eq!(by_link(&root.join("releases/41/src")), Some(root.join("current/src")));
        assert_eq!(by_link(&root.join("releases/42")), None);
        assert_eq!(by_link(&root), None);
        assert_eq!(by_link(Path::new("/")), None);
    }

    #[test]
    fn the_executable_is_what_it_was_called_by() {
        let found = |called: &str| executable(Path::new(called), Path::new("/srv"), Some(OsStr::new("relative:/bin")));
        assert_eq!(found("venv/bin/forkmaster"), Some(PathBuf::from("/srv/venv/bin/forkmaster")));
        assert_eq!(found("/a/b"), Some(PathBuf::from("/a/b")));
        assert_eq!(found("sh"), Some(PathBuf::from("/bin/sh")));
        assert_eq!(found("no-such-program"), None);
    }

    #[test]
    fn facts_are_gathered() {
        let context = ProcessContext::gather();
        assert!(context.cpus >= 1 && context.cwd.is_absolute());
        assert_eq!(context.absolute(Path::new("./a//b")), context.cwd.join("a/b"));
    }
}

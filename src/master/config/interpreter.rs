//! Which Python runs a generation. The choice is made afresh at each reload and pinned: the directory of the
//! interpreter is resolved, its own name is not, since following `venv/bin/python` to its target loses the venv
//! (CPython looks for pyvenv.cfg beside the name it was started by).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::environment::PATH_DEFAULT;
use super::settings::Interpreter;

/// Names of a venv in a release, in the order in which they are looked for.
const VENV_NAMES: [&str; 2] = [".venv", "venv"];

/// `[app] venv`, absolute.
pub fn from_venv(venv: &Path, chosen_by: &'static str) -> Result<Interpreter, String> {
    let real = real_directory(venv, "venv")?;
    let executable = real.join("bin/python");
    check_executable(&executable).map_err(|reason| {
        let fix = if executable.exists() { "" } else { "; make it with `python3 -m venv`" };
        format!("not a usable venv: {reason}{fix}")
    })?;
    Ok(Interpreter { executable, venv: Some(real), chosen_by })
}

/// `[app] python`, absolute, or what was found on PATH.
pub fn from_python(python: &Path, chosen_by: &'static str) -> Result<Interpreter, String> {
    check_executable(python)?;
    let (Some(directory), Some(name)) = (python.parent(), python.file_name()) else {
        return Err("not a path of an interpreter; write it as \"/usr/bin/python3.12\"".to_owned());
    };
    let directory = real_directory(directory, "directory")?;
    let venv = directory.parent().filter(|prefix| prefix.join("pyvenv.cfg").is_file()).map(Path::to_owned);
    Ok(Interpreter { executable: directory.join(name), venv, chosen_by })
}

/// A venv in the release, if there is one. One that is there but broken is an error, not a reason to look further:
/// another Python would run the release with other packages.
pub fn in_release(release: &Path) -> Option<Result<Interpreter, String>> {
    VENV_NAMES
        .iter()
        .map(|name| release.join(name))
        .find(|path| looks_like_venv(path))
        .map(|path| from_venv(&path, "venv in the release").map_err(|reason| format!("{}: {reason}", path.display())))
}

/// python3 on the generation's PATH. Entries that are not absolute are skipped: they would depend on the directory.
pub fn on_path(path: Option<&std::ffi::OsStr>) -> Result<Interpreter, String> {
    let path = path.unwrap_or(PATH_DEFAULT.as_ref());
    find_on_path("python3", path).map_or_else(
        || Err(format!("no venv, and no python3 on PATH ({}); make one with `python3 -m venv venv` in the release, or set `[app] python`", path.to_string_lossy())),
        |python| from_python(&python, "python3 on PATH"),
    )
}

pub fn find_on_path(name: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|candidate| check_executable(candidate).is_ok())
}

/// A directory named `venv` may also be a package of the application; a venv has its configuration or its Python.
fn looks_like_venv(path: &Path) -> bool {
    let dangling = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) && !path.exists();
    dangling || path.join("pyvenv.cfg").exists() || path.join("bin/python").symlink_metadata().is_ok()
}

/// Resolves a directory, and says why it cannot.
pub fn real_directory(path: &Path, what: &str) -> Result<PathBuf, String> {
    let real = path.canonicalize().map_err(|error| missing(path, what, &error))?;
    if real.is_dir() {
        Ok(real)
    } else {
        Err(format!("{} is not a directory", path.display()))
    }
}

/// Why a path cannot be followed: it is not there, or one of the links on the way leads nowhere.
pub fn missing(path: &Path, what: &str, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::NotFound {
        return format!("{}: {}", path.display(), reason(error));
    }
    let dangling = path.ancestors().find_map(|part| {
        let target = part.read_link().ok()?;
        (!part.exists()).then(|| format!("{} is a dangling symlink (to {})", part.display(), target.display()))
    });
    dangling.unwrap_or_else(|| format!("there is no {what} {}", path.display()))
}

/// `No such file or directory`, without the number that `io::Error` appends.
pub fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| nix::errno::Errno::from_raw(code).desc().to_owned())
}

fn check_executable(path: &Path) -> Result<(), String> {
    let meta = path.metadata().map_err(|error| missing(path, "file", &error))?;
    if !meta.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(format!("{} is not executable", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A venv that needs no Python: what matters here are names and links.
    fn make_venv(path: &Path) {
        std::fs::create_dir_all(path.join("bin")).unwrap();
        std::fs::write(path.join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
        symlink("/bin/sh", path.join("bin/python")).unwrap();
        symlink("/bin/sh", path.join("bin/python3")).unwrap();
    }

    #[test]
    fn a_venv_is_pinned_by_its_real_directory_and_python_is_not_resolved() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        make_venv(&root.join("v1"));
        symlink("v1", root.join("venv")).unwrap();
        let chosen = from_venv(&root.join("venv"), "[app] venv").unwrap();
        assert_eq!(chosen.executable, root.join("v1/bin/python"));
        assert_eq!(chosen.venv, Some(root.join("v1")));
        // The same by `python`, and by PATH.
        let python = from_python(&root.join("venv/bin/python3"), "[app] python").unwrap();
        assert_eq!((python.executable, python.venv), (root.join("v1/bin/python3"), Some(root.join("v1"))));
        let path = std::env::join_paths([Path::new("relative"), &root, &root.join("venv/bin")]).unwrap();
        let found = on_path(Some(&path)).unwrap();
        assert_eq!((found.executable, found.venv), (root.join("v1/bin/python3"), Some(root.join("v1"))));
        assert_eq!(from_python(Path::new("/bin/sh"), "x").unwrap().venv, None);
    }

    #[test]
    fn a_broken_venv_says_what_is_broken() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let error = |path: &str| from_venv(&root.join(path), "x").unwrap_err();
        assert!(error("none").contains("there is no venv"));
        symlink("gone", root.join("link")).unwrap();
        assert!(error("link").contains("link is a dangling symlink (to gone)"));
        assert!(error("link/deeper").contains("link is a dangling symlink (to gone)"));
        std::fs::write(root.join("file"), "").unwrap();
        assert!(error("file").contains("not a directory"));
        std::fs::create_dir_all(root.join("empty/bin")).unwrap();
        assert!(error("empty").contains("there is no file"));
        symlink("/nowhere/python3.9", root.join("empty/bin/python")).unwrap();
        assert!(error("empty").contains("bin/python is a dangling symlink (to /nowhere/python3.9)"));
        std::fs::create_dir_all(root.join("plain/bin")).unwrap();
        std::fs::write(root.join("plain/bin/python"), "").unwrap();
        assert!(error("plain").contains("not executable"));
        assert!(on_path(Some(root.as_os_str())).unwrap_err().contains("no python3 on PATH"));
    }

    #[test]
    fn a_venv_in_the_release_is_found_by_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        // A package that is called venv.
        std::fs::create_dir(root.join("venv")).unwrap();
        assert!(in_release(&root).is_none());
        make_venv(&root.join("venv"));
        assert_eq!(in_release(&root).unwrap().unwrap().venv, Some(root.join("venv")));
        // .venv comes first, also where it is broken.
        symlink("gone", root.join(".venv")).unwrap();
        assert!(in_release(&root).unwrap().unwrap_err().contains("dangling"));
    }
}

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
    check_version(&real)?;
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
    venv.as_deref().map_or(Ok(()), check_version)?;
    Ok(Interpreter { executable: directory.join(name), venv, chosen_by })
}

/// A venv in the release, if there is one. One that is there but broken is an error, not a reason to look further:
/// another Python would run the release with other packages.
pub fn in_release(release: &Path) -> Option<Result<Interpreter, String>> {
    let mut candidates = VENV_NAMES.iter().map(|name| release.join(name));
    let path = candidates.find(|path| is_meant_as_venv(path))?;
    let refused = |reason: String| format!("{}: {reason}; or set [app] venv or python", path.display());
    Some(from_venv(&path, "venv in the release").map_err(refused))
}

/// The venv in whose `bin` this program lies, by the name it was called by: `/srv/shop/venv/bin/forkmaster` in a unit
/// file runs that venv without activating it, and follows a link in its path at each reload.
pub fn own_venv(executable: &Path) -> Option<PathBuf> {
    let venv = executable.parent()?.parent()?;
    venv.join("pyvenv.cfg").is_file().then(|| venv.to_owned())
}

/// A venv in the release that has none of the names that are looked for.
pub fn venv_of_another_name(release: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(release).ok()?.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.join("pyvenv.cfg").is_file());
    found.into_iter().min()
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

/// Whatever is called so is meant as a venv, also a dangling link and an empty directory; but `venv` may also be a
/// package of the application, and some tools keep the name of a venv in a file `.venv`.
fn is_meant_as_venv(path: &Path) -> bool {
    let Ok(meta) = path.symlink_metadata() else {
        return false;
    };
    let dangling = meta.is_symlink() && !path.exists();
    let has_venv = path.join("pyvenv.cfg").exists() || path.join("bin/python").symlink_metadata().is_ok();
    dangling || (path.is_dir() && (has_venv || !path.join("__init__.py").exists()))
}

/// The oldest Python that the worker library can be loaded into: its stable ABI is that of 3.9.
const PYTHON_MIN: (u32, u32) = (3, 9);

/// What a venv says of its Python. One that says nothing is asked later, by running it.
fn check_version(venv: &Path) -> Result<(), String> {
    let Some(version) = version_of(venv) else {
        return Ok(());
    };
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < PYTHON_MIN => {
            let (major, minor) = PYTHON_MIN;
            Err(format!("{} has Python {version}; {major}.{minor} or later is needed", venv.display()))
        }
        _later => Ok(()),
    }
}

/// `version = 3.12.1` of venv and uv, `version_info = 3.12.1.final.0` of virtualenv.
fn version_of(venv: &Path) -> Option<String> {
    let text = std::fs::read_to_string(venv.join("pyvenv.cfg")).ok()?;
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    value("version").or_else(|| value("version_info"))
}

/// Resolves a directory, and says why it cannot.
pub fn real_directory(path: &Path, what: &str) -> Result<PathBuf, String> {
    let real = path.canonicalize().map_err(|error| missing(path, what, &error))?;
    if real.is_dir() {
        return Ok(real);
    }
    let is_python = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"));
    if what == "venv" && is_python {
        return Err(format!("{0} is a Python, not a venv; write python = \"{0}\"", path.display()));
    }
    Err(format!("{} is a file, not a directory", path.display()))
}

/// Why a path cannot be followed: it is not there, or one of the links on the way leads nowhere.
pub fn missing(path: &Path, what: &str, error: &io::Error) -> String {
    if error.raw_os_error() == Some(libc::EACCES) {
        let us = nix::unistd::geteuid();
        return format!("{}: {}; uid {us}, which starts it, must be able to read it", path.display(), reason(error));
    }
    if error.kind() != io::ErrorKind::NotFound {
        return format!("{}: {}", path.display(), reason(error));
    }
    let dangling = path.ancestors().find_map(|part| {
        let target = part.read_link().ok()?;
        (!part.exists()).then(|| format!("{} is a dangling symlink (to {})", part.display(), target.display()))
    });
    // A shell replaces it, and nobody else.
    let hint = if path.components().any(|part| part.as_os_str() == "~") {
        "; `~` is for shells: write the whole path"
    } else {
        ""
    };
    dangling.unwrap_or_else(|| format!("there is no {what} {}{hint}", path.display()))
}

/// `No such file or directory`, without the number that `io::Error` appends.
pub fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| nix::errno::Errno::from_raw(code).desc().to_owned())
}

pub fn check_executable(path: &Path) -> Result<(), String> {
    let meta = path.metadata().map_err(|error| missing(path, "file", &error))?;
    if !meta.is_file() {
        return Err(format!("{} is a directory, not a program", path.display()));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(format!("{0} is not executable; `chmod +x {0}`, or write another path", path.display()));
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
        assert!(in_release(&root).is_none());
        // A package that is called venv, and a file that names one elsewhere.
        std::fs::create_dir(root.join("venv")).unwrap();
        std::fs::write(root.join("venv/__init__.py"), "").unwrap();
        std::fs::write(root.join(".venv"), "shop").unwrap();
        assert!(in_release(&root).is_none());
        std::fs::remove_file(root.join(".venv")).unwrap();
        // Without a Python it is refused, and not passed over.
        std::fs::remove_file(root.join("venv/__init__.py")).unwrap();
        let refused = in_release(&root).unwrap().unwrap_err();
        assert!(refused.contains("venv/bin/python") && refused.ends_with("set [app] venv or python"), "{refused}");
        make_venv(&root.join("venv"));
        assert_eq!(in_release(&root).unwrap().unwrap().venv, Some(root.join("venv")));
        // .venv comes first, also where it is broken.
        symlink("gone", root.join(".venv")).unwrap();
        assert!(in_release(&root).unwrap().unwrap_err().contains("dangling"));
    }
    #[test]
    fn a_venv_of_an_old_python_is_refused_where_it_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        make_venv(&root.join("v"));
        let with = |text: &str| {
            std::fs::write(root.join("v/pyvenv.cfg"), text).unwrap();
            let venv = from_venv(&root.join("v"), "x").map(|_| ());
            assert_eq!(from_python(&root.join("v/bin/python3"), "x").map(|_| ()), venv);
            venv
        };
        for good in ["", "version = 3.9.2\n", "version_info = 3.13.1.final.0\n", "version = 4.0\n", "version = new\n"] {
            assert_eq!(with(good), Ok(()), "{good}");
        }
        let expected = format!("{} has Python 3.8.10; 3.9 or later is needed", root.join("v").display());
        assert_eq!(with("home = /usr\nversion = 3.8.10\n"), Err(expected));
        assert!(with("version_info = 2.7.18.final.0\n").unwrap_err().contains("Python 2.7.18.final.0"));
    }

    #[test]
    fn the_venv_of_the_executable_is_found_by_the_name_it_was_called_by() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        make_venv(&root.join("releases/1/venv"));
        symlink("releases/1", root.join("current")).unwrap();
        assert_eq!(own_venv(&root.join("current/venv/bin/forkmaster")), Some(root.join("current/venv")));
        assert_eq!(own_venv(Path::new("/usr/bin/forkmaster")), None);
        assert_eq!(venv_of_another_name(&root), None);
        make_venv(&root.join("env"));
        assert_eq!(venv_of_another_name(&root), Some(root.join("env")));
    }
}

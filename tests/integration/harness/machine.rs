//! What `tests/run` prepared on this machine: Pythons, virtualenvs with packages, programs. A test that needs
//! something that is missing fails and says so. Only what `tests/run` lists at its end passes without having run.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// One CPython of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Python {
    /// `3.12`
    pub minor: String,
    pub executable: PathBuf,
}

#[derive(Debug, Default)]
pub struct Machine {
    /// The best interpreter per minor version first, other interpreters of the same version after it.
    pub pythons: Vec<Python>,
    default: String,
    venvs: Vec<(String, PathBuf)>,
    /// Virtualenvs with Flask and an agent, each of the newest Python that there are wheels for.
    agents: Vec<(String, PathBuf)>,
    programs: Vec<(String, PathBuf)>,
}

impl Machine {
    pub fn get() -> &'static Machine {
        static MACHINE: OnceLock<Result<Machine, String>> = OnceLock::new();
        match MACHINE.get_or_init(Machine::read) {
            Ok(machine) => machine,
            Err(missing) => panic!("{missing}: run `tests/run`, which sets up what the tests need and runs them"),
        }
    }

    /// The file has one fact a line: `python 3.12 /path`, `default 3.12`, `venv flask /path`, `program nginx /path`.
    fn read() -> Result<Machine, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venvs/prepared");
        let text = fs::read_to_string(&path).map_err(|error| format!("{} is missing ({error})", path.display()))?;
        let mut machine = Machine::default();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            let found = |path: &str| match Path::new(path).exists() {
                true => Ok(PathBuf::from(path)),
                false => Err(format!("{line}: it is gone")),
            };
            match words[..] {
                ["python", minor, path] => {
                    machine.pythons.push(Python { minor: minor.to_string(), executable: found(path)? })
                }
                ["default", minor] => machine.default = minor.to_string(),
                ["venv", name, path] => machine.venvs.push((name.to_string(), found(path)?)),
                ["agent", name, path] => machine.agents.push((name.to_string(), found(path)?)),
                ["program", name, path] => machine.programs.push((name.to_string(), found(path)?)),
                _ => return Err(format!("{}: cannot read the line {line:?}", path.display())),
            }
        }
        if machine.pythons.iter().all(|python| python.minor != machine.default) {
            return Err("no CPython from 3.9 to 3.13 was found".to_string());
        }
        Ok(machine)
    }

    /// The Python that tests use where it does not matter: the one that the prepared virtualenvs have.
    pub fn default_python(&self) -> &Python {
        self.python(&self.default)
    }

    pub fn python(&self, minor: &str) -> &Python {
        let found = self.pythons.iter().find(|python| python.minor == minor);
        found.unwrap_or_else(|| panic!("Python {minor} is missing on this machine, `tests/run` lists what it found"))
    }

    /// One interpreter per minor version, oldest first.
    pub fn each_minor(&self) -> Vec<&Python> {
        let mut pythons: Vec<&Python> = Vec::new();
        for python in &self.pythons {
            if pythons.iter().all(|known| known.minor != python.minor) {
                pythons.push(python);
            }
        }
        pythons
            .sort_by_key(|python| python.minor.split('.').filter_map(|part| part.parse().ok()).collect::<Vec<u32>>());
        pythons
    }

    /// A Python of another minor version than the default one. None: the machine has only one, and a test that needs
    /// two has nothing to do.
    pub fn other_python(&self) -> Option<&Python> {
        let other = self.each_minor().into_iter().find(|python| python.minor != self.default);
        if other.is_none() {
            not_tested("it needs two versions of Python");
        }
        other
    }

    /// A Python that every user of the machine may run (one below a 0700 home directory is not).
    pub fn public_python(&self) -> &Python {
        let public = self.pythons.iter().find(|python| is_public(&python.executable));
        public.expect("no Python that other users may execute: install the Debian package python3")
    }

    /// A virtualenv with packages: `flask` or `django`.
    pub fn venv(&self, name: &str) -> &Path {
        let found = self.venvs.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("the virtualenv {name} is missing: run `tests/run`")).1
    }

    /// A virtualenv with an agent. None: `tests/run` could not install it here, and has listed why.
    pub fn agent(&self, name: &str) -> Option<&Path> {
        self.agents.iter().find(|(known, _)| known == name).map(|(_, path)| path.as_path())
    }

    /// A program: `nginx` or `curl`.
    pub fn program(&self, name: &str) -> &Path {
        let found = self.programs.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("the program {name} is missing: run `tests/run`")).1
    }
}

/// Whether processes can be started as other users. Where not, the test has nothing to do.
pub fn can_change_users() -> bool {
    is_root()
}

/// Whether file systems can be mounted, and cgroups made. Where not, the test has nothing to do.
pub fn can_mount() -> bool {
    is_root()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        not_tested("it needs root");
    }
    root
}

/// Tells that the calling test has nothing to do on this machine, and why. `tests/run` names a file for these lines and
/// prints them at its end, so nobody takes such a test for one that passed. Without it there is nobody who would
/// print them, and the test fails.
pub fn not_tested(reason: &str) {
    let Some(path) = std::env::var_os("FORKMASTER_NOT_TESTED") else {
        panic!("not tested: {reason}. Run the tests with `tests/run`, which lists what this machine cannot test");
    };
    // libtest names a test's thread after the test.
    let thread = std::thread::current();
    let line = format!("{}: {reason}\n", thread.name().unwrap_or("a test"));
    let file = fs::OpenOptions::new().append(true).create(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.unwrap_or_else(|error| panic!("{}: {error}", Path::new(&path).display()));
}

/// Whether all directories on the way may be searched by everybody. The way goes through symlinks, so the
/// resolved path is looked at too.
fn is_public(executable: &Path) -> bool {
    let searchable = |path: &Path| {
        path.ancestors()
            .skip(1)
            .all(|directory| fs::metadata(directory).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0))
    };
    searchable(executable) && fs::canonicalize(executable).is_ok_and(|resolved| searchable(&resolved))
}

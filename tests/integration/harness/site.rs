//! A directory as an operator has it: releases side by side, each with a virtualenv of its own, a symlink
//! `current`, a configuration, a log.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use super::journal::Journal;
use super::machine::{Machine, Python};
use super::master::{self, Launch, Master};
use super::process;
use super::Share;

/// No test takes longer: every wait in it has a shorter deadline. When it is over, the watchdog ends the test's
/// processes, which ends whatever the test waits for.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// The site of one test.
pub struct Site {
    name: String,
    directory: TempDir,
    settings: RefCell<BTreeMap<String, String>>,
    launched: Cell<u32>,
    // Dropped with the site; its drop tells the watchdog that the test is over.
    _watchdog: Sender<()>,
    _share: Share,
}

impl Site {
    /// A site with the settings that tests have in common: release `current`, one address on a free port, two
    /// workers, a control socket in the directory.
    pub fn new(name: &str) -> Site {
        Site::with_share(name, Share::one())
    }

    /// The same for a test that must not share the machine with others.
    pub fn alone(name: &str) -> Site {
        Site::with_share(name, Share::all())
    }

    /// A site with the releases "1" to `count`, of which "1" is current.
    pub fn with_releases(name: &str, count: usize) -> Site {
        Site::new(name).releases(count)
    }

    /// Makes the releases "1" to `count` and points `current` at "1".
    pub fn releases(self, count: usize) -> Site {
        for number in 1..=count {
            self.release(&number.to_string());
        }
        self.flip("1");
        self
    }

    /// A site whose release "1" has this source as its application.
    pub fn with_source(name: &str, app: &str) -> Site {
        let site = Site::new(name);
        site.build("1").file("app.py", app).make();
        site.flip("1");
        site
    }

    /// A site whose release "1" has another application of tests/apps.
    pub fn with_app(name: &str, file: &str) -> Site {
        let site = Site::new(name);
        site.build("1").app(file).make();
        site.flip("1");
        site
    }

    fn with_share(name: &str, share: Share) -> Site {
        let directory = tempfile::Builder::new().prefix("fm-").tempdir().expect("a temporary directory can be made");
        // Other users' workers must be able to read it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("it is our directory");
        let watchdog = watch(name.to_string(), directory.path().to_path_buf());
        let site = Site {
            name: name.to_string(),
            directory,
            settings: RefCell::default(),
            launched: Cell::new(0),
            _watchdog: watchdog,
            _share: share,
        };
        site.set("app.module", "'app:application'");
        site.set("app.release", "'current'");
        site.set("server.bind", "['127.0.0.1:0']");
        site.set("server.workers", "2");
        site.set("control.socket", "'control.sock'");
        site
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn config_path(&self) -> PathBuf {
        self.path().join("app.toml")
    }

    pub fn release_path(&self, name: &str) -> PathBuf {
        self.path().join("releases").join(name)
    }

    /// Writes a file of the site.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        write(&path, content);
        path
    }

    /// A release with the tests' application, a virtualenv of the default Python and the package `dep`, whose
    /// version is the release's name.
    pub fn release(&self, name: &str) -> PathBuf {
        self.build(name).make()
    }

    /// The same with changes: `site.build("2").python("3.12").app("broken/segfault.py").make()`.
    pub fn build(&self, name: &str) -> Release {
        Release {
            directory: self.release_path(name),
            name: name.to_string(),
            python: None,
            app: "app.py".to_string(),
            import_s: 0.0,
            files: Vec::new(),
            site_packages: Vec::new(),
            venv: true,
        }
    }

    /// Points `current` at a release, atomically as deploy tools do: a new symlink is renamed over the old one.
    pub fn flip(&self, name: &str) {
        let next = self.path().join("current.next");
        let _ = fs::remove_file(&next);
        symlink(Path::new("releases").join(name), &next).expect("a symlink can be made");
        fs::rename(&next, self.path().join("current")).expect("it can be renamed");
    }

    /// Sets one key, its value as TOML, and writes the configuration: `site.set("server.workers", "4")`.
    pub fn set(&self, key: &str, value: &str) -> &Site {
        self.settings.borrow_mut().insert(key.to_string(), value.to_string());
        self.write_settings()
    }

    pub fn unset(&self, key: &str) -> &Site {
        self.settings.borrow_mut().remove(key);
        self.write_settings()
    }

    /// Replaces the whole file, until the next `set`.
    pub fn config(&self, toml: &str) -> &Site {
        write(&self.config_path(), toml);
        self
    }

    fn write_settings(&self) -> &Site {
        let lines: Vec<String> =
            self.settings.borrow().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        self.config(&lines.concat())
    }

    /// Starts the master and waits until every configured worker serves.
    pub fn start(&self) -> Master {
        let master = self.spawn();
        master.wait_serving();
        master
    }

    /// Starts the master and waits for nothing.
    pub fn spawn(&self) -> Master {
        self.launch(Launch::default())
    }

    /// Starts the master in another way: `site.launch(Launch { env: .., ..Launch::default() })`.
    pub fn launch(&self, launch: Launch) -> Master {
        let number = self.launched.get() + 1;
        self.launched.set(number);
        Master::launch(self, number, launch)
    }

    /// Processes that work for this site, the master first.
    pub fn processes(&self) -> Vec<process::Process> {
        process::belonging_to(self.path())
    }

    /// What a failed test is told.
    fn dump(&self) -> String {
        dump(&self.name, self.path(), &Journal::mine())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            Journal::forget();
        } else {
            eprintln!("{}", self.dump());
            if std::env::var_os("FORKMASTER_KEEP_SITES").is_some() {
                self.directory.disable_cleanup(true);
            }
        }
        end_all(self.path());
    }
}

/// A release to be made.
pub struct Release {
    directory: PathBuf,
    name: String,
    python: Option<Python>,
    app: String,
    import_s: f64,
    files: Vec<(String, String)>,
    site_packages: Vec<PathBuf>,
    venv: bool,
}

impl Release {
    /// Another Python for its virtualenv.
    pub fn python(mut self, python: &Python) -> Release {
        self.python = Some(python.clone());
        self
    }

    /// Another application from tests/apps instead of app.py.
    pub fn app(mut self, file: &str) -> Release {
        self.app = file.to_string();
        self
    }

    /// How long the import of app.py takes.
    pub fn import_s(mut self, seconds: f64) -> Release {
        self.import_s = seconds;
        self
    }

    /// A further file, relative to the release; `site-packages/NAME` goes into the virtualenv.
    pub fn file(mut self, name: &str, content: &str) -> Release {
        self.files.push((name.to_string(), content.to_string()));
        self
    }

    /// A file of tests/apps beside the application.
    pub fn with(self, file: &str) -> Release {
        let name = Path::new(file).file_name().and_then(|name| name.to_str()).expect("a plain name").to_string();
        let content = app_source(file);
        self.file(&name, &content)
    }

    /// The packages of a prepared virtualenv (`flask`, `django`), through a .pth file. The release's Python must be
    /// the default one.
    pub fn packages(mut self, venv: &str) -> Release {
        let python = Machine::get().default_python();
        self.site_packages.push(Machine::get().venv(venv).join(format!("lib/python{}/site-packages", python.minor)));
        self
    }

    /// No virtualenv: the configuration names one, or a Python.
    pub fn bare(mut self) -> Release {
        self.venv = false;
        self
    }

    pub fn make(self) -> PathBuf {
        fs::create_dir_all(&self.directory).expect("a release directory can be made");
        write(&self.directory.join("app.py"), &app_source(&self.app));
        let facts = format!("NAME = {:?}\nIMPORT_S = {:?}\n", self.name, self.import_s);
        write(&self.directory.join("release.py"), &facts);
        let dep = format!("VERSION = {:?}\n", self.name);
        let packages = if self.venv {
            let python = self.python.as_ref().unwrap_or_else(|| Machine::get().default_python());
            let packages = make_venv(python, &self.directory.join("venv"));
            write(&packages.join("dep.py"), &dep);
            for (number, other) in self.site_packages.iter().enumerate() {
                write(&packages.join(format!("prepared{number}.pth")), &format!("{}\n", other.display()));
            }
            packages
        } else {
            write(&self.directory.join("dep.py"), &dep);
            self.directory.clone()
        };
        for (name, content) in &self.files {
            let path = match name.strip_prefix("site-packages/") {
                Some(name) => packages.join(name),
                None => self.directory.join(name),
            };
            write(&path, content);
        }
        self.directory
    }
}

/// Makes a virtualenv and returns its site-packages. Without pip: nothing is installed into it, and this is fast.
pub fn make_venv(python: &Python, directory: &Path) -> PathBuf {
    static KNOWN: Mutex<BTreeMap<PathBuf, Arc<Venv>>> = Mutex::new(BTreeMap::new());
    let venv = {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let venv = known.entry(python.executable.clone()).or_insert_with(|| Arc::new(Venv::made_by(python)));
        Arc::clone(venv)
    };
    venv.write(directory);
    directory.join(format!("lib/python{}/site-packages", python.minor))
}

/// What `python -m venv` makes. It is called once for each Python, and what it has made is written again elsewhere: a run of all
/// tests needs more than a thousand.
struct Venv {
    /// Where it was made, as its files say.
    place: String,
    /// Relative paths, a directory before what is in it.
    entries: Vec<(PathBuf, Entry)>,
}

enum Entry {
    Directory,
    Link(PathBuf),
    File(String, fs::Permissions),
}

impl Venv {
    fn made_by(python: &Python) -> Venv {
        let parent = tempfile::tempdir().expect("a temporary directory can be made");
        let directory = parent.path().join("venv");
        let output = Command::new(&python.executable)
            .args(["-m", "venv", "--without-pip"])
            .arg(&directory)
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .expect("the Python that tests/run found can be started");
        assert!(output.status.success(), "python -m venv: {}", String::from_utf8_lossy(&output.stderr));
        let mut venv = Venv { place: directory.to_string_lossy().into_owned(), entries: Vec::new() };
        venv.read(&directory, Path::new(""));
        venv
    }

    fn read(&mut self, directory: &Path, relative: &Path) {
        for entry in fs::read_dir(directory.join(relative)).expect("it was just made") {
            let entry = entry.expect("it was just made");
            let (path, relative) = (entry.path(), relative.join(entry.file_name()));
            let metadata = fs::symlink_metadata(&path).expect("it was just made");
            if metadata.is_dir() {
                self.entries.push((relative.clone(), Entry::Directory));
                self.read(directory, &relative);
            } else if metadata.is_symlink() {
                self.entries.push((relative, Entry::Link(fs::read_link(&path).expect("it is a link"))));
            } else {
                let text = fs::read_to_string(&path).expect("a virtualenv without packages has text only");
                self.entries.push((relative, Entry::File(text, metadata.permissions())));
            }
        }
    }

    fn write(&self, directory: &Path) {
        let here = directory.to_string_lossy();
        fs::create_dir_all(directory).expect("a directory of the site can be made");
        for (relative, entry) in &self.entries {
            let path = directory.join(relative);
            match entry {
                Entry::Directory => fs::create_dir_all(&path).expect("a directory of the site can be made"),
                Entry::Link(target) => {
                    // Where a release is made once more.
                    let _ = fs::remove_file(&path);
                    symlink(target, &path).expect("a link of the site can be made");
                }
                Entry::File(text, permissions) => {
                    write(&path, &text.replace(&self.place, &here));
                    fs::set_permissions(&path, permissions.clone()).expect("it is our file");
                }
            }
        }
    }
}

/// A file of tests/apps.
pub fn app_source(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A copy of the binary for users who may not search the directories on the way to it.
pub fn copy_binary_to(site: &Site) -> PathBuf {
    let copy = site.path().join("forkmaster");
    copy_binary_as(&copy);
    copy
}

/// By cp(1), which starts no process: a process that another test forks just while we write would hold our descriptor, and
/// execve(2) of a file that is open for writing fails (ETXTBSY).
pub fn copy_binary_as(copy: &Path) {
    let done = Command::new("cp").arg(super::master::binary()).arg(copy).status();
    assert!(done.expect("cp can be started").success(), "the binary can be copied");
    fs::set_permissions(copy, fs::Permissions::from_mode(0o755)).expect("it is our file");
}

/// Ends what still works for a site. Processes can appear while this looks, so it looks until there are none.
pub fn end_all(directory: &Path) {
    for _ in 0..50 {
        let processes = process::belonging_to(directory);
        if processes.iter().all(process::Process::is_zombie) {
            return;
        }
        for process in processes {
            process.signal(nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(super::LOOK);
    }
    eprintln!("still there: {}", process::table(&process::belonging_to(directory)));
}

fn write(path: &Path, content: &str) {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).expect("a directory of the site can be made");
    }
    fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The configuration, the logs and the processes of a site, what its master says, and what the test did.
fn dump(name: &str, directory: &Path, journal: &Journal) -> String {
    let mut text = format!("---- site {name}: {}\n", directory.display());
    text += &format!("---- app.toml\n{}", fs::read_to_string(directory.join("app.toml")).unwrap_or_default());
    let mut logs: Vec<PathBuf> = fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    for log in logs {
        let content = fs::read(&log).unwrap_or_default();
        let from = content.len().saturating_sub(20_000);
        let file = log.file_name().unwrap_or_default().to_string_lossy();
        text += &format!("---- {file}\n{}", String::from_utf8_lossy(&content[from..]));
    }
    text += &journal.to_string();
    text += &format!("---- status --json\n{}\n", master::last_status(directory));
    text += &format!("---- processes\n{}----", process::table(&process::belonging_to(directory)));
    text
}

/// Watches one test from outside: see `TEST_LIMIT`.
fn watch(name: String, directory: PathBuf) -> Sender<()> {
    let (test, over) = channel();
    let journal = Journal::mine();
    std::thread::spawn(move || {
        if over.recv_timeout(TEST_LIMIT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name}: not over after {} s\n{}", TEST_LIMIT.as_secs(), dump(&name, &directory, &journal));
            end_all(&directory);
        }
    });
    test
}

//! The commands of README.md and docs/ are run, in the order in which they stand there, or stand in the list of those that
//! are not, with the reason. And the comparisons that README.md names are made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::machine::Machine;
use crate::harness::master::{binary, Master};
use crate::harness::site::Site;

/// Beginnings of commands that no test runs from the page, and why.
const NOT_RUN: [(&str, &str); 19] = [
    ("pip install forkmaster", "it asks a package index; packaging/check-wheel installs the wheel"),
    ("cargo run --release", "a release build takes minutes; tests run the debug build"),
    ("cargo install", "a release build takes minutes"),
    ("packaging/build-wheel", "release builds for four targets take minutes"),
    ("tests/run", "it runs this test"),
    ("uv sync", "uv and a project of its own; tests make environments with venv"),
    ("/srv/shop/releases/43/.venv/bin/python", "a command of Django's, as an example"),
    ("forkmaster status --watch", "it goes on until Ctrl-C; a test of `status` runs it"),
    ("forkmaster events", "it goes on until Ctrl-C; a test of `events` runs it"),
    ("forkmaster logs", "it follows a file, and a test's master has its log where the test looks"),
    ("forkmaster wait down", "it waits for the end; a test of the verbs runs it"),
    ("forkmaster app:app", "it serves until it is stopped; tests of the first start run it"),
    ("forkmaster -c app.toml", "it serves until it is stopped; every test runs it"),
    ("forkmaster reload -c /etc/forkmaster/shop.toml --pause", "a migration of Django's, as an example"),
    ("forkmaster pause --maintenance", "it shows a page of the operator's; a test of the maintenance has one"),
    ("forkmaster promote", "it ends a canary; a test of the canary runs it"),
    ("forkmaster abandon", "it ends a canary; a test of the canary runs it"),
    ("forkmaster report 41", "a number of the page's own"),
    ("forkmaster dev", "it goes on until Ctrl-C"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).expect("it is there").flatten().map(|entry| entry.path());
    let mut pages: Vec<PathBuf> = docs.filter(|path| path.extension().is_some_and(|suffix| suffix == "md")).collect();
    pages.push(root().join("README.md"));
    pages.sort();
    pages
}

/// The commands of a page's blocks for a shell, without their comments.
fn commands(page: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(page).expect("it is there");
    let (mut found, mut inside) = (Vec::new(), false);
    for (number, line) in (1..).zip(text.lines()) {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside && !command.is_empty() => {
                let command = command.split(" #").next().unwrap_or_default().trim();
                found.push((number, command.to_owned()));
            }
            _text => {}
        }
    }
    found
}

/// A machine on which the documentation's paths are those of a site.
struct Place {
    site: Site,
    master: Option<Master>,
    /// Where configurations of other servers are converted.
    converted: Option<tempfile::TempDir>,
    current: usize,
}

impl Place {
    fn new() -> Place {
        let site = Site::with_releases("documented", 2);
        site.build("43").make();
        site.set("server.workers", "4");
        Place { site, master: None, converted: None, current: 1 }
    }

    fn run(&mut self, command: &str) -> Output {
        let site = self.site.path().to_path_buf();
        let mut directory = site.clone();
        let mut command = command.to_owned();
        let verb =
            command.strip_prefix("forkmaster ").and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned();
        if verb == "convert" {
            directory = self.convert_in();
            // As root a configuration that is a program is only executed if told so.
            if nix::unistd::geteuid().is_root() {
                command = command.replacen("convert", "convert --yes", 1);
            }
        } else if let Some(converted) = self.converted.as_ref().filter(|_| command == "forkmaster check --boot") {
            directory = converted.path().to_path_buf();
        }
        let running = self.master.as_ref().is_some_and(|master| master.exited().is_none());
        if !running {
            self.master = Some(self.site.start());
        }
        match verb.as_str() {
            // A deploy in place cannot be taken back.
            "reload" => {
                self.current = 3 - self.current;
                self.site.flip(&self.current.to_string());
            }
            "recycle" | "dump" => drop(self.shell("forkmaster scale 4", &site)),
            _other => {}
        }
        let here = site.display().to_string();
        for (theirs, ours) in
            [("/etc/forkmaster/shop.toml", "app.toml"), ("/etc/shop/app.toml", "app.toml"), ("/srv/shop", &here)]
        {
            command = command.replace(theirs, ours);
        }
        let output = self.shell(&command, &directory);
        if let Some(master) = self.master.take_if(|_| verb == "stop") {
            master.wait_exit();
        }
        output
    }

    fn shell(&self, command: &str, directory: &Path) -> Output {
        let python = Machine::get().default_python().executable.parent().expect("it lies in a directory");
        let path = format!("{}:{}:/usr/bin:/bin", binary().parent().expect("a directory").display(), python.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(directory).env_clear().env("PATH", path).env("SHELL", "/bin/bash");
        shell.output().expect("sh can be started")
    }

    fn convert_in(&mut self) -> PathBuf {
        let directory = tempfile::Builder::new().prefix("fm-").tempdir().expect("a temporary directory can be made");
        let app = "def application(environ, start_response):\n    start_response('200 OK', [])\n    return []\n";
        for (name, content) in [
            ("gunicorn.conf.py", "bind = '127.0.0.1:8000'\nwsgi_app = 'shop.wsgi'\n"),
            ("uwsgi.ini", "[uwsgi]\nhttp-socket = 127.0.0.1:8000\nmodule = shop.wsgi\n"),
            ("shop/__init__.py", ""),
            ("shop/wsgi.py", app),
        ] {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("it lies in a directory")).expect("it is our directory");
            fs::write(path, content).expect("it is our directory");
        }
        self.converted.insert(directory).path().to_path_buf()
    }
}

#[test]
fn every_command_of_the_documentation_runs_or_is_in_the_list() {
    let (mut failed, mut unused) = (Vec::new(), NOT_RUN.to_vec());
    let mut run = 0;
    for page in pages() {
        let mut place = Place::new();
        for (line, command) in commands(&page) {
            if let Some((beginning, _)) = NOT_RUN.iter().find(|(beginning, _)| command.starts_with(beginning)) {
                unused.retain(|(other, _)| other != beginning);
                continue;
            }
            let output = place.run(&command);
            run += 1;
            if !output.status.success() {
                let said = [output.stdout, output.stderr].concat();
                failed.push(format!("{}:{line}: {command}\n{}", page.display(), String::from_utf8_lossy(&said)));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(run >= 20, "{run} commands were run");
    unused.retain(|(beginning, _)| *beginning != "forkmaster dev");
    assert!(unused.is_empty(), "no page has these any more: {unused:?}");
}

/// The rows of the table in README.md, as far as they are ours.
#[test]
fn the_comparisons_show_what_the_readme_says() {
    for (row, words) in [
        ("bad-release", &["exit code 1", "ModuleNotFoundError", "x 200 from release 1\n", "the master lives"][..]),
        ("pruned-release", &["exit code 0", "x 200 from release 2\n", "the master lives"]),
        ("hung-request", &["x 200 from release 1\n", "is in the log: yes", "the master lives"]),
        ("slow-client", &["x 200 from release 1\n", "the master lives"]),
    ] {
        let python = &Machine::get().default_python().executable;
        let mut command = Command::new(python);
        command.arg(root().join("examples/compare/run")).args([row, "forkmaster"]);
        let output = command.env("FORKMASTER", binary()).output().expect("Python can be started");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{row}: {said}");
        assert!(words.iter().all(|words| said.contains(words)) && !said.contains("no answer,"), "{row}: {said}");
        let clients = said.lines().find(|line| line.starts_with("clients saw")).expect("it is there");
        assert!(!clients.contains(','), "{row}: one kind of answer: {said}");
    }
}

/// examples/deploy/migration: each step tells what a client was answered in it.
#[test]
fn the_example_of_migrations_in_pauses_loses_no_answer() {
    let site = tempfile::tempdir().expect("a directory can be made");
    let output = Command::new(root().join("examples/deploy/migration"))
        .env("FORKMASTER", binary())
        .env("VENV", Machine::get().venv("django"))
        .env("SITE", site.path().join("site"))
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.ends_with("exit code 0\n"), "{said}");
    let steps: Vec<&str> = said.split("\n== ").filter(|step| step.contains("the client was answered")).collect();
    let (old, new, page) = (" 200 Axe 49.00", " 200 Axe 49.00, 7 left", " 503 <!DOCTYPE html>");
    // What is said in each step, and what the client was answered: nothing else.
    let expected: [(&str, &[&str]); 4] = [
        ("reload refused: probe GET / answered 500", &[old]),
        ("Applying catalogue.0003_stock... OK", &[old, new]),
        ("RuntimeError: the stock of the Fork is not known", &[new]),
        ("generation 5 serves", &[new, page]),
    ];
    assert_eq!(steps.len(), expected.len(), "{said}");
    for (step, (words, answers)) in steps.into_iter().zip(expected) {
        assert!(step.contains(words), "{words}: {said}");
        let told = step.split("-- the client was answered:\n").nth(1).and_then(|rest| rest.split("-- it").next());
        let told: Vec<&str> = told.expect("it is there").lines().collect();
        let is_expected = |line: &&str| answers.iter().any(|answer| line.ends_with(answer));
        assert!(told.len() == answers.len() && told.iter().all(is_expected), "{told:?}: {said}");
    }
}

//! `convert` with configurations as they are in use: thirteen of each server, with settings that public ones
//! have. Each becomes the file beside it in tests/convert, which `check` calls good, or is refused with the words there.
//! Run with FORKMASTER_BLESS=1, the test writes what is expected anew.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::harness::machine::Machine;
use crate::harness::master::{run_with, Launch, Output};
use crate::harness::site::{app_source, make_venv};

const APPLICATION: &str =
    "def application(environ, start_response):\n    start_response('200 OK', [])\n    return []\n";

fn examples() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/convert");
    let found = fs::read_dir(directory).expect("it is there").map(|entry| entry.expect("it can be read").path());
    let mut found: Vec<PathBuf> =
        found.filter(|path| path.extension().is_some_and(|suffix| suffix == "py" || suffix == "ini")).collect();
    found.sort();
    found
}

/// A machine on which such a configuration is in use.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::Builder::new().prefix("fm-").tempdir().expect("a temporary directory can be made");
        let place = Place { directory };
        for name in ["run", "log", "lib", "site/shop", "shop"] {
            fs::create_dir_all(place.path(name)).expect("it is our directory");
        }
        for name in ["site/shop", "shop"] {
            fs::write(place.path(name).join("__init__.py"), "").expect("it is our file");
            fs::write(place.path(name).join("wsgi.py"), APPLICATION).expect("it is our file");
        }
        fs::write(place.path("site/shop/tasks.py"), "try:\n    import uwsgi\nexcept ImportError:\n    uwsgi = None\n")
            .expect("it is our file");
        fs::write(place.path("shop/tasks.py"), "def start_tracing():\n    pass\n").expect("it is our file");
        fs::write(place.path("prometheus_that_is_there.py"), "multiprocess = None\n").expect("it is our file");
        make_venv(Machine::get().default_python(), &place.path("venv"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().expect("it is there").join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let launch = Launch::default().env("PORT", "8000").env("FORKMASTER_LOG__LEVEL", "");
        run_with(&self.path(""), arguments, launch)
    }

    /// Without the directory's random name.
    fn same_everywhere(&self, text: &str) -> String {
        text.replace(self.path("").to_string_lossy().trim_end_matches('/'), "@ROOT@")
    }
}

/// What a conversion leads to: its file, or the words of its refusal.
fn convert(example: &Path) -> String {
    let place = Place::new();
    let name = example.file_name().expect("it has one").to_string_lossy().into_owned();
    let text = fs::read_to_string(example).expect("it is there");
    let text = text.replace("@ROOT@", place.path("").to_string_lossy().trim_end_matches('/'));
    fs::write(place.path(&name), text).expect("it is our file");
    let output = place.run(&["convert", "--yes", &name]);
    if !output.ok() {
        assert_eq!(output.code, Some(1), "{name}: {output}");
        assert!(!place.path("app.toml").exists() && !place.path("app.env").exists(), "{name}: a file stayed");
        return place.same_everywhere(&output.stderr);
    }
    let checked = place.run(&["check"]);
    assert!(checked.ok(), "{name}: check of what was converted: {checked}");
    let mut made = fs::read_to_string(place.path("app.toml")).expect("it was written");
    if let Ok(secrets) = fs::read_to_string(place.path("app.env")) {
        let mode = fs::metadata(place.path("app.env")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}: others can read the secrets");
        made.push_str(&format!("\n# ---- app.env\n{secrets}"));
    }
    made.push_str(&format!("\n# ---- said\n{}{}", output.stderr, output.stdout));
    place.same_everywhere(&made)
}

#[test]
fn what_others_have_becomes_a_good_configuration_or_is_refused_with_the_way_out() {
    let examples = examples();
    assert_eq!(examples.len(), 26);
    let mut wrong = Vec::new();
    for example in examples {
        let made = convert(&example);
        let expected = example.with_extension("expected");
        if fs::read_to_string(&expected).unwrap_or_default() == made {
            continue;
        }
        match std::env::var_os("FORKMASTER_BLESS") {
            Some(_) => fs::write(&expected, made).expect("it is our file"),
            None => wrong.push(format!("{}:\n{made}", example.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_command_line_of_gunicorn_is_converted() {
    let place = Place::new();
    let flags = ["convert", "-c", "shop.toml", "--", "gunicorn", "-w", "4", "--bind", ":8000", "shop.wsgi"];
    let output = place.run(&flags);
    assert!(output.ok(), "{output}");
    let made = fs::read_to_string(place.path("shop.toml")).expect("it was written");
    assert!(made.contains("module = \"shop.wsgi\"") && made.contains("bind = [\"0.0.0.0:8000\"]"), "{made}");
    assert!(made.contains("workers = 4"), "{made}");
    let boots = place.run(&["check", "--boot", "-c", "shop.toml"]);
    assert!(boots.ok(), "{boots}");
    // A file that is there is somebody's.
    let again = place.run(&flags);
    assert_eq!(again.code, Some(1), "{again}");
    assert!(again.stderr.contains("shop.toml is there already; -c names another file to write"), "{again}");
    assert_eq!(fs::read_to_string(place.path("shop.toml")).expect("it was written"), made);
}

#[test]
fn what_stands_around_a_command_is_not_lost() {
    let place = Place::new();
    let words = "convert -- env DJANGO_SETTINGS_MODULE=shop.settings newrelic-admin run-program python -m gunicorn \
                 --proxy-protocol --preload shop.wsgi";
    let words: Vec<&str> = words.split_whitespace().collect();
    let launch = || {
        let launch = Launch::default().env("GUNICORN_CMD_ARGS", "--workers 3 --threads '2'");
        launch.env("FORKMASTER_LOG__LEVEL", "")
    };
    let output = run_with(&place.path(""), &words, launch());
    assert!(output.ok(), "{output}");
    assert!(output.stderr.contains("newrelic-admin run-program forkmaster -c FILE"), "{output}");
    assert!(output.stderr.contains("GUNICORN_CMD_ARGS is taken in here"), "{output}");
    let made = fs::read_to_string(place.path("app.toml")).expect("it was written");
    for line in ["module = \"shop.wsgi\"", "workers = 3", "threads = 2", "preload = true", "proxy_protocol = \"v1\""] {
        assert!(made.lines().any(|made| made == line), "{line}: {made}");
    }
    let secrets = fs::read_to_string(place.path("app.env")).expect("it was written");
    assert_eq!(secrets, "DJANGO_SETTINGS_MODULE='shop.settings'\n");
    // Nobody else reads that variable, which an image may still set.
    let checked = run_with(&place.path(""), &["check"], launch());
    assert!(checked.ok() && checked.stderr.contains("GUNICORN_CMD_ARGS is Gunicorn's"), "{checked}");
}

#[test]
fn what_cannot_be_converted_is_said() {
    let place = Place::new();
    fs::write(place.path("conf.py"), "bind = ':8000'\n").expect("it is our file");
    fs::write(place.path("broken.py"), "import package_that_nobody_installed\n").expect("it is our file");
    fs::write(place.path("paste.ini"), "[server:main]\nuse = egg:gunicorn#main\n").expect("it is our file");
    fs::write(place.path("Procfile"), "web: gunicorn shop.wsgi\n").expect("it is our file");
    fs::write(place.path("site.yaml"), "uwsgi:\n  master: true\n").expect("it is our file");
    for (arguments, expected) in [
        (&["convert", "--yes", "conf.py"][..], "convert conf.py -- shop.wsgi:app"),
        (&["convert", "--yes", "broken.py"], "No module named 'package_that_nobody_installed'"),
        (&["convert", "site.yaml"], "write it so"),
        (&["convert", "--yes", "nowhere.py"], "there is no file"),
        (&["convert"], "name a gunicorn.conf.py"),
        (&["convert", "--", "-x"], "`-x` is no option of Gunicorn"),
        (&["convert", "--", "gunicorn", "--timeot", "30", "shop.wsgi"], "did you mean `--timeout`?"),
        (&["convert", "--", "gunicorn", "-c", "python:shop.conf", "shop.wsgi"], "write -c shop/conf.py"),
        (&["convert", "--", "gunicorn -w 4 shop.wsgi"], "without quotes"),
        (&["convert", "--", "uwsgi", "--http", ":8000", "--master"], "below [uwsgi] into a file site.ini"),
        // Without it another application could be found, and served.
        (&["convert", "--", "gunicorn", "shop-web.wsgi"], "the application cannot be taken"),
        (&["convert", "paste.ini"], "there is no section [uwsgi]"),
        (&["convert", "Procfile"], "forkmaster convert -- gunicorn -w 4 shop.wsgi"),
    ] {
        let output = place.run(arguments);
        assert_eq!(output.code, Some(1), "{arguments:?}: {output}");
        assert!(output.stderr.contains(expected), "{arguments:?}: {output}");
        assert!(!place.path("app.toml").exists(), "{arguments:?}");
    }
    if nix::unistd::geteuid().is_root() {
        let output = place.run(&["convert", "conf.py"]);
        assert!(output.stderr.contains("it would run as root"), "{output}");
    }
    // The application of the command line stands above the file, and then it is enough.
    let output = place.run(&["convert", "--yes", "conf.py", "--", "shop.wsgi"]);
    assert!(output.ok(), "{output}");
    // An application that lies there is found.
    fs::write(place.path("app.py"), app_source("app.py")).expect("it is our file");
    let output = place.run(&["convert", "--yes", "-c", "other.toml", "conf.py"]);
    assert!(output.ok(), "{output}");
    let made = fs::read_to_string(place.path("other.toml")).expect("it was written");
    assert!(made.contains("found in app.py") && made.contains("module = \"app:application\""), "{made}");
}

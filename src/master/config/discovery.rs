//! The application of a release that nobody has named: what `forkmaster` without arguments serves. It reads the few
//! files where applications usually are as text, and runs nothing; Python has the last word, in the worker.

use std::path::Path;

/// An application that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As `[app] module` would say it.
    pub module: String,
    /// For `config show` and the log.
    pub how: &'static str,
}

/// Where to look, in this order: what is named for the server comes first, as it is meant to be served.
const FILES: [(&str, &str, &str); 4] = [
    ("wsgi.py", "wsgi", "found in wsgi.py"),
    ("app.py", "app", "found in app.py"),
    ("main.py", "main", "found in main.py"),
    ("application.py", "application", "found in application.py"),
];
const NAMES: [&str; 2] = ["application", "app"];
const FACTORY: &str = "create_app";
/// Sources of applications are small; a data set that is called app.py is not read.
const SOURCE_BYTES_MAX: u64 = 1 << 20;

/// Looks in a release. None: nothing that is plainly an application.
pub fn find(release: &Path) -> Option<Found> {
    django(release).or_else(|| {
        FILES.iter().find_map(|(file, module, how)| {
            let name = callable(&source(&release.join(file))?)?;
            Some(Found { module: format!("{module}:{name}"), how })
        })
    })
}

/// manage.py names the settings, and `startproject` puts wsgi.py beside them.
fn django(release: &Path) -> Option<Found> {
    let manage = source(&release.join("manage.py"))?;
    let line = manage.lines().find(|line| line.contains("DJANGO_SETTINGS_MODULE"))?;
    let settings = line.split(['"', '\'']).find(|word| word.contains('.') && word.split('.').all(is_name))?;
    // `config.settings.production` has it in `config`.
    let mut package = settings.rsplit_once('.')?.0;
    loop {
        let file = release.join(package.replace('.', "/")).join("wsgi.py");
        if file.is_file() {
            return Some(Found { module: format!("{package}.wsgi:application"), how: "found by manage.py" });
        }
        package = package.rsplit_once('.')?.0;
    }
}

fn source(path: &Path) -> Option<String> {
    let meta = path.metadata().ok()?;
    (meta.is_file() && meta.len() <= SOURCE_BYTES_MAX).then(|| std::fs::read_to_string(path).ok())?
}

/// A name that the module gives at its top level: by assignment, `def`, `class` or `import`.
fn callable(source: &str) -> Option<String> {
    if let Some(name) = NAMES.into_iter().find(|name| source.lines().any(|line| binds(line, name))) {
        return Some(name.to_owned());
    }
    let plain = format!("def {FACTORY}():");
    let annotated = format!("def {FACTORY}() ->");
    let is_factory = |line: &str| line.starts_with(&plain) || line.starts_with(&annotated);
    source.lines().any(is_factory).then(|| format!("{FACTORY}()"))
}

/// Whether a line of the top level binds the name, as far as a line can tell. An `async def` makes no WSGI
/// application.
fn binds(line: &str, name: &str) -> bool {
    if let Some(rest) = line.strip_prefix(name) {
        let rest = rest.trim_start();
        // `app = Flask(__name__)`, `app: Flask = Flask(__name__)`; not `app.run()`, `app == other`.
        return rest.starts_with(':') || (rest.starts_with('=') && !rest.starts_with("=="));
    }
    if let Some(rest) = line.strip_prefix("def ").or_else(|| line.strip_prefix("class ")) {
        return rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(['(', ':']));
    }
    let imported = line.strip_prefix("from ").and_then(|rest| rest.split_once(" import "));
    imported.is_some_and(|(_, names)| {
        let names = names.split('#').next().unwrap_or_default().trim_matches(['(', ')', ' ']);
        names.split(',').any(|item| item.rsplit(" as ").next().is_some_and(|bound| bound.trim() == name))
    })
}

fn is_name(part: &str) -> bool {
    !part.is_empty() && part.chars().all(|c| c == '_' || c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files, and the application that is to be found in them.
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);

    fn found(files: &[(&str, &str)]) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        find(directory.path()).map(|found| found.module)
    }

    #[test]
    fn an_application_is_found_where_it_usually_is() {
        let manage = "#!/usr/bin/env python\nimport os\n\ndef main():\n    \
                      os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'config.settings.local')\n";
        let cases: &[Case<'_>] = &[
            (&[("app.py", "from flask import Flask\napp = Flask(__name__)\n")], Some("app:app")),
            (&[("main.py", "app: Flask = make()\n")], Some("main:app")),
            (&[("wsgi.py", "from shop import create_app\napplication = create_app()\n")], Some("wsgi:application")),
            (&[("wsgi.py", "from app import app  # here\n"), ("app.py", "app = 1\n")], Some("wsgi:app")),
            (&[("wsgi.py", "from shop import (server as app)\n")], Some("wsgi:app")),
            (&[("app.py", "def application(environ, start_response):\n    pass\n")], Some("app:application")),
            (&[("app.py", "def create_app():\n    pass\n")], Some("app:create_app()")),
            (&[("app.py", "def create_app() -> Flask:\n    pass\n")], Some("app:create_app()")),
            (&[("app.py", "def create_app(config):\n    pass\n")], None),
            (&[("app.py", "    app = 1\napp.run()\napp == 2\napplications = 3\nasync def app(s, r, t): pass\n")], None),
            (
                &[("manage.py", manage), ("config/wsgi.py", ""), ("app.py", "app = 1\n")],
                Some("config.wsgi:application"),
            ),
            (&[("manage.py", manage), ("app.py", "app = 1\n")], Some("app:app")),
            (&[("manage.py", "app = 1\n")], None),
            (&[], None),
        ];
        for (files, expected) in cases {
            assert_eq!(found(files).as_deref(), *expected, "{files:?}");
        }
    }
}

//! Which files of a release are worth a reload, and which directories are looked into. Programs write beside their code:
//! databases, logs, compiled files, editors' copies. So this names what counts, not what does not.

use std::ffi::OsStr;
use std::path::{Component, Path};

/// Code, templates, translations and configuration.
const ENDINGS: [&str; 22] = [
    "py", "html", "htm", "xhtml", "xml", "jinja", "jinja2", "j2", "mako", "haml", "pug", "md", "rst", "toml", "yaml",
    "yml", "ini", "cfg", "conf", "sql", "graphql", "mo",
];

/// Below these everything counts but compiled files: mails are templates that end in `.txt`.
const DIRECTORIES: [&str; 3] = ["templates", "jinja2", "locale"];

/// Large, and written by programs.
const SKIPPED: [&str; 5] = ["__pycache__", "node_modules", "site-packages", "bower_components", "htmlcov"];

/// Whether a file counts, by its path below the directory that is watched.
pub fn counts(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(OsStr::to_str) else { return false };
    if is_environment(name) {
        return true;
    }
    // Hidden files, and copies that editors make before they put a file in place.
    if name.starts_with(['.', '#']) || name.ends_with('~') {
        return false;
    }
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or("");
    let is_template = || {
        let above = path.parent().into_iter().flat_map(Path::components);
        let mut names = above.filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
        });
        !["pyc", "swp", "tmp"].contains(&ending) && names.any(|name| DIRECTORIES.contains(&name))
    };
    ENDINGS.contains(&ending) || is_template()
}

/// `.env`, `.env.local`, `.flaskenv`, `shop.env`
fn is_environment(name: &str) -> bool {
    name == ".flaskenv"
        || name == ".env"
        || (name.starts_with(".env.") && !name.ends_with('~'))
        || name.ends_with(".env")
}

/// Whether a directory is looked into.
pub fn is_entered(name: &OsStr) -> bool {
    name.to_str().is_none_or(|name| !name.starts_with('.') && !SKIPPED.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_counts_and_what_programs_write_does_not() {
        for path in
            ["app.py", "shop/templates/mail/welcome.txt", "pages/a.html", ".env", ".env.local", "shop.env", "a.toml"]
        {
            assert!(counts(Path::new(path)), "{path}");
        }
        for path in [
            "db.sqlite3",
            "db.sqlite3-journal",
            "access.log",
            "app.pyc",
            ".app.py.swp",
            "app.py~",
            "4913",
            "#app.py#",
            "notes.txt",
            "media/photo.jpg",
            "templates/.a.html.swp",
            "templates/__pycache__/a.pyc",
            "data.json",
        ] {
            assert!(!counts(Path::new(path)), "{path}");
        }
        assert!(
            is_entered(OsStr::new("shop"))
                && !is_entered(OsStr::new(".git"))
                && !is_entered(OsStr::new("node_modules"))
        );
    }
}

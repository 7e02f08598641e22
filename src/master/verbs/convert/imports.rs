//! `import uwsgi` in a release: a module that only uWSGI's own process has. The lines are found and named; what they are for
//! is in the application.

use std::fs;
use std::path::{Path, PathBuf};

/// A release is a few thousand files; a data set beside it is not searched.
const FILES_MAX: usize = 5_000;
const FILE_BYTES_MAX: u64 = 1 << 20;
const DEPTH_MAX: usize = 12;

/// `shop/tasks.py:3: from uwsgidecorators import spool`, at most a page of them.
pub fn of_uwsgi(release: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = FILES_MAX;
    let mut directories = vec![(release.to_owned(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        entries.sort_unstable();
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(meta) = path.symlink_metadata() else { continue };
            if meta.is_dir() {
                let is_venv = path.join("pyvenv.cfg").is_file();
                if depth < DEPTH_MAX && !name.starts_with('.') && name != "node_modules" && !is_venv {
                    directories.push((path, depth + 1));
                }
            } else if name.ends_with(".py") && meta.len() <= FILE_BYTES_MAX {
                if left == 0 || found.len() >= 40 {
                    return found;
                }
                left -= 1;
                let text = fs::read_to_string(&path).unwrap_or_default();
                let shown = path.strip_prefix(release).unwrap_or(&path).display();
                let lines = (1..).zip(text.lines()).filter(|(_, line)| imports(line));
                found.extend(lines.map(|(number, line)| format!("{shown}:{number}: {}", line.trim())));
            }
        }
    }
    found
}

fn imports(line: &str) -> bool {
    let mut words = line.split_whitespace();
    match (words.next(), words.next()) {
        (Some("import" | "from"), Some(module)) => {
            let module = module.trim_end_matches(',');
            module == "uwsgi" || module == "uwsgidecorators"
        }
        (_, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_of_uwsgi_are_found_with_their_place() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("shop")).unwrap();
        fs::create_dir_all(root.join("env/lib")).unwrap();
        fs::write(
            root.join("shop/tasks.py"),
            "import os\ntry:\n    import uwsgi\nexcept ImportError:\n    uwsgi = None\n",
        )
        .unwrap();
        fs::write(root.join("app.py"), "from uwsgidecorators import spool\nimport uwsgi_tools\n").unwrap();
        fs::write(root.join("env/pyvenv.cfg"), "").unwrap();
        fs::write(root.join("env/lib/x.py"), "import uwsgi\n").unwrap();
        assert_eq!(of_uwsgi(root), ["app.py:1: from uwsgidecorators import spool", "shop/tasks.py:3: import uwsgi"]);
    }
}

//! uWSGI's configuration as it is read: `key = value` lines of the section [uwsgi], values that name other values, variables
//! and the file itself. What is computed at run time (`@(exec://..)`, `if-env`) is kept as it is written, and told.

use std::collections::BTreeMap;
use std::path::Path;

/// One line with its value filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: String,
    /// It cannot be known without running uWSGI.
    pub computed: bool,
    /// Other values are filled from it, as `%(name)`.
    pub is_named: bool,
}

/// Placeholders in placeholders: uWSGI gives up at some point, and so does this.
const ROUNDS_MAX: usize = 10;

/// Files that include themselves end somewhere.
const DEPTH_MAX: usize = 5;

pub fn read(text: &str, path: &Path) -> Vec<Entry> {
    let mut reading = Reading { text, path, names: BTreeMap::new(), entries: Vec::new() };
    reading.section("uwsgi", 0);
    for entry in &mut reading.entries {
        entry.is_named = text.contains(&format!("%({})", entry.key));
    }
    reading.entries
}

struct Reading<'a> {
    text: &'a str,
    path: &'a Path,
    names: BTreeMap<String, String>,
    entries: Vec<Entry>,
}

impl Reading<'_> {
    fn section(&mut self, wanted: &str, depth: usize) {
        let mut here = false;
        for line in self.text.lines() {
            // A comment may stand behind a value.
            let line = line.split(" ;").next().unwrap_or_default();
            let line = line.split("\t;").next().unwrap_or_default().trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            if let Some((section, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                here = section.trim() == wanted;
                continue;
            }
            if here {
                self.line(line, depth);
            }
        }
    }

    fn line(&mut self, line: &str, depth: usize) {
        // A key alone is a switch.
        let (key, value) = line.split_once('=').unwrap_or((line, "true"));
        let (key, value) = (key.trim().to_owned(), fill(value.trim(), &self.names, self.path));
        // `ini = :base` takes in another section of the file.
        if let Some(section) = value.strip_prefix(':').filter(|_| key == "ini" && depth < DEPTH_MAX) {
            return self.section(section, depth + 1);
        }
        // Of a number uWSGI reads what are digits, so that a comment may stand behind it in this form as well.
        let number = value.split('#').next().unwrap_or_default().trim_end();
        let value =
            if number.is_empty() || number.contains(|c: char| !c.is_ascii_digit()) { value } else { number.to_owned() };
        // A format has names of its own in the same parentheses.
        let is_format = matches!(key.as_str(), "log-format" | "logformat" | "log-encoder" | "log-req-encoder");
        let computed = (value.contains("@(") || value.contains("%(")) && !is_format;
        match key.as_str() {
            "set" | "set-placeholder" | "set-ph" => {
                if let Some((name, value)) = value.split_once('=') {
                    self.names.insert(name.trim().to_owned(), value.trim().to_owned());
                }
            }
            _setting => {
                self.names.insert(key.clone(), value.clone());
                self.entries.push(Entry { key, value, computed, is_named: false });
            }
        }
    }
}

/// What the lines below it depend on, or are repeated for.
pub fn is_condition(key: &str) -> bool {
    key.starts_with("if-") || matches!(key, "for" | "for-glob" | "for-times" | "for-readline")
}

pub fn ends_condition(key: &str) -> bool {
    matches!(key, "endif" | "end-if" | "endfor" | "end-for")
}

/// `%(name)`, `$(VARIABLE)` and `%d`, `%p`, `%n`: the directory, the path and the name of the file. A dollar sign of its own
/// is doubled, as our files want it.
fn fill(value: &str, names: &BTreeMap<String, String>, path: &Path) -> String {
    let mut filled = String::new();
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        filled.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        match after.strip_prefix('(').and_then(|inside| inside.split_once(')')) {
            Some((name, after)) => {
                filled.push_str(&format!("${{{name}}}"));
                rest = after;
            }
            None => {
                filled.push_str("$$");
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let directory_name = directory.file_name().unwrap_or_default().to_string_lossy();
    for (magic, meant) in [
        ("%d", format!("{}/", directory.display()).replace("//", "/")),
        ("%p", path.display().to_string()),
        ("%n", stem.into_owned()),
        ("%c", directory_name.into_owned()),
    ] {
        filled = filled.replace(magic, &meant);
    }
    for _round in 0..ROUNDS_MAX {
        let Some((before, inside)) = filled.split_once("%(") else { break };
        let Some((name, after)) = inside.split_once(')') else { break };
        let Some(value) = names.get(name.trim()) else { break };
        filled = format!("{before}{value}{after}");
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_variables_and_the_file_itself() {
        let text = "[other]\nprocesses = 9\n[base]\nthreads = 2 ; two\nlisten = 64  # many\n[uwsgi]\nini = :base\n; a comment\n# another\nproject = shop\nbase = /srv/%(project)\n\
                    chdir = %(base)/src\nmaster\nhttp = :$(PORT)\nlogto = %dlogs/%n.log\nenv = KEY=a$b\n\
                    processes = %(cores)\nstats = @(exec://hostname)\n";
        let entries = read(text, Path::new("/etc/uwsgi/site.ini"));
        let shown: Vec<String> = entries
            .iter()
            .map(|entry| format!("{}={}{}", entry.key, entry.value, if entry.computed { " !" } else { "" }))
            .collect();
        assert_eq!(
            shown,
            [
                "threads=2",
                "listen=64",
                "project=shop",
                "base=/srv/shop",
                "chdir=/srv/shop/src",
                "master=true",
                "http=:${PORT}",
                "logto=/etc/uwsgi/logs/site.log",
                "env=KEY=a$$b",
                "processes=%(cores) !",
                "stats=@(exec://hostname) !",
            ]
        );
    }
}

//! What a newcomer does wrong, and what forkmaster says to it: what is wrong, where, why, and what to write. Each case of
//! tests/wrong_starts is a transcript: files, a command, its exit code and its whole output. Run with FORKMASTER_BLESS=1,
//! this test writes the outputs anew; they are read by people before they are committed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::machine::Machine;
use crate::harness::master::{run_with, Launch};
use crate::harness::site::make_venv;

/// One wrong start.
struct Case {
    title: String,
    files: Vec<(String, String)>,
    /// Variables, then arguments, as a shell would have them.
    command: String,
    code: String,
    output: String,
}

/// `## title`, then files (`--- name` and their lines), `$ command`, `[code]`, output.
fn read(text: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for part in text.split("\n## ").skip(1) {
        let (title, rest) = part.split_once('\n').expect("a title is followed by a case");
        let (head, tail) = rest.split_once("\n$ ").or_else(|| Some(("", rest.strip_prefix("$ ")?))).expect("a command");
        let files = format!("\n{head}");
        let files = files.split("\n--- ").skip(1).map(|file| {
            let (name, content) = file.split_once('\n').unwrap_or((file, ""));
            (name.to_owned(), format!("{content}\n"))
        });
        let (command, tail) = tail.split_once('\n').unwrap_or((tail, ""));
        let (code, output) = tail.split_once('\n').unwrap_or((tail, ""));
        cases.push(Case {
            title: title.to_owned(),
            files: files.collect(),
            command: command.to_owned(),
            code: code.trim_matches(['[', ']']).to_owned(),
            output: output.trim_end().to_owned(),
        });
    }
    cases
}

fn write(cases: &[Case], head: &str) -> String {
    let mut text = head.trim_end().to_owned() + "\n";
    for case in cases {
        text.push_str(&format!("\n## {}\n", case.title));
        for (name, content) in &case.files {
            text.push_str(&format!("--- {name}\n{content}"));
        }
        text.push_str(&format!("$ {}\n[{}]\n{}\n", case.command, case.code, case.output));
    }
    text
}

/// Runs the command in a directory of its own, and returns its exit code and what it said.
fn run(case: &Case) -> (String, String) {
    let directory = tempfile::Builder::new().prefix("fm-").tempdir().expect("a temporary directory can be made");
    let root = directory.path().canonicalize().expect("it is there");
    for (name, content) in &case.files {
        make(&root.join(name), content);
    }
    let python = &Machine::get().default_python().executable;
    let bin = python.parent().expect("it lies in a directory");
    let mut launch =
        Launch { env: Vec::new(), ..Launch::default() }.env("PATH", &format!("{}:/usr/bin", bin.display()));
    let mut words = case.command.split(' ').peekable();
    while let Some((name, value)) = words.peek().and_then(|word| word.split_once('=')) {
        launch = launch.env(name, value);
        words.next();
    }
    assert_eq!(words.next(), Some("forkmaster"), "{}", case.title);
    let arguments: Vec<&str> = words.collect();
    let output = run_with(&root, &arguments, launch);
    let code = output.code.map_or("signal".to_owned(), |code| code.to_string());
    let said = format!("{}{}", output.stderr, output.stdout);
    (code, same_everywhere(&said, &root, bin))
}

/// A file; a directory where the name ends with a slash, a link where the content says so, a real virtual environment for
/// `!venv`.
fn make(path: &Path, content: &str) {
    let name = path.to_string_lossy();
    let parent = path.parent().expect("it lies in a directory");
    fs::create_dir_all(if name.ends_with('/') { path } else { parent }).expect("it is our directory");
    match content.trim_end() {
        "!venv" => {
            make_venv(Machine::get().default_python(), path);
        }
        link if link.starts_with("-> ") => {
            std::os::unix::fs::symlink(&link[3..], path).expect("it is our directory");
        }
        _file if name.ends_with('/') => {}
        _file => fs::write(path, content).expect("it is our directory"),
    }
}

/// Without what differs from run to run: directories, times, and all of a traceback but that there is one.
fn same_everywhere(said: &str, root: &Path, bin: &Path) -> String {
    let text = said.replace(&*root.to_string_lossy(), "/T").replace(&*bin.to_string_lossy(), "/PYTHON");
    let mut lines: Vec<String> = Vec::new();
    let mut in_traceback = false;
    for line in text.lines() {
        let is_ours = line.starts_with("forkmaster: ") || line.starts_with("20");
        in_traceback =
            (in_traceback && !is_ours) || line.starts_with("Traceback (most recent") || line.starts_with("Thread ");
        match in_traceback {
            false => lines.push(without_figures(line)),
            true if lines.last().is_none_or(|last| last != "(traceback)") => lines.push("(traceback)".to_owned()),
            true => {}
        }
    }
    lines.join("\n").trim_end().to_owned()
}

/// Without the time of a line of the log, its process, and how long something took on which Python.
fn without_figures(line: &str) -> String {
    let line = line.split_once("Z ").filter(|_| line.starts_with("20")).map_or(line, |(_, rest)| rest);
    let line = line.split_once(" on Python ").map_or(line, |(rest, _)| rest);
    let words: Vec<&str> =
        line.split(' ').filter(|word| !word.starts_with("after=") && !word.starts_with("pid=")).collect();
    words.join(" ")
}

fn transcripts() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wrong_starts");
    let found = fs::read_dir(directory).expect("it is there").map(|entry| entry.expect("it can be read").path());
    let mut found: Vec<PathBuf> = found.filter(|path| path.extension().is_some_and(|suffix| suffix == "txt")).collect();
    found.sort();
    found
}

fn holds(file: &str) {
    let path = transcripts().into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == file));
    let path = path.unwrap_or_else(|| panic!("there is no transcript {file}"));
    let text = fs::read_to_string(&path).expect("it is there");
    let mut cases = read(&text);
    assert!(!cases.is_empty());
    let mut wrong = Vec::new();
    for case in &mut cases {
        let (code, output) = run(case);
        if (&code, &output) != (&case.code, &case.output) {
            wrong.push(format!("## {}\n$ {}\n[{code}]\n{output}", case.title, case.command));
            (case.code, case.output) = (code, output);
        }
    }
    if std::env::var_os("FORKMASTER_BLESS").is_some() {
        let head = text.split("\n## ").next().unwrap_or_default();
        fs::write(&path, write(&cases, head)).expect("it is our file");
    } else {
        assert!(wrong.is_empty(), "said otherwise:\n{}", wrong.join("\n\n"));
    }
}

#[test]
fn on_the_command_line() {
    holds("command_line");
}

#[test]
fn in_the_configuration() {
    holds("configuration");
}

#[test]
fn in_the_application() {
    holds("application");
}

#[test]
fn out_of_habit() {
    holds("habits");
}

#[test]
fn every_transcript_has_its_test() {
    let names: Vec<String> =
        transcripts().iter().filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    assert_eq!(names, ["application", "command_line", "configuration", "habits"]);
}

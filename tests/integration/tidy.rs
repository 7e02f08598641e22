//! The rules of the house that a program can check: which part may know which, and what is never left behind. Read
//! from the sources, so that a rule that was broken is named with its line.

use std::fs;
use std::path::{Path, PathBuf};

/// A part of the sources and the names that must not occur in it, each with the reason.
const ARROWS: [(&str, &[(&str, &str)]); 6] = [
    ("src/master", &[("pyo3", "the master knows no Python"), ("forkmaster_http", "the master serves no requests")]),
    (
        "src/wire",
        &[("pyo3", "both ends speak it, one of them without Python"), ("forkmaster_http", "the messages know no HTTP")],
    ),
    ("src/http", &[("pyo3", "the HTTP crate knows no Python"), ("forkmaster_wire", "the HTTP crate knows no master")]),
    (
        "src/http/proto",
        &[
            ("serve::", "arrows go from serve to proto and never back"),
            ("std::io", "the protocol does no input or output"),
            ("std::net", "the protocol does no input or output"),
        ],
    ),
    ("src/worker", &[("crate::master::", "the worker knows messages, not the master")]),
    ("src", &[("memfd_create(c", "the C library of manylinux_2_17 has no such function: wire::memfd")]),
];

/// The supervisor decides and does nothing.
const PURE: [&str; 5] = ["std::fs", "std::net", "libc::", "Instant::now", "SystemTime"];

/// What may wait for a disk, for NSS or for whoever reads stderr, and the places of the master where it may stand.
const WAITS: [&str; 7] = ["std::fs", "OpenOptions", "getpw", "getgr", "User::from", "stderr()", "eprint"];
const MAY_WAIT: [(&str, &str); 17] = [
    ("chores/", "its threads are for that"),
    ("config/", "called by chores, and by verbs"),
    ("files/", "called by chores, and before the loop"),
    ("logs/", "the log has a thread of its own; stderr's descriptor is copied"),
    ("pidfile.rs", "before the loop"),
    ("verbs/", "a process of their own"),
    ("library.rs", "before the loop, to memory"),
    ("listeners/", "socket files, in the directory of a bind(2) that waits as long; /proc"),
    ("doors/socket_file.rs", "before the loop"),
    ("doors/peer.rs", "/proc only"),
    ("children.rs", "/proc only"),
    ("service/dumps.rs", "/proc only"),
    ("service/not_started.rs", "/proc, and directories that an exec(2) has just waited for"),
    ("service/oom.rs", "/proc and /sys only"),
    ("service/room.rs", "/proc and /sys only"),
    ("service/watch.rs", "/proc only"),
    ("watcher/", "a thread of its own"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a directory, without tests' own files.
fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources in {directory}");
    found
}

/// Lines of code, numbered: no comments, and nothing after the file's own tests begin.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.to_string()));
    let lines = lines.take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    lines.filter(|(_, line)| !line.trim_start().starts_with("//")).collect()
}

fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
    stem == "tests"
        || stem.ends_with("_test")
        || stem.ends_with("_tests")
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// Every line of code below a directory in which one of the words occurs.
fn lines_with(directory: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in sources(directory).into_iter().filter(|path| !is_test_file(path)) {
        for (number, line) in code(&path) {
            if words.iter().any(|word| line.contains(word)) {
                let name = path.strip_prefix(root()).unwrap_or(&path);
                found.push(format!("{}:{number}: {}", name.display(), line.trim()));
            }
        }
    }
    found
}

#[test]
fn imports_follow_the_arrows() {
    for (directory, forbidden) in ARROWS {
        for (word, reason) in forbidden {
            let found = lines_with(directory, &[word]);
            assert!(found.is_empty(), "{reason}:\n{}", found.join("\n"));
        }
    }
}

#[test]
fn dependencies_follow_the_arrows() {
    let manifest = |path: &str| fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let dependencies =
        |text: String| text.split("[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("").to_string();
    for (path, forbidden) in [
        ("Cargo.toml", &["pyo3", "forkmaster-http", "httparse"][..]),
        ("src/wire/Cargo.toml", &["pyo3", "forkmaster-http", "mio"]),
        ("src/http/Cargo.toml", &["pyo3", "forkmaster-wire"]),
    ] {
        let text = dependencies(manifest(path));
        for name in forbidden {
            assert!(!text.lines().any(|line| line.starts_with(name)), "{path} depends on {name}");
        }
    }
}

#[test]
fn the_supervisor_is_pure() {
    let found = lines_with("src/master/supervisor", &PURE);
    assert!(found.is_empty(), "the supervisor does something itself:\n{}", found.join("\n"));
}

#[test]
fn the_masters_loop_waits_for_no_disk_and_no_name() {
    let found = lines_with("src/master", &WAITS);
    let may = |line: &String| MAY_WAIT.iter().any(|(place, _)| line.starts_with(&format!("src/master/{place}")));
    let found: Vec<String> = found.into_iter().filter(|line| !may(line)).collect();
    assert!(found.is_empty(), "this belongs into a chore:\n{}", found.join("\n"));
}

/// Waiting is for facts. A pause that is none says so in the comment above it.
#[test]
fn nothing_sleeps_to_hope() {
    let calls = ["thread::sleep(", "libc::usleep(", "libc::sleep(", "libc::nanosleep("];
    for path in sources("src").into_iter().filter(|path| !is_test_file(path)) {
        let text = fs::read_to_string(&path).expect("it was listed");
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in code(&path) {
            let explained = number >= 2 && lines[number - 2].contains("Not a wait for something");
            let sleeps = calls.iter().any(|call| line.contains(call)) && !explained;
            assert!(!sleeps, "{}:{number}: {}", path.display(), line.trim());
        }
    }
}

#[test]
fn nothing_unfinished_is_left_behind() {
    let found = lines_with("src", &["todo!", "unimplemented!", "dbg!", "allow(dead_code)", "allow(unused"]);
    assert!(found.is_empty(), "{}", found.join("\n"));
    let notes = ["TODO", "FIXME", "XXX"];
    for path in sources("src") {
        let text = fs::read_to_string(&path).expect("it was listed");
        for (at, line) in text.lines().enumerate() {
            assert!(!notes.iter().any(|note| line.contains(note)), "{}:{}: {line}", path.display(), at + 1);
        }
    }
}

/// stdout belongs to the application and to the answers of the verbs; the library parts have no business there.
#[test]
fn libraries_do_not_print() {
    for directory in ["src/wire", "src/http", "src/worker", "src/master/supervisor"] {
        let found = lines_with(directory, &["println!", "print!("]);
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

/// println! and its like panic where stdout is a closed pipe or a full disk, and the exit code is then no outcome.
#[test]
fn verbs_print_without_a_panic() {
    let found = lines_with("src/master", &["println!", "print!("]);
    assert!(found.is_empty(), "verbs/output.rs prints:\n{}", found.join("\n"));
}

/// serde makes the code of a type once more for each kind of source and sink: `wire::json` is the only one of its kind.
#[test]
fn json_goes_one_way() {
    let found = lines_with("src", &["serde_json::from_", "serde_json::to_value", "serde_json::to_string_pretty"]);
    assert!(found.is_empty(), "wire/json.rs reads and converts:\n{}", found.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    for directory in ["src", "tests/integration"] {
        for path in sources(directory) {
            let text = fs::read_to_string(&path).expect("it was listed");
            assert!(text.starts_with("//! "), "{} does not begin with //!", path.display());
        }
    }
}

/// `unsafe` is one call a block, and says on which fact it relies.
#[test]
fn every_unsafe_block_has_its_reason() {
    let mut missing = Vec::new();
    for path in sources("src").into_iter().filter(|path| !is_test_file(path)) {
        let text = fs::read_to_string(&path).expect("it was listed");
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            // The comment stands above the statement, which may begin some lines before the block.
            let above = &lines[at.saturating_sub(8)..=at];
            if !above.iter().any(|line| line.contains("SAFETY:")) {
                missing.push(format!("{}:{}: {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// A new state or event makes the compiler ask at every place what it means there.
#[test]
fn state_machines_name_every_event() {
    for path in sources("src/master/supervisor").into_iter().filter(|path| !is_test_file(path)) {
        let catches_all = |line: &str| ["_ =>", "(_, ", "| (_, "].iter().any(|start| line.starts_with(start));
        let found: Vec<_> = code(&path).into_iter().filter(|(_, line)| catches_all(line.trim_start())).collect();
        assert!(found.is_empty(), "{}: {found:?}", path.display());
    }
}

/// The layers of the server, lowest first: none knows one that comes after it.
#[test]
fn the_server_is_layered() {
    const LAYERS: [&str; 5] = ["base", "io", "conn", "event_loop", "run"];
    for (at, layer) in LAYERS.iter().enumerate() {
        let above: Vec<String> = LAYERS[at + 1..].iter().map(|above| format!("serve::{above}")).collect();
        let mut words: Vec<&str> = above.iter().map(String::as_str).collect();
        // Paths say in which layer they end.
        words.extend(["super::super", "serve::Server", "serve::Handle"]);
        let found = lines_with(&format!("src/http/serve/{layer}"), &words);
        assert!(found.is_empty(), "{layer} knows what lies above it:\n{}", found.join("\n"));
    }
    let pure = [
        "src/http/serve/base/share.rs",
        "src/http/serve/event_loop/admission.rs",
        "src/http/serve/event_loop/mode.rs",
        "src/http/serve/run/app_times.rs",
    ];
    for file in pure {
        let found: Vec<_> = code(&root().join(file))
            .into_iter()
            .filter(|(_, line)| ["libc::", "Instant::now", "epoll", "socket"].iter().any(|word| line.contains(word)))
            .collect();
        assert!(found.is_empty(), "{file} does something itself: {found:?}");
    }
}

/// The rooms of the master, from the top. A room may know the rooms below it and no other, so there is no circle.
const MASTER_ROOMS: [&str; 25] = [
    "main",
    "verbs",
    "master",
    "upgrade",
    "service",
    "doors",
    "shared",
    "children",
    "listeners",
    "chores",
    "logs",
    "sources",
    "supervisor",
    "config",
    "facts",
    "exit_code",
    "signals",
    "pidfile",
    "files",
    "progress",
    "watcher",
    "library",
    "footprint",
    "clock",
    "saved",
];

#[test]
fn the_master_has_no_circle() {
    let base = root().join("src/master");
    let rank = |room: &str| MASTER_ROOMS.iter().position(|known| *known == room);
    let mut wrong = Vec::new();
    for path in sources("src/master").into_iter().filter(|path| !is_test_file(path)) {
        let inside = path.strip_prefix(&base).unwrap_or(&path);
        let first = inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let room = first.unwrap_or_default().trim_end_matches(".rs").to_owned();
        let Some(own) = rank(&room) else {
            wrong.push(format!("{}: the room `{room}` is in no layer", path.display()));
            continue;
        };
        for (number, line) in code(&path) {
            for part in line.split("crate::").skip(1) {
                let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if name != room && rank(&name).is_none_or(|other| other <= own) {
                    wrong.push(format!("{}:{number}: {room} knows {name}, which is not below it", inside.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// ARCHITECTURE.md has a line for each file, so that a newcomer finds their room: the first sentence of the file's head.
#[test]
fn every_file_is_in_the_architecture() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it is there");
    let mut wanted = Vec::new();
    for path in sources("src").into_iter().filter(|path| !path.components().any(|part| part.as_os_str() == "fuzz")) {
        let directory = path.parent().and_then(|parent| parent.strip_prefix(root()).ok()).unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let section = page.split(&format!("**`{}/`**", directory.display())).nth(1).unwrap_or("");
        let section = section.split("\n**`").next().unwrap_or("");
        let row = format!("| `{name}` | {} |", first_sentence(&path));
        if !section.lines().any(|line| line == row) {
            wanted.push(format!("{}/: {row}", directory.display()));
        }
    }
    assert!(wanted.is_empty(), "ARCHITECTURE.md should say:\n{}", wanted.join("\n"));
}

/// Of a file's `//!`, without its full stop.
fn first_sentence(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("it is there");
    let head = text.lines().skip_while(|line| !line.starts_with("//!"));
    let head: Vec<&str> = head.map_while(|line| line.strip_prefix("//! ")).collect();
    let head = head.join(" ");
    head.split(". ").next().unwrap_or(&head).trim_end_matches('.').to_owned()
}

/// A file holds one noun. Above this length it has two, or says in its head why it has not.
const LINES_MAX: usize = 700;

#[test]
fn no_file_of_the_product_is_long() {
    for path in sources("src").into_iter().filter(|path| !is_test_file(path)) {
        let text = fs::read_to_string(&path).expect("it was listed");
        assert!(text.lines().count() <= LINES_MAX, "{} has more than {LINES_MAX} lines", path.display());
    }
}

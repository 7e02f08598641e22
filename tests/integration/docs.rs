//! The documentation is held to the program: no link leads nowhere, no verb, signal or exit code is missing, every TOML that
//! is shown is read, and every command that is shown is one. The configurations of proxies run in front of forkmaster.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::client::{Address, Connection};
use crate::harness::machine::Machine;
use crate::harness::master::{run, run_with, Launch};
use crate::harness::site::Site;
use crate::proxies;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All pages that people read.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for directory in ["", "docs", "examples", "packaging", "bench", "src/http"] {
        for entry in fs::read_dir(root().join(directory)).expect("it is there").flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|suffix| suffix == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    assert!(pages.len() > 12, "{pages:?}");
    pages
}

/// The anchor that a heading gets where Markdown is shown: lower case, no punctuation, blanks as hyphens.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn no_link_leads_nowhere() {
    let mut dead = Vec::new();
    for page in pages() {
        let text = read(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with("mailto:") || link.contains(' ') {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().expect("a directory").join(file) };
            let is_there = target.exists();
            let has_section = section.is_empty()
                || read(&target).lines().any(|line| line.starts_with('#') && anchor(line.trim_matches('#')) == section);
            if !is_there || !has_section {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn every_page_is_in_the_list() {
    let list = read(&root().join("docs/README.md"));
    for page in pages().iter().filter(|page| page.parent().is_some_and(|directory| directory.ends_with("docs"))) {
        let name = page.file_name().expect("it has one").to_string_lossy();
        assert!(name == "README.md" || list.contains(&format!("]({name})")), "docs/README.md does not list {name}");
    }
}

/// The verbs as `--help` lists them.
fn verbs() -> Vec<String> {
    let help = run(Path::new("/"), &["--help"]).stdout;
    let lines = help.lines().skip_while(|line| *line != "Verbs:").skip(1).take_while(|line| !line.is_empty());
    let verb =
        |line: &str| line.strip_prefix("  ")?.split(' ').next().map(str::to_owned).filter(|verb| !verb.is_empty());
    lines.filter_map(verb).filter(|verb| verb != "help").collect()
}

#[test]
fn no_verb_signal_or_exit_code_is_missing() {
    let page = read(&root().join("docs/api.md"));
    let verbs = verbs();
    assert!(verbs.len() >= 10, "{verbs:?}");
    for verb in verbs {
        assert!(page.contains(&format!("`{verb}")), "docs/api.md does not tell of the verb {verb}");
    }
    let help = run(Path::new("/"), &["--help"]).stdout;
    let codes = help.lines().skip_while(|line| *line != "Exit codes:").skip(1);
    let codes: Vec<(&str, &str)> = codes.filter_map(|line| line.trim().split_once("  ")).collect();
    assert!(codes.len() >= 9, "{help}");
    for (code, meaning) in codes {
        // The first words, since the page may say more.
        let words = meaning.split([';', ',']).next().unwrap_or_default();
        let row = page.lines().find(|line| line.starts_with(&format!("| {code} |")));
        assert!(row.is_some_and(|row| row.contains(words)), "docs/api.md does not say `{code} {words}`");
    }
    for signal in ["HUP", "TERM", "INT", "QUIT", "USR1", "TTIN", "TTOU", "WINCH"] {
        assert!(page.contains(signal), "docs/api.md does not tell of {signal}");
    }
}

/// The blocks of a page in one language, with the line where each begins.
/// The words of an enum's `fn word`.
fn words_of(file: &str) -> Vec<String> {
    let source = read(&root().join("src/master/supervisor").join(file));
    let body = source.split("pub fn word(&self) -> &'static str {").nth(1).expect("it has words");
    let body = body.split("\n    }\n").next().unwrap_or_default();
    body.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

/// As found: the page did not know what a paused worker is called.
#[test]
fn every_state_that_status_tells_is_in_its_page() {
    let page = read(&root().join("docs/status.md"));
    for file in ["worker.rs", "generation.rs"] {
        let words = words_of(file);
        assert!(words.len() > 5, "{file}: {words:?}");
        for word in words {
            assert!(page.contains(&format!("`{word}`")), "docs/status.md does not name the state `{word}` of {file}");
        }
    }
}

fn blocks<'a>(text: &'a str, language: &str) -> Vec<(usize, Vec<&'a str>)> {
    let mut found: Vec<(usize, Vec<&str>)> = Vec::new();
    let mut inside: Option<bool> = None;
    for (number, line) in (1..).zip(text.lines()) {
        match (inside, line.trim().strip_prefix("```")) {
            (None, Some(begins)) => {
                inside = Some(begins == language);
                if begins == language {
                    found.push((number, Vec::new()));
                }
            }
            (Some(_), Some(_)) => inside = None,
            (Some(true), None) => found.last_mut().expect("it has begun").1.push(line),
            (Some(false) | None, None) => {}
        }
    }
    found
}

/// What is shown may name directories of another machine. What must be right is what every machine can tell.
#[test]
fn every_configuration_that_is_shown_is_one() {
    let site = Site::with_releases("docs_toml", 1);
    let mut read_blocks = 0;
    for page in pages() {
        let text = read(&page);
        for (line, block) in blocks(&text, "toml") {
            let place = format!("{}:{line}", page.display());
            site.config(&block.join("\n"));
            let output = run(site.path(), &["check"]);
            for wrong in ["unknown key", "unknown section", "not valid TOML", "needs a unit", "is needed", "must be"] {
                assert!(!output.stderr.contains(wrong), "{place}: {output}");
            }
            read_blocks += 1;
        }
    }
    assert!(read_blocks >= 6, "{read_blocks} blocks");
}

#[test]
fn every_command_that_is_shown_is_one() {
    let mut words = BTreeSet::new();
    for page in pages() {
        let text = read(&page);
        for (line, block) in blocks(&text, "sh") {
            for command in block.iter().filter_map(|command| command.trim().strip_prefix("forkmaster ")) {
                let word = command.split(' ').next().unwrap_or_default();
                if word.starts_with('-') || word.contains(':') || word.contains('.') {
                    continue;
                }
                words.insert((word.to_owned(), format!("{}:{line}", page.display())));
            }
        }
    }
    assert!(!words.is_empty());
    for (verb, place) in words {
        let output = run(Path::new("/"), &[&verb, "--help"]);
        assert!(output.ok() && output.stdout.contains(&format!("forkmaster {verb}")), "{place}: {output}");
    }
}

#[test]
fn the_configurations_of_the_examples_are_good() {
    for file in [
        "hello/app.toml",
        "circus/shop.toml",
        "supervisor/shop.toml",
        "runit/shop/shop.toml",
        "s6/shop/shop.toml",
        "docker/app.toml",
    ] {
        let path = root().join("examples").join(file);
        let launch = Launch { directory: path.parent().map(Path::to_owned), ..Launch::default() };
        let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
        let output = run_with(root(), &["check", "-c", &name], launch);
        assert!(output.ok(), "{file}: {output}");
    }
    // The one that stands in a manifest.
    let manifest = read(&root().join("examples/kubernetes/shop.yaml"));
    let block =
        manifest.split("app.toml: |\n").nth(1).and_then(|rest| rest.split("\n---").next()).expect("it is there");
    let toml: Vec<&str> = block.lines().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect();
    let site = Site::with_releases("docs_kubernetes", 1);
    site.config(&toml.join("\n").replace("/app\"", &format!("{}\"", site.release_path("1").display())));
    let output = run(site.path(), &["check"]);
    assert!(output.ok(), "{output}");
}

/// The example with the addresses of this test in place of its own.
fn example(file: &str, front: &Address, master: &Address) -> String {
    let text = read(&root().join("examples").join(file));
    assert!(text.contains("127.0.0.1:8080") && text.contains("127.0.0.1:8000"), "{file}");
    text.replace("127.0.0.1:8080", &front.to_string()).replace("127.0.0.1:8000", &master.to_string())
}

#[test]
fn nginx_of_the_examples_serves_what_is_behind_it() {
    let site = Site::with_app("docs_nginx", "wsgi_forms.py");
    let master = site.start();
    // Started as root, its workers would be another user, who may not write here.
    let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
    let (_nginx, addresses) = proxies::start(&site, 1, |ports| {
        site.write("nginx.conf", &example("nginx/nginx.conf", &Address::Tcp(ports[0]), &master.address()));
        let mut command = Command::new(Machine::get().program("nginx"));
        let lines = format!("daemon off; {user}");
        command.arg("-p").arg(site.path()).args(["-e", "stderr", "-c", "nginx.conf", "-g", &lines]);
        command
    });
    proxies::ask_often("nginx of the examples", &addresses[0]);
    let environ = proxies::environ(&addresses[0], &[("X-Forwarded-For", "203.0.113.9")]);
    assert_eq!(environ["REMOTE_ADDR"], "127.0.0.1", "what a client says of itself got through");
    proxies::assert_no_complaints(&master, &site);
}

#[test]
fn haproxy_of_the_examples_serves_what_is_behind_it() {
    let site = Site::with_app("docs_haproxy", "wsgi_forms.py");
    let master = site.start();
    let (_haproxy, addresses) = proxies::start(&site, 1, |ports| {
        let text = example("haproxy/haproxy.cfg", &Address::Tcp(ports[0]), &master.address());
        let file = site.write("haproxy.cfg", &text);
        let mut command = Command::new(Machine::get().program("haproxy"));
        command.args(["-q", "-db", "-f"]).arg(file);
        command
    });
    proxies::ask_often("HAProxy of the examples", &addresses[0]);
    let environ = proxies::environ(&addresses[0], &[("X-Forwarded-For", "203.0.113.9")]);
    assert_eq!(environ["REMOTE_ADDR"], "127.0.0.1", "what a client says of itself got through");
    proxies::assert_no_complaints(&master, &site);
}

/// The block stands in a page and not in a file of its own: everything that it needs is five lines.
#[test]
fn caddy_of_the_page_serves_what_is_behind_it_and_static_files() {
    let site = Site::with_app("docs_caddy", "wsgi_forms.py");
    site.set("server.bind", "['127.0.0.1:0', 'unix:app.sock']");
    let master = site.start();
    site.write("static/style.css", "body {}");
    let page = read(&root().join("docs/behind-a-proxy.md"));
    let (_line, block) = blocks(&page, "caddy").into_iter().next().expect("the page has it");
    let place = site.path().display();
    let mine = |text: &str, ours: &str, theirs: &str| {
        assert!(text.contains(ours), "{ours} is not in {text}");
        text.replace(ours, theirs)
    };
    let (_caddy, addresses) = proxies::start(&site, 1, |ports| {
        // By its name Caddy would ask for a certificate.
        let text = mine(&block.join("\n"), "shop.example {", &format!("http://localhost:{} {{", ports[0].port()));
        let text = mine(&text, "unix//run/shop/http.sock", &format!("unix/{place}/app.sock"));
        let text = mine(&text, "/srv/shop/current/static", &format!("{place}/static"));
        // Its door for administrators would be one port for all, and it would listen on every interface.
        let file = site.write(
            "Caddyfile",
            &format!("{{\n\tadmin off\n\tpersist_config off\n\tdefault_bind 127.0.0.1\n}}\n{text}\n"),
        );
        let mut command = Command::new(Machine::get().program("caddy"));
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
        command.env("XDG_DATA_HOME", site.path()).env("XDG_CONFIG_HOME", site.path());
        command
    });
    proxies::ask_often("Caddy of the page", &addresses[0]);
    let environ = proxies::environ(&addresses[0], &[("X-Forwarded-For", "203.0.113.9")]);
    assert_eq!(environ["REMOTE_ADDR"], "127.0.0.1", "what a client says of itself got through");
    assert_eq!(environ["wsgi.url_scheme"], "http");
    let style = Connection::to(&addresses[0]).get("/static/style.css").expect("it is answered");
    assert_eq!((style.status, style.text().as_str()), (200, "body {}"));
    proxies::assert_no_complaints(&master, &site);
}

//! The limit of open files: the master knows what it needs, says so where it is short, and never meets it half-way.

use std::os::unix::fs::chown;

use nix::unistd::geteuid;

use crate::harness::machine::Machine;
use crate::harness::master::{Launch, Master};
use crate::harness::site::{copy_binary_to, Site};

/// Who is no root is also bound in what is on its way between processes (unix(7), ETOOMANYREFS).
fn launch(site: &Site, limit: u32) -> Master {
    let limit = format!("--nofile={limit}:{limit}");
    let mut through = vec!["prlimit", &limit, "--"];
    if geteuid().is_root() {
        for path in [site.path().to_path_buf(), site.config_path()] {
            chown(&path, Some(65534), Some(65534)).expect("root may");
        }
        through.extend(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    }
    let through = through.iter().map(|word| (*word).to_string()).collect();
    site.launch(Launch { through, binary: Some(copy_binary_to(site)), ..Launch::default() })
}

fn site(name: &str, workers: &str) -> Site {
    let site = Site::new(name);
    for number in ["1", "2"] {
        site.build(number).python(Machine::get().public_python()).make();
    }
    site.flip("1");
    site.set("server.workers", workers);
    site
}

/// As found: the old workers and the new ones together were too many, and the release was refused half-way.
#[test]
fn a_reload_keeps_to_the_open_files_that_there_are() {
    let site = site("few_open_files", "20");
    let master = launch(&site, 132);
    master.wait_serving();
    let warned = master.log_lines("*: the limit of 132 open files has room for *");
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains(" WARN ") && warned[0].contains("LimitNOFILE=1"), "{warned:?}");
    let refused = master.cli(&["scale", "40"]);
    assert!(!refused.ok() && refused.text().contains("the limit of 132 open files has room for"), "{}", refused.text());
    site.flip("2");
    master.reload();
    assert_eq!(master.get("/").release(), "2");
    assert!(master.log_lines("* ERROR *").is_empty(), "{}", master.log());
    // What cannot be had is refused before anything is touched.
    site.set("server.workers", "60");
    let refused = master.cli(&["reload"]);
    assert!(!refused.ok() && refused.text().contains("and its limit is 132; raise it"), "{}", refused.text());
}

#[test]
fn more_workers_than_open_files_do_not_start() {
    let site = site("no_open_files", "60");
    let master = launch(&site, 132);
    assert_eq!(master.wait_exit().code(), Some(78));
    let log = master.log();
    assert!(log.contains(" ERROR [server] workers = 60: the master needs ") && log.contains("ulimit -n"), "{log}");
}

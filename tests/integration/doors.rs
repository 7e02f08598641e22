//! What an operator meets at the doors: output that nobody reads, masters that do not answer, other versions, and
//! strangers at the control socket.

use std::process::{Command, Output, Stdio};

use crate::harness::master::binary;
use crate::harness::site::Site;
use crate::harness::wait_for;

fn one_release(name: &str) -> Site {
    let site = Site::new(name);
    site.release("1");
    site.flip("1");
    site
}

/// Runs a line of shell in which `$FORKMASTER` is the program and `$CONFIG` the site's file.
fn shell(site: &Site, line: &str) -> Output {
    let mut shell = Command::new("bash");
    shell.args(["-o", "pipefail", "-c", line]).current_dir(site.path()).env_clear();
    shell.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("FORKMASTER", binary()).env("CONFIG", site.config_path());
    shell.stdin(Stdio::null()).output().expect("there is a shell")
}

#[track_caller]
fn assert_ended(site: &Site, line: &str, code: i32) {
    let output = shell(site, line);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
    assert!(!stderr.contains("panicked"), "{line}: {stderr}");
}

/// A reader that had enough, or a full disk, changes nothing of what was done.
#[test]
fn the_exit_code_is_the_outcome_whoever_reads_the_output() {
    let site = one_release("output");
    let master = site.start();
    for verb in ["reload", "status", "status --json", "health", "check", "config show"] {
        assert_ended(&site, &format!("$FORKMASTER {verb} -c $CONFIG | true"), 0);
        assert_ended(&site, &format!("$FORKMASTER {verb} -c $CONFIG > /dev/full"), 0);
        assert_ended(&site, &format!("$FORKMASTER {verb} -c $CONFIG >&- 2>&-"), 0);
    }
    site.build("bad").app("broken/missing_dependency.py").make();
    site.flip("bad");
    assert_ended(&site, "$FORKMASTER reload -c $CONFIG > /dev/full 2> /dev/full", 1);
    assert_ended(&site, "$FORKMASTER reload -c $CONFIG 2>&1 | true", 1);
    assert_ended(&site, "$FORKMASTER check -c /nonexistent/app.toml 2> /dev/full", 78);
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn status_shows_what_each_busy_worker_runs() {
    let site = one_release("running");
    let master = site.start();
    let mut running = crate::harness::client::Connection::open(&master.address()).expect("it accepts");
    running.send(crate::harness::client::head("GET", "/sleep?s=20", &[])).expect("it can be sent");
    let json = wait_for("the request in status", || {
        let status: serde_json::Value = serde_json::from_str(&master.cli(&["status", "--json"]).stdout).ok()?;
        let workers = status["generations"][0]["workers"].as_array()?;
        workers.iter().find_map(|worker| worker["running"].get(0)).cloned()
    });
    assert_eq!((&json["method"], &json["path"]), (&"GET".into(), &"/sleep".into()));
    assert!(json["age_s"].as_f64().is_some_and(|age| (0.0..20.0).contains(&age)), "{json}");
    let text = master.cli(&["status"]).stdout;
    assert!(text.lines().any(|line| line.starts_with("    ") && line.ends_with(" s GET /sleep")), "{text}");
}

//! Rehearsals: the candidate of a release answers what the old generation has answered, before it takes over.

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::client::head;
use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::wait_for;

/// Some paths break as `breaks` says, a Python dict. `/seen` has what requests of a rehearsal looked like.
fn app(breaks: &str) -> String {
    format!(
        r#"
import json
import os
import threading
import time

RELEASE = os.path.basename(os.getcwd())
SEEN = []


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if environ.get("HTTP_USER_AGENT") == "forkmaster-rehearsal":
        keys = ["REQUEST_METHOD", "RAW_URI", "HTTP_HOST", "wsgi.url_scheme", "HTTP_COOKIE", "HTTP_AUTHORIZATION"]
        main = threading.current_thread() is threading.main_thread()
        SEEN.append([environ.get(key) for key in keys] + [main])
    what = {breaks}.get(path)
    if what == "raise":
        raise KeyError("year")
    if what == "hang":
        time.sleep(60)
    if what == "die":
        os.kill(os.getpid(), 11)
    status = "200 OK"
    if path == "/missing":
        status = "404 Not Found"
    if what in ("301", "302"):
        start_response(what + " Moved", [("Location", "/login"), ("Content-Length", "0")])
        return []
    if path == "/private" and "HTTP_COOKIE" not in environ and "HTTP_AUTHORIZATION" not in environ:
        status = "401 Unauthorized"
    if path == "/stream" and SEEN:
        start_response(status, [])
        return iter(lambda: b"x", None)
    body = json.dumps(SEEN) if path == "/seen" else RELEASE
    start_response(status, [("Content-Length", str(len(body)))])
    return [body.encode()]
"#
    )
}

fn release(site: &Site, name: &str, breaks: &str) {
    site.build(name).file("app.py", &app(breaks)).make();
}

/// Release 1 serves with one worker, whose requests are remembered.
fn start(name: &str, set: &[(&str, &str)]) -> (Site, Master) {
    let site = Site::new(name);
    release(&site, "1", "{}");
    site.flip("1");
    site.set("server.workers", "1");
    site.set("reload.rehearse", "20");
    for (key, value) in set {
        site.set(key, value);
    }
    let master = site.start();
    (site, master)
}

fn get_with(master: &Master, target: &str, fields: &[(&str, &str)]) -> u16 {
    master.connect().ask(head("GET", target, fields)).status
}

#[test]
fn a_release_that_answers_as_before_takes_over() {
    let (site, master) = start("rehearsal_good", &[]);
    release(&site, "2", "{}");
    for (target, fields, status) in [
        ("/", &[][..], 200),
        ("/reports?year=2026", &[("X-Forwarded-Proto", "https")], 200),
        ("/missing", &[("User-Agent", "x"), ("Accept", "text/html")], 404),
        ("/stream", &[], 200),
        // An answer to somebody is none to everybody.
        ("/private", &[("Cookie", "session=1")], 200),
        ("/private", &[("Authorization", "Basic eDp5")], 200),
        ("/keyed", &[("X-Api-Key", "1")], 200),
        ("/cached", &[("If-None-Match", "\"1\"")], 200),
        ("/private", &[], 401),
        ("/?again", &[], 200),
        ("/?again", &[], 200),
    ] {
        assert_eq!(get_with(&master, target, fields), status, "{target} {fields:?}");
    }
    assert_eq!(master.connect().post("/form", b"x").expect("an answer").status, 200);
    site.flip("2");
    let output = master.cli(&["reload"]);
    assert!(output.ok(), "{output}");
    assert!(output.stdout.starts_with("rehearsal: 6 of 6 as before\ngeneration 2 serves, after "), "{output}");
    // The candidate is the one worker: what it was asked was what everybody may ask, the latest first.
    let seen = master.get("/seen").json();
    let host = &seen[0][2];
    let asked = |target: &str, scheme: &str| serde_json::json!(["GET", target, host, scheme, null, null, true]);
    let expected = [
        asked("/?again", "http"),
        asked("/private", "http"),
        asked("/stream", "http"),
        asked("/missing", "http"),
        asked("/reports?year=2026", "https"),
        asked("/", "http"),
    ];
    assert_eq!(seen, Value::from(expected.to_vec()));
    // It was no traffic.
    let status = wait_for("the one request to be counted", || {
        let status = master.status()?;
        let new = status.0["generations"].as_array()?.iter().find(|one| one["generation"] == 2)?;
        (new["workers"][0]["requests"] == 1).then_some(status)
    });
    assert_eq!(status.0["last_reload"]["rehearsal"], "6 of 6 as before");
    assert!(master.cli(&["history"]).stdout.contains("    rehearsal: 6 of 6 as before\n"));
    master.stop_clean();
}

#[test]
fn a_release_that_answers_otherwise_is_refused_or_told() {
    let (site, master) = start("rehearsal_differs", &[("app.preload", "true")]);
    release(&site, "2", "{'/reports': 'raise', '/private': 'raise'}");
    assert_eq!(master.get("/").status, 200);
    assert_eq!(master.get("/reports?token=secret").status, 200);
    site.flip("2");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    let words = "rehearsal: 1 of 2 as before; /reports?... 200 -> 500";
    assert!(output.stderr.contains(words) && output.stderr.contains("KeyError: 'year'"), "{output}");
    let generation = master.wait_settled();
    assert_eq!((generation.number, generation.workers.len()), (1, 1));
    assert_eq!(master.get("/").text(), "1");
    let status = master.status().expect("it answers").0;
    assert_eq!(status["last_refusal"]["reason"], words, "{status}");
    assert!(master.log().contains(&format!("generation gen=2 refused: {words}\n")), "{}", master.log());
    assert!(!master.log().contains("secret"), "{}", master.log());
    // The same release, and an operator who knows better.
    site.set("reload.rehearse_differs", "'warn'");
    let output = master.cli(&["reload"]);
    assert!(output.ok() && output.stdout.starts_with(words), "{output}");
    assert_eq!(master.get("/").text(), "2");
    let line = master.wait_log("rehearsal gen=3 after=");
    assert!(line.contains("WARN") && line.ends_with("1 of 2 as before; /reports?... 200 -> 500"), "{line}");
    master.stop();
}

#[test]
fn a_page_that_became_a_redirect_is_a_difference_and_another_redirect_is_none() {
    let site = Site::new("rehearsal_redirects");
    release(&site, "1", "{'/old': '302'}");
    release(&site, "2", "{'/old': '301'}");
    release(&site, "3", "{'/old': '301', '/account': '302'}");
    site.flip("1");
    site.set("server.workers", "1").set("reload.rehearse", "20");
    let master = site.start();
    for (target, status) in [("/old", 302), ("/account?tab=orders&page=2", 200)] {
        assert_eq!(get_with(&master, target, &[]), status);
    }
    site.flip("2");
    let output = master.cli(&["reload"]);
    assert!(output.ok() && output.stdout.starts_with("rehearsal: 2 of 2 as before\n"), "{output}");
    for (target, status) in [("/old", 301), ("/account?tab=orders&page=2", 200)] {
        assert_eq!(get_with(&master, target, &[]), status);
    }
    site.flip("3");
    let output = master.cli(&["reload"]);
    let words = "rehearsal: 1 of 2 as before; /account?... 200 -> 302";
    assert!(output.code == Some(1) && output.stderr.contains(words), "{output}");
    assert!(!output.stderr.contains("orders") && !master.log().contains("orders"), "a query may be a secret");
    assert_eq!(master.wait_settled().number, 2);
    master.stop();
}

#[test]
fn a_release_that_hangs_or_dies_is_told_in_which_request() {
    let (site, master) = start("rehearsal_hangs", &[("reload.rehearse_request_timeout", "'1s'")]);
    release(&site, "2", "{'/reports': 'hang'}");
    release(&site, "3", "{'/reports': 'die'}");
    // What takes a fifth of a second is not remembered, and the machine may be busy.
    for _ in 0..5 {
        assert_eq!(master.get("/reports").status, 200);
    }
    site.flip("2");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    for words in ["rehearsal: 0 of 1 as before; /reports 200 -> no answer within 1.0s", "time.sleep(60)"] {
        assert!(output.stderr.contains(words), "{words}: {output}");
    }
    site.flip("3");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    let words = "the candidate died in the rehearsal, in GET /reports: SIGSEGV";
    assert!(output.stderr.contains(words), "{output}");
    let generation = master.wait_settled();
    assert_eq!((generation.number, generation.workers.len()), (1, 1));
    assert_eq!(master.get("/reports").text(), "1");
    master.stop();
}

#[test]
fn workers_that_cannot_say_what_they_remember_are_told_and_not_waited_for() {
    let (site, master) = start("rehearsal_silent", &[("server.workers", "2")]);
    release(&site, "2", "{'/': 'raise'}");
    // Nobody has asked anything yet.
    let output = master.cli(&["reload"]);
    assert!(output.ok() && output.stdout.starts_with("generation 2 serves"), "{output}");
    master.wait_log("rehearsal gen=2 left out: the old workers remember no request");
    let stopped = Pid::from_raw(master.wait_serving()[0].pid);
    kill(stopped, Signal::SIGSTOP).expect("it is there");
    assert_eq!(master.get("/").status, 200);
    site.flip("2");
    let output = master.cli(&["reload"]);
    kill(stopped, Signal::SIGCONT).expect("it is there");
    assert_eq!(output.code, Some(1), "{output}");
    let words = "rehearsal: 0 of 1 as before; / 200 -> 500; 1 of 2 old workers did not say what they remember";
    assert!(output.stderr.contains(words), "{output}");
    assert_eq!(master.wait_settled().number, 2);
    master.stop();
}

/// They are the workers' memory, and a message holds some three hundred.
#[test]
fn all_that_is_remembered_is_rehearsed_also_after_an_upgrade() {
    let (site, master) = start("rehearsal_upgrade", &[("reload.rehearse", "500")]);
    release(&site, "2", "{'/499': 'raise'}");
    let mut client = master.connect();
    for number in 0..500 {
        client.get_ok(&format!("/{number}?{}", "x".repeat(100)));
    }
    let output = master.cli(&["upgrade"]);
    assert!(output.ok(), "{output}");
    site.flip("2");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("rehearsal: 499 of 500 as before; /499?... 200 -> 500"), "{output}");
    release(&site, "2", "{}");
    let output = master.cli(&["reload"]);
    assert!(output.ok() && output.stdout.starts_with("rehearsal: 500 of 500 as before\n"), "{output}");
    master.stop();
}

//! How lines of the logs look, and which requests have one.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::harness::client;
use crate::harness::master::Launch;
use crate::harness::site::Site;
use crate::harness::wait_for;

#[test]
fn every_line_of_the_error_log_is_an_object() {
    let app = "import sys\n\n\
               def application(environ, start_response):\n\
               \x20   print('two', 'words', file=environ['wsgi.errors'])\n\
               \x20   if environ['PATH_INFO'] == '/fail':\n\
               \x20       raise ValueError('a \"quoted\" reason')\n\
               \x20   start_response('200 OK', [('Content-Length', '0')])\n\
               \x20   return []\n";
    let site = Site::with_source("json_log", app);
    site.set("log.format", "'json'").set("log.error", "'error.log'").set("server.workers", "1");
    let master = site.spawn();
    let log = || std::fs::read_to_string(site.path().join("error.log")).unwrap_or_default();
    let object = |line: &str| -> Value { serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")) };
    let message = |text: &str| -> Option<Value> {
        log().lines().map(object).find(|object| object["message"].as_str().is_some_and(|said| said.contains(text)))
    };
    let listening = wait_for("the address", || message("listening on "));
    let address = listening["message"].as_str().and_then(|text| text.split_whitespace().last()).expect("an address");
    let address = client::Address::Tcp(address.parse().expect("an address"));
    assert_eq!((&listening["level"], &listening["pid"]), (&"info".into(), &master.pid().into()));
    assert_eq!(client::get(&address, "/").expect("it serves").status, 200);
    assert_eq!(client::get(&address, "/fail").expect("it serves").status, 500);
    let failed = wait_for("the exception", || message("a \"quoted\" reason"));
    assert_eq!(failed["level"], "error");
    assert_ne!(failed["pid"], master.pid(), "it is a worker's line");
    assert!(failed["message"].as_str().is_some_and(|text| text.contains("Traceback") && text.lines().count() > 2));
    let printed = wait_for("what the application printed", || message("two words"));
    assert_eq!(printed["message"], "two words");
    // A reload changes the form with its commit.
    site.set("log.format", "'text'");
    master.hup();
    wait_for("the commit", || log().contains("INFO  generation gen=2 committed").then_some(()));
}

/// systemd names the stream that it has given; only there is a line for the journal.
#[test]
fn lines_for_the_journal_begin_with_their_priority() {
    let site = Site::with_source("journal", "def application(environ, start_response):\n    raise ValueError('no')\n");
    // The harness gives the master this very file as stderr, and it is there before the master starts.
    let log = std::fs::File::create(site.path().join("master-1.log")).expect("a file of the site can be made");
    let facts = log.metadata().expect("it is open");
    assert!(log.as_raw_fd() > 2);
    let stream = format!("{}:{}", facts.dev(), facts.ino());
    let master = site.launch(Launch::default().env("JOURNAL_STREAM", &stream));
    let address = master.address();
    assert_eq!(client::get(&address, "/").expect("it serves").status, 500);
    master.wait_log("<3>ValueError: no");
    let lines = master.log_lines("generation gen=1 committed");
    assert!(lines.len() == 1 && lines[0].starts_with("<6>generation gen=1 "), "{lines:?}");
    let other = site.launch(Launch::default().env("JOURNAL_STREAM", "1:1"));
    other.wait_log("INFO  forkmaster ");
}

#[test]
fn probes_and_good_answers_may_have_no_line() {
    let site = Site::with_releases("access_filter", 1);
    site.set("log.access", "'access.log'").set("log.access_skip", "['/info', '/no-*']");
    let master = site.start();
    let address = master.address();
    let access = || std::fs::read_to_string(site.path().join("access.log")).unwrap_or_default();
    let ask = |target: &str| client::get(&address, target).expect("it serves").status;
    assert_eq!((ask("/info"), ask("/no-such-path"), ask("/?a=/info")), (200, 404, 200));
    wait_for("the line", || access().contains("GET /?a=/info").then_some(()));
    site.set("log.access_status", "'>=400'");
    master.reload();
    assert_eq!((ask("/"), ask("/error"), ask("/nothing")), (200, 500, 404));
    wait_for("the lines of errors", || {
        (access().contains("GET /error") && access().contains("GET /nothing")).then_some(())
    });
    let lines: Vec<String> = access().lines().map(str::to_string).collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
}

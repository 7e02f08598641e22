//! A worker's own log lines never hold it up: a log that nobody reads costs lines, which are counted, and never a
//! request. Lines that clients cause are limited in rate.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use nix::sys::stat::Mode;

use crate::harness::client::{Address, Connection};
use crate::harness::site::Site;
use crate::harness::wait_for;

const APP: &str = "def application(environ, start_response):\n\
    \x20   if environ['PATH_INFO'] == '/raise':\n\
    \x20       raise RuntimeError('x' * 2000)\n\
    \x20   start_response('200 OK', [('Content-Length', '2')])\n\
    \x20   return [b'ok']\n";

const BAD_REQUESTS: usize = 1000;

#[test]
fn a_log_that_nobody_reads_holds_no_request_up_and_says_afterwards_what_is_lost() {
    let site = Site::with_source("unread_log", APP);
    let path = site.path().join("error.fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe with a name can be made");
    // Whoever has both ends waits for nobody.
    let mut pipe =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("it is there");
    site.set("log.error", &format!("'{}'", path.display())).set("server.workers", "1").set("server.threads", "2");
    // A master tells of a port that it was given in the log; a path is known.
    site.set("server.bind", "['unix:app.sock']");
    let master = site.start();
    let address = Address::Unix(site.path().join("app.sock"));
    let connect = || Connection::open(&address).expect("it listens");
    loop {
        match pipe.write(&[b'.'; 512]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    // Each bad request is a line, each exception a traceback of some kilobytes.
    let refused = || {
        let mut bad = connect();
        bad.send("GET / HTTP/1.1\r\nHost: a b\r\n\r\n").expect("it is taken");
        assert_eq!(bad.read().expect("it is refused").status, 400);
    };
    let began = Instant::now();
    let mut kept = connect();
    for round in 0..BAD_REQUESTS {
        refused();
        if kept.get("/raise").is_ok_and(|answer| answer.closes()) {
            kept = connect();
        }
        if round % 20 == 0 {
            assert_eq!(connect().get("/").expect("it is answered").text(), "ok");
        }
    }
    // Somebody reads again.
    let mut text = String::new();
    wait_for("the count of lost lines", || {
        let mut bytes = [0; 65536];
        while let Ok(read @ 1..) = pipe.read(&mut bytes) {
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        text.contains("lost: the log could not be written in time").then_some(())
    });
    // 200 at once and 20 a second: on a busy machine all of them may be within that.
    let refusals = text.matches("INFO  refused ").count();
    let allowed = 200 + 20 * (began.elapsed().as_secs() as usize + 1);
    assert!(refusals <= allowed, "{refusals} lines, {allowed} allowed");
    if allowed < BAD_REQUESTS / 2 {
        // Told with the next one.
        wait_for("the count of what was left out", || {
            refused();
            let mut bytes = [0; 65536];
            while let Ok(read @ 1..) = pipe.read(&mut bytes) {
                text.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            text.contains("that clients caused left out: more than 200 at once or 20 a second").then_some(())
        });
    }
    assert_eq!(connect().get("/").expect("it serves").text(), "ok");
    master.stop_clean();
}

#[test]
fn the_applications_words_and_the_servers_keep_their_order() {
    let app = "def application(environ, start_response):\n\
        \x20   number = environ['QUERY_STRING']\n\
        \x20   environ['wsgi.errors'].write('before %s\\n' % number)\n\
        \x20   if environ['PATH_INFO'] == '/raise':\n\
        \x20       raise RuntimeError('in ' + number)\n\
        \x20   start_response('200 OK', [('Content-Length', '2')])\n\
        \x20   return [b'ok']\n";
    let site = Site::with_source("order_of_lines", app);
    site.set("server.workers", "1");
    let master = site.start();
    for number in 0..20 {
        assert_eq!(master.get(&format!("/raise?{number}")).status, 500);
    }
    assert_eq!(master.get("/?20").text(), "ok");
    master.wait_log("before 20");
    let log = master.log();
    let order: Vec<&str> =
        log.lines().filter(|line| line.starts_with("before ") || line.starts_with("RuntimeError: in ")).collect();
    let expected: Vec<String> =
        (0..20).flat_map(|number| [format!("before {number}"), format!("RuntimeError: in {number}")]).collect();
    assert_eq!(order[..40], expected.iter().map(String::as_str).collect::<Vec<_>>()[..]);
}

//! The control socket and the commands that talk through it: they wait, tell the truth and an exit code, and nobody
//! but the owner is heard.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{run, Master};
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::wait_for;

/// Nobody answers: as LSB says for `status` of a program that is not running.
const NOT_RUNNING: Option<i32> = Some(3);
/// The time given is over: as timeout(1).
const TIMED_OUT: Option<i32> = Some(124);

fn connect(site: &Site) -> UnixStream {
    let stream = UnixStream::connect(site.path().join("control.sock")).expect("the master listens there");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    stream
}

fn assert_serves(master: &Master) {
    assert_eq!(master.get("/").text(), "1");
    assert!(master.status().is_some_and(|status| status.ready()));
}

/// As found: the master went on, and nobody could tell it anything any more.
#[test]
fn a_control_socket_that_was_removed_is_back_with_a_hup() {
    let site = Site::with_releases("control_removed", 1);
    let master = site.start();
    for file in ["control.sock", "control.lock"] {
        fs::remove_file(site.path().join(file)).expect("the master has made it");
    }
    master.hup();
    master.wait_log("* WARN *control socket at *: its file was removed, and is made again");
    assert_serves(&master);
    master.reload();
    assert_eq!(
        fs::metadata(site.path().join("control.lock")).expect("it is there").permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn status_for_people_names_what_serves() {
    let site = Site::with_releases("status_text", 1);
    let master = site.start();
    let output = master.cli(&["status"]);
    assert!(output.ok(), "{output}");
    let release = site.release_path("1");
    let address = master.address().to_string();
    for words in [release.to_str().expect("plain characters"), &master.pid().to_string(), &address, "serving"] {
        assert!(output.stdout.contains(words), "{words:?} is missing: {output}");
    }
}

#[test]
fn commands_without_a_master_say_so() {
    let site = Site::with_releases("no_master", 1);
    let config = site.config_path();
    let config = config.to_str().expect("plain characters");
    for verb in [&["status"][..], &["reload"], &["stop"]] {
        let output = run(site.path(), &[verb, &["-c", config]].concat());
        assert_eq!(output.code, NOT_RUNNING, "{verb:?}: {output}");
        assert!(output.stderr.contains("control.sock"), "{verb:?} does not say where it looked: {output}");
    }
}

#[test]
fn wait_ready_waits_for_the_first_worker() {
    let site = Site::new("wait_ready");
    site.build("1").import_s(1.0).make();
    site.flip("1");
    let master = site.spawn();
    wait_for("the control socket", || site.path().join("control.sock").exists().then_some(()));
    let early = master.cli(&["wait", "ready", "--timeout", "50ms"]);
    assert_eq!(early.code, TIMED_OUT, "{early}");
    let output = master.cli(&["wait", "ready"]);
    assert!(output.ok(), "{output}");
    assert_serves(&master);
}

#[test]
fn reload_without_waiting_returns_before_the_commit() {
    let site = Site::with_releases("no_wait", 1);
    site.build("2").import_s(2.0).make();
    let master = site.start();
    site.flip("2");
    let output = master.cli(&["reload", "--no-wait"]);
    assert!(output.ok(), "{output}");
    assert_eq!(master.get("/").text(), "1");
    master.wait_log("generation gen=2 rolling -> serving");
    assert_eq!(master.get("/").text(), "2");
}

#[test]
fn a_reload_that_takes_longer_than_the_time_given_goes_on() {
    let site = Site::with_releases("reload_timeout", 1);
    site.build("2").import_s(2.0).make();
    let master = site.start();
    site.flip("2");
    let output = master.cli(&["reload", "--timeout", "200ms"]);
    assert_eq!(output.code, TIMED_OUT, "{output}");
    master.wait_log("generation gen=2 rolling -> serving");
}

#[test]
fn a_superseded_reload_is_told_to_who_asked() {
    let site = Site::with_releases("superseded_asker", 1);
    site.build("2").import_s(60.0).make();
    site.release("3");
    let master = site.start();
    site.flip("2");
    let output = std::thread::scope(|scope| {
        let asker = scope.spawn(|| master.cli(&["reload"]));
        master.wait_log("generation gen=2*proving");
        site.flip("3");
        master.hup();
        asker.join().expect("the asker does not panic")
    });
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.text().contains("superseded"), "{output}");
    master.wait_log("generation gen=3 rolling -> serving");
}

#[test]
fn stop_now_does_not_wait_for_requests() {
    let site = Site::with_releases("stop_now", 1);
    let master = site.start();
    let mut running = master.connect();
    running.must_send(crate::harness::client::head("GET", "/sleep?s=20", &[]));
    master.get("/");
    let asked = Instant::now();
    let output = master.cli(&["stop", "--now"]);
    assert!(output.ok(), "{output}");
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}

#[test]
fn what_is_no_request_is_refused_and_harms_nobody() {
    let site = Site::with_releases("garbage", 1);
    let master = site.start();
    for line in ["not json\n", "{}\n", "[]\n", "{\"command\":\"explode\"}\n", "\n"] {
        let mut stream = connect(&site);
        stream.write_all(line.as_bytes()).expect("it can be sent");
        stream.shutdown(std::net::Shutdown::Write).expect("a half-close works");
        let mut answer = String::new();
        // It may be refused with a sentence or with a closed connection.
        if BufReader::new(stream).read_line(&mut answer).is_ok_and(|bytes| bytes > 0) {
            assert!(answer.contains("\"ok\":false"), "{line:?} was answered {answer}");
        }
    }
    assert_serves(&master);
}

#[test]
fn an_endless_line_is_cut_off() {
    let site = Site::with_releases("endless", 1);
    let master = site.start();
    let before = crate::harness::process::rss_anon_bytes(master.pid());
    let mut stream = connect(&site);
    stream.set_write_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
    let chunk = vec![b'x'; 64 * 1024];
    let sent = (0..1000).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 1000, "64 MB without the end of a line were taken");
    assert!(crate::harness::process::rss_anon_bytes(master.pid()) < before + (4 << 20));
    assert_serves(&master);
}

/// Clients that connect and say nothing, or ask and do not read, hold nobody up.
#[test]
fn silent_clients_do_not_hold_the_master_up() {
    let site = Site::with_releases("silent", 1);
    let master = site.start();
    let mut silent: Vec<UnixStream> = (0..20).map(|_| connect(&site)).collect();
    for stream in silent.iter_mut().take(10) {
        for _ in 0..50 {
            if stream.write_all(b"{\"command\":\"status\"}\n").is_err() {
                break;
            }
        }
    }
    assert_serves(&master);
    let reload = master.cli(&["reload"]);
    assert!(reload.ok(), "{reload}");
    drop(silent);
    assert_serves(&master);
}

#[test]
fn another_user_is_not_heard_even_where_the_file_lets_him_in() {
    if !can_change_users() {
        return;
    }
    let site = Site::with_releases("other_user", 1);
    let master = site.start();
    let socket = site.path().join("control.sock");
    let mode = fs::metadata(&socket).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "owner only");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("it is our directory");
    let binary = copy_binary_to(&site);
    let output = std::process::Command::new(Machine::get().program("setpriv"))
        .args(["--reuid", "10001", "--regid", "10001", "--clear-groups", "--"])
        .arg(&binary)
        .args(["stop", "--now", "--socket"])
        .arg(&socket)
        .env_clear()
        .current_dir("/")
        .output()
        .expect("setpriv can be started");
    assert_serves(&master);
    assert!(master.exited().is_none(), "a stranger stopped the service");
    assert!(!output.status.success(), "it says that it stopped the service: {output:?}");
}

#[test]
fn the_socket_file_of_a_killed_master_is_replaced_and_that_of_a_live_one_is_not() {
    let site = Site::with_releases("control_stale", 1);
    let first = site.start();
    let other = site.spawn();
    assert_ne!(other.wait_exit().code(), Some(0), "two masters with one control socket");
    assert_serves(&first);
    first.signal(Signal::SIGKILL);
    first.wait_exit();
    wait_for("the workers' end", || site.processes().is_empty().then_some(()));
    let again = site.start();
    assert_serves(&again);
}

#[test]
fn an_answer_is_one_line_of_json_with_a_version() {
    let site = Site::with_releases("one_line", 1);
    let _master = site.start();
    let mut stream = connect(&site);
    stream.write_all(b"{\"command\":\"status\"}\n").expect("it can be sent");
    stream.shutdown(std::net::Shutdown::Write).expect("a half-close works");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    assert_eq!(answer.lines().count(), 1, "{answer}");
    let json: serde_json::Value = serde_json::from_str(&answer).expect("it is JSON");
    assert_eq!(json["v"], 1);
}

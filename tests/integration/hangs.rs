//! Where requests are stuck: the slow log and dumps show it, whatever holds a thread.

use std::time::Duration;

use crate::harness::client;
use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::wait_for;

/// Where requests get stuck: in a loop, in C code that keeps the interpreter's lock, in a sleep, in a lock.
const STUCK: [&str; 4] = ["spin", "keep", "sleep", "lock"];

/// A look at the scoreboard each quarter of the limit, an answer within 0.4 s, faulthandler's within another: less than a
/// second, and another for a machine that does something else meanwhile.
const SEEN_WITHIN_S: f64 = 2.0;

fn site(name: &str, threads: u32) -> Site {
    let site = Site::with_releases(name, 1);
    site.set("server.workers", "1").set("server.threads", &threads.to_string());
    site
}

/// Asks for a page that takes three seconds, and does something meanwhile.
fn while_asking<T>(master: &Master, view: &str, meanwhile: impl FnOnce() -> T) -> T {
    let (address, target) = (master.address(), format!("/{view}?s=3"));
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || client::get(&address, &target));
        let done = meanwhile();
        assert_eq!(asking.join().expect("it ends").expect("it is answered").status, 200);
        done
    })
}

/// The number between two texts of a line.
fn seconds(line: &str, before: &str) -> f64 {
    let rest = line.split_once(before).map(|(_, rest)| rest).unwrap_or_else(|| panic!("{before} in {line}"));
    let digits: String = rest.chars().take_while(|character| character.is_ascii_digit() || *character == '.').collect();
    digits.parse().unwrap_or_else(|_| panic!("seconds in {line}"))
}

#[test]
fn a_slow_request_shows_where_it_is() {
    let site = site("slow_log", 1);
    site.set("log.slow_request", "'400ms'");
    let master = site.start();
    for view in STUCK {
        let mark = master.mark();
        while_asking(&master, view, || {
            let line = master.wait_log_after(mark, &format!("slow request \"GET /{view}\" of 127.0.0.1 runs for"));
            assert!(line.contains("worker gen=1 slot=0 pid=") && line.contains(" WARN "), "{line}");
            assert!(line.ends_with("in the application:"), "{line}");
            assert!(seconds(&line, "runs for ") < 0.4 + SEEN_WITHIN_S, "{line}");
            master.wait_log_after(mark, &format!(" in {view}"));
        });
        let end = master.wait_log_after(mark, &format!("slow request \"GET /{view}\" ended after=*s status=200"));
        assert!(seconds(&end, "after=") > 0.4, "{end}");
        // Twice and no more often.
        let log = master.log_after(mark);
        assert_eq!(log.matches(&format!("\"GET /{view}\" of 127.0.0.1 runs for")).count(), 2, "{log}");
        if ["sleep", "lock"].contains(&view) {
            assert!(log.contains(", where it was at the first look\n"), "{log}");
        }
    }
}

/// The stack of a request that waits for the lock says nothing; the one that has it does.
#[test]
fn who_holds_the_lock_is_shown_to_those_who_wait() {
    let site = site("slow_lock", 2);
    site.set("log.slow_request", "'1s'");
    let master = site.start();
    let address = master.address();
    while_asking(&master, "keep", || {
        wait_running(&master, "keep");
        let waiting = std::thread::spawn(move || client::get(&address, "/"));
        let line = "slow request \"GET /\"*waits for the interpreter's lock:";
        master.wait_log(line);
        assert_eq!(waiting.join().expect("it ends").expect("it is answered").status, 200);
        let log = master.log();
        let at = log.find("waits for the interpreter's lock:").expect("it was there");
        assert!(log[at..].contains(" in keep"), "{log}");
    });
}

/// Waits until the master sees the request.
#[track_caller]
fn wait_running(master: &Master, view: &str) {
    wait_for("the request in the status", || {
        let running = &master.status()?.0["generations"][0]["workers"][0]["running"];
        (running[0]["path"] == format!("/{view}")).then_some(())
    });
}

#[test]
fn no_slow_log_where_none_is_wanted() {
    let site = site("slow_none", 1);
    site.set("log.slow_request", "'none'");
    let master = site.start();
    assert_eq!(master.get("/sleep?s=1.5").status, 200);
    master.stop_clean();
}

/// A dump says what each thread runs, whatever the thread is stuck in.
#[test]
fn a_dump_names_the_requests_of_the_threads() {
    let site = site("dump_names", 1);
    let master = site.start();
    for view in STUCK {
        let runs = format!("runs \"GET /{view}\" of 127.0.0.1 for ");
        while_asking(&master, view, || {
            wait_running(&master, view);
            let dumped = master.cli(&["dump", "0"]);
            assert!(dumped.ok() && dumped.stdout.contains(&runs), "{dumped}");
            assert!(dumped.stdout.contains(&format!(" in {view}")), "{dumped}");
            assert!(dumped.took < Duration::from_secs_f64(SEEN_WITHIN_S), "{dumped}");
        });
    }
}

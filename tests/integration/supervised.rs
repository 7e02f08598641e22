//! Under a service manager: what it is told over NOTIFY_SOCKET, and the sockets that it passes by name. The manager of
//! these tests is a datagram socket; systemd itself is in `systemd`.

use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client;
use crate::harness::master::{Launch, Master};
use crate::harness::site::Site;
use crate::harness::wait_for;

/// The manager's end of NOTIFY_SOCKET.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn of(site: &Site) -> Manager {
        let path = site.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket of the site can be made");
        socket.set_nonblocking(true).expect("it is a socket");
        Manager { socket, path: path.to_string_lossy().into_owned() }
    }

    fn launch(&self) -> Launch {
        Launch::default().env("NOTIFY_SOCKET", &self.path)
    }

    /// The datagrams that are there now, as lists of assignments.
    fn heard(&self) -> Vec<Vec<String>> {
        let mut bytes = [0; 4096];
        let mut heard = Vec::new();
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..length]);
            heard.push(text.lines().map(str::to_string).collect());
        }
        heard
    }

    /// Waits for a datagram with this assignment, and returns it.
    fn wait(&self, master: &Master, assignment: &str) -> Vec<String> {
        master.wait_or_exit(&format!("{assignment} for the manager"), || {
            self.heard().into_iter().find(|datagram| datagram.iter().any(|line| line == assignment))
        })
    }
}

fn value<'a>(datagram: &'a [String], name: &str) -> &'a str {
    let found = datagram.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name}= in {datagram:?}"))
}

fn monotonic_usec() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("every Linux has it");
    now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1000
}

#[test]
fn a_manager_hears_every_state_and_ready_after_every_reload() {
    let site = Site::with_releases("notified", 2);
    let manager = Manager::of(&site);
    let master = site.launch(manager.launch());
    let ready = manager.wait(&master, "READY=1");
    // Not before somebody answers.
    client::get(&master.address(), "/").expect("it is ready");
    assert!(value(&ready, "STATUS").starts_with("generation 1: "), "{ready:?}");
    master.wait_serving();

    let asked = monotonic_usec();
    site.flip("2");
    master.hup();
    let reloading = manager.wait(&master, "RELOADING=1");
    let taken: u64 = value(&reloading, "MONOTONIC_USEC").parse().expect("a number");
    assert!((asked..=monotonic_usec()).contains(&taken), "{taken} of {asked}");
    let ready = manager.wait(&master, "READY=1");
    assert!(value(&ready, "STATUS").contains("generation 2: "), "{ready:?}");

    // A refused one ends with READY as well: without it the unit stays in `reloading` for ever.
    site.build("3").file("app.py", "import nothing_of_that_name\n").make();
    site.flip("3");
    assert!(!master.cli(&["reload"]).ok());
    let heard = manager.heard();
    let words: Vec<&str> = heard.iter().flatten().map(|line| line.split('=').next().unwrap_or("")).collect();
    let states: Vec<&&str> = words.iter().filter(|word| ["RELOADING", "READY"].contains(word)).collect();
    // Whoever asked is answered after the manager: `systemctl reload` finds the unit in its new state.
    assert_eq!(states, [&"RELOADING", &"READY"], "{heard:?}");
    let last = heard.iter().find(|datagram| datagram.contains(&"READY=1".to_string())).expect("it was counted");
    assert!(value(last, "STATUS").contains("the last reload was refused"), "{last:?}");

    master.term();
    let stopping = manager.wait(&master, "STOPPING=1");
    assert!(value(&stopping, "STATUS").starts_with("stopping: "), "{stopping:?}");
    assert_eq!(master.wait_exit().code(), Some(0));
}

#[test]
fn a_start_that_fails_says_why_and_is_never_ready() {
    let site = Site::with_source("notified_failure", "import nothing_of_that_name\n");
    let manager = Manager::of(&site);
    let master = site.launch(manager.launch());
    assert_eq!(master.wait_exit().code(), Some(69));
    let heard = manager.heard();
    assert!(!heard.iter().flatten().any(|line| line == "READY=1"), "{heard:?}");
    let why = heard
        .iter()
        .flatten()
        .any(|line| line.contains("the start was refused: ") && line.contains("nothing_of_that_name"));
    assert!(why, "{heard:?}");
}

#[test]
fn a_slow_start_asks_for_more_time() {
    let site = Site::new("notified_slow");
    site.build("1").import_s(6.0).make();
    site.flip("1");
    let manager = Manager::of(&site);
    let master = site.launch(manager.launch());
    let (mut asked, mut ready) = (0, false);
    master.wait_or_exit("a second prayer for time, and READY", || {
        for datagram in manager.heard() {
            ready |= datagram.contains(&"READY=1".to_string());
            asked += usize::from(!ready && datagram.contains(&"EXTEND_TIMEOUT_USEC=15000000".to_string()));
        }
        ready.then_some(())
    });
    assert!(asked >= 2, "{asked}");
}

/// The watchdog is fed by the loop itself: as long as it turns, and no longer.
#[test]
fn the_watchdog_is_fed_while_the_master_runs_and_not_while_it_is_stopped() {
    let site = Site::with_releases("watchdog", 1);
    let manager = Manager::of(&site);
    let master = site.launch(manager.launch().env("WATCHDOG_USEC", "1000000"));
    manager.wait(&master, "READY=1");
    let (began, mut fed) = (Instant::now(), Vec::new());
    wait_for("the watchdog to be fed four times", || {
        let now = manager.heard().iter().flatten().filter(|line| *line == "WATCHDOG=1").count();
        fed.extend((0..now).map(|_| began.elapsed()));
        (fed.len() >= 4).then_some(())
    });
    master.signal(Signal::SIGSTOP);
    wait_for("the stop", || {
        (crate::harness::process::status_field(master.pid(), "State:")?.starts_with('T')).then_some(())
    });
    manager.heard();
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_millis(1200) {
        assert!(manager.heard().is_empty(), "fed by somebody else");
    }
    master.signal(Signal::SIGCONT);
    manager.wait(&master, "WATCHDOG=1");
}

/// Its queue is full, and nobody reads it.
#[test]
fn a_manager_that_reads_nothing_does_not_hold_the_master_up() {
    let site = Site::with_releases("deaf_manager", 2);
    let manager = Manager::of(&site);
    let filler = UnixDatagram::unbound().expect("a socket can be made");
    filler.set_nonblocking(true).expect("it is a socket");
    let mut filled = 0;
    while filler.send_to(b"FILLER=1", &manager.path).is_ok() {
        filled += 1;
    }
    let master = site.launch(manager.launch().env("WATCHDOG_USEC", "1000000"));
    master.wait_serving();
    site.flip("2");
    master.reload();
    assert_eq!(client::get(&master.address(), "/").expect("it serves").text(), "2");
    // What it has to know is not lost, and comes in order.
    let states = |heard: Vec<Vec<String>>| -> Vec<String> {
        let known = |line: &String| ["READY=1", "RELOADING=1"].contains(&line.as_str());
        heard.into_iter().flatten().filter(known).collect()
    };
    let mut heard = Vec::new();
    wait_for("what was kept", || {
        heard.extend(states(manager.heard()));
        (heard.len() >= 3).then_some(())
    });
    assert_eq!(heard, ["READY=1", "RELOADING=1", "READY=1"]);
    assert!(filled > 0);
}

#[test]
fn the_application_inherits_nothing_of_the_managers_protocol() {
    let app = "import os\n\n\
               def application(environ, start_response):\n\
               \x20   names = [name for name in os.environ if name.startswith(('NOTIFY', 'WATCHDOG', 'LISTEN'))]\n\
               \x20   body = ' '.join(sorted(names)).encode()\n\
               \x20   start_response('200 OK', [('Content-Length', str(len(body)))])\n\
               \x20   return [body]\n";
    let site = Site::with_source("protocol_variables", app);
    let manager = Manager::of(&site);
    let launch = manager.launch().env("WATCHDOG_USEC", "30000000").env("LISTEN_FDNAMES", "x");
    let master = site.launch(launch);
    assert_eq!(master.connect().get_ok("/").text(), "");
}

/// Starts the binary with these sockets as systemd passes them.
fn with_passed(sockets: Vec<RawFd>, names: &str) -> Launch {
    let count = sockets.len();
    let mut launch = Launch::default().env("LISTEN_FDS", &count.to_string()).env("LISTEN_FDNAMES", names);
    launch.through = ["sh", "-c", "LISTEN_PID=$$; export LISTEN_PID; exec \"$@\"", "sh"].map(String::from).to_vec();
    launch.before_exec = Some(Box::new(move || {
        // Async-signal-safe. First out of the way, since a number may be both source and target.
        for (at, socket) in sockets.iter().enumerate() {
            // SAFETY: plain system calls with numbers of open descriptors.
            if unsafe { libc::dup2(*socket, 100 + at as i32) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        for at in 0..sockets.len() as i32 {
            // SAFETY: as above.
            if unsafe { libc::dup2(100 + at, 3 + at) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // SAFETY: as above.
            unsafe { libc::close(100 + at) };
        }
        Ok(())
    }));
    launch
}

#[test]
fn sockets_are_found_by_name_and_survive_reload_and_restart() {
    let site = Site::with_releases("by_name", 2);
    site.set("server.bind", "['systemd:http']");
    let http = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let other = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = client::Address::Tcp(http.local_addr().expect("it is bound"));
    // Named, not numbered: the order may change with the units.
    for (order, names) in [([&http, &other], "http:admin"), ([&other, &http], "admin:http")] {
        site.flip("1");
        let master = site.launch(with_passed(order.map(|socket| socket.as_raw_fd()).to_vec(), names));
        master.wait_serving();
        assert_eq!(client::get(&address, "/").expect("it serves").text(), "1");
        site.flip("2");
        master.reload();
        assert_eq!(client::get(&address, "/").expect("it serves").text(), "2");
        master.wait_log("WARN*systemd passed the socket admin*bind does not name*systemd:admin");
        master.stop();
    }
}

#[test]
fn an_upgrade_is_a_reload_to_the_manager_and_keeps_what_it_has_passed() {
    let site = Site::with_releases("notified_upgrade", 2);
    site.set("server.bind", "['systemd:http']");
    let manager = Manager::of(&site);
    let http = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = client::Address::Tcp(http.local_addr().expect("it is bound"));
    let master = site.launch(with_passed(vec![http.as_raw_fd()], "http").env("NOTIFY_SOCKET", &manager.path));
    manager.wait(&master, "READY=1");
    master.wait_serving();
    for _ in 0..2 {
        manager.heard();
        let output = master.cli(&["upgrade"]);
        assert!(output.ok(), "{output}");
        let heard: Vec<String> = manager.heard().into_iter().flatten().collect();
        let states: Vec<&String> = heard.iter().filter(|line| line.starts_with("RE") || line.contains("PID")).collect();
        assert_eq!(states, ["RELOADING=1", "READY=1"], "{heard:?}");
    }
    // The descriptors have their numbers still.
    site.flip("2");
    master.reload();
    assert_eq!(client::get(&address, "/").expect("it serves").text(), "2");
    master.stop();
}

#[test]
fn a_unit_with_a_socket_and_no_bind_serves_it() {
    let site = Site::with_releases("bind_from_the_unit", 1);
    site.unset("server.bind");
    let http = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = client::Address::Tcp(http.local_addr().expect("it is bound"));
    let master = site.launch(with_passed(vec![http.as_raw_fd()], "gunicorn.socket"));
    master.wait_log("listening on systemd:gunicorn.socket (127.0.0.1:");
    assert_eq!(client::get(&address, "/").expect("it serves").text(), "1");
    master.stop_clean();
}

#[test]
fn a_name_that_was_not_passed_is_answered_with_those_that_were() {
    let site = Site::with_releases("wrong_name", 1);
    site.set("server.bind", "['systemd:web']");
    let http = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let master = site.launch(with_passed(vec![http.as_raw_fd()], "http"));
    assert_eq!(master.wait_exit().code(), Some(78));
    assert!(!master.log_lines("cannot listen on systemd:web*there is \"systemd:http\"").is_empty(), "{}", master.log());
    let master = site.spawn();
    assert_eq!(master.wait_exit().code(), Some(78));
    assert!(!master.log_lines("no socket was passed").is_empty(), "{}", master.log());
}
